"""One block of the encoder: window attention and memory on a shared projection, convolution, feed-forward."""

import torch
import torch.nn.functional as F
from nemo.collections.asr.parts.submodules.conformer_modules import ConformerConvolution
from torch import Tensor, nn

from nemo_lact.modules.compiled import compiled
from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.fast_weights import FastWeightMemory, MemoryState, RMSNorm
from nemo_lact.modules.pauses import ChunkLayout
from nemo_lact.ops import cached_attention, rotate, window_attention


class SwiGLU(nn.Module):
    """Feed-forward W_down( silu(W_gate x) ⊙ W_up x ), [B, T, D] -> [B, T, D]."""

    def __init__(self, config: LaCTEncoderConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.ff_width, bias=config.use_bias)
        self.down = nn.Linear(config.ff_width, config.d_model, bias=config.use_bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # [B, T, ff_width] each
        return self.down(self.dropout(F.silu(gate) * up))


class LaCTMixer(nn.Module):
    """Window attention plus memory read: out( attention(q, k, v) + gated read of the memory ).

    remembers: False makes one without a memory.
    """

    def __init__(self, config: LaCTEncoderConfig, remembers: bool = True):
        super().__init__()
        self.config = config
        width = config.d_model // config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.use_bias)
        self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)
        self.memory = FastWeightMemory(config) if remembers else None
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.use_bias)

    def forward(
        self,
        x: Tensor,
        valid: Tensor,
        cos: Tensor,
        sin: Tensor,
        window: tuple[int, int],
        adaptation: bool,
        state: MemoryState | None,
        keep_state: bool,
        learn: Tensor | None = None,
        layout: ChunkLayout | None = None,
    ) -> tuple[Tensor, MemoryState | None]:
        """x [B, T, D], valid [B, T], tables [T, width / 2] -> ([B, T, D], state).

        learn: [B, T] bool, the frames the memory learns from; None: all valid ones. layout: of the memory's chunks.
        Without a memory the state is None.
        """
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # [B, T, D] each
        near = self.near(q, k, v, valid, cos, sin, window)
        if self.memory is None:
            return self.out(near), None
        learn = valid if learn is None else learn
        far, state = self.memory(x, q, k, v, learn, cos, sin, adaptation, state, keep_state, layout)
        return self.joined(near, far), state

    def joined(self, near: Tensor, far: Tensor | None) -> Tensor:
        """Attention and read of the memory (None: no memory), [B, T, D] each -> [B, T, D]."""
        return self.out(near if far is None else near + far.to(near.dtype))

    def near(self, q: Tensor, k: Tensor, v: Tensor, valid: Tensor, cos: Tensor, sin: Tensor, window) -> Tensor:
        """Window attention: the shared projection [B, T, D] -> [B, T, D]."""
        q, k = self._turned(q, self.q_norm, cos, sin), self._turned(k, self.k_norm, cos, sin)
        dropout = self.config.dropout_att if self.training else 0.0
        chunk = self.config.att_chunk(window)
        near = window_attention(q, k, self._heads(v), valid, window[0], window[1], dropout, chunk)
        return self._flat(near)

    @compiled
    def _turned(self, x: Tensor, norm: RMSNorm, cos: Tensor, sin: Tensor) -> Tensor:
        """q or k [B, T, D], normed and turned to its positions: [B, heads, T, width]."""
        return rotate(norm(self._heads(x)), cos, sin)

    def near_cached(self, q, k, v, valid, cos, sin, window, keys: Tensor, values: Tensor):
        """`near` for the frames after those cached.

        Args:
            q, k, v: [B, n, D].
            valid: [B, L + n] bool, cache first.
            keys, values: [B, L, D] of the L frames before, keys rotated.

        Returns:
            [B, n, D], and keys and values with the new ones appended, [B, L + n, D].
        """
        k = self._flat(rotate(self.k_norm(self._heads(k)), cos, sin))
        keys, values = torch.cat([keys, k.to(keys.dtype)], dim=1), torch.cat([values, v.to(values.dtype)], dim=1)
        near = cached_attention(
            rotate(self.q_norm(self._heads(q)), cos, sin),
            self._heads(keys.to(q.dtype)),
            self._heads(values.to(q.dtype)),
            valid,
            window[0],
            window[1],
            self.config.att_chunk(window),
        )
        return self._flat(near), keys, values

    def _heads(self, x: Tensor) -> Tensor:
        heads = self.config.n_heads
        return x.view(x.size(0), x.size(1), heads, self.config.d_model // heads).transpose(1, 2)  # [B, heads, T, width]

    def _flat(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(x.size(0), x.size(2), -1)  # [B, T, D]


class LaCTLayer(nn.Module):
    """Pre-norm block: [½ feed-forward] → attention + memory → [convolution] → feed-forward → [norm].

    The last feed-forward counts half with `macaron`, as the first does. remembers: whether it has a memory.
    """

    def __init__(self, config: LaCTEncoderConfig, remembers: bool = True):
        super().__init__()
        self.config = config
        self.ff_scale = 0.5 if config.macaron else 1.0
        self.norm_ff1 = nn.LayerNorm(config.d_model) if config.macaron else None
        self.ff1 = SwiGLU(config) if config.macaron else None
        self.norm_mixer = nn.LayerNorm(config.d_model)
        self.mixer = LaCTMixer(config, remembers)
        self.norm_conv = nn.LayerNorm(config.d_model) if config.conv_kernel_size else None
        self.conv = _convolution(config) if config.conv_kernel_size else None
        self.norm_ff2 = nn.LayerNorm(config.d_model)
        self.ff2 = SwiGLU(config)
        self.norm_out = nn.LayerNorm(config.d_model) if config.block_norm else None
        self.dropout = nn.Dropout(config.dropout)

    @compiled
    def forward(
        self,
        x: Tensor,
        valid: Tensor,
        cos: Tensor,
        sin: Tensor,
        window: tuple[int, int],
        adaptation: bool,
        state: MemoryState | None = None,
        keep_state: bool = True,
        learn: Tensor | None = None,
        layout: ChunkLayout | None = None,
    ) -> tuple[Tensor, MemoryState | None]:
        """x [B, T, D], valid [B, T] bool -> ([B, T, D], the memory's state after the last frame)."""
        x = self.before(x)
        args = (valid, cos, sin, window, adaptation, state, keep_state, learn, layout)
        mixed, state = self.mixer(self.norm_mixer(x), *args)
        x = x + self.dropout(mixed)
        if self.conv is not None:
            x = x + self.dropout(self.conv(self.norm_conv(x), pad_mask=~valid))
        return self.after(x), state

    def before(self, x: Tensor) -> Tensor:
        """What comes before the mixer, frame by frame."""
        return x if self.ff1 is None else self._half_step(x)

    @compiled
    def _half_step(self, x: Tensor) -> Tensor:
        return x + self.ff_scale * self.dropout(self.ff1(self.norm_ff1(x)))

    @compiled
    def after(self, x: Tensor) -> Tensor:
        """What comes after the convolution, frame by frame."""
        x = x + self.ff_scale * self.dropout(self.ff2(self.norm_ff2(x)))
        return x if self.norm_out is None else self.norm_out(x)


def _convolution(config: LaCTEncoderConfig) -> ConformerConvolution:
    return ConformerConvolution(
        d_model=config.d_model,
        kernel_size=config.conv_kernel_size,
        norm_type=config.conv_norm_type,
        conv_context_size=None if config.conv_context_size is None else list(config.conv_context),
        use_bias=config.use_bias,
    )
