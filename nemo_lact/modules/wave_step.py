"""One step of the wavefront (wavefront.py): every layer takes in a chunk and gives one out, all in one product each."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_lact import ops
from nemo_lact.modules.fast_weights import MemoryState, working_dtype
from nemo_lact.modules.stacked_layers import StackedLayers
from nemo_lact.ops import FastWeights, pieces
from nemo_lact.ops.attention import window_mask
from nemo_lact.ops.chunks import ReferenceChunks


def delay(config, window: tuple[int, int]) -> int:
    """Chunks that must have come after the one a layer gives out: for the right context of window and convolution."""
    chunk, attention = config.lact_chunk_size, config.att_chunk(window)
    after = config.conv_context[1] if config.conv_kernel_size else 0
    right = window[1]
    if attention:
        right = 0 if chunk % attention == 0 and after == 0 else chunk + 1
    return -(-(right + after) // chunk)


class WaveStep:
    """Buffers of L layers and B rows, and the step that works on them in place. R = L · B rows, layer by layer.

    A call takes `frames_in` [B, C, D], the next chunk of the first layer, and leaves `frames_out` [B, C, D], a chunk of
    the last layer's output: that of `latency` steps before. The number of the step is counted on the device.

    Args:
        fast: memory and elementwise work by kernels, where `fast_memory_problem` has no objection.
    """

    def __init__(
        self, config, layers: StackedLayers, window: tuple[int, int], adaptation: bool, fast: bool, batch: int, device
    ):
        self.config, self.layers, self.window, self.adaptation = config, layers, window, adaptation
        self.batch, self.device, self.chunk = batch, device, config.lact_chunk_size
        self.count = count = layers.out.size(0)
        self.rows = rows = count * batch
        self.delay = delay(config, window)
        self.latency = (1 + self.delay) * (count - 1) + self.delay
        self.after = config.conv_context[1] if config.conv_kernel_size else 0  # frames the convolution lags behind
        chunk, width, left = self.chunk, config.d_model, window[0]
        held = (1 + self.delay) * chunk
        self.sizes = pieces.Sizes(
            config.n_heads, config.num_lact_heads, layers.steps, layers.has_momentum, config.rope_theta,
            not config.ttt_nope, layers.lr_base, layers.norm_eps,
        )  # fmt: skip

        def zeros(*shape, dtype=layers.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.between = zeros(count + 1, batch, chunk, width)  # what goes from layer to layer
        self.frames_in, self.frames_out = self.between[0], self.between[-1]
        self.x, self.q, self.read = (zeros(rows, held, width) for _ in range(3))
        self.gate = zeros(rows, held, config.num_lact_heads, dtype=layers.wide)
        self.k, self.v = (zeros(rows, left + held, width) for _ in range(2))
        kernel = config.conv_kernel_size
        self.conv_inputs, self.conv_residual = zeros(rows, max(0, kernel - 1), width), zeros(rows, self.after, width)
        self.buffers = (self.between, self.x, self.q, self.read, self.gate, self.k, self.v,
                        self.conv_inputs, self.conv_residual)  # fmt: skip
        whole = dict(dtype=torch.int64, device=device)
        self.step = torch.zeros((), **whole)
        keys = torch.arange(left + held, **whole) - self.delay * chunk - left
        self.frames, self.offset = torch.zeros(batch, **whole), torch.zeros(batch, **whole)
        self.learn = torch.ones(batch, dtype=torch.bool, device=device)
        own = keys[left + self.after :][:chunk]
        self.near = window_mask(own, keys, *window, config.att_chunk(window))  # [C, K]
        self.own = own[:, None] == keys
        self.state_dtype = layers.initial.w0.dtype
        dtype = working_dtype(layers.initial.w0, self.x, config.use_muon)
        lengths = FastWeights(*(self._rows(ops.row_length(w.to(dtype))) for w in layers.initial))
        options = (lengths, chunk, config.use_muon, config.use_momentum)
        if config.lact_retention < 1:
            anchor = FastWeights(*(self._rows(w.to(dtype)) for w in layers.initial))
            options = (*options, anchor, config.lact_retention)
        memory = ops.fast_steps.FastChunks if fast else ReferenceChunks
        self.memory = memory(*options, relevance=config.relevance)
        kernels = ops.triton_pieces
        usable = fast and kernels is not None and kernels.why_not(self.sizes, self.x) is None
        self.pieces = kernels if usable else pieces
        self.side = torch.cuda.Stream(device) if self.x.is_cuda and self.delay and not self.after else None

    def _rows(self, x: Tensor) -> Tensor:
        """[L, ...] -> [R, ...]."""
        return x.repeat_interleave(self.batch, dim=0)

    def start(self, frames: Tensor, learn: Tensor | None, offset: Tensor | None, states: list[MemoryState | None]):
        """Fresh: B rows of so many frames in all. Arguments as SegmentedPass's."""
        for buffer in self.buffers:
            buffer.zero_()
        self.step.zero_()
        self.frames.copy_(frames)
        self.learn.fill_(True) if learn is None else self.learn.copy_(learn)
        self.offset.zero_() if offset is None else self.offset.copy_(offset)
        dtype = working_dtype(self.layers.initial.w0, self.x, self.config.use_muon)
        weights = [self._rows(w.to(dtype)) for w in self.layers.initial]
        momentum = [torch.zeros_like(w) for w in weights]
        if any(state is not None for state in states):
            nothing = FastWeights(*(w[: self.batch] * 0 for w in weights))  # a layer without memory has no state
            states = [MemoryState(nothing, nothing) if state is None else state for state in states]
            weights = [w + torch.cat(parts).to(dtype) for w, parts in zip(weights, zip(*(s.weights for s in states)))]
            momentum = [torch.cat(parts).to(dtype) for parts in zip(*(s.momentum for s in states))]
        self.memory.start(FastWeights(*weights), FastWeights(*momentum))

    def states(self) -> list[MemoryState]:
        """The memory of each layer, as differences from its initial weights."""
        weights, momentum = self.memory.state()
        initial = [self._rows(w.to(weights.w0.dtype)) for w in self.layers.initial]
        moved = [(w - i).to(self.state_dtype).split(self.batch) for w, i in zip(weights, initial)]
        momentum = [m.to(self.state_dtype, copy=True).split(self.batch) for m in momentum]
        return [
            MemoryState(FastWeights(*(m[i] for m in moved)), FastWeights(*(m[i] for m in momentum)))
            for i in range(self.count)
        ]

    def __call__(self) -> None:
        chunk, layers, after = self.chunk, self.layers, self.after
        moment = self.pieces.moment(
            self.step, 1 + self.delay, self.k.size(1) - chunk, self.k.size(1), chunk, self.frames, self.learn,
            self.offset, self.count,
        )  # fmt: skip
        heard = moment.heard
        self.pieces.roll((self.read, self.gate), chunk)

        x = self.between[:-1].reshape(self.count, -1, self.config.d_model)  # [L, B · C, D]
        if layers.ff1 is not None:
            x = self._feed_forward(x, layers.ff1)
        self.x[:, -chunk:] = x.view(self.rows, chunk, -1)
        p = torch.bmm(self._normed(x), layers.project).view(self.rows, chunk, -1)
        to = tuple(t[:, -chunk:] for t in (self.q, self.k, self.v, self.gate))
        inputs = self.pieces.split_projection(
            p, layers.project_bias, layers.q_norm, layers.k_norm, layers.scale, layers.offset, moment.start,
            self.sizes, to,
        )  # fmt: skip
        # With a delay the read is not needed before the next step: beside the rest, while `inputs` are kept alive.
        if self.side is None:
            self._remember(inputs, moment)
        else:
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                self._remember(inputs, moment)

        now = slice(after, after + chunk)
        near = self._attend(self.q[:, now], heard)
        mixed = self.pieces.add_read(near, self.read[:, now], self.gate[:, now], layers.read_norm, layers.norm_eps)
        x = self.x[:, now].reshape(x.shape)
        y = torch.baddbmm(x, mixed.view(x.shape), layers.out)
        if layers.out_bias is not None:
            y = y + layers.out_bias
        if layers.conv is not None:
            y = self._convolve(y, heard[:, self.window[0] + after :][:, :chunk])
        y = self._feed_forward(y, layers.ff2, out=self.between[1:].view(x.shape))
        if layers.block_norm is not None:
            scale, offset = (t[:, None] for t in layers.block_norm)  # [L, 1, D]
            torch.addcmul(offset, self._normed(y), scale, out=y)
        self.step += 1
        self.pieces.roll((self.x, self.q, self.k, self.v), chunk)  # for the next step; `read` is still being written
        if self.side is not None:
            torch.cuda.current_stream().wait_stream(self.side)

    def _remember(self, inputs: pieces.MemoryInput, moment: pieces.Moment) -> None:
        q, k, v, eta, mu = inputs
        config = self.config
        out = self.read[:, -self.chunk :].unflatten(-1, (config.num_lact_heads, -1)).transpose(1, 2)
        if config.lact_mode == 'causal' or not self.adaptation:
            self.memory.read(q, out)
        if self.adaptation:
            self.memory.learn(k, v, eta, self.pieces.mean_gate(mu, moment), moment.valid, moment.count)
            if config.lact_mode == 'bidirectional':
                self.memory.read(q, out)

    def _attend(self, q: Tensor, heard: Tensor) -> Tensor:
        """[R, C, D] -> [R, C, D]."""
        config = self.config
        q, k, v = (x.unflatten(-1, (config.n_heads, -1)).transpose(1, 2) for x in (q, self.k, self.v))
        kernel = ops.attention.triton_attention
        if kernel is not None and not config.att_chunk(self.window) and kernel.can_run(q, k, v, *self.window, 0.0):
            near = kernel.window_forward(q, k, v, heard, *self.window, ahead=self.window[0] + self.after)
        else:
            mask = (self.near & heard[:, None, None]) | self.own  # [R, 1, C, K]; padding sees itself
            near = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return near.transpose(1, 2).flatten(2)

    def _normed(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.layers.eps)  # scale and offset are in the products that follow

    def _feed_forward(self, x: Tensor, weights: tuple, out: Tensor | None = None) -> Tensor:
        """x + feed-forward of it, [L, M, D]."""
        up, up_bias, down, down_bias = weights
        hidden = self.pieces.swiglu(torch.bmm(self._normed(x), up), up_bias)
        if down_bias is not None:
            x = x + down_bias
        return torch.baddbmm(x, hidden, down) if out is None else torch.baddbmm(x, hidden, down, out=out)

    def _convolve(self, x: Tensor, valid: Tensor) -> Tensor:
        """x + convolution, [L, M, D]: for the frames `after` before those given, whose right context is here now."""
        conv, shape = self.layers.conv, x.shape
        inner = F.glu(torch.bmm(self._normed(x), conv['into']) + conv['into_bias'][:, None].to(x.dtype), dim=-1)
        inner = inner.view(self.rows, self.chunk, -1).masked_fill(~valid[..., None], 0.0)
        inner = torch.cat([self.conv_inputs, inner], dim=1)  # [R, kernel − 1 + C, D]
        residual = torch.cat([self.conv_residual, x.view(self.rows, self.chunk, -1)], dim=1)
        self.conv_inputs.copy_(inner[:, self.chunk :])
        self.conv_residual.copy_(residual[:, self.chunk :])
        y = inner.view(self.count, self.batch, -1, shape[-1]).permute(1, 0, 3, 2).flatten(1, 2)  # [B, L · D, .]
        y = F.conv1d(y, conv['depth'], conv['depth_bias'], groups=y.size(1))  # [B, L · D, C]
        y = y.unflatten(1, (self.count, -1)).permute(1, 0, 3, 2).reshape(shape)
        if conv['layer_norm'] is not None:
            y = F.layer_norm(y, y.shape[-1:], eps=conv['layer_norm'])
        y = F.silu(y * conv['scale'][:, None].to(y.dtype) + conv['shift'][:, None].to(y.dtype))
        y = torch.baddbmm(residual[:, : self.chunk].reshape(shape), y, conv['out'])
        return y if conv['out_bias'] is None else y + conv['out_bias']


def fast_memories_problem(encoder, dtype: torch.dtype, device) -> str | None:
    """`fast_memory_problem` of an encoder, of which not all layers need have a memory."""
    return fast_memory_problem(encoder.config, next(iter(encoder.memories()), None), dtype, device)


def fast_memory_problem(config, memory, dtype: torch.dtype, device) -> str | None:
    """What keeps the fast memory from the steps of a layer's memory (None: one with states in fp32), None: nothing."""
    if ops.implementation() == 'reference':
        return 'the reference memory is asked for'
    q = torch.empty((1, 1, 1, config.lact_head_width), dtype=dtype, device=device)
    state = torch.float32 if memory is None else memory.state_dtype
    w0 = torch.empty((1, config.lact_hidden_width, config.lact_head_width), dtype=state, device='meta')
    return ops.why_not_fast(q, torch.empty(1, 1, 1, 3, config.lr_dim), FastWeights(w0, w0, w0), config.lact_mode)
