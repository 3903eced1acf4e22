"""The memory of a layer as a module: its learned initial weights, step sizes, gates, and the call into ops."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nemo_lact.modules.compiled import compiled
from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.pauses import ChunkLayout
from nemo_lact.ops import (
    FastWeights,
    Pending,
    lact_swiglu,
    lact_swiglu_frozen,
    lact_swiglu_step,
    rotate,
    row_length,
    settle,
    zeros_like,
)
from nemo_lact.state import LaCTState


class MemoryState(NamedTuple):
    """One layer's part of `LaCTState`: differences from the initial weights, momentum, and the unfinished chunk."""

    weights: FastWeights
    momentum: FastWeights
    pending: Pending | None = None  # streaming only

    @classmethod
    def joined(cls, parts: 'list[MemoryState | None]') -> 'MemoryState | None':
        """Rows of several into one; without unfinished chunks. None of a layer without memory."""
        if parts[0] is None:
            return None

        def join(groups) -> FastWeights:
            return FastWeights(*(torch.cat(t) for t in zip(*groups)))

        return cls(join(p.weights for p in parts), join(p.momentum for p in parts))


def memory_of(state: LaCTState, layer: int) -> MemoryState:
    """The part of one layer, counted among those with a memory."""

    def weights(group) -> FastWeights:
        return FastWeights(*(t[layer] for t in group))

    moved = weights(state.weights)
    pending = Pending(weights(state.pending[:3]), state.pending[3][layer]) if state.pending else None
    return MemoryState(moved, weights(state.momentum) if state.momentum else zeros_like(moved), pending)


def stacked(layers: 'list[MemoryState | None]', use_momentum: bool) -> dict[str, tuple[Tensor, ...]]:
    """The parts of all layers that have one as groups of `LaCTState`; {} if none has."""
    layers = [m for m in layers if m is not None]
    if not layers:
        return {}
    groups = {'weights': tuple(torch.stack(t) for t in zip(*(m.weights for m in layers)))}
    groups['momentum'] = tuple(torch.stack(t) for t in zip(*(m.momentum for m in layers))) if use_momentum else ()
    if layers[0].pending is not None:
        gathered = [(*m.pending.gradient, m.pending.mu) for m in layers]
        groups['pending'] = tuple(torch.stack(t) for t in zip(*gathered))
    return groups


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


def working_dtype(w: Tensor, q: Tensor, use_muon: bool) -> torch.dtype:
    """float64 for the fast weights where fp32 is evaluated with Muon: the result must not depend on how the input was
    cut or batched, and Newton-Schulz enlarges the rounding of an fp32 gradient some 500 times. Else their own dtype."""
    exact = use_muon and w.dtype == q.dtype == torch.float32 and w.device.type != 'mps'
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
        dtype = self.state_dtype
        return FastWeights(w0.to(dtype), w1.to(dtype), w2.to(dtype))

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the fast weights between calls."""
        own = self.w1.weight.dtype
        return torch.float32 if self.config.fp32_states and own != torch.float64 else own

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
        layout: ChunkLayout | None = None,
    ) -> tuple[Tensor, MemoryState | None]:
        """
        Args:
            x: [B, T, D] input of the layer (normed), from which step sizes and gates are made.
            q, k, v: [B, T, D] the shared projection.
            valid: [B, T] bool, False for padding and for frames not to be learned.
            cos, sin: rotary tables of the attention heads, used unless `ttt_nope`.
            adaptation: False reads without updating.
            state: where the streams stand; None is fresh.
            keep_state: False returns None for the state, which saves its memory in training.
            layout: where each row's chunks lie; None: every `lact_chunk_size` frames.

        Returns:
            Gated read [B, T, D], and the state after the last frame.
        """
        cfg = self.config
        initial, weights, momentum = self.unpacked(state, x.size(0), q)
        q = self._features(q, 0, cos, sin)
        spare = None
        if adaptation:
            k, v, eta, mu = self._to_learn(x, k, v, cos, sin)
            size = cfg.lact_chunk_size
            if layout is not None:
                size, valid = layout.size, layout.valid(valid)
                q, k, v, eta, mu = (layout.spread(t) for t in (q, k, v, eta, mu))
            out, weights, momentum = lact_swiglu(
                q, k, v, eta, mu, valid, weights, momentum, self.row_lengths(initial),
                size, cfg.lact_mode, cfg.use_muon, cfg.use_momentum, initial, cfg.lact_retention,
                cfg.relevance,
            )  # fmt: skip
            if layout is not None:
                out = layout.gathered(out)
            if self.training and cfg.lact_mode == 'causal':
                spare = eta, mu
        else:
            out = lact_swiglu_frozen(q, weights, cfg.lact_chunk_size)
        out = self._gated(x, out, spare)
        return out, self.packed(initial, weights, momentum) if keep_state else None

    def step(
        self,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        learn: Tensor,
        cos: Tensor,
        sin: Tensor,
        adaptation: bool,
        state: MemoryState,
        filled: Tensor,
        last_filled: int,
    ) -> tuple[Tensor, MemoryState]:
        """`forward` in causal order for the next frames of streams that stand anywhere in their chunks.

        Args:
            learn: [B, T] bool: frames to learn from; those of a row come first.
            state: with `pending`.
            filled: [B] int64 frames in the unfinished chunks; last_filled: their largest number after this step.
        """
        cfg = self.config
        initial, weights, momentum = self.unpacked(state, x.size(0), q)
        q = self._features(q, 0, cos, sin)
        if not adaptation:
            return self._gated(x, lact_swiglu_frozen(q, weights, cfg.lact_chunk_size)), state
        k, v, eta, mu = self._to_learn(x, k, v, cos, sin)
        out, weights, momentum, pending = lact_swiglu_step(
            q, k, v, eta, mu, learn, weights, momentum, self.row_lengths(initial), self._pending(state, initial),
            filled, cfg.lact_chunk_size, cfg.use_muon, cfg.use_momentum, last_filled, initial, cfg.lact_retention,
        )  # fmt: skip
        return self._gated(x, out), self.packed(initial, weights, momentum, pending)

    def settle(self, state: MemoryState, filled: Tensor) -> MemoryState:
        """Learn from the unfinished chunks of `filled` [B] frames: their streams have ended."""
        cfg = self.config
        initial, weights, momentum = self.unpacked(state, filled.size(0), state.weights.w0)
        weights, momentum, pending = settle(
            weights, momentum, self.row_lengths(initial), self._pending(state, initial), filled,
            cfg.lact_chunk_size, cfg.use_muon, cfg.use_momentum, initial, cfg.lact_retention, cfg.relevance,
        )  # fmt: skip
        return self.packed(initial, weights, momentum, pending)

    def unpacked(
        self, state: MemoryState | None, batch: int, q: Tensor
    ) -> tuple[FastWeights, FastWeights, FastWeights]:
        """Initial weights [H, ., .], current weights and momentum [B, H, ., .] in the dtype to work in."""
        own = self.initial_weights()
        dtype = working_dtype(own.w0, q, self.config.use_muon)
        initial = FastWeights(*(w.to(dtype) for w in own))
        weights = FastWeights(*(w.expand(batch, -1, -1, -1) for w in initial))
        if state is None:
            return initial, weights, zeros_like(FastWeights(*(w.detach() for w in weights)))
        weights = FastWeights(*(w + s for w, s in zip(weights, state.weights)))
        return initial, weights, FastWeights(*(m.to(dtype) for m in state.momentum))

    def packed(self, initial, weights, momentum, pending: Pending | None = None) -> MemoryState:
        """Back to differences, in the dtype of the state."""
        dtype = self.state_dtype

        def narrow(tensors):
            return FastWeights(*(t.to(dtype) for t in tensors))

        moved = narrow(w - i for w, i in zip(weights, initial))
        if pending is not None:
            pending = Pending(narrow(pending.gradient), pending.mu.to(dtype))
        return MemoryState(moved, narrow(momentum), pending)

    @staticmethod
    def row_lengths(initial: FastWeights) -> FastWeights:
        return FastWeights(*(row_length(w) for w in initial))

    @staticmethod
    def _pending(state: MemoryState, initial: FastWeights) -> Pending:
        gradient, mu = state.pending
        return Pending(FastWeights(*(g.to(initial.w0.dtype) for g in gradient)), mu.to(initial.w0.dtype))

    @compiled
    def _to_learn(self, x, k, v, cos, sin) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys and values [B, H, T, d], step sizes, momentum gates."""
        return self._features(k, 1, cos, sin), self._heads(F.silu(v)), *self._steps(x)

    @compiled
    def _gated(self, x: Tensor, out: Tensor, spare: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Read [B, H, T, d], normed and gated: [B, T, D]."""
        gate = F.silu(self.gate_proj(x))  # [B, T, H]
        if spare is not None:
            # Input of one chunk reads before it learns: without this the step sizes have no path to the loss, and
            # DDP stops. Element by element: a sum would overflow in fp16, and 0 times infinity is NaN.
            eta, mu = spare
            gate = gate + (0.0 * (eta.sum(dim=(-2, -1)) + mu)).transpose(1, 2).to(gate.dtype)
        out = self.norm(out).transpose(1, 2) * gate[..., None].to(out.dtype)  # [B, T, H, d]
        return out.reshape(x.size(0), -1, self.config.d_model)

    @compiled
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
