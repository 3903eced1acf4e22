"""Streaming: the encoder fed step by step with a `LaCTState`. NeMo's interface over it is in cache_aware.py."""

import torch
from torch import Tensor

from nemo_lact.modules.fast_weights import stacked
from nemo_lact.modules.fused_step import fused_step, laid_out, pace_of, why_not_fused_step
from nemo_lact.ops import rotary_tables
from nemo_lact.state import LaCTState

CONTEXT = 2  # encoder frames before the first new one whose features the front end sees again
STEP_FRAMES = 256  # encoder frames at a time, at most: attention of a step makes a mask of so many squared


class StreamingMixin:
    """What `LaCTEncoder` has for streaming. Needs a streaming config; others raise ValueError saying what to change."""

    def stream_step(
        self,
        features: Tensor,
        length: Tensor | None,
        state: LaCTState,
        final: Tensor | bool = False,
        learn: Tensor | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor, LaCTState]:
        """Feed the next features of B streams, each any number of frames; the sum equals the offline output.

        Args:
            features: [B, feat_in, n], not normalised over time (`normalize: NA`).
            length: [B] of them valid, 0 to n; None: all n.
            state: from `init_state(B)` or the step before.
            final: True, or [B] bool: the stream ends here, so that its last frames come out.
            learn: [B] bool, streams whose memory may learn; None: all.
            in_place: the state given, and what shares its tensors, may be written over: on a GPU that saves a copy of
                it, in time and memory. Go on with the state returned only.

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
            part = features[:, :, start : start + block]
            out, count, state = self._stream_block(part, here, state, ends, learn, in_place)
            outputs.append(out)
            counts.append(count)
        if len(outputs) == 1:
            return outputs[0], counts[0], state
        return *_join(outputs, counts), state

    def _stream_block(self, features, length, state, final, learn, in_place) -> tuple[Tensor, Tensor, LaCTState]:
        kept = state.features[0][0]  # [B, P, F]: the last P frames heard
        features = features.transpose(1, 2)  # [B, n, F]
        together = torch.cat([kept.to(features.dtype), features], dim=1)
        x, count, filled = self._new_frames(together, kept.size(1), length, state, final)
        state = changed(state, features=(_latest(together, kept.size(1), length)[None],), heard=state.heard + length)
        if x.size(1) == 0:
            return x.new_zeros(x.size(0), self._feat_out, 0), count, state
        if filled is not None and why_not_fused_step(self, state) is None:
            state = laid_out(state)
            learns = self.adaptation and max(filled) >= self.config.lact_chunk_size
            after = state if in_place else self._room(state, learns)
            x, state = self._stream_fused(x, count, state, after, filled, learn)
        else:
            x, state = self._stream_layers(x, count, state, learn)
        return x, count, state

    def _new_frames(
        self, features: Tensor, again: int, length: Tensor, state: LaCTState, final: Tensor
    ) -> tuple[Tensor, Tensor, list[int] | None]:
        """The encoder frames that `length` [B] new feature frames complete, of whole attention chunks.

        features: [B, again + ., F], of which the first `again` were heard before (or are padding, if less was heard).

        Returns:
            Frames [B, n, D], valid [B] of them, frames of the unfinished memory chunks if all of these are learned (for
            the host; None while tracing).
        """
        factor = self.subsampling_factor
        chunk = self.config.att_chunk(tuple(self.att_context_size)) or 1
        heard = state.heard + length
        ready = torch.where(heard > 0, (heard - 1) // factor + 1, 0) // chunk * chunk
        ready = torch.where(final, self.output_lengths(heard), ready)  # [B] encoder frames of the utterance
        count = (ready - state.frames).clamp(min=0) * (length > 0)
        first = ((state.frames - CONTEXT) * factor).clamp(min=0)  # feature frame where the front end starts
        end = torch.where(final, heard, torch.minimum(heard, (ready - 1) * factor + 1))
        span = ((end - first) * (count > 0)).clamp(min=0)
        if torch.jit.is_tracing():  # a number would be frozen in
            most, width, filled = self.streaming_cfg.valid_out_len, features.size(1), None
        else:  # the host waits for the device here, once a step
            counts, spans, filled = torch.stack([count, span, state.filled + count]).tolist()
            most, width = max(counts), max(spans)
        if most == 0:
            return features.new_zeros(features.size(0), 0, self.d_model), count, filled
        index = (first - state.heard + again)[:, None] + torch.arange(width, device=features.device)
        x = self.front_end(rows_at(features, index).transpose(1, 2), span)[0]  # [B, ., D]
        skip = state.frames - first // factor
        return rows_at(x, skip[:, None] + torch.arange(most, device=x.device)), count.clamp(max=most), filled

    def _room(self, state: LaCTState, learns: bool) -> LaCTState:
        """A state for `_stream_fused` to write; learns: a chunk becomes full."""

        def empty(tensors) -> tuple[Tensor, ...]:
            return tuple(torch.empty_like(t) for t in tensors)

        caches = dict(attention=empty(state.attention), convolution=empty(state.convolution))
        if self.adaptation:
            caches['pending'] = empty(state.pending)
        if learns:  # else nothing moves, and both states may share what they have
            caches.update({name: tuple(t.clone() for t in getattr(state, name)) for name in ('weights', 'momentum')})
        return changed(state, **caches)

    def _stream_fused(
        self, x: Tensor, count: Tensor, before: LaCTState, after: LaCTState, filled: list[int], learn: Tensor | None
    ) -> tuple[Tensor, LaCTState]:
        """`_stream_layers` by kernels, where `why_not_fused_step` has no objection; `after` is written."""
        chunk = self.config.lact_chunk_size
        pace = pace_of(before, count, learn, chunk, filled)
        x = fused_step(self, x, before, after, pace)
        state = changed(
            after,
            position=before.position + count,
            frames=before.frames + count,
            filled=(before.filled + pace.learned) % chunk if self.adaptation else before.filled,
        )
        return self.head(x).transpose(1, 2), state

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
        # While tracing a number would be frozen in: take the largest of a step up to a chunk.
        last = 2 * config.lact_chunk_size - 1 if torch.jit.is_tracing() else int(filled.max())
        near_valid = _cache_valid(state.attention[0], state.frames, valid)
        conv_valid = _cache_valid(state.convolution[0], state.frames, valid) if state.convolution else None
        before = self.memories_of(state)
        memories, keys, values, inputs = [], [], [], []
        for i, layer in enumerate(self.layers):
            x = layer.before(x)
            h = layer.norm_mixer(x)
            q, k, v = layer.mixer.qkv(h).chunk(3, dim=-1)
            near, key, value = layer.mixer.near_cached(
                q, k, v, near_valid, *tables, window, state.attention[0][i], state.attention[1][i]
            )
            far = memory = None
            if layer.mixer.memory is not None:
                far, memory = layer.mixer.memory.step(
                    h, q, k, v, learned, *tables, self.adaptation, before[i], state.filled, last
                )
            x = x + layer.mixer.joined(near, far)
            if layer.conv is not None:
                cache = state.convolution[0][i]
                h = torch.cat([cache.to(x.dtype), layer.norm_conv(x)], dim=1)
                x = x + layer.conv(h, pad_mask=~conv_valid)[:, cache.size(1) :]
                inputs.append(_latest(h, cache.size(1), length).to(cache.dtype))
            x = layer.after(x)
            memories.append(memory)
            keys.append(_latest(key, state.attention[0].size(2), length))
            values.append(_latest(value, state.attention[0].size(2), length))
        state = changed(
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
                layer.mixer.memory.settle(memory, filled)
                for layer, memory in zip(self.layers, self.memories_of(state))
                if memory is not None
            ]
            state = changed(state, **stacked(settled, self.config.use_momentum))
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


def changed(state: LaCTState, **changes) -> LaCTState:
    return LaCTState(**{**vars(state), **changes})


def _latest(x: Tensor, keep: int, length: Tensor) -> Tensor:
    """x [B, keep + n, D], cache first, `length` [B] of the n valid: the last `keep` frames heard of each row."""
    return rows_at(x, length[:, None] + torch.arange(keep, device=x.device))


def rows_at(x: Tensor, index: Tensor) -> Tensor:
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
