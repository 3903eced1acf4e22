"""NeMo's depthwise-striding front end without gradients: two kernels, matrix products between, masks inside.

Channels last, and the largest tensor, the first convolution's output, is never in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _first_kernel(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, len_ptr, out_ptr,
    bins, bins1, frames2, bins2, channels, x_b, x_t, x_f, pad, pads,
    POSITIONS: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Convolution 3 × 3 of one channel, ReLU, depthwise 3 × 3, each with stride 2; out [B, T2, F2, C].

    Grid (blocks of T2 · F2, B, blocks of C); w1 [16, C] (9 taps and zeros), w2 [9, C] fp32, len [B] int64 frames of x.
    Each output needs 9 values of the first convolution: one matrix product of the patches for each.
    """
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    tap = tl.arange(0, 16)
    t2, f2 = at // bins2, at % bins2
    length = tl.load(len_ptr + b).to(tl.int32)
    length1 = (length + pads - 1) // 2  # pads >= 2: the quotient is not negative
    t, f = 4 * t2[:, None] - 3 * pad + tap[None, :] // 3, 4 * f2[:, None] - 3 * pad + tap[None, :] % 3
    corner = x_ptr + b * x_b + t * x_t + f * x_f
    w1 = tl.load(w1_ptr + tap[:, None] * channels + c[None, :], mask=inside[None, :], other=0.0).to(DTYPE)
    b1 = tl.load(b1_ptr + c, mask=inside, other=0.0)
    acc = tl.zeros([POSITIONS, BLOCK], tl.float32) + tl.load(b2_ptr + c, mask=inside, other=0.0)[None, :]
    for tap2 in range(9):
        i, j = tap2 // 3, tap2 % 3
        there = (t + 2 * i >= 0) & (t + 2 * i < length) & (f + 2 * j >= 0) & (f + 2 * j < bins) & (tap < 9)[None, :]
        x = tl.load(corner + (2 * i * x_t + 2 * j * x_f), mask=there, other=0.0).to(DTYPE)
        hidden = tl.dot(x, w1) + b1[None, :]
        t1, f1 = t2 * 2 - pad + i, f2 * 2 - pad + j
        kept = (t1 >= 0) & (t1 < length1) & (f1 >= 0) & (f1 < bins1)
        w = tl.load(w2_ptr + tap2 * channels + c, mask=inside, other=0.0)
        acc += tl.where(kept[:, None], tl.maximum(hidden, 0.0), 0.0) * w[None, :]
    out = out_ptr + (b * frames2 * bins2 + at)[:, None] * channels + c[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=(at < frames2 * bins2)[:, None] & inside[None, :])


@triton.jit
def _next_kernel(
    x_ptr, w_ptr, b_ptr, len_ptr, out_ptr,
    frames, bins, frames2, bins2, channels, pad, pads,
    HALVINGS: tl.constexpr, POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ReLU, then depthwise 3 × 3 with stride 2: x [B, T, F, C] -> out [B, T2, F2, C].

    len [B] int64 frames of the features, HALVINGS strides before x.
    """
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    t2, f2 = at // bins2, at % bins2
    length = tl.load(len_ptr + b).to(tl.int32)
    for _ in tl.static_range(HALVINGS):
        length = (length + pads - 1) // 2
    length = tl.minimum(length, frames)
    corner = x_ptr + (b * frames * bins + 2 * (t2 * bins + f2))[:, None] * channels + c[None, :]
    acc = tl.zeros([POSITIONS, BLOCK], tl.float32) + tl.load(b_ptr + c, mask=inside, other=0.0)[None, :]
    for i in range(3):
        t = t2 * 2 - pad + i
        for j in tl.static_range(3):
            f = f2 * 2 - pad + j
            there = (t >= 0) & (t < length) & (f >= 0) & (f < bins)
            x = tl.load(
                corner + ((i - pad) * bins + j - pad) * channels, mask=there[:, None] & inside[None, :], other=0.0
            )
            w = tl.load(w_ptr + (i * 3 + j) * channels + c, mask=inside, other=0.0)
            acc += tl.maximum(x.to(tl.float32), 0.0) * w[None, :]
    out = out_ptr + (b * frames2 * bins2 + at)[:, None] * channels + c[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=(at < frames2 * bins2)[:, None] & inside[None, :])


INTERPRETED = not isinstance(_first_kernel, triton.JITFunction)


class FrontWeights:
    """The parameters as the kernels want them.

    Args:
        convolutions: as in NeMo's Sequential without activations: first, then depthwise and pointwise by turns.
        out: the linear layer at the end.
        paddings: frames and bins added before, and before and after together.
        dtype: of the products.
    """

    def __init__(self, convolutions, out, paddings: tuple[int, int], dtype: torch.dtype):
        self.pad, self.pads = paddings
        self.dtype = dtype
        first, bias = _taps(convolutions[0])
        self.first = torch.nn.functional.pad(first, (0, 0, 0, 7)), bias  # [16, C]
        self.deep = [_taps(conv) for conv in convolutions[1::2]]
        self.point = [
            (conv.weight[:, :, 0, 0].t().to(dtype).contiguous(), conv.bias.to(dtype)) for conv in convolutions[2::2]
        ]
        channels = self.first[1].numel()
        weight = out.weight.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)  # NeMo has channels before bins
        self.out = weight.t().to(dtype).contiguous(), out.bias.to(dtype)


def _taps(conv) -> tuple[Tensor, Tensor]:
    """[9, C] and [C], fp32."""
    return conv.weight.flatten(1).t().float().contiguous(), conv.bias.float()


def front_forward(x: Tensor, length: Tensor, weights: FrontWeights) -> Tensor:
    """[B, T, F] features of any strides, [B] int64 valid frames -> [B, T', D]. Nothing beyond the length is read."""
    batch, frames, bins = x.shape
    pad, pads = weights.pad, weights.pads

    def halved(n):
        return (n + pads - 3) // 2 + 1

    channels = weights.first[1].numel()
    bins1, frames2, bins2 = halved(bins), halved(halved(frames)), halved(halved(bins))
    y = torch.empty((batch, frames2, bins2, channels), dtype=weights.dtype, device=x.device)
    block = max(16, min(128, triton.next_power_of_2(channels)))
    half = tl.bfloat16 if weights.dtype == torch.bfloat16 else tl.float16
    _first_kernel[(triton.cdiv(frames2 * bins2, 64), batch, triton.cdiv(channels, block))](
        x, *weights.first, *weights.deep[0], length, y,
        bins, bins1, frames2, bins2, channels, x.stride(0), x.stride(1), x.stride(2), pad, pads,
        POSITIONS=64, BLOCK=block, DTYPE=tl.float32 if INTERPRETED else half, num_warps=8, num_stages=1,
    )  # fmt: skip
    halvings = 2
    for index, (weight, bias) in enumerate(weights.point):
        z = torch.addmm(bias, y.view(-1, channels), weight).view(y.shape)
        if index + 1 == len(weights.point):
            break
        frames, bins, frames2, bins2 = frames2, bins2, halved(frames2), halved(bins2)
        y = z.new_empty((batch, frames2, bins2, channels))
        block = min(256, triton.next_power_of_2(channels))
        _next_kernel[(triton.cdiv(frames2 * bins2, 16), batch, triton.cdiv(channels, block))](
            z, *weights.deep[index + 1], length, y, frames, bins, frames2, bins2, channels, pad, pads,
            HALVINGS=halvings, POSITIONS=16, BLOCK=block, num_warps=8,
        )  # fmt: skip
        halvings += 1
    weight, bias = weights.out
    return torch.addmm(bias, z.relu_().view(batch * frames2, -1), weight).view(batch, frames2, -1)
