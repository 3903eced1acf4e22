"""Evaluation in segments with carried state equals one whole pass."""

import pytest
import torch
from peak import Peak

from nemo_lact.modules import LaCTEncoder
from nemo_lact.modules.segments import SegmentedPass

VARIANTS = {
    'plain': {},
    'conformer': dict(conv_kernel_size=9, macaron=True, block_norm=True),
    'batch_norm, one-sided convolution': dict(
        conv_kernel_size=7, conv_norm_type='batch_norm', conv_context_size=[5, 1], subsampling='striding'
    ),
    'right context beyond a chunk': dict(att_context_size=[4, 40]),
    'causal, 8x': dict(lact_mode='causal', causal_downsampling=True, subsampling_factor=8, att_context_size=[16, 0]),
    'attention in chunks': dict(
        lact_mode='causal', att_context_style='chunked_limited', att_context_size=[15, 4], causal_downsampling=True
    ),
    'borders in pauses': dict(lact_chunk_tolerance=6, conv_kernel_size=5),
    'positions in the memory': dict(ttt_nope=False, feat_out=24),
    'memory that forgets': dict(lact_retention=0.7),
    'relevance': dict(lact_retention=0.7, lact_relevance=6, use_muon=False, base_lr=0.02),
    'memory in one layer': dict(lact_layers=[1], conv_kernel_size=5),
    'no memory': dict(lact_layers=[]),
}


@pytest.fixture(params=VARIANTS)
def encoder(request, tiny):
    return LaCTEncoder(**{**tiny, 'n_layers': 3, **VARIANTS[request.param], 'segment_frames': 24}).eval()


def whole_pass(encoder, *args, **kwargs):
    encoder.config.segment_frames = -1
    try:
        return encoder.forward_with_state(*args, **kwargs)
    finally:
        encoder.config.segment_frames = 24


def relative(a, b):
    return (a - b).norm() / b.norm() if b.numel() else torch.zeros(())  # there may be no memory


@torch.inference_mode()
def test_segments_equal_the_whole_pass(encoder, contract):
    signal, length = torch.randn(3, 16, 2999), torch.tensor([2999, 1203, 9])
    whole, n, last = whole_pass(encoder, signal, length)
    assert encoder.segment_size(3) < whole.size(2) / 10
    pieces, n2, last2 = encoder.forward_with_state(signal, length)
    assert torch.equal(n, n2) and pieces.shape == whole.shape
    for row in range(3):
        a, b = pieces[row, :, : n[row]], whole[row, :, : n[row]]
        contract('segments = whole pass (relative, fp32)', relative(a, b), 1e-4)
    for a, b in zip([*last.weights, *last.momentum], [*last2.weights, *last2.momentum]):
        contract('segments = whole pass: memory (relative, fp32)', relative(a, b), 1e-4)
    # The next utterance, with the memory carried, is the same too.
    signal = torch.randn(3, 16, 1500)
    a = whole_pass(encoder, signal, None, last)[0]
    b = encoder.forward_with_state(signal, None, last2)[0]
    contract('segments = whole pass (relative, fp32)', relative(b, a), 1e-4)


@torch.inference_mode()
def test_features_may_come_in_pieces_of_any_size(encoder, contract):
    signal, length = torch.randn(2, 16, 1611), torch.tensor([1611, 700])
    whole, n, _ = whole_pass(encoder, signal, length)
    if encoder.config.lact_chunk_tolerance:
        with pytest.raises(ValueError, match='give one row'):
            SegmentedPass(encoder, length, [None] * 3)
        signal, length, whole, n = signal[:1], length[:1], whole[:1], n[:1]
    run = SegmentedPass(encoder, length, [None] * 3)
    parts, at = [], 0
    while at < 1611:
        step = int(torch.randint(1, 300, ()))
        parts.append(run.feed(signal[:, :, at : at + step], last=at + step >= 1611))
        at += step
    out = torch.cat(parts, dim=2)
    assert out.shape == whole.shape and sum(p.size(2) > 0 for p in parts) > 3
    for row in range(len(n)):
        a, b = out[row, :, : n[row]], whole[row, :, : n[row]]
        contract('segments = whole pass (relative, fp32)', relative(a, b), 1e-4)


@torch.inference_mode()
def test_forward_takes_segments_and_holds_few_frames(tiny, monkeypatch):
    encoder = LaCTEncoder(**{**tiny, 'segment_frames': 48}).eval()
    longest = 0
    original = torch.nn.functional.scaled_dot_product_attention

    def watch(q, *args, **kwargs):
        nonlocal longest
        longest = max(longest, q.size(0) * q.size(2))  # frames in one call
        return original(q, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', watch)
    encoder(audio_signal=torch.randn(1, 16, 8000), length=torch.tensor([8000]))
    assert 0 < longest < 200  # of 2000


def test_full_attention_and_training_run_whole(tiny):
    x = torch.randn(1, 16, 1600)
    with torch.inference_mode():
        assert not LaCTEncoder(**{**tiny, 'segment_frames': 24, 'att_context_size': [-1, -1]}).eval()._in_segments(x)
        encoder = LaCTEncoder(**{**tiny, 'segment_frames': 24})
        assert not encoder.train()._in_segments(x) and encoder.eval()._in_segments(x)
    assert not encoder._in_segments(x)  # gradients wanted


@torch.inference_mode()
def test_rows_that_may_not_learn_keep_their_memory(tiny):
    encoder = LaCTEncoder(**{**tiny, 'segment_frames': 48}).eval()
    signal, length = torch.randn(2, 16, 900), torch.tensor([900, 900])
    out, _, state = encoder.forward_with_state(signal, length, None, learn=torch.tensor([False, True]))
    assert not any(t[:, 0].any() for t in [*state.weights, *state.momentum]) and state.weights[0][:, 1].any()
    encoder.adaptation = False
    frozen = encoder(audio_signal=signal, length=length)[0]
    assert torch.equal(out[0], frozen[0]) and not torch.equal(out[1], frozen[1])


@pytest.mark.parametrize('extra', [{}, dict(conv_kernel_size=9, macaron=True)])
def test_memory_is_flat_in_the_length(tiny, extra):
    """Features come and outputs go piece by piece; what is alive in between does not grow, at the end neither."""
    # Without Muon, which is slow to watch and whose own tensors would hide growth.
    encoder = LaCTEncoder(**{**tiny, 'n_layers': 8, 'segment_frames': 96, 'use_muon': False, **extra}).eval()
    peaks = {}
    for segments in (12, 36, 120):
        frames = segments * 96 * 4
        with torch.no_grad(), Peak(encoder) as counted:
            run = SegmentedPass(encoder, torch.tensor([frames]), [None] * 8)
            given = 0
            for start in range(0, frames, 600):
                n = min(600, frames - start)
                given += run.feed(torch.randn(1, 16, n), last=start + n == frames).size(2)
        assert given == frames // 4
        peaks[segments] = counted.peak
    assert max(peaks.values()) <= 1.1 * peaks[12], peaks
