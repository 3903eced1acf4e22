import pytest
import torch

import nemo_lact.ops.attention as module
from nemo_lact.ops import cached_attention, rotary_tables, rotate, window_attention


def plain(q, k, v, valid, left, right):
    """Softmax attention with the window written as a T × T mask."""
    t = torch.arange(q.size(2))
    offset = t[None, :] - t[:, None]
    allowed = valid[:, None, None, :].expand(-1, 1, q.size(2), -1).clone()
    if left >= 0:
        allowed &= offset >= -left
    if right >= 0:
        allowed &= offset <= right
    scores = (q @ k.transpose(-2, -1)) / q.size(-1) ** 0.5
    return torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1) @ v


@pytest.mark.parametrize('frames', [1, 5, 37, 64, 131])
@pytest.mark.parametrize('left,right', [(8, 8), (16, 0), (0, 5), (3, 20), (0, 0), (-1, -1), (-1, 4), (40, 200)])
def test_equals_plain_attention(contract, frames, left, right):
    q, k, v = torch.randn(3, 2, 3, frames, 8)
    valid = torch.ones(2, frames, dtype=torch.bool)
    valid[1, (frames + 1) // 2 :] = False
    out = window_attention(q, k, v, valid, left, right)
    difference = (out - plain(q, k, v, valid, left, right)).abs().nan_to_num()[valid[:, None].expand(-1, 3, -1)]
    contract('window attention = plain softmax (fp32)', difference.max(), 1e-5)
    assert out.isfinite().all()


@pytest.mark.parametrize('left,right', [(8, 8), (16, 0), (0, 5), (3, 20)])
def test_blocks_equal_dense_forward_and_backward(contract, left, right):
    leaves = [torch.randn(2, 3, 100, 8, requires_grad=True) for _ in range(3)]
    valid = torch.arange(100) < torch.tensor([100, 61])[:, None]
    weight = valid[:, None, :, None]
    grads = []
    for way in (lambda: module._blocks(*leaves, valid, left, right, 0, max(left, right, 16), 0.0),
                lambda: module._dense(*leaves, valid, left, right, 0, 0.0)):  # fmt: skip
        grads.append(torch.autograd.grad((way() * weight).square().sum(), leaves))
    worst = max((a - b).abs().max() for a, b in zip(*grads))
    contract('blocked = dense attention, backward (fp32)', worst, 2e-5)


def test_rows_without_any_frame_are_finite():
    q = torch.randn(2, 2, 50, 4)
    valid = torch.zeros(2, 50, dtype=torch.bool)
    valid[0] = True
    for window in ((4, 4), (-1, -1)):
        assert window_attention(q, q, q, valid, *window).isfinite().all()


def test_memory_is_linear_in_length(monkeypatch):
    """No T × T matrix: 20 times the length may cost some 20 times the mask, not 400 times."""
    seen = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, dropout_p=0.0):
        seen.append(attn_mask.numel() + key.numel())
        return original(query, key, value, attn_mask=attn_mask, dropout_p=dropout_p)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', spy)
    for frames in (1000, 20000):
        q = torch.randn(1, 1, frames, 2)
        window_attention(q, q, q, torch.ones(1, frames, dtype=torch.bool), 16, 16)
    assert len(seen) == 2 and seen[1] < 25 * seen[0]


def test_flash_path_packs_rows(monkeypatch):
    """The wiring to flash-attn, against a plain emulation of its varlen function (the package needs a GPU)."""
    def emulated(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p=0.0, window_size=(-1, -1)):
        out = torch.empty_like(q)
        for a, b in zip(cu_q[:-1], cu_q[1:]):
            x = [y[a:b].transpose(0, 1)[None] for y in (q, k, v)]  # [1, H, T, d]
            out[a:b] = plain(*x, torch.ones(1, b - a, dtype=torch.bool), *window_size)[0].transpose(0, 1)
        return out

    monkeypatch.setattr(module, 'flash_attn_varlen_func', emulated)
    q, k, v = torch.randn(3, 3, 2, 40, 8)
    valid = torch.arange(40) < torch.tensor([40, 23, 0])[:, None]
    out = module._flash(q, k, v, valid, 5, 3, 0.0)
    expected = plain(q[:2], k[:2], v[:2], valid[:2], 5, 3)
    keep = valid[:2, None].expand(-1, 2, -1)
    torch.testing.assert_close(out[:2][keep], expected[keep])
    assert torch.equal(out[2], torch.zeros_like(out[2]))


def test_rotary_depends_on_distance_only_even_after_ten_hours():
    x, y = torch.randn(2, 1, 1, 1, 16)
    scores = []
    for first in (0, 450_000):
        a = rotate(x, *rotary_tables(torch.tensor([first]), 16, 10000.0))
        b = rotate(y, *rotary_tables(torch.tensor([first + 7]), 16, 10000.0))
        scores.append((a * b).sum())
    assert abs(scores[0] - scores[1]) < 1e-4


@pytest.mark.parametrize('left,right', [(0, 3), (8, 3), (24, 7), (-1, 3), (12, 0)])
@pytest.mark.parametrize('frames', [1, 30, 203])
def test_attention_in_chunks_equals_plain_softmax(contract, left, right, frames):
    q, k, v = (torch.randn(2, 3, frames, 8) for _ in range(3))
    valid = torch.arange(frames) < torch.tensor([frames, (frames + 1) // 2])[:, None]
    t = torch.arange(frames)
    chunk = t // (right + 1)
    seen = chunk[None] <= chunk[:, None]
    if left >= 0:
        seen &= chunk[:, None] - chunk[None] <= left // (right + 1)
    scores = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(~(seen & valid[:, None, None]), -1e9)
    truth = scores.softmax(-1) @ v
    ours = window_attention(q, k, v, valid, left, right, chunk=right + 1)
    keep = valid[:, None, :, None]
    contract('window attention = plain softmax (fp32)', ((ours - truth) * keep).abs().max(), 1e-5)


@pytest.mark.parametrize('left,right,chunk', [(8, 0, 0), (12, 3, 4)])
def test_cached_keys_equal_the_whole(contract, left, right, chunk):
    q, k, v = (torch.randn(2, 3, 60, 8) for _ in range(3))
    valid = torch.ones(2, 60, dtype=torch.bool)
    whole = window_attention(q, k, v, valid, left, right, chunk=chunk)
    cached_valid = torch.cat([torch.zeros(2, left, dtype=torch.bool), valid], dim=1)
    k, v = (torch.cat([torch.full((2, 3, left, 8), 9.0), x], dim=2) for x in (k, v))  # empty slots hold anything
    for start, stop in [(0, 4), (4, 12), (12, 60)]:
        part = slice(start, stop + left)
        keys, values = k[:, :, part], v[:, :, part]
        ours = cached_attention(q[:, :, start:stop], keys, values, cached_valid[:, part], left, right, chunk)
        contract('cached keys = whole window attention (fp32)', (ours - whole[:, :, start:stop]).abs().max(), 1e-5)
