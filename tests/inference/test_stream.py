"""Live streams and sessions."""

import numpy as np
import pytest
import soundfile
import torch
from small_models import RATE, sound

import nemo_lact
from nemo_lact.inference.stream import Streamer


@pytest.mark.parametrize('sizes', [(1600,), (7, 4001, 333), (10**6,)])
def test_stream_gives_the_offline_text(streaming, recording, sizes):
    audio = sound(9.0, 7)
    path = recording(9.0, 7)
    for window in ([12, 3], [12, 1]):
        streaming.encoder.set_default_att_context_size(window)
        expected = streaming.transcribe([path], verbose=False)[0].text
        stream = Streamer(streaming, latency=window)
        words, at, turn = [], 0, 0
        while at < len(audio):
            words += stream.feed(audio[at : at + sizes[turn % len(sizes)]])
            at, turn = at + sizes[turn % len(sizes)], turn + 1
        words += stream.finish()
        assert stream.text == expected and len(expected) > 15
        assert ' '.join(w.word for w in words) == ' '.join(expected.split())
        assert stream.finish() == []
        with pytest.raises(ValueError, match='has ended'):
            stream.feed(audio[:10])


def test_streams_of_one_model_keep_their_own_latency(streaming):
    audio, alone = sound(6.0, 7), []
    for window in ([12, 3], [12, 1]):
        stream = Streamer(streaming, latency=window)
        stream.feed(audio)
        stream.finish()
        alone.append(stream.text)
    together = [Streamer(streaming, latency=window) for window in ([12, 3], [12, 1])]
    for at in range(0, len(audio), 8000):
        for stream in together:
            stream.feed(audio[at : at + 8000])
    for stream in together:
        stream.finish()
    assert [stream.text for stream in together] == alone and alone[0] != alone[1]


def test_words_come_early_and_are_never_taken_back(streaming):
    audio, stream, seen = sound(9.0, 7), Streamer(streaming), []
    for at in range(0, len(audio), 1600):
        seen += [(w.word, at) for w in stream.feed(audio[at : at + 1600])]
        assert stream.text.split()[: len(seen)] == [w for w, _ in seen]
    assert seen and seen[0][1] < len(audio) / 2
    assert stream.latency_seconds == pytest.approx(4 * 0.04 + 256 / RATE)


def test_memory_goes_on_into_the_next_stream(streaming, tmp_path):
    first = Streamer(streaming)
    first.feed(sound(6.0, 1))
    first.finish()
    first.memory.save(tmp_path / 'a.safetensors')
    loaded = nemo_lact.LaCTState.load(tmp_path / 'a.safetensors', streaming.encoder.fingerprint())
    texts = []
    for state in (first.memory, loaded, None):
        stream = Streamer(streaming, state=state)
        stream.feed(sound(6.0, 2))
        stream.finish()
        texts.append((stream.text, stream.memory.weights[0].clone()))
    assert texts[0][0] == texts[1][0] and torch.equal(texts[0][1], texts[1][1])
    assert not torch.equal(texts[0][1], texts[2][1])
    still = Streamer(streaming, state=loaded, learn=False)
    still.feed(sound(6.0, 2))
    still.finish()
    assert all(torch.equal(a, b) for a, b in zip(still.memory.weights, loaded.weights))


def test_bad_samples_are_silence_and_counted(streaming, caplog):
    audio = sound(5.0, 3)
    silent, broken = audio.copy(), audio.copy()
    silent[20000:24000] = 0
    broken[20000:22000], broken[22000:24000] = np.nan, np.inf
    texts = []
    for samples in (silent, broken):
        stream = Streamer(streaming)
        stream.feed(samples)
        stream.finish()
        texts.append(stream.text)
    assert texts[0] == texts[1] and stream.bad_samples == 4000
    assert '4000 samples of a stream were not finite' in caplog.text
    assert all(t.isfinite().all() for t in stream.memory.weights)


@pytest.mark.parametrize('kind', ['silence', 'clipped', 'noise'])
def test_long_strange_input_leaves_a_finite_memory_that_recovers(streaming, kind):
    """An hour of silence, ten minutes of the others; the fast weights' rows keep their length whatever comes."""
    stream = Streamer(streaming)
    rng = np.random.default_rng(0)
    for _ in range(60 if kind == 'silence' else 10):
        samples = np.zeros(60 * RATE, dtype=np.float32)
        if kind == 'clipped':
            samples = np.sign(np.sin(np.arange(60 * RATE) * 0.05)).astype(np.float32)
        if kind == 'noise':
            samples = rng.uniform(-1, 1, 60 * RATE).astype(np.float32)
        stream.feed(samples)
    stream.feed(sound(3.0, 1))
    stream.finish()
    memory = streaming.encoder.layers[0].mixer.memory
    for moved, initial in zip(stream.memory.weights, memory.initial_weights()):
        assert moved.isfinite().all()
        now, then = (moved[0, 0] + initial).norm(dim=-1), initial.norm(dim=-1)
        assert ((now - then).abs() / then).max() < 1e-3
    # And what comes next is heard as by a memory that has heard nothing strange: text comes.
    again = Streamer(streaming, state=stream.memory)
    again.feed(sound(6.0, 2))
    again.finish()
    assert len(again.text) > 10


def test_sample_rate_may_change(streaming):
    audio = sound(4.0, 9)
    import soxr

    plain = Streamer(streaming)
    plain.feed(audio)
    plain.finish()
    mixed = Streamer(streaming)
    mixed.feed(audio[: 2 * RATE])
    mixed.feed(soxr.resample(audio[2 * RATE :], RATE, 48000), sample_rate=48000)
    mixed.finish()
    assert abs(mixed.heard - plain.heard) <= 8 and mixed.text[:10] == plain.text[:10]
    with pytest.raises(ValueError, match='sample_rate=5'):
        Streamer(streaming).feed(audio, sample_rate=5)
    with pytest.raises(ValueError, match=r'shape \(10, 2\)'):
        Streamer(streaming).feed(np.zeros((10, 2)))


def test_integers_are_heard_as_the_floats_they_stand_for(streaming):
    audio = (sound(3.0, 2) * 20000).astype(np.int16)
    texts = []
    for samples in (audio, (audio / 32768).astype(np.float32)):
        stream = Streamer(streaming)
        stream.feed(samples)
        stream.finish()
        texts.append(stream.text)
    assert texts[0] == texts[1] and texts[0]


def test_models_that_cannot_stream_say_why(offline, streaming):
    with pytest.raises(ValueError, match='cannot stream: lact_mode=bidirectional'):
        Streamer(offline)
    streaming.preprocessor.featurizer.normalize = 'per_feature'
    with pytest.raises(ValueError, match='normalize=NA'):
        Streamer(streaming)


def texts_of(model, paths):
    return [h.text for h in model.transcribe(paths, batch_size=1, verbose=False)]


def test_session_remembers_over_calls(offline, recording, tmp_path):
    paths = [recording(6.0, i) for i in (1, 2, 3)]
    plain = texts_of(offline, paths)
    with nemo_lact.session(offline) as session:
        first = texts_of(offline, paths[:2])
        session.save(tmp_path / 'anna.safetensors')
        third = texts_of(offline, paths[2:])
    assert texts_of(offline, paths) == plain  # and afterwards the model is as it was
    with nemo_lact.session(offline) as session:
        assert texts_of(offline, paths) == first + third
        assert int(session.state.position[0]) > 400
    with nemo_lact.session(offline, state=tmp_path / 'anna.safetensors'):
        assert texts_of(offline, paths[2:]) == third
    assert first[0] == plain[0] and (first[1], third[0]) != (plain[1], plain[2])


def test_session_switches(offline, recording):
    paths = [recording(6.0, 1)]
    with nemo_lact.session(offline, learn=False) as session:
        texts_of(offline, paths)
        assert not any(t.any() for t in session.state.weights)
        session.learn = True
        texts_of(offline, paths)
        learned = session.state.weights[0].clone()
        assert learned.any()
        session.decay(0.5)
        assert torch.allclose(session.state.weights[0], learned / 2)
        session.reset()
        assert not any(t.any() for t in session.state.weights)
        with pytest.raises(RuntimeError, match='in a session already'):
            nemo_lact.session(offline).__enter__()


def test_session_refuses_what_it_cannot_share(offline, streaming, recording, tmp_path):
    paths = [recording(2.0, i) for i in (1, 2)]
    with nemo_lact.session(offline), pytest.raises(ValueError, match='batch_size=1'):
        offline.transcribe(paths, batch_size=2, verbose=False)
    with nemo_lact.session(offline) as session:
        session.save(tmp_path / 's.safetensors')
    with pytest.raises(ValueError, match='saved by another model'):
        nemo_lact.session(streaming, state=tmp_path / 's.safetensors')
    with pytest.raises(ValueError, match='2 streams, a session is one'):
        nemo_lact.session(offline, state=offline.encoder.init_state(2))


def test_broken_audio_does_not_stay_in_a_session(offline, recording, tmp_path):
    broken = sound(3.0)
    broken[5000] = np.nan
    soundfile.write(tmp_path / 'nan.wav', broken, RATE, subtype='FLOAT')
    with nemo_lact.session(offline) as session:
        texts_of(offline, [recording(3.0, 1)])
        before = session.state.weights[0].clone()
        texts_of(offline, [str(tmp_path / 'nan.wav')])
        assert torch.equal(session.state.weights[0], before)
