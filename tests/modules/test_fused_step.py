"""A step of streams by kernels against the modules. On a GPU, or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip('triton')

from nemo_lact import ops  # noqa: E402
from nemo_lact.modules import LaCTEncoder, cache_aware, streaming  # noqa: E402
from nemo_lact.modules.fused_step import laid_out, why_not_fused_step  # noqa: E402
from nemo_lact.ops import fast  # noqa: E402
from nemo_lact.state import GROUPS, LaCTState  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'
if not GPU and not fast.INTERPRETED:
    pytest.skip('needs a CUDA GPU, or TRITON_INTERPRET=1 from the start', allow_module_level=True)

STREAMING = dict(lact_mode='causal', causal_downsampling=True, att_context_size=[12, 0], lact_chunk_size=16,
                 n_heads=2, num_lact_heads=1)  # fmt: skip
VARIANTS = {
    'chunks': dict(att_context_size=[12, 3], att_context_style='chunked_limited'),
    'conformer, forgets': dict(conv_kernel_size=5, conv_context_size='causal', macaron=True, use_bias=True,
                               block_norm=True, lact_retention=0.7),
    'gradient steps': dict(use_muon=False, use_momentum=False, feat_out=24),
    'memory in one layer': dict(lact_layers=[1], use_muon=False),
}  # fmt: skip


def kernels(monkeypatch, wanted: bool) -> None:
    """Kernels in half precision, or the modules."""
    for module in (streaming, cache_aware):
        monkeypatch.setattr(module, 'why_not_fused_step', lambda *_: None if wanted else 'not wanted here')


def build(tiny, variant, **options):
    encoder = LaCTEncoder(**{**tiny, **STREAMING, **VARIANTS[variant], **options}).to(DEVICE).eval()
    with torch.no_grad():
        for parameter in encoder.layers.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return encoder


def steps(encoder):
    """Three streams that begin at different times, each step another length; one starts anew, one may not learn."""
    generator = torch.Generator().manual_seed(1)
    for step, longest in enumerate((30, 50, 20, 140, 50)):  # of four features a frame; one step is over two chunks
        signal = torch.randn(3, 16, longest, generator=generator).to(DEVICE)
        length = torch.randint(longest // 2, longest + 1, (3,), generator=generator)
        length = length * torch.tensor([True, step > 0, step > 1])
        learn = torch.tensor([True, True, False]) if step == 4 else None
        yield step, signal, length.to(DEVICE), None if learn is None else learn.to(DEVICE)


def run(encoder):
    """Frames of all steps one after another, and the state after each."""
    state, frames, states = encoder.init_state(3), [], []
    for step, signal, length, learn in steps(encoder):
        if step == 2:
            state = state.reset([0])
        out, count, state = encoder.stream_step(signal, length, state, step == 4, learn)
        frames += [out[row, :, : count[row]].float() for row in range(3)]
        states.append(state.clone())
    return torch.cat(frames, dim=1), states


def relative(a, b):
    return ((a - b).norm() / b.norm().clamp(min=1e-6)).item()


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_equals_the_modules(tiny, contract, monkeypatch, variant, dtype):
    encoder = build(tiny, variant)
    kernels(monkeypatch, False)
    truth, states = run(encoder)
    assert any(s.weights[0][:, row].any() for s in states for row in range(3))
    with torch.autocast(DEVICE, dtype=dtype):
        near, _ = run(encoder)
        kernels(monkeypatch, True)
        out, after = run(encoder)
    name, finer = str(dtype)[6:], 1 if dtype == torch.bfloat16 else 8  # three bits more
    contract(f'streaming step by kernels = modules in fp32 ({name}, relative)', relative(out, truth), 3e-2 / finer)
    ratio = relative(out, truth) / relative(near, truth)
    contract('streaming step by kernels, error against that of the modules', ratio, 1.5)
    for a, c in zip(after, states):
        for part in ('position', 'frames', 'filled', 'heard'):
            assert torch.equal(getattr(a, part), getattr(c, part))
        for part in ('weights', 'momentum', 'pending', 'attention', 'convolution'):
            for x, y in zip(getattr(a, part), getattr(c, part), strict=True):
                contract(f'streaming step by kernels: state ({name}, relative)', relative(x, y), 5e-2 / finer)


@pytest.mark.parametrize('adaptation', [True, False])
@torch.inference_mode()
def test_a_state_given_stays_as_it_was(tiny, monkeypatch, adaptation):
    encoder = build(tiny, 'chunks')
    encoder.adaptation = adaptation
    kernels(monkeypatch, True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        state = encoder.init_state(2)
        for _ in range(2):
            before = state.clone()
            _, _, after = encoder.stream_step(torch.randn(2, 16, 70, device=DEVICE), None, state)
            for name in GROUPS:
                assert all(torch.equal(a, b) for a, b in zip(getattr(state, name), getattr(before, name)))
            state = after
        assert bool(state.weights[0].any()) == adaptation and state.attention[0].any()


@pytest.mark.parametrize('variant', ['conformer, forgets', 'gradient steps', 'memory in one layer'])
@torch.inference_mode()
def test_nemo_caches_equal_stream_step(tiny, monkeypatch, variant):
    """The same numbers through NeMo's tensors, written in place or not; a zeroed slot is a fresh stream."""
    encoder = build(tiny, variant, use_muon=False)  # slow in the interpreter, and the same kernel both ways
    encoder.setup_streaming_params(chunk_size=8, shift_size=8)
    cfg = encoder.streaming_cfg
    again, new = cfg.pre_encode_cache_size[1], cfg.chunk_size[1]
    signal = torch.randn(2, 16, 4 * new, device=DEVICE)
    kernels(monkeypatch, True)
    results = []
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        for in_place in (False, True):
            encoder.caches_in_place = in_place
            caches, frames = encoder.get_initial_cache_state(2), []
            for step in range(4):
                if step == 3:
                    for cache, dim in zip(caches, (1, 1, 0)):
                        cache.index_fill_(dim, torch.tensor([1], device=DEVICE), 0)
                given = [c.clone() for c in caches]
                part = torch.nn.functional.pad(signal, (again, 0))[:, :, step * new : (step + 1) * new + again]
                length = torch.full((2,), again + new, device=DEVICE)
                used = caches
                out, count, *caches = encoder.cache_aware_stream_step(part, length, *caches, keep_all_outputs=True)
                assert in_place or all(torch.equal(a, b) for a, b in zip(used, given))
                if in_place and encoder.config.memory_everywhere:
                    assert caches[0].data_ptr() == used[0].data_ptr()
                frames.append(out)
            results.append((torch.cat(frames, dim=2), *caches))
        for a, b in zip(*results):
            assert torch.equal(a, b)
        state = first = encoder.init_state(2)
        for step in range(4):
            if step == 3:
                state = state.reset([1])
            part = signal[:, :, step * new : (step + 1) * new]
            out, count, state = encoder.stream_step(part, None, state, in_place=True)
            if step < 3:
                assert state.pending[0] is first.pending[0]  # written over
        own = encoder._unpack(*results[0][1:])
        for name in ('weights', 'momentum', 'pending', 'attention', 'convolution'):
            assert all(torch.equal(a, b) for a, b in zip(getattr(own, name), getattr(state, name), strict=True)), name


def test_where_it_may_run(tiny):
    encoder = build(tiny, 'chunks')
    state = encoder.init_state(1)
    assert 'gradients' in why_not_fused_step(encoder, state)
    with torch.no_grad(), torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert (why_not_fused_step(encoder, state) is None) == GPU
        if GPU:
            assert 'float64' in why_not_fused_step(encoder, state.to(dtype=torch.float64))
            ops.use_implementation('reference')
            try:
                assert 'reference' in why_not_fused_step(encoder, state)
            finally:
                ops.use_implementation('auto')


def test_tensors_of_any_layout_are_laid_out(tiny):
    state = build(tiny, 'chunks').init_state(4)
    assert laid_out(state).weights[0] is state.weights[0]
    every = state._map(lambda t: t[:, ::2], lambda t: t[::2])  # every second row: only the step differs
    assert laid_out(every).weights[0] is every.weights[0]
    turned = state._map(lambda t: t.mT.contiguous().mT if t.dim() > 3 else t, torch.clone)
    mixed = LaCTState(**{**vars(every), 'weights': (every.weights[0], *state.select([0, 2]).weights[1:])})
    for other in (turned, mixed):
        assert all(t.is_contiguous() for t in laid_out(other).weights)
