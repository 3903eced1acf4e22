"""`nemo-lact data noisy`: one condition per session, the same for utterances and rows joined from them; resuming."""

import json

import numpy as np
import pytest
import soundfile
from mini import RATE, noise, read_rows, run, write_rows

from nemo_lact.data.conditions import apply
from nemo_lact.data.noisy import conditions_of

SNR = ['--snr', 10, 15]


@pytest.fixture
def manifest(tmp_path):
    """Two chapters of one speaker and one of another; the last row is a part of a file."""
    rows = []
    for i, (speaker, chapter) in enumerate([('a', '1'), ('a', '1'), ('a', '2'), ('b', '3')]):
        path = tmp_path / f'{i}.flac'
        soundfile.write(path, noise(1.0 + i / 2, i), RATE)
        row = {'audio_filepath': path.name, 'duration': 1.0 + i / 2, 'text': f't{i}', 'speaker': speaker}
        rows.append({**row, 'chapter': chapter})
    rows[3] |= {'offset': 0.5, 'duration': 1.5}
    return write_rows(tmp_path / 'clean.json', rows)


def test_one_condition_per_session_and_nothing_else_changed(manifest, tmp_path):
    out = tmp_path / 'noisy.json'
    said = run('data', 'noisy', manifest, '-o', out, '--by', 'speaker,chapter', *SNR).stdout
    assert '3 sessions by speaker,chapter' in said and '4 rows' in said
    clean, noisy = read_rows(manifest), read_rows(out)
    for part, before, after in zip((0, 1, 0, 0), clean, noisy, strict=True):
        how = conditions_of((before['speaker'], before['chapter']), (10, 15))
        assert after['conditions'] == how.describe() and 10 <= after['conditions']['snr_db'] <= 15
        for key in ('text', 'speaker', 'chapter', 'duration'):
            assert after[key] == before[key]
        assert 'offset' not in after
        source, _ = soundfile.read(tmp_path / before['audio_filepath'], dtype='float32')
        source = source[round(before.get('offset', 0) * RATE) :][: round(before['duration'] * RATE)]
        found, rate = soundfile.read(after['audio_filepath'], dtype='float32')
        assert rate == RATE and (tmp_path / 'noisy').samefile(after['audio_filepath'].rpartition('/')[0])
        assert np.abs(found - apply(source, RATE, how, part)).max() < 1e-4
        assert np.abs(found - source).max() > 0.01
    seen = [json.dumps(row['conditions']) for row in noisy]
    assert seen[0] == seen[1] and len(set(seen)) == 3


def test_long_rows_sound_like_their_utterances(manifest, tmp_path):
    by = ['--by', 'speaker,chapter']
    run('data', 'longform', manifest, '-o', tmp_path / 'long.json', *by, '--write-audio', tmp_path)
    for name in ('clean', 'long'):
        run('data', 'noisy', tmp_path / f'{name}.json', '-o', tmp_path / f'n-{name}.json', *by)
    short, long = (read_rows(tmp_path / f'n-{name}.json') for name in ('clean', 'long'))
    assert len(long) == 3 and long[0]['text'] == 't0 t1' and len(long[0]['pieces']) == 2
    assert [row['conditions'] for row in long] == [short[i]['conditions'] for i in (0, 2, 3)]


def test_a_second_call_makes_what_is_missing_and_another_seed_all(manifest, tmp_path):
    out = tmp_path / 'noisy.json'
    run('data', 'noisy', manifest, '-o', out)
    files = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / 'noisy').glob('*.flac')}
    gone = next(iter(files))
    gone.unlink()
    run('data', 'noisy', manifest, '-o', out)
    assert gone.read_bytes() == files[gone][1], 'the same seed gives the same sound'
    assert {path: path.stat().st_mtime_ns for path in files if path != gone} == {
        path: time for path, (time, _) in files.items() if path != gone
    }
    run('data', 'noisy', manifest, '-o', out, '--seed', 1)
    assert not {row['audio_filepath'] for row in read_rows(out)} & set(map(str, files))


def test_what_cannot_be_used_is_listed(manifest, tmp_path):
    rows, out = read_rows(manifest), tmp_path / 'noisy.json'
    (tmp_path / 'text.flac').write_text('no audio')
    rows[1]['audio_filepath'], rows[2]['audio_filepath'] = 'gone.flac', 'text.flac'
    rows[3] |= {'offset': 2.4, 'duration': 5.0}
    write_rows(manifest, rows)
    assert '3 rows left out' in run('data', 'noisy', manifest, '-o', out).stderr
    left = read_rows(tmp_path / 'noisy.rejected.jsonl')
    assert [row['row'] for row in left] == [2, 3, 4]
    for row, reason in zip(left, ('no such file', 'not readable as audio', 'but the file has 2.5 s')):
        assert reason in row['reason']
    assert len(read_rows(out)) == 1
    write_rows(manifest, rows[1:])
    assert 'no usable row' in run('data', 'noisy', manifest, '-o', tmp_path / 'none.json', code=1).stderr


@pytest.mark.parametrize(
    'options, message',
    [
        (['--by', 'room'], "no 'room'"),
        (['--snr', '20', '5'], 'the lower one first'),
        (['--snr', 'nan', '5'], 'give two numbers'),
        (['-o', 'clean.json'], 'another file than the source'),
        (['-o', 'noisy'], 'named NAME.json'),
    ],
)
def test_wrong_use(manifest, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    before = manifest.read_text()
    assert message in run('data', 'noisy', 'clean.json', '-o', 'noisy.json', *options, code=1).stderr
    assert manifest.read_text() == before and not (tmp_path / 'noisy.json').exists()
