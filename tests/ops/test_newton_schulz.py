import pytest
import torch

from nemo_lact.ops import orthogonalise


@pytest.mark.parametrize('shape', [(24, 24), (16, 40), (40, 16)])
def test_singular_values_come_near_one(shape):
    g = torch.randn(3, *shape)
    s = torch.linalg.svdvals(orthogonalise(g))
    large = torch.linalg.svdvals(g) / torch.linalg.norm(g, dim=(-2, -1))[:, None] > 0.02
    assert 0.5 < s[large].min() and s.max() < 1.5


def test_keeps_the_singular_vectors():
    u, _ = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))
    g = u @ torch.diag(torch.linspace(1, 3, 16, dtype=torch.float64)) @ v.T
    inner = u.T @ orthogonalise(g) @ v
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-10


def test_rank_deficient_input_stays_so():
    """Three frames give a gradient of rank 3: the other directions must not fill with enlarged rounding noise."""
    g = torch.randn(64, 3) @ torch.randn(3, 64)
    s = torch.linalg.svdvals(orthogonalise(g))
    assert s[:3].min() > 0.5 and s[3:].max() < 1e-3


def test_last_steps_in_fp32_enlarge_little():
    """For few frames, whose other directions only rounding fills, five steps in fp32 are off 15 times as much."""
    g = torch.randn(64, 20, dtype=torch.float64) @ torch.randn(20, 64, dtype=torch.float64)
    exact, rounded = orthogonalise(g), orthogonalise(g, rounded=True)
    assert rounded.dtype == torch.float64 and not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 1e-6 * exact.norm()
    assert (rounded - exact).norm() < 0.2 * (orthogonalise(g.float()) - exact).norm()


def test_zero_gives_zero_and_a_finite_gradient():
    g = torch.zeros(2, 8, 8, requires_grad=True)
    out = orthogonalise(g)
    out.sum().backward()
    assert torch.equal(out, torch.zeros_like(out)) and g.grad.isfinite().all()


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match='float32'):
        orthogonalise(torch.randn(4, 4, dtype=torch.bfloat16))
