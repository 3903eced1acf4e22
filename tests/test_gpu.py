"""The encoder on a GPU: the same numbers as on the CPU, half precision, compiled, moved states. Skipped without one."""

import copy
import gc

import pytest
import torch

from nemo_lact import ops
from nemo_lact.modules import LaCTEncoder, wavefront
from nemo_lact.modules.fused_step import why_not_fused_step
from nemo_lact.ops import cuda_graphs, fast
from nemo_lact.state import LaCTState

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU')

OPTIONS = dict(d_model=256, n_layers=3, n_heads=4, num_lact_heads=2, lact_chunk_size=32, att_context_size=[24, 24],
               dropout=0.0, dropout_pre_encoder=0.0)  # fmt: skip


def relative(a, b):
    return (a.cpu().float() - b.cpu().float()).norm() / b.cpu().float().norm()


def batch():
    return torch.randn(4, 80, 1500), torch.tensor([1500, 1111, 7, 0])


@pytest.fixture(
    params=[
        {},
        dict(conv_kernel_size=9, macaron=True, block_norm=True, lact_retention=0.8),
        dict(lact_mode='causal', use_muon=False),
        dict(lact_layers=[1], use_muon=False),
    ]
)
def pair(request):
    cpu = LaCTEncoder(**{**OPTIONS, **request.param})
    return cpu, copy.deepcopy(cpu).cuda()


@pytest.fixture(autouse=True)
def full_fp32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def test_gpu_equals_cpu(pair, contract):
    signal, lengths = batch()
    with torch.inference_mode():
        a, n, state = pair[0].eval().forward_with_state(signal, lengths)
        b, m, other = pair[1].eval().forward_with_state(signal.cuda(), lengths.cuda())
    assert torch.equal(n, m.cpu())
    for row in (0, 1):
        contract('GPU = CPU (relative, fp32)', relative(b[row, :, : n[row]], a[row, :, : n[row]]), 1e-4)
    for x, y in zip(other.weights, state.weights):
        contract('GPU = CPU, state (relative, fp32)', relative(x, y), 1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_follows_fp32(pair, contract, dtype):
    signal, lengths = batch()
    encoder = pair[1].eval()
    with torch.inference_mode():
        truth, n = encoder(audio_signal=signal.cuda(), length=lengths.cuda())
        with torch.autocast('cuda', dtype=dtype):
            out, _ = encoder(audio_signal=signal.cuda(), length=lengths.cuda())
    assert out.isfinite().all()
    contract(f'{str(dtype)[6:]} autocast = fp32 on GPU (relative)', relative(out[0], truth[0]), 5e-2)


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
def test_training_steps(pair, dtype, compiled):
    encoder = pair[1].train()
    if compiled:
        torch._dynamo.reset()
        encoder.layers = torch.nn.ModuleList(torch.compile(layer) for layer in encoder.layers)
    head = torch.nn.Linear(256, 30).cuda()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    scaler = torch.amp.GradScaler('cuda', enabled=dtype == torch.float16)
    signal, lengths = batch()
    signal, lengths = signal[:2].cuda(), lengths[:2].cuda()
    targets = torch.randint(1, 30, (2, 40)).cuda()
    losses = []
    for _ in range(8):
        with torch.autocast('cuda', dtype=dtype, enabled=dtype is not None):
            out, n = encoder(audio_signal=signal, length=lengths)
            logits = head(out.transpose(1, 2)).float().log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(logits.transpose(0, 1), targets, n, torch.tensor([40, 40]).cuda())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        finite = all(p.grad.isfinite().all() for p in encoder.parameters() if p.requires_grad)
        assert finite or dtype == torch.float16  # the scaler skips such a step and lowers its scale
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert finite and losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize('compiled', [False, True])
def test_training_on_long_rows_is_recorded(contract, monkeypatch, compiled):
    """Gradients as without CUDA graphs, for ragged rows of lengths that come in turns."""
    torch._dynamo.reset()
    encoder = LaCTEncoder(**OPTIONS, compile=compiled).cuda().train()
    batches = [(torch.randn(2, 80, n).cuda(), torch.tensor([n, n // 2]).cuda()) for n in (1500, 1431, 2200)]

    def gradients(signal, length):
        encoder.zero_grad()
        with torch.autocast('cuda', dtype=torch.bfloat16):
            out, _ = encoder(audio_signal=signal, length=length)
        out.float().square().mean().backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    ops.use_implementation('fast')
    try:
        monkeypatch.setattr(fast, 'GRAPH_CHUNKS', 1000)
        for batch in batches:  # a graph compiled for one length rounds otherwise than the one for any
            gradients(*batch)
        plain = [gradients(*batch) for batch in batches]
        monkeypatch.setattr(fast, 'GRAPH_CHUNKS', 4)
        cuda_graphs.forget()
        for _ in range(2):
            for batch, expected in zip(batches, plain):
                found = gradients(*batch)
                assert found.keys() == expected.keys()
                for name, gradient in found.items():
                    if expected[name].norm() > 1e-6:
                        contract('recorded training = plain, gradient', relative(gradient, expected[name]), 2e-3)
        assert len(cuda_graphs._graphs) == 4  # forward and backward, of 6 and of 9 chunks
    finally:
        ops.use_implementation('auto')
        cuda_graphs.forget()


def test_a_recording_that_is_garbage_does_not_spoil_the_next():
    x = torch.ones(4, device='cuda')
    old, _ = cuda_graphs.record(lambda: x + 1)
    cycle = [old]
    cycle.append(cycle)  # only the collector finds it
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        del old, cycle
        graph, result = cuda_graphs.record(lambda: sum([[x * i] for i in range(50)], [])[-1] + 1)
    finally:
        gc.set_threshold(*threshold)
    graph.replay()
    assert torch.equal(result, torch.full_like(x, 50.0)) and gc.isenabled()


def test_compiled_equals_eager(pair, contract):
    torch._dynamo.reset()
    encoder = pair[1].eval()
    fast = copy.deepcopy(encoder)
    fast.layers = torch.nn.ModuleList(torch.compile(layer) for layer in fast.layers)
    signal, lengths = (x.cuda() for x in batch())
    with torch.inference_mode():
        a, b = (e(audio_signal=signal, length=lengths)[0] for e in (encoder, fast))
    contract('compiled = eager on GPU (relative, fp32)', relative(b[0], a[0]), 1e-4)


def test_state_travels(pair, tmp_path, contract):
    signal, lengths = batch()
    with torch.inference_mode():
        state = pair[1].eval().forward_with_state(signal.cuda(), lengths.cuda())[2]
    state.save(tmp_path / 'x.safetensors')
    for other in (state.to('cpu').to('cuda'), LaCTState.load(tmp_path / 'x.safetensors', device='cuda')):
        for a, b in zip((*state.weights, *state.momentum), (*other.weights, *other.momentum)):
            contract('state GPU → CPU → GPU and disk (exact)', (a - b).abs().max(), 0.0)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_all_layers_at_once_follow_fp32(pair, contract, dtype):
    encoder = pair[1].eval()
    signal, lengths = torch.randn(3, 80, 6000).cuda(), torch.tensor([6000, 3333, 0]).cuda()
    # For the memory: a last chunk of few frames is one step of much enlarged rounding, which would hide all others.
    others = torch.randn(6, 80, 2800).cuda(), 8 * torch.tensor([188, 218, 250, 281, 314, 349]).cuda()
    with torch.no_grad():
        truth, n, _ = encoder.forward_with_state(signal, lengths)
        _, frames, after = encoder.forward_with_state(*others)
        assert ((frames - 1) % OPTIONS['lact_chunk_size'] >= OPTIONS['lact_chunk_size'] // 2).all()
        encoder.config.segment_frames = 64
        errors, memory = {}, {}
        for choice in ('off', 'auto', 'auto'):  # the second time the recorded step is there already
            wavefront.use_wavefront(choice)
            with torch.autocast('cuda', dtype=dtype):
                assert (wavefront.why_not_wavefront(encoder, 24) is None) == (choice == 'auto')
                out = encoder.forward_with_state(signal, lengths)[0]
            assert out.isfinite().all() and out.shape == truth.shape
            for row in (0, 1):
                error = relative(out[row, :, : n[row]], truth[row, :, : n[row]])
                errors[choice] = max(errors.get(choice, 0), error)
        for choice in ('off', 'auto'):
            wavefront.use_wavefront(choice)
            with torch.autocast('cuda', dtype=dtype):
                weights = encoder.forward_with_state(*others)[2].weights
            pairs = [(a.flatten(2), b.flatten(2)) for a, b in zip(weights, after.weights)]  # [layers, rows, .]
            memory[choice] = torch.stack([(a - b).norm(dim=2) / b.norm(dim=2) for a, b in pairs])
    contract(f'{str(dtype)[6:]}, layer by layer = fp32 on GPU (relative)', errors['off'], 5e-2)
    contract(f'{str(dtype)[6:]}, all layers at once = fp32 on GPU (relative)', errors['auto'], 5e-2)
    # The memory's own error hangs on the dtype; all layers at once must not have more. Mean of 54 ratios, as each alone
    # hangs on chance too: 3 weights of 3 layers after 6 inputs.
    ratio = (memory['auto'] / memory['off']).log().mean().exp()
    contract('memory, all layers at once, against layer by layer', ratio, 1.5)


STREAMING = dict(d_model=384, n_layers=3, n_heads=6, num_lact_heads=2, lact_chunk_size=32, lact_mode='causal',
                 causal_downsampling=True, dropout=0.0, dropout_pre_encoder=0.0)  # fmt: skip
STREAMS = [
    dict(att_context_size=[130, 12], att_context_style='chunked_limited'),
    dict(att_context_size=[20, 0], conv_kernel_size=9, conv_context_size='causal', macaron=True, block_norm=True,
         lact_retention=0.8),
    dict(att_context_size=[20, 0], lact_layers=[1], use_muon=False),
]


def streamed(encoder, through):
    """Five streams that begin one after another and learn at different steps; one begins anew, one ends early.

    through: 'stream_step', that 'in place', or NeMo's 'caches', these 'in place' too. Returns frames, final state.
    """
    torch.manual_seed(1)
    in_place, nemo = 'in place' in through, 'caches' in through
    encoder.setup_streaming_params(chunk_size=13, shift_size=13)
    encoder.caches_in_place = in_place
    again, new = encoder.streaming_cfg.pre_encode_cache_size[1], encoder.streaming_cfg.chunk_size[1]
    signal = torch.nn.functional.pad(torch.randn(5, 80, 14 * new), (again, 0)).cuda()
    state, caches, frames = encoder.init_state(5), encoder.get_initial_cache_state(5), []
    for step in range(14):
        length = torch.tensor([new if step >= row else 0 for row in range(5)]).cuda()
        if step == 13:
            length[2] = 50  # a short step ends a stream
        part = signal[:, :, step * new : (step + 1) * new + again]
        if step == 7:
            state = state.reset([1])
            for cache, dim in zip(caches, (1, 1, 0)):
                cache.index_fill_(dim, torch.tensor([1]).cuda(), 0)
        if nemo:
            out, count, *caches = encoder.cache_aware_stream_step(part, length + again, *caches, keep_all_outputs=True)
        else:
            final = length < new
            out, count, state = encoder.stream_step(part[:, :, again:], length, state, final, in_place=in_place)
        frames += [out[row, :, :n] for row, n in enumerate(count.tolist())]
    state = encoder._unpack(*caches) if nemo else state
    return torch.cat(frames, dim=1), state


@pytest.mark.parametrize('options', STREAMS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_streaming_steps_by_kernels(contract, options, dtype):
    """As the modules over steps in which chunks fill up; in place, through NeMo's caches and both: the same bits."""
    encoder = LaCTEncoder(**STREAMING, **options).cuda().eval()
    with torch.inference_mode():
        truth, after = streamed(encoder, 'stream_step')
        with torch.autocast('cuda', dtype=dtype):
            ops.use_implementation('reference')
            assert 'reference' in why_not_fused_step(encoder, encoder.init_state(1))
            near, near_after = streamed(encoder, 'stream_step')
            ops.use_implementation('auto')
            assert why_not_fused_step(encoder, encoder.init_state(1)) is None
            out, state = streamed(encoder, 'stream_step')
            others = {name: streamed(encoder, name) for name in ('stream_step in place', 'caches', 'caches in place')}
    contract(f'{str(dtype)[6:]}, streaming steps = fp32 on GPU (relative)', relative(out, truth), 5e-2)
    ratio = relative(out, truth) / relative(near, truth)
    contract('streaming steps by kernels, error against that of the modules', ratio, 2)
    assert all(after.weights[0][:, row].any() for row in range(5))
    for name in ('weights', 'momentum', 'pending', 'attention', 'convolution'):
        for a, b, c in zip(*(getattr(s, name) for s in (state, near_after, after)), strict=True):
            error = relative(a, c) / max(2e-2, relative(b, c))
            contract('streaming steps by kernels: state, error against that of the modules', error, 2)
    for way, (same, held) in others.items():
        assert torch.equal(same, out), way
        for name in ('weights', 'momentum', 'pending', 'attention', 'convolution'):
            assert all(torch.equal(a, b) for a, b in zip(getattr(held, name), getattr(state, name), strict=True)), way


def gradients(encoder, signal, lengths):
    encoder.zero_grad()
    out, n = encoder(audio_signal=signal, length=lengths)
    (out.float().square() * (torch.arange(out.size(2), device='cuda') < n[:, None])[:, None]).sum().backward()
    return torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])


def test_attention_in_training_follows_fp32(contract, monkeypatch):
    window = pytest.importorskip('nemo_lact.ops.triton_window')
    # A frozen memory: the rounding of its steps would hide that of attention.
    encoder = LaCTEncoder(**{**OPTIONS, 'adaptation': False}).cuda().train()
    signal, lengths = (x.cuda() for x in batch())
    truth, errors, calls = gradients(encoder, signal, lengths), {}, []
    whole = window.window_training
    monkeypatch.setattr(window, 'window_training', lambda *a: calls.append(a) or whole(*a))
    for wanted in (False, True):
        monkeypatch.setattr(window, 'WANTED', wanted)
        with torch.autocast('cuda', dtype=torch.bfloat16):
            errors[wanted] = relative(gradients(encoder, signal, lengths), truth)
        assert len(calls) == len(encoder.layers) * wanted
    contract('bf16, gradients with attention in a kernel = fp32 on GPU (relative)', errors[True], 1e-1)
    contract('gradients, attention in a kernel, against blocks of torch', errors[True] / errors[False], 1.5)


def test_compiled_layers_in_training_are_one_graph():
    pytest.importorskip('nemo_lact.ops.triton_window')
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    encoder = LaCTEncoder(**OPTIONS, dropout_att=0.05, compile=True).cuda().train()
    signal, lengths = batch()
    made, counters = [], torch._dynamo.utils.counters
    ops.use_implementation('fast')
    try:
        for frames in (1500, 1237, 1100, 400, 333, 1432, 480, 720):
            with torch.autocast('cuda', dtype=torch.bfloat16):
                found = gradients(encoder, signal[..., :frames].cuda(), lengths.clamp(max=frames).cuda())
            assert found.isfinite().all()
            made.append(counters['stats']['unique_graphs'])
    finally:
        ops.use_implementation('auto')
    assert not counters['graph_break'], counters['graph_break']
    # One for the first length; two for any other (the first layer, and later ones); two for rows below 65 frames (5 s),
    # where Inductor chooses otherwise. Then none.
    assert made[0] == 1 and made[1] == made[2] == 3 and made[3] <= 5, f'graphs after each batch: {made}'
    assert made[3] == made[-1], f'graphs after each batch: {made}'
