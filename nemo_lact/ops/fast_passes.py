"""Forward and backward pass of the fast memory over all chunks, as plain functions of tensors. fast.py calls them.

Weights, momenta and their gradients lie as [B, H, 3, d, d] in the order W0, W2, W1.
"""

import torch
import triton
from torch import Tensor

from nemo_lact.ops import newton_schulz_half
from nemo_lact.ops.fast_launches import (
    INTERPRETED,
    PRODUCTS,
    Sizes,
    chunk_gradient,
    hopper,
    read_chunks,
    row_stride,
    update,
)
from nemo_lact.ops.triton_backward import (
    gradient_backward_kernel,
    momentum_backward_kernel,
    read_backward_kernel,
    rows_backward_kernel,
)

__all__ = ['INTERPRETED', 'PRODUCTS', 'backward_pass', 'forward_pass']


def forward_pass(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    mu: Tensor,
    weights: Tensor,
    momentum: Tensor,
    lengths: Tensor,
    valid: Tensor,
    frames: Tensor,
    chunk: int,
    bidirectional: bool,
    use_muon: bool,
    use_momentum: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The memory over all chunks.

    Args:
        q, k, v: [B, H, T, d] half precision.
        eta: [B, H, T, 3, 1] fp32. valid: [B, T] bool.
        mu: [B, H, n] mean gate of each chunk. frames: [B, n] int32 valid frames of each chunk.
        weights, momentum: [B or 1, H, 3, d, d] fp32. lengths: [H, 3, d].
        keep: keep what backward needs.

    Returns:
        out [B, H, T, d]; weights and momentum after each chunk [n, B, H, 3, d, d] (only the last, n = 1, without
        `keep`); with `keep` the row ratios [n, B, H, 3, d], the weights that were read in the products' dtype, and
        the factors of the gradients [B, H, T, 3, d]; else empty tensors.
    """
    batch, heads, total, width = q.shape
    sizes = Sizes(width, q.device)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    weights, momentum = weights.contiguous(), momentum.contiguous()
    steps = frames.size(1)
    shape = (batch, heads, 3, width, width)
    # The weights each chunk is read with: for products only, so in their dtype.
    first = 0 if bidirectional else 1
    halves = q.new_empty((steps + first, *shape), dtype=sizes.products)
    if not bidirectional:
        halves[0] = weights
    shares = sizes.shares(batch * heads, min(chunk, total))
    gradient = weights.new_empty((shares[0][2], *shape))
    factors = q.new_empty((batch, heads, total, 3, width) if keep else (0,), dtype=sizes.products)
    stored = steps if keep else min(steps, 2)  # without backward two buffers take turns
    ws, ms = weights.new_empty((stored, *shape)), weights.new_empty((stored, *shape))
    ratios = weights.new_empty((stored, *shape[:-1]))
    w, m = weights, momentum
    for index in range(steps):
        start, end = index * chunk, min((index + 1) * chunk, total)
        before = halves[index + first - 1] if index + first else None
        part = slice(start, end)
        chunk_gradient(sizes, shares, k, v, eta, valid, w, before, part, gradient, factors, keep)
        at = index % stored
        outs = (ms[at], ws[at], halves[index + first], ratios[at])
        update(sizes, gradient, m if use_momentum else None, w, lengths, mu, frames, index, chunk, use_muon, outs)
        w, m = ws[at], ms[at]
    out = read_chunks(sizes, q, halves, steps, chunk)
    if keep:
        return out, ws, ms, ratios, halves, factors
    last = slice((steps - 1) % stored, (steps - 1) % stored + 1)
    nothing = [weights.new_empty(0), halves.new_empty(0), factors]
    return out, ws[last].clone(), ms[last].clone(), *nothing


def backward_pass(
    d_out: Tensor | None,
    d_weights: Tensor | None,
    d_momentum: Tensor | None,
    inputs: tuple[Tensor, ...],
    kept: tuple[Tensor, ...],
    chunk: int,
    bidirectional: bool,
    use_muon: bool,
    use_momentum: bool,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, eta, mu, weights, momentum, lengths.

    Args:
        d_out, d_weights, d_momentum: gradients of `forward_pass`'s first three results; None is zero.
        inputs: its first ten arguments. kept: its results but the first.
    """
    q, k, v, eta, mu, weights, momentum, lengths, valid, frames = inputs
    ws, ms, ratios, halves, factors = kept
    batch, heads, total, width = q.shape
    sizes = Sizes(width, q.device)
    rows, steps = batch * heads, frames.size(1)
    shape = (batch, heads, 3, width, width)

    dw, dm = ws.new_zeros(shape), ws.new_zeros(shape if use_momentum else 0)
    d_out = torch.zeros_like(q) if d_out is None else d_out
    d_lengths = dw.new_zeros((batch, heads, 3, width))
    d_eta = eta.new_zeros((batch, heads, total, 3))
    d_mu = torch.zeros_like(mu)
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    later, after = None, None  # parts of the gradient of the new weights
    for index in reversed(range(steps)):
        w_old, m_old = (ws[index - 1], ms[index - 1]) if index else (weights, momentum)
        part = slice(index * chunk, min((index + 1) * chunk, total))
        if d_weights is not None:
            dw += d_weights[index]
        if use_momentum and d_momentum is not None:
            dm += d_momentum[index]
        read = _read_backward(sizes, q[:, :, part], halves[index], d_out[:, :, part], dq[:, :, part])
        x = d = size = dw
        if use_muon:
            x, d = (torch.empty(shape, dtype=torch.float16, device=q.device) for _ in range(2))
            size = dw.new_empty((rows, 3, 2))
        now = read if bidirectional else after
        rows_backward_kernel[(rows, 3)](
            dw, dw if now is None else now, dw if later is None else later, ws[index], ratios[index], lengths,
            ms[index], frames[:, index], d_lengths, x, d, size, heads, frames.stride(0), 1 / chunk,
            MUON=use_muon, READ=now is not None, LATER=later is not None, **sizes.rows,
        )  # fmt: skip
        if use_muon:
            d = _newton_schulz_backward(sizes, x.view(-1, width, width), d.view(-1, width, width))
        z = torch.empty((rows, 9, width, width), dtype=sizes.products, device=q.device)
        mu_parts = dw.new_empty((rows, 3))
        momentum_backward_kernel[(rows, 3)](
            d, x, size, dw, dm, m_old, w_old, mu[:, :, index], frames[:, index], z, mu_parts,
            heads, row_stride(m_old), row_stride(w_old), mu.stride(0), mu.stride(1), frames.stride(0),
            MUON=use_muon, MOMENTUM=use_momentum, **sizes.rows,
        )  # fmt: skip
        if use_momentum:
            d_mu[:, :, index] = mu_parts.sum(dim=-1).view(batch, heads)
        later = _gradient_backward(sizes, k, v, eta, valid, factors, z, part, dk, dv, d_eta)
        after = read
    parts = [dw, later] if bidirectional else [dw, later, after]
    if weights.size(0) != batch:
        parts = [part.view(shape).sum(dim=0, keepdim=True, dtype=torch.float32) for part in parts]
    dw = sum(part.view(parts[0].shape) for part in parts)
    if not use_momentum:
        dm = torch.zeros_like(momentum)
    elif momentum.size(0) != batch:
        dm = dm.sum(dim=0, keepdim=True)
    return dq, dk, dv, d_eta[..., None], d_mu, dw, dm, d_lengths.sum(dim=0)


def _newton_schulz_backward(sizes: Sizes, x: Tensor, d: Tensor) -> Tensor:
    if not sizes.hopper:
        return newton_schulz_half.backward(x, d)
    tiles = sizes.hopper['NT']
    steps = x.new_empty((x.size(0), 5, tiles * tiles, 64, 64))
    products = x.new_empty((x.size(0), tiles * (tiles + 1) // 2, 64, 64))
    hopper.newton_schulz_backward_kernel[(x.size(0),)](x, d, steps, products, **{**sizes.hopper, 'num_warps': 8})
    return d


def _read_backward(sizes: Sizes, q: Tensor, half: Tensor, d_out: Tensor, dq: Tensor) -> Tensor:
    """Writes dq, returns the gradient of the weights [B·H, 3, d, d] in the products' dtype."""
    width, frames = sizes.width, q.size(2)
    q, d_out = (x.to(sizes.products).reshape(-1, frames, width) for x in (q, d_out))  # [B·H, C, d]
    half = half.reshape(-1, 3, width, width)
    w02, w1 = half[:, :2].reshape(-1, 2 * width, width), half[:, 2]
    qw = torch.bmm(q, w02.mT)
    dh = torch.bmm(d_out, w1)
    for_q, hidden = torch.empty_like(qw), torch.empty_like(dh)
    rows = q.size(0) * frames
    read_backward_kernel[(triton.cdiv(rows, sizes.elements['BLOCK_T']),)](qw, dh, for_q, hidden, rows, **sizes.elements)
    dq.copy_(torch.bmm(for_q, w02).view(dq.shape))
    dw = torch.empty_like(half)
    dw[:, :2] = torch.bmm(for_q.mT, q).view(-1, 2, width, width)
    dw[:, 2] = torch.bmm(d_out.mT, hidden)
    return dw


def _gradient_backward(sizes: Sizes, k, v, eta, valid, factors, z, part, dk, dv, d_eta) -> Tensor:
    """Writes dk, dv and d_eta of one chunk, returns the gradient of the old weights [B·H, 3, d, d]."""
    width, heads = sizes.width, k.size(1)
    shape = k[:, :, part].shape
    frames = shape[2]
    k_, v_ = (x[:, :, part].to(sizes.products).reshape(-1, frames, width) for x in (k, v))
    # z: g0, g2, g0', g2', W0, W2 stacked, then g1, g1', W1
    stacked, g1, g1_rest, w1 = z[:, :6].reshape(-1, 6 * width, width), z[:, 6], z[:, 7], z[:, 8]
    kz = torch.bmm(k_, stacked.mT)
    vw, vg, vg_rest = torch.bmm(v_, w1), torch.bmm(v_, g1), torch.bmm(v_, g1_rest)
    for_k, dh = kz.new_empty((k_.size(0), frames, 2 * width)), torch.empty_like(vw)
    grid = (k_.size(0), triton.cdiv(frames, sizes.elements['BLOCK_T']))
    gradient_backward_kernel[grid](
        kz, vw, vg, vg_rest, factors, eta, valid, for_k, dh, d_eta,
        heads, frames, part.start, factors.stride(1), *eta.stride()[:4], valid.stride(0), d_eta.stride(1),
        **sizes.elements,
    )  # fmt: skip
    mine = factors[:, :, part].reshape(k_.size(0), frames, 3 * width)
    of_k, of_v = mine[..., : 2 * width], mine[..., 2 * width :]
    dk_ = torch.bmm(of_k, stacked[:, 2 * width : 4 * width])
    dk_ = torch.baddbmm(dk_, of_k, stacked[:, : 2 * width])
    dk[:, :, part] = torch.baddbmm(dk_, for_k, stacked[:, 4 * width :]).view(shape)
    dv_ = torch.baddbmm(torch.bmm(of_v, g1_rest.mT), of_v, g1.mT)
    dv[:, :, part] = torch.baddbmm(dv_, dh, w1.mT).view(shape)
    dw = torch.empty((k_.size(0), 3, width, width), dtype=sizes.products, device=k.device)
    dw[:, :2] = torch.bmm(for_k.mT, k_).view(-1, 2, width, width)
    dw[:, 2] = torch.bmm(v_.mT, dh)
    return dw
