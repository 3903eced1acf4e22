"""The memory on a GPU: Triton kernels and batched products, with a backward that recomputes. Picked in __init__.py.

A step of the weights is two launches forward. Backward keeps the weights and momenta of each chunk and the factors of
their gradients, and recomputes the rest. The passes over long input are replayed as CUDA graphs; for gradients it is
padded to whole chunks. Under torch.compile the two passes are operators of their own: a compiled layer stays one graph.
"""

import math

import torch
from torch import Tensor

from nemo_lact.ops.cuda_graphs import replay
from nemo_lact.ops.fast_launches import packed
from nemo_lact.ops.fast_passes import (
    INTERPRETED,
    PRODUCTS,
    backward_pass,
    chunk_means,
    forward_pass,
    of_chunk_means,
)
from nemo_lact.ops.fast_weights import FastWeights, evident_chunks

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
    anchor: FastWeights | None = None,
    retention: float = 1.0,
    relevance: float = math.inf,
) -> tuple[Tensor, FastWeights, FastWeights]:
    """`lact_swiglu_reference` for hidden width = head width, step sizes per head, half precision, state in fp32."""
    with torch.autocast(device_type=q.device.type, enabled=False):
        lengths = packed(lengths)[..., 0].contiguous()  # [H, 3, d]
        retention = 1.0 if anchor is None else retention
        anchors = packed(anchor) if retention < 1.0 else lengths.new_empty(0)  # [H, 3, d, d]
        eta = evident_chunks(eta, valid, chunk_size, relevance)
        given = (q, k, v, eta, mu, _stack(weights), _stack(momentum), lengths, anchors, valid)
        options = (chunk_size, mode == 'bidirectional', use_muon, use_momentum, retention, relevance)
        keep = torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            out, w, m = _memory(*given, *options, keep)[:3]
        elif keep:
            out, w, m = _Memory.apply(*given, *options)
        else:
            out, w, m = _run(given, options, False)[:3]
    m = m[-1]
    after = FastWeights(w[:, :, 0], w[:, :, 2], w[:, :, 1])
    return out, after, FastWeights(m[:, :, 0], m[:, :, 2], m[:, :, 1]) if use_momentum else momentum


def _run(given: tuple[Tensor, ...], options: tuple, keep: bool) -> tuple[Tensor, ...]:
    """`forward_pass`'s results, out cut to q's frames."""
    out, *rest = _forward(_by_the_chunk(*given, options[0], keep), options, keep)
    return out[:, :, : given[0].size(2)].transpose(1, 2).contiguous().transpose(1, 2), *rest


def _run_backward(
    gradients: tuple[Tensor | None, ...], saved: tuple[Tensor, ...], options: tuple
) -> tuple[Tensor, ...]:
    """Gradients of `_by_the_chunk`'s first nine. saved: its ten, and `forward_pass`'s results from the third on."""
    d_out, *d_state = gradients
    chunk, (q, mu, valid) = options[0], (saved[0], saved[4], saved[9])
    extra, total = _extra(q, chunk), q.size(2)
    if extra and d_out is not None:
        d_out = torch.nn.functional.pad(d_out, (0, 0, 0, extra))
    tensors = _by_the_chunk(*saved[:10], chunk, True)
    *d, d_eta, d_gate, d_w, d_m, d_lengths, d_anchor = _backward((d_out, *d_state), (*tensors, *saved[10:]), options)
    if extra:
        *d, d_eta = (x[:, :, :total].contiguous() for x in (*d, d_eta))
    d_mu = of_chunk_means(d_gate, mu, valid, tensors[-1], chunk)
    return *d, d_eta, d_mu, d_w, d_m, d_lengths, d_anchor


def _by_the_chunk(
    q, k, v, eta, mu, weights, momentum, lengths, anchor, valid, chunk: int, whole: bool
) -> tuple[Tensor, ...]:
    """`forward_pass`'s eleven tensors; `whole` pads to whole chunks: few lengths are left, which share recordings."""
    mean, frames = chunk_means(mu, valid, chunk)
    extra, pad = _extra(q, chunk), torch.nn.functional.pad
    if whole and extra:
        q, k, v = (pad(x, (0, 0, 0, extra)) for x in (q, k, v))
        eta, valid = pad(eta, (0, 0, 0, 0, 0, extra)), pad(valid, (0, extra))
    return q, k, v, eta, mean, weights, momentum, lengths, anchor, valid, frames


def _extra(q: Tensor, chunk: int) -> int:
    """Frames from q's last to the end of its chunk; 0 where it is less than one."""
    return -q.size(2) % chunk if q.size(2) > chunk else 0


def _stack(weights: FastWeights) -> Tensor:
    """[B, H, 3, d, d] in the order W0, W2, W1; B is 1 where all rows are one tensor expanded."""
    if all(w.stride(0) == 0 for w in weights):
        weights = FastWeights(*(w[:1] for w in weights))
    return packed(weights)


def _recorded(q: Tensor, chunk: int) -> bool:
    worthwhile = q.size(2) >= GRAPH_CHUNKS * chunk and q.size(0) * q.size(1) <= GRAPH_HEADS
    return worthwhile and q.is_cuda and not torch.cuda.is_current_stream_capturing()


def _forward(tensors: tuple[Tensor, ...], options: tuple, keep: bool) -> tuple[Tensor, ...]:
    if _recorded(tensors[0], options[0]):
        return replay(forward_pass, tensors, (*options, keep))
    return forward_pass(*tensors, *options, keep)


def _backward(gradients: tuple[Tensor | None, ...], saved: tuple[Tensor, ...], options: tuple) -> tuple[Tensor, ...]:
    """saved: `forward_pass`'s eleven tensors, and its results from the third on."""
    if not _recorded(saved[0], options[0]):
        return backward_pass(*gradients, saved[:11], saved[11:], *options)
    there = tuple(g is not None for g in gradients)
    return replay(_flat_backward, (*(g for g in gradients if g is not None), *saved), (there, options))


def _flat_backward(*arguments) -> tuple[Tensor, ...]:
    *tensors, there, options = arguments
    some, saved = iter(tensors[: sum(there)]), tensors[sum(there) :]
    return backward_pass(*(next(some) if t else None for t in there), saved[:11], saved[11:], *options)


class _Memory(torch.autograd.Function):
    """`_run`'s first three results, with gradients."""

    @staticmethod
    def forward(ctx, *arguments):
        results = _run(arguments[:10], arguments[10:], any(ctx.needs_input_grad))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:10], *results[2:])
        ctx.options = arguments[10:]
        return results[:3]

    @staticmethod
    def backward(ctx, *gradients):
        return *_run_backward(gradients, ctx.saved_tensors, ctx.options), *[None] * 7


# For torch.compile: the passes as operators, with the shapes of their results. Chunks are cut and padded inside: in the
# graph every number of them, and every length of whole chunks, would be a reason to compile again.


@torch.library.custom_op('nemo_lact::memory', mutates_args=())
def _memory(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, mu: Tensor, weights: Tensor, momentum: Tensor, lengths: Tensor,
    anchor: Tensor, valid: Tensor, chunk: int, bidirectional: bool, use_muon: bool, use_momentum: bool,
    retention: float, relevance: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    given = (q, k, v, eta, mu, weights, momentum, lengths, anchor, valid)
    return _run(given, (chunk, bidirectional, use_muon, use_momentum, retention, relevance), keep)


@_memory.register_fake
def _(
    q, k, v, eta, mu, weights, momentum, lengths, anchor, valid, chunk, bidirectional, use_muon, use_momentum,
    retention, relevance, keep,
):  # fmt: skip
    batch, heads, total, width = q.shape
    steps, frames = ((total + chunk - 1) // chunk, chunk) if total > chunk else (1, total)
    shape = (batch, heads, 3, width, width)
    out = q.new_empty((batch, total, heads, width)).transpose(1, 2)
    w, m = weights.new_empty(shape), weights.new_empty((steps if keep else 1, *shape))
    if not keep:
        return out, w, m, weights.new_empty(0), *(q.new_empty(0, dtype=PRODUCTS) for _ in range(2))
    # int: the sum of a symbol and a bool stops torch 2.11.
    halves = q.new_empty((steps + int(not bidirectional), *shape), dtype=PRODUCTS)
    factors = q.new_empty((steps, batch, heads, frames, 3, width), dtype=PRODUCTS)
    return out, w, m, weights.new_empty((steps, *shape[:-1])), halves, factors


@torch.library.custom_op('nemo_lact::memory_backward', mutates_args=())
def _memory_backward(
    d_out: Tensor | None, d_weights: Tensor | None, d_momentum: Tensor | None, saved: list[Tensor],
    chunk: int, bidirectional: bool, use_muon: bool, use_momentum: bool, retention: float, relevance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    options = (chunk, bidirectional, use_muon, use_momentum, retention, relevance)
    return _run_backward((d_out, d_weights, d_momentum), saved, options)


@_memory_backward.register_fake
def _(d_out, d_weights, d_momentum, saved, *options):
    return tuple(x.new_empty(x.shape) for x in saved[:9])


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:10], *output[2:])
    ctx.options = inputs[10:16]


def _gradients(ctx, *gradients):
    return *_memory_backward(*gradients[:3], list(ctx.saved_tensors), *ctx.options), *[None] * 8


_memory.register_autograd(_gradients, setup_context=_setup)
