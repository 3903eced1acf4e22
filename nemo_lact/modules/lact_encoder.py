"""`LaCTEncoder`: the encoder NeMo's CTC models use in place of ConformerEncoder."""

import hashlib
import math
import random
from collections import OrderedDict
from dataclasses import replace

import torch
from nemo.collections.asr.parts.submodules.subsampling import calc_length
from nemo.collections.asr.parts.utils.regularization_utils import compute_stochastic_depth_drop_probs
from nemo.core.classes.common import typecheck
from nemo.core.classes.exportable import Exportable
from nemo.core.classes.mixins import AccessMixin
from nemo.core.classes.module import NeuralModule
from nemo.core.neural_types import (
    AcousticEncodedRepresentation,
    ChannelType,
    LengthsType,
    NeuralType,
    SpectrogramType,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nemo_lact.modules.cache_aware import CacheAwareMixin
from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.fast_weights import FastWeightMemory, MemoryState, memory_of, stacked
from nemo_lact.modules.front_end import FrontEnd
from nemo_lact.modules.fused_layer import fused_layer, why_not_fused
from nemo_lact.modules.kept import versions
from nemo_lact.modules.lact_layer import LaCTLayer
from nemo_lact.modules.pauses import ChunkLayout, borders_of, frame_energy, layout
from nemo_lact.modules.segments import SegmentedPass
from nemo_lact.modules.stacked_layers import products_dtype, stacked_layers
from nemo_lact.ops import rotary_tables
from nemo_lact.state import COUNTERS, LaCTState


class LaCTEncoder(NeuralModule, AccessMixin, Exportable, CacheAwareMixin):
    """Sliding-window attention for the near past, fast weights for the rest of the recording.

    Takes the options of `LaCTEncoderConfig` as keyword arguments; wrong ones raise ValueError with the value, the
    limit and what to do. Output, lengths and neural types are those of NeMo's ConformerEncoder.

    Example:
        >>> encoder = LaCTEncoder(d_model=256, n_layers=4, n_heads=4, subsampling_factor=4)
        >>> outputs, lengths = encoder(audio_signal=torch.randn(2, 80, 500), length=torch.tensor([500, 320]))

    Source: arXiv 2505.23884; docs/design.md says where this differs.
    """

    def __init__(self, **options):
        super().__init__()
        self.config = config = LaCTEncoderConfig.from_kwargs(**options)
        self.d_model = config.d_model
        self.n_layers = config.n_layers
        self.subsampling_factor = config.subsampling_factor
        self.self_attention_model = config.self_attention_model
        self.att_context_size = list(config.window)  # encoder frames, [left, right]
        self.att_context_size_all = [list(window) for window in config.windows]
        self.att_context_style = config.att_context_style
        self.conv_context_size = list(config.conv_context)
        # May be switched at any time; False freezes the memory.
        self.adaptation = config.adaptation and bool(config.memory_layers)
        self._feat_in = config.feat_in
        self._feat_out = config.feat_out if config.feat_out > 0 else config.d_model

        channels = config.subsampling_conv_channels
        self.pre_encode = FrontEnd(
            subsampling=config.subsampling,
            subsampling_factor=config.subsampling_factor,
            feat_in=config.feat_in,
            feat_out=config.d_model,
            conv_channels=channels if channels > 0 else config.d_model,
            subsampling_conv_chunking_factor=config.subsampling_conv_chunking_factor,
            activation=nn.ReLU(True),
            is_causal=config.causal_downsampling,
        )
        self.dropout = nn.Dropout(config.dropout_pre_encoder)
        self.layers = nn.ModuleList(LaCTLayer(config, i in config.memory_layers) for i in range(config.n_layers))
        self.norm_out = nn.LayerNorm(config.d_model)
        self.out_proj = nn.Linear(config.d_model, self._feat_out) if self._feat_out != config.d_model else None
        self.layer_drop_probs = compute_stochastic_depth_drop_probs(
            config.n_layers,
            config.stochastic_depth_drop_prob,
            config.stochastic_depth_mode,
            config.stochastic_depth_start_layer,
        )
        self.interctc_capture_at_layers = None  # set in forward from the AccessMixin config
        self.export_cache_support = False  # True exports a streaming step, with caches
        self.streaming_cfg = None
        self._fingerprint = None
        if not config.not_streaming():
            self.setup_streaming_params()

    # ---- what NeMo asks of an encoder

    @property
    def input_types(self):
        return OrderedDict(
            audio_signal=NeuralType(('B', 'D', 'T'), SpectrogramType()),
            length=NeuralType(tuple('B'), LengthsType()),
            cache_last_channel=NeuralType(('D', 'B', 'T', 'D'), ChannelType(), optional=True),
            cache_last_time=NeuralType(('D', 'B', 'D', 'T'), ChannelType(), optional=True),
            cache_last_channel_len=NeuralType(tuple('B'), LengthsType(), optional=True),
            bypass_pre_encode=NeuralType(optional=True),
        )

    @property
    def output_types(self):
        return OrderedDict(
            outputs=NeuralType(('B', 'D', 'T'), AcousticEncodedRepresentation()),
            encoded_lengths=NeuralType(tuple('B'), LengthsType()),
            cache_last_channel_next=NeuralType(('D', 'B', 'T', 'D'), ChannelType(), optional=True),
            cache_last_time_next=NeuralType(('D', 'B', 'D', 'T'), ChannelType(), optional=True),
            cache_last_channel_next_len=NeuralType(tuple('B'), LengthsType(), optional=True),
        )

    @property
    def input_types_for_export(self):
        caches = {
            'cache_last_channel': NeuralType(('B', 'D', 'T', 'D'), ChannelType(), optional=True),
            'cache_last_time': NeuralType(('B', 'D', 'D', 'T'), ChannelType(), optional=True),
        }
        return OrderedDict((name, caches.get(name, kind)) for name, kind in self.input_types.items())

    @property
    def disabled_deployment_input_names(self) -> set:
        caches = {'cache_last_channel', 'cache_last_time', 'cache_last_channel_len'}
        return {'bypass_pre_encode'} | (set() if self.export_cache_support else caches)

    @property
    def disabled_deployment_output_names(self) -> set:
        caches = {'cache_last_channel_next', 'cache_last_time_next', 'cache_last_channel_next_len'}
        return set() if self.export_cache_support else caches

    def input_example(self, max_batch: int = 1, max_dim: int = 256) -> tuple[Tensor, ...]:
        """Random features [max_batch, feat_in, max_dim] and lengths, or a step with its caches, for tracing."""
        if self.export_cache_support:
            return self.step_example(max_batch, max_dim)
        device = next(self.parameters()).device
        signal = torch.randn(max_batch, self._feat_in, max_dim, device=device)
        length = torch.randint(max_dim // 4, max_dim, (max_batch,), device=device, dtype=torch.int64)
        return signal, length

    def change_attention_model(
        self,
        self_attention_model: str | None = None,
        att_context_size: list[int] | None = None,
        update_config: bool = True,
        device: torch.device | None = None,
    ) -> None:
        """Change the attention window of a built model; arguments as ConformerEncoder's.

        Args:
            self_attention_model: 'rel_pos_local_attn' (a window), 'rel_pos' (all frames), None (as it is).
            att_context_size: [left, right] encoder frames, −1 for all; None keeps the window.
            update_config, device: taken for NeMo's sake; nothing here depends on them.
        """
        options = {**vars(self.config)}
        if self_attention_model is not None:
            options['self_attention_model'] = self_attention_model
        if att_context_size is not None:
            options['att_context_size'] = [int(c) for c in att_context_size]
        changed = LaCTEncoderConfig.from_kwargs(**options)
        self.config.self_attention_model = self.self_attention_model = changed.self_attention_model
        self.config.att_context_size = changed.att_context_size
        self.att_context_size = list(changed.window)
        self.att_context_size_all = [list(window) for window in changed.windows]
        self.streaming_cfg = None
        if not self.config.not_streaming():
            self.setup_streaming_params()

    def change_subsampling_conv_chunking_factor(self, subsampling_conv_chunking_factor: int) -> None:
        """1: split long input in the front end if needed, −1: never, a power of 2: into as many parts."""
        self.pre_encode.change_subsampling_conv_chunking_factor(subsampling_conv_chunking_factor)

    # ---- state

    def fingerprint(self) -> str:
        """Short hash of the memory's sizes and initial weights: a state fits the model it was made with."""
        weights = [p for m in self.memories() for part in (m.w0, m.w1, m.w2) for p in part.parameters()]
        # Hashing reads all of them from the device: once, until a parameter is changed or moved.
        now = versions(weights)
        if self._fingerprint is None or self._fingerprint[0] != now:
            digest = hashlib.sha256()
            for memory in self.memories():
                for w in memory.initial_weights():
                    digest.update(str(tuple(w.shape)).encode())
                    digest.update(w.detach().to('cpu', torch.float32).contiguous().numpy().tobytes())
            self._fingerprint = now, digest.hexdigest()[:16]
        return self._fingerprint[1]

    def init_state(self, batch_size: int, memory: LaCTState | None = None) -> LaCTState:
        """State of `batch_size` streams, on the device of the model.

        Args:
            memory: what they already know (`batch_size` rows, of this model); None: fresh.
        """
        like = self.norm_out.weight
        zeros = {
            name: tuple(
                torch.zeros(n, batch_size, *rest, dtype=dtype, device=like.device) for n, rest, dtype in group
            )
            for name, group in self._state_shapes().items()
        }
        position = torch.zeros(batch_size, dtype=torch.long, device=like.device)
        state = LaCTState(position=position, fingerprint=self.fingerprint(), **zeros)
        if memory is None:
            return state
        self._check_state(memory, batch_size)
        if memory.fingerprint != state.fingerprint:
            raise ValueError(
                f'the memory is of a model with fingerprint {memory.fingerprint}, this one has {state.fingerprint}; '
                f'what it learned has no meaning here'
            )
        memory = memory.memory_only().to(device=like.device)
        return replace(state, weights=memory.weights, momentum=memory.momentum, position=memory.position)

    def memories_of(self, state: LaCTState | None) -> list[MemoryState | None]:
        """Of each layer its part of the state; None of a fresh one, and of a layer without memory."""
        parts: list[MemoryState | None] = [None] * self.n_layers
        if state is not None:
            for place, layer in enumerate(self.config.memory_layers):
                parts[layer] = memory_of(state, place)
        return parts

    def state_of(
        self, layers: list[MemoryState | None], position: Tensor, fingerprint: str | None = None
    ) -> LaCTState:
        """What the layers' memories hold after `position` [B] frames, as a state without caches.

        fingerprint: that of the state they came from; None: they began fresh.
        """
        groups = stacked(layers, self.config.use_momentum)
        if not groups:  # no layer has a memory
            return replace(self.init_state(position.size(0)).memory_only(), position=position)
        return LaCTState(position=position, fingerprint=fingerprint or self.fingerprint(), **groups)

    def memories(self) -> list[FastWeightMemory]:
        """Of the layers that have one, in order."""
        return [layer.mixer.memory for layer in self.layers if layer.mixer.memory is not None]

    def state_bytes(self, batch_size: int = 1) -> int:
        """Bytes `init_state(batch_size)` takes, without making it."""
        size = len(COUNTERS) * 8
        for group in self._state_shapes().values():
            for n, rest, dtype in group:
                size += n * math.prod(rest) * dtype.itemsize
        return batch_size * size

    def _state_shapes(self) -> dict[str, list[tuple[int, tuple[int, ...], torch.dtype]]]:
        """Of each group of `LaCTState`: first dimension, dimensions after the batch, dtype."""
        config, n, memories = self.config, self.n_layers, self.memories()
        heads, width, hidden = config.num_lact_heads, config.lact_head_width, config.lact_hidden_width
        own = self.norm_out.weight.dtype
        dtype = memories[0].state_dtype if memories else torch.float64 if own == torch.float64 else torch.float32
        shapes = (hidden, width), (width, hidden), (hidden, width)
        memory = [(len(memories), (heads, *shape), dtype) for shape in shapes]
        groups = {'weights': memory, 'momentum': memory if config.use_momentum else []}
        if config.not_streaming():
            return groups
        groups['pending'] = [*memory, (len(memories), (heads,), dtype)]
        # fp32 like the memory: in NeMo's caches they ride in one tensor.
        left, right = self.att_context_size
        cached = dtype if dtype == torch.float64 else torch.float32
        groups['attention'] = [(n, (left, self.d_model), cached)] * 2
        kernel = config.conv_kernel_size
        groups['convolution'] = [(n, (kernel - 1, self.d_model), cached)] if kernel else []
        step = config.att_chunk((left, right)) or 1
        groups['features'] = [(1, ((step + 2) * self.subsampling_factor, self._feat_in), cached)]
        return groups

    # ---- forward

    @typecheck()
    def forward(
        self,
        audio_signal,
        length,
        cache_last_channel=None,
        cache_last_time=None,
        cache_last_channel_len=None,
        bypass_pre_encode=False,
    ):
        """
        Args:
            audio_signal: [B, F, T] features; [B, T', D] with `bypass_pre_encode`.
            length: [B] valid frames of each row; None means all of T.
            cache_last_channel, cache_last_time, cache_last_channel_len: from `get_initial_cache_state` or the step
                before: audio_signal is the next step of streams. See modules/cache_aware.py.
            bypass_pre_encode: the input has been through `pre_encode`; only with caches.

        Returns:
            outputs [B, D, T'] and encoded_lengths [B], T' encoder frames of `subsampling_factor` feature frames; and
            the three caches after the step, if they were given.
        """
        if cache_last_channel is not None:
            if length is None:
                length = audio_signal.new_full((audio_signal.size(0),), audio_signal.size(-1), dtype=torch.int64)
            return self._cache_forward(
                audio_signal, length, cache_last_channel, cache_last_time, cache_last_channel_len, bypass_pre_encode
            )
        if bypass_pre_encode:
            raise ValueError('bypass_pre_encode is for streaming steps; give the caches with it')
        outputs, lengths, _ = self._encode(audio_signal, length, None, keep_state=False)
        return outputs, lengths

    def forward_for_export(
        self, audio_signal, length, cache_last_channel=None, cache_last_time=None, cache_last_channel_len=None
    ):
        """What ONNX and TorchScript export trace: `forward` without type checks. Caches have the batch first."""
        if cache_last_channel is None:
            outputs, lengths, _ = self._encode(audio_signal, length, None, keep_state=False)
            return outputs, lengths
        caches = cache_last_channel.transpose(0, 1), cache_last_time.transpose(0, 1), cache_last_channel_len
        out = self._cache_forward(audio_signal, length, *caches, False)
        return out[0], out[1], out[2].transpose(0, 1), out[3].transpose(0, 1), out[4]

    def forward_with_state(
        self,
        audio_signal: Tensor,
        length: Tensor | None = None,
        state: LaCTState | None = None,
        learn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, LaCTState]:
        """`forward` of whole utterances that starts from `state` (None: fresh) and returns the state after them.

        The memory carries over; attention and convolution see only this input. For streams that go on, see
        `stream_step`.

        Args:
            learn: [B] bool, rows whose memory may learn; None: all.

        Raises:
            ValueError: features of another width, or a state of another batch size or model.
        """
        return self._encode(audio_signal, length, state, keep_state=True, learn=learn)

    def output_frames(self, frames: int) -> int:
        """Encoder frames of so many feature frames."""
        return int(self.output_lengths(torch.tensor([frames]))[0])

    def output_lengths(self, length: Tensor) -> Tensor:
        """[B] feature frames -> [B] encoder frames, int64."""
        front = self.pre_encode
        out = calc_length(
            length,
            front._left_padding + front._right_padding,
            front._kernel_size,
            front._stride,
            front._ceil_mode,
            front._sampling_num,
        )
        return out.to(torch.int64) * (length > 0)  # a causal front end makes a frame of nothing

    def why_not_segments(self) -> str | None:
        """What keeps long input from being cut into segments; None: nothing."""
        if min(self.att_context_size) < 0:
            return f'att_context_size={self.att_context_size} attends to all frames; choose a window'
        if self.config.subsampling == 'vggnet' or self.config.conv_norm_type not in ('layer_norm', 'batch_norm'):
            return 'its front end or its convolution norm needs the whole recording'
        return None

    def segment_size(self, batch: int) -> int:
        """Encoder frames of each row in a segment: whole chunks, about `segment_frames`."""
        chunk = self.config.lact_chunk_size
        return max(1, self.config.segment_frames * 4 // max(batch, 4) // chunk) * chunk

    def front_end(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """[B, F, T] features -> [B, T', D], lengths."""
        if self.pre_encode.why_not_fast(audio_signal) is not None:
            # Padding may hold anything, NaN included: a mask by multiplication would let that through.
            t = torch.arange(audio_signal.size(2), device=audio_signal.device)
            audio_signal = audio_signal.masked_fill(t >= length[:, None, None], 0.0)
        x, out = self.pre_encode(x=audio_signal.transpose(1, 2), lengths=length)  # [B, T', D]
        return self.dropout(x), out.to(torch.int64) * (length > 0)

    def head(self, x: Tensor) -> Tensor:
        """After the last layer: [B, T', D] -> [B, T', D']."""
        x = self.norm_out(x)
        return x if self.out_proj is None else self.out_proj(x)

    def _check_input(self, audio_signal: Tensor) -> None:
        if audio_signal.size(1) != self._feat_in:
            raise ValueError(
                f'audio_signal is {tuple(audio_signal.shape)}, expected [B, {self._feat_in}, T]: '
                f'feat_in={self._feat_in} must equal the features of the preprocessor'
            )

    def _encode(
        self,
        audio_signal: Tensor,
        length: Tensor | None,
        state: LaCTState | None,
        keep_state: bool,
        learn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, LaCTState | None]:
        self._check_input(audio_signal)
        if length is None:
            length = audio_signal.new_full((audio_signal.size(0),), audio_signal.size(2), dtype=torch.int64)
        self._check_state(state, audio_signal.size(0))
        if self._in_segments(audio_signal):
            x, length, layers_out = self._by_segments(audio_signal, length, state, learn)
        else:
            x, length, layers_out = self._whole(audio_signal, length, state, keep_state, learn)
        if not torch.is_grad_enabled() and not torch.jit.is_tracing():
            # NeMo's inference pipelines decode padding: frames that repeat the last one change no CTC text.
            t = torch.arange(x.size(2), device=x.device)
            last = x.gather(2, (length - 1).clamp(min=0)[:, None, None].expand(-1, x.size(1), 1))  # [B, D', 1]
            x = torch.where(t < length[:, None, None], x, last)
        if not keep_state:
            return x, length, None
        position = length if state is None else state.position + length
        return x, length, self.state_of(layers_out, position, None if state is None else state.fingerprint)

    def _whole(self, audio_signal, length, state, keep_state, learn):
        heard = length
        x, length = self.front_end(audio_signal, length)  # [B, T', D]
        valid = torch.arange(x.size(1), device=x.device) < length[:, None]  # [B, T']
        positions = torch.arange(x.size(1), device=x.device)
        if state is not None and not self.config.ttt_nope:  # a memory with positions goes on where it stood
            positions = (positions + state.position[:, None])[:, None]  # [B, 1, T']
        cos, sin = rotary_tables(positions, self.d_model // self.config.n_heads, self.config.rope_theta)
        window = tuple(self.att_context_size)
        if self.training and len(self.att_context_size_all) > 1:
            window = tuple(random.choices(self.att_context_size_all, weights=self.config.att_context_probs)[0])
        may_learn = None if learn is None else valid & learn[:, None]
        chunks = self._chunk_layout(audio_signal, heard, length, x.size(1))
        fused = None
        if chunks is None and x.numel() and why_not_fused(self, products_dtype(self)) is None:
            fused = stacked_layers(self, products_dtype(self))
            x, start = x.to(fused.dtype), torch.zeros_like(length)
        layers_out, before_all = [], self.memories_of(state)
        for index, layer in enumerate(self.layers):
            before = x
            memory = before_all[index]
            if fused is not None:
                with torch.autocast(x.device.type, enabled=False):
                    args = (valid, start, window, self.adaptation, memory, keep_state, may_learn)
                    x, memory = fused_layer(layer, fused, index, x, *args)
            else:
                x, memory = self._run_layer(layer, x, valid, cos, sin, window, memory, keep_state, may_learn, chunks)
            x = self._stochastic_depth(index, before, x)
            layers_out.append(memory)
            self._register_interctc(index, x, length)
        return self.head(x).transpose(1, 2), length, layers_out

    def _chunk_layout(self, audio_signal: Tensor, heard: Tensor, length: Tensor, frames: int) -> ChunkLayout | None:
        """Chunks with borders in pauses, for `lact_chunk_tolerance`; [B] feature frames, [B] encoder frames."""
        chunk, tolerance = self.config.lact_chunk_size, self.config.lact_chunk_tolerance
        if not tolerance:
            return None
        if torch.jit.is_tracing():
            raise ValueError(f'lact_chunk_tolerance={tolerance} cannot be exported; build the model with 0 for export')
        t = torch.arange(audio_signal.size(2), device=audio_signal.device)
        signal = audio_signal.masked_fill(t >= heard[:, None, None], 0.0)
        borders = borders_of(frame_energy(signal, self.subsampling_factor), length, chunk, tolerance)
        return layout(borders, 0, frames, chunk + tolerance, audio_signal.device)

    def _in_segments(self, audio_signal: Tensor) -> bool:
        """True if the input is longer than a segment and can be cut without a change of the result."""
        config = self.config
        if self.training or torch.is_grad_enabled() or torch.jit.is_tracing() or config.segment_frames == -1:
            return False
        if self.is_access_enabled(getattr(self, 'model_guid', None)) or self.why_not_segments() is not None:
            return False  # all frames are needed at once
        return self.output_frames(audio_signal.size(2)) > self.segment_size(audio_signal.size(0))

    def _by_segments(self, audio_signal, length, state, learn):
        if self.config.lact_chunk_tolerance and length.size(0) > 1:  # rows with borders of their own go alone
            rows = []
            for i in range(length.size(0)):
                row = slice(i, i + 1)
                own = None if state is None else state.select([i])
                may_learn = None if learn is None else learn[row]
                rows.append(self._by_segments(audio_signal[row], length[row], own, may_learn))
            states = [MemoryState.joined(parts) for parts in zip(*(row[2] for row in rows))]
            return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows]), states
        states = self.memories_of(state)
        offset = None if state is None or self.config.ttt_nope else state.position
        run = SegmentedPass(self, length, states, learn, offset).overlapping()
        step = run.segment * self.subsampling_factor
        total, outputs = audio_signal.size(2), []
        for start in range(0, total, step):
            outputs.append(run.feed(audio_signal[:, :, start : start + step], last=start + step >= total))
        run.join()
        return torch.cat(outputs, dim=2), run.frames, run.layer_states

    def _run_layer(self, layer, x, valid, cos, sin, window, memory, keep_state, learn, chunks):
        args = (x, valid, cos, sin, window, self.adaptation, memory, keep_state, learn, chunks)
        if self.config.activation_checkpointing and self.training:
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)

    def _stochastic_depth(self, index: int, before: Tensor, after: Tensor) -> Tensor:
        """arXiv 2102.03216, as NeMo does it: times 0 and not skipped, so that DDP sees every weight used."""
        drop = self.layer_drop_probs[index]
        if not self.training or drop == 0.0:
            return after
        if torch.rand(1) < drop:
            return after * 0.0 + before
        return (after - before) / (1.0 - drop) + before

    def _register_interctc(self, index: int, x: Tensor, length: Tensor) -> None:
        if not self.is_access_enabled(getattr(self, 'model_guid', None)):
            return
        if self.interctc_capture_at_layers is None:
            wanted, layers = self.access_cfg.get('interctc', {}).get('capture_layers', []), len(self.layers)
            if any(not 0 <= i < layers for i in wanted):
                raise ValueError(
                    f'interctc.apply_at_layers is {list(wanted)}, but the encoder has {layers} layers; give places '
                    f'from 0 to {layers - 1}, e.g. model.interctc.apply_at_layers=[{max(0, layers // 2 - 1)}], or '
                    'no InterCTC: model.interctc.loss_weights=[] model.interctc.apply_at_layers=[]'
                )
            self.interctc_capture_at_layers = wanted
        if index in self.interctc_capture_at_layers:
            x = self.head(x)
            self.register_accessible_tensor(name=f'interctc/layer_output_{index}', tensor=x.transpose(1, 2))
            self.register_accessible_tensor(name=f'interctc/layer_length_{index}', tensor=length)

    def _check_state(self, state: LaCTState | None, batch: int) -> None:
        if state is None:
            return
        if state.batch_size != batch:
            raise ValueError(f'state holds {state.batch_size} streams, the input {batch} rows; select or merge first')
        config = self.config
        own = (config.num_lact_heads, config.lact_hidden_width, config.lact_head_width)
        theirs, count = tuple(state.weights[0].shape), len(config.memory_layers)
        if theirs[0] != count or theirs[2:] != own:
            raise ValueError(
                f'state has {theirs[0]} layers with W0 {theirs[2:]}, this encoder {count} with {own}; '
                f'use the model that made it'
            )

