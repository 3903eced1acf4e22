"""The memory on a GPU: Triton kernels and batched products, with a backward that recomputes. Picked in __init__.py.

A step of the weights is two launches forward. Backward keeps the weights and momenta of each chunk and the factors of
their gradients, and recomputes the rest. The passes over long input are replayed as CUDA graphs; for gradients it is
padded to whole chunks. Under torch.compile the two passes are operators of their own: a compiled layer stays one graph.
"""

import torch
from torch import Tensor

from nemo_lact.ops.cuda_graphs import replay
from nemo_lact.ops.fast_passes import INTERPRETED, PRODUCTS, backward_pass, forward_pass
from nemo_lact.ops.fast_weights import FastWeights

__all__ = ['INTERPRETED', 'lact_swiglu_fast']

GRAPH_CHUNKS = 4  # from which the passes are replayed as CUDA graphs,
GRAPH_HEADS = 32  # and rows × heads up to which: with more the GPU works longer than its launches take


def lact_swiglu_fast(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    mu: Tensor,
    valid: Tensor,
    weights: FastWeights,
    momentum: FastWeights,
    lengths: FastWeights,
    chunk_size: int,
    mode: str = 'bidirectional',
    use_muon: bool = True,
    use_momentum: bool = True,
) -> tuple[Tensor, FastWeights, FastWeights]:
    """`lact_swiglu_reference` for hidden width = head width, step sizes per head, half precision, state in fp32."""
    frames, mean_mu = _chunk_means(mu, valid, chunk_size)
    total = q.size(2)
    padded = torch.is_grad_enabled() and total > chunk_size and (torch.compiler.is_compiling() or total % chunk_size)
    if padded:
        q, k, v, eta, valid = _whole_chunks((q, k, v, eta, valid), -total % chunk_size)
    with torch.autocast(device_type=q.device.type, enabled=False):
        tensors = (
            q, k, v, eta, mean_mu, _stack(weights), _stack(momentum),
            torch.stack((lengths.w0, lengths.w2, lengths.w1), dim=1)[..., 0].contiguous(),  # [H, 3, d]
            valid, frames,
        )  # fmt: skip
        options = (chunk_size, mode == 'bidirectional', use_muon, use_momentum)
        if torch.compiler.is_compiling():
            out, w, m = _memory(*tensors, *options, torch.is_grad_enabled())[:3]
        elif torch.is_grad_enabled():
            out, w, m = _Memory.apply(*tensors, *options)
        else:
            out, w, m = _forward(tensors, options, False)[:3]
    m, out = m[-1], out[:, :, :total] if padded else out
    after = FastWeights(w[:, :, 0], w[:, :, 2], w[:, :, 1])
    return out, after, FastWeights(m[:, :, 0], m[:, :, 2], m[:, :, 1]) if use_momentum else momentum


def _whole_chunks(tensors: tuple[Tensor, ...], extra: int) -> tuple[Tensor, ...]:
    """q, k, v, eta, valid and `extra` frames that are not valid. Few lengths are left, which share recordings."""
    q, k, v, eta, valid = tensors
    pad = torch.nn.functional.pad
    q, k, v = (pad(x, (0, 0, 0, extra)) for x in (q, k, v))
    return q, k, v, pad(eta, (0, 0, 0, 0, 0, extra)), pad(valid, (0, extra))


def _chunk_means(mu: Tensor, valid: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Valid frames [B, n] int32 and mean momentum gate over them [B, H, n] of each chunk."""
    batch, frames = valid.shape
    if frames <= chunk:
        seen, mu = valid[:, None], mu[:, :, None]
    else:
        extra = -frames % chunk
        seen = torch.nn.functional.pad(valid, (0, extra)).view(batch, -1, chunk)
        mu = torch.nn.functional.pad(mu, (0, extra)).view(batch, mu.size(1), -1, chunk)
    weight = seen.to(mu.dtype)  # [B, n, chunk]
    count = weight.sum(dim=-1)
    mean = (mu * weight[:, None]).sum(dim=-1) / count[:, None].clamp(min=1.0)
    return count.to(torch.int32), mean.contiguous()


def _stack(weights: FastWeights) -> Tensor:
    """[B, H, 3, d, d] in the order W0, W2, W1; B is 1 where all rows are one tensor expanded."""
    parts = (weights.w0, weights.w2, weights.w1)
    if all(w.stride(0) == 0 for w in parts):
        parts = tuple(w[:1] for w in parts)
    return torch.stack(parts, dim=2)


def _recorded(q: Tensor, chunk: int) -> bool:
    worthwhile = q.size(2) >= GRAPH_CHUNKS * chunk and q.size(0) * q.size(1) <= GRAPH_HEADS
    return worthwhile and q.is_cuda and not torch.cuda.is_current_stream_capturing()


def _forward(tensors: tuple[Tensor, ...], options: tuple, keep: bool) -> tuple[Tensor, ...]:
    if _recorded(tensors[0], options[0]):
        return replay(forward_pass, tensors, (*options, keep))
    return forward_pass(*tensors, *options, keep)


def _backward(gradients: tuple[Tensor | None, ...], saved: tuple[Tensor, ...], options: tuple) -> tuple[Tensor, ...]:
    """saved: `forward_pass`'s ten tensors, and its results from the third on."""
    if not _recorded(saved[0], options[0]):
        return backward_pass(*gradients, saved[:10], saved[10:], *options)
    there = tuple(g is not None for g in gradients)
    return replay(_flat_backward, (*(g for g in gradients if g is not None), *saved), (there, options))


def _flat_backward(*arguments) -> tuple[Tensor, ...]:
    *tensors, there, options = arguments
    some, saved = iter(tensors[: sum(there)]), tensors[sum(there) :]
    return backward_pass(*(next(some) if t else None for t in there), saved[:10], saved[10:], *options)


class _Memory(torch.autograd.Function):
    """`forward_pass`'s first three results, with gradients."""

    @staticmethod
    def forward(ctx, *arguments):
        results = _forward(arguments[:10], arguments[10:], any(ctx.needs_input_grad))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:10], *results[2:])
        ctx.options = arguments[10:]
        return results[:3]

    @staticmethod
    def backward(ctx, *gradients):
        return *_backward(gradients, ctx.saved_tensors, ctx.options), *[None] * 6


# For torch.compile: the passes as operators, with the shapes of their results.


@torch.library.custom_op('nemo_lact::memory', mutates_args=())
def _memory(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, mu: Tensor, weights: Tensor, momentum: Tensor, lengths: Tensor,
    valid: Tensor, frames: Tensor, chunk: int, bidirectional: bool, use_muon: bool, use_momentum: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = (q, k, v, eta, mu, weights, momentum, lengths, valid, frames)
    return _forward(tensors, (chunk, bidirectional, use_muon, use_momentum), keep)


@_memory.register_fake
def _(q, k, v, eta, mu, weights, momentum, lengths, valid, frames, chunk, bidirectional, use_muon, use_momentum, keep):
    batch, heads, total, width = q.shape
    steps, shape = frames.size(1), (batch, heads, 3, width, width)
    out = q.new_empty((batch, total, heads, width)).transpose(1, 2)
    w, m = weights.new_empty(shape), weights.new_empty((steps if keep else 1, *shape))
    if not keep:
        return out, w, m, weights.new_empty(0), *(q.new_empty(0, dtype=PRODUCTS) for _ in range(2))
    halves = q.new_empty((steps + (not bidirectional), *shape), dtype=PRODUCTS)
    factors = q.new_empty((steps, batch, heads, min(chunk, total), 3, width), dtype=PRODUCTS)
    return out, w, m, weights.new_empty((steps, *shape[:-1])), halves, factors


@torch.library.custom_op('nemo_lact::memory_backward', mutates_args=())
def _memory_backward(
    d_out: Tensor | None, d_weights: Tensor | None, d_momentum: Tensor | None, saved: list[Tensor],
    chunk: int, bidirectional: bool, use_muon: bool, use_momentum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _backward((d_out, d_weights, d_momentum), tuple(saved), (chunk, bidirectional, use_muon, use_momentum))


@_memory_backward.register_fake
def _(d_out, d_weights, d_momentum, saved, *options):
    like = [torch.empty_like(x) for x in saved[:3]]
    return *like, *(x.new_empty(x.shape) for x in saved[3:8])


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:10], *output[2:])
    ctx.options = inputs[10:14]


def _gradients(ctx, *gradients):
    return *_memory_backward(*gradients[:3], list(ctx.saved_tensors), *ctx.options), *[None] * 7


_memory.register_autograd(_gradients, setup_context=_setup)
