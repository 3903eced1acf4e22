"""Evaluation of input of any length in flat memory: the whole pass, cut into segments that give the same.

Every layer is a queue. It holds the frames whose right context (attention window, convolution, the rest of a memory
chunk) is not there yet, and the left context of those to come; what is complete goes on to the next layer. So a
segment comes out some chunks later than it went in, and nothing is computed from less context than in a whole pass.
On a GPU, wavefront.py does the layers' part with all of them at once.
"""

import torch
from torch import Tensor

from nemo_lact.modules.fast_weights import MemoryState
from nemo_lact.modules.lact_layer import LaCTLayer
from nemo_lact.modules.pauses import ChunkLayout, frame_energy, layout, next_border
from nemo_lact.modules.wavefront import Wavefront, why_not_wavefront
from nemo_lact.ops import rotary_tables

MARGIN = 3  # encoder frames of context given to the front end on both sides; its convolutions see less than one
LANES = 4  # CUDA streams that successive segments take in turn, see SegmentedPass.overlapping
FRONT_FRAMES = 1024  # encoder frames of all rows that the front end works on at a time
_lanes: dict[torch.device, list] = {}


class _Queue:
    """Frames [B, ., D] from `base` on; those before `done` are left context."""

    def __init__(self):
        self.frames: Tensor | None = None
        self.base = self.done = 0

    @property
    def end(self) -> int:
        return self.base + (0 if self.frames is None else self.frames.size(1))

    def add(self, x: Tensor) -> None:
        self.frames = x if self.frames is None else torch.cat([self.frames, x], dim=1)

    def part(self, start: int, stop: int) -> Tensor:
        return self.frames[:, start - self.base : stop - self.base]

    def finish(self, done: int, base: int) -> None:
        """`done` frames are out; keep context from `base` on."""
        base = max(self.base, base)
        self.frames = self.frames[:, base - self.base :].clone()  # a view would keep the whole
        self.base, self.done = base, done


class _LayerPass:
    """One layer, fed in segments."""

    def __init__(self, layer: LaCTLayer, owner: 'SegmentedPass', state: MemoryState | None):
        self.layer, self.owner, self.state = layer, owner, state
        self.mixing, self.convolving = _Queue(), _Queue()
        self.done: torch.cuda.Event | None = None  # on a GPU, the last segment's work in this layer

    def take_turn(self, lane: torch.cuda.Stream) -> None:
        """From here on in `lane`: after the segment before, whose tensors must outlive their use here."""
        if self.done is not None:
            lane.wait_event(self.done)
        kept = [self.mixing.frames, self.convolving.frames]
        if self.state is not None:
            kept += [*self.state.weights, *self.state.momentum]
        for tensor in kept:
            if tensor is not None:
                tensor.record_stream(lane)

    def feed(self, x: Tensor, last: bool) -> Tensor:
        """[B, n, D] more frames -> [B, m, D] frames that are complete, in order."""
        queue, outputs = self.mixing, []
        queue.add(self.layer.before(x))
        whole = queue.end if last else self.owner.complete(queue.end)
        while queue.done < whole:  # at the end of the input a deep layer has many segments left
            y = self._mix(self.owner.piece(queue.done, whole))
            if self.layer.conv is not None:
                y = self._convolve(y, last and queue.done == whole)
            outputs.append(self.layer.after(y))
        return torch.cat(outputs, dim=1) if outputs else x[:, :0]

    def _mix(self, stop: int) -> Tensor:
        """Frames from where it stands to `stop`."""
        queue, owner, mixer = self.mixing, self.owner, self.layer.mixer
        done, end = queue.done, queue.end
        context_end = min(end, max(stop + owner.right, owner.whole_attention_chunks(stop, up=True)))
        h = self.layer.norm_mixer(queue.part(queue.base, context_end))
        positions = torch.arange(queue.base, context_end, device=h.device)
        tables = owner.tables(positions)
        valid = owner.valid(positions)
        q, k, v = mixer.qkv(h).chunk(3, dim=-1)  # [B, context, D] each
        own = slice(done - queue.base, stop - queue.base)
        near = mixer.near(q, k, v, valid, *tables, owner.window)[:, own]
        far = None
        if mixer.memory is not None:
            far, self.state = mixer.memory(
                h[:, own], q[:, own], k[:, own], v[:, own], valid[:, own] & owner.learn,
                *(t[..., own, :] for t in tables), owner.adaptation, self.state, True,
                owner.layout(done, stop, h.device),
            )  # fmt: skip
        y = queue.part(done, stop) + mixer.joined(near, far)
        queue.finish(stop, owner.whole_attention_chunks(max(0, stop - owner.left)))
        return y

    def _convolve(self, x: Tensor, last: bool) -> Tensor:
        queue = self.convolving
        left, right = self.owner.config.conv_context
        queue.add(x)
        done, end = queue.done, queue.end
        stop = end if last else end - right
        if stop <= done:
            return x[:, :0]
        valid = self.owner.valid(torch.arange(queue.base, end, device=x.device))
        mixed = self.layer.conv(self.layer.norm_conv(queue.frames), pad_mask=~valid)
        y = queue.part(done, stop) + mixed[:, done - queue.base : stop - queue.base]
        queue.finish(stop, max(0, stop - left))
        return y


class SegmentedPass:
    """One evaluation of B rows that begin together, fed with features piece by piece.

    Args:
        encoder: LaCTEncoder in evaluation mode.
        length: [B] feature frames of each row in all.
        states: of each layer the memory the rows start from; None is fresh, or a layer without memory.
        learn: [B] bool, rows whose memory may learn; None is all.
        offset: [B] frames heard before, for a memory with positions; None is 0.

    `feed` returns encoded frames [B, D', m] as they become complete; after the last one `layer_states` holds the
    memory.
    """

    def __init__(
        self,
        encoder,
        length: Tensor,
        states: list[MemoryState | None],
        learn: Tensor | None = None,
        offset: Tensor | None = None,
    ):
        self.encoder, self.config = encoder, encoder.config
        self.window = self.left, self.right = tuple(encoder.att_context_size)
        self.adaptation = encoder.adaptation
        self.chunk = encoder.config.lact_chunk_size
        self.attention_chunk = encoder.config.att_chunk(self.window)
        self.segment = encoder.segment_size(length.size(0))
        self.length = length
        self.frames = encoder.output_lengths(length)  # [B] encoder frames of each row
        self.learn = torch.ones_like(length, dtype=torch.bool)[:, None] if learn is None else learn[:, None]
        self.offset = offset
        self.layers = [_LayerPass(layer, self, state) for layer, state in zip(encoder.layers, states)]
        chunks = -(-int(self.frames.max()) // self.chunk) if length.size(0) else 0
        self.wave = None  # all layers at once, instead of self.layers
        if why_not_wavefront(encoder, chunks) is None:
            self.wave = Wavefront(encoder, self.frames, states, learn, offset)
        self.features: Tensor | None = None  # [B, F, .] from feature frame `base` on
        self.base = self.encoded = self.waiting_frames = 0
        self.tolerance = self.config.lact_chunk_tolerance
        if self.tolerance and length.size(0) != 1:
            raise ValueError(f'lact_chunk_tolerance={self.tolerance} puts borders elsewhere in each row; give one row')
        self.borders, self.energy = [0], torch.zeros(0)  # with a tolerance: chosen so far, and of the frames encoded
        self.waiting: list[Tensor] = []  # front end's output until there is a segment of it
        self.lanes: list[torch.cuda.Stream] = []
        self.turn = 0

    @property
    def layer_states(self) -> list[MemoryState | None]:
        return [layer.state for layer in self.layers] if self.wave is None else self.wave.states()

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.offset is not None:
            positions = (positions + self.offset[:, None])[:, None]  # [B, 1, n]
        return rotary_tables(positions, self.config.d_model // self.config.n_heads, self.config.rope_theta)

    def valid(self, positions: Tensor) -> Tensor:
        return positions < self.frames[:, None]  # [B, n]

    def whole_attention_chunks(self, frames: int, up: bool = False) -> int:
        size = self.attention_chunk or 1
        return -(-frames // size) * size if up else frames // size * size

    def complete(self, end: int) -> int:
        """Up to which frame a layer that has heard `end` frames can go: whole memory chunks with all they attend to."""
        if self.tolerance:
            return max(b for b in self.borders if b <= max(0, end - self.right))
        if self.attention_chunk:
            return self.whole_attention_chunks(end) // self.chunk * self.chunk
        return max(0, end - self.right) // self.chunk * self.chunk

    def piece(self, done: int, stop: int) -> int:
        """Up to where a layer goes at once: a segment of whole memory chunks."""
        if stop - done <= self.segment:
            return stop
        if not self.tolerance:
            return done + self.segment
        within = [b for b in self.borders if done < b <= done + self.segment]
        return within[-1] if within else min(stop, next(b for b in self.borders if b > done))

    def layout(self, start: int, stop: int, device) -> ChunkLayout | None:
        if not self.tolerance:
            return None
        return layout([self.borders], start, stop, self.chunk + self.tolerance, device)

    def _choose_borders(self, start: int, stop: int, last: bool) -> None:
        """The loudness of encoder frames [start, stop) has come: more borders may be certain."""
        factor = self.encoder.subsampling_factor
        first = max(0, (start - 1) * factor)
        x = self.features[:, :, first - self.base : stop * factor - self.base]
        t = torch.arange(first, first + x.size(2), device=x.device)
        energy = frame_energy(x.masked_fill(t >= self.length[:, None, None], 0.0), factor)[0]
        self.energy = torch.cat([self.energy, energy[start - first // factor :][: stop - start].cpu()])
        frames = int(self.frames[0])
        # A border is certain when all frames it may take have come.
        ahead = 0 if last else self.chunk + self.tolerance
        while self.borders[-1] + ahead < len(self.energy):
            self.borders.append(next_border(self.energy, self.borders[-1], frames, self.chunk, self.tolerance))

    def feed(self, features: Tensor, last: bool) -> Tensor:
        """[B, F, n] more feature frames -> [B, D', m] more encoder frames; `last`: nothing follows."""
        self.features = features if self.features is None else torch.cat([self.features, features], dim=2)
        factor = self.encoder.subsampling_factor
        heard = self.base + self.features.size(2)
        ready = self.encoder.output_frames(heard) if last else heard // factor - MARGIN
        block = min(max(32, FRONT_FRAMES // self.length.size(0)), self.segment)
        outputs = []
        while self.encoded < ready:
            stop = min(ready, self.encoded + block)
            if stop - self.encoded < block and not last:
                break  # wait for a whole block
            self._front(self.encoded, stop, last and stop == ready)
            self.encoded = stop
            if self.waiting_frames >= (self.segment if self.wave is None else 1):
                outputs.append(self._run(False))
        keep = max(0, (self.encoded - MARGIN) * factor)
        if keep > self.base:
            self.features, self.base = self.features[:, :, keep - self.base :].clone(), keep
        if last:
            outputs.append(self._run(True))
        if not outputs:
            return features.new_zeros(features.size(0), self.encoder._feat_out, 0)
        if len(outputs) > 1:
            self.join()
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def _front(self, start: int, stop: int, last: bool) -> None:
        """Features to encoder frames [start, stop)."""
        factor = self.encoder.subsampling_factor
        first = max(0, (start - MARGIN) * factor)
        end = self.base + self.features.size(2)
        if not last:
            end = min(end, (stop + MARGIN) * factor)
        x = self.features[:, :, first - self.base : end - self.base]
        x = self.encoder.front_end(x, (self.length - first).clamp(min=0, max=end - first))[0]  # [B, ., D]
        self.waiting.append(x[:, start - first // factor : stop - first // factor])
        self.waiting_frames += stop - start
        if self.tolerance:
            self._choose_borders(start, stop, last)

    def _run(self, last: bool) -> Tensor:
        x = torch.cat(self.waiting, dim=1) if self.waiting else self._nothing()
        self.waiting, self.waiting_frames = [], 0
        if not self.lanes:
            return self._through_layers(x, last)
        lane = self.lanes[self.turn % len(self.lanes)]
        self.turn += 1
        lane.wait_stream(torch.cuda.current_stream())
        x.record_stream(lane)
        with torch.cuda.stream(lane):
            y = self._through_layers(x, last, lane)
        y.record_stream(torch.cuda.current_stream())
        return y

    def _through_layers(self, x: Tensor, last: bool, lane: torch.cuda.Stream | None = None) -> Tensor:
        if self.wave is not None:
            return self.encoder.head(self.wave.feed(x, last)).transpose(1, 2)
        for layer in self.layers:
            if lane is not None:
                layer.take_turn(lane)
            x = layer.feed(x, last)
            if lane is not None:
                layer.done = lane.record_event()
        return self.encoder.head(x).transpose(1, 2)  # [B, D', m]

    def overlapping(self) -> 'SegmentedPass':
        """Lets a GPU work on several segments at once, each in a lower layer than the one before: the memory's steps,
        one after the other and small, then run beside the large products. Results are there after `join`.
        """
        if self.length.is_cuda and self.wave is None:
            device = self.length.device
            if device not in _lanes:
                _lanes[device] = [torch.cuda.Stream(device) for _ in range(LANES)]
            self.lanes = _lanes[device]
        return self

    def join(self) -> None:
        """Wait, on the current stream, for everything fed so far."""
        if self.lanes:
            here = torch.cuda.current_stream()
            for lane in self.lanes:
                here.wait_stream(lane)
            for layer in self.layers:
                layer.take_turn(here)

    def _nothing(self) -> Tensor:
        weight = self.encoder.norm_out.weight
        return weight.new_zeros(self.length.size(0), 0, self.config.d_model)
