"""Window attention for training against torch's. On a GPU in bf16, or in Triton's interpreter in fp32."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

pytest.importorskip('triton')

from nemo_lact.ops import attention, triton_window, window_attention  # noqa: E402

GPU = torch.cuda.is_available()
if not GPU and not triton_window.INTERPRETED:
    pytest.skip('needs a CUDA GPU, or TRITON_INTERPRET=1 from the start', allow_module_level=True)
DEVICE = 'cuda' if GPU else 'cpu'
DTYPE = torch.bfloat16 if GPU else torch.float32  # the interpreter multiplies in fp32
BOUND = 2e-2 if GPU else 1e-5


@pytest.fixture
def anywhere(monkeypatch):
    monkeypatch.setattr(triton_window, '_fits', lambda device: True)


def leaves(rows, heads, frames, width, dtype=DTYPE):
    """q, k, v [B, H, T, d] as the layer has them, views of [B, T, H, d]; q contiguous."""
    made = [torch.randn(rows, frames, heads, width, device=DEVICE).to(dtype).transpose(1, 2) for _ in range(3)]
    return [x.detach().requires_grad_() for x in (made[0].contiguous(), *made[1:])]


def lengths_to_valid(frames, *lengths):
    return torch.arange(frames, device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None]


def followed(contract, name, ours, truth, inputs):
    """Output and gradients (the same incoming one, of padding frames too) within the bound; both [B, H, T, d]."""
    incoming = torch.randn(ours.shape, device=DEVICE).to(ours.dtype)
    mine = (ours, *torch.autograd.grad(ours, inputs[0], incoming))
    theirs = (truth, *torch.autograd.grad(truth, inputs[1], incoming.to(truth.dtype)))
    for part, a, b in zip(('out', 'dq', 'dk', 'dv'), mine, theirs):
        assert a.isfinite().all() and a.shape == b.shape, part
        # dq and dk are 0 where a query sees one key only: then the size of the incoming gradient is the measure.
        size = max(b.norm(), 0.1 * incoming.norm()) if part in ('dq', 'dk') else b.norm()
        contract(f'{name}, {part} ({"bf16" if GPU else "fp32"})', (a.float() - b.float()).norm() / size, BOUND)


@pytest.mark.parametrize('left, right', [(16, 16), (40, 0), (0, 7), (70, 100), (0, 0)])
@pytest.mark.parametrize('frames, width', [(1, 64), (64, 24), (150, 64), (131, 24), (70, 128)])
def test_forward_and_backward_equal_torch(contract, left, right, frames, width):
    ours = leaves(2, 2, frames, width)
    exact = [x.detach().double().requires_grad_() for x in ours]
    valid = lengths_to_valid(frames, frames, frames // 4)
    out = triton_window.window_training(*ours, valid, left, right)
    truth = attention._blocks(*exact, valid, left, right, 0, max(left, right, 16), 0.0)
    assert out.dtype == DTYPE and out.transpose(1, 2).is_contiguous()
    followed(contract, 'window attention in training = blocks', out, truth, (ours, exact))


def test_rows_of_no_frame_and_padding_anywhere(contract):
    ours = leaves(3, 1, 90, 16)
    exact = [x.detach().double().requires_grad_() for x in ours]
    valid = torch.rand(3, 90, device=DEVICE) < torch.tensor([0.0, 0.3, 1.0], device=DEVICE)[:, None]
    out = triton_window.window_training(*ours, valid, 20, 9)
    truth = attention._blocks(*exact, valid, 20, 9, 0, 20, 0.0)
    followed(contract, 'window attention in training = blocks', out, truth, (ours, exact))
    for shape in ((0, 2, 5, 16), (2, 2, 0, 16)):
        q = torch.zeros(shape, device=DEVICE, dtype=DTYPE, requires_grad=True)
        none = torch.ones(shape[0], shape[2], device=DEVICE, dtype=torch.bool)
        triton_window.window_training(q, q, q, none, 4, 4).sum().backward()
        assert q.grad.shape == shape


def plain_weights(q, k, valid, left, right):
    t = torch.arange(q.size(2), device=DEVICE)
    seen = (valid[:, None, None, :] & attention.window_mask(t, t, left, right, 0)) | (t[:, None] == t)
    return ((q @ k.transpose(-2, -1)) / q.size(-1) ** 0.5).masked_fill(~seen, -torch.inf).softmax(-1), seen


@pytest.mark.parametrize('p, left, right', [(0.5, 24, 24), (0.1, 12, 30)])
def test_dropout_forward_and_backward_use_one_mask(contract, p, left, right):
    frames, width = 90, 96 if GPU else 90
    q, k, v = leaves(2, 4, frames, width)
    valid = lengths_to_valid(frames, frames, 61)
    seed = torch.tensor([12345], device=DEVICE)
    units = torch.eye(frames, width, device=DEVICE, dtype=DTYPE).expand_as(v)  # what comes out are the weights
    weights = triton_window._window(q, k, units, valid, seed, left, right, p)[0][..., :frames].float()
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    softmax, seen = plain_weights(*exact[:2], valid, left, right)
    kept = weights != 0
    assert not (kept & ~seen).any()
    seen = seen.expand_as(kept)
    count = int(seen.sum())
    assert abs(int((kept & seen).sum()) / count - (1 - p)) < 4 * (p * (1 - p) / count) ** 0.5
    for axis in (0, 1):  # other rows and heads lose other weights
        assert not torch.equal(kept.select(axis, 0), kept.select(axis, 1))
    dropped = softmax * kept / (1 - p)
    contract('dropout: weights', (weights - dropped).norm() / dropped.norm(), BOUND)
    out = triton_window._window(q, k, v, valid, seed, left, right, p)[0]
    followed(contract, 'dropout: window attention = torch with its mask', out, dropped @ exact[2], ((q, k, v), exact))


def test_dropout_follows_the_generator_and_its_mean_is_no_dropout(contract):
    # 64 copies of one row and head, each with its own mask: their mean is off by sqrt((1 - p) / p / 64) = 0.125.
    q, k, v = (x.detach().expand(16, 4, -1, -1) for x in leaves(1, 1, 40, 16))
    valid = torch.ones(16, 40, device=DEVICE, dtype=torch.bool)
    whole = triton_window.window_training(q[:1, :1], k[:1, :1], v[:1, :1], valid[:1], 12, 12).float()
    outs = []
    for rows, seed in ((16, 1), (1, 1), (1, 1), (1, 2)):
        torch.manual_seed(seed)
        outs.append(triton_window.window_training(q[:rows], k[:rows], v[:rows], valid[:rows], 12, 12, 0.5))
    mean = outs.pop(0).float().mean(dim=(0, 1))
    contract('dropout: mean of 64 = no dropout (relative)', (mean - whole).norm() / whole.norm(), 0.18)
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_checkpointing_draws_the_same_dropout():
    q, k, v = leaves(2, 2, 80, 16)
    valid = lengths_to_valid(80, 80, 33)

    def run(q, k, v):
        return triton_window.window_training(q, k, v, valid, 16, 16, 0.3).square()

    grads = []
    for way in (run, lambda *x: checkpoint(run, *x, use_reentrant=False)):
        torch.manual_seed(3)
        grads.append(torch.autograd.grad(way(q, k, v).sum(), (q, k, v)))
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_where_it_may_run(monkeypatch):
    q = torch.randn(1, 1, 80, 16, device=DEVICE, requires_grad=True)
    half = q.detach().bfloat16().requires_grad_()
    arguments = (half, half, half, 8, 8, 0.1)
    assert triton_window.can_train(*arguments) == GPU
    monkeypatch.setattr(triton_window, '_fits', lambda device: True)
    assert triton_window.can_train(*arguments)
    assert not triton_window.can_train(q, q, q, 8, 8, 0.0)  # fp32
    assert not triton_window.can_train(half, half, q, 8, 8, 0.0)  # torch's own complaint is clearer
    assert not triton_window.can_train(half, half, half, -1, 8, 0.0)
    wide = torch.randn(1, 1, 8, 136, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    assert not triton_window.can_train(wide, wide, wide, 8, 8, 0.0)
    with torch.no_grad():
        assert not triton_window.can_train(*arguments)
    monkeypatch.setattr(triton_window, 'WANTED', False)  # NEMO_LACT_ATTENTION=reference
    assert not triton_window.can_train(*arguments)


@pytest.mark.parametrize('frames', [20, 150])
def test_autocast_gives_it_what_torch_would_take(anywhere, monkeypatch, contract, frames):
    ours = leaves(2, 2, frames, 16, torch.float32)
    ours[2] = ours[2].detach().bfloat16().requires_grad_()
    valid = lengths_to_valid(frames, frames, 11)
    results = []
    for wanted in (True, False):
        monkeypatch.setattr(triton_window, 'WANTED', wanted)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            results.append(window_attention(*ours, valid, 8, 8))
    a, b = results
    assert a.dtype == b.dtype == torch.bfloat16 and 'window' in type(a.grad_fn).__name__.lower()
    incoming = torch.randn_like(a)
    for x, y in zip((a, *torch.autograd.grad(a, ours, incoming)), (b, *torch.autograd.grad(b, ours, incoming))):
        assert x.dtype == y.dtype
        error = (x.float() - y.float()).norm() / y.float().norm()
        contract('window attention under autocast = torch (bf16)', error, 2e-2)


def test_tracing_leaves_it_out(anywhere, monkeypatch):
    monkeypatch.setattr(triton_window, 'window_training', None)
    q = torch.randn(1, 1, 80, 16, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    valid = torch.ones(1, 80, device=DEVICE, dtype=torch.bool)
    torch.jit.trace(lambda q: window_attention(q, q, q, valid, 8, 8), (q,), check_trace=False)


def test_compiled_is_one_graph_at_any_length_before_flash_too(anywhere, monkeypatch):
    """`fullgraph` makes a break an error; dropout's mask is drawn inside the graph."""
    monkeypatch.setattr(attention, '_use_flash', lambda *a: True)
    monkeypatch.setattr(attention, '_flash', None)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend('aot_eager')
    for p in (0.0, 0.3):
        fast = torch.compile(lambda *x, p=p: window_attention(*x, 12, 12, p), backend=graphs, fullgraph=True)
        for frames in (150, 131, 20, 64):
            q, k, v = leaves(2, 1, frames, 16, torch.bfloat16)
            valid = lengths_to_valid(frames, frames, 11)
            results = []
            for way in (fast, lambda *x, p=p: triton_window.window_training(*x, 12, 12, p)):
                torch.manual_seed(0)
                out = way(q, k, v, valid)
                results.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
            assert all(torch.equal(a, b) for a, b in zip(*results))
    assert graphs.frame_count == 4  # with and without dropout: for the first length, and for any other
