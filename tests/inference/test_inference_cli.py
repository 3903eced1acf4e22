"""`nemo-lact transcribe` on long recordings, with sessions and subtitles; `nemo-lact stream`."""

import json

import pytest
import soundfile
from small_models import RATE, sound
from typer.testing import CliRunner

import nemo_lact.cli as cli
from nemo_lact.state import LaCTState

run_cli = CliRunner()


def run(*args, code=0, **kwargs):
    result = run_cli.invoke(cli.app, [str(a) for a in args], **kwargs)
    assert result.exit_code == code, result.output + repr(result.exception)
    assert 'Traceback' not in result.stderr
    return result


@pytest.fixture
def offline_file(offline, tmp_path):
    offline.save_to(str(tmp_path / 'offline.nemo'))
    return tmp_path / 'offline.nemo'


@pytest.fixture
def streaming_file(streaming, tmp_path):
    streaming.cfg.preprocessor.normalize = 'NA'
    streaming.save_to(str(tmp_path / 'streaming.nemo'))
    return tmp_path / 'streaming.nemo'


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_long_recordings_go_by_blocks_and_give_the_same(offline_file, recording, tmp_path, monkeypatch):
    paths = [recording(31.0, 1), recording(9.0, 2)]
    args = ('transcribe', *paths, '-m', offline_file, '--device', 'cpu', '--timestamps', '-o')
    run(*args, tmp_path / 'whole.jsonl')
    seen = []
    import nemo_lact.inference.files as files

    original = files.transcribe_rows
    monkeypatch.setattr(files, 'transcribe_rows', lambda *a, **k: seen.append(1) or original(*a, **k))
    monkeypatch.setattr(cli, 'LONG_SECONDS', 20)
    run(*args, tmp_path / 'blocks.jsonl')
    whole, blocks = lines(tmp_path / 'whole.jsonl'), lines(tmp_path / 'blocks.jsonl')
    assert seen and [r['pred_text'] for r in blocks] == [r['pred_text'] for r in whole]
    words = blocks[0]['timestamps']['word']
    assert ' '.join(w['word'] for w in words) == ' '.join(blocks[0]['pred_text'].split())
    assert all(0 <= w['confidence'] <= 1 and w['start'] < w['end'] for w in words) and words[-1]['end'] > 25
    assert not (tmp_path / 'blocks.jsonl.part').exists()


def test_an_interrupted_run_goes_on(offline_file, recording, tmp_path, monkeypatch):
    paths = [recording(5.0, i) for i in range(3)]
    args = ('transcribe', *paths, '-m', offline_file, '--device', 'cpu', '-b', '1', '--resume', '-o')
    run(*args, tmp_path / 'whole.jsonl')
    import nemo_lact.inference.longform as longform

    original, done = longform._batch, []

    def breaks(model, rows, *rest):
        if len(done) == 2:
            raise OSError('disk gone')
        done.append(rows[0]['audio_filepath'])
        return original(model, rows, *rest)

    monkeypatch.setattr(longform, '_batch', breaks)
    assert 'disk gone' in run(*args, tmp_path / 'cut.jsonl', code=1).stderr
    part = tmp_path / 'cut.jsonl.part'
    assert len(lines(part)) == 2 and not (tmp_path / 'cut.jsonl').exists()
    part.write_text(part.read_text() + '{"audio_filepath": "hal')  # and the last line was cut
    done.clear()
    run(*args, tmp_path / 'cut.jsonl')
    assert len(done) == 1 and lines(tmp_path / 'cut.jsonl') == lines(tmp_path / 'whole.jsonl') and not part.exists()


def test_session_file_is_made_used_and_checked(offline_file, streaming_file, recording, tmp_path):
    paths, anna = [recording(6.0, i) for i in (1, 2)], tmp_path / 'anna.safetensors'
    args = ('-m', offline_file, '--device', 'cpu', '-o')
    run('transcribe', *paths, *args, tmp_path / 'both.jsonl', '--session', tmp_path / 'all.safetensors')
    run('transcribe', paths[0], *args, tmp_path / '1.jsonl', '--session', anna)
    run('transcribe', paths[1], *args, tmp_path / '2.jsonl', '--session', anna)
    texts = [r['pred_text'] for r in lines(tmp_path / 'both.jsonl')]
    assert texts == [lines(tmp_path / f'{i}.jsonl')[0]['pred_text'] for i in (1, 2)]
    alone = run('transcribe', paths[1], '-m', offline_file, '--device', 'cpu').stdout.rstrip('\n')
    assert alone != texts[1]
    heard = LaCTState.load(anna).position.item()
    run('transcribe', paths[1], *args, tmp_path / '3.jsonl', '--session', anna, '--no-learn')
    assert LaCTState.load(anna).position.item() > heard
    other = run('transcribe', paths[0], '-m', streaming_file, '--device', 'cpu', '--session', anna, code=1)
    assert 'saved by another model' in other.stderr


def test_subtitles_of_one_and_of_several(offline_file, recording, tmp_path):
    paths = [recording(20.0, 1, name='one.wav'), recording(5.0, 2, name='two.wav')]
    run('transcribe', paths[0], '-m', offline_file, '--device', 'cpu', '--subtitles', tmp_path / 's.srt')
    assert (tmp_path / 's.srt').read_text().startswith('1\n00:00:')
    run('transcribe', *paths, '-m', offline_file, '--device', 'cpu', '--subtitles', tmp_path / 's.vtt')
    assert (tmp_path / 's.0002.two.vtt').read_text().startswith('WEBVTT')
    wrong = run('transcribe', *paths, '-m', offline_file, '--subtitles', tmp_path / 's.txt', code=1)
    assert '.srt or .vtt' in wrong.stderr


def test_evaluate_by_speaker(offline_file, recording, tmp_path):
    rows = [
        {'audio_filepath': recording(4.0, i), 'duration': 4.0, 'text': 'a b', 'speaker': 'xy'[i % 2]} for i in range(4)
    ]
    manifest = tmp_path / 'rows.jsonl'
    manifest.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    args = ('evaluate', manifest, '-m', offline_file, '--device', 'cpu', '-o')
    run(*args, tmp_path / 'shared.jsonl', '--session-key', 'speaker')
    run(*args, tmp_path / 'fresh.jsonl')
    shared, fresh = ([r['pred_text'] for r in lines(tmp_path / f'{n}.jsonl')] for n in ('shared', 'fresh'))
    assert shared[:2] == fresh[:2] and shared[2:] != fresh[2:]
    assert "no 'room'" in run(*args, tmp_path / 'no.jsonl', '--session-key', 'room', code=1).stderr
    assert 'need --model' in run('evaluate', manifest, '--no-learn', code=2).stderr


def test_stream_of_a_file_equals_transcribe(streaming_file, recording, tmp_path):
    path = recording(8.0, 7)
    expected = run('transcribe', path, '-m', streaming_file, '--device', 'cpu').stdout.rstrip('\n')
    result = run('stream', path, '-m', streaming_file, '--device', 'cpu', '--pace', '0')
    assert result.stdout.split() == expected.split() and len(expected) > 15
    assert '8.0 s heard; latency 0.18 s by design' in result.stderr and 'real-time factor' in result.stderr
    args = ('stream', path, '-m', streaming_file, '--device', 'cpu', '--pace', '0', '--json')
    report = json.loads(run(*args, '--session', tmp_path / 'a.safetensors').stdout)
    assert report['text'] == expected and report['real_time_factor'] > 0
    assert LaCTState.load(tmp_path / 'a.safetensors').position.item() > 150
    assert json.loads(run(*args, '--latency', '1').stdout)['latency_seconds'] == pytest.approx(0.096)


def test_stream_keeps_the_pace_of_the_recording(streaming_file, recording):
    import time

    started = time.monotonic()
    run('stream', recording(2.0, 1), '-m', streaming_file, '--device', 'cpu', '--pace', '1')
    assert time.monotonic() - started > 2.0


def test_stream_from_stdin(streaming_file, tmp_path):
    audio = (sound(6.0, 7) * 20000).astype('<i2')
    soundfile.write(tmp_path / 'same.wav', audio, RATE)
    expected = run('transcribe', tmp_path / 'same.wav', '-m', streaming_file, '--device', 'cpu').stdout
    result = run('stream', '-', '-m', streaming_file, '--device', 'cpu', input=audio.tobytes())
    assert result.stdout.split() == expected.split() and expected.strip()


def test_stream_errors_are_one_line(offline_file, streaming_file, recording):
    path = recording(1.0)
    assert 'cannot stream: lact_mode' in run('stream', path, '-m', offline_file, code=1).stderr
    assert 'was made for [3, 1]' in run('stream', path, '-m', streaming_file, '--latency', '9', code=1).stderr
    assert 'no such file' in run('stream', 'gone.wav', '-m', streaming_file, code=1).stderr
    microphone = run('stream', 'microphone', '-m', streaming_file, code=1)
    assert 'sounddevice' in microphone.stderr or 'no microphone' in microphone.stderr
