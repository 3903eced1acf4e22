"""The memory fed in pieces equals the causal reference over the whole, whatever the pieces."""

import pytest
import torch
from test_fast_weights import make

from nemo_lact.ops import FastWeights, Pending, lact_swiglu_reference, lact_swiglu_step, settle, zeros_like


def fresh(x):
    batch, heads = x['mu'].shape[:2]
    return Pending(zeros_like(x['weights']), x['mu'].new_zeros(batch, heads)), torch.zeros(batch, dtype=torch.long)


@pytest.mark.parametrize('use_muon', [True, False])
@pytest.mark.parametrize('use_momentum', [True, False])
@pytest.mark.parametrize('seed, retention', [(0, 1.0), (1, 1.0), (2, 0.6)])
def test_any_partition_equals_the_reference(contract, use_muon, use_momentum, seed, retention):
    torch.manual_seed(seed)
    x = make(batch=3, frames=45)
    options = dict(use_muon=use_muon, use_momentum=use_momentum, retention=retention)
    options['anchor'] = FastWeights(*(w[0] for w in x['weights']))
    total = torch.tensor([45, 24, 7])
    x['valid'] = torch.arange(45) < total[:, None]
    whole, *last = lact_swiglu_reference(**x, mode='causal', **options)
    weights, momentum = x['weights'], x['momentum']
    pending, filled = fresh(x)
    done, outputs = torch.zeros(3, dtype=torch.long), torch.zeros_like(whole)
    while (done < total).any():
        step = torch.minimum(torch.randint(0, 21, (3,)), total - done)  # every row its own number of frames
        n = max(1, int(step.max()))
        index = (done[:, None] + torch.arange(n)).clamp(max=44)  # [B, n]

        def frames(t, index=index):
            where = index[:, None].expand(-1, t.size(1), -1)
            return t.gather(2, where.reshape(*where.shape, *[1] * (t.dim() - 3)).expand(-1, -1, -1, *t.shape[3:]))

        valid = torch.arange(n) < step[:, None]
        out, weights, momentum, pending = lact_swiglu_step(
            *(frames(x[name]) for name in ('q', 'k', 'v', 'eta', 'mu')), valid, weights, momentum, x['lengths'],
            pending, filled, x['chunk_size'], **options,
        )  # fmt: skip
        filled = (filled + step) % x['chunk_size']
        for row in range(3):
            outputs[row, :, done[row] : done[row] + step[row]] = out[row, :, : step[row]]
        done = done + step
    weights, momentum, pending = settle(weights, momentum, x['lengths'], pending, filled, x['chunk_size'], **options)
    keep = x['valid'][:, None, :, None]
    contract('memory in any partition = reference (fp64)', ((outputs - whole) * keep).abs().max(), 1e-9)
    for a, b in zip([*weights, *(momentum if use_momentum else ())], [*last[0], *(last[1] if use_momentum else ())]):
        contract('memory in any partition = reference (fp64)', (a - b).abs().max(), 1e-9)
    assert not any(g.any() for g in pending.gradient) and not pending.mu.any()


def test_a_stream_that_ends_within_a_chunk_learns_with_relevance_as_the_reference(contract):
    x = make(batch=2, frames=13)
    x['valid'][1] = torch.arange(13) < 5
    options = dict(use_muon=False, use_momentum=False, retention=0.5, anchor=FastWeights(*(w[0] for w in x['weights'])))
    whole, expected, _ = lact_swiglu_reference(**x, mode='causal', relevance=3.0, **options)
    args = [x[n] for n in ('q', 'k', 'v', 'eta', 'mu', 'valid', 'weights', 'momentum')]
    pending, filled = fresh(x)
    size = x['chunk_size']
    out, weights, momentum, pending = lact_swiglu_step(*args, x['lengths'], pending, filled, size, **options)
    filled = x['valid'].sum(1) % size
    after, *_ = settle(weights, momentum, x['lengths'], pending, filled, size, relevance=3.0, **options)
    plain, *_ = settle(weights, momentum, x['lengths'], pending, filled, size, **options)
    assert torch.equal(out[0], whole[0])
    for a, b, c in zip(after, expected, plain):
        contract('memory in any partition = reference (fp64)', (a - b).abs().max(), 1e-9)
        assert not torch.allclose(a, c)


def test_rows_do_not_touch_each_other(contract):
    x = make(batch=2, frames=20)
    pending, filled = fresh(x)
    args = [x[n] for n in ('q', 'k', 'v', 'eta', 'mu', 'valid', 'weights', 'momentum')]
    both, weights, *_ = lact_swiglu_step(*args, x['lengths'], pending, filled, 8)
    args[2] = args[2].clone()
    args[2][1] = 100.0
    other, weights2, *_ = lact_swiglu_step(*args, x['lengths'], pending, filled, 8)
    contract('streams: another row changes nothing (exact)', (both[0] - other[0]).abs().max(), 0.0)
    contract('streams: another row changes nothing (exact)', (weights.w0[0] - weights2.w0[0]).abs().max(), 0.0)
    assert not torch.equal(both[1], other[1])


def test_a_step_of_nothing_changes_nothing():
    x = make(batch=2, frames=12)
    x['valid'][:] = False
    pending, filled = fresh(x)
    args = [x[n] for n in ('q', 'k', 'v', 'eta', 'mu', 'valid', 'weights', 'momentum')]
    _, weights, momentum, after = lact_swiglu_step(*args, x['lengths'], pending, filled, 8)
    for a, b in zip([*weights, *momentum, *after.gradient], [*x['weights'], *x['momentum'], *pending.gradient]):
        assert torch.equal(a, b)
    assert isinstance(weights, FastWeights)
