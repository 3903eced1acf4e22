"""What lies between the products of a block: the kernels against plain torch. On a GPU, or in Triton's interpreter."""

import math

import pytest
import torch

pytest.importorskip('triton')

from nemo_lact.ops import fast_launches, pieces, triton_pieces, window_attention  # noqa: E402
from nemo_lact.ops.attention import triton_attention  # noqa: E402
from nemo_lact.ops.chunks import ReferenceChunks  # noqa: E402
from nemo_lact.ops.fast_steps import FastChunks  # noqa: E402
from nemo_lact.ops.fast_weights import FastWeights, row_length  # noqa: E402

GPU = torch.cuda.is_available()
if not GPU and not triton_attention.INTERPRETED:
    pytest.skip('needs a CUDA GPU, or TRITON_INTERPRET=1 from the start', allow_module_level=True)
DEVICE = 'cuda' if GPU else 'cpu'
DTYPE = torch.bfloat16
LAYERS, BATCH, FRAMES = 2, 2, 21
ROWS = LAYERS * BATCH


def randn(*shape):
    return torch.randn(*shape, device=DEVICE)


def error(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@pytest.mark.parametrize('heads, memory_heads, width, momentum', [(6, 2, 72, True), (2, 4, 48, False)])
def test_projection_is_taken_apart(contract, heads, memory_heads, width, momentum):
    sizes = pieces.Sizes(heads, memory_heads, 3 * memory_heads, momentum, 10000.0, False, -6.9, 1e-6)
    columns = 3 * width + 64
    p, bias = randn(ROWS, FRAMES, columns).to(DTYPE), randn(LAYERS, columns)
    norms = [1 + 0.1 * randn(LAYERS, width // heads) for _ in range(2)]
    scale, offset = 1 + 0.1 * randn(LAYERS, 2, width), 0.1 * randn(LAYERS, 2, width)
    start = torch.tensor([512, 0, 450_000, -512], device=DEVICE)
    results = []
    for module in (pieces, triton_pieces):
        held = [torch.full((ROWS, FRAMES + 5, width), 7.0, dtype=DTYPE, device=DEVICE) for _ in range(3)]
        gate = torch.full((ROWS, FRAMES + 5, memory_heads), 7.0, device=DEVICE)
        to = tuple(x[:, 5:] for x in (*held, gate))
        out = module.split_projection(p, bias, *norms, scale, offset, start, sizes, to)
        assert all((x[:, :5] == 7).all() for x in (*held, gate))  # what stands before is left alone
        results.append([*to, *out])
    for name, a, b in zip(('q', 'k', 'v', 'gate', 'memory q', 'memory k', 'memory v', 'eta', 'mu'), *results):
        assert a.shape == b.shape, name
        contract('pieces: projection (bf16)', error(b, a) if a.any() else b.abs().max(), 1e-2)


def test_read_is_added(contract):
    near, norm = randn(ROWS, FRAMES, 48).to(DTYPE), 1 + 0.1 * randn(LAYERS, 16)
    gate = randn(ROWS, 2 * FRAMES, 3)[:, FRAMES:]
    read = randn(ROWS, 2 * FRAMES, 48).to(DTYPE)[:, FRAMES:]
    a, b = (module.add_read(near, read, gate, norm, 1e-6) for module in (pieces, triton_pieces))
    contract('pieces: gated read (bf16)', error(b, a), 1e-2)


def test_swiglu(contract):
    x, bias = randn(LAYERS, 13, 2 * 24).to(DTYPE), randn(LAYERS, 2 * 24)
    contract('pieces: swiglu (bf16)', error(triton_pieces.swiglu(x, bias), pieces.swiglu(x, bias)), 1e-2)


def test_attention_of_the_last_frames(contract):
    q, k, v = (randn(2, 90, 2, 24).to(DTYPE).transpose(1, 2) for _ in range(3))
    valid = torch.arange(90, device=DEVICE) >= torch.tensor([0, 30], device=DEVICE)[:, None]
    whole = window_attention(q.float(), k.float(), v.float(), valid, 20, 8)
    part = triton_attention.window_forward(q[:, :, 40:70], k, v, valid, 20, 8, ahead=40)
    contract('attention kernel = torch in fp32 (bf16)', error(part, whole[:, :, 40:70]), 1e-2)


@pytest.mark.parametrize('width', [64, 192, 256] if GPU else [19])
@pytest.mark.parametrize(  # many: from here on the chunk gradient goes by batched products, else by its own kernel
    'many, muon, momentum, retention, relevance',
    [
        (10**9, True, True, 1.0, math.inf),
        (10**9, True, False, 1.0, math.inf),
        (10**9, False, True, 1.0, math.inf),
        (10**9, True, True, 0.6, math.inf),
        (1, True, False, 1.0, math.inf),
        (1, False, True, 0.6, math.inf),
        (1, False, False, 0.6, 5.0),
    ],
)
def test_chunks_in_place(contract, monkeypatch, width, muon, momentum, retention, relevance, many):
    monkeypatch.setattr(fast_launches, 'WIDE_PRODUCTS', True)
    monkeypatch.setattr(fast_launches, 'MANY', many)
    heads, chunk, unit = 2 if GPU else 1, max(2 * width, 80), torch.nn.functional.normalize  # 80: in two shares
    initial = FastWeights(*(randn(ROWS, heads, width, width) / width**0.5 for _ in range(3)))
    lengths = FastWeights(*(row_length(w) for w in initial))
    both = [cls(lengths, chunk, muon, momentum, initial, retention, relevance) for cls in (ReferenceChunks, FastChunks)]
    for memory in both:
        memory.start(FastWeights(*(w.clone() for w in initial)), FastWeights(*(torch.zeros_like(w) for w in initial)))
    for valid_frames in ([chunk] * 4, [chunk, chunk, 0, chunk // 2]):
        q, k, v = (unit(randn(ROWS, chunk, heads, width), dim=-1).to(DTYPE).transpose(1, 2) for _ in range(3))
        frames = torch.tensor(valid_frames, dtype=torch.int32, device=DEVICE)
        valid = torch.arange(chunk, device=DEVICE) < frames[:, None]
        eta = 0.001 * (1 + torch.rand(ROWS, heads, chunk, 3, 1, device=DEVICE))
        mu = torch.rand(ROWS, heads, device=DEVICE)
        outs = []
        for memory in both:
            before = memory.state()[0].w0.clone()
            dtype = torch.float32 if memory is both[0] else DTYPE
            memory.learn(k.to(dtype), v.to(dtype), eta, mu, valid, frames)
            out = torch.empty(ROWS, heads, chunk, width, device=DEVICE, dtype=dtype)
            memory.read(q.to(dtype), out)
            outs.append(out)
            still = frames == 0
            assert torch.equal(memory.state()[0].w0[still], before[still])
        contract('memory chunk by chunk = reference: read (bf16)', error(outs[1], outs[0]), 2e-2)
    for a, b in zip([*both[1].state()[0]], [*both[0].state()[0]]):
        contract('memory chunk by chunk = reference: weights (bf16)', error(a, b), 2e-2)


@pytest.mark.parametrize('step', [0, 3, 9])
def test_where_the_rows_stand(step):
    def whole(*x):
        return torch.tensor(x, device=DEVICE)

    args = (whole(step)[0], 2, 6 + 4, 3 * 4 + 2, 4, whole(13, 30, 0), whole(True, False, True), whole(0, 7, 0), 3)
    plain, kernel = (module.moment(*args) for module in (pieces, triton_pieces))
    for name, a, b in zip(plain._fields, plain, kernel):
        assert a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b), name
    assert plain.valid[0].tolist() == [4 * step + i < 13 for i in range(4)]  # first layer, first row
    mu = torch.rand(9, 4, 2, device=DEVICE).transpose(1, 2)
    a, b = (module.mean_gate(mu, plain) for module in (pieces, triton_pieces))
    assert torch.allclose(a, b, rtol=1e-5)


def test_held_frames_move_on():
    buffers = [randn(3, frames, 10).to(DTYPE) for frames in (4, 8, 11, 15)]
    plain, kernel = ([x.clone() for x in buffers] for _ in range(2))
    pieces.roll(tuple(plain), 4)
    triton_pieces.roll(tuple(kernel), 4)
    for before, a, b in zip(buffers, plain, kernel):
        assert torch.equal(a, b)
        assert torch.equal(a[:, : a.size(1) - 4], before[:, 4:])
