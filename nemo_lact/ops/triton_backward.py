"""Triton kernels of the memory, backward: everything between the matrix products, which cuBLAS does.

Layouts as in triton_forward.py: [B·H, 3, d, d] in the order W0, W2, W1.
"""

import triton
import triton.language as tl


@triton.jit
def normed_kernel(m_ptr, x_ptr, size_ptr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr):
    """x = 256 M / |M| in fp16 for each M of [.., d, d] fp32, what the orthogonalisation starts from, and |M|."""
    own = tl.program_id(0).to(tl.int64) * D * D
    c = tl.arange(0, BLOCK_D)
    squares = tl.zeros([ROWS], tl.float32)
    for begin in range(0, D, ROWS):
        r = begin + tl.arange(0, ROWS)
        inside = (r < D)[:, None] & (c < D)[None, :]
        m = tl.load(m_ptr + own + r[:, None] * D + c[None, :], mask=inside, other=0.0)
        squares += tl.sum(m * m, 1)
    size = tl.sqrt(tl.sum(squares, 0) + 1e-14)
    tl.store(size_ptr + tl.program_id(0), size)
    for begin in range(0, D, ROWS):
        r = begin + tl.arange(0, ROWS)
        inside = (r < D)[:, None] & (c < D)[None, :]
        at = own + r[:, None] * D + c[None, :]
        m = tl.load(m_ptr + at, mask=inside, other=0.0)
        tl.store(x_ptr + at, (m * (256.0 / size)).to(tl.float16), mask=inside)


@triton.jit
def rows_backward_kernel(
    dw_ptr, read_ptr, later_ptr, w_ptr, ratio_ptr, len_ptr, frames_ptr, dlen_ptr, d_ptr, size_ptr,
    heads, frames_b, inverse_chunk,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    MUON: tl.constexpr, GIVEN: tl.constexpr, READ: tl.constexpr, LATER: tl.constexpr,
):  # fmt: skip
    """Backward of 'rows scaled back to their length', and what the orthogonalisation's backward starts from.

    Grid (B·H, 3). dw fp32: gradient of the new weights (0 without GIVEN), becomes that of the moved weights before
    scaling; read and LATER's: further parts of it, from the read and from the chunk after. w: the new weights in the
    products' dtype. dlen [B·H, 3, d]: gradient of the row lengths, to which LATER adds. With MUON also
    d = 16 · gradient / |gradient| in fp16, and the norm in size [B·H, 3].
    """
    bh, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = bh // heads, bh % heads
    own = (bh * 3 + which) * D * D
    frames = tl.load(frames_ptr + b * frames_b)
    learn = frames > 0
    gain = tl.minimum(frames.to(tl.float32) * inverse_chunk, 1.0)
    c = tl.arange(0, BLOCK_D)
    squares = tl.zeros([ROWS], tl.float32)
    for begin in range(0, D, ROWS):
        r = begin + tl.arange(0, ROWS)
        inside = (r < D)[:, None] & (c < D)[None, :]
        at = own + r[:, None] * D + c[None, :]
        dy = tl.zeros([ROWS, BLOCK_D], tl.float32)
        if GIVEN:
            dy += tl.load(dw_ptr + at, mask=inside, other=0.0)
        if READ:
            dy += tl.load(read_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if LATER:
            dy += tl.load(later_ptr + at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(w_ptr + at, mask=inside, other=0.0).to(tl.float32)
        row = (bh * 3 + which) * D + r
        ratio = tl.load(ratio_ptr + row, mask=r < D, other=0.0)
        length = tl.load(len_ptr + (h * 3 + which) * D + r, mask=r < D, other=1.0)
        along = tl.sum(dy * y, 1) / length
        dw = tl.where(learn, ratio[:, None] * (dy - y * (along / length)[:, None]), dy)
        tl.store(dw_ptr + at, dw, mask=inside)
        along = tl.where(learn, along, 0.0)
        if LATER:
            along += tl.load(dlen_ptr + row, mask=r < D, other=0.0)
        tl.store(dlen_ptr + row, along, mask=r < D)
        if MUON:
            squares += tl.sum(dw * dw, 1)
    if MUON:
        tl.debug_barrier()
        norm = tl.sqrt(tl.sum(squares, 0) + 1e-30)  # of a row without a gradient too; subnormals flush to zero
        tl.store(size_ptr + bh * 3 + which, gain * norm)
        scale = tl.where(learn, 16.0 / norm, 0.0)
        for begin in range(0, D, ROWS):
            r = begin + tl.arange(0, ROWS)
            inside = (r < D)[:, None] & (c < D)[None, :]
            at = own + r[:, None] * D + c[None, :]
            dw = tl.load(dw_ptr + at, mask=inside, other=0.0)
            tl.store(d_ptr + at, (dw * scale).to(tl.float16), mask=inside)


@triton.jit
def momentum_backward_kernel(
    dx_ptr, x_ptr, d_size_ptr, m_size_ptr, dw_ptr, dm_ptr, m_old_ptr, mu_ptr, frames_ptr, z_ptr, dmu_ptr,
    heads, m_b, mu_b, mu_h, frames_b,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, MUON: tl.constexpr, MOMENTUM: tl.constexpr,
    GIVEN: tl.constexpr,
):  # fmt: skip
    """Backward of M / |M| and of M <- g + μ M.

    Grid (B·H, 3). dx fp16: what the orthogonalisation's backward gave (without MUON dw is taken), x = 256 M / |M| fp16;
    sizes [B·H, 3]: the norms that were divided by. dm fp32: gradient of the new momentum (0 without GIVEN), becomes
    that of the old.
    z [B·H, 6, d, d] gets dg in the products' dtype, in the order g0, g2, g0', g2', g1, g1', where g + g' is dg with
    twice the bits: with fewer frames than channels most of dg is orthogonal to all keys, and its rounding must not show
    in what is left. dmu [B·H, 3].
    """
    bh, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, h = bh // heads, bh % heads
    own = (bh * 3 + which) * D * D
    m_own = b * m_b + (h * 3 + which) * D * D
    to_g = (bh * 6 + tl.where(which == 2, 4, which)) * D * D
    to_rest = (bh * 6 + tl.where(which == 2, 5, which + 2)) * D * D
    learn = tl.load(frames_ptr + b * frames_b) > 0
    c = tl.arange(0, BLOCK_D)
    along = 0.0
    scale = 1.0
    if MUON:
        d_size = tl.load(d_size_ptr + bh * 3 + which)
        m_size = tl.load(m_size_ptr + bh * 3 + which)
        scale = d_size / (16.0 * m_size)
        total = tl.zeros([ROWS], tl.float32)
        for begin in range(0, D, ROWS):
            r = begin + tl.arange(0, ROWS)
            inside = (r < D)[:, None] & (c < D)[None, :]
            at = own + r[:, None] * D + c[None, :]
            dx = tl.load(dx_ptr + at, mask=inside, other=0.0).to(tl.float32)
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
            total += tl.sum(dx * x, 1)
        along = tl.sum(total, 0) / 65536.0
    if MOMENTUM:
        mu = tl.load(mu_ptr + b * mu_b + h * mu_h)
        total_mu = tl.zeros([ROWS], tl.float32)
    half = z_ptr.dtype.element_ty
    for begin in range(0, D, ROWS):
        r = begin + tl.arange(0, ROWS)
        inside = (r < D)[:, None] & (c < D)[None, :]
        within = r[:, None] * D + c[None, :]
        if MUON:
            dx = tl.load(dx_ptr + own + within, mask=inside, other=0.0).to(tl.float32)
            x = tl.load(x_ptr + own + within, mask=inside, other=0.0).to(tl.float32)
            dm = scale * (dx - x * along)
        else:
            dm = tl.load(dw_ptr + own + within, mask=inside, other=0.0)
        if MOMENTUM:
            after = tl.zeros([ROWS, BLOCK_D], tl.float32)
            if GIVEN:
                after += tl.load(dm_ptr + own + within, mask=inside, other=0.0)
            dm = tl.where(learn, dm + after, 0.0)
            old = tl.load(m_old_ptr + m_own + within, mask=inside, other=0.0)
            total_mu += tl.sum(dm * old, 1)
            tl.store(dm_ptr + own + within, tl.where(learn, mu * dm, after), mask=inside)
        else:
            dm = tl.where(learn, dm, 0.0)
        near = dm.to(half)
        tl.store(z_ptr + to_g + within, near, mask=inside)
        tl.store(z_ptr + to_rest + within, (dm - near.to(tl.float32)).to(half), mask=inside)
    if MOMENTUM:
        tl.store(dmu_ptr + bh * 3 + which, tl.sum(total_mu, 0))


@triton.jit
def gradient_backward_kernel(
    kz_ptr, kw_ptr, vw_ptr, vg_ptr, vg_rest_ptr, factors_ptr, eta_ptr, valid_ptr, for_k_ptr, dh_ptr, deta_ptr,
    heads, frames, start, e_b, e_h, e_t, e_3, valid_b, de_bh,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Backward of the chunk gradient, between the products.

    Grid (B·H, blocks of frames). kz = k [g0; g2; g0'; g2']ᵀ [B·H, C, 4d], kw = k [W0; W2]ᵀ [.., 2d], vw = v W1,
    vg = v g1 and vg' [.., d]. factors [B·H, C, 3, d]: as chunk_gradient_kernel kept them. Gives for_k [B·H, C, 2d]
    (what W0, W2 multiply for dk), dh [B·H, C, d] (what W1ᵀ multiplies for dv), deta [B·H, T, 3].
    """
    bh = tl.program_id(0).to(tl.int64)
    b, h = bh // heads, bh % heads
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_D)
    near = t < frames
    both = near[:, None] & (c < D)[None, :]
    at = start + t.to(tl.int64)
    learn = near & (tl.load(valid_ptr + b * valid_b + at, mask=near, other=0) != 0)
    eta_ptr += b * e_b + h * e_h
    e0 = tl.load(eta_ptr + at * e_t, mask=learn, other=0.0)[:, None]
    e1 = tl.load(eta_ptr + at * e_t + e_3, mask=learn, other=0.0)[:, None]
    e2 = tl.load(eta_ptr + at * e_t + 2 * e_3, mask=learn, other=0.0)[:, None]
    row = (bh * frames + t)[:, None]
    narrow, double, wide = row * D + c[None, :], row * 2 * D + c[None, :], row * 4 * D + c[None, :]
    gate = tl.load(kw_ptr + double, mask=both, other=0.0).to(tl.float32)
    up = tl.load(kw_ptr + double + D, mask=both, other=0.0).to(tl.float32)
    d_hidden = tl.load(vw_ptr + narrow, mask=both, other=0.0).to(tl.float32)
    # ∂loss/∂(d_gate), ∂(d_up), ∂(hidden) before the step sizes
    at_gate = tl.load(kz_ptr + wide, mask=both, other=0.0).to(tl.float32)
    at_gate += tl.load(kz_ptr + wide + 2 * D, mask=both, other=0.0).to(tl.float32)
    at_up = tl.load(kz_ptr + wide + D, mask=both, other=0.0).to(tl.float32)
    at_up += tl.load(kz_ptr + wide + 3 * D, mask=both, other=0.0).to(tl.float32)
    at_hidden = tl.load(vg_ptr + narrow, mask=both, other=0.0).to(tl.float32)
    at_hidden += tl.load(vg_rest_ptr + narrow, mask=both, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate)
    act = gate * sigma
    slope = sigma * (1 + gate * (1 - sigma))  # silu'
    bend = sigma * (1 - sigma) * (2 + gate * (1 - 2 * sigma))  # silu''
    # The factors hold their step sizes, which softplus makes positive.
    from_factors = factors_ptr + row * 3 * D + c[None, :]
    d_gate = tl.load(from_factors, mask=both, other=0.0).to(tl.float32)
    d_up = tl.load(from_factors + D, mask=both, other=0.0).to(tl.float32)
    hidden = tl.load(from_factors + 2 * D, mask=both, other=0.0).to(tl.float32)
    deta_ptr += bh * de_bh + at * 3
    e0_, e1_, e2_ = tl.sum(e0, 1), tl.sum(e1, 1), tl.sum(e2, 1)  # [frames]
    tl.store(deta_ptr, tl.where(learn, tl.sum(d_gate * at_gate, 1) / tl.maximum(e0_, 1e-30), 0.0), mask=near)
    tl.store(deta_ptr + 1, tl.where(learn, tl.sum(hidden * at_hidden, 1) / tl.maximum(e1_, 1e-30), 0.0), mask=near)
    tl.store(deta_ptr + 2, tl.where(learn, tl.sum(d_up * at_up, 1) / tl.maximum(e2_, 1e-30), 0.0), mask=near)
    half = for_k_ptr.dtype.element_ty
    at_gate, at_up, at_hidden = e0 * at_gate, e2 * at_up, e1 * at_hidden
    on_gate = at_gate * d_hidden * up * bend + at_hidden * up * slope + at_up * d_hidden * slope
    on_up = at_gate * d_hidden * slope + at_hidden * act
    tl.store(for_k_ptr + double, on_gate.to(half), mask=both)
    tl.store(for_k_ptr + double + D, on_up.to(half), mask=both)
    tl.store(dh_ptr + narrow, (at_gate * up * slope + at_up * act).to(half), mask=both)


@triton.jit
def read_backward_kernel(
    qw_ptr, dh_ptr, for_q_ptr, hidden_ptr, rows, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Backward of the read, between the products: qw = q [W0; W2]ᵀ [rows, 2d], dh = do W1 [rows, d].

    Gives for_q [rows, 2d], which [W0; W2] multiplies for dq, and the hidden layer [rows, d].
    """
    t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_D)
    both = (t < rows)[:, None] & (c < D)[None, :]
    narrow, wide = t[:, None] * D + c[None, :], t[:, None] * 2 * D + c[None, :]
    gate = tl.load(qw_ptr + wide, mask=both, other=0.0).to(tl.float32)
    up = tl.load(qw_ptr + wide + D, mask=both, other=0.0).to(tl.float32)
    dh = tl.load(dh_ptr + narrow, mask=both, other=0.0).to(tl.float32)
    sigma = tl.sigmoid(gate)
    act = gate * sigma
    half = for_q_ptr.dtype.element_ty
    tl.store(for_q_ptr + wide, (dh * up * sigma * (1 + gate * (1 - sigma))).to(half), mask=both)
    tl.store(for_q_ptr + wide + D, (dh * act).to(half), mask=both)
    tl.store(hidden_ptr + narrow, (act * up).to(half), mask=both)
