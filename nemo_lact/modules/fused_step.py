"""A step of streams on a GPU in half precision: fused_layer.py for `stream_step`, over the state where it lies.

Some 15 launches a layer, 5 more where the memory of a stream takes a step. See docs/design.md, "Streaming on a GPU".
"""

import itertools
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_lact import ops
from nemo_lact.modules.fused_layer import _added, _ended, _feed_forward, sizes_of, why_not_fused
from nemo_lact.modules.stacked_layers import StackedLayers, products_dtype, stacked_layers
from nemo_lact.state import GROUPS, LaCTState

_prepared: 'weakref.WeakKeyDictionary' = weakref.WeakKeyDictionary()  # StackedLayers -> what `_prepare` made of them


def why_not_fused_step(encoder, state: LaCTState) -> str | None:
    """What keeps a step from `fused_step`, in words; None where it runs."""
    problem = why_not_fused(encoder, products_dtype(encoder))
    wrong = {t.dtype for name in GROUPS[:4] for t in getattr(state, name)} - {torch.float32}
    if problem is None and state.position.device != encoder.norm_out.weight.device:
        problem = f'the state is on {state.position.device}'
    if problem is None and wrong:
        problem = f'the state is {str(wrong.pop())[6:]}, it takes float32'
    return problem


def laid_out(state: LaCTState) -> LaCTState:
    """The same state with tensors as the kernels want them: rows contiguous, from row to row one step in a group."""

    def ready(group) -> tuple[Tensor, ...]:
        tidy = all(t.numel() == 0 or t[0, 0].is_contiguous() for t in group)
        if tidy and len({t.stride(1) for t in group[:3]}) <= 1:
            return tuple(group)
        return tuple(t.contiguous() for t in group)

    return LaCTState(**{**vars(state), **{name: ready(getattr(state, name)) for name in GROUPS[:4]}})


def pace_of(
    state: LaCTState, count: Tensor, learn: Tensor | None, chunk: int, filled: list[int]
) -> 'ops.triton_streaming.Pace':
    """How the streams stand. filled: frames of their chunks after the step, at most: known on the host."""
    learned = count if learn is None else count * learn
    most, pieces, after = ops.triton_streaming.MOST_ROWS, [], state.filled + count
    for index in range(max(filled) // chunk):
        border = (index + 1) * chunk
        # How many there are is known, so the rows are found without another wait for the device.
        rows = after.topk(sum(n >= border for n in filled)).indices
        frames = ((state.filled + learned >= border) * chunk).to(torch.int32)[rows, None]
        full = [ops.triton_streaming.Full(*parts) for parts in zip(rows.split(most), frames.split(most))]
        beyond = sum(n > border for n in filled)
        pieces.append((full, after.topk(beyond).indices if beyond else None))
    rows = torch.arange(count.size(0), device=count.device)
    return ops.triton_streaming.Pace(state.frames, count, state.filled, learned, rows, pieces)


def fused_step(encoder, x: Tensor, before: LaCTState, after: LaCTState, pace) -> Tensor:
    """The layers' part of a step, where `why_not_fused_step` has no objection.

    Args:
        x: [B, n, D] of the front end.
        before: read, but for weights and momentum.
        after: weights and momentum as before, and moved here; the rest is written. May be `before` itself.
        pace: of `pace_of`.

    Returns:
        [B, n, D].
    """
    layers = stacked_layers(encoder, products_dtype(encoder))
    if layers not in _prepared:
        _prepared[layers] = _prepare(layers)
    prepared, config = _prepared[layers], encoder.config
    options = config.lact_chunk_size, config.use_muon, config.lact_retention
    def by_layer(*groups):
        return zip(*(zip(*(t.unbind() for t in group)) if group else itertools.repeat(()) for group in groups))

    caches = by_layer(before.attention, after.attention)
    memories = by_layer(after.weights, after.momentum, before.pending, after.pending)  # of the layers that have one
    x = x.to(layers.dtype)
    with torch.autocast(x.device.type, enabled=False):
        for index, (layer, (keys, new_keys)) in enumerate(zip(encoder.layers, caches)):
            memory = None
            if layer.mixer.memory is not None:
                initial, lengths = prepared[1][index]
                memory = ops.triton_streaming.StreamMemory(initial, lengths, *next(memories), prepared[0], options)
            x = _mixed(encoder, layers, index, x, keys, new_keys, memory, before.position, pace)
            if layer.conv is not None:
                x = _convolved(layer, x, before.convolution[0][index], after.convolution[0][index], pace)
            x = _ended(layers, index, x)
    return x


def _prepare(layers: StackedLayers):
    """Sizes of the memory, and of each layer its initial weights and their row lengths [H, 3, d]."""
    with torch.inference_mode(False), torch.no_grad():
        lengths = ops.fast_launches.packed(layers.lengths)[..., 0].contiguous()  # [L, H, 3, d]
    # Nothing in fp16 may be coarser than the modules are in it.
    sizes = ops.fast_launches.Sizes(lengths.size(-1), lengths.device, precise=layers.dtype == torch.float16)
    return sizes, list(zip(zip(*(w.unbind() for w in layers.initial)), lengths.unbind()))


def _mixed(encoder, layers: StackedLayers, index: int, x: Tensor, keys, new_keys, memory, start: Tensor, pace):
    """x after [feed-forward,] attention and memory."""
    config, kernels, own = encoder.config, ops.triton_pieces, slice(index, index + 1)
    window, (batch, frames, width) = tuple(encoder.att_context_size), x.shape
    if layers.ff1 is not None:
        x = _feed_forward(layers, layers.ff1, index, x)
    p = torch.matmul(F.layer_norm(x, (width,), eps=layers.eps), layers.project[index])
    q, k, v = x.new_empty((3, batch, frames, width)).unbind()
    gate = torch.empty((batch, frames, config.num_lact_heads), dtype=layers.wide, device=x.device)
    inputs = kernels.split_projection(
        p, layers.project_bias[own], layers.q_norm[own], layers.k_norm[own], layers.scale[own], layers.offset[own],
        start, sizes_of(config, layers), (q, k, v, gate),
    )  # fmt: skip
    streams = ops.triton_streaming
    near = streams.attend(q, k, v, *keys, pace, config.n_heads, *window, config.att_chunk(window))
    streams.shift(k, v, keys, new_keys, pace.count)
    mixed = near
    if memory is not None:
        far = memory.step(inputs, pace, encoder.adaptation)
        mixed = kernels.add_read(near, far, gate, layers.read_norm[own], layers.norm_eps)
    return _added(x, mixed, layers.out, layers.out_bias, index)


def _convolved(layer, x: Tensor, cache: Tensor, to: Tensor, pace) -> Tensor:
    """x + convolution, and its last inputs written to `to`."""
    held, n = cache.size(1), x.size(1)
    slots = torch.arange(held + n, device=x.device)
    heard = (slots >= held - pace.heard[:, None]) & (slots < held + pace.count[:, None])
    with torch.autocast(x.device.type, dtype=x.dtype):
        h = torch.cat([cache.to(x.dtype), layer.norm_conv(x).to(x.dtype)], dim=1)
        x = x + layer.conv(h, pad_mask=~heard)[:, held:].to(x.dtype)
    latest = pace.count[:, None] + torch.arange(held, device=x.device)  # [B, kernel - 1]
    to.copy_(h.gather(1, latest[..., None].expand(-1, -1, h.size(2))))
    return x
