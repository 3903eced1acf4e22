"""The memory of a layer as a module: its learned initial weights, step sizes, gates, and the call into ops."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.ops import FastWeights, lact_swiglu, lact_swiglu_frozen, rotate, row_length, zeros_like


class MemoryState(NamedTuple):
    """One layer's part of `LaCTState`: differences from the initial weights, and momentum ([B, ...] each)."""

    weights: FastWeights
    momentum: FastWeights


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, in fp32 (also exportable to ONNX opset 17)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        y = y * torch.rsqrt((y * y).mean(dim=-1, keepdim=True) + self.eps)
        return (y * self.weight.to(y.dtype)).to(x.dtype)


def _working_dtype(w: Tensor, q: Tensor) -> torch.dtype:
    """float64 for the fast weights where fp32 is evaluated: the result must not depend on how the input was cut or
    batched, and Newton-Schulz enlarges the rounding of an fp32 gradient some 500 times. Elsewhere their own dtype."""
    exact = w.dtype == q.dtype == torch.float32 and w.device.type != 'mps'
    if exact and not torch.is_grad_enabled() and not torch.jit.is_tracing():
        return torch.float64
    return w.dtype


class LowRankWeight(nn.Module):
    """W = left · right + identity / 2: fewer parameters for the initial W0 and W2 (`w0_w2_low_rank`)."""

    def __init__(self, heads: int, rows: int, columns: int, rank: int, gain: float):
        super().__init__()
        self.left = nn.Parameter(torch.randn(heads, rows, rank) * gain / math.sqrt(rank))
        self.right = nn.Parameter(torch.randn(heads, rank, columns) * gain / math.sqrt(columns))

    def forward(self) -> Tensor:
        eye = torch.eye(self.left.size(1), self.right.size(2), device=self.left.device, dtype=self.left.dtype)
        with torch.autocast(device_type=self.left.device.type, enabled=False):
            return self.left @ self.right + 0.5 * eye


class FullWeight(nn.Module):
    """Initial weights as a plain parameter, rows of about unit length."""

    def __init__(self, heads: int, rows: int, columns: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(heads, rows, columns) / math.sqrt(columns))

    def forward(self) -> Tensor:
        return self.weight


class FastWeightMemory(nn.Module):
    """Reads and updates the fast weights of one layer.

    Args:
        config: the encoder's options; uses d_model, num_lact_heads and everything under 'Memory'.
    """

    def __init__(self, config: LaCTEncoderConfig):
        super().__init__()
        self.config = config
        self.heads = heads = config.num_lact_heads
        self.width = width = config.lact_head_width  # d
        hidden = config.lact_hidden_width  # m
        if config.w0_w2_low_rank > 0:
            rank, gain = config.w0_w2_low_rank, config.fw_init_gain
            self.w0 = LowRankWeight(heads, hidden, width, rank, gain)
            self.w2 = LowRankWeight(heads, hidden, width, rank, gain)
        else:
            self.w0 = FullWeight(heads, hidden, width)
            self.w2 = FullWeight(heads, hidden, width)
        self.w1 = FullWeight(heads, width, hidden)
        # Per-channel scale and offset of q and k: the memory's own view of the shared projection.
        self.qk_scale = nn.Parameter(torch.ones(2, config.d_model))
        self.qk_offset = nn.Parameter(torch.zeros(2, config.d_model))
        self.lr_proj = nn.Linear(config.d_model, heads * 3 * config.lr_dim)
        # softplus(base) = base_lr: the step size where the projection gives 0.
        self.lr_base = config.base_lr + math.log(-math.expm1(-config.base_lr))
        self.momentum_proj = nn.Linear(config.d_model, heads) if config.use_momentum else None
        self.norm = RMSNorm(width)
        self.gate_proj = nn.Linear(config.d_model, heads)
        if not config.adaptation:
            self._freeze_unused()

    def _freeze_unused(self) -> None:
        # Without updates these get no gradient, which DDP reports as an error.
        for module in (self.lr_proj, self.momentum_proj):
            if module is not None:
                module.requires_grad_(False)

    def initial_weights(self) -> FastWeights:
        """W0, W2 [H, m, d], W1 [H, d, m] as learned, in the dtype of the state."""
        w0, w1, w2 = self.w0(), self.w1(), self.w2()
        dtype = torch.float32 if self.config.fp32_states and w0.dtype != torch.float64 else w0.dtype
        return FastWeights(w0.to(dtype), w1.to(dtype), w2.to(dtype))

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        valid: Tensor,
        cos: Tensor,
        sin: Tensor,
        adaptation: bool,
        state: MemoryState | None,
        keep_state: bool,
    ) -> tuple[Tensor, MemoryState | None]:
        """
        Args:
            x: [B, T, D] input of the layer (normed), from which step sizes and gates are made.
            q, k, v: [B, T, D] the shared projection.
            valid: [B, T] bool, False for padding.
            cos, sin: rotary tables of the attention heads, used unless `ttt_nope`.
            adaptation: False reads without updating.
            state: where the streams stand; None is fresh.
            keep_state: False returns None for the state, which saves its memory in training.

        Returns:
            Gated read [B, T, D], and the state after the last frame.
        """
        cfg = self.config
        own = self.initial_weights()
        working = _working_dtype(own.w0, q)
        initial = FastWeights(*(w.to(working) for w in own))
        batch = x.size(0)
        weights = FastWeights(*(w.expand(batch, -1, -1, -1) for w in initial))  # [B, H, ., .]
        if state is None:
            momentum = zeros_like(FastWeights(*(w.detach() for w in weights)))
        else:
            weights = FastWeights(*(w + s for w, s in zip(weights, state.weights)))
            momentum = FastWeights(*(m.to(working) for m in state.momentum))

        q = self._features(q, 0, cos, sin)
        if adaptation:
            k = self._features(k, 1, cos, sin)
            v = self._heads(F.silu(v))
            eta, mu = self._steps(x)
            lengths = FastWeights(*(row_length(w) for w in initial))
            out, weights, momentum = lact_swiglu(
                q, k, v, eta, mu, valid, weights, momentum, lengths,
                cfg.lact_chunk_size, cfg.lact_mode, cfg.use_muon, cfg.use_momentum,
            )  # fmt: skip
        else:
            out = lact_swiglu_frozen(q, weights, cfg.lact_chunk_size)
        gate = F.silu(self.gate_proj(x))  # [B, T, H]
        if adaptation and self.training and cfg.lact_mode == 'causal':
            # Input of one chunk reads before it learns: without this the step sizes have no path to the loss, and
            # DDP stops. Element by element: a sum would overflow in fp16, and 0 times infinity is NaN.
            gate = gate + (0.0 * (eta.sum(dim=(-2, -1)) + mu)).transpose(1, 2).to(gate.dtype)
        out = self.norm(out).transpose(1, 2) * gate[..., None].to(out.dtype)  # [B, T, H, d]
        out = out.reshape(batch, -1, cfg.d_model)
        if not keep_state:
            return out, None
        moved = FastWeights(*((w - i).to(own.w0.dtype) for w, i in zip(weights, initial)))
        return out, MemoryState(moved, FastWeights(*(m.to(own.w0.dtype) for m in momentum)))

    def _features(self, x: Tensor, which: int, cos: Tensor, sin: Tensor) -> Tensor:
        """q (which 0) or k (1): [B, T, D] -> [B, H, T, d] of unit length."""
        cfg = self.config
        y = F.silu(x * self.qk_scale[which].to(x.dtype) + self.qk_offset[which].to(x.dtype))
        if not cfg.ttt_nope:  # the attention's tables, so per attention head
            y = y.view(y.size(0), y.size(1), cfg.n_heads, -1).transpose(1, 2)  # [B, heads, T, D / heads]
            y = rotate(y, cos, sin).transpose(1, 2).reshape(x.shape)
        y = self._heads(y)
        z = y.float() if y.dtype in (torch.float16, torch.bfloat16) else y
        return (z * torch.rsqrt((z * z).sum(dim=-1, keepdim=True) + 1e-6)).to(y.dtype)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, self.width).transpose(1, 2)  # [B, H, T, d]

    def _steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Step sizes [B, H, T, 3, 1 or d] and momentum gate [B, H, T], fp32."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        eta = F.softplus(self.lr_proj(x).to(dtype) + self.lr_base)
        eta = eta.view(x.size(0), x.size(1), self.heads, 3, -1).transpose(1, 2)
        if self.momentum_proj is None:
            return eta, eta.new_zeros(eta.shape[:3])
        return eta, torch.sigmoid(self.momentum_proj(x).to(dtype)).transpose(1, 2)
