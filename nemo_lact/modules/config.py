"""`LaCTEncoderConfig`: every option of the encoder with its default, and the checks that run at construction."""

import difflib
import math
from dataclasses import dataclass, field, fields
from typing import Any, List, Optional, Tuple

FRAME_SECONDS = 0.01  # NeMo's window_stride of 10 ms, the unit of feature frames


@dataclass
class LaCTEncoderConfig:
    """Options of `LaCTEncoder`, usable as an OmegaConf structured config.

    Lengths of context (`att_context_size`, `lact_chunk_size`) count encoder frames: 80 ms each at
    `subsampling_factor` 8, 40 ms at 4. Names are NeMo's where NeMo has them, else LaCT's.
    """

    _target_: str = 'nemo_lact.modules.LaCTEncoder'

    # Sizes. The defaults are the base model, about 93 million parameters.
    feat_in: int = 80  # feature channels of the preprocessor
    feat_out: int = -1  # channels out; -1: d_model, else a linear layer is added
    n_layers: int = 12
    d_model: int = 768
    ff_expansion_factor: float = 4.0  # the SwiGLU is 2/3 as wide, for as many parameters as a plain feed-forward
    macaron: bool = False  # a second, half-weighted feed-forward before the attention, as in Conformer
    use_bias: bool = False  # bias in the linear layers of the blocks
    block_norm: bool = False  # a LayerNorm at the end of each block, as in Conformer

    # Front end: NeMo's ConvSubsampling.
    subsampling: str = 'dw_striding'  # dw_striding, striding, vggnet
    subsampling_factor: int = 8  # 8 for subword models, 4 for characters
    subsampling_conv_channels: int = 256  # -1: d_model
    subsampling_conv_chunking_factor: int = 1  # 1: split only if needed, -1: never, power of 2: split in as many
    causal_downsampling: bool = False

    # Window attention.
    n_heads: int = 12
    # [left, right], -1: all; or a list of such pairs, the first for evaluation, any of them in training
    att_context_size: Optional[Any] = field(default_factory=lambda: [256, 256])
    att_context_style: str = 'regular'  # or 'chunked_limited': chunks of right + 1 frames that see each other whole
    att_context_probs: Optional[List[float]] = None  # how often training takes each pair; None: equally
    self_attention_model: Optional[str] = 'rel_pos_local_attn'  # written by NeMo; 'rel_pos' forces [-1, -1]
    rope_theta: float = 10000.0

    # Convolution module, as in Conformer; 0 leaves it out.
    conv_kernel_size: int = 0
    conv_norm_type: str = 'layer_norm'  # batch_norm, layer_norm, group_norm<N>, instance_norm
    conv_context_size: Optional[Any] = None  # None: centred, 'causal', or [left, right]

    # Memory (fast weights).
    lact_layers: Optional[List[int]] = None  # the layers that have one, from 0; None: all, []: none
    num_lact_heads: int = 4
    inter_multi: float = 1.0  # hidden width of the memory network / head width
    lact_chunk_size: int = 512  # encoder frames a step of the memory
    # Frames by which a chunk's border may move to where the input is quietest; 0: none. Bidirectional mode only.
    lact_chunk_tolerance: int = 0
    # What is left after a full chunk of that by which the weights have moved; below 1 they go back to those learned in
    # training, so that hours of steps do not lead away from them.
    lact_retention: float = 1.0
    # Frames r: a chunk of n frames takes n / (n + r) of the step that endless ones would. None: a step is a sum over
    # frames, so an utterance moves the memory by its share of a chunk alone. Not with use_muon.
    lact_relevance: Optional[float] = None
    lact_mode: str = 'bidirectional'  # or 'causal': a chunk is read before it is learned
    use_muon: bool = True
    use_momentum: bool = True
    adaptation: bool = True  # False: the memory keeps its initial weights (for comparison)
    lr_dim: int = 1  # step sizes per head (1) or per head and channel (head width)
    base_lr: float = 0.001  # step size at initialisation
    w0_w2_low_rank: int = -1  # rank of the initial W0 and W2; -1: full
    fw_init_gain: float = 0.5  # scale of the low-rank factors at initialisation
    ttt_nope: bool = True  # True: no rotary positions in the memory
    fp32_states: bool = True  # keep the fast weights in fp32 under autocast and in half-precision models
    max_chunk_seconds: float = 100.0  # guards against lengths given in feature frames

    # Evaluation of long input goes in segments of so many encoder frames a row, fewer in batches of more than 4 rows.
    # It changes the memory that takes, not the result. -1: all at once.
    segment_frames: int = 4096

    # Regularisation and training.
    dropout: float = 0.1
    dropout_pre_encoder: float = 0.1
    dropout_att: float = 0.0
    stochastic_depth_drop_prob: float = 0.0
    stochastic_depth_mode: str = 'linear'  # or 'uniform'
    stochastic_depth_start_layer: int = 1
    activation_checkpointing: bool = False  # recompute layers in backward: less memory, slower
    compile: bool = False  # torch.compile for what lies around attention and memory: a minute to start, then faster

    @property
    def frame_seconds(self) -> float:
        """Seconds of audio one encoder frame stands for (at features of 10 ms)."""
        return self.subsampling_factor * FRAME_SECONDS

    @property
    def window(self) -> Tuple[int, int]:
        """[left, right] attention window in encoder frames, −1 for all: the first of `windows`."""
        return self.windows[0]

    @property
    def windows(self) -> List[Tuple[int, int]]:
        """All attention windows the model is made for."""
        if self.self_attention_model == 'rel_pos' or self.att_context_size is None:
            return [(-1, -1)]
        pairs = list(self.att_context_size)
        pairs = [pairs] if not pairs or isinstance(pairs[0], int) else pairs
        return [tuple(pair) for pair in pairs]

    def att_chunk(self, window: Tuple[int, int]) -> int:
        """Frames of an attention chunk in the style 'chunked_limited', else 0."""
        return window[1] + 1 if self.att_context_style == 'chunked_limited' and window[1] >= 0 else 0

    @property
    def conv_context(self) -> Tuple[int, int]:
        """[left, right] frames the convolution module sees; (0, 0) without it."""
        kernel = max(self.conv_kernel_size, 1)
        if self.conv_context_size == 'causal':
            return kernel - 1, 0
        if self.conv_context_size is None or self.conv_kernel_size == 0:
            return (kernel - 1) // 2, (kernel - 1) // 2
        return tuple(int(c) for c in self.conv_context_size)

    def not_streaming(self) -> List[str]:
        """What keeps the encoder from streaming, as settings to change; empty if it can."""
        wrong = []
        if self.lact_mode != 'causal':
            wrong.append(f'lact_mode={self.lact_mode} (needs causal)')
        if not self.causal_downsampling or self.subsampling not in ('striding', 'dw_striding'):
            wrong.append('causal_downsampling=true with subsampling=dw_striding or striding')
        if self.conv_kernel_size and self.conv_context[1] != 0:
            wrong.append(f'conv_context_size={self.conv_context_size} (needs causal)')
        if self.conv_kernel_size and self.conv_norm_type not in ('layer_norm', 'batch_norm'):
            wrong.append(f'conv_norm_type={self.conv_norm_type} (needs layer_norm or batch_norm)')
        for left, right in self.windows:
            if left < 0 or right < 0 or (right > 0 and self.att_context_style != 'chunked_limited'):
                wrong.append(
                    f'att_context_size={[left, right]} in style {self.att_context_style} (needs [left, 0], or '
                    f'[left, right] with att_context_style=chunked_limited)'
                )
        return wrong

    @property
    def memory_layers(self) -> List[int]:
        """Layers that have a memory, in order."""
        return list(range(self.n_layers)) if self.lact_layers is None else sorted(self.lact_layers)

    @property
    def relevance(self) -> float:
        """`lact_relevance` as the memory's equations have it."""
        return math.inf if self.lact_relevance is None else float(self.lact_relevance)

    @property
    def memory_everywhere(self) -> bool:
        return len(self.memory_layers) == self.n_layers

    @property
    def ff_width(self) -> int:
        """Hidden width of the SwiGLU feed-forward, a multiple of 32."""
        return max(32, round(2 / 3 * self.ff_expansion_factor * self.d_model / 32) * 32)

    @property
    def lact_head_width(self) -> int:
        return self.d_model // self.num_lact_heads

    @property
    def lact_hidden_width(self) -> int:
        return int(self.lact_head_width * self.inter_multi)

    @classmethod
    def from_kwargs(cls, **kwargs) -> 'LaCTEncoderConfig':
        """A checked config; an unknown option is an error that names the nearest known one."""
        known = {f.name for f in fields(cls)}
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f'. Options: {", ".join(sorted(known))}'
                raise ValueError(f"LaCTEncoder has no option '{name}'{hint}")
        config = cls(**kwargs)
        config.check()
        return config

    def check(self) -> None:
        """Raise ValueError with the value, the limit and what to do, for any option out of range."""
        _at_least('feat_in', self.feat_in, 1)
        _at_least('n_layers', self.n_layers, 1)
        _at_least('d_model', self.d_model, 1)
        _one_of('subsampling_factor', self.subsampling_factor, (2, 4, 8, 16))
        _one_of('subsampling', self.subsampling, ('dw_striding', 'striding', 'vggnet'))
        _one_of('lact_mode', self.lact_mode, ('bidirectional', 'causal'))
        _one_of('stochastic_depth_mode', self.stochastic_depth_mode, ('linear', 'uniform'))
        _one_of('self_attention_model', self.self_attention_model, (None, 'rel_pos_local_attn', 'rel_pos'))
        _one_of('att_context_style', self.att_context_style, ('regular', 'chunked_limited'))
        self._check_heads('n_heads')
        self._check_heads('num_lact_heads')
        width = self.d_model // self.n_heads
        if width % 2:
            raise ValueError(
                f'd_model={self.d_model} over n_heads={self.n_heads} gives heads of {width} channels; rotary positions '
                f'need an even number. Choose n_heads so that d_model / n_heads is even'
            )
        for name in ('dropout', 'dropout_pre_encoder', 'dropout_att', 'stochastic_depth_drop_prob'):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f'{name}={value} is no probability; give a value from 0 up to, not including, 1')
        layers = [] if self.lact_layers is None else list(self.lact_layers)
        if len(set(layers)) != len(layers) or not all(isinstance(i, int) and 0 <= i < self.n_layers for i in layers):
            raise ValueError(
                f'lact_layers={layers}; give layers from 0 to {self.n_layers - 1}, each once, [] for no memory, or '
                f'null for one in every layer'
            )
        if not 0 < self.lact_retention <= 1:
            raise ValueError(
                f'lact_retention={self.lact_retention}; give 1 (the memory keeps what it learns) or less, above 0 (it '
                f'forgets)'
            )
        if self.lact_relevance is not None and not 0 <= self.lact_relevance < math.inf:
            raise ValueError(
                f'lact_relevance={self.lact_relevance}; give frames, 0 (any chunk takes a full step) or more, or null '
                f'(a step grows with its frames)'
            )
        if self.lact_relevance is not None and self.use_muon:
            raise ValueError(
                f'lact_relevance={self.lact_relevance} with use_muon=true, whose steps are as large as the share of a '
                f'chunk that is filled; give null, or use_muon=false'
            )
        for name in ('ff_expansion_factor', 'inter_multi', 'base_lr', 'fw_init_gain', 'rope_theta'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name}={getattr(self, name)}; it must be above 0')
        if self.lact_hidden_width < 1:
            raise ValueError(
                f'inter_multi={self.inter_multi} leaves the memory no hidden unit at heads of '
                f'{self.lact_head_width} channels; the least is {1 / self.lact_head_width:.4f}'
            )
        if self.lr_dim not in (1, self.lact_head_width):
            raise ValueError(
                f'lr_dim={self.lr_dim}; give 1 (a step size per head) or {self.lact_head_width}, the width of a '
                f'memory head (a step size per channel)'
            )
        if self.w0_w2_low_rank == 0 or self.w0_w2_low_rank > self.lact_head_width:
            raise ValueError(
                f'w0_w2_low_rank={self.w0_w2_low_rank}; give -1 for full rank, or 1 to {self.lact_head_width}, '
                f'the width of a memory head'
            )
        if self.conv_kernel_size != 0 and (self.conv_kernel_size < 3 or self.conv_kernel_size % 2 == 0):
            raise ValueError(
                f'conv_kernel_size={self.conv_kernel_size}; give 0 for no convolution, or an odd number from 3'
            )
        self._check_context()

    def _check_heads(self, name: str) -> None:
        heads = getattr(self, name)
        if heads < 1 or self.d_model % heads:
            fit = [n for n in range(1, min(self.d_model, 64) + 1) if self.d_model % n == 0]
            raise ValueError(f'{name}={heads} does not divide d_model={self.d_model}; choose one of {fit}')

    def _check_context(self) -> None:
        _at_least('lact_chunk_size', self.lact_chunk_size, 1)
        self._check_seconds('lact_chunk_size', self.lact_chunk_size)
        if not 0 <= self.lact_chunk_tolerance < self.lact_chunk_size:
            raise ValueError(
                f'lact_chunk_tolerance={self.lact_chunk_tolerance}; give 0 (borders where they are) to '
                f'{self.lact_chunk_size - 1}, below lact_chunk_size'
            )
        if self.lact_chunk_tolerance and self.lact_mode != 'bidirectional':
            raise ValueError(
                f'lact_chunk_tolerance={self.lact_chunk_tolerance} with lact_mode={self.lact_mode}: a border is chosen '
                f'among frames to come, which only lact_mode=bidirectional hears'
            )
        if self.att_context_size is None:
            return
        for window in self.windows:
            self._check_window(window)
        probs = self.att_context_probs
        if probs is not None and (len(probs) != len(self.windows) or abs(sum(probs) - 1) > 1e-6 or min(probs) < 0):
            raise ValueError(
                f'att_context_probs={list(probs)} for {len(self.windows)} windows in att_context_size; give one '
                f'probability for each, with a sum of 1'
            )
        if self.conv_kernel_size and sum(self.conv_context) + 1 != self.conv_kernel_size:
            raise ValueError(
                f'conv_context_size={self.conv_context_size} sees {sum(self.conv_context) + 1} frames but '
                f'conv_kernel_size={self.conv_kernel_size}; left + right + 1 must be the kernel size '
                f"('causal' gives [{self.conv_kernel_size - 1}, 0])"
            )
        if self.segment_frames != -1:
            _at_least('segment_frames', self.segment_frames, 1)

    def _check_window(self, window: Tuple[int, ...]) -> None:
        if len(window) != 2 or not all(isinstance(c, int) and c >= -1 for c in window):
            raise ValueError(
                f'att_context_size={list(window)}; give [left, right] in encoder frames, each 0 or more, or -1 for all'
            )
        for side in window:
            self._check_seconds('att_context_size', side)
        chunk = self.att_chunk(window)
        if chunk and window[0] > 0 and window[0] % chunk:
            raise ValueError(
                f'att_context_size={list(window)}: in style chunked_limited the left context must be whole chunks of '
                f'right + 1 = {chunk} frames, such as {window[0] // chunk * chunk}'
            )

    def _check_seconds(self, name: str, frames: int) -> None:
        seconds = frames * self.frame_seconds
        if seconds > self.max_chunk_seconds:
            raise ValueError(
                f'{name}={frames} encoder frames is {seconds:.1f} s at subsampling_factor={self.subsampling_factor}, '
                f'over the limit of {self.max_chunk_seconds:g} s. The value counts encoder frames of '
                f'{self.frame_seconds * 1000:.0f} ms: for {frames} feature frames of 10 ms write '
                f'{max(1, frames // self.subsampling_factor)}. If you do mean {seconds:.0f} s, raise max_chunk_seconds'
            )


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f'{name}={value}; the least is {least}')


def _one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f'{name}={value!r}; choose one of {", ".join(repr(a) for a in allowed)}')
