"""`LaCTEncoder`: the encoder NeMo's CTC models use in place of ConformerEncoder."""

import hashlib
from collections import OrderedDict

import torch
from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling
from nemo.collections.asr.parts.utils.regularization_utils import compute_stochastic_depth_drop_probs
from nemo.core.classes.common import typecheck
from nemo.core.classes.exportable import Exportable
from nemo.core.classes.mixins import AccessMixin
from nemo.core.classes.module import NeuralModule
from nemo.core.neural_types import AcousticEncodedRepresentation, LengthsType, NeuralType, SpectrogramType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.fast_weights import MemoryState
from nemo_lact.modules.lact_layer import LaCTLayer
from nemo_lact.ops import FastWeights, rotary_tables, zeros_like
from nemo_lact.state import LaCTState


class LaCTEncoder(NeuralModule, AccessMixin, Exportable):
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
        self.adaptation = config.adaptation  # may be switched at any time; False freezes the memory
        self._feat_in = config.feat_in
        self._feat_out = config.feat_out if config.feat_out > 0 else config.d_model

        channels = config.subsampling_conv_channels
        self.pre_encode = ConvSubsampling(
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
        self.layers = nn.ModuleList(LaCTLayer(config) for _ in range(config.n_layers))
        self.norm_out = nn.LayerNorm(config.d_model)
        self.out_proj = nn.Linear(config.d_model, self._feat_out) if self._feat_out != config.d_model else None
        self.layer_drop_probs = compute_stochastic_depth_drop_probs(
            config.n_layers,
            config.stochastic_depth_drop_prob,
            config.stochastic_depth_mode,
            config.stochastic_depth_start_layer,
        )
        self.interctc_capture_at_layers = None  # set in forward from the AccessMixin config
        self.export_cache_support = False  # NeMo's export asks for it

    # ---- what NeMo asks of an encoder

    @property
    def input_types(self):
        return OrderedDict(
            audio_signal=NeuralType(('B', 'D', 'T'), SpectrogramType()),
            length=NeuralType(tuple('B'), LengthsType()),
        )

    @property
    def output_types(self):
        return OrderedDict(
            outputs=NeuralType(('B', 'D', 'T'), AcousticEncodedRepresentation()),
            encoded_lengths=NeuralType(tuple('B'), LengthsType()),
        )

    @property
    def disabled_deployment_input_names(self) -> set:
        return set()

    @property
    def disabled_deployment_output_names(self) -> set:
        return set()

    def input_example(self, max_batch: int = 1, max_dim: int = 256) -> tuple[Tensor, Tensor]:
        """Random features [max_batch, feat_in, max_dim] and lengths, for tracing."""
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

    def change_subsampling_conv_chunking_factor(self, subsampling_conv_chunking_factor: int) -> None:
        """1: split long input in the front end if needed, −1: never, a power of 2: into as many parts."""
        self.pre_encode.change_subsampling_conv_chunking_factor(subsampling_conv_chunking_factor)

    # ---- state

    def fingerprint(self) -> str:
        """Short hash of the memory's sizes and initial weights: a state fits the model it was made with."""
        digest = hashlib.sha256()
        for layer in self.layers:
            for w in layer.mixer.memory.initial_weights():
                digest.update(str(tuple(w.shape)).encode())
                digest.update(w.detach().to('cpu', torch.float32).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def init_state(self, batch_size: int) -> LaCTState:
        """State of `batch_size` fresh streams, on the device of the model."""
        initial = self.layers[0].mixer.memory.initial_weights()
        momentum = initial if self.config.use_momentum else ()

        def zeros(weights):
            return tuple(w.new_zeros(self.n_layers, batch_size, *w.shape) for w in weights)

        position = torch.zeros(batch_size, dtype=torch.long, device=initial.w0.device)
        return LaCTState(zeros(initial), zeros(momentum), position, self.fingerprint())

    def state_bytes(self, batch_size: int = 1) -> int:
        """Bytes `init_state(batch_size)` takes, without making it."""
        config, memory = self.config, self.layers[0].mixer.memory
        one = 3 * config.num_lact_heads * config.lact_head_width * config.lact_hidden_width
        size = 4 if config.fp32_states else memory.w1.weight.element_size()
        return batch_size * (config.n_layers * one * size * (2 if config.use_momentum else 1) + 8)

    # ---- forward

    @typecheck()
    def forward(self, audio_signal, length):
        """
        Args:
            audio_signal: [B, F, T] features.
            length: [B] valid feature frames of each row; None means all of T.

        Returns:
            outputs [B, D, T'] and encoded_lengths [B], T' encoder frames of `subsampling_factor` feature frames.
        """
        outputs, lengths, _ = self._encode(audio_signal, length, None, keep_state=False)
        return outputs, lengths

    def forward_for_export(self, audio_signal, length):
        """What ONNX and TorchScript export trace: `forward` without type checks."""
        outputs, lengths, _ = self._encode(audio_signal, length, None, keep_state=False)
        return outputs, lengths

    def forward_with_state(
        self, audio_signal: Tensor, length: Tensor | None = None, state: LaCTState | None = None
    ) -> tuple[Tensor, Tensor, LaCTState]:
        """`forward` that starts from `state` (None: fresh) and returns the state after the last frame.

        The memory carries over; attention and convolution see only this input.

        Raises:
            ValueError: features of another width, or a state of another batch size or model.
        """
        return self._encode(audio_signal, length, state, keep_state=True)

    def _encode(
        self, audio_signal: Tensor, length: Tensor | None, state: LaCTState | None, keep_state: bool
    ) -> tuple[Tensor, Tensor, LaCTState | None]:
        if audio_signal.size(1) != self._feat_in:
            raise ValueError(
                f'audio_signal is {tuple(audio_signal.shape)}, expected [B, {self._feat_in}, T]: '
                f'feat_in={self._feat_in} must equal the features of the preprocessor'
            )
        if length is None:
            length = audio_signal.new_full((audio_signal.size(0),), audio_signal.size(2), dtype=torch.int64)
        self._check_state(state, audio_signal.size(0))
        # Padding may hold anything, NaN included: a mask by multiplication would let that through.
        t = torch.arange(audio_signal.size(2), device=audio_signal.device)
        audio_signal = audio_signal.masked_fill(t >= length[:, None, None], 0.0)

        heard = length > 0
        x, length = self.pre_encode(x=audio_signal.transpose(1, 2), lengths=length)  # [B, T', D]
        length = length.to(torch.int64) * heard  # a causal front end makes a frame of nothing
        valid = torch.arange(x.size(1), device=x.device) < length[:, None]  # [B, T']
        positions = torch.arange(x.size(1), device=x.device)
        if state is not None:
            positions = (positions + state.position[:, None])[:, None]  # [B, 1, T']
        cos, sin = rotary_tables(positions, self.d_model // self.config.n_heads, self.config.rope_theta)
        x = self.dropout(x)
        layers_out = []
        for index, layer in enumerate(self.layers):
            before = x
            x, memory = self._run_layer(layer, x, valid, cos, sin, _layer_state(state, index), keep_state)
            x = self._stochastic_depth(index, before, x)
            layers_out.append(memory)
            self._register_interctc(index, x, length)
        x = self.norm_out(x)
        if self.out_proj is not None:
            x = self.out_proj(x)
        return x.transpose(1, 2), length, self._stack_states(layers_out, length, state) if keep_state else None

    def _run_layer(self, layer, x, valid, cos, sin, memory, keep_state):
        args = (x, valid, cos, sin, tuple(self.att_context_size), self.adaptation, memory, keep_state)
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
            self.interctc_capture_at_layers = self.access_cfg.get('interctc', {}).get('capture_layers', [])
        if index in self.interctc_capture_at_layers:
            x = self.norm_out(x)
            if self.out_proj is not None:
                x = self.out_proj(x)
            self.register_accessible_tensor(name=f'interctc/layer_output_{index}', tensor=x.transpose(1, 2))
            self.register_accessible_tensor(name=f'interctc/layer_length_{index}', tensor=length)

    def _check_state(self, state: LaCTState | None, batch: int) -> None:
        if state is None:
            return
        if state.batch_size != batch:
            raise ValueError(f'state holds {state.batch_size} streams, the input {batch} rows; select or merge first')
        config = self.config
        own = (config.num_lact_heads, config.lact_hidden_width, config.lact_head_width)
        theirs = tuple(state.weights[0].shape)
        if theirs[0] != self.n_layers or theirs[2:] != own:
            raise ValueError(
                f'state has {theirs[0]} layers with W0 {theirs[2:]}, this encoder {self.n_layers} with {own}; '
                f'use the model that made it'
            )

    def _stack_states(self, layers, length: Tensor, state: LaCTState | None) -> LaCTState:
        weights = tuple(torch.stack(t) for t in zip(*(memory.weights for memory in layers)))
        momentum = ()
        if self.config.use_momentum:
            momentum = tuple(torch.stack(t) for t in zip(*(memory.momentum for memory in layers)))
        position = length if state is None else state.position + length
        return LaCTState(weights, momentum, position, self.fingerprint() if state is None else state.fingerprint)


def _layer_state(state: LaCTState | None, index: int) -> MemoryState | None:
    if state is None:
        return None
    weights = FastWeights(*(t[index] for t in state.weights))
    if not state.momentum:
        return MemoryState(weights, zeros_like(weights))
    return MemoryState(weights, FastWeights(*(t[index] for t in state.momentum)))
