"""Without padding the front end leaves NeMo's masks out, and gives the same to the bit."""

import pytest
import torch
from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling

from nemo_lact.modules.front_end import FrontEnd


@pytest.mark.parametrize('kind', ['dw_striding', 'striding'])
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('factor', [4, 8])
@torch.no_grad()
def test_rows_of_one_length_need_no_masks(kind, causal, factor, monkeypatch):
    front = FrontEnd(
        subsampling=kind, subsampling_factor=factor, feat_in=16, feat_out=8, conv_channels=8,
        activation=torch.nn.ReLU(True), is_causal=causal,
    )  # fmt: skip
    for frames in (1, 2, 7, 8, 9, 100):
        x = torch.randn(2, frames, 16)
        for lengths in (torch.tensor([frames, frames]), torch.tensor([frames, max(1, frames - 3)])):
            whole, count = ConvSubsampling.forward(front, x, lengths)
            out, n = front(x, lengths)
            assert torch.equal(out, whole) and torch.equal(n.long(), count.long())

    def masks(*args):
        raise AssertionError('masks were made')

    monkeypatch.setattr(type(front.conv), 'forward', masks)
    front(x, torch.tensor([100, 100]))
    with pytest.raises(AssertionError, match='masks were made'):
        front(x, torch.tensor([100, 97]))
