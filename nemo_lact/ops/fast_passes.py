"""Forward and backward pass of the fast memory over all chunks, as plain functions of tensors. fast.py calls them.

Weights, momenta and their gradients lie as [B, H, 3, d, d] in the order W0, W2, W1. C is the frames of a chunk: all T
of input that is shorter. Nothing waits for the GPU: both passes can be recorded as CUDA graphs.
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
    retained,
    row_stride,
    update,
)
from nemo_lact.ops.triton_backward import (
    gradient_backward_kernel,
    momentum_backward_kernel,
    normed_kernel,
    read_backward_kernel,
    rows_backward_kernel,
)
from nemo_lact.ops.triton_means import chunk_means_kernel, of_chunk_means_kernel

__all__ = ['INTERPRETED', 'PRODUCTS', 'backward_pass', 'chunk_means', 'forward_pass', 'of_chunk_means']

FEW = 48  # matrices up to which Newton-Schulz's backward is faster by torch's products than by a program each


def chunk_means(mu: Tensor, valid: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Mean of mu [B, H, T] over the valid [B, T] frames of each chunk, [B, H, n] fp32 (0 without any), and their
    number [B, n] int32. n is 1 at least.
    """
    batch, heads, total = mu.shape
    steps = max(1, triton.cdiv(total, chunk))
    mean = mu.new_empty((batch, heads, steps), dtype=torch.float32)
    frames = torch.empty((batch, steps), dtype=torch.int32, device=mu.device)
    spans = _spans(chunk)
    chunk_means_kernel[(batch, steps, heads)](
        mu, valid, mean, frames, total, chunk, *mu.stride(), *valid.stride(),
        PARTS=triton.cdiv(chunk, spans['BLOCK']), **spans,
    )  # fmt: skip
    return mean, frames


def of_chunk_means(d: Tensor, mu: Tensor, valid: Tensor, frames: Tensor, chunk: int) -> Tensor:
    """Gradient of mu from d [n, B, H, 3], parts of that of the means. frames: of `chunk_means`."""
    batch, heads, total = mu.shape
    d_mu = mu.new_empty(mu.shape)
    if total:
        spans = _spans(total)
        of_chunk_means_kernel[(batch * heads, triton.cdiv(total, spans['BLOCK']))](
            d, valid, frames, d_mu, heads, total, chunk, *valid.stride(), *frames.stride(), **spans
        )
    return d_mu


def _spans(frames: int) -> dict:
    return dict(BLOCK=min(1024, max(16, triton.next_power_of_2(frames))), num_warps=4)


def forward_pass(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    mu: Tensor,
    weights: Tensor,
    momentum: Tensor,
    lengths: Tensor,
    anchor: Tensor,
    valid: Tensor,
    frames: Tensor,
    chunk: int,
    bidirectional: bool,
    use_muon: bool,
    use_momentum: bool,
    retention: float,
    relevance: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The memory over all chunks. With `keep` T is one chunk's frames at most, or whole chunks.

    Args:
        q, k, v: [B, H, T, d] half precision.
        eta: [B, H, T, 3, 1] fp32. valid: [B, T] bool.
        mu: [B, H, n] mean gate of each chunk. frames: [B, n] int32 valid frames of each chunk.
        weights, momentum: [B or 1, H, 3, d, d] fp32. lengths: [H, 3, d].
        anchor: [H, 3, d, d], to which the weights go back before each step, also for its gradient; not read with
            `retention` 1.
        relevance: of `evidence`; eta is made for it.
        keep: keep what backward needs.

    Returns:
        out [B, H, T, d]; weights after the last chunk [B, H, 3, d, d]; momentum after each chunk [n, B, H, 3, d, d]
        (only the last, n = 1, without `keep`); with `keep` the row ratios [n, B, H, 3, d], the weights after each
        chunk in the products' dtype (in causal order also those before the first), and the factors of the gradients
        [n, B, H, C, 3, d]; else empty tensors.
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
    factors = q.new_empty((steps, batch, heads, min(chunk, total), 3, width) if keep else (0,), dtype=sizes.products)
    stored = steps if keep else min(steps, 2)  # without backward two buffers take turns
    ms, ratios = weights.new_empty((stored, *shape)), weights.new_empty((stored, *shape[:-1]))
    ws = [weights.new_empty(shape) for _ in range(min(steps, 2))]
    w, m = weights, momentum
    left = retained(frames, chunk, retention, relevance)  # [B, n, 1, 1, 1, 1]
    returned = None if left is None else weights.new_empty(shape)
    for index in range(steps):
        part = slice(index * chunk, min((index + 1) * chunk, total))
        before = halves[index + first - 1] if index + first else None
        to = factors[index] if keep else factors
        learner = w
        if left is not None:
            learner, before = torch.lerp(anchor, w.expand(shape), retention, out=returned), None
        chunk_gradient(sizes, shares, k, v, eta, valid, learner, before, part, gradient, to, keep)
        at = index % stored
        outs = (ms[at], ws[index % 2], halves[index + first], ratios[at])
        if left is not None:
            w = torch.lerp(anchor, w, left[:, index], out=returned)
        update(sizes, gradient, m if use_momentum else None, w, lengths, mu, frames, index, chunk, use_muon, outs)
        w, m = ws[index % 2], ms[at]
    out = read_chunks(sizes, q, halves, steps, chunk)
    if keep:
        return out, w, ms, ratios, halves, factors
    return out, w, m[None].clone(), weights.new_empty(0), halves.new_empty(0), factors


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
    retention: float,
    relevance: float,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, eta, mu (parts [n, B, H, 3], to be summed), weights, momentum, lengths, anchor.

    Those of q, k, v are contiguous; that of anchor is zero with `retention` 1.

    Only the steps of the weights go from chunk to chunk; the products before and after are of all chunks at once.

    Args:
        d_out, d_weights, d_momentum: gradients of `forward_pass`'s first three results; None is zero.
        inputs: its first eleven arguments. kept: its results from the third on.
    """
    q, k, v, eta, mu, weights, momentum, lengths, anchor, valid, frames = inputs
    ms, ratios, halves, factors = kept
    batch, heads, total, width = q.shape
    sizes = Sizes(width, q.device)
    rows, steps = batch * heads, frames.size(1)
    shape = (batch, heads, 3, width, width)
    # Frames as [n · B · H, C, d], weights as [n · B · H, .., d].
    q_, k_, v_, d_out = _by_chunks((q, k, v, torch.zeros_like(q) if d_out is None else d_out), steps, sizes.products)
    old, new = halves[:-1], halves[-steps:]  # before and after each chunk
    if bidirectional:
        old = torch.empty_like(new)
        old[0] = weights
        if steps > 1:
            old[1:] = new[:-1]
    left = retained(frames, chunk, retention, relevance)  # [B, n, 1, 1, 1, 1]
    if left is not None:  # what the gradients of the chunks were taken with
        faded = old if bidirectional else torch.empty_like(old)  # causal: a view of `halves`
        old = torch.add(anchor * (1 - retention), old, alpha=retention, out=faded)
    dq, read = _read_backward(sizes, q_, halves[:steps].view(-1, 3, width, width), d_out)
    read = read.view(steps, *shape)
    w02, w1 = old.view(-1, 3 * width, width)[:, : 2 * width], old.view(-1, 3, width, width)[:, 2]
    kw, vw = torch.bmm(k_, w02.mT), torch.bmm(v_, w1)
    z = torch.empty((steps * rows, 6, width, width), dtype=sizes.products, device=q.device)
    for_k, dh = torch.empty_like(kw), torch.empty_like(vw)

    dw = ms.new_empty(shape) if d_weights is None else d_weights.clone(memory_format=torch.contiguous_format)
    dm = ms.new_empty(shape if use_momentum else 0)
    d_lengths = dw.new_empty((batch, heads, 3, width))
    d_anchor = torch.zeros_like(anchor if left is None else dw)
    d_eta = eta.new_empty((batch, heads, total, 3))
    mu_parts = dw.new_empty((steps, batch, heads, 3))
    later = torch.empty((rows, 3, width, width), dtype=sizes.products, device=q.device)
    muon = _Orthogonalised(sizes, ms) if use_muon else None
    x = d = size = m_size = dw  # not read without Muon
    if use_muon:
        d, size = torch.empty(shape, dtype=torch.float16, device=q.device), dw.new_empty((rows, 3))
    for index in reversed(range(steps)):
        m_old, first = ms[index - 1] if index else momentum, index == steps - 1
        if use_momentum and d_momentum is not None:
            dm = d_momentum[index].contiguous() + (0 if first else dm)
        # parts of the gradient of the new weights: of the read with them, and of the chunk that learned from them
        now = read[index] if bidirectional else None if first else read[index + 1]
        rows_backward_kernel[(rows, 3)](
            dw, dw if now is None else now, later, new[index], ratios[index], lengths, frames[:, index], d_lengths,
            d, size, heads, frames.stride(0), 1 / chunk,
            MUON=use_muon, GIVEN=not first or d_weights is not None, READ=now is not None, LATER=not first,
            **sizes.rows,
        )  # fmt: skip
        dx = dw
        if use_muon:
            x, m_size = muon.x[index], muon.size[index]
            dx = muon.backward(index, d)
        at = slice(index * rows, (index + 1) * rows)
        momentum_backward_kernel[(rows, 3)](
            dx, x, size, m_size, dw, dm, m_old, mu[:, :, index], frames[:, index], z[at], mu_parts[index],
            heads, row_stride(m_old), mu.stride(0), mu.stride(1), frames.stride(0),
            MUON=use_muon, MOMENTUM=use_momentum, GIVEN=not first or d_momentum is not None, **sizes.rows,
        )  # fmt: skip
        if left is not None:  # of what the step started from
            d_anchor.addcmul_(dw, 1 - left[:, index])
            dw *= left[:, index]
        _gradient_backward(
            sizes, k_[at], v_[at], z[at], kw[at], vw[at], factors[index], eta, valid, index, for_k[at], dh[at], d_eta,
            later,
        )  # fmt: skip
        if left is not None:  # of what the chunk's gradient was taken with
            d_anchor.view_as(later).add_(later, alpha=1 - retention)
            later *= retention

    of_k, of_v = factors.view(*kw.shape[:2], -1).split((2 * width, width), dim=-1)
    dk = torch.bmm(of_k, z[:, 2:4].flatten(1, 2))
    dk.baddbmm_(of_k, z[:, :2].flatten(1, 2)).baddbmm_(for_k, w02)
    dv = torch.bmm(of_v, z[:, 5].mT)
    dv.baddbmm_(of_v, z[:, 4].mT).baddbmm_(dh, w1.mT)
    dw += later.view(shape)
    if not bidirectional:
        dw += read[0]
    if weights.size(0) != batch:
        dw = dw.sum(dim=0, keepdim=True)
    if not use_momentum:
        dm = torch.zeros_like(momentum)
    elif momentum.size(0) != batch:
        dm = dm.sum(dim=0, keepdim=True)
    dq, dk, dv = (_in_time(x, q) for x in (dq, dk, dv))
    d_anchor = d_anchor if left is None else d_anchor.sum(dim=0)
    d_mu = mu_parts if use_momentum else torch.zeros_like(mu_parts)
    return dq, dk, dv, d_eta[..., None], d_mu, dw, dm, d_lengths.sum(dim=0), d_anchor


class _Orthogonalised:
    """Backward of orthogonalising all chunks' momenta [n, B, H, 3, d, d]. x: what went in, size: their norms."""

    def __init__(self, sizes: Sizes, momenta: Tensor):
        steps, width = momenta.size(0), sizes.width
        self.sizes = sizes
        self.size = momenta.new_empty(momenta.shape[:-2])
        self.x = torch.empty(momenta.shape, dtype=torch.float16, device=momenta.device)
        normed_kernel[(self.size.numel(),)](momenta, self.x, self.size, **sizes.rows)
        self.x = self.x.view(steps, -1, width, width)
        self.few = self.x.size(1) <= FEW
        if self.few:
            kept = newton_schulz_half.steps(self.x.flatten(0, 1))
            self.kept = [[tensor.view(self.x.shape) for tensor in step] for step in kept]

    def backward(self, index: int, d: Tensor) -> Tensor:
        """Of chunk `index`; d [B, H, 3, d, d] fp16, may be overwritten."""
        x, d = self.x[index], d.view(self.x.shape[1:])
        if self.few:
            return newton_schulz_half.backward([[tensor[index] for tensor in step] for step in self.kept], d)
        if not self.sizes.hopper:
            return newton_schulz_half.backward(newton_schulz_half.steps(x), d)
        tiles = self.sizes.hopper['NT']
        steps = x.new_empty((x.size(0), 5, tiles * tiles, 64, 64))
        products = x.new_empty((x.size(0), tiles * (tiles + 1) // 2, 64, 64))
        options = {**self.sizes.hopper, 'num_warps': 8}
        hopper.newton_schulz_backward_kernel[(x.size(0),)](x, d, steps, products, **options)
        return d


def _by_chunks(tensors: tuple[Tensor, ...], steps: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Each [B, H, T, d] -> [n · B · H, C, d]."""
    if steps == 1:  # one launch for all
        together = torch.cat(tensors).to(dtype)
        return together.view(len(tensors), -1, *together.shape[2:]).unbind()
    tensors = (x.to(dtype).unflatten(2, (steps, -1)).permute(2, 0, 1, 3, 4) for x in tensors)
    return tuple(x.reshape(-1, *x.shape[3:]) for x in tensors)


def _in_time(x: Tensor, like: Tensor) -> Tensor:
    """[n · B · H, C, d] -> [B, H, T, d] in the dtype of `like`, contiguous."""
    if x.size(1) == like.size(2):
        return x.view(like.shape).to(like.dtype)
    result = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    chunks = result.unflatten(2, (-1, x.size(1))).permute(2, 0, 1, 3, 4)
    chunks.copy_(x.view(chunks.shape))
    return result


def _read_backward(sizes: Sizes, q: Tensor, half: Tensor, d_out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of q [N, C, d] and of the weights that it was read with, half [N, 3, d, d]."""
    width = sizes.width
    w02, w1 = half[:, :2].flatten(1, 2), half[:, 2]
    qw = torch.bmm(q, w02.mT)
    dh = torch.bmm(d_out, w1)
    for_q, hidden = torch.empty_like(qw), torch.empty_like(dh)
    rows = q.size(0) * q.size(1)
    read_backward_kernel[(triton.cdiv(rows, sizes.elements['BLOCK_T']),)](qw, dh, for_q, hidden, rows, **sizes.elements)
    dw = torch.empty_like(half)
    torch.bmm(for_q.mT, q, out=dw[:, :2].view(-1, 2 * width, width))
    torch.bmm(d_out.mT, hidden, out=dw[:, 2])
    return torch.bmm(for_q, w02), dw


def _gradient_backward(sizes: Sizes, k, v, z, kw, vw, factors, eta, valid, index, for_k, dh, d_eta, dw) -> None:
    """Of one chunk: fills for_k and dh, d_eta's part, and dw [B · H, 3, d, d], the gradient of the old weights."""
    width = sizes.width
    rows, frames = k.shape[:2]
    kz = torch.bmm(k, z[:, :4].flatten(1, 2).mT)
    vg, vg_rest = torch.bmm(v, z[:, 4]), torch.bmm(v, z[:, 5])
    gradient_backward_kernel[(rows, triton.cdiv(frames, sizes.elements['BLOCK_T']))](
        kz, kw, vw, vg, vg_rest, factors, eta, valid, for_k, dh, d_eta,
        eta.size(1), frames, index * frames, *eta.stride()[:4], valid.stride(0), d_eta.stride(1), **sizes.elements,
    )  # fmt: skip
    torch.bmm(for_k.mT, k, out=dw[:, :2].view(-1, 2 * width, width))
    torch.bmm(v.mT, dh, out=dw[:, 2])
