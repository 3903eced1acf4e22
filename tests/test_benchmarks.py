"""The benchmarks of streaming and of transcribing run at a tiny size, and docs/performance.md can show the results."""

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from nemo.utils import logging as nemo_logging

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
pytestmark = [
    pytest.mark.skipif(not BENCHMARKS.is_dir(), reason='needs a checkout'),
    pytest.mark.skipif(torch.cuda.is_available(), reason='on a GPU the benchmarks are long'),
]


@pytest.fixture
def scripts(monkeypatch):
    """Imports of the benchmarks work; what they quiet is loud again after."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    level = nemo_logging.getEffectiveLevel()
    yield
    logging.disable(logging.NOTSET)
    nemo_logging.setLevel(level)


def run(module, monkeypatch, folder, *arguments) -> dict:
    monkeypatch.setattr(sys, 'argv', [f'{module.__name__}.py', '--tiny', '--output', str(folder), *arguments])
    module.main()
    return json.loads((folder / f'{module.__name__}_cpu.json').read_text())


def test_streaming_speed(scripts, monkeypatch, tmp_path):
    import performance_page
    import streaming_speed

    report = run(streaming_speed, monkeypatch, tmp_path, '--rounds', '2', '--steps', '2')
    rows = report['rows']
    assert [row['contestant'] for row in rows] == ['FastConformer', 'LaCT', 'LaCT stream_step']
    assert all(check['error'] < 1e-4 for check in report['checks']) and len(report['checks']) == 3
    for row in rows:
        assert 0 < row['ms_least'] <= row['ms'] <= row['ms_most'] <= row['slowest_ms']
        assert row['real_time_streams'] == pytest.approx(4 * 1.04 / row['ms'] * 1000)
    page = '\n'.join(performance_page.side_section('streaming_speed', report))
    assert '| FastConformer | 1.00 |' in page and f'| LaCT | {rows[1]["ms"] / rows[0]["ms"]:.2f} |' in page
    assert 'real-time streams |' not in page  # absolute numbers of a GPU only
    gpu = {**report, 'device': 'NVIDIA', 'rows': [{**row, 'gib': 1.0} for row in rows]}
    page = '\n'.join(performance_page.side_section('streaming_speed', gpu))
    assert 'real-time streams | slowest step, ms | GiB |' in page


def test_streams_that_differ_from_offline_are_not_timed(scripts, monkeypatch, tmp_path):
    import streaming_speed

    step = streaming_speed.OwnState.step

    def forgets(self, features):
        result = step(self, features)
        for tensor in self.state.attention:
            tensor.zero_()
        return result

    monkeypatch.setattr(streaming_speed.OwnState, 'step', forgets)
    with pytest.raises(SystemExit, match='LaCT stream_step: streams are .* off the offline output'):
        run(streaming_speed, monkeypatch, tmp_path)


def test_transcribe_speed(scripts, monkeypatch, tmp_path):
    import performance_page
    import transcribe_speed

    monkeypatch.setattr(transcribe_speed, 'TASKS', {'3 files of 2 s': (3, 2), '1 file of 4 s': (1, 4)})
    report = run(transcribe_speed, monkeypatch, tmp_path, '--rounds', '1')
    rows = report['rows']
    names = ['FastConformer full', 'FastConformer local', 'LaCT']
    assert [row['contestant'] for row in rows] == [*names, *names]
    for row in rows:
        assert row['characters'] > 0 and row['rtfx'] == pytest.approx(row['seconds'] / row['ms'] * 1000)
    assert rows[0]['files'] == 3 and 4.8 < rows[0]['seconds'] < 7.2
    assert rows[3]['files'] == 1 and rows[3]['seconds'] == pytest.approx(4)
    page = '\n'.join(performance_page.side_section('transcribe_speed', report))
    assert '### 1 file of 4 s, fp32' in page and page.count('| FastConformer local | 1.00 |') == 2


def test_out_of_memory_is_a_result(scripts):
    from side_by_side import take_turns

    def full():
        raise torch.cuda.OutOfMemoryError('no room')

    turns = []
    results = take_turns({'full': full, 'other': lambda: turns.append(1) or {'ms': float(len(turns)), 'gib': 2.0}}, 3)
    assert results['full'] == {'error': 'out of memory'}
    assert results['other'] == dict(ms=3.0, ms_least=2.0, ms_most=4.0, gib=2.0)  # the first turn warms up
