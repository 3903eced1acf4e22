"""The causal memory fed in pieces of any size: a chunk's gradient gathers until the chunk is full.

Each row of the batch stands somewhere else in its chunk. `lact_swiglu_step` in any partition of the input equals
`lact_swiglu_reference` in causal mode over the whole.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_lact.ops.fast_weights import FastWeights, chunk_gradient, exact, faded, forgetting, read, update, zeros_like


class Pending(NamedTuple):
    """What an unfinished chunk has gathered: the sum of its frames' gradients and of their momentum gates.

    gradient: as the weights, [B, H, ., .]; mu: [B, H].
    """

    gradient: FastWeights
    mu: Tensor


def lact_swiglu_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    mu: Tensor,
    valid: Tensor,
    weights: FastWeights,
    momentum: FastWeights,
    lengths: FastWeights,
    pending: Pending,
    filled: Tensor,
    chunk_size: int,
    use_muon: bool = True,
    use_momentum: bool = True,
    last_filled: int | None = None,
    anchor: FastWeights | None = None,
    retention: float = 1.0,
) -> tuple[Tensor, FastWeights, FastWeights, Pending]:
    """Read T new frames, gather their gradients, and take a step of the memory where a chunk becomes full.

    Args:
        q, k, v, eta, mu, weights, momentum, lengths, chunk_size, anchor, retention: as `lact_swiglu_reference`.
        valid: [B, T] bool; the valid frames of a row come first. Padding is neither learned from nor counted.
        pending: what the unfinished chunks have gathered; zeros where a chunk has just begun.
        filled: [B] int64, frames of the unfinished chunk so far, below `chunk_size`.
        last_filled: largest of `filled` plus the row's valid frames, if known: it saves a look at the device.

    Returns:
        Read [B, H, T, d], weights, momentum, pending. The new `filled` is (filled + valid frames) % chunk_size.
    """
    eta = eta * valid[:, None, :, None, None].to(eta.dtype)
    frames = valid.sum(dim=1)  # [B]
    piece = (filled[:, None] + torch.arange(q.size(2), device=q.device)) // chunk_size  # [B, T]: which chunk
    if last_filled is None:
        last_filled = int((filled + frames).max())
    if last_filled >= chunk_size and q.size(0) > 1 and not torch.jit.is_tracing():
        rows = (filled + frames >= chunk_size).nonzero()[:, 0]
        if rows.numel() < q.size(0):  # a step of the memory is dear: only for the streams that come to it
            given = (q, k, v, eta, mu, valid, weights, momentum)
            sizes = (chunk_size, use_muon, use_momentum)
            every = lact_swiglu_step(*given, lengths, pending, filled, *sizes, chunk_size - 1, anchor, retention)
            few = lact_swiglu_step(
                *(_at(x, rows) for x in given), lengths, _at(pending, rows), filled[rows], *sizes, last_filled,
                anchor, retention,
            )  # fmt: skip
            return tuple(_put(x, rows, y) for x, y in zip(every, few))
    anchor, retention = forgetting(weights, anchor, retention)
    out = None
    gradient, mu_sum = pending
    with torch.autocast(device_type=q.device.type, enabled=False):
        for index in range(max(1, -(-last_filled // chunk_size))):
            here = piece == index  # [B, T]
            heard = read(weights, q)
            out = heard if out is None else torch.where(here[:, None, :, None], heard, out)
            here = here & valid
            learner = faded(weights, anchor, retention)
            share = chunk_gradient(learner, k, v, eta * here[:, None, :, None, None].to(eta.dtype))
            gradient = FastWeights(*(g + s for g, s in zip(gradient, share)))
            mu_sum = mu_sum + (mu * here[:, None].to(mu.dtype)).sum(dim=-1).to(mu_sum.dtype)
            full = filled + frames >= (index + 1) * chunk_size  # [B]
            if last_filled < (index + 1) * chunk_size:
                break
            done = full[:, None, None, None]
            due = FastWeights(*(g * done.to(g.dtype) for g in gradient))
            weights, momentum = update(
                weights, momentum, due, mu_sum / chunk_size, full * chunk_size, lengths, chunk_size,
                use_muon, use_momentum, exact(weights, q), anchor, retention, math.inf,
            )  # fmt: skip
            fresh = ~full[:, None]
            gradient = FastWeights(*(g * fresh[..., None, None].to(g.dtype) for g in gradient))
            mu_sum = mu_sum * fresh.to(mu_sum.dtype)
    return out, weights, momentum, Pending(gradient, mu_sum)


def _at(x, rows: Tensor):
    """Rows of a tensor, or of all in a named tuple."""
    return x[rows] if isinstance(x, Tensor) else type(x)(*(_at(part, rows) for part in x))


def _put(x, rows: Tensor, new):
    """x with `new` in these rows."""
    if isinstance(x, Tensor):
        return x.index_copy(0, rows, new)
    return type(x)(*(_put(part, rows, other) for part, other in zip(x, new)))


def settle(
    weights: FastWeights,
    momentum: FastWeights,
    lengths: FastWeights,
    pending: Pending,
    filled: Tensor,
    chunk_size: int,
    use_muon: bool = True,
    use_momentum: bool = True,
    anchor: FastWeights | None = None,
    retention: float = 1.0,
    relevance: float = math.inf,
) -> tuple[FastWeights, FastWeights, Pending]:
    """The stream ends: learn from the unfinished chunk, as `lact_swiglu_reference` does from a short last one.

    Only here `relevance` counts: full chunks have all the evidence there is.
    """
    mean = pending.mu / filled.clamp(min=1)[:, None].to(pending.mu.dtype)
    weights, momentum = update(
        weights, momentum, pending.gradient, mean, filled, lengths, chunk_size, use_muon, use_momentum, False,
        *forgetting(weights, anchor, retention), relevance,
    )  # fmt: skip
    return weights, momentum, Pending(zeros_like(pending.gradient), torch.zeros_like(pending.mu))
