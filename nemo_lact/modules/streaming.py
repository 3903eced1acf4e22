"""Streaming: the encoder fed step by step with a `LaCTState`, and NeMo's StreamingEncoder interface over it.

In NeMo's caches a fresh stream is zeros, and the batch is dimension 1:

    cache_last_channel      [n_layers, B, R, d_model] fp32: L rows of keys, L of values, the rest is the memory
                            (differences of W0, W1, W2, momentum, the unfinished chunk), L the left context
    cache_last_time         [n_layers, B, d_model, kernel − 1] fp32: inputs of the convolution module
    cache_last_channel_len  [B] int64: encoder frames heard
"""

import torch
from nemo.collections.asr.models.configs import CacheAwareStreamingConfig
from nemo.collections.asr.parts.mixins.streaming import StreamingEncoder
from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling
from torch import Tensor

from nemo_lact.modules.fast_weights import memory_of, stacked
from nemo_lact.ops import rotary_tables
from nemo_lact.state import LaCTState

STEP_FRAMES = 256  # encoder frames at a time, at most: attention of a step makes a mask of so many squared


class FrontEnd(ConvSubsampling):
    """NeMo's, but a stream may end with any number of feature frames.

    A causal front end makes an encoder frame of them, which NeMo's CacheAwareStreamingAudioBuffer would drop.
    """

    def get_sampling_frames(self) -> list[int]:
        return [1, 1]


class StreamingMixin(StreamingEncoder):
    """What `LaCTEncoder` has for streaming. Needs a streaming config; others raise ValueError saying what to change."""

    # ---- our own: any number of features a step

    def stream_step(
        self,
        features: Tensor,
        length: Tensor | None,
        state: LaCTState,
        final: Tensor | bool = False,
        learn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, LaCTState]:
        """Feed the next features of B streams, each any number of frames; the sum equals the offline output.

        Args:
            features: [B, feat_in, n], not normalised over time (`normalize: NA`).
            length: [B] of them valid, 0 to n; None: all n.
            state: from `init_state(B)` or the step before.
            final: True, or [B] bool: the stream ends here, so that its last frames come out.
            learn: [B] bool, streams whose memory may learn; None: all.

        Returns:
            Encoded [B, D', m], valid [B] of them, state. With several look-aheads the window is `att_context_size`.
        """
        self._check_streaming()
        self._check_input(features)
        self._check_state(state, features.size(0))
        if not state.streaming:
            raise ValueError('this state carries the memory only; start from init_state(batch, memory=state)')
        batch, _, frames = features.shape
        if length is None:
            length = torch.full((batch,), frames, device=features.device)
        final = torch.as_tensor(final, device=features.device).expand(batch)
        chunk = self.config.att_chunk(tuple(self.att_context_size)) or 1
        block = max(1, STEP_FRAMES // chunk) * chunk * self.subsampling_factor
        outputs, counts = [], []
        for start in range(0, max(frames, 1), block):
            here = (length - start).clamp(min=0, max=block)
            ends = final & (length - start <= block)
            # A stream that ended in an earlier block has nothing left to give.
            out, count, state = self._stream_block(features[:, :, start : start + block], here, state, ends, learn)
            outputs.append(out)
            counts.append(count)
        if len(outputs) == 1:
            return outputs[0], counts[0], state
        return *_join(outputs, counts), state

    def _stream_block(self, features, length, state, final, learn) -> tuple[Tensor, Tensor, LaCTState]:
        factor = self.subsampling_factor
        chunk = self.config.att_chunk(tuple(self.att_context_size)) or 1
        kept = state.features[0][0]  # [B, P, F]: the last P frames heard
        features = features.transpose(1, 2)  # [B, n, F]
        together = torch.cat([kept.to(features.dtype), features], dim=1)
        heard = state.heard + length
        ready = torch.where(heard > 0, (heard - 1) // factor + 1, 0) // chunk * chunk
        ready = torch.where(final, self.output_lengths(heard), ready)  # [B] encoder frames of the utterance
        count = (ready - state.frames).clamp(min=0)
        first = ((state.frames - 2) * factor).clamp(min=0)  # feature frame where the front end starts
        end = torch.where(final, heard, torch.minimum(heard, (ready - 1) * factor + 1))
        span = ((end - first) * (count > 0)).clamp(min=0)
        most, width = int(count.max()), int(span.max())
        state = _replace(state, features=(_latest(together, kept.size(1), length)[None],), heard=heard)
        if most == 0:
            return features.new_zeros(features.size(0), self._feat_out, 0), count, state
        index = (first - (heard - length) + kept.size(1))[:, None] + torch.arange(width, device=features.device)
        window = _rows(together, index)  # [B, width, F]
        x = self.front_end(window.transpose(1, 2), span)[0]  # [B, ., D]
        skip = state.frames - first // factor
        x = _rows(x, skip[:, None] + torch.arange(most, device=x.device))  # [B, most, D]
        x, state = self._stream_layers(x, count, state, learn)
        return x, count, state

    def _stream_layers(
        self, x: Tensor, length: Tensor, state: LaCTState, learn: Tensor | None = None
    ) -> tuple[Tensor, LaCTState]:
        """[B, n, D] of the front end, `length` [B] of them valid -> [B, D', n] and the state after them."""
        config, window = self.config, tuple(self.att_context_size)
        batch, frames, _ = x.shape
        t = torch.arange(frames, device=x.device)
        valid = t < length[:, None]  # [B, n]
        tables = rotary_tables(
            (state.position[:, None] + t)[:, None], config.d_model // config.n_heads, config.rope_theta
        )  # [B, 1, n, width / 2]
        learned = valid if learn is None else valid & learn[:, None]
        filled = state.filled + learned.sum(dim=1)
        # While tracing a number would be frozen in: take the largest possible.
        last = config.lact_chunk_size - 1 + frames if torch.jit.is_tracing() else int(filled.max())
        near_valid = _cache_valid(state.attention[0], state.frames, valid)
        conv_valid = _cache_valid(state.convolution[0], state.frames, valid) if state.convolution else None
        memories, keys, values, inputs = [], [], [], []
        for i, layer in enumerate(self.layers):
            x = layer.before(x)
            h = layer.norm_mixer(x)
            q, k, v = layer.mixer.qkv(h).chunk(3, dim=-1)
            near, key, value = layer.mixer.near_cached(
                q, k, v, near_valid, *tables, window, state.attention[0][i], state.attention[1][i]
            )
            far, memory = layer.mixer.memory.step(
                h, q, k, v, learned, *tables, self.adaptation, memory_of(state, i), state.filled, last
            )
            x = x + layer.mixer.out(near + far.to(near.dtype))
            if layer.conv is not None:
                cache = state.convolution[0][i]
                h = torch.cat([cache.to(x.dtype), layer.norm_conv(x)], dim=1)
                x = x + layer.conv(h, pad_mask=~conv_valid)[:, cache.size(1) :]
                inputs.append(_latest(h, cache.size(1), length).to(cache.dtype))
            x = layer.after(x)
            memories.append(memory)
            keys.append(_latest(key, state.attention[0].size(2), length))
            values.append(_latest(value, state.attention[0].size(2), length))
        state = _replace(
            state,
            **stacked(memories, config.use_momentum),
            attention=(torch.stack(keys), torch.stack(values)),
            convolution=(torch.stack(inputs),) if inputs else (),
            position=state.position + length,
            frames=state.frames + length,
            filled=filled % config.lact_chunk_size if self.adaptation else state.filled,
        )
        return self.head(x).transpose(1, 2), state

    def end_utterance(self, state: LaCTState, learn: Tensor | None = None) -> LaCTState:
        """The streams end: their unfinished chunks are learned from, caches are cleared, the memory goes on.

        learn: [B] bool, streams that may learn; None: all.
        """
        if state.pending and self.adaptation:
            filled = state.filled if learn is None else state.filled * learn
            settled = [
                layer.mixer.memory.settle(memory_of(state, i), filled) for i, layer in enumerate(self.layers)
            ]
            state = _replace(state, **stacked(settled, self.config.use_momentum))
        return state.next_utterance()

    def _check_streaming(self) -> None:
        wrong = self.config.not_streaming()
        if wrong:
            raise ValueError(
                f'this encoder cannot stream: {"; ".join(wrong)}. Train one with lact_ctc_bpe_streaming.yaml, or '
                f'transcribe whole recordings'
            )
        if self.training:
            raise ValueError('streaming is evaluation: call encoder.eval() first')

    # ---- NeMo's

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
        # The first frame takes one feature, all others `factor`. The second step sees `factor + 1` features again, so
        # the first must have given them: it is of two frames at least.
        cfg.valid_out_len = max(step, 2)
        cfg.chunk_size = [1 + factor * (cfg.valid_out_len - 1), factor * step]
        cfg.shift_size = list(cfg.chunk_size)
        cfg.cache_drop_size = 0
        cfg.last_channel_cache_size = left
        cfg.pre_encode_cache_size = self.pre_encode.get_streaming_cache_size()
        cfg.drop_extra_pre_encoded = 1 + (cfg.pre_encode_cache_size[1] - 1) // factor
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

    def streaming_post_process(self, rets, keep_all_outputs: bool = True):
        """Outputs beyond the step's `valid_out_len` are dropped unless `keep_all_outputs`; caches go unchanged."""
        if len(rets) == 2:
            return rets[0], rets[1], None, None, None
        encoded, length, channel, time, channel_len = rets
        if not keep_all_outputs and self.streaming_cfg.valid_out_len > 0:
            encoded = encoded[:, :, : self.streaming_cfg.valid_out_len]
            length = length.clamp(max=self.streaming_cfg.valid_out_len)
        return encoded, length, channel, time, channel_len

    def _cache_forward(self, audio_signal, length, channel, time, channel_len, bypass_pre_encode: bool):
        """One step with NeMo's caches: five results as ConformerEncoder gives."""
        self._check_streaming()
        if bypass_pre_encode:
            x = audio_signal
            length = length.to(torch.int64)
        else:
            self._check_input(audio_signal)
            x, length = self.front_end(audio_signal, length)
            drop = self.streaming_cfg.drop_extra_pre_encoded
            x, length = x[:, drop:], (length - drop).clamp(min=0)
        length = length.clamp(max=x.size(1))
        if x.size(1) == 0:  # too short a step for a frame
            return x.new_zeros(x.size(0), self._feat_out, 0), length, channel, time, channel_len
        x, state = self._stream_layers(x, length, self._unpack(channel, time, channel_len))
        channel, time, channel_len = self._pack(state)
        return x, length, channel, time, channel_len

    def _pack(self, state: LaCTState) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = state.attention
        memory = [*state.weights, *state.momentum, *state.pending]
        flat = torch.cat([t.flatten(2) for t in memory], dim=2)  # [n_layers, B, numbers]
        flat = torch.nn.functional.pad(flat, (0, -flat.size(2) % self.d_model))
        channel = torch.cat([keys, values, flat.unflatten(2, (-1, self.d_model))], dim=2)
        time = state.convolution[0].transpose(2, 3) if state.convolution else keys.new_zeros(
            self.n_layers, keys.size(1), self.d_model, 0
        )
        return channel, time.contiguous(), state.position

    def _unpack(self, channel: Tensor, time: Tensor, channel_len: Tensor) -> LaCTState:
        left, batch = self.att_context_size[0], channel.size(1)
        flat = channel[:, :, 2 * left :].flatten(2)
        config = self.config
        heads, width, hidden = config.num_lact_heads, config.lact_head_width, config.lact_hidden_width
        shapes = [(heads, hidden, width), (heads, width, hidden), (heads, hidden, width)]
        groups, at = [], 0
        for shape in shapes * (3 if config.use_momentum else 2) + [(heads,)]:
            size = torch.Size(shape).numel()
            groups.append(flat[:, :, at : at + size].reshape(self.n_layers, batch, *shape))
            at += size
        return LaCTState(
            weights=tuple(groups[:3]),
            momentum=tuple(groups[3:6]) if config.use_momentum else (),
            pending=tuple(groups[-4:]),
            attention=(channel[:, :, :left], channel[:, :, left : 2 * left]),
            convolution=(time.transpose(2, 3),) if config.conv_kernel_size else (),
            position=channel_len,
            frames=channel_len,
            filled=channel_len % config.lact_chunk_size,
        )


def _replace(state: LaCTState, **changes) -> LaCTState:
    return LaCTState(**{**vars(state), **changes})


def _latest(x: Tensor, keep: int, length: Tensor) -> Tensor:
    """x [B, keep + n, D], cache first, `length` [B] of the n valid: the last `keep` frames heard of each row."""
    return _rows(x, length[:, None] + torch.arange(keep, device=x.device))


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Frames `index` [B, n] of x [B, T, D]: [B, n, D]."""
    index = index.clamp(min=0, max=x.size(1) - 1)
    return x.gather(1, index[..., None].expand(-1, -1, x.size(2)))


def _cache_valid(cache: Tensor, frames: Tensor, valid: Tensor) -> Tensor:
    """[B, L + n]: which slots of a cache [n_layers, B, L, D] are filled after `frames` [B], then `valid` [B, n]."""
    slots = torch.arange(cache.size(2), device=valid.device)
    return torch.cat([slots >= cache.size(2) - frames[:, None], valid], dim=1)


def _join(outputs: list[Tensor], counts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Blocks [B, D, m_i] with valid counts [B] to one left-aligned [B, D, m]."""
    total = torch.stack(counts).sum(dim=0)
    joined = outputs[0].new_zeros(*outputs[0].shape[:2], int(total.max()))
    at = torch.zeros_like(total)
    for out, count in zip(outputs, counts):
        for row in range(out.size(0)):
            n = int(count[row])
            joined[row, :, int(at[row]) : int(at[row]) + n] = out[row, :, :n]
        at = at + count
    return joined, total
