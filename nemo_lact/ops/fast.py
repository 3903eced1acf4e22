"""The memory on a GPU: Triton kernels and batched products, with a backward that recomputes. Picked in __init__.py.

A step of the weights is two launches forward. Backward keeps the weights and momenta of each chunk and the factors of
their gradients, and recomputes the rest. The passes over long input are replayed as CUDA graphs; for gradients it is
padded to whole chunks. Under torch.compile the two passes are operators of their own: a compiled layer stays one graph.
"""

import torch
from torch import Tensor

from nemo_lact.ops.cuda_graphs import replay
from nemo_lact.ops.fast_launches import packed
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
    anchor: FastWeights | None = None,
    retention: float = 1.0,
) -> tuple[Tensor, FastWeights, FastWeights]:
    """`lact_swiglu_reference` for hidden width = head width, step sizes per head, half precision, state in fp32."""
    with torch.autocast(device_type=q.device.type, enabled=False):
        lengths = packed(lengths)[..., 0].contiguous()  # [H, 3, d]
        retention = 1.0 if anchor is None else retention
        anchors = packed(anchor) if retention < 1.0 else lengths.new_empty(0)  # [H, 3, d, d]
        given = (q, k, v, eta, mu, _stack(weights), _stack(momentum), lengths, anchors, valid)
        options = (chunk_size, mode == 'bidirectional', use_muon, use_momentum, retention)
        keep = torch.is_grad_enabled()
        if torch.compiler.is_compiling():
            out, w, m = _memory(*given, *options, keep)[:3]
        else:
            tensors = _by_the_chunk(*given, chunk_size, keep)
            out, w, m = _Memory.apply(*tensors, *options) if keep else _forward(tensors, options, False)[:3]
            out = out[:, :, : q.size(2)]
    m = m[-1]
    after = FastWeights(w[:, :, 0], w[:, :, 2], w[:, :, 1])
    return out, after, FastWeights(m[:, :, 0], m[:, :, 2], m[:, :, 1]) if use_momentum else momentum


def _by_the_chunk(
    q, k, v, eta, mu, weights, momentum, lengths, anchor, valid, chunk: int, whole: bool
) -> tuple[Tensor, ...]:
    """`forward_pass`'s eleven tensors; `whole` pads to whole chunks: few lengths are left, which share recordings."""
    extra, pad = _extra(q, chunk), torch.nn.functional.pad
    seen, mean = valid[:, None], mu[:, :, None]
    if q.size(2) > chunk:
        seen, mean = (pad(x, (0, extra)).unflatten(-1, (-1, chunk)) for x in (valid, mu))
    weight = seen.to(mu.dtype)  # [B, n, C]
    frames = weight.sum(dim=-1)  # [B, n]
    mean = (mean * weight[:, None]).sum(dim=-1) / frames[:, None].clamp(min=1.0)  # [B, H, n]
    if whole and extra:
        q, k, v = (pad(x, (0, 0, 0, extra)) for x in (q, k, v))
        eta, valid = pad(eta, (0, 0, 0, 0, 0, extra)), pad(valid, (0, extra))
    return q, k, v, eta, mean.contiguous(), weights, momentum, lengths, anchor, valid, frames.to(torch.int32)


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
    """`forward_pass`'s first three results, with gradients."""

    @staticmethod
    def forward(ctx, *arguments):
        results = _forward(arguments[:11], arguments[11:], any(ctx.needs_input_grad))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:11], *results[2:])
        ctx.options = arguments[11:]
        return results[:3]

    @staticmethod
    def backward(ctx, *gradients):
        return *_backward(gradients, ctx.saved_tensors, ctx.options), *[None] * 7


# For torch.compile: the passes as operators, with the shapes of their results. Chunks are cut and padded inside: in the
# graph every number of them, and every length of whole chunks, would be a reason to compile again.


@torch.library.custom_op('nemo_lact::memory', mutates_args=())
def _memory(
    q: Tensor, k: Tensor, v: Tensor, eta: Tensor, mu: Tensor, weights: Tensor, momentum: Tensor, lengths: Tensor,
    anchor: Tensor, valid: Tensor, chunk: int, bidirectional: bool, use_muon: bool, use_momentum: bool,
    retention: float, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = _by_the_chunk(q, k, v, eta, mu, weights, momentum, lengths, anchor, valid, chunk, keep)
    out, *rest = _forward(tensors, (chunk, bidirectional, use_muon, use_momentum, retention), keep)
    return out[:, :, : q.size(2)].transpose(1, 2).contiguous().transpose(1, 2), *rest


@_memory.register_fake
def _(
    q, k, v, eta, mu, weights, momentum, lengths, anchor, valid, chunk, bidirectional, use_muon, use_momentum,
    retention, keep,
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
    chunk: int, bidirectional: bool, use_muon: bool, use_momentum: bool, retention: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    tensors = _by_the_chunk(*saved[:10], chunk, True)
    q, valid, frames = saved[0], saved[9], tensors[-1]
    extra, total = _extra(q, chunk), q.size(2)
    if extra and d_out is not None:
        d_out = torch.nn.functional.pad(d_out, (0, 0, 0, extra))
    options = (chunk, bidirectional, use_muon, use_momentum, retention)
    *d, d_eta, d_mean, d_w, d_m, d_lengths, d_anchor = _backward(
        (d_out, d_weights, d_momentum), (*tensors, *saved[10:]), options
    )
    if extra:
        d = [torch.empty_like(x).copy_(long[:, :, :total]) for x, long in zip(saved, d)]
        d_eta = d_eta[:, :, :total].contiguous()
    # Of the mean over a chunk's valid frames.
    d_mu = (d_mean / frames[:, None].clamp(min=1)).repeat_interleave(min(chunk, total), dim=-1)
    return *d, d_eta, d_mu[..., :total] * valid[:, None], d_w, d_m, d_lengths, d_anchor


@_memory_backward.register_fake
def _(d_out, d_weights, d_momentum, saved, *options):
    like = [torch.empty_like(x) for x in saved[:3]]
    return *like, *(x.new_empty(x.shape) for x in saved[3:9])


def _setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:10], *output[2:])
    ctx.options = inputs[10:15]


def _gradients(ctx, *gradients):
    return *_memory_backward(*gradients[:3], list(ctx.saved_tensors), *ctx.options), *[None] * 7


_memory.register_autograd(_gradients, setup_context=_setup)
