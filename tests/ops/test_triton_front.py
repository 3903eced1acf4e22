"""The front end's kernels against NeMo's modules. On a GPU, or in Triton's interpreter."""

import pytest
import torch

pytest.importorskip('triton')

from nemo_lact.modules.front_end import FrontEnd  # noqa: E402
from nemo_lact.ops import triton_front  # noqa: E402

GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'
if not GPU and not triton_front.INTERPRETED:
    pytest.skip('needs a CUDA GPU, or TRITON_INTERPRET=1 from the start', allow_module_level=True)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('factor', [4, 8])
def test_equals_nemo(contract, causal, factor):
    front = FrontEnd('dw_striding', factor, 20, 24, conv_channels=12, activation=torch.nn.ReLU(True), is_causal=causal)
    front = front.to(DEVICE).eval()
    signal = torch.randn(4, 20, 101, device=DEVICE)
    lengths = torch.tensor([101, 64, 1, 0], device=DEVICE)
    signal = signal.masked_fill(torch.arange(101, device=DEVICE) >= lengths[:, None, None], 0.0)
    with torch.no_grad():
        truth, n = front(signal.transpose(1, 2), lengths)
        # Beyond the length nothing is read.
        signal = signal.masked_fill(torch.arange(101, device=DEVICE) >= lengths[:, None, None], float('nan'))
        out = triton_front.front_forward(signal.transpose(1, 2), lengths, front._weights(torch.bfloat16))
        if GPU:
            with torch.autocast('cuda', torch.bfloat16):
                assert front.why_not_fast(signal) is None
                chosen, n2 = front(signal.transpose(1, 2), lengths)
            assert torch.equal(chosen, out) and torch.equal(n, n2)
    assert out.shape == truth.shape and out.isfinite().all()
    for row in range(4):
        if n[row]:
            a, b = out[row, : n[row]].float(), truth[row, : n[row]]
            contract('front end = NeMo in fp32 (bf16, relative)', (a - b).norm() / b.norm(), 2e-2)


def test_where_it_may_run():
    front = FrontEnd('dw_striding', 4, 20, 24, conv_channels=12, activation=torch.nn.ReLU(True))
    x = torch.zeros(1, 50, 20)
    assert 'cpu' in front.why_not_fast(x.bfloat16())
    if GPU:
        x = x.cuda()
        assert 'gradients' in front.why_not_fast(x.bfloat16())
        with torch.no_grad():
            assert 'float32' in front.why_not_fast(x)
            assert front.why_not_fast(x.bfloat16()) is None
