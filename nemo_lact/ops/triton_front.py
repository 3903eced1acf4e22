"""NeMo's depthwise-striding front end without gradients: two kernels, matrix products between, masks inside.

Channels last, and the largest tensor, the first convolution's output, is never in memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS = 16  # of time and frequency a program


@triton.jit
def _first_kernel(
    x_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, len_ptr, out_ptr,
    bins, bins1, frames2, bins2, channels, x_b, x_t, x_f, pad, pads,
    POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Convolution 3 × 3 of one channel, ReLU, depthwise 3 × 3, each with stride 2; out [B, T2, F2, C].

    Grid (blocks of T2 · F2, B, blocks of C); w1, w2 [9, C] fp32, len [B] int64 frames of x.
    """
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    t2, f2 = at // bins2, at % bins2
    length = tl.load(len_ptr + b).to(tl.int32)
    length1 = (length + pads - 1) // 2  # pads >= 2: the quotient is not negative
    corner = x_ptr + b * x_b + 4 * t2 * x_t + 4 * f2 * x_f
    b1 = tl.load(b1_ptr + c, mask=inside, other=0.0)
    acc = tl.zeros([POSITIONS, BLOCK], tl.float32) + tl.load(b2_ptr + c, mask=inside, other=0.0)[None, :]
    # Loops that are not unrolled: their weights would not fit the registers.
    for i in range(3):
        t1 = t2 * 2 - pad + i
        kept1 = (t1 >= 0) & (t1 < length1)
        for j in range(3):
            f1 = f2 * 2 - pad + j
            kept = kept1 & (f1 >= 0) & (f1 < bins1)
            hidden = tl.zeros([POSITIONS, BLOCK], tl.float32) + b1[None, :]
            for k in range(3):
                dt = 2 * i + k - 3 * pad
                there = (4 * t2 + dt >= 0) & (4 * t2 + dt < length)
                for l in tl.static_range(3):
                    df = 2 * j + l - 3 * pad
                    both = there & (4 * f2 + df >= 0) & (4 * f2 + df < bins)
                    x = tl.load(corner + (dt * x_t + df * x_f), mask=both, other=0.0).to(tl.float32)
                    w = tl.load(w1_ptr + (k * 3 + l) * channels + c, mask=inside, other=0.0)
                    hidden += x[:, None] * w[None, :]
            w = tl.load(w2_ptr + (i * 3 + j) * channels + c, mask=inside, other=0.0)
            acc += tl.where(kept[:, None], tl.maximum(hidden, 0.0), 0.0) * w[None, :]
    out = out_ptr + (b * frames2 * bins2 + at)[:, None] * channels + c[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=(at < frames2 * bins2)[:, None] & inside[None, :])


@triton.jit
def _next_kernel(
    x_ptr, w_ptr, b_ptr, len_ptr, out_ptr,
    frames, bins, frames2, bins2, channels, pad,
    POSITIONS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ReLU, then depthwise 3 × 3 with stride 2: x [B, T, F, C] -> out [B, T2, F2, C]; len [B] frames of x."""
    b = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = c < channels
    t2, f2 = at // bins2, at % bins2
    length = tl.minimum(tl.load(len_ptr + b).to(tl.int32), frames)
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
        self.first = _taps(convolutions[0])
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
    """[B, T, F] features (any strides), [B] int64 valid frames -> [B, T', D]. What lies beyond the length is not read."""
    batch, frames, bins = x.shape
    pad, pads = weights.pad, weights.pads

    def halved(n):
        return (n + pads - 3) // 2 + 1

    channels = weights.first[1].numel()
    block = min(256, triton.next_power_of_2(channels))
    bins1, frames2, bins2 = halved(bins), halved(halved(frames)), halved(halved(bins))
    y = torch.empty((batch, frames2, bins2, channels), dtype=weights.dtype, device=x.device)

    def grid():
        return triton.cdiv(frames2 * bins2, POSITIONS), batch, triton.cdiv(channels, block)

    _first_kernel[grid()](
        x, *weights.first, *weights.deep[0], length, y,
        bins, bins1, frames2, bins2, channels, x.stride(0), x.stride(1), x.stride(2), pad, pads,
        POSITIONS=POSITIONS, BLOCK=block, num_warps=4,
    )  # fmt: skip
    length = halved(halved(length))
    for index, (weight, bias) in enumerate(weights.point):
        z = torch.addmm(bias, y.view(-1, channels), weight).view(y.shape)
        if index + 1 == len(weights.point):
            break
        frames, bins, frames2, bins2 = frames2, bins2, halved(frames2), halved(bins2)
        y = z.new_empty((batch, frames2, bins2, channels))
        _next_kernel[grid()](
            z, *weights.deep[index + 1], length, y, frames, bins, frames2, bins2, channels, pad,
            POSITIONS=POSITIONS, BLOCK=block, num_warps=8,
        )  # fmt: skip
        length = halved(length)
    weight, bias = weights.out
    return torch.addmm(bias, z.relu_().view(batch * frames2, -1), weight).view(batch, frames2, -1)
