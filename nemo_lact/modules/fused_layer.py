"""A layer in evaluation on a GPU in half precision: the same numbers as `LaCTLayer` in some 25 launches, not 300."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_lact import ops
from nemo_lact.modules.fast_weights import FastWeightMemory, MemoryState
from nemo_lact.modules.stacked_layers import StackedLayers
from nemo_lact.modules.wave_step import fast_memories_problem
from nemo_lact.ops import FastWeights, lact_swiglu, lact_swiglu_frozen, pieces, window_attention


def why_not_fused(encoder, dtype: torch.dtype) -> str | None:
    """What keeps the layers of an encoder from `fused_layer`, in words; None where it runs."""
    if torch.is_grad_enabled() or encoder.training or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return 'it has no gradients and cannot be traced'
    device = encoder.norm_out.weight.device
    if device.type != 'cuda':
        return f'it needs a CUDA GPU, the data is on {device}'
    problem = fast_memories_problem(encoder, dtype, device)
    return problem or ops.triton_pieces.why_not(sizes_of(encoder.config, None), torch.empty(0, dtype=dtype))


def sizes_of(config, layers: StackedLayers | None) -> pieces.Sizes:
    heads = config.num_lact_heads
    base, eps = (layers.lr_base, layers.norm_eps) if layers is not None else (0.0, 0.0)
    steps = 3 * heads * config.lr_dim
    return pieces.Sizes(
        config.n_heads, heads, steps, config.use_momentum, config.rope_theta, not config.ttt_nope, base, eps
    )


def fused_layer(
    layer,
    layers: StackedLayers,
    index: int,
    x: Tensor,
    valid: Tensor,
    start: Tensor,
    window: tuple[int, int],
    adaptation: bool,
    state: MemoryState | None,
    keep_state: bool,
    learn: Tensor | None,
) -> tuple[Tensor, MemoryState | None]:
    """`LaCTLayer.forward` where `why_not_fused` has no objection.

    Args:
        layer: layer `index` of those stacked.
        x: [B, T, D] in the products' dtype. valid: [B, T] bool. start: [B] int64 zeros.
        learn: [B, T] bool, the frames the memory learns from; None: all valid ones.
    """
    config, kernels = layer.config, ops.triton_pieces
    own = slice(index, index + 1)
    sizes = sizes_of(config, layers)
    batch, frames, width = x.shape
    if layers.ff1 is not None:
        x = _feed_forward(layers, layers.ff1, index, x)
    p = torch.matmul(F.layer_norm(x, (width,), eps=layers.eps), layers.project[index])
    q, k, v = (torch.empty_like(x) for _ in range(3))
    gate = torch.empty((batch, frames, config.num_lact_heads), dtype=layers.wide, device=x.device)
    inputs = kernels.split_projection(
        p, layers.project_bias[own], layers.q_norm[own], layers.k_norm[own], layers.scale[own], layers.offset[own],
        start, sizes, (q, k, v, gate),
    )  # fmt: skip
    near = _attend(config, q, k, v, valid, window)
    lengths = FastWeights(*(w[index] for w in layers.lengths))
    learn = valid if learn is None else learn
    mixed = near
    if layer.mixer.memory is not None:
        far, state = _remember(layer.mixer.memory, inputs, learn, lengths, adaptation, state, keep_state)
        mixed = kernels.add_read(near, far, gate, layers.read_norm[own], layers.norm_eps)
    x = _added(x, mixed, layers.out, layers.out_bias, index)
    if layer.conv is not None:
        with torch.autocast(x.device.type, dtype=x.dtype):
            x = x + layer.conv(layer.norm_conv(x), pad_mask=~valid).to(x.dtype)
    return _ended(layers, index, x), state


def _ended(layers: StackedLayers, index: int, x: Tensor) -> Tensor:
    """What comes after the convolution: feed-forward and [norm]."""
    x = _feed_forward(layers, layers.ff2, index, x)
    if layers.block_norm is None:
        return x
    scale, offset = layers.block_norm
    return F.layer_norm(x, x.shape[-1:], scale[index], offset[index], layers.eps)


def _added(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, index: int) -> Tensor:
    """x + y W + bias."""
    x = x if bias is None else x + bias[index]
    return torch.addmm(x.flatten(0, 1), y.flatten(0, 1), weight[index]).view(x.shape)


def _feed_forward(layers: StackedLayers, weights: tuple, index: int, x: Tensor) -> Tensor:
    up, up_bias, down, down_bias = weights
    hidden = torch.matmul(F.layer_norm(x, x.shape[-1:], eps=layers.eps), up[index]).flatten(0, 1)
    hidden = ops.triton_pieces.swiglu(hidden[None], up_bias[index : index + 1])[0]
    return _added(x, hidden.view(*x.shape[:2], -1), down, down_bias, index)


def _attend(config, q: Tensor, k: Tensor, v: Tensor, valid: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, T, D] each -> [B, T, D]."""
    q, k, v = (x.unflatten(-1, (config.n_heads, -1)).transpose(1, 2) for x in (q, k, v))
    kernel, chunk = ops.attention.triton_attention, config.att_chunk(window)
    if kernel is not None and not chunk and kernel.can_run(q, k, v, *window, 0.0):
        near = kernel.window_forward(q, k, v, valid, *window)
    else:
        near = window_attention(q, k, v, valid, *window, 0.0, chunk)
    return near.transpose(1, 2).flatten(2)


def _remember(
    memory: FastWeightMemory, inputs: pieces.MemoryInput, learn: Tensor, lengths: FastWeights, adaptation: bool,
    state: MemoryState | None, keep_state: bool,
) -> tuple[Tensor, MemoryState | None]:  # fmt: skip
    """The read, not yet normed and gated, [B, T, D]."""
    config, (q, k, v, eta, mu) = memory.config, inputs
    if state is None:  # fresh rows share their tensors
        initial = FastWeights(*(w.float() for w in memory.initial_weights()))
        weights = FastWeights(*(w.expand(q.size(0), -1, -1, -1) for w in initial))
        momentum = FastWeights(*(torch.zeros_like(w).expand(q.size(0), -1, -1, -1) for w in initial))
    else:
        initial, weights, momentum = memory.unpacked(state, q.size(0), q)
    if adaptation:
        out, weights, momentum = lact_swiglu(
            q, k, v, eta, mu, learn, weights, momentum, lengths,
            config.lact_chunk_size, config.lact_mode, config.use_muon, config.use_momentum, initial,
            config.lact_retention, config.relevance,
        )  # fmt: skip
    else:
        out = lact_swiglu_frozen(q, weights, config.lact_chunk_size)
    packed = memory.packed(initial, weights, momentum) if keep_state else None
    return out.transpose(1, 2).flatten(2), packed
