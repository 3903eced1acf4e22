"""Window attention for training: one Triton kernel forward, one backward, dropout inside; no mask in memory.

An operator for torch, so a compiled layer stays one graph. Backward recomputes the weights from what forward keeps,
their log-sum-exp, and every program writes rows of its own: no atomics, the same gradients every time.
attention.py says when it runs; NEMO_LACT_ATTENTION=reference switches it off.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

WANTED = os.environ.get('NEMO_LACT_ATTENTION') != 'reference'


@triton.jit
def _load(ptr, stride, rows, frames, D: tl.constexpr, BLOCK_D: tl.constexpr):
    c = tl.arange(0, BLOCK_D)
    inside = (rows < frames)[:, None] & (c < D)[None, :]
    return tl.load(ptr + rows[:, None].to(tl.int64) * stride + c[None, :], mask=inside, other=0.0)


@triton.jit
def _store(ptr, stride, rows, frames, x, D: tl.constexpr, BLOCK_D: tl.constexpr):
    c = tl.arange(0, BLOCK_D)
    inside = (rows < frames)[:, None] & (c < D)[None, :]
    tl.store(ptr + rows[:, None].to(tl.int64) * stride + c[None, :], x.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _seen(m, n, heard, left, right):
    """Whether query m sees key n: a valid one in its window, or itself (without any key a row would be NaN)."""
    return (heard & (n - m >= -left) & (n - m <= right)) | (n == m)


@triton.jit
def _gain(seed, m, n, left, right, keep):
    """0 where dropout takes the weight of query m and key n, else 1 / keep: forward and backward draw the same."""
    drawn = tl.rand(seed, m * (left + 1 + right) + (n - m + left), n_rounds=7)  # 7 rounds of Philox pass BigCrush
    return tl.where(drawn < keep, 1.0 / keep, 0.0)


@triton.jit(do_not_specialize=['frames', 'valid_b'])  # another length is no reason to compile again
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, valid_ptr, seed_ptr, out_ptr, lse_ptr,
    heads, frames, left, right, scale, keep,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, valid_b,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries, B·H). out [B, T, H, D]; lse [B, H, T], base 2 as scale holds log2(e)."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    first = tl.program_id(0) * BLOCK
    m = first + tl.arange(0, BLOCK)
    q = _load(q_ptr + b * q_b + h * q_h, q_t, m, frames, D, BLOCK_D).to(DTYPE)
    largest = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for step in range(STEPS):
        n = tl.maximum(first - left, 0) + step * BLOCK + tl.arange(0, BLOCK)
        heard = tl.load(valid_ptr + b * valid_b + n, mask=n < frames, other=0) != 0
        k = _load(k_ptr, k_t, n, frames, D, BLOCK_D).to(DTYPE)
        v = _load(v_ptr, v_t, n, frames, D, BLOCK_D).to(DTYPE)
        seen = _seen(m[:, None], n[None, :], heard[None, :], left, right)
        score = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, -1e30)
        new = tl.maximum(largest, tl.max(score, 1))
        weight = tl.where(seen, tl.exp2(score - new[:, None]), 0.0)
        faded = tl.exp2(largest - new)
        total = total * faded + tl.sum(weight, 1)
        if DROPOUT:
            weight *= _gain(tl.load(seed_ptr) + (bh << 32), m[:, None], n[None, :], left, right, keep)
        acc = acc * faded[:, None] + tl.dot(weight.to(DTYPE), v)
        largest = new
    total = tl.maximum(total, 1e-30)  # of a row after the last frame
    _store(out_ptr + (b * frames * heads + h) * D, heads * D, m, frames, acc / total[:, None], D, BLOCK_D)
    tl.store(lse_ptr + bh * frames + m, largest + tl.log2(total), mask=m < frames)


@triton.jit
def _query_gradients(
    q_ptr, k_ptr, v_ptr, valid_ptr, out_ptr, lse_ptr, do_ptr, q_t, k_t, v_t, out_t, do_t, first, frames,
    left, right, seed, scale, keep,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """dq / width_scale of BLOCK queries from `first`, over the keys they see."""
    m = first + tl.arange(0, BLOCK)
    q = _load(q_ptr, q_t, m, frames, D, BLOCK_D).to(DTYPE)
    do = _load(do_ptr, do_t, m, frames, D, BLOCK_D).to(DTYPE)
    out = _load(out_ptr, out_t, m, frames, D, BLOCK_D)
    delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
    lse = tl.load(lse_ptr + m, mask=m < frames, other=0.0)
    dq = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for step in range(STEPS):
        n = tl.maximum(first - left, 0) + step * BLOCK + tl.arange(0, BLOCK)
        heard = tl.load(valid_ptr + n, mask=n < frames, other=0) != 0
        k = _load(k_ptr, k_t, n, frames, D, BLOCK_D).to(DTYPE)
        v = _load(v_ptr, v_t, n, frames, D, BLOCK_D).to(DTYPE)
        seen = _seen(m[:, None], n[None, :], heard[None, :], left, right)
        score = tl.where(seen, tl.dot(q, tl.trans(k)) * scale - lse[:, None], -1e30)
        dw = tl.dot(do, tl.trans(v))
        if DROPOUT:
            dw *= _gain(seed, m[:, None], n[None, :], left, right, keep)
        dq += tl.dot((tl.exp2(score) * (dw - delta[:, None])).to(DTYPE), k)
    return dq


@triton.jit
def _key_gradients(
    q_ptr, k_ptr, v_ptr, valid_ptr, out_ptr, lse_ptr, do_ptr, q_t, k_t, v_t, out_t, do_t, first, frames,
    left, right, seed, scale, keep,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """dk / width_scale and dv of BLOCK keys from `first`, over the queries n - right <= m <= n + left that see them."""
    n = first + tl.arange(0, BLOCK)
    heard = tl.load(valid_ptr + n, mask=n < frames, other=0) != 0
    k = _load(k_ptr, k_t, n, frames, D, BLOCK_D).to(DTYPE)
    v = _load(v_ptr, v_t, n, frames, D, BLOCK_D).to(DTYPE)
    dk = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for step in range(STEPS):
        m = tl.maximum(first - right, 0) + step * BLOCK + tl.arange(0, BLOCK)
        q = _load(q_ptr, q_t, m, frames, D, BLOCK_D).to(DTYPE)
        do = _load(do_ptr, do_t, m, frames, D, BLOCK_D).to(DTYPE)
        out = _load(out_ptr, out_t, m, frames, D, BLOCK_D)
        delta = tl.sum(do.to(tl.float32) * out.to(tl.float32), 1)
        lse = tl.load(lse_ptr + m, mask=m < frames, other=0.0)
        seen = _seen(m[None, :], n[:, None], heard[:, None], left, right) & (m < frames)[None, :]
        score = tl.where(seen, tl.dot(k, tl.trans(q)) * scale - lse[None, :], -1e30)
        weight = tl.exp2(score)  # [keys, queries]
        dw = tl.dot(v, tl.trans(do))
        kept = weight
        if DROPOUT:
            gain = _gain(seed, m[None, :], n[:, None], left, right, keep)
            kept = weight * gain
            dw *= gain
        dv += tl.dot(kept.to(DTYPE), do)
        dk += tl.dot((weight * (dw - delta[None, :])).to(DTYPE), q)
    return dk, dv


@triton.jit(do_not_specialize=['frames', 'valid_b'])
def _backward_kernel(
    q_ptr, k_ptr, v_ptr, valid_ptr, seed_ptr, out_ptr, lse_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr,
    heads, frames, left, right, scale, width_scale, keep,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, valid_b, do_b, do_h, do_t,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, DROPOUT: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of frames, B·H). A program makes dq, dk and dv of its block, laid out as out [B, T, H, D]."""
    bh = tl.program_id(1).to(tl.int64)
    b, h = bh // heads, bh % heads
    q_ptr += b * q_b + h * q_h
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    do_ptr += b * do_b + h * do_h
    valid_ptr += b * valid_b
    lse_ptr += bh * frames
    flat, flat_t = (b * frames * heads + h) * D, heads * D
    seed = bh << 32
    if DROPOUT:
        seed += tl.load(seed_ptr)
    first = tl.program_id(0) * BLOCK
    own = first + tl.arange(0, BLOCK)
    dq = _query_gradients(
        q_ptr, k_ptr, v_ptr, valid_ptr, out_ptr + flat, lse_ptr, do_ptr, q_t, k_t, v_t, flat_t, do_t, first, frames,
        left, right, seed, scale, keep, STEPS, D, BLOCK_D, BLOCK, DROPOUT, DTYPE,
    )  # fmt: skip
    _store(dq_ptr + flat, flat_t, own, frames, dq * width_scale, D, BLOCK_D)
    dk, dv = _key_gradients(
        q_ptr, k_ptr, v_ptr, valid_ptr, out_ptr + flat, lse_ptr, do_ptr, q_t, k_t, v_t, flat_t, do_t, first, frames,
        left, right, seed, scale, keep, STEPS, D, BLOCK_D, BLOCK, DROPOUT, DTYPE,
    )  # fmt: skip
    _store(dk_ptr + flat, flat_t, own, frames, dk * width_scale, D, BLOCK_D)
    _store(dv_ptr + flat, flat_t, own, frames, dv, D, BLOCK_D)


INTERPRETED = not isinstance(_forward_kernel, triton.JITFunction)


def can_train(q: Tensor, k: Tensor, v: Tensor, left: int, right: int, dropout_p: float) -> bool:
    """True on a CUDA GPU (8.0 or newer) in half precision where a gradient is wanted, at any length."""
    if not WANTED or not torch.is_grad_enabled() or not (q.requires_grad or k.requires_grad or v.requires_grad):
        return False
    if left < 0 or right < 0 or dropout_p >= 1.0 or q.size(3) > 128 or not _fits(q.device):
        return False
    return q.dtype in (torch.bfloat16, torch.float16) and q.dtype == k.dtype == v.dtype


def _fits(device: torch.device) -> bool:
    return device.type == 'cuda' and _capable(device.index)


@torch.compiler.assume_constant_result
def _capable(index: int | None) -> bool:
    return torch.cuda.get_device_capability(index) >= (8, 0)


def window_training(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, left: int, right: int, dropout_p: float = 0.0
) -> Tensor:
    """`window_attention` for [B, H, T, d] with gradients; the result is laid out so that [B, T, H · d] is a view.

    left, right: 0 or more. Dropout follows torch's generator of the device, and so is the same in a recomputation.
    """
    seed = torch.randint(2**31 - 1, (1,), device=q.device) if dropout_p > 0 else None
    return _window(q, k, v, valid, seed, left, right, dropout_p)[0]


def _options(q: Tensor, left: int, right: int, dropout_p: float) -> dict:
    block_d = max(16, triton.next_power_of_2(q.size(3)))
    block = 64 if block_d <= 64 else 32
    dtype = tl.bfloat16 if q.dtype == torch.bfloat16 else tl.float16
    return dict(
        # STEPS blocks hold all that the frames of one block see, or are seen by.
        STEPS=triton.cdiv(left + block + right, block), D=q.size(3), BLOCK_D=block_d, BLOCK=block,
        DROPOUT=dropout_p > 0, DTYPE=tl.float32 if INTERPRETED else dtype, num_warps=4, num_stages=2,
    )  # fmt: skip


def _arguments(tensors: tuple[Tensor, ...], valid: Tensor) -> tuple[list[Tensor], Tensor, list[int]]:
    """Tensors and valid as the kernels read them, and the strides of the tensors."""
    tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    return tensors, valid.contiguous(), [s for x in tensors for s in x.stride()[:3]]


@torch.library.custom_op('nemo_lact::window', mutates_args=())
def _window(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, seed: Tensor | None, left: int, right: int, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """Attention [B, H, T, d] and the log-sum-exp of the scores [B, H, T] fp32."""
    out, lse = _results(q)
    if q.numel() == 0:
        return out, lse
    batch, heads, frames, width = q.shape
    (q, k, v), valid, strides = _arguments((q, k, v), valid)
    options = _options(q, left, right, dropout_p)
    _forward_kernel[(triton.cdiv(frames, options['BLOCK']), batch * heads)](
        q, k, v, valid, seed, out, lse, heads, frames, left, right,
        width**-0.5 * 1.4426950408889634, 1.0 - dropout_p,  # exp2 and not exp
        *strides, valid.stride(0), **options,
    )  # fmt: skip
    return out, lse


def _results(q: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, frames, width = q.shape
    out = q.new_empty((batch, frames, heads, width)).transpose(1, 2)
    return out, q.new_empty((batch, heads, frames), dtype=torch.float32)


@_window.register_fake
def _(q, k, v, valid, seed, left, right, dropout_p):
    return _results(q)


@torch.library.custom_op('nemo_lact::window_backward', mutates_args=())
def _window_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, valid: Tensor, seed: Tensor | None, out: Tensor, lse: Tensor,
    left: int, right: int, dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (_results(q)[0] for _ in range(3))
    if q.numel() == 0:
        return dq, dk, dv
    batch, heads, frames, width = q.shape
    (q, k, v, d_out), valid, strides = _arguments((q, k, v, d_out), valid)
    out, lse = out.transpose(1, 2).contiguous(), lse.contiguous()  # as forward wrote them
    options = _options(q, left, right, dropout_p)
    _backward_kernel[(triton.cdiv(frames, options['BLOCK']), batch * heads)](
        q, k, v, valid, seed, out, lse, d_out, dq, dk, dv,
        heads, frames, left, right,
        width**-0.5 * 1.4426950408889634, width**-0.5, 1.0 - dropout_p,
        *strides[:9], valid.stride(0), *strides[9:], **options,
    )  # fmt: skip
    return dq, dk, dv


@_window_backward.register_fake
def _(d_out, q, *rest):
    return tuple(_results(q)[0] for _ in range(3))


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.options = inputs[5:]


def _backward(ctx, d_out, _):
    return *_window_backward(d_out, *ctx.saved_tensors, *ctx.options), *[None] * 5


_window.register_autograd(_backward, setup_context=_setup)
