"""The memory one chunk at a time, in plain torch: for rows whose chunks come one after the other. See fast_steps.py."""

import math

from torch import Tensor

from nemo_lact.ops.fast_weights import FastWeights, chunk_gradient, exact, faded, forgetting, read, update


class ReferenceChunks:
    """Weights and momentum of R rows, moved by `learn` and read by `read`; FastChunks has the same methods.

    Args:
        lengths: row lengths of the initial weights, [R, H, m, 1], [R, H, d, 1], [R, H, m, 1]: every row may be of
            another layer. Their dtype is that of the state.
        chunk: frames of a chunk.
        anchor: [R, H, ., .], to which the weights go back before each step with `retention` below 1.
        relevance: of `evidence`.
    """

    def __init__(
        self, lengths: FastWeights, chunk: int, use_muon: bool, use_momentum: bool,
        anchor: FastWeights | None = None, retention: float = 1.0, relevance: float = math.inf,
    ):  # fmt: skip
        self.lengths, self.options = lengths, (chunk, use_muon, use_momentum)
        self.anchor, self.retention, self.relevance = anchor, retention, relevance

    def start(self, weights: FastWeights, momentum: FastWeights) -> None:
        """From these on, [R, H, ., .] each."""
        self.weights, self.momentum = weights, momentum

    def state(self) -> tuple[FastWeights, FastWeights]:
        """Weights and momentum."""
        return self.weights, self.momentum

    def learn(self, k: Tensor, v: Tensor, eta: Tensor, mu: Tensor, valid: Tensor, frames: Tensor) -> None:
        """One chunk: k, v [R, H, C, d], eta [R, H, C, 3, 1 or d], mu [R, H] its mean gate, valid [R, C], frames [R]."""
        eta = eta * valid[:, None, :, None, None].to(eta.dtype)
        anchor = forgetting(self.weights, self.anchor, self.retention)
        gradient = chunk_gradient(faded(self.weights, *anchor), k, v, eta)
        self.weights, self.momentum = update(
            self.weights, self.momentum, gradient, mu, frames, self.lengths, *self.options, exact(self.weights, k),
            *anchor, self.relevance,
        )  # fmt: skip

    def read(self, q: Tensor, out: Tensor) -> None:
        """f_W(q) of q [R, H, C, d], with the weights as they stand, to `out`."""
        out.copy_(read(self.weights, q))
