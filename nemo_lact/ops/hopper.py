"""The memory's step and its backward on Hopper GPUs: a matrix per program, Newton-Schulz wholly in shared memory.

A matrix is NT × NT tiles of 64 × 64 in fp16, the shape of one swizzled block that the tensor cores read; symmetric
ones keep the lower tiles only. Products run asynchronously: the next tile is summed while the last is rounded and
stored. Scales (256, and 16 for gradients) as in newton_schulz_half.py, which has the same equations in plain torch.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

_barrier = gl.thread_barrier if hasattr(gl, 'thread_barrier') else gl.barrier  # its name in Triton 3.6, and since
MAX_TILES = 3  # heads up to 192 wide: 168 KiB of shared memory forward, 216 KiB backward


@gluon.constexpr_function
def _row(t):
    i = 0
    while (i + 1) * (i + 2) // 2 <= t:
        i += 1
    return i


@gluon.constexpr_function
def _column(t):
    i = 0
    while (i + 1) * (i + 2) // 2 <= t:
        i += 1
    return t - i * (i + 1) // 2


@gluon.constexpr_function
def _place(i, j):
    return max(i, j) * (max(i, j) + 1) // 2 + min(i, j)


@gluon.jit
def _symmetric(a, i: gl.constexpr, j: gl.constexpr):
    """Tile (i, j) of a symmetric matrix kept as its lower tiles."""
    tile = a.index(_place(i, j))
    if i < j:
        tile = tile.permute((1, 0))
    return tile


@gluon.jit
def _x_yt(acc, x, y, i: gl.constexpr, j: gl.constexpr, NT: gl.constexpr, ADD: gl.constexpr):
    """Tile (i, j) of X Yᵀ."""
    for k in gl.static_range(NT):
        b = y.index(j * NT + k).permute((1, 0))
        acc = warpgroup_mma(x.index(i * NT + k), b, acc, use_acc=ADD or k > 0, is_async=True)
    return acc


@gluon.jit
def _s_t(acc, s, t, i: gl.constexpr, j: gl.constexpr, NT: gl.constexpr, ADD: gl.constexpr):
    """Tile (i, j) of S T, both symmetric."""
    for k in gl.static_range(NT):
        acc = warpgroup_mma(_symmetric(s, i, k), _symmetric(t, k, j), acc, use_acc=ADD or k > 0, is_async=True)
    return acc


@gluon.jit
def _s_x(s, x, i: gl.constexpr, j: gl.constexpr, STRIDE: gl.constexpr, NT: gl.constexpr, mma: gl.constexpr):
    """Tile (i, j) of S X, S symmetric; tile (k, j) of X lies at k · STRIDE + j."""
    acc = gl.zeros([64, 64], gl.float32, layout=mma)
    for k in gl.static_range(NT):
        acc = warpgroup_mma(_symmetric(s, i, k), x.index(k * STRIDE + j), acc, use_acc=k > 0, is_async=True)
    return acc


@gluon.jit
def _published():
    """What was stored to shared memory may be read by the tensor cores, of all warps."""
    fence_async_shared()
    _barrier()


@gluon.jit
def _coefficients(step):
    a = gl.where(step == 0, 4.0848, gl.where(step == 1, 3.9505, gl.where(step == 2, 3.7418, 2.8769)))
    b = gl.where(step == 0, -6.8946, gl.where(step == 1, -6.3029, gl.where(step == 2, -5.5913, -3.1427)))
    c = gl.where(step == 0, 2.9270, gl.where(step == 1, 2.6377, gl.where(step == 2, 2.3037, 1.2046)))
    return gl.where(step == 4, 2.8366, a), gl.where(step == 4, -3.0525, b), gl.where(step == 4, 1.2012, c)


@gluon.jit
def _gram(x, a, NT: gl.constexpr, mma: gl.constexpr):
    """A = X Xᵀ."""
    TILES: gl.constexpr = NT * (NT + 1) // 2
    acc = _x_yt(gl.zeros([64, 64], gl.float32, layout=mma), x, x, 0, 0, NT, False)
    for t in gl.static_range(1, TILES):
        after = _x_yt(gl.zeros([64, 64], gl.float32, layout=mma), x, x, _row(t), _column(t), NT, False)
        a.index(t - 1).store((warpgroup_mma_wait(NT, [acc]) * (1 / 256)).to(gl.float16))
        acc = after
    a.index(TILES - 1).store((warpgroup_mma_wait(0, [acc]) * (1 / 256)).to(gl.float16))
    _published()


@gluon.jit
def _polynomial_tile(a, p, t: gl.constexpr, acc, ca, cb, cc, mma: gl.constexpr):
    value = cc * (1 / 256) * acc + cb * a.index(t).load(mma).to(gl.float32)
    if _row(t) == _column(t):
        r = gl.arange(0, 64, layout=gl.SliceLayout(1, mma))
        c = gl.arange(0, 64, layout=gl.SliceLayout(0, mma))
        value += gl.where(r[:, None] == c[None, :], ca * 256, 0.0)
    p.index(t).store(value.to(gl.float16))


@gluon.jit
def _newton_schulz_step(x, a, p, step, NT: gl.constexpr, mma: gl.constexpr):
    """X <- P X with P = a I + b A + c A², A = X Xᵀ; x, a, p in shared memory."""
    TILES: gl.constexpr = NT * (NT + 1) // 2
    ca, cb, cc = _coefficients(step)
    _gram(x, a, NT, mma)
    acc = _s_t(gl.zeros([64, 64], gl.float32, layout=mma), a, a, 0, 0, NT, False)
    for t in gl.static_range(1, TILES):
        after = _s_t(gl.zeros([64, 64], gl.float32, layout=mma), a, a, _row(t), _column(t), NT, False)
        _polynomial_tile(a, p, t - 1, warpgroup_mma_wait(NT, [acc]), ca, cb, cc, mma)
        acc = after
    _polynomial_tile(a, p, TILES - 1, warpgroup_mma_wait(0, [acc]), ca, cb, cc, mma)
    _published()
    for j in gl.static_range(NT):  # a column of X is replaced once all products with it are done
        y0 = _s_x(p, x, 0, j, NT, NT, mma)
        if NT > 1:
            y1 = _s_x(p, x, 1, j, NT, NT, mma)
        if NT > 2:
            y2 = warpgroup_mma_wait(0, [_s_x(p, x, 2, j, NT, NT, mma)])
        if NT > 1:
            y1 = warpgroup_mma_wait(0, [y1])
        y0 = warpgroup_mma_wait(0, [y0])
        _barrier()
        x.index(j).store((y0 * (1 / 256)).to(gl.float16))
        if NT > 1:
            x.index(NT + j).store((y1 * (1 / 256)).to(gl.float16))
        if NT > 2:
            x.index(2 * NT + j).store((y2 * (1 / 256)).to(gl.float16))
    _published()


@gluon.jit
def update_kernel(
    g_ptr, m_ptr, w_ptr, len_ptr, mu_ptr, frames_ptr, m_out_ptr, w_out_ptr, half_ptr, ratio_ptr,
    heads, w_b, m_b, len_b, split_stride, mu_b, mu_h, frames_b, inverse_chunk,
    D: gl.constexpr, NT: gl.constexpr, SPLITS: gl.constexpr, MOMENTUM: gl.constexpr,
):  # fmt: skip
    """As update_kernel of triton_forward.py with MUON, 4 warps."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, gl.num_warps() // 4], [16, 256 // gl.num_warps(), 16])
    shared: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    TILES: gl.constexpr = NT * (NT + 1) // 2
    x = gl.allocate_shared_memory(gl.float16, [NT * NT, 64, 64], shared)
    a = gl.allocate_shared_memory(gl.float16, [TILES, 64, 64], shared)
    p = gl.allocate_shared_memory(gl.float16, [TILES, 64, 64], shared)
    bh = gl.program_id(0).to(gl.int64)
    which = gl.program_id(1)
    b = bh // heads
    h = bh % heads
    own = (bh * 3 + which) * D * D
    frames = gl.load(frames_ptr + b * frames_b)
    learn = frames > 0
    mu = 0.0
    if MOMENTUM:
        mu = gl.load(mu_ptr + b * mu_b + h * mu_h)
    r = gl.arange(0, 64, layout=gl.SliceLayout(1, mma))
    c = gl.arange(0, 64, layout=gl.SliceLayout(0, mma))
    squares = gl.zeros([64, 64], gl.float32, layout=mma)
    from_m = b * m_b + (h * 3 + which) * D * D
    for t in range(NT * NT):
        rows = t // NT * 64 + r
        columns = t % NT * 64 + c
        within = rows[:, None] * D + columns[None, :]
        at = own + within
        inside = (rows < D)[:, None] & (columns < D)[None, :]
        new = gl.load(g_ptr + at, mask=inside, other=0.0)
        for split in gl.static_range(1, SPLITS):
            new += gl.load(g_ptr + split * split_stride + at, mask=inside, other=0.0)
        if MOMENTUM:
            old = gl.load(m_ptr + from_m + within, mask=inside, other=0.0)
            new = gl.where(learn, new + mu * old, old)
        squares += new * new
        gl.store(m_out_ptr + at, new, mask=inside)
    inverse = 256.0 / gl.sqrt(gl.sum(gl.sum(squares, 1), 0) + 1e-14)
    for t in range(NT * NT):  # each thread reads what it wrote
        rows = t // NT * 64 + r
        columns = t % NT * 64 + c
        at = own + rows[:, None] * D + columns[None, :]
        inside = (rows < D)[:, None] & (columns < D)[None, :]
        x.index(t).store((gl.load(m_out_ptr + at, mask=inside, other=0.0) * inverse).to(gl.float16))
    _published()
    for step in range(5):
        _newton_schulz_step(x, a, p, step, NT, mma)
    gain = gl.minimum(frames.to(gl.float32) * inverse_chunk, 1.0) * (1 / 256)
    from_w = b * w_b + (h * 3 + which) * D * D
    for i in range(NT):
        rows = i * 64 + r
        row_squares = gl.zeros([64], gl.float32, layout=gl.SliceLayout(1, mma))
        for j in range(NT):
            columns = j * 64 + c
            within = rows[:, None] * D + columns[None, :]
            inside = (rows < D)[:, None] & (columns < D)[None, :]
            new = gl.load(w_ptr + from_w + within, mask=inside, other=0.0)
            new += gain * x.index(i * NT + j).load(mma).to(gl.float32)
            row_squares += gl.sum(new * new, 1)
        length = gl.load(len_ptr + b * len_b + (h * 3 + which) * D + rows, mask=rows < D, other=0.0)
        ratio = gl.where(learn, length / gl.sqrt(row_squares + 1e-12), 1.0)
        gl.store(ratio_ptr + (bh * 3 + which) * D + rows, ratio, mask=rows < D)
        for j in range(NT):
            columns = j * 64 + c
            within = rows[:, None] * D + columns[None, :]
            inside = (rows < D)[:, None] & (columns < D)[None, :]
            old = gl.load(w_ptr + from_w + within, mask=inside, other=0.0)
            new = old + gain * x.index(i * NT + j).load(mma).to(gl.float32)
            new = gl.where(learn, new * ratio[:, None], old)
            gl.store(w_out_ptr + own + within, new, mask=inside)
            gl.store(half_ptr + own + within, new.to(half_ptr.dtype.element_ty), mask=inside)


@gluon.jit
def _load_tiles(to, ptr, D: gl.constexpr, NT: gl.constexpr, mma: gl.constexpr):
    """A matrix [D, D] fp16 from global memory."""
    r = gl.arange(0, 64, layout=gl.SliceLayout(1, mma))
    c = gl.arange(0, 64, layout=gl.SliceLayout(0, mma))
    for t in range(NT * NT):
        rows = t // NT * 64 + r
        columns = t % NT * 64 + c
        inside = (rows < D)[:, None] & (columns < D)[None, :]
        to.index(t).store(gl.load(ptr + rows[:, None] * D + columns[None, :], mask=inside, other=0.0))


@gluon.jit
def newton_schulz_backward_kernel(
    x_ptr, d_ptr, steps_ptr, s_ptr, D: gl.constexpr, NT: gl.constexpr
):  # fmt: skip
    """newton_schulz_half.backward for one matrix, 4 warps: x, d [N, d, d] fp16, d becomes the gradient.

    Scratch: steps [N, 5, NT², 64, 64] fp16 (X before each step), s [N, tiles, 64, 64] fp16.
    """
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, gl.num_warps() // 4], [16, 256 // gl.num_warps(), 16])
    shared: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    TILES: gl.constexpr = NT * (NT + 1) // 2
    x = gl.allocate_shared_memory(gl.float16, [NT * NT, 64, 64], shared)
    d = gl.allocate_shared_memory(gl.float16, [NT * NT, 64, 64], shared)
    a = gl.allocate_shared_memory(gl.float16, [TILES, 64, 64], shared)
    u = gl.allocate_shared_memory(gl.float16, [NT, 64, 64], shared)
    n = gl.program_id(0).to(gl.int64)
    r = gl.arange(0, 64, layout=gl.SliceLayout(1, mma))
    c = gl.arange(0, 64, layout=gl.SliceLayout(0, mma))
    flat = r[:, None] * 64 + c[None, :]
    steps_ptr += n * 5 * NT * NT * 4096
    s_ptr += n * TILES * 4096
    d_ptr += n * D * D
    _load_tiles(x, x_ptr + n * D * D, D, NT, mma)
    _published()
    for step in range(5):
        for t in range(NT * NT):
            gl.store(steps_ptr + (step * NT * NT + t) * 4096 + flat, x.index(t).load(mma))
        if step < 4:
            _newton_schulz_step(x, a, d, step, NT, mma)  # d's tiles serve as room for the polynomial
    for back in range(5):
        ca, cb, cc = _coefficients(4 - back)
        _barrier()
        for t in range(NT * NT):
            x.index(t).store(gl.load(steps_ptr + ((4 - back) * NT * NT + t) * 4096 + flat))
        _load_tiles(d, d_ptr, D, NT, mma)
        _published()
        _gram(x, a, NT, mma)
        # S = dY Xᵀ + X dYᵀ, to scratch
        for t in gl.static_range(TILES):
            acc = _x_yt(gl.zeros([64, 64], gl.float32, layout=mma), d, x, _row(t), _column(t), NT, False)
            acc = warpgroup_mma_wait(0, [_x_yt(acc, x, d, _row(t), _column(t), NT, True)])
            gl.store(s_ptr + t * 4096 + flat, (acc * (1 / 256)).to(gl.float16))
        # P dY = a dY + b U + c A U with U = A dY, column by column, to d in global memory
        for j in gl.static_range(NT):
            for i in gl.static_range(NT):
                value = warpgroup_mma_wait(0, [_s_x(a, d, i, j, NT, NT, mma)])
                u.index(i).store((value * (1 / 256)).to(gl.float16))
            _published()
            for i in gl.static_range(NT):
                value = warpgroup_mma_wait(0, [_s_x(a, u, i, 0, 1, NT, mma)])
                value = value * (cc * (1 / 256)) + cb * u.index(i).load(mma).to(gl.float32)
                value += ca * d.index(i * NT + j).load(mma).to(gl.float32)
                rows = i * 64 + r
                columns = j * 64 + c
                inside = (rows < D)[:, None] & (columns < D)[None, :]
                gl.store(d_ptr + rows[:, None] * D + columns[None, :], value.to(gl.float16), mask=inside)
            _barrier()
        # dY is not needed any more: S takes its first tiles. Q = b S + c (S A + A S), over S tile by tile in scratch.
        for t in range(TILES):
            d.index(t).store(gl.load(s_ptr + t * 4096 + flat))
        _published()
        for t in gl.static_range(TILES):
            acc = _s_t(gl.zeros([64, 64], gl.float32, layout=mma), d, a, _row(t), _column(t), NT, False)
            acc = warpgroup_mma_wait(0, [_s_t(acc, a, d, _row(t), _column(t), NT, True)])
            value = acc * (cc * (1 / 256)) + cb * d.index(t).load(mma).to(gl.float32)
            gl.store(s_ptr + t * 4096 + flat, value.to(gl.float16))
        _barrier()
        for t in range(TILES):
            d.index(t).store(gl.load(s_ptr + t * 4096 + flat))
        _published()
        # dX = P dY + Q X
        for j in gl.static_range(NT):
            for i in gl.static_range(NT):
                value = warpgroup_mma_wait(0, [_s_x(d, x, i, j, NT, NT, mma)]) * (1 / 256)
                rows = i * 64 + r
                columns = j * 64 + c
                inside = (rows < D)[:, None] & (columns < D)[None, :]
                to = d_ptr + rows[:, None] * D + columns[None, :]
                value += gl.load(to, mask=inside, other=0.0).to(gl.float32)
                gl.store(to, value.to(gl.float16), mask=inside)
