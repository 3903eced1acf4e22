"""The fast memory against the reference: forward, backward, final state. On a GPU, or in Triton's interpreter."""

import itertools
import types

import pytest
import torch
import torch._functorch.config

pytest.importorskip('triton')

from nemo_lact import ops  # noqa: E402
from nemo_lact.ops import FastWeights, cuda_graphs, fast, fast_passes, newton_schulz_half  # noqa: E402
from nemo_lact.ops.fast_weights import lact_swiglu_reference, row_length  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'
if not GPU and not fast.INTERPRETED:
    pytest.skip('needs a CUDA GPU, or TRITON_INTERPRET=1 from the start', allow_module_level=True)

BOUND = 2e-2  # half precision, relative
WIDTHS = (33, 128, 192, 256) if GPU else (19,)  # the interpreter is slow
# Every two of mode, fresh and retention meet.
PAIRS = [('bidirectional', True, 1.0), ('bidirectional', False, 0.6), ('causal', True, 0.6), ('causal', False, 1.0)]


def make(width, frames, lengths, dtype=torch.bfloat16, fresh=True, heads=2 if GPU else 1, chunk=None, retention=1.0):
    """Arguments of the memory as the encoder makes them, and the leaves to differentiate for."""
    batch, chunk = len(lengths), chunk or max(2 * width, 32)
    unit = torch.nn.functional.normalize

    def randn(*shape):
        return torch.randn(*shape, device=DEVICE)

    def heads_of(x):  # [B, T, H, d] -> [B, H, T, d], as a projection's view
        return x.to(dtype).transpose(1, 2).detach().requires_grad_()

    initial = FastWeights(*(randn(heads, width, width).div(width**0.5).requires_grad_() for _ in range(3)))
    weights = FastWeights(*(w.expand(batch, -1, -1, -1) for w in initial))
    momentum = ops.zeros_like(FastWeights(*(w.detach() for w in weights)))
    if not fresh:
        weights = FastWeights(*((w + 0.02 * randn(*w.shape)).detach().requires_grad_() for w in weights))
        momentum = FastWeights(*((0.01 * randn(*w.shape)).requires_grad_() for w in weights))
    k = unit(torch.nn.functional.silu(randn(batch, frames, heads, width)), dim=-1)
    args = dict(
        q=heads_of(unit(randn(batch, frames, heads, width), dim=-1)),
        k=heads_of(k),
        v=heads_of(randn(batch, frames, heads, width)),
        eta=(0.001 * (1 + torch.rand(batch, heads, frames, 3, 1, device=DEVICE))).requires_grad_(),
        mu=torch.rand(batch, heads, frames, device=DEVICE).requires_grad_(),
        valid=torch.arange(frames, device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None],
        weights=weights,
        momentum=momentum,
        lengths=FastWeights(*(row_length(w) for w in initial)),
        chunk_size=chunk,
    )
    leaves = {name: args[name] for name in ('q', 'k', 'v', 'eta', 'mu')}
    named = dict(zip(('w0', 'w1', 'w2'), initial))
    if not fresh:
        named = {**dict(zip(('w0', 'w1', 'w2'), weights)), **dict(zip(('m0', 'm1', 'm2'), momentum))}
        named['lengths of w1'] = initial.w1
    if retention < 1.0:
        args.update(anchor=initial, retention=retention)
        if not fresh:
            args['anchor'] = FastWeights(*(w.detach().clone().requires_grad_() for w in initial))
            named.update(zip(('anchor w0', 'anchor w1', 'anchor w2'), args['anchor']))
    return args, {**leaves, **named}


def run(function, args, leaves, out_gradient, **options):
    """Read (padding zeroed), state, and gradients of a loss on all of them."""
    out, weights, momentum = function(**args, **options)
    out = out.double() * args['valid'][:, None, :, None]
    state = [*weights, *momentum] if options.get('use_momentum', True) else [*weights]
    torch.manual_seed(1)
    loss = (out * out_gradient).sum() + sum((s * torch.randn_like(s)).sum() for s in state)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, retain_graph=True)
    return out, state, dict(zip(leaves, gradients))


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-20)).item()


def three_ways(args, leaves, **options):
    """What `run` gives of the fast memory, of the reference in bfloat16, and in float32 on the same rounded input."""
    out_gradient = torch.randn(args['q'].shape, device=DEVICE, dtype=torch.float64)

    def reference(dtype):
        given = {n: args[n].detach().to(dtype).requires_grad_() for n in 'qkv'}
        return run(lact_swiglu_reference, {**args, **given}, {**leaves, **given}, out_gradient, **options)

    ours = run(fast.lact_swiglu_fast, args, leaves, out_gradient, **options)
    return ours, reference(torch.bfloat16), reference(torch.float32)


def compare(contract, args, leaves, dtype, **options):
    """Fast against the reference in float32 on the same rounded input.

    Orthogonalising enlarges the rounding of the chunk's gradient to bfloat16, in the reference too: where its own
    result in bfloat16 is further off than the bound, that is the bound. With it the gradient of the momentum gate has
    a test of its own.
    """
    ours, half, truth = three_ways(args, leaves, **options)
    kind = str(dtype)[6:]

    def check(what, mine, other, target):
        error, own = relative(mine, target), relative(other, target)
        print(f'{what:24s} fast {error:.1e}  reference in bfloat16 {own:.1e}')
        contract(f'fast memory = reference, {what.split()[0]} ({kind})', error, max(BOUND, own))

    check('read', ours[0], half[0], truth[0])
    for i, (mine, other, target) in enumerate(zip(ours[1], half[1], truth[1])):
        check(f'state {i}', mine, other, target)
    for name in leaves:
        mine, other, target = ours[2][name], half[2][name], truth[2][name]
        if target is None or not target.any():
            assert mine is None or not mine.any(), name
            continue
        if name != 'mu' or not options.get('use_muon', True):
            check(f'gradient of {name}', mine, other, target)


@pytest.mark.parametrize(
    'mode, fresh, retention',
    [
        case
        for case in itertools.product(('bidirectional', 'causal'), (True, False), (1.0, 0.6))
        if GPU or case in PAIRS
    ],
)
@pytest.mark.parametrize('width', WIDTHS)
def test_equals_reference(contract, width, mode, fresh, retention):
    chunk = max(2 * width, 32)
    args, leaves = make(width, 2 * chunk + 5, [2 * chunk + 5, chunk + 3], fresh=fresh, retention=retention)
    args['eta'] = leaves['eta'] = (args['eta'].detach() * 4).requires_grad_()
    compare(contract, args, leaves, torch.bfloat16, mode=mode)


@pytest.mark.parametrize('fresh, retention', [(True, 1.0), (True, 0.6), (False, 0.6)])
@pytest.mark.parametrize('width', WIDTHS)
def test_gradient_of_the_momentum_gate(contract, width, fresh, retention):
    """One number a chunk, a difference of near equal sums whose relative error is chance: so over several draws."""
    chunk, found = max(2 * width, 32), []
    for draw in range(8 if GPU else 2):
        torch.manual_seed(draw)
        args, leaves = make(width, 2 * chunk + 5, [2 * chunk + 5, chunk + 3], fresh=fresh, retention=retention)
        args['eta'] = leaves['eta'] = (args['eta'].detach() * 4).requires_grad_()
        found.append([result[2]['mu'] for result in three_ways(args, leaves)])
    ours, half, truth = (torch.stack(draws) for draws in zip(*found))
    error, own = relative(ours, truth), relative(half, truth)
    print(f'fast {error:.1e}  reference in bfloat16 {own:.1e}')
    contract('fast memory = reference, gradient of mu', error, max(BOUND, 1.5 * own))


@pytest.mark.parametrize('retention', [1.0, 0.6])
@pytest.mark.parametrize('options', [dict(use_muon=False), dict(use_momentum=False)])
def test_without_muon_or_momentum(contract, options, retention):
    args, leaves = make(24, 100, [100, 60], retention=retention)
    compare(contract, args, leaves, torch.bfloat16, **options)


@pytest.mark.parametrize('mode, retention', [('bidirectional', 0.1), ('causal', 1.0)])
def test_short_chunks_with_relevance(contract, mode, retention):
    args, leaves = make(24, 100, [100, 9], retention=retention)
    compare(contract, args, leaves, torch.bfloat16, mode=mode, use_muon=False, use_momentum=False, relevance=3.0)


def test_chunk_of_few_frames(contract):
    """Most of the matrix is null space, where orthogonalising enlarges rounding most; the step has little weight."""
    width, frames, chunk = (192, 60, 512) if GPU else (24, 8, 64)
    args, leaves = make(width, frames, [frames], chunk=chunk)
    exact = {**args, **{n: args[n].detach().float().requires_grad_() for n in 'qkv'}}
    out_gradient = torch.randn(args['q'].shape, device=DEVICE, dtype=torch.float64)
    truth = run(lact_swiglu_reference, exact, {**leaves, **{n: exact[n] for n in 'qkv'}}, out_gradient)
    ours = run(fast.lact_swiglu_fast, args, leaves, out_gradient)
    for a, b in zip(ours[1], truth[1]):
        contract('fast memory, few frames: state', relative(a, b), BOUND)
    for name in ('w0', 'w1', 'w2', 'q', 'k', 'v', 'eta'):
        bound = 1e-1 if name in ('k', 'v', 'eta') else BOUND
        contract(f'fast memory, few frames: gradient of {name}', relative(ours[2][name], truth[2][name]), bound)


def test_float16(contract):
    args, leaves = make(192 if GPU else 24, 400 if GPU else 60, [400, 222] if GPU else [60, 35], dtype=torch.float16)
    compare(contract, args, leaves, torch.float16)


@pytest.mark.parametrize('retention', [1.0, 0.6])
def test_rows_of_padding_keep_their_state_to_the_bit(contract, retention):
    args, leaves = make(16, 70, [70, 0, 33], fresh=False, retention=retention)
    out, weights, momentum = fast.lact_swiglu_fast(**args)
    assert out.isfinite().all()
    for new, old in zip((*weights, *momentum), (*args['weights'], *args['momentum'])):
        assert torch.equal(new[1], old[1]) and not torch.equal(new[0], old[0])
    compare(contract, args, leaves, torch.bfloat16)


def test_row_without_gradient():
    """As of an utterance whose loss is zero: zero gradients for it, and no NaN for anyone (on a GPU 1e-38 is zero)."""
    args, leaves = make(16, 70, [70, 33])
    mask = torch.tensor([1.0, 0.0], device=DEVICE)[:, None, None, None]
    out = fast.lact_swiglu_fast(**args)[0]
    gradients = dict(zip(leaves, torch.autograd.grad((out.float() * mask).square().sum(), list(leaves.values()))))
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
    for name in ('q', 'k', 'v', 'eta', 'mu'):
        assert not gradients[name][1].any() and gradients[name][0].any(), name


def test_many_matrices_equal_few(contract, monkeypatch):
    """Newton-Schulz's backward of all chunks prepared at once, and chunk by chunk as for large batches."""
    args, leaves = make(16, 70, [70, 33])
    out_gradient = torch.randn(args['q'].shape, device=DEVICE, dtype=torch.float64)
    few = run(fast.lact_swiglu_fast, args, leaves, out_gradient)[2]
    monkeypatch.setattr(fast_passes, 'FEW', 0)
    many = run(fast.lact_swiglu_fast, args, leaves, out_gradient)[2]
    for name in leaves:
        contract('fast memory: many matrices = few, gradient', relative(many[name], few[name]), BOUND)


@pytest.fixture
def graphs(monkeypatch):
    """CUDA graphs; without a GPU their part is played by running again, into results that every replay spoils."""
    cuda_graphs.forget()
    if not GPU:
        results = []

        def record(function, *_):
            mine = function()
            results.append(mine)

            def replay():
                for tensor in (t for other in results for t in other):
                    tensor.fill_(-1)
                for kept, new in zip(mine, function()):
                    kept.copy_(new)

            return types.SimpleNamespace(replay=replay, pool=lambda: None), mine

        monkeypatch.setattr(cuda_graphs, 'record', record)
        monkeypatch.setattr(torch.cuda, 'current_stream', lambda: types.SimpleNamespace(cuda_stream=0))
        monkeypatch.setattr(torch.cuda, 'Stream', lambda: None)
        monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: None)
        monkeypatch.setattr(fast, '_recorded', lambda q, chunk: q.size(2) >= fast.GRAPH_CHUNKS * chunk)
    yield cuda_graphs
    cuda_graphs.forget()


@pytest.mark.parametrize('mode, retention', [('bidirectional', 1.0), ('causal', 0.6)])
def test_recorded_training_equals_plain(contract, monkeypatch, graphs, mode, retention):
    """Lengths in turns: of one number of chunks, which share a recording, and of another, in the same memory."""
    width, chunk, rows = (64, 32, 3) if GPU else (8, 8, 1)
    sizes = (2 * chunk + 3, 2 * chunk + 7, 2 * chunk)
    cases = [make(width, n, [n - 9, n, 20][:rows], chunk=chunk, retention=retention) for n in sizes]
    gradients = [torch.randn(args['q'].shape, device=DEVICE, dtype=torch.float64) for args, _ in cases]

    def runs(order):
        return [(i, run(fast.lact_swiglu_fast, *cases[i], gradients[i], mode=mode)) for i in order]

    monkeypatch.setattr(fast, 'GRAPH_CHUNKS', 1000)
    plain = dict(runs(range(3)))
    monkeypatch.setattr(fast, 'GRAPH_CHUNKS', 2)
    for i, (out, state, grads) in runs((0, 1, 2, 2, 0, 2, 1) if GPU else (0, 1, 2, 2, 0)):
        contract('fast memory: recorded = plain, read', relative(out, plain[i][0]), 1e-6)
        for mine, other in zip(state, plain[i][1]):
            contract('fast memory: recorded = plain, state', relative(mine, other), 1e-6)
        for name in grads:
            contract('fast memory: recorded = plain, gradient', relative(grads[name], plain[i][2][name]), 1e-6)
    assert len(graphs._graphs) == 4  # forward and backward of two shapes
    rooms = {tensor.untyped_storage().data_ptr() for _, places, _ in graphs._graphs.values() for tensor in places}
    assert len(rooms) <= 3  # more only where a later recording did not fit in
    graphs.forget()

    def no_memory(*_):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(graphs, 'record', no_memory)
    for i, (out, _, _) in runs((2, 2)):
        contract('fast memory: recorded = plain, read', relative(out, plain[i][0]), 1e-6)
    assert not graphs._graphs


@torch._functorch.config.patch(donated_buffer=False)  # `run` keeps the graph of its gradients
@pytest.mark.parametrize('retention', [1.0, 0.6])
def test_compiled_at_any_number_of_chunks(contract, retention):
    """1, 2, 3, 5, 2 chunks, whole and not: a graph for the first size, one for any length, one for any batch."""
    torch._dynamo.reset()
    compiled = torch.compile(fast.lact_swiglu_fast, backend='aot_eager')
    torch._dynamo.utils.counters.clear()
    for rows, frames in ((2, 7), (2, 13), (3, 21), (2, 40), (4, 9)):
        args, leaves = make(8, frames, [frames, 5, frames - 3, 1][:rows], chunk=8, retention=retention)
        out_gradient = torch.randn(args['q'].shape, device=DEVICE, dtype=torch.float64)
        plain, ours = (run(f, args, leaves, out_gradient, use_muon=False) for f in (fast.lact_swiglu_fast, compiled))
        pairs = [(ours[0], plain[0]), *zip(ours[1], plain[1]), *((ours[2][n], plain[2][n]) for n in leaves)]
        for mine, other in pairs:
            contract('fast memory: compiled = plain', relative(mine, other), 1e-6)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] == 3


def test_padding_and_batch_mates_change_nothing(contract):
    args, _ = make(16, 70, [70, 33])
    alone = {n: args[n][1:, :, :33] for n in ('q', 'k', 'v', 'eta', 'mu')}
    alone.update(valid=args['valid'][1:, :33], weights=FastWeights(*(w[1:] for w in args['weights'])),
                 momentum=FastWeights(*(m[1:] for m in args['momentum'])))  # fmt: skip
    out, weights, _ = fast.lact_swiglu_fast(**args)
    one, own, _ = fast.lact_swiglu_fast(**{**args, **alone})
    contract('fast memory: padded = unpadded', relative(out[1:, :, :33], one), 1e-3)
    for a, b in zip(weights, own):
        contract('fast memory: padded = unpadded, state', relative(a[1:], b), 1e-3)


@pytest.mark.parametrize('width', (192, 256) if GPU else (24,))
def test_half_precision_newton_schulz(contract, width):
    m = torch.randn(3, width, width, dtype=torch.float64, device=DEVICE)
    m = (m / m.norm(dim=(-2, -1), keepdim=True)).requires_grad_()
    truth = ops.orthogonalise(m)
    d = torch.randn_like(truth)
    d = d / d.norm(dim=(-2, -1), keepdim=True)
    out = newton_schulz_half.forward((256 * m).half()).double() / 256
    contract('Newton-Schulz in fp16 = fp64', relative(out, truth), 1e-2)
    # Through the division by the norm the part along m is lost: take it out on both sides.
    kept = newton_schulz_half.steps((256 * m).half().detach())
    back = newton_schulz_half.backward(kept, (16 * d).half()).double() / 16
    along = (back * m).sum(dim=(-2, -1), keepdim=True)
    contract('Newton-Schulz in fp16, backward', relative(back - along * m, torch.autograd.grad(truth, m, d)[0]), 2e-2)


def test_rule_and_override():
    args, _ = make(16, 20, [20])
    assert ops.why_not_fast(args['q'], args['eta'], args['weights']) is None
    assert 'float32' in ops.why_not_fast(args['q'].float(), args['eta'], args['weights'])
    wide = args['eta'].expand(-1, -1, -1, -1, 16)
    assert 'lr_dim' in ops.why_not_fast(args['q'], wide, args['weights'])
    double = FastWeights(*(w.double() for w in args['weights']))
    assert 'float64' in ops.why_not_fast(args['q'], args['eta'], double)
    try:
        ops.use_implementation('fast')
        a = ops.lact_swiglu(**args)[0]
        assert torch.equal(a, fast.lact_swiglu_fast(**args)[0])
        # Without an anchor there is nothing to go back to.
        assert torch.equal(a, ops.lact_swiglu(**args, retention=0.5)[0])
        with pytest.raises(RuntimeError, match='lr_dim 1 is needed.*NEMO_LACT_OPS=auto'):
            ops.lact_swiglu(**{**args, 'eta': wide})
        ops.use_implementation('reference')
        assert torch.equal(ops.lact_swiglu(**args)[0], lact_swiglu_reference(**args)[0])
    finally:
        ops.use_implementation('auto')
    with pytest.raises(ValueError, match="'quick'.*choose 'auto', 'reference' or 'fast'"):
        ops.use_implementation('quick')
