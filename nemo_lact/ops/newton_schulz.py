"""Newton-Schulz orthogonalisation, the Muon step of LaCT."""

import torch
from torch import Tensor


def orthogonalise(g: Tensor, rounded: bool = False) -> Tensor:
    """Nearest semi-orthogonal matrix, by five Newton-Schulz steps.

    Non-zero singular values above about 1e-2 of the Frobenius norm come out near 1 (0.7 to 1.2), zero ones stay zero.

    Args:
        g: [..., m, d] float32 or float64. Half precision is refused: a chunk with fewer frames than d gives a
            rank-deficient g, and five steps enlarge rounding noise some 500 times.
        rounded: take the last two steps in float32, at a third of the time; they enlarge its rounding 8 times only.

    Returns:
        [..., m, d], same dtype.
    """
    if g.dtype == torch.float16 or g.dtype == torch.bfloat16:
        raise TypeError('orthogonalise needs float32 or float64 input, got half precision; cast with .float() first')
    # Steps X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X; a, b, c as in arXiv 2505.23884 and its public code.
    # Written out here, not as module constants, so that TorchScript (ONNX export) can compile the function.
    a = [4.0848, 3.9505, 3.7418, 2.8769, 2.8366]
    b = [-6.8946, -6.3029, -5.5913, -3.1427, -3.0525]
    c = [2.9270, 2.6377, 2.3037, 1.2046, 1.2012]
    tall = g.size(-2) > g.size(-1)
    x = g.transpose(-2, -1) if tall else g
    # sqrt(sum + tiny) and not norm(): its gradient at g = 0 is 0, not NaN.
    x = x / torch.sqrt((x * x).sum(dim=(-2, -1), keepdim=True) + 1e-14)
    shape = x.shape
    x = x.reshape(-1, shape[-2], shape[-1])
    for i in range(5):
        if rounded and i == 3:
            x = x.float()
        xx = x @ x.transpose(-2, -1)  # [., s, s], s = min(m, d)
        xx = torch.baddbmm(xx, xx, xx, beta=b[i], alpha=c[i])
        x = torch.baddbmm(x, xx, x, beta=a[i])
    x = x.reshape(shape).to(g.dtype)
    return x.transpose(-2, -1) if tall else x
