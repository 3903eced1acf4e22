"""NeMo's StreamingEncoder interface over `LaCTState`, for its streaming script, inference pipelines and export.

In NeMo's caches a fresh stream is zeros, and the batch is dimension 1:

    cache_last_channel      [n_layers, B, R, d_model] fp32: L rows of keys, L of values, the rest is the memory
                            (differences of W0, W1, W2, momentum, the unfinished chunk; zeros where a layer has none), L
                            the left context
    cache_last_time         [n_layers, B, d_model, kernel − 1] fp32: inputs of the convolution module
    cache_last_channel_len  [B] int64: feature frames heard, so that every step knows where its encoder frames lie
                            however NeMo's script or pipeline has padded the first
"""

import torch
from nemo.collections.asr.models.configs import CacheAwareStreamingConfig
from nemo.collections.asr.parts.mixins.streaming import StreamingEncoder
from torch import Tensor

from nemo_lact.modules.fused_step import laid_out, why_not_fused_step
from nemo_lact.modules.streaming import CONTEXT, StreamingMixin, changed, rows_at
from nemo_lact.state import LaCTState


class CacheAwareMixin(StreamingMixin, StreamingEncoder):
    """What NeMo asks of an encoder that streams. An offline one raises ValueError saying what to change.

    Attributes:
        caches_in_place: True: a step may write over the caches it is given; on a GPU that saves a copy of them, in time
            and memory. For callers that go on with the caches returned only, as NeMo's script and pipelines do.
    """

    caches_in_place = False

    def setup_streaming_params(
        self,
        chunk_size: int | None = None,
        shift_size: int | None = None,
        left_chunks: int | None = None,
        att_context_size: list[int] | None = None,
        max_context: int = 10000,
    ) -> None:
        """Set `streaming_cfg` for steps of one attention chunk, or of `chunk_size` encoder frames.

        Args:
            chunk_size, shift_size: encoder frames a step; equal, as steps do not overlap here.
            left_chunks, max_context: taken for NeMo's sake; the left context is that of the window.
            att_context_size: the window the step is for; None: the present one.
        """
        wrong = self.config.not_streaming()
        if wrong:
            raise ValueError(f'this encoder cannot stream: {"; ".join(wrong)}')
        left, right = self.att_context_size if att_context_size is None else att_context_size
        attention = self.config.att_chunk((left, right)) or 1
        step = attention if chunk_size is None else chunk_size
        if step < 1 or step % attention or (shift_size is not None and chunk_size is not None and shift_size != step):
            raise ValueError(
                f'chunk_size={chunk_size}, shift_size={shift_size}: steps must be whole attention chunks of '
                f'{attention} encoder frames and must not overlap (shift_size = chunk_size)'
            )
        factor = self.subsampling_factor
        cfg = CacheAwareStreamingConfig()
        cfg.chunk_size = [1 + factor * (step - 1), factor * step]  # the first frame takes one feature
        cfg.shift_size = list(cfg.chunk_size)
        cfg.valid_out_len = step
        cfg.cache_drop_size = 0
        cfg.last_channel_cache_size = left
        cfg.pre_encode_cache_size = [0, CONTEXT * factor]
        cfg.drop_extra_pre_encoded = CONTEXT
        cfg.last_channel_num = cfg.last_time_num = self.n_layers
        self.streaming_cfg = cfg

    def set_default_att_context_size(self, att_context_size: list[int]) -> None:
        """Choose the latency: one of `att_context_size_all`, the windows the model was trained with."""
        wanted = None if att_context_size is None else [int(c) for c in att_context_size]
        if wanted is not None:
            if wanted not in self.att_context_size_all:
                raise ValueError(f'att_context_size={wanted}; this model was made for {self.att_context_size_all}')
            self.att_context_size = wanted
        if not self.config.not_streaming():
            self.setup_streaming_params()

    def get_initial_cache_state(
        self, batch_size: int = 1, dtype: torch.dtype = torch.float32, device=None, max_dim: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Caches of `batch_size` fresh streams; fp32 whatever `dtype` asks, as fast weights need it.

        max_dim above 0 (export): random key and value rows with counts below it.
        """
        self._check_streaming()
        state = self.init_state(batch_size)
        if device is not None:
            state = state.to(device=device)
        channel, time, length = self._pack(state)
        if max_dim > 0:
            length = torch.randint(0, max_dim, (batch_size,), device=length.device, dtype=torch.int64)
            channel[:, :, : 2 * self.att_context_size[0]].normal_()
        return channel, time, length

    def step_example(self, max_batch: int, max_dim: int) -> tuple[Tensor, ...]:
        """What export traces: features of a step with those of the front end's context before them, caches.

        Caches have the batch first. As everywhere with NeMo's caches, a step that is not full ends the stream.
        """
        self._check_streaming()
        cfg = self.streaming_cfg
        if cfg.valid_out_len > self.config.lact_chunk_size:
            raise ValueError(
                f'a step of {cfg.valid_out_len} encoder frames is longer than lact_chunk_size='
                f'{self.config.lact_chunk_size}: its graph would learn from one chunk only. Export with shorter steps'
            )
        channel, time, heard = self.get_initial_cache_state(max_batch, max_dim=max_dim)
        frames = cfg.chunk_size[1] + cfg.pre_encode_cache_size[1]
        signal = torch.randn(max_batch, self._feat_in, frames, device=channel.device)
        length = torch.full((max_batch,), frames, device=channel.device)
        return signal, length, channel.transpose(0, 1), time.transpose(0, 1), heard

    def streaming_post_process(self, rets, keep_all_outputs: bool = True):
        """What NeMo may drop from a step is not there: a frame comes out when all it looks at was heard."""
        return (*rets, None, None, None) if len(rets) == 2 else rets

    def _cache_forward(self, audio_signal, length, channel, time, heard, bypass_pre_encode: bool):
        """One step with NeMo's caches: five results as ConformerEncoder gives."""
        self._check_streaming()
        if not torch.jit.is_tracing() and not channel[0, 0].is_contiguous():
            channel = channel.contiguous()
        state = self._unpack(channel, time, heard)
        if bypass_pre_encode:
            x, count = audio_signal, length.to(torch.int64).clamp(max=audio_signal.size(1))
            filled = None if torch.jit.is_tracing() else (state.filled + count).tolist()
            state = changed(state, heard=state.heard + count * self.subsampling_factor)
        else:
            self._check_input(audio_signal)
            cfg = self.streaming_cfg
            again = cfg.pre_encode_cache_size[1] if cfg.drop_extra_pre_encoded else 0
            new = (length.to(torch.int64) - again).clamp(min=0)
            # NeMo does not say where a stream ends. Its last step is a short one.
            final = new < cfg.chunk_size[1 if again else 0]
            x, count, filled = self._new_frames(audio_signal.transpose(1, 2), again, new, state, final)
            state = changed(state, heard=state.heard + new)
        if x.size(1) == 0:
            return x.new_zeros(x.size(0), self._feat_out, 0), count, *self._packed(state, time)
        fused = filled is not None and why_not_fused_step(self, state) is None
        if fused and not self.config.memory_everywhere:  # the caches do not hold a state as kernels write it
            state = laid_out(state)
            after = self._room(state, self.adaptation and max(filled) >= self.config.lact_chunk_size)
            x, state = self._stream_fused(x, count, state, after, filled, None)
            caches = self._packed(state, time)
        elif fused:
            caches = (channel, time) if self.caches_in_place else self._next_caches(channel, time)
            x, state = self._stream_fused(x, count, state, self._unpack(*caches, state.heard), filled, None)
            caches = (*caches, state.heard)
        else:
            x, state = self._stream_layers(x, count, state)
            caches = self._packed(state, time)
        # NeMo's pipeline decodes padding: frames that repeat the last one change no CTC text.
        last = torch.minimum(torch.arange(x.size(2), device=x.device), count[:, None] - 1)
        return rows_at(x.transpose(1, 2), last).transpose(1, 2), count, *caches

    def _next_caches(self, channel: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Caches for a step to write: of the memory, weights and momentum are there already."""
        if not self.adaptation:
            return channel.clone(), torch.empty_like(time)
        new = torch.empty_like(channel)
        keys = 2 * self.att_context_size[0] * self.d_model
        matrix = self.config.num_lact_heads * self.config.lact_head_width * self.config.lact_hidden_width
        settled = keys + (6 if self.config.use_momentum else 3) * matrix
        gathered = settled + 3 * matrix + self.config.num_lact_heads
        for part in (slice(keys, settled), slice(gathered, None)):
            new.flatten(2)[:, :, part].copy_(channel.flatten(2)[:, :, part])
        return new, torch.empty_like(time)

    def _packed(self, state: LaCTState, time: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        channel, new_time, heard = self._pack(state)
        return channel, new_time if state.convolution else time, heard

    def _pack(self, state: LaCTState) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = state.attention
        remembered = (*state.weights, *state.momentum, *state.pending)
        if not self.config.memory_everywhere:
            remembered = [self._in_every_layer(t) for t in remembered]
        parts = [t.flatten(2) for t in (keys, values, *remembered)]
        spare = -sum(t.size(2) for t in parts) % self.d_model
        if spare:
            parts.append(torch.zeros_like(parts[2][:, :, :spare]))
        channel = torch.cat(parts, dim=2).unflatten(2, (-1, self.d_model))  # copied once: many streams are many GB
        time = state.convolution[0].transpose(2, 3) if state.convolution else keys.new_zeros(
            self.n_layers, keys.size(1), self.d_model, 0
        )
        return channel, time.contiguous(), state.heard

    def _in_every_layer(self, x: Tensor) -> Tensor:
        """[memories, B, ...] -> [n_layers, B, ...], zeros where there is no memory."""
        layers = self.config.memory_layers
        nothing = x.new_zeros(1, *x.shape[1:]) if layers else x.new_zeros(1, *x.shape[1:2], 0)
        return torch.cat([x[layers.index(i)][None] if i in layers else nothing for i in range(self.n_layers)])

    def _unpack(self, channel: Tensor, time: Tensor, heard: Tensor) -> LaCTState:
        left = self.att_context_size[0]
        frames = (heard + self.subsampling_factor - 1) // self.subsampling_factor
        flat = channel[:, :, 2 * left :].flatten(2)
        config = self.config
        heads, width, hidden = config.num_lact_heads, config.lact_head_width, config.lact_hidden_width
        shapes = [(heads, hidden, width), (heads, width, hidden), (heads, hidden, width)]
        layers = config.memory_layers
        if not config.memory_everywhere:
            flat = torch.stack([flat[i] for i in layers]) if layers else None
        groups, at = [], 0
        for shape in shapes * (3 if config.use_momentum else 2) + [(heads,)]:
            size = torch.Size(shape).numel()
            here = channel.new_zeros(0, channel.size(1), size) if flat is None else flat[:, :, at : at + size]
            groups.append(here.unflatten(2, shape))
            at += size
        return LaCTState(
            weights=tuple(groups[:3]),
            momentum=tuple(groups[3:6]) if config.use_momentum else (),
            pending=tuple(groups[-4:]),
            attention=(channel[:, :, :left], channel[:, :, left : 2 * left]),
            convolution=(time.transpose(2, 3),) if config.conv_kernel_size else (),
            position=frames,
            frames=frames,
            filled=frames % config.lact_chunk_size,
            heard=heard,
        )
