"""The synthetic corpus: rooms and noise without espeak-ng, and the whole command where espeakng-loader is installed."""

import sys

import numpy as np
import pytest
import soundfile
from mini import RATE, noise, read_rows, run

from nemo_lact.data.conditions import BANDS, Conditions, apply, coloured_noise, draw, impulse_response

TEXTS = ['Press one, please.', "It's late", 'call 911 now', '…', 'good bye', 'the line is busy', 'hello world']


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / 'texts.txt'
    path.write_text('\n'.join(TEXTS), encoding='utf-8')
    return path


def test_clean_conditions_change_nothing():
    speech = noise(1.0).astype(np.float32)
    assert np.array_equal(apply(speech, RATE, Conditions()), speech)


def test_a_room_decays_by_60_db():
    echo = impulse_response(Conditions(t60=0.5, direct=5.0), RATE)
    assert len(echo) == RATE // 2 and echo[0] == 1.0
    assert 10 * np.log10(1 / np.sum(echo[1:] ** 2)) == pytest.approx(5.0)
    early, late = (np.mean(part**2) for part in (echo[1:800], echo[-800:]))
    assert -60 < 10 * np.log10(late / early) < -48


def test_noise_has_the_asked_level_and_colour():
    speech = noise(4.0)
    noisy = apply(speech, RATE, Conditions(noise='pink', snr=20.0))
    added = noisy - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(20, abs=0.1)
    for colour, drop in (('white', 0), ('pink', 3), ('brown', 6)):  # dB per octave
        power = np.abs(np.fft.rfft(coloured_noise(RATE * 4, colour, np.random.default_rng(0)))) ** 2
        octaves = [10 * np.log10(power[f * 4 : f * 8].mean()) for f in (250, 500, 1000, 2000)]
        assert np.mean(-np.diff(octaves)) == pytest.approx(drop, abs=0.5)


def test_a_channel_limits_the_band_and_gain_the_level():
    speech = noise(2.0)
    power = np.abs(np.fft.rfft(apply(speech, RATE, Conditions(channel='telephone')))) ** 2
    assert power[2 * 5000 :].mean() < 0.001 * power[2 * 1000 : 2 * 2000].mean()
    quiet = apply(speech, RATE, Conditions(gain=-20.0))
    assert np.allclose(quiet, speech / 10, atol=1e-6)


def test_drawn_conditions_are_valid_and_repeatable():
    drawn = [draw(seed) for seed in range(60)]
    assert drawn == [draw(seed) for seed in range(60)] and len(set(drawn)) == 60
    assert {how.channel for how in drawn} == set(BANDS)
    for how in drawn[:20]:
        out = apply(noise(0.3), RATE, how)
        assert out.dtype == np.float32 and np.isfinite(out).all() and np.abs(out).max() <= 1 and len(out) == 0.3 * RATE
    assert len(apply(np.zeros(0), RATE, drawn[0])) == 0
    assert not apply(np.zeros(100), RATE, drawn[0]).any()


def test_without_espeak_it_says_what_to_install(texts, tmp_path, monkeypatch):
    from nemo_lact.data import espeak

    espeak.espeak.cache_clear()
    monkeypatch.setitem(sys.modules, 'espeakng_loader', None)
    result = run('data', 'synthetic', texts, '-o', tmp_path / 'out', code=1)
    assert 'pip install "nemo-lact[synthetic]"' in result.stderr
    assert not (tmp_path / 'out').exists()


def test_wrong_use(texts, tmp_path):
    out = ['-o', tmp_path / 'out']
    few = ['--speakers', 2, '--dev-speakers', 2]
    assert 'some must be left' in run('data', 'synthetic', texts, *out, *few, code=1).stderr
    (tmp_path / 'digits.txt').write_text('1 2\n3\n')
    assert 'can be spoken' in run('data', 'synthetic', tmp_path / 'digits.txt', *out, code=1).stderr
    assert 'no text file' in run('data', 'synthetic', tmp_path / 'gone.txt', *out, code=1).stderr


def test_speakers_and_sessions(texts, tmp_path):
    pytest.importorskip('espeakng_loader')
    from nemo_lact.data import espeak

    espeak.espeak.cache_clear()
    out = tmp_path / 'out'
    options = ['--speakers', 4, '--sessions', 2, '--utterances', 2, '--test-speakers', 1]
    result = run('data', 'synthetic', texts, '-o', out, *options)
    assert 'synthetic' in result.stdout and 'synthetic' in (out / 'README.txt').read_text().lower()
    train, test = read_rows(out / 'train.json'), read_rows(out / 'test.json')
    assert (len(train), len(test)) == (12, 4)
    assert not {row['speaker'] for row in train} & {row['speaker'] for row in test}
    assert len({(row['voice'], row['pitch'], row['rate']) for row in train}) == 3
    usable = {'press one please', "it's late", 'good bye', 'the line is busy', 'hello world'}
    assert {row['text'] for row in train + test} == usable
    by_session = {}
    for row in train + test:
        assert row['synthetic'] is True
        by_session.setdefault(row['session'], set()).add(str(row['conditions']))
        samples, rate = soundfile.read(row['audio_filepath'])
        assert rate == RATE and row['duration'] == pytest.approx(len(samples) / rate, abs=1e-4)
        assert row['duration'] > 0.3 and np.abs(samples).max() > 0.005
    assert len(by_session) == 8 and all(len(found) == 1 for found in by_session.values())
    left = read_rows(out / 'texts.rejected.jsonl')
    assert [(row['line'], row['reason']) for row in left] == [(3, 'digits: spell them out'), (4, 'no letters')]
    run('data', 'check', out / 'test.json', out / 'train.json', '--labels', " abcdefghijklmnopqrstuvwxyz'", '--strict')
    run('data', 'longform', out / 'train.json', '-o', out / 'long.jsonl.gz', '--by', 'session')

    times = {path: path.stat().st_mtime_ns for path in out.rglob('*.flac')}
    run('data', 'synthetic', texts, '-o', out, *options)
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*.flac')} == times, 'a second call spoke again'
    missing = next(iter(times))
    missing.unlink()
    run('data', 'synthetic', texts, '-o', out, *options)
    again = read_rows(out / 'train.json')  # espeak-ng's breath and flutter differ from call to call, nothing else does
    assert missing.exists()
    assert [{**row, 'duration': 0} for row in again] == [{**row, 'duration': 0} for row in train]

    unknown = run('data', 'synthetic', texts, '-o', out, '--language', 'xx-none', code=1)
    assert "has no voice 'xx-none+" in unknown.stderr
