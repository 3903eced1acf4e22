"""Triton kernels of the momentum gate: its mean over the valid frames of each chunk, and back."""

import triton
import triton.language as tl


@triton.jit
def chunk_means_kernel(
    mu_ptr, valid_ptr, mean_ptr, frames_ptr, total, chunk, mu_b, mu_h, mu_t, valid_b, valid_t,
    BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Grid (B, chunks, H); mu [B, H, T], valid [B, T] -> mean [B, H, n] fp32 and frames [B, n] int32.

    PARTS · BLOCK is a chunk or more.
    """
    b, index, h = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    steps, heads = tl.num_programs(1), tl.num_programs(2)
    sums, found = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.int32)
    for part in range(PARTS):
        within = part * BLOCK + tl.arange(0, BLOCK)
        t = index.to(tl.int64) * chunk + within
        near = (within < chunk) & (t < total)
        seen = near & (tl.load(valid_ptr + b * valid_b + t * valid_t, mask=near, other=0) != 0)
        sums += tl.load(mu_ptr + b * mu_b + h * mu_h + t * mu_t, mask=seen, other=0.0).to(tl.float32)
        found += seen.to(tl.int32)
    frames = tl.sum(found, 0)
    tl.store(mean_ptr + (b * heads + h) * steps + index, tl.sum(sums, 0) / tl.maximum(frames, 1).to(tl.float32))
    tl.store(frames_ptr + b * steps + index, frames, mask=h == 0)


@triton.jit
def of_chunk_means_kernel(
    d_ptr, valid_ptr, frames_ptr, dmu_ptr, heads, total, chunk, valid_b, valid_t, frames_b, frames_n,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (B·H, blocks of frames); d [n, B·H, 3], summed over the three -> dmu [B·H, T], 0 where not valid."""
    bh = tl.program_id(0).to(tl.int64)
    b = bh // heads
    t = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    near = t < total
    index = t // chunk
    seen = near & (tl.load(valid_ptr + b * valid_b + t.to(tl.int64) * valid_t, mask=near, other=0) != 0)
    d = d_ptr + (index * tl.num_programs(0) + bh) * 3
    whole = tl.load(d, mask=seen, other=0.0) + tl.load(d + 1, mask=seen, other=0.0)
    whole += tl.load(d + 2, mask=seen, other=0.0)
    frames = tl.load(frames_ptr + b * frames_b + index * frames_n, mask=seen, other=1).to(tl.float32)
    tl.store(dmu_ptr + bh * total + t, (whole / frames).to(dmu_ptr.dtype.element_ty), mask=near)
