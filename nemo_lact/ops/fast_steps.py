"""The fast memory one chunk at a time, in place: for many streams or layers whose chunks come one after the other."""

import math

import torch
from torch import Tensor

from nemo_lact.ops.fast_launches import Sizes, chunk_gradient, packed, read_chunks, retained, update
from nemo_lact.ops.fast_weights import FastWeights, evident


class FastChunks:
    """Weights and momentum of R rows, moved by `learn` and read by `read`.

    Args:
        lengths: row lengths of the initial weights, [R, H, d, 1] each: every row may be of another layer.
        chunk: frames of a chunk.
        anchor: [R, H, d, d] each, to which the weights go back before each step with `retention` below 1.
        relevance: of `evidence`.
    """

    def __init__(
        self, lengths: FastWeights, chunk: int, use_muon: bool, use_momentum: bool,
        anchor: FastWeights | None = None, retention: float = 1.0, relevance: float = math.inf,
    ):  # fmt: skip
        self.lengths = packed(lengths)[..., 0].contiguous()  # [R, H, 3, d]
        rows, heads, _, width = self.lengths.shape
        self.chunk, self.muon, self.momentous = chunk, use_muon, use_momentum
        self.retention = 1.0 if anchor is None else retention
        self.relevance = relevance
        self.anchor = packed(anchor) if self.retention < 1.0 else None
        self.sizes = Sizes(width, self.lengths.device)
        shape = (rows, heads, 3, width, width)
        self.shares = self.sizes.shares(rows * heads, chunk)
        self.weights, self.momentum = self.lengths.new_zeros(shape), self.lengths.new_zeros(shape)
        self.faded = None if self.anchor is None else torch.empty_like(self.weights)
        self.gradient = self.lengths.new_empty((self.shares[0][2], *shape))
        self.halves = torch.zeros((1, *shape), dtype=self.sizes.products, device=self.lengths.device)
        self.ratio = self.lengths.new_empty(shape[:-1])
        self.moved = self.weights if self.sizes.in_place(use_muon) else torch.empty_like(self.weights)

    def start(self, weights: FastWeights, momentum: FastWeights) -> None:
        """From these on, [R, H, d, d] each."""
        self.weights.copy_(packed(weights))
        self.momentum.copy_(packed(momentum))
        self.halves[0].copy_(self.weights)

    def state(self) -> tuple[FastWeights, FastWeights]:
        """Weights and momentum [R, H, d, d]: views."""
        return tuple(FastWeights(x[:, :, 0], x[:, :, 2], x[:, :, 1]) for x in (self.weights, self.momentum))

    def learn(self, k: Tensor, v: Tensor, eta: Tensor, mu: Tensor, valid: Tensor, frames: Tensor) -> None:
        """One chunk: k, v [R, H, C, d], eta [R, H, C, 3, 1], mu [R, H] mean gate, valid [R, C], frames [R] int32."""
        w, m = self.weights, self.momentum
        eta = evident(eta, frames[:, None], self.chunk, self.relevance)
        learner, half = w, self.halves[0]
        if self.anchor is not None:
            learner, half = torch.lerp(self.anchor, w, self.retention, out=self.faded), None
        chunk_gradient(
            self.sizes, self.shares, k, v, eta, valid, learner, half, slice(0, k.size(2)), self.gradient,
            self.gradient, False,
        )  # fmt: skip
        left = retained(frames, self.chunk, self.retention, self.relevance)
        if left is not None:
            torch.lerp(self.anchor, w, left, out=w)
        outs = (m, self.moved, self.halves[0], self.ratio)
        update(
            self.sizes, self.gradient, m if self.momentous else None, w, self.lengths, mu[:, :, None],
            frames[:, None], 0, self.chunk, self.muon, outs,
        )  # fmt: skip
        if self.moved is not w:
            w.copy_(self.moved)

    def read(self, q: Tensor, out: Tensor) -> None:
        """f_W(q) of q [R, H, C, d], with the weights as they stand, to `out`."""
        read_chunks(self.sizes, q, self.halves, 1, self.chunk, out)
