"""`compile: true`: the same numbers, the same parameters, and no new graph for every batch."""

import copy
import pickle

import pytest
import torch

from nemo_lact import ops
from nemo_lact.modules import LaCTEncoder


@pytest.fixture
def pair(tiny, monkeypatch):
    monkeypatch.setattr('nemo_lact.modules.compiled.BACKEND', 'aot_eager')  # graphs without C++: seconds, not minutes
    tiny['n_layers'] = 1
    plain = LaCTEncoder(**tiny)
    fast = LaCTEncoder(**tiny, compile=True)
    fast.load_state_dict(plain.state_dict())  # the same names
    torch._dynamo.reset()
    return plain, fast


def batch(rows, frames):
    return dict(audio_signal=torch.randn(rows, 16, frames), length=torch.tensor([frames, 70, frames // 2][:rows]))


def test_compiled_equals_plain_at_any_length_with_few_graphs(pair, contract):
    plain, fast = pair
    torch._dynamo.utils.counters.clear()
    made = []
    for rows, frames in ((2, 200), (2, 280), (3, 170), (2, 333), (3, 262)):
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
    assert made[0] > 0, 'nothing was compiled'
    # Several a layer: the reference memory and the blocks of attention stay outside.
    assert made[-1] == made[2] <= 30, f'graphs after each batch: {made}'


def test_a_compiled_model_copies_and_pickles(pair):
    _, fast = pair
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.config.compile
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        assert not torch.equal(next(other.parameters()), next(fast.parameters()))


@pytest.mark.skipif(not (ops.fast and ops.fast.INTERPRETED), reason='needs TRITON_INTERPRET=1')
@pytest.mark.parametrize('adaptation, retention, relevance', [(True, 1.0, None), (True, 0.7, 5), (False, 1.0, None)])
def test_compiled_layers_in_training_are_one_graph(tiny, monkeypatch, contract, adaptation, retention, relevance):
    """From the first batch on, for any number of rows and chunks.

    And one where the memory learns from less than a chunk, whose factors are kept in another shape.
    """
    monkeypatch.setattr('nemo_lact.modules.compiled.BACKEND', 'aot_eager')
    monkeypatch.setattr('nemo_lact.ops.triton_window._fits', lambda device: True)  # as on a GPU
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = dict(tiny, d_model=16, n_layers=1, n_heads=1, num_lact_heads=1, lact_chunk_size=16, dropout_att=0.1,
                   adaptation=adaptation, lact_retention=retention, lact_relevance=relevance, use_muon=False,
                   macaron=True, conv_kernel_size=5, conv_norm_type='batch_norm')  # fmt: skip
    plain, fast = LaCTEncoder(**options), LaCTEncoder(**options, compile=True)
    fast.load_state_dict(plain.state_dict())
    ops.use_implementation('fast')
    try:
        for rows, frames in ((2, 60), (2, 120), (3, 180), (2, 330), (2, 50)):  # 1, 2, 3, 6, 1 chunks
            x = dict(audio_signal=torch.randn(rows, 16, frames), length=torch.tensor([frames, 40, 9][:rows]))
            outs = []
            for encoder in (plain, fast):
                torch.manual_seed(0)
                with torch.autocast('cpu', dtype=torch.bfloat16):
                    outs.append(encoder(**x)[0].float())
            outs[1].square().mean().backward()
            error = (outs[0] - outs[1]).norm() / outs[0].norm()
            contract('compiled = plain, dropout in attention (bf16, CPU)', error, 2e-2)
    finally:
        ops.use_implementation('auto')
    counters = torch._dynamo.utils.counters
    assert not counters['graph_break'], counters['graph_break']
    assert counters['stats']['unique_graphs'] == (2 if adaptation else 1)


@pytest.mark.skipif(not (ops.fast and ops.fast.INTERPRETED), reason='needs TRITON_INTERPRET=1')
def test_compiled_layers_hold_the_fast_memory_as_one_operator(monkeypatch, contract):
    monkeypatch.setattr('nemo_lact.modules.compiled.BACKEND', 'aot_eager')
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = dict(feat_in=16, d_model=16, n_layers=1, n_heads=1, num_lact_heads=1, subsampling_factor=4,
                   subsampling_conv_channels=4, lact_chunk_size=64, dropout=0.0, dropout_pre_encoder=0.0)  # fmt: skip
    plain, fast = LaCTEncoder(**options), LaCTEncoder(**options, compile=True)
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(2, 16, 400)
    ops.use_implementation('fast')
    try:
        for encoder in (plain, fast):
            with torch.autocast('cpu', dtype=torch.bfloat16):
                out, _ = encoder(audio_signal=x, length=torch.tensor([400, 230]))
            out.float().square().mean().backward()
    finally:
        ops.use_implementation('auto')
    assert not torch._dynamo.utils.counters['graph_break'], torch._dynamo.utils.counters['graph_break']
    for p, q in zip(plain.parameters(), fast.parameters()):
        if p.grad is not None and p.grad.norm() > 1e-6:
            contract('compiled = plain, gradients (bf16, CPU)', (p.grad - q.grad).norm() / p.grad.norm(), 5e-2)
