"""pieces.py as Triton kernels: one pass over memory each, results written where they stay."""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_lact.ops.pieces import MemoryInput, Moment, Sizes

ROWS = 16  # frames a program


@triton.jit
def _near_kernel(
    p_ptr, bias_ptr, qn_ptr, kn_ptr, start_ptr, freq_ptr, q_ptr, k_ptr, v_ptr,
    frames, width, columns, rows_a_layer, q_r, k_r, v_r, eps,
    W: tl.constexpr, BLOCK_W: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One attention head of ROWS frames: q and k normed and rotated, v as it is. Grid (R · blocks, heads)."""
    blocks = tl.cdiv(frames, ROWS)
    r = (tl.program_id(0) // blocks).to(tl.int64)
    t = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    layer = r // rows_a_layer
    c = tl.arange(0, BLOCK_W)  # pairs (c, c + W / 2)
    half = W // 2
    both = (t < frames)[:, None] & (c < half)[None, :]
    low = head * W + c
    position = (tl.load(start_ptr + r) + t).to(tl.float64)
    turns = tl.load(freq_ptr + c, mask=c < half, other=0.0)[None, :] * position[:, None]
    turns = (turns - tl.floor(turns)).to(tl.float32)  # whole turns taken off in float64, the rest may be float32
    angle = turns * 6.283185307179586
    cos, sin = tl.cos(angle), tl.sin(angle)
    p_ptr += (r * frames + t)[:, None] * columns
    to = t[:, None].to(tl.int64) * width + low[None, :]
    for which in tl.static_range(3):
        at = which * width + low
        b0 = tl.load(bias_ptr + layer * columns + at, mask=c < half, other=0.0)
        b1 = tl.load(bias_ptr + layer * columns + at + half, mask=c < half, other=0.0)
        x0 = tl.load(p_ptr + at[None, :], mask=both, other=0.0).to(tl.float32) + b0[None, :]
        x1 = tl.load(p_ptr + at[None, :] + half, mask=both, other=0.0).to(tl.float32) + b1[None, :]
        if which == 2:
            tl.store(v_ptr + r * v_r + to, x0.to(v_ptr.dtype.element_ty), mask=both)
            tl.store(v_ptr + r * v_r + to + half, x1.to(v_ptr.dtype.element_ty), mask=both)
        else:
            norm_ptr = qn_ptr if which == 0 else kn_ptr
            out_ptr = q_ptr if which == 0 else k_ptr
            step = q_r if which == 0 else k_r
            scale = 1 / tl.sqrt(tl.sum(x0 * x0 + x1 * x1, 1) / W + eps)
            x0 *= scale[:, None] * tl.load(norm_ptr + layer * W + c, mask=c < half, other=0.0)[None, :]
            x1 *= scale[:, None] * tl.load(norm_ptr + layer * W + half + c, mask=c < half, other=0.0)[None, :]
            tl.store(out_ptr + r * step + to, (x0 * cos - x1 * sin).to(out_ptr.dtype.element_ty), mask=both)
            tl.store(out_ptr + r * step + to + half, (x1 * cos + x0 * sin).to(out_ptr.dtype.element_ty), mask=both)


@triton.jit
def _far_kernel(
    p_ptr, bias_ptr, scale_ptr, offset_ptr, q_ptr, k_ptr, v_ptr, eta_ptr, mu_ptr, gate_ptr,
    frames, width, columns, heads, rows_a_layer, gate_r, lr_base,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """One memory head of ROWS frames. Grid (R · blocks, H); q, k, v [R, H, C, d], eta [R, C, H, 3], mu [R, C, H]."""
    blocks = tl.cdiv(frames, ROWS)
    r = (tl.program_id(0) // blocks).to(tl.int64)
    t = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    layer = r // rows_a_layer
    c = tl.arange(0, BLOCK_D)
    there = t < frames
    both = there[:, None] & (c < D)[None, :]
    own = head * D + c
    frame = r * frames + t
    for which in tl.static_range(3):
        at = which * width + own
        b = tl.load(bias_ptr + layer * columns + at, mask=c < D, other=0.0)
        x = tl.load(p_ptr + frame[:, None] * columns + at[None, :], mask=both, other=0.0).to(tl.float32) + b[None, :]
        if which < 2:
            g = tl.load(scale_ptr + (layer * 2 + which) * width + own, mask=c < D, other=0.0)
            o = tl.load(offset_ptr + (layer * 2 + which) * width + own, mask=c < D, other=0.0)
            x = x * g[None, :] + o[None, :]
        x = x * tl.sigmoid(x)
        out_ptr = q_ptr if which == 0 else (k_ptr if which == 1 else v_ptr)
        if which < 2:
            x = tl.where(both, x, 0.0)
            x = x * (1 / tl.sqrt(tl.sum(x * x, 1) + 1e-6))[:, None]
        to = ((r * heads + head) * frames + t)[:, None] * D + c[None, :]
        tl.store(out_ptr + to, x.to(out_ptr.dtype.element_ty), mask=both)
    p_ptr += frame * columns + 3 * width
    bias_ptr += layer * columns + 3 * width
    for i in tl.static_range(3):
        at = head * 3 + i
        x = tl.load(p_ptr + at, mask=there, other=0.0).to(tl.float32) + tl.load(bias_ptr + at) + lr_base
        x = tl.maximum(x, 0.0) + tl.log(1 + tl.exp(-tl.abs(x)))  # softplus
        tl.store(eta_ptr + (frame * heads + head) * 3 + i, x, mask=there)
    at = 3 * heads + head
    if MOMENTUM:
        x = tl.load(p_ptr + at, mask=there, other=0.0).to(tl.float32) + tl.load(bias_ptr + at)
        tl.store(mu_ptr + frame * heads + head, tl.sigmoid(x), mask=there)
        at += heads
    x = tl.load(p_ptr + at, mask=there, other=0.0).to(tl.float32) + tl.load(bias_ptr + at)
    tl.store(gate_ptr + r * gate_r + t * heads + head, x * tl.sigmoid(x), mask=there)


@triton.jit
def _add_read_kernel(
    near_ptr, read_ptr, gate_ptr, norm_ptr, out_ptr, frames, width, heads, rows_a_layer, near_r, read_r, gate_r, eps,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(frames, ROWS)
    r = (tl.program_id(0) // blocks).to(tl.int64)
    t = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    c = tl.arange(0, BLOCK_D)
    both = (t < frames)[:, None] & (c < D)[None, :]
    at = t[:, None].to(tl.int64) * width + head * D + c[None, :]
    x = tl.load(read_ptr + r * read_r + at, mask=both, other=0.0).to(tl.float32)
    norm = tl.load(norm_ptr + r // rows_a_layer * D + c, mask=c < D, other=0.0)
    gate = tl.load(gate_ptr + r * gate_r + t * heads + head, mask=t < frames, other=0.0)
    x = x * (gate / tl.sqrt(tl.sum(x * x, 1) / D + eps))[:, None] * norm[None, :]
    x += tl.load(near_ptr + r * near_r + at, mask=both, other=0.0).to(tl.float32)
    tl.store(out_ptr + r * frames * width + at, x.to(out_ptr.dtype.element_ty), mask=both)


@triton.jit
def _swiglu_kernel(
    x_ptr, bias_ptr, out_ptr, rows, rows_a_layer, F: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    m = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    both = (m < rows)[:, None] & (c < F)[None, :]
    bias = bias_ptr + (m // rows_a_layer)[:, None] * 2 * F + c[None, :]
    at = m[:, None] * 2 * F + c[None, :]
    gate = tl.load(x_ptr + at, mask=both, other=0.0).to(tl.float32) + tl.load(bias, mask=both, other=0.0)
    up = tl.load(x_ptr + at + F, mask=both, other=0.0).to(tl.float32) + tl.load(bias + F, mask=both, other=0.0)
    hidden = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + m[:, None] * F + c[None, :], hidden.to(out_ptr.dtype.element_ty), mask=both)


@triton.jit
def _moment_kernel(
    step_ptr, frames_ptr, learn_ptr, offset_ptr, heard_ptr, valid_ptr, count_ptr, start_ptr,
    lag, behind, keys, chunk, batch, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (R)."""
    r = tl.program_id(0)
    b = r % batch
    first = (tl.load(step_ptr) - lag * (r // batch)) * chunk
    n = tl.arange(0, BLOCK)
    position = first - behind + n
    heard = (position >= 0) & (position < tl.load(frames_ptr + b))
    tl.store(heard_ptr + r * keys + n, heard, mask=n < keys)
    own = n - (keys - chunk)
    valid = heard & (tl.load(learn_ptr + b) != 0) & (own >= 0) & (n < keys)
    tl.store(valid_ptr + r * chunk + own, valid, mask=(own >= 0) & (n < keys))
    tl.store(count_ptr + r, tl.sum(valid.to(tl.int32), 0))
    tl.store(start_ptr + r, first + tl.load(offset_ptr + b))


@triton.jit
def _roll_kernel(x_ptr, row, chunk, last, PIECES: tl.constexpr, BLOCK: tl.constexpr):
    """Numbers n, n + chunk, ... of a row of `last` + chunk: each from the next. Grid (blocks of a chunk, R)."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x_ptr += tl.program_id(1).to(tl.int64) * row
    for piece in tl.static_range(PIECES):
        at = piece * chunk + n
        there = (n < chunk) & (at < last)
        tl.store(x_ptr + at, tl.load(x_ptr + at + chunk, mask=there), mask=there)


@triton.jit
def _mean_gate_kernel(mu_ptr, valid_ptr, count_ptr, out_ptr, heads, chunk, BLOCK: tl.constexpr):
    """Grid (R, H); mu [R, C, H]."""
    r, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n = tl.arange(0, BLOCK)
    valid = tl.load(valid_ptr + r * chunk + n, mask=n < chunk, other=0) != 0
    mu = tl.load(mu_ptr + (r * chunk + n) * heads + h, mask=valid & (n < chunk), other=0.0)
    count = tl.maximum(tl.load(count_ptr + r), 1).to(tl.float32)
    tl.store(out_ptr + r * heads + h, tl.sum(mu, 0) / count)


def why_not(sizes: Sizes, p: Tensor) -> str | None:
    """What keeps the kernels from these sizes; None: nothing."""
    if p.dtype not in (torch.bfloat16, torch.float16):
        return f'products in {str(p.dtype)[6:]}'
    if sizes.memory_rotates:
        return 'a memory with positions (ttt_nope false)'
    if sizes.steps != 3 * sizes.memory_heads:
        return 'step sizes per channel (lr_dim 1 is needed)'
    return None


def split_projection(
    p: Tensor,
    bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    scale: Tensor,
    offset: Tensor,
    start: Tensor,
    sizes: Sizes,
    to: tuple[Tensor, Tensor, Tensor, Tensor],
) -> MemoryInput:
    """As pieces.split_projection, where `why_not` has no objection. `to` may be parts of longer rows."""
    rows, frames, columns = p.shape
    width, heads = scale.size(-1), sizes.memory_heads
    own, d = width // sizes.heads, width // heads
    grid = rows * triton.cdiv(frames, ROWS)
    _near_kernel[(grid, sizes.heads)](
        p, bias, q_norm, k_norm, start, _turns(own, sizes.theta, p.device), *to[:3],
        frames, width, columns, rows // bias.size(0), *(x.stride(0) for x in to[:3]), sizes.eps,
        W=own, BLOCK_W=triton.next_power_of_2(own // 2), ROWS=ROWS, num_warps=2,
    )  # fmt: skip
    q, k, v = (p.new_empty((rows, heads, frames, d)) for _ in range(3))
    eta, mu = bias.new_empty((rows, frames, heads, 3, 1)), bias.new_empty((rows, frames, heads))
    if not sizes.momentum:
        mu.zero_()
    _far_kernel[(grid, heads)](
        p, bias, scale, offset, q, k, v, eta, mu, to[3],
        frames, width, columns, heads, rows // bias.size(0), to[3].stride(0), sizes.lr_base,
        D=d, BLOCK_D=max(16, triton.next_power_of_2(d)), ROWS=ROWS, MOMENTUM=sizes.momentum, num_warps=4,
    )  # fmt: skip
    return MemoryInput(q, k, v, eta.transpose(1, 2), mu.transpose(1, 2))


@functools.lru_cache(maxsize=8)
def _turns(width: int, theta: float, device: torch.device) -> Tensor:
    """Whole turns a frame of each pair of channels, float64 [width / 2]."""
    with torch.inference_mode(False):
        exponent = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
        return theta**-exponent / (2 * torch.pi)


def add_read(near: Tensor, read: Tensor, gate: Tensor, norm: Tensor, eps: float) -> Tensor:
    """As pieces.add_read; `read` and `gate` may be parts of longer rows."""
    rows, frames, width = near.shape
    heads, d = gate.size(-1), norm.size(-1)
    out = near.new_empty((rows, frames, width))
    _add_read_kernel[(rows * triton.cdiv(frames, ROWS), heads)](
        near, read, gate, norm, out, frames, width, heads, rows // norm.size(0),
        near.stride(0), read.stride(0), gate.stride(0), eps,
        D=d, BLOCK_D=max(16, triton.next_power_of_2(d)), ROWS=ROWS, num_warps=4,
    )  # fmt: skip
    return out


def swiglu(x: Tensor, bias: Tensor) -> Tensor:
    """As pieces.swiglu."""
    layers, rows, double = x.shape
    out = x.new_empty((layers, rows, double // 2))
    grid = (triton.cdiv(layers * rows, 4), triton.cdiv(double // 2, 512))
    _swiglu_kernel[grid](x, bias, out, layers * rows, rows, F=double // 2, BLOCK=512, ROWS=4, num_warps=4)
    return out


def moment(
    step: Tensor,
    lag: int,
    behind: int,
    keys: int,
    chunk: int,
    frames: Tensor,
    learn: Tensor,
    offset: Tensor,
    layers: int,
) -> Moment:
    """As pieces.moment."""
    rows = layers * frames.size(0)
    heard, valid = (torch.empty((rows, n), dtype=torch.bool, device=step.device) for n in (keys, chunk))
    count = torch.empty(rows, dtype=torch.int32, device=step.device)
    start = torch.empty(rows, dtype=torch.int64, device=step.device)
    _moment_kernel[(rows,)](
        step, frames, learn, offset, heard, valid, count, start, lag, behind, keys, chunk, frames.size(0),
        BLOCK=triton.next_power_of_2(keys), num_warps=4,
    )  # fmt: skip
    return Moment(heard, valid, count, start)


def roll(buffers: tuple[Tensor, ...], chunk: int) -> None:
    """As pieces.roll."""
    for x in buffers:
        rows, frames, width = x.shape
        if frames > chunk:
            grid = (triton.cdiv(chunk * width, 4096), rows)
            _roll_kernel[grid](
                x, frames * width, chunk * width, (frames - chunk) * width,
                PIECES=triton.cdiv(frames, chunk) - 1, BLOCK=4096, num_warps=8,
            )  # fmt: skip


def mean_gate(mu: Tensor, moment: Moment) -> Tensor:
    """As pieces.mean_gate, for mu as `split_projection` lays it out."""
    rows, heads, chunk = mu.shape
    out = mu.new_empty((rows, heads))
    _mean_gate_kernel[(rows, heads)](
        mu.transpose(1, 2), moment.valid, moment.count, out, heads, chunk,
        BLOCK=triton.next_power_of_2(chunk), num_warps=4,
    )  # fmt: skip
    return out
