"""Triton kernels of the memory, forward: gradient of a chunk, the step of the weights, the read.

Weights, momenta and gradients lie as [B, H, 3, d, d] in the order W0, W2, W1 (hidden width = head width), so that
W0 and W2 of a head are one [2d, d] matrix.
"""

import triton
import triton.language as tl


@triton.jit
def chunk_gradient_kernel(
    k_ptr, v_ptr, eta_ptr, valid_ptr, w_ptr, out_ptr, factors_ptr,
    heads, start, end,
    k_b, k_h, k_t, v_b, v_h, v_t, e_b, e_h, e_t, e_3, valid_b, w_b, split_stride,
    STEPS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
    DTYPE: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Rows m of ΔW0, ΔW2 and columns m of ΔW1, summed over one share (STEPS · BLOCK_T) of the chunk's frames.

    Grid (B·H, blocks of m, splits of the frames); k, v [B, H, T, d], eta [B, H, T, 3, 1], valid [B, T],
    w [B or 1, H, 3, d, d], out [splits, B·H, 3, d, d] fp32. All products are laid out [m, frames], which leaves the
    sums over frames without a transposition. KEEP also stores the factors that are summed, [B·H, C, 3, d] in the order
    W0, W2, W1: backward needs these very bits (see momentum_backward_kernel).
    """
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // heads, bh % heads
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.arange(0, BLOCK_D)
    inside = (m < D)[:, None] & (c < D)[None, :]
    row_major = m[:, None] * D + c[None, :]
    transposed = c[None, :] * D + m[:, None]
    w_ptr += b * w_b + h * 3 * D * D
    w0 = tl.load(w_ptr + row_major, mask=inside, other=0.0).to(DTYPE)
    w2 = tl.load(w_ptr + D * D + row_major, mask=inside, other=0.0).to(DTYPE)
    w1 = tl.load(w_ptr + 2 * D * D + transposed, mask=inside, other=0.0).to(DTYPE)
    g0 = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    g1 = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    g2 = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first = start + tl.program_id(2) * STEPS * BLOCK_T
    k_ptr += b * k_b + h * k_h
    v_ptr += b * v_b + h * v_h
    eta_ptr += b * e_b + h * e_h
    for step in range(STEPS):
        t = first + step * BLOCK_T + tl.arange(0, BLOCK_T)
        near = t < end
        t = t.to(tl.int64)
        both = near[:, None] & (c < D)[None, :]
        k = tl.load(k_ptr + t[:, None] * k_t + c[None, :], mask=both, other=0.0).to(DTYPE)
        v = tl.load(v_ptr + t[:, None] * v_t + c[None, :], mask=both, other=0.0).to(DTYPE)
        learn = near & (tl.load(valid_ptr + b * valid_b + t, mask=near, other=0) != 0)
        e0 = tl.load(eta_ptr + t * e_t, mask=learn, other=0.0)[None, :]
        e1 = tl.load(eta_ptr + t * e_t + e_3, mask=learn, other=0.0)[None, :]
        e2 = tl.load(eta_ptr + t * e_t + 2 * e_3, mask=learn, other=0.0)[None, :]
        gate = tl.dot(w0, tl.trans(k))  # [m, frames]
        up = tl.dot(w2, tl.trans(k))
        d_hidden = tl.dot(w1, tl.trans(v))
        sigma = tl.sigmoid(gate)
        act = gate * sigma
        d_gate = (d_hidden * up * sigma * (1 + gate * (1 - sigma)) * e0).to(DTYPE)
        d_up = (d_hidden * act * e2).to(DTYPE)
        hidden = (act * up * e1).to(DTYPE)
        g0 = tl.dot(d_gate, k, g0)
        g2 = tl.dot(d_up, k, g2)
        g1 = tl.dot(hidden, v, g1)
        if KEEP:
            to = factors_ptr + (bh * (end - start) + t[None, :] - start) * 3 * D + m[:, None]
            each = (m < D)[:, None] & near[None, :]
            kept = factors_ptr.dtype.element_ty
            tl.store(to, d_gate.to(kept), mask=each)
            tl.store(to + D, d_up.to(kept), mask=each)
            tl.store(to + 2 * D, hidden.to(kept), mask=each)
    out_ptr += tl.program_id(2).to(tl.int64) * split_stride + bh * 3 * D * D
    tl.store(out_ptr + row_major, g0, mask=inside)
    tl.store(out_ptr + D * D + row_major, g2, mask=inside)
    tl.store(out_ptr + 2 * D * D + transposed, g1, mask=inside)


@triton.jit
def factors_kernel(
    kw_ptr, dh_ptr, eta_ptr, valid_ptr, out_ptr, heads, frames, start, e_b, e_h, e_t, e_3, valid_b,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """The factors of the chunk gradient's sums, where the products before and after are torch's.

    Grid (B·H, blocks of frames); kw = k [W0; W2]ᵀ [B·H, C, 2d], dh = v W1 [B·H, C, d], eta and valid as there; out
    [B·H, C, 3, d] in the order W0, W2, W1, zero where nothing is learned.
    """
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // heads, bh % heads
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_D)
    near = t < frames
    both = near[:, None] & (c < D)[None, :]
    at = (bh * frames + t)[:, None]
    learn = near & (tl.load(valid_ptr + b * valid_b + start + t, mask=near, other=0) != 0)
    eta_ptr += b * e_b + h * e_h + (start + t) * e_t
    gate = tl.load(kw_ptr + at * 2 * D + c[None, :], mask=both, other=0.0).to(tl.float32)
    up = tl.load(kw_ptr + at * 2 * D + D + c[None, :], mask=both, other=0.0).to(tl.float32)
    d_hidden = tl.load(dh_ptr + at * D + c[None, :], mask=both, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate)
    act = gate * sigma
    out = out_ptr + at * 3 * D + c[None, :]
    e0 = tl.load(eta_ptr, mask=learn, other=0.0)[:, None]
    e1 = tl.load(eta_ptr + e_3, mask=learn, other=0.0)[:, None]
    e2 = tl.load(eta_ptr + 2 * e_3, mask=learn, other=0.0)[:, None]
    # A padding frame may hold anything: chosen, not multiplied away.
    heard = learn[:, None] & both
    d_gate = tl.where(heard, d_hidden * up * sigma * (1 + gate * (1 - sigma)) * e0, 0.0)
    d_up = tl.where(heard, d_hidden * act * e2, 0.0)
    hidden = tl.where(heard, act * up * e1, 0.0)
    tl.store(out, d_gate.to(out_ptr.dtype.element_ty), mask=both)
    tl.store(out + D, d_up.to(out_ptr.dtype.element_ty), mask=both)
    tl.store(out + 2 * D, hidden.to(out_ptr.dtype.element_ty), mask=both)


@triton.jit
def read_kernel(
    q_ptr, w_ptr, out_ptr,
    heads, frames, chunk,
    q_b, q_h, q_t, w_chunk, w_b, o_b, o_h, o_t,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """f_W(q) for all chunks, each with its own weights.

    Grid (blocks of frames within a chunk, chunks, B·H); q, out [B, H, T, d]; w [chunks, B, H, 3, d, d].
    """
    bh = tl.program_id(2).to(tl.int64)
    b, h = bh // heads, bh % heads
    index = tl.program_id(1).to(tl.int64)
    within = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    t = index * chunk + within
    c = tl.arange(0, BLOCK_D)
    both = ((within < chunk) & (t < frames))[:, None] & (c < D)[None, :]
    q = tl.load(q_ptr + b * q_b + h * q_h + t[:, None] * q_t + c[None, :], mask=both, other=0.0).to(DTYPE)
    w_ptr += index * w_chunk + b * w_b + h * 3 * D * D
    acc = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for begin in range(0, D, BLOCK_M):
        m = begin + tl.arange(0, BLOCK_M)
        inside = (m < D)[:, None] & (c < D)[None, :]
        w0 = tl.load(w_ptr + m[:, None] * D + c[None, :], mask=inside, other=0.0).to(DTYPE)  # [m, d]
        w2 = tl.load(w_ptr + D * D + m[:, None] * D + c[None, :], mask=inside, other=0.0).to(DTYPE)
        w1 = tl.load(w_ptr + 2 * D * D + c[None, :] * D + m[:, None], mask=inside, other=0.0).to(DTYPE)  # [m, d]
        gate = tl.dot(q, tl.trans(w0))  # [frames, m]
        up = tl.dot(q, tl.trans(w2))
        hidden = gate * tl.sigmoid(gate) * up
        acc = tl.dot(hidden.to(DTYPE), w1, acc)
    out = out_ptr + b * o_b + h * o_h + t[:, None] * o_t + c[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=both)


@triton.jit
def _product(a0, a1, a2, b0, b1, b2):
    acc = tl.dot(a0, b0)
    acc = tl.dot(a1, b1, acc)
    return tl.dot(a2, b2, acc)


@triton.jit
def _newton_schulz(x00, x01, x02, x10, x11, x12, x20, x21, x22, a, b, c, BLOCK: tl.constexpr):
    """X <- (a I + b A + c A²) X, A = X Xᵀ, for X as 3 × 3 tiles of fp16, everything scaled by 256.

    fp16 keeps the 11 bits of tf32 at twice its rate and half its space; the scale keeps small entries out of the
    subnormal range. A and the polynomial are symmetric: six tiles of nine are computed.
    """
    S: tl.constexpr = 1.0 / 256
    h = tl.float16
    t00, t01, t02 = tl.trans(x00), tl.trans(x01), tl.trans(x02)
    t10, t11, t12 = tl.trans(x10), tl.trans(x11), tl.trans(x12)
    a00 = (S * _product(x00, x01, x02, t00, t01, t02)).to(h)
    a10 = (S * _product(x10, x11, x12, t00, t01, t02)).to(h)
    a11 = (S * _product(x10, x11, x12, t10, t11, t12)).to(h)
    a20 = (S * _product(x20, x21, x22, t00, t01, t02)).to(h)
    a21 = (S * _product(x20, x21, x22, t10, t11, t12)).to(h)
    a22 = (S * _product(x20, x21, x22, tl.trans(x20), tl.trans(x21), tl.trans(x22))).to(h)
    a01, a02, a12 = tl.trans(a10), tl.trans(a20), tl.trans(a21)
    # p = a I + b A + c A²
    c = c * S
    r = tl.arange(0, BLOCK)
    eye = tl.where(r[:, None] == r[None, :], a * 256, 0.0)
    p00 = (eye + b * a00 + c * _product(a00, a01, a02, a00, a10, a20)).to(h)
    p10 = (b * a10 + c * _product(a10, a11, a12, a00, a10, a20)).to(h)
    p11 = (eye + b * a11 + c * _product(a10, a11, a12, a01, a11, a21)).to(h)
    p20 = (b * a20 + c * _product(a20, a21, a22, a00, a10, a20)).to(h)
    p21 = (b * a21 + c * _product(a20, a21, a22, a01, a11, a21)).to(h)
    p22 = (eye + b * a22 + c * _product(a20, a21, a22, a02, a12, a22)).to(h)
    p01, p02, p12 = tl.trans(p10), tl.trans(p20), tl.trans(p21)
    y00 = (S * _product(p00, p01, p02, x00, x10, x20)).to(h)
    y01 = (S * _product(p00, p01, p02, x01, x11, x21)).to(h)
    y02 = (S * _product(p00, p01, p02, x02, x12, x22)).to(h)
    y10 = (S * _product(p10, p11, p12, x00, x10, x20)).to(h)
    y11 = (S * _product(p10, p11, p12, x01, x11, x21)).to(h)
    y12 = (S * _product(p10, p11, p12, x02, x12, x22)).to(h)
    y20 = (S * _product(p20, p21, p22, x00, x10, x20)).to(h)
    y21 = (S * _product(p20, p21, p22, x01, x11, x21)).to(h)
    y22 = (S * _product(p20, p21, p22, x02, x12, x22)).to(h)
    return y00, y01, y02, y10, y11, y12, y20, y21, y22


@triton.jit
def _load_tile(ptr, i: tl.constexpr, j: tl.constexpr, scale, D: tl.constexpr, BLOCK: tl.constexpr):
    r, c = i * BLOCK + tl.arange(0, BLOCK), j * BLOCK + tl.arange(0, BLOCK)
    inside = (r < D)[:, None] & (c < D)[None, :]
    return (tl.load(ptr + r[:, None] * D + c[None, :], mask=inside, other=0.0) * scale).to(tl.float16)


@triton.jit
def _move_rows(
    w_ptr, len_ptr, out_ptr, half_ptr, ratio_ptr, i: tl.constexpr, x0, x1, x2, gain, learn,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """W + gain · x for one row of tiles, rows scaled back to their length; the old rows where nothing was learned."""
    r, c = i * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    rows = (r < D)[:, None]
    in0, in1, in2 = rows & (c < D)[None, :], rows & (c + BLOCK < D)[None, :], rows & (c + 2 * BLOCK < D)[None, :]
    at = r[:, None] * D + c[None, :]
    w0 = tl.load(w_ptr + at, mask=in0, other=0.0)
    w1 = tl.load(w_ptr + at + BLOCK, mask=in1, other=0.0)
    w2 = tl.load(w_ptr + at + 2 * BLOCK, mask=in2, other=0.0)
    n0, n1, n2 = w0 + gain * x0, w1 + gain * x1, w2 + gain * x2
    squares = tl.sum(n0 * n0 + n1 * n1 + n2 * n2, 1)
    ratio = tl.load(len_ptr + r, mask=r < D, other=0.0) / tl.sqrt(squares + 1e-12)
    ratio = tl.where(learn, ratio, 1.0)
    n0 = tl.where(learn, n0 * ratio[:, None], w0)
    n1 = tl.where(learn, n1 * ratio[:, None], w1)
    n2 = tl.where(learn, n2 * ratio[:, None], w2)
    tl.store(out_ptr + at, n0, mask=in0)
    tl.store(out_ptr + at + BLOCK, n1, mask=in1)
    tl.store(out_ptr + at + 2 * BLOCK, n2, mask=in2)
    half = half_ptr.dtype.element_ty
    tl.store(half_ptr + at, n0.to(half), mask=in0)
    tl.store(half_ptr + at + BLOCK, n1.to(half), mask=in1)
    tl.store(half_ptr + at + 2 * BLOCK, n2.to(half), mask=in2)
    tl.store(ratio_ptr + r, ratio, mask=r < D)


@triton.jit
def update_kernel(
    g_ptr, m_ptr, w_ptr, len_ptr, mu_ptr, frames_ptr, m_out_ptr, w_out_ptr, half_ptr, ratio_ptr,
    heads, w_b, m_b, len_b, split_stride, mu_b, mu_h, frames_b, inverse_chunk,
    D: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, MUON: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """One matrix a program: M <- Σ g + μ M, orthogonalised, W <- rows of W + M scaled back to their length.

    Grid (B·H, 3); g [splits, B·H, 3, d, d], outputs [B·H, 3, d, d] fp32 (half: the products' dtype),
    w, m [B or 1, H, 3, d, d], len [H, 3, d] or [B, H, 3, d], ratio [B·H, 3, d], mu [B, H], frames [B] of the
    chunk. d ≤ 3 · BLOCK.
    """
    bh, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = bh // heads, bh % heads
    own = (bh * 3 + which) * D * D
    frames = tl.load(frames_ptr + b * frames_b)
    learn = frames > 0
    gain = tl.minimum(frames.to(tl.float32) * inverse_chunk, 1.0)
    FLAT: tl.constexpr = 2048
    squares = tl.zeros([FLAT], tl.float32)
    from_m = b * m_b + (h * 3 + which) * D * D
    if MOMENTUM:
        mu = tl.load(mu_ptr + b * mu_b + h * mu_h)
    for begin in range(0, D * D, FLAT):
        i = begin + tl.arange(0, FLAT)
        inside = i < D * D
        new = tl.load(g_ptr + own + i, mask=inside, other=0.0)
        for split in tl.static_range(1, SPLITS):
            new += tl.load(g_ptr + split * split_stride + own + i, mask=inside, other=0.0)
        if MOMENTUM:
            old = tl.load(m_ptr + from_m + i, mask=inside, other=0.0)
            new = tl.where(learn, new + mu * old, old)
        squares += new * new
        tl.store(m_out_ptr + own + i, new, mask=inside)
    tl.debug_barrier()  # other threads of this program wrote what is read now
    m = m_out_ptr + own
    w = w_ptr + b * w_b + (h * 3 + which) * D * D
    length = len_ptr + b * len_b + (h * 3 + which) * D
    out, half, ratio = w_out_ptr + own, half_ptr + own, ratio_ptr + (bh * 3 + which) * D
    if MUON:
        inverse = 256.0 / tl.sqrt(tl.sum(squares, 0) + 1e-14)
        x00, x01, x02 = _load_tile(m, 0, 0, inverse, D, BLOCK), _load_tile(m, 0, 1, inverse, D, BLOCK), _load_tile(
            m, 0, 2, inverse, D, BLOCK
        )
        x10, x11, x12 = _load_tile(m, 1, 0, inverse, D, BLOCK), _load_tile(m, 1, 1, inverse, D, BLOCK), _load_tile(
            m, 1, 2, inverse, D, BLOCK
        )
        x20, x21, x22 = _load_tile(m, 2, 0, inverse, D, BLOCK), _load_tile(m, 2, 1, inverse, D, BLOCK), _load_tile(
            m, 2, 2, inverse, D, BLOCK
        )
        for step in range(5):
            a = tl.where(step == 0, 4.0848, tl.where(step == 1, 3.9505, tl.where(step == 2, 3.7418, 2.8769)))
            b_ = tl.where(step == 0, -6.8946, tl.where(step == 1, -6.3029, tl.where(step == 2, -5.5913, -3.1427)))
            c = tl.where(step == 0, 2.9270, tl.where(step == 1, 2.6377, tl.where(step == 2, 2.3037, 1.2046)))
            a, b_, c = tl.where(step == 4, 2.8366, a), tl.where(step == 4, -3.0525, b_), tl.where(step == 4, 1.2012, c)
            x00, x01, x02, x10, x11, x12, x20, x21, x22 = _newton_schulz(
                x00, x01, x02, x10, x11, x12, x20, x21, x22, a, b_, c, BLOCK
            )
        gain = gain / 256
        _move_rows(w, length, out, half, ratio, 0, x00, x01, x02, gain, learn, D, BLOCK)
        _move_rows(w, length, out, half, ratio, 1, x10, x11, x12, gain, learn, D, BLOCK)
        _move_rows(w, length, out, half, ratio, 2, x20, x21, x22, gain, learn, D, BLOCK)
    else:
        for i in tl.static_range(3):
            r, c_ = i * BLOCK + tl.arange(0, BLOCK), tl.arange(0, BLOCK)
            rows = (r < D)[:, None]
            at = m + r[:, None] * D + c_[None, :]
            x0 = tl.load(at, mask=rows & (c_ < D)[None, :], other=0.0)
            x1 = tl.load(at + BLOCK, mask=rows & (c_ + BLOCK < D)[None, :], other=0.0)
            x2 = tl.load(at + 2 * BLOCK, mask=rows & (c_ + 2 * BLOCK < D)[None, :], other=0.0)
            _move_rows(w, length, out, half, ratio, i, x0, x1, x2, 1.0, learn, D, BLOCK)
