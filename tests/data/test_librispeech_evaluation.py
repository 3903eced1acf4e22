"""scripts/evaluate_librispeech.sh on a miniature tree: tests, table, JSON, resuming, and models without a memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mini import read_rows
from small_models import build, decided

SCRIPTS = Path(__file__).parents[2] / 'scripts'
NAMES = ['utterances', 'rows of up to 1 s', 'chapters']

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir() or not shutil.which('bash'), reason='needs a checkout and bash')


@pytest.fixture
def model(tiny, tmp_path) -> Path:
    torch.manual_seed(3)
    path = tmp_path / 'small.nemo'
    decided(build(tiny)).save_to(str(path))
    return path


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import evaluate_librispeech

    return evaluate_librispeech


def options(corpus, model, output) -> list[str]:
    words = ['--data-dir', corpus, '--model', model, '--output-dir', output, '--subsets', 'dev-clean']
    return list(map(str, [*words, '--seconds', 1, 900, '--device', 'cpu', '--jobs', 1]))


def call(script, monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, 'argv', ['evaluate_librispeech.py', *words])
    script.main(script.parse_arguments())


@pytest.mark.slow
def test_from_a_tree_to_a_table_and_what_is_done_is_kept(librispeech, model, tmp_path, script, monkeypatch, capsys):
    words = options(librispeech, model, tmp_path / 'out')
    environment = {**os.environ, 'PYTHON': sys.executable, 'SKIP_INSTALL': '1', 'VIRTUAL_ENV': ''}
    command = ['bash', str(SCRIPTS / 'evaluate_librispeech.sh'), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert 'no chapter is longer than 900 s' in done.stderr
    assert done.stdout.strip() == (tmp_path / 'out' / 'results.md').read_text().strip()

    results = json.loads((tmp_path / 'out' / 'results.json').read_text())
    tests = {test['name']: test for test in results['tests']}
    assert list(tests) == NAMES + [f'{name}, noisy' for name in NAMES]
    assert {test['words'] for test in tests.values()} == {18} and results['no_memory'] is None
    assert [tests[name]['rows'] for name in NAMES] == [4, 4, 3]  # no two utterances fit into 1 s
    for name, test in tests.items():
        rows = read_rows(tmp_path / 'out' / f'dev-clean{_suffix(name)}.jsonl')
        wrong = sum(row[key] for row in rows for key in ('substitutions', 'insertions', 'deletions'))
        assert wrong == test['errors'] > 0 and test['wer']['value'] == pytest.approx(wrong / 18)
        assert test['wer']['low'] <= test['wer']['value'] <= test['wer']['high'] and test['speakers'] == 2
        assert test['hours'] == pytest.approx(sum(row['duration'] for row in rows) / 3600)
        assert f'| dev-clean, {name} | {100 * test["wer"]["value"]:.2f} (' in done.stdout
        assert all(('conditions' in row) == ('noisy' in name) for row in rows)
    assert [part['name'] for part in results['adaptation']] == ['utterances by chapter', 'utterances by chapter, noisy']
    assert results['adaptation'][0]['sessions'] == 3 and results['adaptation'][1]['clean']['rows'] == 4
    for rule in ('frozen', 'learning', 'fresh'):
        assert f'| dev-clean, utterances by chapter, noisy | {rule} |' in done.stdout

    commands = []
    monkeypatch.setattr(script, 'command', lambda *words, do=script.command: (commands.append(words[0]), do(*words)))
    call(script, monkeypatch, *words)
    assert set(commands) == {'data'}, 'a test was scored again'
    assert capsys.readouterr().out.strip() == done.stdout.strip()
    decided_anew = Path(shutil.copy(model, tmp_path / 'other.nemo'))
    with open(decided_anew, 'ab') as file:
        file.write(bytes(512))
    assert script.kept(tmp_path / 'out' / 'results.json', script.digest(model))
    assert not script.kept(tmp_path / 'out' / 'results.json', script.digest(decided_anew))


def _suffix(name: str) -> str:
    stem = {'utterances': '', 'rows of up to 1 s': '-1s', 'chapters': '-chapters'}[name.removesuffix(', noisy')]
    return stem + ('-noisy' if name.endswith('noisy') else '')


@pytest.mark.slow
def test_a_fastconformer_takes_the_same_tests(librispeech, tiny, tmp_path, script, monkeypatch, capsys):
    encoder = {
        '_target_': 'nemo.collections.asr.modules.ConformerEncoder',
        **{'feat_in': 16, 'n_layers': 1, 'd_model': 16, 'n_heads': 2, 'conv_kernel_size': 5},
        **{'subsampling': 'dw_striding', 'subsampling_factor': 8, 'subsampling_conv_channels': 8},
    }
    built = build(tiny, encoder=encoder)
    built.save_to(str(tmp_path / 'fc.nemo'))
    call(script, monkeypatch, *options(librispeech, tmp_path / 'fc.nemo', tmp_path / 'out'))
    said = capsys.readouterr()
    assert said.out.count('| dev-clean, ') == 6 and 'frozen' not in said.out
    assert 'no adaptation to measure: its encoder is ConformerEncoder' in said.err
    assert json.loads((tmp_path / 'out' / 'results.json').read_text())['adaptation'] == []


@pytest.mark.parametrize(
    'words, message',
    [
        ([], 'required: --data-dir, --model'),
        (['--seconds', '0'], 'must be above 0'),
        (['--batch-seconds', 'nan'], 'must be above 0'),
        (['--jobs', '0'], '--jobs 0: must be 1 or more'),
    ],
)
def test_wrong_use(script, monkeypatch, capsys, words, message):
    words = ['--data-dir', 'x', '--model', 'x.nemo', *words] if words else []
    with pytest.raises(SystemExit) as error:
        call(script, monkeypatch, *words)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_missing_test_sets_are_said(librispeech, script, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', ['x', '--data-dir', str(librispeech), '--model', 'x.nemo'])
    args = script.parse_arguments()
    assert args.output_dir == Path('runs/evaluation-librispeech/x')
    with pytest.raises(FileNotFoundError, match='--subset test-clean --subset test-other --download-only'):
        script.prepare(args)
    with pytest.raises(FileNotFoundError, match='no model file at x.nemo'):
        script.main(args)
