"""The launches of the fast memory for one chunk: gradient, step of the weights, read.

Which kernel runs is decided here. Weights, momenta and their gradients lie as [B, H, 3, d, d] in the order W0, W2, W1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_lact.ops import newton_schulz_half
from nemo_lact.ops.fast_weights import FastWeights, evidence
from nemo_lact.ops.newton_schulz import orthogonalise
from nemo_lact.ops.triton_forward import chunk_gradient_kernel, factors_kernel, read_kernel, update_kernel

try:
    from nemo_lact.ops import hopper
except ImportError:  # Triton before 3.5
    hopper = None

# Under TRITON_INTERPRET=1 (for tests without a GPU) a kernel is run by Python.
INTERPRETED = not isinstance(read_kernel, triton.JITFunction)
FUSED_WIDTH = 192  # 3 × 3 tiles of 64 fill the registers and the shared memory of one program
PROGRAMS = 96  # fewer than this leave most of a GPU idle: the frames of a chunk are split to reach it
# fp16 leaves its range in the gradient; the interpreter multiplies bf16 as if it were integers.
MANY = 3_000_000  # numbers in a chunk's keys from which its gradient without backward goes by torch's batched products
# With bf16 operands and an fp32 result; since torch 2.8.
WIDE_PRODUCTS = not INTERPRETED and 'dtype_out' in torch.ops.aten.bmm.overloads()
PRODUCTS = torch.float32 if INTERPRETED else torch.bfloat16


class Sizes:
    """Constants of the launches for one head width.

    precise: orthogonalise in fp32. Rounding of fp16 operands, enlarged some 500 times, is of the size of what bf16
    products elsewhere do, but several times what fp16 products do.
    """

    def __init__(self, width: int, device: torch.device, precise: bool = False):
        self.width, self.precise = width, precise
        self.fused = width <= FUSED_WIDTH and not precise  # a step of the weights by one kernel
        self.block = max(16, triton.next_power_of_2(width))
        self.products = PRODUCTS
        self.gemm = dict(
            D=width, BLOCK_D=self.block, BLOCK_M=32, BLOCK_T=64,
            DTYPE=tl.float32 if INTERPRETED else tl.bfloat16, num_warps=8, num_stages=2,
        )  # fmt: skip
        self.rows = dict(D=width, BLOCK_D=self.block, ROWS=16, num_warps=8)
        self.elements = dict(D=width, BLOCK_D=self.block, BLOCK_T=16, num_warps=8)
        tile = next(t for t in (16, 32, 64, 128, 256, 512) if 3 * t >= width)
        self.read = {**self.gemm, 'BLOCK_T': 32, 'num_warps': 4}
        self.update = dict(D=width, BLOCK=tile, num_warps=8)
        self.hopper = None
        if hopper and self.fused and not INTERPRETED and torch.cuda.get_device_capability(device)[0] == 9:
            tiles = triton.cdiv(width, 64)
            self.hopper = dict(D=width, NT=tiles, num_warps=4) if tiles <= hopper.MAX_TILES else None

    def in_place(self, muon: bool) -> bool:
        """Whether `update` may write new weights over the old: a program reads each number before it writes it.

        Else it takes several launches.
        """
        return self.fused or not muon

    def shares(self, matrices: int, frames: int) -> tuple[tuple[int, int, int], int]:
        """Grid of the chunk gradient, and the tiles of frames each of its programs sums."""
        parts = triton.cdiv(self.width, self.gemm['BLOCK_M'])
        tiles = triton.cdiv(frames, self.gemm['BLOCK_T'])
        each = triton.cdiv(tiles, min(tiles, max(1, PROGRAMS // (matrices * parts))))
        return (matrices, parts, triton.cdiv(tiles, each)), each


def _wide_product(x: Tensor, y: Tensor, out: Tensor) -> None:
    """x y of half precision summed in fp32, to fp32."""
    if INTERPRETED:
        out.copy_(torch.bmm(x, y))
    else:
        torch.ops.aten.bmm.dtype_out(x, y, torch.float32, out=out)


def chunk_gradient(sizes: Sizes, shares, k, v, eta, valid, w, half, part: slice, gradient, factors, keep: bool):
    """Sums over the frames `part` of the outer products of each row and head, to `gradient` [splits, B, H, 3, d, d].

    Args:
        shares: of `Sizes.shares` for a full chunk.
        k, v: [B, H, T, d]. eta: [B, H, T, 3, 1]. valid: [B, T].
        w: [B or 1, H, 3, d, d] fp32; half: [B, H, 3, d, d] the same in the products' dtype, or None to make it.
        factors: [B, H, C, 3, d] of the chunk, written with `keep`.
    """
    batch, heads, _, width = k.shape
    frames = part.stop - part.start
    if WIDE_PRODUCTS and not keep and batch * heads * frames * width >= MANY:
        half = w.to(sizes.products).expand(batch, -1, -1, -1, -1) if half is None else half
        half = half.reshape(-1, 3, width, width)
        k_, v_ = (x[:, :, part].to(sizes.products).reshape(-1, frames, width) for x in (k, v))
        kw, dh = torch.bmm(k_, half[:, :2].flatten(1, 2).mT), torch.bmm(v_, half[:, 2])
        made = kw.new_empty((batch * heads, frames, 3, width))
        factors_kernel[(batch * heads, triton.cdiv(frames, sizes.elements['BLOCK_T']))](
            kw, dh, eta, valid, made, heads, frames, part.start, *eta.stride()[:4], valid.stride(0), **sizes.elements,
        )  # fmt: skip
        made, out = made.flatten(2), gradient[0].view(-1, 3, width, width)
        _wide_product(made[..., : 2 * width].mT, k_, out[:, :2].view(-1, 2 * width, width))
        _wide_product(v_.mT, made[..., 2 * width :], out[:, 2])
        gradient[1:] = 0  # shares of narrow heads
        return
    grid, tiles = shares
    chunk_gradient_kernel[grid](
        k, v, eta, valid, w, gradient, factors, heads, part.start, part.stop,
        *k.stride()[:3], *v.stride()[:3], *eta.stride()[:4], valid.stride(0), row_stride(w), gradient.stride(0),
        STEPS=tiles, KEEP=keep, **sizes.gemm,
    )  # fmt: skip


def update(sizes: Sizes, gradient, momentum, weights, lengths, mu, frames, index, chunk, muon, outs) -> None:
    """One step of all matrices; writes new momentum, weights, their copy for products, and row ratios to `outs`.

    lengths: [H, 3, d], or [B, H, 3, d] where rows are of different layers.
    """
    heads = lengths.size(-3)
    rows = frames.size(0) * heads
    m_new, w_new, half, ratio = outs
    old = m_new if momentum is None else momentum
    arguments = (
        gradient, old, weights, lengths, mu[:, :, index], frames[:, index], m_new, w_new, half, ratio,
        heads, row_stride(weights), row_stride(old), lengths.stride(0) if lengths.dim() == 4 else 0, gradient.stride(0),
        mu.stride(0), mu.stride(1), frames.stride(0), 1 / chunk,
    )  # fmt: skip
    options = dict(SPLITS=gradient.size(0), MOMENTUM=momentum is not None)
    if muon and sizes.hopper:
        hopper.update_kernel[(rows, 3)](*arguments, **options, **sizes.hopper)
        return
    update_kernel[(rows, 3)](*arguments, MUON=muon and sizes.fused, **options, **sizes.update)
    if sizes.in_place(muon):
        return
    # Too wide for one program, or in fp32: the orthogonalisation by batched products, after M was made above.
    m = m_new.view(-1, sizes.width, sizes.width)
    if sizes.precise:
        step = orthogonalise(m)
    else:
        size = torch.sqrt((m * m).sum(dim=(-2, -1), keepdim=True) + 1e-14)
        step = newton_schulz_half.forward((m * (newton_schulz_half.SCALE / size)).half()).float()
        step = step / newton_schulz_half.SCALE
    step = step.view(frames.size(0), heads, 3, sizes.width, sizes.width)
    learn = (frames[:, index] > 0)[:, None, None, None, None]
    moved = weights + (frames[:, index].float() / chunk).clamp(max=1)[:, None, None, None, None] * step
    scale = torch.where(learn, lengths[..., None] / torch.sqrt((moved * moved).sum(-1, keepdim=True) + 1e-12), 1.0)
    w_new.copy_(torch.where(learn, moved * scale, weights))
    half.copy_(w_new)
    ratio.copy_(scale[..., 0])


def retained(frames: Tensor, chunk: int, retention: float, relevance: float) -> Tensor | None:
    """What a chunk of so many frames [...] leaves of W − anchor, [..., 1, 1, 1, 1] for [B, H, 3, d, d]; None: all.

    1 without frames: torch.lerp(anchor, W, 1) is W to the bit.
    """
    if retention == 1.0:
        return None
    return torch.pow(retention, evidence(frames, chunk, relevance))[..., None, None, None, None]


def packed(weights: FastWeights) -> Tensor:
    """[..., 3, d, d] in the order W0, W2, W1."""
    return torch.stack((weights.w0, weights.w2, weights.w1), dim=-3)


def row_stride(x: Tensor) -> int:
    """Step from one row of the batch to the next, 0 where all rows share one tensor."""
    return 0 if x.size(0) == 1 else x.stride(0)


def read_chunks(sizes: Sizes, q: Tensor, halves: Tensor, steps: int, chunk: int, out: Tensor | None = None) -> Tensor:
    """f_W(q) with the weights of each chunk; laid out so that [B, T, H · d] is a view, or in `out` [B, H, T, d]."""
    batch, heads, total, width = q.shape
    if out is None:
        out = q.new_empty((batch, total, heads, width)).transpose(1, 2)
    if steps == 0:
        return out
    grid = (triton.cdiv(min(chunk, total), sizes.read['BLOCK_T']), steps, batch * heads)
    read_kernel[grid](
        q, halves, out, heads, total, chunk,
        *q.stride()[:3], halves.stride(0), halves.stride(1), *out.stride()[:3], **sizes.read,
    )  # fmt: skip
    return out
