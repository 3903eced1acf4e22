"""The memory's equations against autograd, and the state it leaves."""

import pytest
import torch

from nemo_lact import ops
from nemo_lact.ops import FastWeights, lact_swiglu_frozen, lact_swiglu_reference, row_length, zeros_like
from nemo_lact.ops.fast_weights import chunk_gradient, read


def make(batch=2, heads=3, frames=20, width=8, hidden=12, channels=1, dtype=torch.float64):
    def randn(*shape):
        return torch.randn(*shape, dtype=dtype)

    unit = torch.nn.functional.normalize
    initial = FastWeights(
        randn(heads, hidden, width) / width**0.5,
        randn(heads, width, hidden) / hidden**0.5,
        randn(heads, hidden, width) / width**0.5,
    )
    weights = FastWeights(*(w.expand(batch, -1, -1, -1) for w in initial))
    return dict(
        q=unit(randn(batch, heads, frames, width), dim=-1),
        k=unit(randn(batch, heads, frames, width), dim=-1),
        v=randn(batch, heads, frames, width),
        eta=0.1 * torch.rand(batch, heads, frames, 3, channels, dtype=dtype),
        mu=torch.rand(batch, heads, frames, dtype=dtype),
        valid=torch.ones(batch, frames, dtype=torch.bool),
        weights=weights,
        momentum=zeros_like(weights),
        lengths=FastWeights(*(row_length(w) for w in initial)),
        chunk_size=8,
    )


def autograd_step(weights, k, v, eta):
    """The same step from −Σ_t ⟨f_W(k_t), v_t⟩ by autograd, frame by frame so that each has its own step sizes."""
    total = [torch.zeros_like(w) for w in weights]
    for t in range(k.size(2)):
        leaves = FastWeights(*(w.detach().clone().requires_grad_(True) for w in weights))
        loss = -(read(leaves, k[:, :, t : t + 1]) * v[:, :, t : t + 1]).sum()
        for i, grad in enumerate(torch.autograd.grad(loss, leaves)):
            total[i] = total[i] - eta[:, :, t, i, :, None] * grad
    return FastWeights(*total)


@pytest.mark.parametrize('hidden', [8, 12])
@pytest.mark.parametrize('frames', [1, 7])
def test_closed_form_equals_autograd(contract, hidden, frames):
    x = make(frames=frames, hidden=hidden)
    ours = chunk_gradient(x['weights'], x['k'], x['v'], x['eta'])
    theirs = autograd_step(x['weights'], x['k'], x['v'], x['eta'])
    for mine, truth in zip(ours, theirs):
        contract('closed-form update = autograd (relative, fp64)', (mine - truth).norm() / truth.norm(), 1e-5)


def test_one_step_without_muon_is_the_gradient_step():
    x = make(frames=8)
    x['mu'] = torch.zeros_like(x['mu'])
    _, after, _ = lact_swiglu_reference(**x, use_muon=False, use_momentum=True)
    step = autograd_step(x['weights'], x['k'], x['v'], x['eta'])
    for new, old, move, length in zip(after, x['weights'], step, x['lengths']):
        expected = old + move
        expected = expected / expected.norm(dim=-1, keepdim=True) * length
        torch.testing.assert_close(new, expected, rtol=1e-9, atol=1e-9)


def test_modes_order_update_and_read():
    x = make(frames=16)
    causal, _, _ = lact_swiglu_reference(**x, mode='causal')
    first = read(x['weights'], x['q'][:, :, :8])
    torch.testing.assert_close(causal[:, :, :8], first)  # nothing learned before the first chunk
    both, after, _ = lact_swiglu_reference(**{**x, **{n: x[n][:, :, :8] for n in 'qkv'}, 'eta': x['eta'][:, :, :8],
                                              'mu': x['mu'][:, :, :8], 'valid': x['valid'][:, :8]})  # fmt: skip
    torch.testing.assert_close(both, read(after, x['q'][:, :, :8]))
    torch.testing.assert_close(causal[:, :, 8:], read(after, x['q'][:, :, 8:]))


def test_momentum_carries_the_last_step():
    x = make(frames=16)
    _, _, momentum = lact_swiglu_reference(**x, use_muon=False)
    head = {**x, **{n: x[n][:, :, :8] for n in ('q', 'k', 'v', 'eta', 'mu')}, 'valid': x['valid'][:, :8]}
    _, between, first = lact_swiglu_reference(**head, use_muon=False)
    second = autograd_step(between, x['k'][:, :, 8:], x['v'][:, :, 8:], x['eta'][:, :, 8:])
    mu = x['mu'][:, :, 8:].mean(dim=-1)[:, :, None, None]
    for got, a, b in zip(momentum, first, second):
        torch.testing.assert_close(got, b + mu * a)


@pytest.mark.parametrize('use_muon', [False, True])
@pytest.mark.parametrize('mode', ['bidirectional', 'causal'])
def test_padding_leaves_no_trace(contract, mode, use_muon):
    x = make(frames=30)
    x['valid'][0, 13:] = False
    out, weights, momentum = lact_swiglu_reference(**x, mode=mode, use_muon=use_muon)
    garbage = {**x, 'k': x['k'].clone(), 'v': x['v'].clone(), 'mu': x['mu'].clone()}
    for name in ('k', 'v', 'mu'):
        garbage[name][0, :, 13:] = 7.0
    out2, weights2, momentum2 = lact_swiglu_reference(**garbage, mode=mode, use_muon=use_muon)
    torch.testing.assert_close(out[0, :, :13], out2[0, :, :13])
    short = {n: x[n][:1, :, :13] for n in ('q', 'k', 'v', 'eta', 'mu')}
    short.update(valid=x['valid'][:1, :13], weights=FastWeights(*(w[:1] for w in x['weights'])))
    short.update(momentum=zeros_like(short['weights']), lengths=x['lengths'], chunk_size=8)
    out3, weights3, momentum3 = lact_swiglu_reference(**short, mode=mode, use_muon=use_muon)
    worst = (out[:1, :, :13] - out3).abs().max()
    for a, b, c in zip((*weights, *momentum), (*weights2, *momentum2), (*weights3, *momentum3)):
        torch.testing.assert_close(a[0], b[0])
        worst = max(worst, (a[0] - c[0]).abs().max())
    contract('padded = unpadded, memory op (fp64)', worst, 1e-9)


def test_row_of_padding_keeps_its_state_to_the_bit():
    x = make(frames=16, dtype=torch.float32)
    x['valid'][1] = False
    x['momentum'] = FastWeights(*(torch.randn_like(w) for w in x['momentum']))
    _, weights, momentum = lact_swiglu_reference(**x)
    for new, old in zip((*weights, *momentum), (*x['weights'], *x['momentum'])):
        assert torch.equal(new[1], old[1])
        assert not torch.equal(new[0], old[0])


@pytest.mark.parametrize('use_muon', [False, True])
def test_zero_steps_are_frozen_to_the_bit(contract, use_muon):
    x = make(frames=30, dtype=torch.float32)
    x['eta'] = torch.zeros_like(x['eta'])
    out, weights, _ = lact_swiglu_reference(**x, use_muon=use_muon)
    for new, old in zip(weights, x['weights']):
        assert torch.equal(new, old)
    difference = (out - lact_swiglu_frozen(x['q'], x['weights'], x['chunk_size'])).abs().max()
    contract('step sizes 0 = frozen memory, op (exact)', difference, 0.0)


def test_rows_keep_their_initial_length():
    x = make(frames=40)
    _, weights, _ = lact_swiglu_reference(**x)
    for new, length in zip(weights, x['lengths']):
        torch.testing.assert_close(new.norm(dim=-1, keepdim=True), length.expand(2, -1, -1, -1))


def test_short_chunk_moves_less_with_muon():
    x = make(frames=8)
    full = lact_swiglu_reference(**x)[1]
    x['valid'][:, 1:] = False
    one = lact_swiglu_reference(**x)[1]
    moved = [(w.w0 - x['weights'].w0).norm() for w in (full, one)]
    assert moved[1] < 0.5 * moved[0]


def test_step_sizes_per_channel():
    x = make(frames=20)
    wide = {**x, 'eta': x['eta'].expand(-1, -1, -1, -1, 8)}
    torch.testing.assert_close(lact_swiglu_reference(**x)[0], lact_swiglu_reference(**wide)[0])
    other = wide['eta'].clone()
    other[..., 1, 0] = 0.0  # channel 0 of the values teaches nothing: row 0 of W1 stays
    _, weights, _ = lact_swiglu_reference(**{**wide, 'eta': other}, use_muon=False)
    torch.testing.assert_close(weights.w1[:, :, 0], x['weights'].w1[:, :, 0])


def test_runs_under_inference_mode_and_backward_is_finite():
    x = make(frames=20, dtype=torch.float32)
    with torch.inference_mode():
        assert lact_swiglu_reference(**x)[0].isfinite().all()
    x['eta'].requires_grad_(True)
    x['k'].requires_grad_(True)
    lact_swiglu_reference(**x)[0].square().sum().backward()
    assert x['eta'].grad.isfinite().all() and x['eta'].grad.abs().sum() > 0
    assert x['k'].grad.isfinite().all()


def test_gradient_through_the_update_equals_finite_differences():
    x = make(batch=1, heads=1, frames=6, width=3, hidden=4)
    x['chunk_size'] = 3
    k = x.pop('k').requires_grad_(True)
    assert torch.autograd.gradcheck(lambda k: lact_swiglu_reference(k=k, **x, use_muon=True)[0], (k,), atol=1e-4)


def test_unknown_mode():
    with pytest.raises(ValueError, match="'sideways'.*'bidirectional' or 'causal'"):
        lact_swiglu_reference(**make(), mode='sideways')


def test_forgetting_starts_from_weights_nearer_to_the_anchor():
    """Half a chunk and step sizes of 0: the root of what a full chunk retains is left of the distance."""
    x = make(frames=12)
    x['eta'] = torch.zeros_like(x['eta'])
    anchor = FastWeights(*(w.clone() for w in x['weights']))
    x['weights'] = FastWeights(*(w + 0.3 * torch.randn_like(w) for w in anchor))
    x['valid'][1] = False
    _, after, _ = lact_swiglu_reference(**x, anchor=anchor, retention=0.5, use_muon=False, use_momentum=False)
    for a, w, length, new in zip(anchor, x['weights'], x['lengths'], after):
        for left in (0.5, 0.5**0.5):  # a chunk of 8 frames, one of 4
            w = a + left * (w - a)
            w = w * (length / row_length(w))
        assert torch.allclose(new[0], w[0], rtol=0, atol=1e-12)
    assert all(torch.equal(new[1], w[1]) for new, w in zip(after, x['weights'])), 'a row without frames'


def test_where_all_is_forgotten_a_chunk_is_learned_as_the_first_one():
    """Its gradient too is that of the anchor, not of the weights before: those would come back through it."""
    x = make(frames=24)  # chunks of 8
    given = dict(anchor=FastWeights(*(w[0] for w in x['weights'])), retention=1e-9, use_muon=False, use_momentum=False)
    x['weights'] = FastWeights(*(w[None].expand(2, *w.shape).contiguous() for w in given['anchor']))
    x['valid'][:] = True
    whole = lact_swiglu_reference(**x, **given)[0]
    frames = {name: x[name][:, :, 16:] for name in ('q', 'k', 'v', 'eta', 'mu')} | dict(valid=x['valid'][:, 16:])
    last = lact_swiglu_reference(**x | frames, **given)[0]
    assert torch.allclose(whole[:, :, 16:], last, rtol=0, atol=1e-7)
    assert not torch.allclose(whole[:, :, 16:], lact_swiglu_reference(**x, **given | dict(retention=0.5))[0][:, :, 16:])


def test_with_relevance_a_short_chunk_takes_more_of_a_step_than_its_frames():
    """3 of 8 frames: with r = 5 before, 3/8 of what endless frames make, where a full chunk makes 8/13."""
    x = make(frames=3)
    x['eta'] = 1e-6 * x['eta']  # so small that rows keep their length but for rounding
    options = dict(use_muon=False, use_momentum=False)

    def moved(**more):
        after = lact_swiglu_reference(**x, **options, **more)[1]
        return torch.cat([(a - w)[0].flatten() for a, w in zip(after, x['weights'])])

    as_sum = moved()
    for relevance, times in ((5.0, (3 / 8) / (8 / 13) / (3 / 8)), (0.0, 8 / 3), (1e12, 1.0)):
        ours = moved(relevance=relevance)
        assert torch.allclose(ours, times * as_sum, rtol=1e-4, atol=0.0 if times == 1.0 else 1e-3 * as_sum.abs().max())


def test_with_relevance_full_chunks_and_rows_without_frames_are_as_before():
    x = make(frames=16)
    x['valid'][0], x['valid'][1] = True, False
    given = dict(anchor=FastWeights(*(w[0] for w in x['weights'])), retention=0.5, use_muon=False, use_momentum=False)
    out, after, _ = lact_swiglu_reference(**x, **given)
    for relevance in (0.0, 5.0):
        ours, moved, _ = lact_swiglu_reference(**x, **given, relevance=relevance)
        assert torch.allclose(ours, out, rtol=0, atol=1e-12)
        assert all(torch.equal(m[1], w[1]) for m, w in zip(moved, x['weights']))


def test_with_relevance_a_short_chunk_forgets_by_its_evidence():
    x = make(frames=4)
    x['eta'], x['valid'][:] = torch.zeros_like(x['eta']), True
    anchor = FastWeights(*(w.clone() for w in x['weights']))
    x['weights'] = FastWeights(*(w + 0.3 * torch.randn_like(w) for w in anchor))
    given = dict(anchor=anchor, retention=0.5, relevance=2.0, use_muon=False, use_momentum=False)
    _, after, _ = lact_swiglu_reference(**x, **given)
    for a, w, length, new in zip(anchor, x['weights'], x['lengths'], after):
        w = a + 0.5 ** ((4 / 6) / (8 / 10)) * (w - a)
        assert torch.allclose(new, w * (length / row_length(w)), rtol=0, atol=1e-12)


def test_forgetting_leaves_weights_that_have_not_moved():
    x = make(frames=20)
    x['eta'] = torch.zeros_like(x['eta'])
    out, after, _ = lact_swiglu_reference(**x, anchor=x['weights'], retention=0.5)
    assert torch.equal(out, lact_swiglu_frozen(x['q'], x['weights'], x['chunk_size']))
    assert all(torch.equal(a, b) for a, b in zip(after, x['weights']))


def test_the_memory_forgets_when_asked_to():
    x = make(frames=20)
    given = dict(anchor=FastWeights(*(w[0] for w in x['weights'])), retention=0.5)
    out = ops.lact_swiglu(**x, **given)[0]
    assert torch.equal(out, lact_swiglu_reference(**x, **given)[0])
    assert not torch.equal(out, lact_swiglu_reference(**x)[0])


def test_gradients_reach_the_anchor():
    x = make(frames=20)
    x['weights'] = FastWeights(*(w + 0.1 * torch.randn_like(w) for w in x['weights']))
    anchor = tuple(w[0].clone().requires_grad_() for w in x['weights'])

    def read(*anchor):
        return lact_swiglu_reference(**x, anchor=FastWeights(*anchor), retention=0.5)[0]

    assert torch.autograd.gradcheck(read, anchor, fast_mode=True)
