"""One block of the encoder: window attention and memory on a shared projection, convolution, feed-forward."""

import torch.nn.functional as F
from nemo.collections.asr.parts.submodules.conformer_modules import ConformerConvolution
from torch import Tensor, nn

from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.fast_weights import FastWeightMemory, MemoryState, RMSNorm
from nemo_lact.ops import rotate, window_attention


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
    """Window attention plus memory read: out( attention(q, k, v) + gated read of the memory )."""

    def __init__(self, config: LaCTEncoderConfig):
        super().__init__()
        self.config = config
        width = config.d_model // config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.use_bias)
        self.q_norm, self.k_norm = RMSNorm(width), RMSNorm(width)
        self.memory = FastWeightMemory(config)
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
    ) -> tuple[Tensor, MemoryState | None]:
        """x [B, T, D], valid [B, T], tables [T, width / 2] -> ([B, T, D], state)."""
        batch, frames, d_model = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # [B, T, D] each

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, frames, self.config.n_heads, -1).transpose(1, 2)  # [B, heads, T, width]

        near = window_attention(
            rotate(self.q_norm(heads(q)), cos, sin),
            rotate(self.k_norm(heads(k)), cos, sin),
            heads(v),
            valid,
            window[0],
            window[1],
            self.config.dropout_att if self.training else 0.0,
        )
        far, state = self.memory(x, q, k, v, valid, cos, sin, adaptation, state, keep_state)
        near = near.transpose(1, 2).reshape(batch, frames, d_model)
        return self.out(near + far.to(near.dtype)), state


class LaCTLayer(nn.Module):
    """Pre-norm block: [½ feed-forward] → attention + memory → [convolution] → feed-forward (½ with `macaron`)."""

    def __init__(self, config: LaCTEncoderConfig):
        super().__init__()
        self.ff_scale = 0.5 if config.macaron else 1.0
        self.norm_ff1 = nn.LayerNorm(config.d_model) if config.macaron else None
        self.ff1 = SwiGLU(config) if config.macaron else None
        self.norm_mixer = nn.LayerNorm(config.d_model)
        self.mixer = LaCTMixer(config)
        self.norm_conv = nn.LayerNorm(config.d_model) if config.conv_kernel_size else None
        self.conv = _convolution(config) if config.conv_kernel_size else None
        self.norm_ff2 = nn.LayerNorm(config.d_model)
        self.ff2 = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

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
    ) -> tuple[Tensor, MemoryState | None]:
        """x [B, T, D], valid [B, T] bool -> ([B, T, D], the memory's state after the last frame)."""
        if self.ff1 is not None:
            x = x + self.ff_scale * self.dropout(self.ff1(self.norm_ff1(x)))
        mixed, state = self.mixer(self.norm_mixer(x), valid, cos, sin, window, adaptation, state, keep_state)
        x = x + self.dropout(mixed)
        if self.conv is not None:
            x = x + self.dropout(self.conv(self.norm_conv(x), pad_mask=~valid))
        x = x + self.ff_scale * self.dropout(self.ff2(self.norm_ff2(x)))
        return x, state


def _convolution(config: LaCTEncoderConfig) -> ConformerConvolution:
    kernel, context = config.conv_kernel_size, config.conv_context_size
    if context == 'causal':
        context = [kernel - 1, 0]
    elif context is not None:
        context = [int(c) for c in context]
        if sum(context) + 1 != kernel:
            raise ValueError(
                f'conv_context_size={context} sees {sum(context) + 1} frames but conv_kernel_size={kernel}; '
                f"left + right + 1 must be the kernel size ('causal' gives [{kernel - 1}, 0])"
            )
    return ConformerConvolution(
        d_model=config.d_model,
        kernel_size=kernel,
        norm_type=config.conv_norm_type,
        conv_context_size=context,
        use_bias=config.use_bias,
    )
