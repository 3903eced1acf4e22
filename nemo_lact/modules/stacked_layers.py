"""The parameters of equal layers side by side, [L, ...], for a pass that works on all of them in one product."""

import torch
from torch import Tensor

from nemo_lact.modules.fast_weights import FastWeightMemory
from nemo_lact.modules.kept import KeptFor
from nemo_lact.ops import FastWeights

_kept = KeptFor()


def stacked_layers(encoder, dtype: torch.dtype) -> 'StackedLayers':
    """Of the encoder's layers in the products' dtype; made anew when a parameter was changed or moved."""
    # Not parameters() and buffers(): a streaming step asks each time, and those take twice as long.
    groups = [group for module in encoder.layers.modules() for group in (module._parameters, module._buffers)]
    tensors = [tensor for group in groups for tensor in group.values() if tensor is not None]
    return _kept.get(encoder, dtype, tensors, lambda: StackedLayers(encoder.layers, dtype))


def forget_layers(encoder) -> None:
    """Give back the memory of what `stacked_layers` keeps."""
    _kept.drop(encoder)


def products_dtype(encoder) -> torch.dtype:
    """Of the linear layers here and now: autocast's, or the parameters' own."""
    weight = encoder.norm_out.weight
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


class StackedLayers:
    """All that L layers learned, as [L, ...] tensors: matrices [L, in, out] in `dtype`, the rest fp32.

    A LayerNorm is part of the linear layer after it: W (n ⊙ g + b) = (W ⊙ g) n + W b for normed n. The projection
    of the mixer has queries, keys and values first, then step sizes, momentum gate and read gate of the memory, and
    zeros up to a multiple of 64 columns. A layer without memory has one here whose gate is closed.
    """

    def __init__(self, layers, dtype: torch.dtype):
        self.dtype = dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        with torch.inference_mode(False), torch.no_grad():
            self._take(list(layers))

    def _take(self, layers) -> None:
        mixers = [layer.mixer for layer in layers]
        memories = [_closed(layer) if layer.mixer.memory is None else layer.mixer.memory for layer in layers]
        first = memories[0]
        self.eps = layers[0].norm_mixer.eps
        self.steps = first.lr_proj.out_features
        self.has_momentum = first.momentum_proj is not None
        self.project, self.project_bias = self._folded([layer.norm_mixer for layer in layers], [
            [mixer.qkv, memory.lr_proj, memory.momentum_proj, memory.gate_proj]
            for mixer, memory in zip(mixers, memories)
        ])  # fmt: skip
        self.q_norm = self._stack([mixer.q_norm.weight for mixer in mixers])  # [L, width]
        self.k_norm = self._stack([mixer.k_norm.weight for mixer in mixers])
        self.norm_eps = mixers[0].q_norm.eps
        self.scale = self._stack([memory.qk_scale for memory in memories])  # [L, 2, D]
        self.offset = self._stack([memory.qk_offset for memory in memories])
        self.read_norm = self._stack([memory.norm.weight for memory in memories])  # [L, d]
        self.lr_base = first.lr_base
        own = [memory.initial_weights() for memory in memories]
        self.initial = FastWeights(*(torch.stack(w).clone() for w in zip(*own)))  # [L, H, ., .]
        self.lengths = first.row_lengths(FastWeights(*(w.to(self.wide) for w in self.initial)))  # [L, H, ., 1]
        self.out, self.out_bias = self._linear([mixer.out for mixer in mixers])
        self.ff1 = self._feed_forward(layers, 'norm_ff1', 'ff1')
        self.ff2 = self._feed_forward(layers, 'norm_ff2', 'ff2')
        self.block_norm = self._block_norm([layer.norm_out for layer in layers])
        self.conv = None if layers[0].conv is None else self._convolution(layers)

    def _stack(self, tensors) -> Tensor:
        return torch.stack([t.detach().to(self.wide) for t in tensors])

    def _linear(self, linears, scale: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """[L, in, out], and [L, 1, out] or None."""
        weight = self._stack([linear.weight.squeeze(-1).t() for linear in linears]) * scale
        bias = None
        if linears[0].bias is not None:
            bias = (self._stack([linear.bias for linear in linears]) * scale)[:, None].to(self.dtype)
        return weight.to(self.dtype).contiguous(), bias

    def _folded(self, norms, groups) -> tuple[Tensor, Tensor]:
        """Norm and the linear layers that take its result: [L, in, out] and, fp32, [L, out]."""
        weights, biases = [], []
        for norm, linears in zip(norms, groups):
            linears = [linear for linear in linears if linear is not None]
            weight = torch.cat([linear.weight.squeeze(-1).to(self.wide) for linear in linears])  # [out, in]
            bias = weight @ norm.bias.to(self.wide)
            own = [linear.weight.new_zeros(linear.weight.size(0)) if linear.bias is None else linear.bias
                   for linear in linears]  # fmt: skip
            biases.append(bias + torch.cat(own).to(self.wide))
            weights.append((weight * norm.weight.to(self.wide)).t())
        extra = -weights[0].size(1) % 64
        weight = torch.nn.functional.pad(torch.stack(weights), (0, extra))
        return weight.to(self.dtype).contiguous(), torch.nn.functional.pad(torch.stack(biases), (0, extra))

    def _block_norm(self, norms) -> tuple[Tensor, Tensor] | None:
        """Scale and offset of the norms that end the blocks, [L, D] each in `dtype`; None without them."""
        if norms[0] is None:
            return None
        return tuple(self._stack(t).to(self.dtype) for t in zip(*((norm.weight, norm.bias) for norm in norms)))

    def _feed_forward(self, layers, norm: str, name: str):
        """(gate and up [L, D, 2F], its bias [L, 2F], down [L, F, D], its bias or None), the scale in `down`."""
        if getattr(layers[0], name) is None:
            return None
        parts = [getattr(layer, name) for layer in layers]
        up, up_bias = self._folded([getattr(layer, norm) for layer in layers], [[part.gate_up] for part in parts])
        width = 2 * parts[0].down.in_features
        up, up_bias = up[..., :width].contiguous(), up_bias[:, :width].contiguous()
        return up, up_bias, *self._linear([part.down for part in parts], layers[0].ff_scale)

    def _convolution(self, layers) -> dict:
        convs = [layer.conv for layer in layers]
        first = convs[0]
        width = 2 * first.d_model
        norms = [layer.norm_conv for layer in layers]
        into, into_bias = self._folded(norms, [[conv.pointwise_conv1] for conv in convs])
        out, out_bias = self._linear([conv.pointwise_conv2 for conv in convs])
        depth = torch.cat([conv.depthwise_conv.weight for conv in convs]).to(self.dtype)  # [L · D, 1, kernel]
        depth_bias = None
        if first.depthwise_conv.bias is not None:
            depth_bias = torch.cat([conv.depthwise_conv.bias for conv in convs]).to(self.dtype)
        norms = [conv.batch_norm for conv in convs]
        scale, shift = self._stack([n.weight for n in norms]), self._stack([n.bias for n in norms])  # [L, D]
        layer_norm = first.norm_type == 'layer_norm'
        if not layer_norm:  # batch norm in evaluation: two numbers a channel
            scale = scale * torch.rsqrt(self._stack([n.running_var for n in norms]) + norms[0].eps)
            shift = shift - scale * self._stack([n.running_mean for n in norms])
        return dict(
            into=into[..., :width].contiguous(), into_bias=into_bias[:, :width].contiguous(), out=out,
            out_bias=out_bias, depth=depth, depth_bias=depth_bias, scale=scale, shift=shift,
            layer_norm=norms[0].eps if layer_norm else None,
        )  # fmt: skip


def _closed(layer) -> FastWeightMemory:
    """A memory that is read with a gate of exactly 0, as silu(0) is."""
    with torch.random.fork_rng(devices=[]):
        memory = FastWeightMemory(layer.config)
    torch.nn.init.zeros_(memory.gate_proj.weight)
    torch.nn.init.zeros_(memory.gate_proj.bias)
    return memory.to(layer.mixer.out.weight)
