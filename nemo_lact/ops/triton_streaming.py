"""A step of streams as Triton kernels: attention over cached keys, caches that move on, the memory fed in pieces.

Streams stand anywhere in their chunks. The state is read where it lies, once, and written to a state that may be the
same one: tensors of it are [B, ...] with any step from row to row, the rest contiguous. ops/streaming.py and
`cached_attention` define the results. Widths: hidden = head width, as fast.py wants it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from nemo_lact.ops import fast_launches
from nemo_lact.ops.fast_launches import INTERPRETED
from nemo_lact.ops.pieces import MemoryInput

PART = 32  # hidden units a program of the memory
MOST_ROWS = 64  # streams whose memory takes its step at once: it needs room for their matrices


@triton.jit
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, keys_ptr, values_ptr, heard_ptr, count_ptr, out_ptr,
    heads, frames, cached, width, left, right, chunk, cache_b, scale,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """BLOCK_Q queries of a head: over the cached keys that were heard, then the new ones. Grid (blocks, B · heads)."""
    b, h = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    m = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    c = tl.arange(0, BLOCK_D)
    own = m + cached
    asked = (m < frames)[:, None] & (c < D)[None, :]
    at = (b * frames + m)[:, None] * width + h * D + c[None, :]
    q = tl.load(q_ptr + at, mask=asked, other=0.0).to(DTYPE)
    heard, count = tl.load(heard_ptr + b), tl.load(count_ptr + b)
    largest = tl.full([BLOCK_Q], -1e30, tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for step in range(STEPS):
        n = step * BLOCK_K + tl.arange(0, BLOCK_K)
        old = (n < cached) & (n + heard >= cached)
        new = (n >= cached) & (n < cached + frames)
        old_at = b * cache_b + n[:, None] * width + h * D + c[None, :]
        new_at = (b * frames + n - cached)[:, None] * width + h * D + c[None, :]
        of_old, of_new = old[:, None] & (c < D)[None, :], new[:, None] & (c < D)[None, :]
        k = tl.load(k_ptr + new_at, mask=of_new, other=0.0).to(DTYPE)
        v = tl.load(v_ptr + new_at, mask=of_new, other=0.0).to(DTYPE)
        k = tl.where(of_old, tl.load(keys_ptr + old_at, mask=of_old, other=0.0).to(DTYPE), k)
        v = tl.where(of_old, tl.load(values_ptr + old_at, mask=of_old, other=0.0).to(DTYPE), v)
        there = old | (new & (n < cached + count))
        if chunk > 0:
            offset = n[None, :] // chunk - own[:, None] // chunk
            seen = (offset <= 0) & (offset >= -(left // chunk))
        else:
            offset = n[None, :] - own[:, None]
            seen = (offset <= right) & (offset >= -left)
        # A padding query sees itself: without any key it would be NaN.
        seen = (seen & there[None, :]) | (n[None, :] == own[:, None])
        score = tl.where(seen, tl.dot(q, tl.trans(k)) * scale, -1e30)
        top = tl.maximum(largest, tl.max(score, 1))
        weight = tl.where(seen, tl.exp2(score - top[:, None]), 0.0)
        keep = tl.exp2(largest - top)
        total = total * keep + tl.sum(weight, 1)
        acc = acc * keep[:, None] + tl.dot(weight.to(DTYPE), v)
        largest = top
    acc = acc / tl.maximum(total, 1e-30)[:, None]
    tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=asked)


@triton.jit
def _shift_kernel(
    k_ptr, v_ptr, keys_ptr, values_ptr, keys_to_ptr, values_to_ptr, count_ptr,
    frames, cached, width, from_b, to_b, STEPS: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The last `cached` of cached and new frames. Grid (B, blocks of channels, 2): keys, values."""
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    count = tl.load(count_ptr + b)
    new, old, to = k_ptr, keys_ptr, keys_to_ptr
    if tl.program_id(2) == 1:
        new, old, to = v_ptr, values_ptr, values_to_ptr
    for step in range(STEPS):
        s = step * BLOCK_T + tl.arange(0, BLOCK_T)
        source = s + count
        inside = (s < cached)[:, None] & (c < width)[None, :]
        is_old = inside & (source < cached)[:, None]
        is_new = inside & (source >= cached)[:, None]
        x = tl.load(old + b * from_b + source[:, None] * width + c[None, :], mask=is_old, other=0.0)
        y = tl.load(new + (b * frames + source - cached)[:, None] * width + c[None, :], mask=is_new, other=0.0)
        tl.debug_barrier()  # in place: what other threads still have to read lies here or later
        tl.store(to + b * to_b + s[:, None] * width + c[None, :], tl.where(is_old, x, y.to(x.dtype)), mask=inside)


@triton.jit
def _memory_kernel(
    q_ptr, k_ptr, v_ptr, eta_ptr, mu_ptr, i0_ptr, i1_ptr, i2_ptr, w0_ptr, w1_ptr, w2_ptr,
    g0_ptr, g1_ptr, g2_ptr, gates_ptr, to0_ptr, to1_ptr, to2_ptr, gates_to_ptr,
    out_ptr, rows_ptr, filled_ptr, learned_ptr,
    heads, begin, frames, chunk, piece, batch, w_b, g_b, gates_b, to_b, gates_to_b, kept,
    D: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, DTYPE: tl.constexpr,
    SUMS: tl.constexpr, FIRST: tl.constexpr, LEARN: tl.constexpr,
):  # fmt: skip
    """Hidden units m of a head: their part of the read, and of the gradient of frames in chunk `piece` from here.

    BLOCK_T frames from `begin` on. Grid (rows · H, blocks of m). q, k, v [B, H, T, d], eta [B, T, H, 3], mu [B, T, H];
    i initial weights [H, d, d], w how far they have moved, `kept` the share of w that the gradient is taken with; g
    gradient so far, read from g and written to `to`; out [blocks of m, B, T, H · d] fp32. The channels go in blocks of
    BLOCK_C: whole rows would not fit in the registers.
    SUMS is the dtype of the products over frames.
    """
    index, part = tl.program_id(0), tl.program_id(1)
    b = tl.load(rows_ptr + index // heads)
    h = index % heads
    m = part * BLOCK_M + tl.arange(0, BLOCK_M)
    t = begin + tl.arange(0, BLOCK_T)
    first = piece * chunk - tl.load(filled_ptr + b)
    here = (t < frames) & (t >= first) & (t < first + chunk)
    asked = here
    if FIRST:  # all, padding too; what belongs to a later chunk is read again
        asked = t < frames
    learn = here & (t < tl.load(learned_ptr + b))
    from_ptr = (b * heads + h) * frames * D
    gate_q = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    up_q = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    gate = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    d_hidden = tl.zeros([BLOCK_M, BLOCK_T], tl.float32)
    for i in range(0, D, BLOCK_C):
        c = i + tl.arange(0, BLOCK_C)
        inside = (m < D)[:, None] & (c < D)[None, :]
        row_major = h * D * D + m[:, None] * D + c[None, :]
        at = from_ptr + t[:, None] * D + c[None, :]
        w0 = tl.load(w0_ptr + b * w_b + row_major, mask=inside, other=0.0)
        w2 = tl.load(w2_ptr + b * w_b + row_major, mask=inside, other=0.0)
        i0 = tl.load(i0_ptr + row_major, mask=inside, other=0.0)
        i2 = tl.load(i2_ptr + row_major, mask=inside, other=0.0)
        q = tl.trans(tl.load(q_ptr + at, mask=asked[:, None] & (c < D)[None, :], other=0.0).to(DTYPE))
        gate_q = tl.dot((i0 + w0).to(DTYPE), q, gate_q)
        up_q = tl.dot((i2 + w2).to(DTYPE), q, up_q)
        if LEARN:
            known = learn[:, None] & (c < D)[None, :]  # of other frames, which may hold anything, nothing is read
            transposed = h * D * D + c[None, :] * D + m[:, None]
            w1 = tl.load(w1_ptr + b * w_b + transposed, mask=inside, other=0.0)  # [m, c]: W1 transposed
            w1 = (kept * w1 + tl.load(i1_ptr + transposed, mask=inside, other=0.0)).to(DTYPE)
            k = tl.trans(tl.load(k_ptr + at, mask=known, other=0.0).to(DTYPE))
            v = tl.trans(tl.load(v_ptr + at, mask=known, other=0.0).to(DTYPE))
            gate = tl.dot((i0 + kept * w0).to(DTYPE), k, gate)
            up = tl.dot((i2 + kept * w2).to(DTYPE), k, up)
            d_hidden = tl.dot(w1, v, d_hidden)
    hidden = tl.trans((gate_q * tl.sigmoid(gate_q) * up_q).to(DTYPE))  # [frames, m]
    frame = (b * frames + t) * heads + h
    if LEARN:
        e0 = tl.load(eta_ptr + frame * 3, mask=learn, other=0.0)[None, :]
        e1 = tl.load(eta_ptr + frame * 3 + 1, mask=learn, other=0.0)[None, :]
        e2 = tl.load(eta_ptr + frame * 3 + 2, mask=learn, other=0.0)[None, :]
        sigma = tl.sigmoid(gate)
        act = gate * sigma
        d_gate = (d_hidden * up * sigma * (1 + gate * (1 - sigma)) * e0).to(SUMS)
        d_up = (d_hidden * act * e2).to(SUMS)
        known_hidden = (act * up * e1).to(SUMS)
        if part == 0:
            gates = tl.sum(tl.load(mu_ptr + frame, mask=learn, other=0.0), 0)
            tl.store(gates_to_ptr + b * gates_to_b + h, tl.load(gates_ptr + b * gates_b + h) + gates)
    for i in range(0, D, BLOCK_C):
        c = i + tl.arange(0, BLOCK_C)
        inside = (m < D)[:, None] & (c < D)[None, :]
        row_major = h * D * D + m[:, None] * D + c[None, :]
        transposed = h * D * D + c[None, :] * D + m[:, None]
        w1 = tl.load(w1_ptr + b * w_b + transposed, mask=inside, other=0.0)
        w1 = (w1 + tl.load(i1_ptr + transposed, mask=inside, other=0.0)).to(DTYPE)
        to = out_ptr + (((part * batch + b) * frames + t)[:, None] * heads + h) * D + c[None, :]
        tl.store(to, tl.dot(hidden, w1), mask=asked[:, None] & (c < D)[None, :])
        if LEARN:
            known = learn[:, None] & (c < D)[None, :]
            at = from_ptr + t[:, None] * D + c[None, :]
            k = tl.load(k_ptr + at, mask=known, other=0.0).to(SUMS)
            v = tl.load(v_ptr + at, mask=known, other=0.0).to(SUMS)
            g0 = tl.dot(d_gate, k, tl.load(g0_ptr + b * g_b + row_major, mask=inside, other=0.0))
            g2 = tl.dot(d_up, k, tl.load(g2_ptr + b * g_b + row_major, mask=inside, other=0.0))
            g1 = tl.dot(known_hidden, v, tl.load(g1_ptr + b * g_b + transposed, mask=inside, other=0.0))
            tl.store(to0_ptr + b * to_b + row_major, g0, mask=inside)
            tl.store(to2_ptr + b * to_b + row_major, g2, mask=inside)
            tl.store(to1_ptr + b * to_b + transposed, g1, mask=inside)


@triton.jit
def _take_kernel(
    i0_ptr, i1_ptr, i2_ptr, w0_ptr, w1_ptr, w2_ptr, m0_ptr, m1_ptr, m2_ptr, g0_ptr, g1_ptr, g2_ptr, gates_ptr,
    rows_ptr, frames_ptr, w_ptr, m_ptr, g_ptr, mu_ptr, heads, w_b, m_b, g_b, gates_b, chunk, kept,
    D: tl.constexpr, BLOCK: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """Weights, momentum, gradient of some rows to [rows, H, 3, d, d], W0, W2, W1; a full chunk begins anew with zeros.

    Grid (rows · H, 3, blocks of a matrix). frames [rows]: of the full chunk, 0 where it is not full.
    """
    r, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = tl.load(rows_ptr + r // heads), r % heads
    initial, weight, momentum, gradient = i0_ptr, w0_ptr, m0_ptr, g0_ptr
    if which == 1:
        initial, weight, momentum, gradient = i2_ptr, w2_ptr, m2_ptr, g2_ptr
    elif which == 2:
        initial, weight, momentum, gradient = i1_ptr, w1_ptr, m1_ptr, g1_ptr
    n = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = n < D * D
    frames = tl.load(frames_ptr + r // heads)
    full = frames + tl.zeros([BLOCK], tl.int32) > 0  # of a block: Triton 3.9's interpreter takes no scalar beside one
    own, to = h * D * D + n, (r * 3 + which) * D * D + n
    moved = tl.load(weight + b * w_b + own, mask=inside, other=0.0)
    tl.store(w_ptr + to, tl.load(initial + own, mask=inside, other=0.0) + kept * moved, mask=inside)
    if MOMENTUM:
        tl.store(m_ptr + to, tl.load(momentum + b * m_b + own, mask=inside, other=0.0), mask=inside)
    gradient += b * g_b + own
    tl.store(g_ptr + to, tl.load(gradient, mask=inside, other=0.0), mask=inside)
    tl.store(gradient, tl.zeros([BLOCK], tl.float32), mask=inside & full)
    if (which == 0) & (tl.program_id(2) == 0):
        gates = gates_ptr + b * gates_b + h
        tl.store(mu_ptr + r, tl.load(gates) / chunk)
        tl.store(gates, 0.0, mask=frames > 0)


@triton.jit
def _put_kernel(
    i0_ptr, i1_ptr, i2_ptr, w0_ptr, w1_ptr, w2_ptr, m0_ptr, m1_ptr, m2_ptr, rows_ptr, frames_ptr, w_ptr, m_ptr,
    heads, w_b, m_b, D: tl.constexpr, BLOCK: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """The way back, for rows whose chunk was full."""
    r, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = tl.load(rows_ptr + r // heads), r % heads
    initial, weight, momentum = i0_ptr, w0_ptr, m0_ptr
    if which == 1:
        initial, weight, momentum = i2_ptr, w2_ptr, m2_ptr
    elif which == 2:
        initial, weight, momentum = i1_ptr, w1_ptr, m1_ptr
    n = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    full = tl.load(frames_ptr + r // heads) + tl.zeros([BLOCK], tl.int32) > 0
    inside = (n < D * D) & full
    own, at = h * D * D + n, (r * 3 + which) * D * D + n
    new = tl.load(w_ptr + at, mask=inside, other=0.0) - tl.load(initial + own, mask=inside, other=0.0)
    tl.store(weight + b * w_b + own, new, mask=inside)
    if MOMENTUM:
        tl.store(momentum + b * m_b + own, tl.load(m_ptr + at, mask=inside, other=0.0), mask=inside)


class Full(NamedTuple):
    """Streams whose chunk becomes full: rows [n] int64, frames [n, 1] int32 of a full chunk (0 where it does not)."""

    rows: Tensor
    frames: Tensor


class Pace(NamedTuple):
    """How B streams stand in a step of T frames.

    Attributes:
        heard: [B] int64 frames before it. count: [B] int64 valid frames of it.
        filled: [B] int64 frames of the unfinished chunk. learned: [B] int64 of `count` that are learned.
        rows: arange(B).
        pieces: for each chunk that becomes full: groups of `Full`, and the rows that go on after it or None.
    """

    heard: Tensor
    count: Tensor
    filled: Tensor
    learned: Tensor
    rows: Tensor
    pieces: list[tuple[list[Full], Tensor | None]]


def _products(x: Tensor) -> tl.dtype:
    """Of the kernels' operands: x's; fp32 for bf16 in the interpreter, which multiplies it as if it were integers."""
    return tl.float16 if x.dtype == torch.float16 else tl.float32 if INTERPRETED else tl.bfloat16


def _sums(x: Tensor) -> tl.dtype:
    """Of the operands of a chunk's gradient, which leave fp16's range: fp32 (on the tensor cores tf32) in its place."""
    return tl.float32 if x.dtype == torch.float16 else _products(x)


def attend(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, pace: Pace, heads: int, left: int, right: int,
    chunk: int,
) -> Tensor:  # fmt: skip
    """`cached_attention` of new frames [B, n, D] after cached ones [B, L, D]."""
    batch, frames, width = q.shape
    cached, d = keys.size(1), width // heads
    out, block = torch.empty_like(q), max(16, min(64, triton.next_power_of_2(frames)))
    _attend_kernel[(triton.cdiv(frames, block), batch * heads)](
        q, k, v, keys, values, pace.heard, pace.count, out,
        heads, frames, cached, width, left, right, chunk, keys.stride(0), d**-0.5 * 1.4426950408889634,
        STEPS=triton.cdiv(cached + frames, 32), D=d, BLOCK_D=max(16, triton.next_power_of_2(d)), BLOCK_Q=block,
        BLOCK_K=32, DTYPE=_products(q), num_warps=4, num_stages=2,
    )  # fmt: skip
    return out


def shift(k: Tensor, v: Tensor, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], count: Tensor) -> None:
    """Keys and values after the step: the last L of those before [B, L, D] and the first `count` [B] new ones."""
    batch, cached, width = before[0].shape
    _shift_kernel[(batch, triton.cdiv(width, 128), 2)](
        k, v, *before, *after, count, k.size(1), cached, width, before[0].stride(0), after[0].stride(0),
        STEPS=triton.cdiv(cached, 32), BLOCK_W=128, BLOCK_T=32, num_warps=4,
    )  # fmt: skip


class StreamMemory:
    """The memory of one layer in a step.

    Args:
        initial: W0, W1, W2 [H, d, d] fp32 as learned; lengths: [H, 3, d] of their rows in the order W0, W2, W1.
        weights, momentum: three tensors [B, H, d, d] each, written in place; no momentum: ().
        before, after: the unfinished chunk, three tensors [B, H, d, d] and the gates' sums [B, H]; after is written.
        sizes: of the fast memory. options: chunk_size, use_muon, retention.
    """

    def __init__(self, initial, lengths: Tensor, weights, momentum, before, after, sizes, options: tuple):
        self.initial, self.lengths, self.weights, self.momentum = initial, lengths, weights, momentum
        self.before, self.after, self.sizes = before, after, sizes
        self.chunk, self.muon, self.retention = options
        self.heads, self.width = lengths.size(0), lengths.size(2)

    def step(self, inputs: MemoryInput, pace: Pace, learn: bool) -> Tensor:
        """Read the frames of `inputs`, [B, T, H · d] fp32, gather their gradients, learn the chunks that are full."""
        batch, heads, frames, d = inputs.q.shape
        out = self.lengths.new_empty((triton.cdiv(d, PART), batch, frames, heads * d))
        self._read(inputs, pace, 0, pace.rows, self.before, learn, out)
        for index, (groups, rows) in enumerate(pace.pieces if learn else []):
            for full in groups:
                self._learn(full)
            if rows is not None:
                self._read(inputs, pace, index + 1, rows, self.after, learn, out)
        return out.sum(dim=0)

    def _read(self, inputs: MemoryInput, pace: Pace, piece: int, rows: Tensor, before, learn: bool, out: Tensor):
        q, k, v, eta, mu = inputs
        batch, heads, frames, d = q.shape
        block = max(16, min(64, triton.next_power_of_2(frames)))
        for begin in range(0, frames, block):
            _memory_kernel[(rows.numel() * heads, triton.cdiv(d, PART))](
                q, k, v, eta, mu, *self.initial, *self.weights, *before, *self.after,
                out, rows, pace.filled, pace.learned, heads, begin, frames, self.chunk, piece, batch,
                self.weights[0].stride(0), before[0].stride(0), before[3].stride(0),
                self.after[0].stride(0), self.after[3].stride(0), self.retention,
                D=d, BLOCK_C=max(16, min(64, triton.next_power_of_2(d))), BLOCK_M=PART, BLOCK_T=block,
                DTYPE=_products(q), SUMS=_sums(q), FIRST=piece == 0, LEARN=learn, num_warps=4,
            )  # fmt: skip
            before = self.after

    def _learn(self, full: Full) -> None:
        heads, d, rows = self.heads, self.width, full.rows.numel()
        w, m, g = self.lengths.new_empty((3, rows, heads, 3, d, d)).unbind()
        mu, ratio = w.new_empty((rows, heads, 1)), w.new_empty((rows, heads, 3, d))
        half = torch.empty_like(w, dtype=self.sizes.products)
        momentous = len(self.momentum) > 0
        momentum = self.momentum if momentous else self.weights
        strides = self.weights[0].stride(0), momentum[0].stride(0)
        grid, blocks = (rows * heads, 3, triton.cdiv(d * d, 4096)), dict(D=d, BLOCK=4096, MOMENTUM=momentous)
        _take_kernel[grid](
            *self.initial, *self.weights, *momentum, *self.after, full.rows, full.frames, w, m, g, mu,
            heads, *strides, self.after[0].stride(0), self.after[3].stride(0), float(self.chunk), self.retention,
            **blocks, num_warps=8,
        )  # fmt: skip
        moved = w if self.sizes.in_place(self.muon) else torch.empty_like(w)
        fast_launches.update(
            self.sizes, g[None], m if momentous else None, w, self.lengths, mu, full.frames, 0, self.chunk, self.muon,
            (m, moved, half, ratio),
        )  # fmt: skip
        _put_kernel[grid](
            *self.initial, *self.weights, *momentum, full.rows, full.frames, moved, m, heads, *strides,
            **blocks, num_warps=8,
        )  # fmt: skip
