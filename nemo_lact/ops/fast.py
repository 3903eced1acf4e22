"""The memory on a GPU: Triton kernels and batched products, with a backward that recomputes. Picked in __init__.py.

A step of the weights is two launches forward. Backward keeps the weights and momenta of each chunk and the factors of
their gradients, and recomputes the rest. Without gradients a long input's chunk loop is replayed as a CUDA graph.
Under torch.compile the two passes are operators of their own, so a compiled layer stays one graph.
"""

import torch
from torch import Tensor

from nemo_lact.ops.cuda_graphs import replay
from nemo_lact.ops.fast_passes import INTERPRETED, PRODUCTS, backward_pass, forward_pass
from nemo_lact.ops.fast_weights import FastWeights

__all__ = ['INTERPRETED', 'lact_swiglu_fast']

GRAPH_CHUNKS = 4  # chunks from which input without gradients is replayed as a CUDA graph


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
            out, w, m = _without_gradients(tensors, options)[:3]
    w, m = w[-1], m[-1]
    after = FastWeights(w[:, :, 0], w[:, :, 2], w[:, :, 1])
    return out, after, FastWeights(m[:, :, 0], m[:, :, 2], m[:, :, 1]) if use_momentum else momentum


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


def _without_gradients(tensors: tuple[Tensor, ...], options: tuple) -> tuple[Tensor, ...]:
    q, chunk = tensors[0], options[0]
    if q.is_cuda and q.size(2) >= GRAPH_CHUNKS * chunk and not torch.cuda.is_current_stream_capturing():
        return replay(forward_pass, tensors, (*options, False))
    return forward_pass(*tensors, *options, False)


class _Memory(torch.autograd.Function):
    """`forward_pass`'s first three results, with gradients."""

    @staticmethod
    def forward(ctx, *arguments):
        results = forward_pass(*arguments, any(ctx.needs_input_grad))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:10], *results[1:])
        ctx.options = arguments[10:]
        return results[:3]

    @staticmethod
    def backward(ctx, *gradients):
        saved = ctx.saved_tensors
        return *backward_pass(*gradients, saved[:10], saved[10:], *ctx.options), *[None] * 6


# For torch.compile: the passes as operators, with the shapes of their results.


@torch.library.custom_op('nemo_lact::memory', mutates_args=())
def _memory(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, mu: Tensor, weights: Tensor, momentum: Tensor, lengths: Tensor,
    valid: Tensor, frames: Tensor, chunk: int, bidirectional: bool, use_muon: bool, use_momentum: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = (q, k, v, eta, mu, weights, momentum, lengths, valid, frames)
    options = (chunk, bidirectional, use_muon, use_momentum)
    return forward_pass(*tensors, *options, True) if keep else _without_gradients(tensors, options)


@_memory.register_fake
def _(q, k, v, eta, mu, weights, momentum, lengths, valid, frames, chunk, bidirectional, use_muon, use_momentum, keep):
    batch, heads, total, width = q.shape
    steps, shape = frames.size(1), (batch, heads, 3, width, width)
    out = q.new_empty((batch, total, heads, width)).transpose(1, 2)
    after = [weights.new_empty((steps if keep else 1, *shape)) for _ in range(2)]
    if not keep:
        return out, *after, weights.new_empty(0), *(q.new_empty(0, dtype=PRODUCTS) for _ in range(2))
    halves = q.new_empty((steps + (not bidirectional), *shape), dtype=PRODUCTS)
    factors = q.new_empty((batch, heads, total, 3, width), dtype=PRODUCTS)
    return out, *after, weights.new_empty((steps, *shape[:-1])), halves, factors


@torch.library.custom_op('nemo_lact::memory_backward', mutates_args=())
def _memory_backward(
    d_out: Tensor | None, d_weights: Tensor | None, d_momentum: Tensor | None, inputs: list[Tensor],
    kept: list[Tensor], chunk: int, bidirectional: bool, use_muon: bool, use_momentum: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    options = (chunk, bidirectional, use_muon, use_momentum)
    return backward_pass(d_out, d_weights, d_momentum, tuple(inputs), tuple(kept), *options)


@_memory_backward.register_fake
def _(d_out, d_weights, d_momentum, inputs, kept, *options):
    like = [torch.empty_like(x) for x in inputs[:3]]
    return *like, *(x.new_empty(x.shape) for x in inputs[3:8])


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:10], *output[1:])
    ctx.options = inputs[10:14]


def _backward(ctx, *gradients):
    saved = ctx.saved_tensors
    return *_memory_backward(*gradients[:3], list(saved[:10]), list(saved[10:]), *ctx.options), *[None] * 7


_memory.register_autograd(_backward, setup_context=_setup)
