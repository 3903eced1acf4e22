"""benchmarks/librispeech_budget.py: hours from measured steps, and the table in docs/librispeech.md."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason='needs a checkout')


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import librispeech_budget

    return librispeech_budget


def report(folder: Path, name: str, device: str, **row) -> None:
    row = {'contestant': 'LaCT', 'precision': 'bf16', 'rows': 32, 'seconds': 15, 'training': True, 'ms': 240.0, **row}
    about = {'device': device, 'date': '2026-01-02', 'commit': 'abc', 'parameters': {'LaCT': 93e6}}
    (folder / f'{name}.json').write_text(json.dumps({**about, 'rows': [row, {**row, 'training': False, 'ms': 1.0}]}))


def test_hours_follow_from_the_step(script, tmp_path):
    report(tmp_path, 'speed_gpu', 'NVIDIA X')
    report(tmp_path, 'speed_gpu_more', 'NVIDIA Y', ms=None, error='out of memory')
    report(tmp_path, 'speed_gpu_not', 'some CPU')
    lines = script.table(tmp_path).splitlines()
    # 480 s of audio in 0.24 s; 200,000 steps of 300 s are 16,667 h.
    assert lines[2:] == ['| LaCT | 93M | 32 x 15 s | X | 2026-01-02, abc, bf16 | 240 | 2000 | 0.48 | 8.3 |']


def test_without_a_measurement_there_is_no_table(script, tmp_path):
    report(tmp_path, 'speed_gpu', 'some CPU')
    with pytest.raises(FileNotFoundError, match='no training step in'):
        script.table(tmp_path)


def test_the_table_goes_between_the_marks_of_the_page(script, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(script.PAGE.read_text())
    script.write(page, '| new |\n')
    script.write(page, '| newer |\n')
    found = page.read_text()
    assert f'{script.START}\n| newer |\n\n{script.END}' in found and '| new |' not in found
    assert found.partition(script.START)[0] == script.PAGE.read_text().partition(script.START)[0]
    page.write_text('no marks')
    with pytest.raises(ValueError, match='no marks'):
        script.write(page, '')


def test_the_recipe_is_that_of_the_script(script):
    recipe = (BENCHMARKS.parent / 'scripts' / 'train_librispeech.sh').read_text()
    assert f'full) steps={script.STEPS} ;;' in recipe
    assert f'batch_duration=$((long > {script.BATCH_SECONDS} ? long : {script.BATCH_SECONDS}))' in recipe


def test_the_page_has_every_test_of_the_evaluation(script):
    sys.path.insert(0, str(BENCHMARKS.parent / 'scripts'))
    try:
        import evaluate_librispeech as evaluation
    finally:
        sys.path.pop(0)
    page = script.PAGE.read_text()
    names = ['utterances', f'rows of up to {evaluation.SECONDS[0]} s', 'chapters']
    for subset in evaluation.SUBSETS:
        for name in (*names, *(f'{name}, noisy' for name in names)):
            assert page.count(f'| {subset}, {name} |') == 1
    assert f'`nemo-lact data noisy {" ".join(map(str, evaluation.NOISE))}`' in page
