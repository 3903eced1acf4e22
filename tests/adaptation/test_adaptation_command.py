"""`nemo-lact evaluate --adaptation`: what it prints and writes, and what it says to wrong input."""

import json

import pytest
import torch
from small_models import build
from typer.testing import CliRunner

from nemo_lact.adaptation import report
from nemo_lact.cli import app


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(a) for a in args], env={'COLUMNS': '160'})
    assert result.exit_code == code, result.output + repr(result.exception)
    assert 'Traceback' not in result.stderr
    return result


@pytest.fixture
def model_file(model, tmp_path):
    model.save_to(str(tmp_path / 'model.nemo'))
    return tmp_path / 'model.nemo'


@pytest.fixture
def manifest(rows, tmp_path):
    path = tmp_path / 'rows.json'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def test_table_json_and_picture(model_file, manifest, tmp_path):
    target = tmp_path / 'adaptation.json'
    args = ('evaluate', manifest, '-m', model_file, '--device', 'cpu', '--adaptation')
    result = run(*args, '--clean-manifest', manifest, '--leave-one-out', 1, '-o', target)
    found = json.loads(target.read_text())
    assert found['manifest'] == found['clean_manifest'] == str(manifest) and found['session_key'] == 'session'
    assert found['leave_one_out']['rows'] == 3 and found['cost']['ratio'] > 0
    assert (tmp_path / 'adaptation.png').read_bytes().startswith(b'\x89PNG')
    for expected in ('all rows', 'cross test', 'leave one out', 'clean speech', 'learning to frozen', '0 to 10 s'):
        assert expected in result.stdout
    wer = found['overall']['rates']['learning']['wer']
    assert f'{100 * wer["value"]:.1f} % ({100 * wer["low"]:.1f} … {100 * wer["high"]:.1f})' in result.stdout
    assert 'learning / frozen' in result.stdout and 'note: features are normalised' in result.stdout


def test_json_alone_on_stdout_and_another_key(model_file, manifest):
    args = ('evaluate', manifest, '-m', model_file, '--device', 'cpu', '--adaptation', '--leave-one-out', 0)
    found = json.loads(run(*args, '--json', '--session-key', 'speaker', '--half').stdout)
    assert found['sessions'] == 2 and found['leave_one_out'] is None and found['precision'] == 'bfloat16 autocast'
    assert '--session-key room' in run(*args, '--session-key', 'room', code=1).stderr


def test_recordings_of_one_row_can_be_drawn(model, rows, tmp_path):
    from nemo_lact.adaptation import measure

    plain = [{k: v for k, v in row.items() if k not in ('session', 'speaker')} for row in rows[:1]]
    found = measure(model, plain, timing=False)
    assert found['overall']['rates']['learning']['wer']['low'] is None
    assert report.write(found, tmp_path / 'one.json') == tmp_path / 'one.png'
    report.show(found)


@pytest.mark.parametrize(
    'args, message',
    [
        (('--adaptation',), '--adaptation needs --model'),
        (('--adaptation', '-m', 'model.nemo', '--no-learn'), '--no-learn'),
        (('--adaptation', '-m', 'model.nemo', '-o', 'a.png'), 'takes the JSON'),
        (('--half',), 'need --adaptation'),
        (('--leave-one-out', '1'), 'need --adaptation'),
        (('--clean-manifest', 'rows.json'), 'need --adaptation'),
        (('--adaptation', '-m', 'model.nemo', '--leave-one-out', '-1'), '--leave-one-out'),
    ],
)
def test_wrong_use(model_file, manifest, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in run('evaluate', manifest, *args, code=2).stderr


def test_a_model_without_a_memory(manifest, tiny, tmp_path):
    torch.manual_seed(0)
    build({**tiny, 'adaptation': False}).save_to(str(tmp_path / 'frozen.nemo'))
    args = ('evaluate', manifest, '-m', tmp_path / 'frozen.nemo', '--device', 'cpu', '--adaptation')
    assert 'no adaptation to measure: it was built with adaptation=false' in run(*args, code=1).stderr
