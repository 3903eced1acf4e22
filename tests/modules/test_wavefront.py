"""All layers at once (wavefront.py) give what the whole pass gives, layer after layer."""

import pytest
import torch

from nemo_lact import ops
from nemo_lact.modules import LaCTEncoder, wavefront
from nemo_lact.modules.segments import SegmentedPass

VARIANTS = {
    'plain': {},
    'conformer': dict(conv_kernel_size=9, macaron=True, use_bias=True, block_norm=True),
    'batch_norm, one-sided convolution': dict(
        conv_kernel_size=7, conv_norm_type='batch_norm', conv_context_size=[5, 1], subsampling='striding'
    ),
    'long left context': dict(att_context_size=[60, 24]),
    'causal, 8x': dict(lact_mode='causal', causal_downsampling=True, subsampling_factor=8, att_context_size=[16, 0]),
    'causal with right context': dict(lact_mode='causal', conv_kernel_size=5, conv_context_size='causal'),
    'attention in chunks': dict(
        lact_mode='causal', att_context_style='chunked_limited', att_context_size=[16, 3], causal_downsampling=True
    ),
    'positions in the memory': dict(ttt_nope=False, feat_out=24),
    'no momentum, no Muon': dict(use_momentum=False, use_muon=False, lr_dim=16, inter_multi=2.0),
    'low rank': dict(w0_w2_low_rank=4, n_layers=1),
    'memory that forgets': dict(lact_retention=0.7),
    'relevance': dict(lact_retention=0.7, lact_relevance=6, use_muon=False, base_lr=0.02),
    'memory in one layer': dict(lact_layers=[1]),
    'no memory': dict(lact_layers=[], conv_kernel_size=5),
}


@pytest.fixture
def on():
    wavefront.use_wavefront('on')
    yield
    wavefront.use_wavefront('auto')


@pytest.fixture(params=VARIANTS)
def encoder(request, tiny):
    encoder = LaCTEncoder(**{**tiny, 'n_layers': 3, **VARIANTS[request.param], 'segment_frames': 48}).eval()
    for parameter in encoder.layers.parameters():  # norms and biases start as ones and zeros, which hide mistakes
        parameter.data += 0.05 * torch.randn_like(parameter)
    for buffer in encoder.buffers():
        if buffer.is_floating_point():
            buffer += 0.3 * torch.rand_like(buffer)
    return encoder


def whole_pass(encoder, *args, **kwargs):
    encoder.config.segment_frames = -1
    try:
        return encoder.forward_with_state(*args, **kwargs)
    finally:
        encoder.config.segment_frames = 48


def same(contract, ours, theirs, lengths):
    for row, n in enumerate(lengths.tolist()):
        a, b = ours[0][row, :, :n], theirs[0][row, :, :n]
        if n:
            contract('wavefront = whole pass (relative, fp32)', (a - b).norm() / b.norm(), 1e-4)
    for a, b in zip((*ours[2].weights, *ours[2].momentum), (*theirs[2].weights, *theirs[2].momentum)):
        contract('wavefront = whole pass: memory (relative, fp32)', (a - b).norm() / b.norm().clamp(min=1e-6), 1e-4)


@torch.inference_mode()
def test_equals_the_whole_pass(encoder, contract, on):
    signal, length = torch.randn(3, 16, 2999), torch.tensor([2999, 1203, 0])
    whole = whole_pass(encoder, signal, length)
    first = encoder.forward_with_state(signal, length)
    assert torch.equal(first[1], whole[1]) and first[0].shape == whole[0].shape
    same(contract, first, whole, whole[1])
    # With the memory carried, some rows not learning; the buffers are used a second time.
    signal, learn = torch.randn(3, 16, 2200), torch.tensor([True, False, True])
    length = torch.tensor([2200, 2200, 900])
    a = encoder.forward_with_state(signal, length, first[2], learn)
    b = whole_pass(encoder, signal, length, first[2], learn)
    same(contract, a, b, b[1])
    assert torch.equal(a[2].weights[0][:, 1], first[2].weights[0][:, 1])


@torch.inference_mode()
def test_frozen_memory(encoder, contract, on):
    encoder.adaptation = False
    signal, length = torch.randn(2, 16, 1999), torch.tensor([1999, 1203])
    same(contract, encoder.forward_with_state(signal, length), whole_pass(encoder, signal, length),
         encoder.output_lengths(length))  # fmt: skip


@torch.inference_mode()
def test_features_in_pieces_and_two_passes_at_once(tiny, contract, on):
    encoder = LaCTEncoder(**{**tiny, 'segment_frames': 48, 'conv_kernel_size': 5}).eval()
    signals = torch.randn(2, 2, 16, 1611)
    length = torch.tensor([1611, 700])
    runs = [SegmentedPass(encoder, length, [None] * 2).overlapping() for _ in range(2)]
    assert all(run.wave is not None for run in runs)
    parts, at = ([], []), 0
    while at < 1611:
        step = int(torch.randint(1, 300, ()))
        for run, signal, out in zip(runs, signals, parts):
            out.append(run.feed(signal[:, :, at : at + step], last=at + step >= 1611))
        at += step
    for signal, out in zip(signals, parts):
        whole, n, _ = whole_pass(encoder, signal, length)
        out = torch.cat(out, dim=2)
        assert out.shape == whole.shape
        for row in range(2):
            a, b = out[row, :, : n[row]], whole[row, :, : n[row]]
            contract('wavefront = whole pass (relative, fp32)', (a - b).norm() / b.norm(), 1e-4)


@pytest.mark.skipif(not (ops.fast and ops.fast.INTERPRETED), reason='needs TRITON_INTERPRET=1')
@torch.inference_mode()
def test_fast_memory_that_forgets(tiny, contract, on):
    options = dict(segment_frames=48, lact_retention=0.7, use_muon=False, base_lr=0.02, n_heads=2, d_model=16)
    encoder = LaCTEncoder(**{**tiny, **options}).eval()
    signal, length = torch.randn(1, 16, 400), torch.tensor([390])
    whole = whole_pass(encoder, signal, length)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        ours = encoder.forward_with_state(signal, length)
    assert type(wavefront._idle[encoder][1].memory) is ops.fast_steps.FastChunks
    a, b = (out[0][:, :, : whole[1].item()] for out in (ours, whole))
    contract('wavefront by kernels = whole pass (bf16)', (a - b).norm() / b.norm(), 5e-2)
    for a, b in zip(ours[2].weights, whole[2].weights):
        contract('wavefront by kernels = whole pass: memory (bf16)', (a - b).norm() / b.norm(), 5e-2)


def test_changed_weights_are_seen(tiny, on):
    encoder = LaCTEncoder(**{**tiny, 'segment_frames': 48}).eval()
    signal, length = torch.randn(1, 16, 1000), torch.tensor([1000])
    with torch.inference_mode():
        before = encoder(audio_signal=signal, length=length)[0]
    with torch.no_grad():  # the other mode: what was kept is used all the same
        encoder.layers[0].mixer.qkv.weight.mul_(1.1)
        after = encoder(audio_signal=signal, length=length)[0]
        assert (after - before).norm() > 1e-3 * before.norm()
        again = encoder(audio_signal=signal, length=length)[0]
    assert torch.equal(again, after) and not after.is_inference()
    assert encoder in wavefront._idle
    wavefront.forget(encoder)
    assert encoder not in wavefront._idle


@torch.no_grad()  # parameters made in inference mode have no version: what is made of them would not be kept
def test_changed_settings_are_seen(tiny, contract, on):
    encoder = LaCTEncoder(**{**tiny, 'segment_frames': 48}).eval()
    signal, length = torch.randn(1, 16, 800), torch.tensor([800])
    encoder.forward_with_state(signal, length)
    for change in (dict(lact_chunk_size=8), dict(lact_mode='causal'), dict(lact_retention=0.5)):
        vars(encoder.config).update(change)
        whole = whole_pass(encoder, signal, length)
        same(contract, encoder.forward_with_state(signal, length), whole, whole[1])


def test_rule(tiny, on):
    def problem(chunks=100, **options):
        return wavefront.why_not_wavefront(LaCTEncoder(**{**tiny, **options}).eval(), chunks)

    assert problem() is None
    with pytest.raises(RuntimeError, match='longer than a chunk'):
        problem(att_context_size=[4, 40])
    with pytest.raises(RuntimeError, match='longer than a chunk'):  # 24 frames are not whole chunks of 5
        problem(att_context_style='chunked_limited', att_context_size=[15, 4])
    with pytest.raises(RuntimeError, match='lact_chunk_tolerance=6'):
        problem(lact_chunk_tolerance=6)
    wavefront.use_wavefront('auto')
    assert 'cpu' in problem() and 'longer than a chunk' in problem(att_context_size=[4, 40])
    wavefront.use_wavefront('off')
    assert 'switched off' in problem()
    with pytest.raises(ValueError, match='choose'):
        wavefront.use_wavefront('maybe')
