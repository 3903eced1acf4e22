"""benchmarks/accuracy/ablations.py and the tables of its runs: side by side, within a time, failures named."""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = 'LaCT-Conformer'
pytestmark = pytest.mark.skipif(not (ROOT / 'benchmarks').is_dir(), reason='needs a checkout')


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks/accuracy'))


def test_the_runner_leaves_out_nobody():
    from ablation_contestants import RECIPES
    from ablations import everyone

    runs = everyone()
    assert {run.contestant for run in runs} == {name for name, r in RECIPES.items() if r.base} | {BASE}
    assert [run.seed for run in runs if run.contestant == BASE] == [0, 1]
    assert len({run.name for run in runs}) == len(runs)


PRETENDED = """
    import sys, time
    name = sys.argv[1]
    time.sleep(0.3)
    print('     1 loss    5.000', flush=True)
    print(*sys.argv[1:], flush=True)
    time.sleep({'long': 60, 'quick': 0.1}.get(name, 0.6))
    sys.exit(3 if name == 'wrong' else 0)
"""


@pytest.fixture
def runner(monkeypatch, tmp_path):
    """ablations.py, its training a script of a second."""
    import ablations

    script = tmp_path / 'pretended.py'
    script.write_text(textwrap.dedent(PRETENDED))
    monkeypatch.setattr(ablations, 'TRAIN', script)
    monkeypatch.setattr(ablations.os, 'environ', dict(ablations.os.environ, CUDA_VISIBLE_DEVICES=''))

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['ablations.py', '--output', str(tmp_path / 'out'), *arguments])
        with pytest.raises(SystemExit) as ended:
            ablations.main()
        return ended.value.code

    return run


def test_runs_go_side_by_side_after_the_first_and_a_failure_stops_nobody(runner, tmp_path, capsys):
    code = runner('--contestants', 'a:7', 'b', 'wrong', 'c', '--at-once', '2', '--steps', '5', '--sets', 'x, y', 'z')
    said = capsys.readouterr().out
    assert code == 1 and 'wrong-0: error, exit status 3' in said and 'failed: wrong-0' in said
    assert [m for m in re.findall(r'(\w+-\d) begins', said)] == ['a-7', 'b-0', 'wrong-0', 'c-0']
    begun = {m[1]: float(m[0]) for m in re.findall(r'(\d+) s  (\w+-\d) begins', said)}
    assert said.index('b-0 begins') < said.index('a-7: ') and begun['b-0'] >= 0
    out = tmp_path / 'out'
    assert f'a --seed 7 --output {out} --steps 5 --sets x, y z' in (out / 'a-7.log').read_text()
    assert (out / 'c-0.log').read_text().count('loss') == 1


def test_what_finds_no_time_is_ended_or_left_out_and_named(runner, capsys):
    assert runner('--contestants', 'quick', 'long', 'later', '--time', '4') == 0
    said = capsys.readouterr().out
    assert 'ended: the time is over: long-0' in said and 'left out: too little time: later-0' in said
    assert 'failed' not in said


def made(name, seed, wer, base=BASE, passes=None, sets=('utterances, clean', '30 s, clean')) -> dict:
    """A report of train.py: `wer` errors in each of 20 rows of 10 words, one less with the memory learning.

    As many characters are wrong, of 50 a row; reports of one seed have their counts, others the rate alone.
    """
    def scores(errors):
        rows = dict(chars=[[errors + i % 2, 50] for i in range(20)]) if name == 'no convolution' else {}
        words = [[errors + i % 2, 10] for i in range(20)]
        return dict(wer=errors / 10, cer=(errors + 0.5) / 50, words=words, texts=['x'], **rows)

    results = {s + f: scores(wer + more) for s in sets for f, more in (('', 0), (', frozen', 1))}
    return dict(contestant=name, base=base, seed=seed, parameters=13_000_000, steps=100, log=[dict(step=100, loss=1.5)],
                scores=results, passes={way: {s: scores(e) for s in sets} for way, e in (passes or {}).items()})


def test_a_folder_of_ablations_has_tables_of_its_own(monkeypatch, tmp_path):
    import report

    folder = tmp_path / 'runs'
    folder.mkdir()
    reports = [
        made(BASE, 0, 2, base=None, passes={'averaged weights': 1}), made(BASE, 1, 4, base=None),
        made('no convolution', 0, 6), made('both modes', 0, 3, passes={'causal': 7}),
        made('window 16', 0, 3, sets=('utterances, clean',)),
    ]  # fmt: skip
    for r in reports:
        (folder / f'{r["contestant"]}-{r["seed"]}.json').write_text(json.dumps(r))
    monkeypatch.setattr(report, 'RESULTS', tmp_path / 'results')
    monkeypatch.setattr(report, 'ROOT', tmp_path)
    (tmp_path / 'docs').mkdir()
    monkeypatch.setattr(sys, 'argv', ['report.py', '--keep', str(folder), '--name', 'ablations'])
    report.main()
    kept = json.loads((tmp_path / f'results/ablations/{BASE}-0.json').read_text())
    assert 'texts' not in kept['passes']['averaged weights']['utterances, clean']
    part = (tmp_path / 'docs/accuracy.md').read_text().split('## Ablations')[1]
    wer, cer, against, learning, averaged = tables = re.findall(r'(?:^\|.*\n)+', part, re.M)
    cells = {t: {row.split(' | ')[0][2:]: row.split(' | ')[1:] for row in t.splitlines()[2:]} for t in tables}
    names = [BASE, f'{BASE}, seed 0', f'{BASE}, seed 1']
    names += ['both modes', 'both modes, causal', 'no convolution', 'window 16']
    assert list(cells[wer]) == names and list(cells[against]) == names[1:]
    assert cells[wer][BASE][:3] == ['13.0M', '100', '1.50'] and cells[wer][BASE][3].startswith('35.0 (')
    assert cells[wer]['window 16'][4] == ' |'  # not scored
    assert list(cells[cer]) == names and cells[cer][BASE][0] == '7.0' and cells[cer][f'{BASE}, seed 1'][0] == '9.0'
    assert cells[cer]['window 16'][1] == ' |' and cells[cer]['both modes, causal'][0] == '15.0'
    assert cells[cer]['no convolution'][0].startswith('13.0 (')
    # 6.5 errors a row against 3.5: as 6 to 3 where all drawn rows are even ones, 7 to 4 where all are odd
    value, low, high = map(float, re.findall(r'[+-][0-9.]+', cells[against]['no convolution'][0]))
    assert value == 85.7 and 75 < low < value < high < 100
    assert cells[against][f'{BASE}, seed 0'][0].startswith('-28.6%')
    assert cells[against]['both modes, causal'][0].startswith('+114.3%')
    assert cells[learning]['no convolution'][0].startswith('-13.3%') and 'both modes, causal' not in cells[learning]
    assert list(cells[averaged]) == [f'{BASE}, seed 0'] and cells[averaged][f'{BASE}, seed 0'][0].startswith('-40.0%')
