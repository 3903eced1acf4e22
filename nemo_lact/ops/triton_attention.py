"""Window attention without gradients in one Triton kernel: no copies of neighbouring blocks, no mask in memory.

Layers by kernels (modules/fused_layer.py, wave_step.py) take it; the plain ones with NEMO_LACT_ATTENTION=triton.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
CHOSEN = os.environ.get('NEMO_LACT_ATTENTION') == 'triton'


@triton.jit
def _window_kernel(
    q_ptr, k_ptr, v_ptr, valid_ptr, out_ptr,
    heads, queries, frames, ahead, left, right, scale,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, valid_b, o_b, o_h, o_t,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """BLOCK queries of one head a program, over the STEPS · BLOCK keys from `left` before the first of them.

    Query m stands at key m + ahead.
    """
    b, h = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    m = first + tl.arange(0, BLOCK)
    c = tl.arange(0, BLOCK_D)
    asked = (m < queries)[:, None] & (c < D)[None, :]
    q = tl.load(q_ptr + b * q_b + h * q_h + m[:, None].to(tl.int64) * q_t + c[None, :], mask=asked, other=0.0)
    q = q.to(DTYPE)
    largest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for step in range(STEPS):
        n = first + ahead - left + step * BLOCK + tl.arange(0, BLOCK)
        there = (n >= 0) & (n < frames)
        heard = there & (tl.load(valid_ptr + b * valid_b + n, mask=there, other=0) != 0)
        keys = there[:, None] & (c < D)[None, :]
        k = tl.load(k_ptr + b * k_b + h * k_h + n[:, None].to(tl.int64) * k_t + c[None, :], mask=keys, other=0.0)
        v = tl.load(v_ptr + b * v_b + h * v_h + n[:, None].to(tl.int64) * v_t + c[None, :], mask=keys, other=0.0)
        score = tl.dot(q, tl.trans(k.to(DTYPE))) * scale
        offset = n[None, :] - (m + ahead)[:, None]
        seen = heard[None, :] & (offset >= -left) & (offset <= right)
        seen = seen | (offset == 0)  # a padding query sees itself: without any key it would be NaN
        score = tl.where(seen, score, -1e30)
        new = tl.maximum(largest, tl.max(score, 1))
        weight = tl.where(seen, tl.exp2(score - new[:, None]), 0.0)
        keep = tl.exp2(largest - new)
        total = total * keep + tl.sum(weight, 1)
        acc = acc * keep[:, None] + tl.dot(weight.to(DTYPE), v.to(DTYPE))
        largest = new
    acc = acc / tl.maximum(total, 1e-30)[:, None]
    out = out_ptr + b * o_b + h * o_h + m[:, None].to(tl.int64) * o_t + c[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=asked)


INTERPRETED = not isinstance(_window_kernel, triton.JITFunction)


def can_run(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, dropout_p: float) -> bool:
    """True on a CUDA GPU (8.0 or newer) in half precision where no gradient is asked for."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return False
    if not q.is_cuda or torch.cuda.get_device_capability(q.device) < (8, 0):
        return False
    if left < 0 or right < 0 or dropout_p or q.size(3) > 128:
        return False
    return q.dtype in (torch.bfloat16, torch.float16)


def window_forward(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, left: int, right: int, ahead: int = 0
) -> Tensor:
    """`window_attention` for [B, H, T, d]; the result is laid out so that [B, T, H · d] is a view.

    ahead: keys before the first query's own; there may be more keys than queries.
    """
    batch, heads, queries, width = q.shape
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    out = q.new_empty((batch, queries, heads, width)).transpose(1, 2)
    if queries == 0:
        return out
    half = tl.bfloat16 if q.dtype == torch.bfloat16 else tl.float16
    _window_kernel[(triton.cdiv(queries, BLOCK), batch * heads)](
        q, k, v, valid, out, heads, queries, k.size(2), ahead, left, right,
        width**-0.5 * 1.4426950408889634,  # exp2 and not exp
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], valid.stride(0), *out.stride()[:3],
        STEPS=triton.cdiv(left + BLOCK + right, BLOCK), D=width, BLOCK_D=max(16, triton.next_power_of_2(width)),
        BLOCK=BLOCK, DTYPE=tl.float32 if INTERPRETED else half, num_warps=4, num_stages=3,
    )  # fmt: skip
    return out
