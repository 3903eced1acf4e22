"""Newton-Schulz with fp16 operands and fp32 sums, as batched products of torch: forward and backward.

fp16 has the 11 significant bits of tf32 at twice its rate. X is scaled by 256, A and the polynomial by 256 too, so
that entries stay in the normal range; bf16 would enlarge its rounding some 500 times (see newton_schulz.py).
"""

import torch
from torch import Tensor

SCALE = 256.0
STEPS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def _polynomial(x: Tensor, b: float, c: float) -> tuple[Tensor, Tensor]:
    """256 A and 256 (b A + c A²) for A = X Xᵀ, from 256 X."""
    gram = _mm(x, x.mT, 1 / SCALE)
    return gram, torch.baddbmm(gram, gram, gram, beta=b, alpha=c / SCALE)


def _mm(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    return torch.baddbmm(x, x, y, beta=0, alpha=alpha)  # beta 0: the first argument is not read


def forward(x: Tensor) -> Tensor:
    """256 · orthogonalised from x = 256 M / |M|, [N, d, d] fp16."""
    for a, b, c in STEPS:
        _, poly = _polynomial(x, b, c)
        x = torch.baddbmm(x, poly, x, beta=a, alpha=1 / SCALE)
    return x


def steps(x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What `backward` needs of each step: X before it, A = X Xᵀ and b A + c A², all times 256."""
    kept = []
    for step, (a, b, c) in enumerate(STEPS):
        gram, poly = _polynomial(x, b, c)
        kept.append((x, gram, poly))
        if step < len(STEPS) - 1:
            x = torch.baddbmm(x, poly, x, beta=a, alpha=1 / SCALE)
    return kept


def backward(kept: list[tuple[Tensor, Tensor, Tensor]], d: Tensor) -> Tensor:
    """Gradient at M / |M| from the gradient d at the result, both in d's scale, [N, d, d] fp16. kept: of `steps`.

    Y = P X with P = a I + b A + c A²: dX = P dY + (b S + c (S A + A S)) X, S = dY Xᵀ + X dYᵀ.
    """
    for (a, b, c), (x, gram, poly) in zip(reversed(STEPS), reversed(kept)):
        s = _mm(d, x.mT, 1 / SCALE).baddbmm_(x, d.mT, alpha=1 / SCALE)
        inner = torch.baddbmm(s, s, gram, beta=b, alpha=c / SCALE).baddbmm_(gram, s, alpha=c / SCALE)
        d = torch.baddbmm(d, poly, d, beta=a, alpha=1 / SCALE).baddbmm_(inner, x, alpha=1 / SCALE)
    return d
