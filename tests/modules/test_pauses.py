"""Borders of memory chunks moved to pauses."""

import pytest
import torch

from nemo_lact.modules import LaCTEncoder
from nemo_lact.modules.pauses import borders_of, frame_energy, layout


def test_borders_lie_in_the_quietest_frames():
    energy = torch.ones(2, 100)
    energy[0, [17, 44, 61]] = 0.0
    energy[1, 22] = -1.0
    first, second = borders_of(energy, torch.tensor([100, 100]), chunk=20, tolerance=5)
    assert first[:4] == [0, 17, 32, 47][:2] + first[2:4] and first[1] == 17
    assert all(15 <= b - a <= 25 for a, b in zip(first, first[1:]))
    assert second[1] == 22
    plain = borders_of(energy, torch.tensor([100, 100]), chunk=20, tolerance=0)
    assert plain[0] == [0, 20, 40, 60, 80, 100]


def test_energy_of_frames_follows_the_features():
    features = torch.zeros(1, 4, 64)
    features[:, :, 32:40] = 8.0
    energy = frame_energy(features, 8)
    assert energy.shape == (1, 9) and energy[0].nonzero().flatten().tolist() == [4, 5]


def test_layout_there_and_back():
    borders = [[0, 7, 15, 30], [0, 9, 30]]
    chunks = layout(borders, 0, 25, 16, 'cpu')
    x = torch.randn(2, 3, 25, 4)
    spread = chunks.spread(x)
    assert spread.shape == (2, 3, 48, 4) and torch.equal(chunks.gathered(spread), x)
    assert torch.equal(spread[0, :, 16:24], x[0, :, 7:15]) and torch.equal(spread[1, :, 16:32], x[1, :, 9:25])
    valid = chunks.valid(torch.ones(2, 25, dtype=torch.bool))
    assert valid.sum(dim=1).tolist() == [25, 25] and not valid[0, 7:16].any() and not valid[1, 32:].any()


@torch.inference_mode()
def test_a_batch_mate_moves_no_border(tiny, contract):
    encoder = LaCTEncoder(**{**tiny, 'lact_chunk_tolerance': 8}).eval()
    signal, length = torch.randn(3, 16, 700), torch.tensor([700, 411, 90])
    out, n = encoder(audio_signal=signal, length=length)
    for i in range(3):
        alone, _ = encoder(audio_signal=signal[i : i + 1, :, : length[i]], length=length[i : i + 1])
        a, b = out[i, :, : n[i]], alone[0, :, : n[i]]
        contract('padding and batch-mates (relative, fp32)', (a - b).norm() / b.norm(), 1e-5)


def test_it_trains_and_moves_what_is_learned(tiny):
    encoder = LaCTEncoder(**{**tiny, 'lact_chunk_tolerance': 8}).train()
    plain = LaCTEncoder(**tiny).train()
    plain.load_state_dict(encoder.state_dict())
    x, n = torch.randn(2, 16, 400), torch.tensor([400, 300])
    out = encoder(audio_signal=x, length=n)[0]
    assert not torch.allclose(out, plain(audio_signal=x, length=n)[0])
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_wrong_tolerances_are_named(tiny):
    with pytest.raises(ValueError, match='lact_chunk_tolerance=24; give 0.*to 23'):
        LaCTEncoder(**{**tiny, 'lact_chunk_tolerance': 24})
    with pytest.raises(ValueError, match='lact_mode=causal'):
        LaCTEncoder(**{**tiny, 'lact_chunk_tolerance': 4, 'lact_mode': 'causal'})
