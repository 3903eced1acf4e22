"""The attention kernel against torch's. On a GPU, or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip('triton')

from nemo_lact.ops import triton_attention, window_attention  # noqa: E402

GPU = torch.cuda.is_available()
if not GPU and not triton_attention.INTERPRETED:
    pytest.skip('needs a CUDA GPU, or TRITON_INTERPRET=1 from the start', allow_module_level=True)
DEVICE = 'cuda' if GPU else 'cpu'


@pytest.mark.parametrize('left, right', [(16, 16), (40, 0), (0, 7), (70, 100)])
@pytest.mark.parametrize('width', [64, 24])
def test_equals_torch(contract, left, right, width):
    frames = 150
    q, k, v = torch.randn(3, 2, frames, 2, width, device=DEVICE).bfloat16().transpose(2, 3)
    valid = torch.arange(frames, device=DEVICE) < torch.tensor([frames, 37], device=DEVICE)[:, None]
    out = triton_attention.window_forward(q, k, v, valid, left, right)
    assert out.isfinite().all() and out.dtype == q.dtype
    truth = window_attention(q.float(), k.float(), v.float(), valid, left, right)
    seen = valid[:, None, :, None]
    error = ((out.float() - truth) * seen).norm() / (truth * seen).norm()
    contract('attention kernel = torch in fp32 (bf16)', error, 1e-2)


def test_padding_holds_no_nan_of_others():
    q, k, v = torch.randn(3, 1, 1, 80, 16, device=DEVICE).bfloat16()
    valid = torch.arange(80, device=DEVICE)[None] < 50
    a = triton_attention.window_forward(q, k, v, valid, 8, 8)
    k[..., 50:, :] = 1e4
    v[..., 50:, :] = 1e4
    assert torch.equal(a[:, :, :50], triton_attention.window_forward(q, k, v, valid, 8, 8)[:, :, :50])


def test_where_it_may_run():
    q = torch.randn(1, 1, 80, 16, device=DEVICE)
    half = q.bfloat16()
    assert triton_attention.can_run(half, half, half, 8, 8, 0.0) == GPU
    assert not triton_attention.can_run(q, q, q, 8, 8, 0.0)  # fp32
    assert not triton_attention.can_run(half, half, half, -1, 8, 0.0)
    half.requires_grad_()
    assert not triton_attention.can_run(half, half, half, 8, 8, 0.0)
