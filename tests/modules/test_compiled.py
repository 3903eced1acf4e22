"""`compile: true`: the same numbers, the same parameters, and no new graph for every batch."""

import copy
import pickle

import pytest
import torch

from nemo_lact.modules import LaCTEncoder


@pytest.fixture
def pair(tiny, monkeypatch):
    monkeypatch.setattr('nemo_lact.modules.compiled.BACKEND', 'aot_eager')  # graphs without C++: seconds, not minutes
    plain = LaCTEncoder(**tiny, conv_kernel_size=5)
    fast = LaCTEncoder(**tiny, conv_kernel_size=5, compile=True)
    fast.load_state_dict(plain.state_dict())  # the same names
    torch._dynamo.reset()
    return plain, fast


def batch(rows, frames):
    return dict(audio_signal=torch.randn(rows, 16, frames), length=torch.tensor([frames, 70, frames // 2][:rows]))


def test_compiled_equals_plain_at_any_length_with_few_graphs(pair, contract):
    plain, fast = pair
    torch._dynamo.utils.counters.clear()
    made = []
    for rows, frames in ((2, 200), (2, 280), (3, 170), (2, 333), (3, 260), (2, 190)):
        x = batch(rows, frames)
        a, n = plain(**x)
        b, _ = fast(**x)
        contract('compiled = plain (fp32, CPU)', (a - b).abs().max() / a.abs().max(), 1e-4)
        for out in (a, b):
            out.square().mean().backward()
        made.append(torch._dynamo.utils.counters['stats']['unique_graphs'])
    for p, q in zip(plain.parameters(), fast.parameters()):
        if p.grad is not None:
            scale = p.grad.abs().max().clamp(min=1e-6)
            contract('compiled = plain, gradients (fp32, CPU)', (p.grad - q.grad).abs().max() / scale, 2e-2)
    assert made[0] > 0  # it did compile
    # Five functions, each once for the first batch, once for another length, once for another number of rows.
    assert made[-1] == made[2] <= 15, f'graphs after each batch: {made}'


def test_a_compiled_model_copies_and_pickles(pair):
    _, fast = pair
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.config.compile
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        assert not torch.equal(next(other.parameters()), next(fast.parameters()))
