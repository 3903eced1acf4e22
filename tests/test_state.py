"""`LaCTState` on disk, by rows, between devices; and what a state means to the encoder."""

import pytest
import torch

from nemo_lact.modules import LaCTEncoder
from nemo_lact.state import LaCTState


@pytest.fixture
def encoder(tiny):
    return LaCTEncoder(**tiny).eval()


@pytest.fixture
def heard(encoder):
    """State of three streams after some speech-like noise."""
    with torch.inference_mode():
        return encoder.forward_with_state(torch.randn(3, 16, 400), torch.tensor([400, 300, 200]))[2]


def tensors(state):
    return [*state.weights, *state.momentum, state.position]


def same(a, b):
    assert len(tensors(a)) == len(tensors(b))
    for x, y in zip(tensors(a), tensors(b)):
        assert x.dtype == y.dtype and torch.equal(x, y)


def test_fresh_state_is_zero_and_changes_nothing(encoder):
    x = torch.randn(2, 16, 200)
    state = encoder.init_state(2)
    assert all(not t.any() for t in tensors(state))
    with torch.inference_mode():
        plain = encoder.forward_with_state(x)[0]
        assert torch.equal(encoder.forward_with_state(x, state=state)[0], plain)


def test_state_changes_what_is_heard(encoder, heard):
    x = torch.randn(3, 16, 200)
    with torch.inference_mode():
        fresh, _, _ = encoder.forward_with_state(x)
        carried, _, after = encoder.forward_with_state(x, state=heard)
    assert (fresh - carried).abs().max() > 1e-3
    assert torch.equal(after.position, heard.position + 50)


def test_size_is_known_before_running(encoder, heard):
    assert encoder.state_bytes(3) == heard.nbytes == encoder.init_state(3).nbytes


def test_save_and_load_exact(encoder, heard, tmp_path):
    heard.save(tmp_path / 'a.safetensors')
    loaded = LaCTState.load(tmp_path / 'a.safetensors', fingerprint=encoder.fingerprint())
    same(loaded, heard)
    x = torch.randn(3, 16, 100)
    with torch.inference_mode():
        a, b = (encoder.forward_with_state(x, state=s)[0] for s in (heard, loaded))
    assert torch.equal(a, b)


def test_load_names_what_is_wrong(encoder, heard, tiny, tmp_path):
    path = tmp_path / 'a.safetensors'
    heard.save(path)
    other = LaCTEncoder(**tiny)
    with pytest.raises(ValueError, match='saved by another model'):
        LaCTState.load(path, fingerprint=other.fingerprint())
    with pytest.raises(FileNotFoundError, match='missing.safetensors'):
        LaCTState.load(tmp_path / 'missing.safetensors')
    path.write_bytes(b'not a state')
    with pytest.raises(ValueError, match='no safetensors file'):
        LaCTState.load(path)


def test_select_reset_merge_exact(heard):
    picked = heard.select([2, 0])
    for whole, part in zip((*heard.weights, *heard.momentum), (*picked.weights, *picked.momentum)):
        assert torch.equal(part[:, 0], whole[:, 2]) and torch.equal(part[:, 1], whole[:, 0])
    same(LaCTState.merge([heard.select([0]), heard.select([1, 2])]), heard)
    reset = heard.reset([1])
    assert all(not t[:, 1].any() for t in (*reset.weights, *reset.momentum)) and reset.position[1] == 0
    same(reset.select([0, 2]), heard.select([0, 2]))
    assert heard.position[1] > 0  # the original is untouched


def test_rows_out_of_range(heard):
    with pytest.raises(IndexError, match='outside 0..2'):
        heard.select([3])


def test_merge_of_two_models_is_refused(heard, tiny):
    with pytest.raises(ValueError, match='2 models'):
        LaCTState.merge([heard, LaCTEncoder(**tiny).init_state(1)])


def test_moves_between_devices_exact(heard):
    devices = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
    for device in devices:
        same(heard.to(device).to('cpu'), heard)
    assert heard.to(dtype=torch.bfloat16).weights[0].dtype == torch.bfloat16
    assert heard.to(dtype=torch.bfloat16).position.dtype == torch.int64


def test_a_stream_reset_in_a_batch_equals_a_fresh_one(encoder, heard, contract):
    x = torch.randn(3, 16, 200)
    with torch.inference_mode():
        mixed = encoder.forward_with_state(x, state=heard.reset([1]))[0]
        fresh = encoder.forward_with_state(x)[0]
        kept = encoder.forward_with_state(x, state=heard)[0]
    contract('row reset in a batch = fresh stream (exact)', (mixed[1] - fresh[1]).abs().max(), 0.0)
    contract('row reset in a batch: neighbours (exact)', (mixed[[0, 2]] - kept[[0, 2]]).abs().max(), 0.0)


def test_wrong_state_is_refused(encoder, heard, tiny):
    with pytest.raises(ValueError, match='3 streams, the input 2'):
        encoder.forward_with_state(torch.randn(2, 16, 100), state=heard)
    other = LaCTEncoder(**{**tiny, 'n_layers': 3})
    with pytest.raises(ValueError, match='2 layers'):
        other.forward_with_state(torch.randn(3, 16, 100), state=heard)


def test_decay_by_row(heard):
    less = heard.decay(0.25, [1])
    for a, b in zip([*less.weights, *less.momentum], [*heard.weights, *heard.momentum]):
        assert torch.equal(a[:, 1], b[:, 1] * 0.25) and torch.equal(a[:, [0, 2]], b[:, [0, 2]])
    same(heard.decay(1.0), heard)
    assert not any(t.any() for t in heard.decay(0.0).weights)
    with pytest.raises(ValueError, match='decay factor 1.5'):
        heard.decay(1.5)


def test_detach_cuts_the_graph(encoder):
    state = encoder.train().forward_with_state(torch.randn(2, 16, 200))[2]
    assert state.weights[0].requires_grad and not any(t.requires_grad for t in state.detach().weights)
    same(state.detach(), state)


def test_memory_is_taken_into_fresh_streams_of_the_same_model_only(encoder, heard, tiny):
    taken = encoder.init_state(3, memory=heard)
    same(taken, heard)
    other = LaCTEncoder(**tiny)
    with pytest.raises(ValueError, match='fingerprint'):
        other.init_state(3, memory=heard)
    with pytest.raises(ValueError, match='3 streams'):
        encoder.init_state(2, memory=heard)


def test_states_of_other_shape_do_not_merge(encoder, heard):
    from dataclasses import replace

    bare = replace(heard, momentum=())
    with pytest.raises(ValueError, match='momentum differ in shape'):
        LaCTState.merge([heard, bare])


def test_fingerprint_follows_the_weights(encoder):
    before = encoder.fingerprint()
    assert encoder.fingerprint() == before
    with torch.no_grad():
        next(encoder.layers[0].mixer.memory.w1.parameters()).add_(0.1)
    assert encoder.fingerprint() != before
