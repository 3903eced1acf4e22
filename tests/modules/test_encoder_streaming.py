"""Streaming in any partition equals offline; NeMo's cache interface; states by row, on disk, over utterances."""

from types import SimpleNamespace

import pytest
import torch
from nemo.collections.asr.parts.utils.streaming_utils import CacheAwareStreamingAudioBuffer
from omegaconf import OmegaConf

from nemo_lact.modules import LaCTEncoder
from nemo_lact.state import GROUPS, LaCTState

STREAMING = dict(lact_mode='causal', causal_downsampling=True, att_context_size=[12, 0])
VARIANTS = {
    'window': {},
    'chunks': dict(att_context_size=[[12, 3], [12, 1]], att_context_style='chunked_limited'),
    'conformer, 8x': dict(
        conv_kernel_size=5, conv_context_size='causal', macaron=True, block_norm=True, subsampling_factor=8
    ),
    'batch_norm': dict(conv_kernel_size=3, conv_context_size='causal', conv_norm_type='batch_norm'),
    'gradient steps': dict(use_muon=False, use_momentum=False, subsampling='striding'),
    'positions in the memory': dict(ttt_nope=False, feat_out=24, lr_dim=16),
    'memory that forgets': dict(lact_retention=0.7),
    'relevance': dict(lact_retention=0.7, lact_relevance=6, use_muon=False, base_lr=0.02),
    'memory in one layer': dict(lact_layers=[1], conv_kernel_size=5, conv_context_size='causal'),
    'no memory': dict(lact_layers=[]),
}


@pytest.fixture(params=VARIANTS)
def encoder(request, tiny):
    encoder = LaCTEncoder(**{**tiny, 'lact_chunk_size': 10, **STREAMING, **VARIANTS[request.param]}).eval()
    for module in encoder.modules():  # a batch norm that does something
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return encoder


def relative(a, b):
    return (a - b).norm() / b.norm() if b.numel() else torch.zeros(())  # there may be no memory


def streamed(encoder, signal, length, sizes, state=None):
    """Rows of encoded frames from steps of `sizes(step)` [B] feature frames each, and the state at the end."""
    batch = signal.size(0)
    state = encoder.init_state(batch) if state is None else state
    done, rows = torch.zeros(batch, dtype=torch.long), [[] for _ in range(batch)]
    over = torch.zeros(batch, dtype=torch.bool)
    while not over.all():
        step = torch.minimum(sizes(), length - done)
        final = done + step == length
        n = int(step.max())
        index = (done[:, None] + torch.arange(n)).clamp(max=signal.size(2) - 1)
        part = signal.gather(2, index[:, None].expand(-1, signal.size(1), -1))
        out, count, state = encoder.stream_step(part, step, state, final & ~over)
        for row in range(batch):
            rows[row].append(out[row, :, : count[row]])
        done, over = done + step, over | final
    return [torch.cat(parts, dim=1) for parts in rows], state


@pytest.mark.parametrize('seed', range(4))
@torch.inference_mode()
def test_any_partition_equals_offline(encoder, contract, seed):
    torch.manual_seed(seed)
    length = torch.tensor([700, 333, 45, 1])
    signal = torch.randn(4, 16, 700)
    whole, n = encoder(audio_signal=signal, length=length)
    largest = [1, 30, 200, 800][seed]
    rows, _ = streamed(encoder, signal, length, lambda: torch.randint(0, largest + 1, (4,)))
    for row in range(4):
        assert rows[row].size(1) == n[row]
        contract('streaming = offline (relative, fp32)', relative(rows[row], whole[row, :, : n[row]]), 1e-4)


@torch.inference_mode()
def test_memory_after_the_stream_equals_offline(encoder, contract):
    length, signal = torch.tensor([700, 333]), torch.randn(2, 16, 700)
    _, _, offline = encoder.forward_with_state(signal, length)
    _, state = streamed(encoder, signal, length, lambda: torch.randint(0, 90, (2,)))
    ended = encoder.end_utterance(state)
    for a, b in zip([*ended.weights, *ended.momentum], [*offline.weights, *offline.momentum]):
        assert a.shape == b.shape and a.size(0) == len(encoder.config.memory_layers)
        contract('streaming = offline: memory (relative, fp32)', relative(a, b), 1e-4)
    assert torch.equal(ended.position, offline.position) and not ended.frames.any() and not ended.attention[0].any()
    # And the next utterance begins where offline would.
    whole, n, _ = encoder.forward_with_state(signal[:, :, :200], None, offline)
    rows, _ = streamed(encoder, signal[:, :, :200], torch.tensor([200, 200]), lambda: torch.tensor([50, 70]), ended)
    for row in range(2):
        contract('streaming = offline (relative, fp32)', relative(rows[row], whole[row, :, : n[row]]), 1e-4)


def nemo_steps(encoder, signal, length, padded=False):
    """[B] rows of encoded frames and the caches, fed as NeMo's streaming script does it, with NeMo's own buffer.

    padded: the first step has padding before it, as in the inference pipelines and with pad_and_drop_preencoded.
    """
    model = SimpleNamespace(
        encoder=encoder, device='cpu', _cfg=OmegaConf.create({'preprocessor': {'normalize': 'NA'}}),
        from_config_dict=lambda cfg: torch.nn.Identity(),
    )  # fmt: skip
    buffer = CacheAwareStreamingAudioBuffer(model, pad_and_drop_preencoded=padded)
    for row, n in enumerate(length.tolist()):
        buffer.append_processed_signal(signal[row : row + 1, :, :n], stream_id=-1)
    caches = encoder.get_initial_cache_state(batch_size=signal.size(0))
    rows = [[] for _ in length]
    for step, (chunk, n) in enumerate(buffer):
        out, count, *caches = encoder.cache_aware_stream_step(
            processed_signal=chunk, processed_signal_length=n,
            cache_last_channel=caches[0], cache_last_time=caches[1], cache_last_channel_len=caches[2],
            keep_all_outputs=buffer.is_buffer_empty(),
            drop_extra_pre_encoded=encoder.streaming_cfg.drop_extra_pre_encoded if step or padded else 0,
        )  # fmt: skip
        for row, frames in enumerate(rows):
            frames.append(out[row, :, : int(count[row])])
    return [torch.cat(frames, dim=1) for frames in rows], caches


@pytest.mark.parametrize('frames', [401, 400, 403, 2])  # a whole number of steps or not
@torch.inference_mode()
def test_nemo_cache_interface_equals_offline(encoder, contract, frames):
    length = torch.tensor([frames, (frames + 1) // 2, 1])
    signal = torch.randn(3, 16, frames)
    for window in encoder.att_context_size_all:
        encoder.set_default_att_context_size(window)
        whole, n = encoder(audio_signal=signal, length=length)
        rows, caches = nemo_steps(encoder, signal, length)
        for row in range(3):
            assert rows[row].size(1) == n[row]
            difference = relative(rows[row], whole[row, :, : n[row]])
            contract('NeMo cache-aware steps = offline (relative, fp32)', difference, 1e-4)
        assert caches[0].dtype == torch.float32 and caches[2].tolist() == length.tolist()
        rows, caches = nemo_steps(encoder, signal, length, padded=True)
        for row in range(3):
            # Steps end on a multiple of the subsampling factor, and a full last step does not look like the last:
            # offline makes one more frame, of what it has heard already.
            m = rows[row].size(1)
            assert n[row] - m == int(length[row] % encoder.streaming_cfg.chunk_size[1] == 0)
            difference = relative(rows[row], whole[row, :, :m])
            contract('NeMo cache-aware steps = offline (relative, fp32)', difference, 1e-4)


@torch.inference_mode()
def test_a_zeroed_slot_of_the_caches_is_a_fresh_stream(encoder):
    frames = 1 + 39 * encoder.subsampling_factor  # whole steps
    signal, length = torch.randn(2, 16, frames), torch.tensor([frames, frames])
    encoder.setup_streaming_params(chunk_size=4, shift_size=4)
    _, caches = nemo_steps(encoder, signal, length)
    slot = torch.tensor([1])
    used = [t.clone() for t in caches]
    caches[0].index_fill_(1, slot, 0.0)
    caches[1].index_fill_(1, slot, 0.0)
    caches[2].index_fill_(0, slot, 0)
    cfg = encoder.streaming_cfg
    step = signal[:, :, : cfg.pre_encode_cache_size[1] + cfg.chunk_size[1]]
    n = torch.full((2,), step.size(2))

    def run(caches):
        return encoder(
            audio_signal=step, length=n, cache_last_channel=caches[0], cache_last_time=caches[1],
            cache_last_channel_len=caches[2],
        )[0]  # fmt: skip

    fresh = run(encoder.get_initial_cache_state(batch_size=2))
    assert torch.equal(run(caches)[1], fresh[1]) and not torch.equal(run(used)[1], fresh[1])
    assert torch.equal(run(caches)[0], run(used)[0])


@torch.inference_mode()
def test_frames_after_the_end_repeat_the_last(encoder):
    """NeMo's pipelines decode them; repeated they change no CTC text."""
    encoder.setup_streaming_params(chunk_size=12, shift_size=12)
    again, features = encoder.streaming_cfg.pre_encode_cache_size[1], encoder.streaming_cfg.chunk_size[1]
    signal, length = torch.randn(2, 16, again + features), torch.tensor([again + features, again + features // 3])
    caches = encoder.get_initial_cache_state(batch_size=2)
    out, n, *_ = encoder.cache_aware_stream_step(signal, length, *caches, keep_all_outputs=True)
    assert 0 < n[1] < n[0] == out.size(2)
    assert torch.equal(out[1, :, n[1] :], out[1, :, n[1] - 1 : n[1]].expand(-1, n[0] - n[1]))
    whole, n = encoder(audio_signal=signal, length=length)
    assert torch.equal(whole[1, :, n[1] :], whole[1, :, n[1] - 1 : n[1]].expand(-1, n[0] - n[1]))


@torch.inference_mode()
def test_state_by_row_on_disk_and_its_size(encoder, tmp_path):
    length, signal = torch.tensor([250, 250, 250]), torch.randn(3, 16, 250)
    first = encoder.stream_step(signal, length, encoder.init_state(3))[2]
    assert encoder.state_bytes(3) == first.nbytes == encoder.init_state(3).nbytes
    first.save(tmp_path / 's.safetensors')
    loaded = LaCTState.load(tmp_path / 's.safetensors', encoder.fingerprint())
    for name in GROUPS:
        assert all(torch.equal(a, b) for a, b in zip(getattr(first, name), getattr(loaded, name), strict=True))
    step = torch.randn(3, 16, 90)
    out, n, _ = encoder.stream_step(step, None, first)
    for state in (loaded, LaCTState.merge([first.select([0]), first.select([1, 2])]), first.to(dtype=torch.float32)):
        assert torch.equal(encoder.stream_step(step, None, state)[0], out)
    turned, _, _ = encoder.stream_step(step[[2, 0]], None, first.select([2, 0]))
    assert (turned - out[[2, 0]]).abs().max() < 1e-5
    reset = first.reset([1])
    for name in GROUPS:
        for a, b in zip(getattr(reset, name), getattr(first, name), strict=True):
            assert not a[:, 1].any() and torch.equal(a[:, [0, 2]], b[:, [0, 2]])
    mixed = encoder.stream_step(step, None, reset)[0]
    fresh, m, _ = encoder.stream_step(step, None, encoder.init_state(3))
    assert (mixed[1, :, : m[1]] - fresh[1, :, : m[1]]).abs().max() < 1e-5
    assert (mixed[[0, 2]][:, :, : n[0]] - out[[0, 2]][:, :, : n[0]]).abs().max() < 1e-5


@torch.inference_mode()
def test_a_stream_that_may_not_learn(encoder):
    signal = torch.randn(2, 16, 300)
    learn = torch.tensor([True, False])
    _, _, state = encoder.stream_step(signal, None, encoder.init_state(2), True, learn)
    state = encoder.end_utterance(state, learn)
    assert state.weights[0][:, 0].any() == bool(encoder.config.memory_layers)
    assert not any(t[:, 1].any() for t in [*state.weights, *state.momentum])


@torch.inference_mode()
def test_nan_in_one_stream_stays_there(encoder):
    signal = torch.randn(2, 16, 200)
    clean, n, _ = encoder.stream_step(signal, None, encoder.init_state(2))
    signal[1] = float('nan')
    out, _, _ = encoder.stream_step(signal, None, encoder.init_state(2))
    assert torch.equal(out[0], clean[0])


def test_an_offline_encoder_says_why_it_cannot_stream(tiny):
    encoder = LaCTEncoder(**tiny).eval()
    assert encoder.streaming_cfg is None
    for call in (
        lambda: encoder.get_initial_cache_state(1),
        lambda: encoder.setup_streaming_params(),
        lambda: encoder.stream_step(torch.randn(1, 16, 9), None, encoder.init_state(1)),
    ):
        with pytest.raises(ValueError, match=r'cannot stream: lact_mode=bidirectional.*causal_downsampling=true'):
            call()


def test_wrong_steps_and_windows_are_named(tiny):
    encoder = LaCTEncoder(**{**tiny, **STREAMING, **VARIANTS['chunks']}).eval()
    with pytest.raises(ValueError, match=r'chunk_size=6.*whole attention chunks of 4'):
        encoder.setup_streaming_params(chunk_size=6, shift_size=6)
    encoder.setup_streaming_params(chunk_size=8, shift_size=8)
    assert encoder.streaming_cfg.chunk_size == [29, 32]
    with pytest.raises(ValueError, match=r'=\[9, 9\]; this model was made for \[\[12, 3\], \[12, 1\]\]'):
        encoder.set_default_att_context_size([9, 9])
    with pytest.raises(ValueError, match='whole chunks of right'):
        LaCTEncoder(**{**tiny, **STREAMING, 'att_context_size': [10, 3], 'att_context_style': 'chunked_limited'})
    with pytest.raises(ValueError, match='memory only'):
        encoder.stream_step(torch.randn(1, 16, 9), None, encoder.init_state(1).memory_only())


def test_training_draws_from_all_windows(tiny, monkeypatch):
    options = {**tiny, **STREAMING, **VARIANTS['chunks'], 'att_context_probs': [0.5, 0.5]}
    encoder = LaCTEncoder(**options).train()
    seen = set()
    layer = encoder.layers[0]
    original = layer.forward
    monkeypatch.setattr(layer, 'forward', lambda *a: seen.add(a[4]) or original(*a))
    for _ in range(20):
        encoder(audio_signal=torch.randn(1, 16, 60), length=torch.tensor([60]))
    assert seen == {(12, 3), (12, 1)}
    with pytest.raises(ValueError, match='att_context_probs'):
        LaCTEncoder(**{**options, 'att_context_probs': [0.5, 0.2]})
