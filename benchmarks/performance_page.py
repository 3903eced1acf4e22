"""docs/performance.md and its figure, from the results of speed.py, streaming_speed.py and transcribe_speed.py.

    python benchmarks/performance_page.py
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
RESULTS = HERE / 'results'
PAGE = HERE.parent / 'docs' / 'performance.md'
FIGURE = HERE.parent / 'docs' / 'figures' / 'speed.png'
GOALS = {  # task -> (share of FastConformer's time to reach, against which of its attentions)
    'train 32 x 15 s': (0.75, 'better'),
    'train 2 x 300 s': (0.6, 'better'),
    'infer 64 x 15 s': (0.55, 'better'),
    'infer 1 x 600 s': (0.7, 'local'),
    'infer 1 x 3600 s': (0.7, 'local'),
    'infer 1 x 10800 s': (0.7, 'local'),
}

SIDES = {  # results -> heading, what is measured, the peer that others are a multiple of, columns beside the times
    'streaming_speed': (
        'Streaming',
        'Streams in one batch, bf16 autocast on a GPU, random features; `real-time streams` is how many would keep up '
        'with their speakers. LaCT and FastConformer run through the same interface of NeMo, LaCT also through '
        '`stream_step`. Memory is beyond the weights, the caches of all streams included.',
        'FastConformer',
        {'real_time_streams': 'real-time streams', 'slowest_ms': 'slowest step, ms', 'gib': 'GiB'},
    ),
    'transcribe_speed': (
        'Audio files to text',
        '`model.transcribe`: WAV files, NeMo\'s preprocessor, encoder, greedy CTC, text. Memory is beyond the weights.',
        'FastConformer local',
        {'rtfx': 'RTFx', 'gib': 'GiB'},
    ),
}


def peer_ms(rows: list[dict], against: str = 'better') -> float | None:
    """FastConformer's time in a task's rows: the better one, or that with local attention."""
    wanted = 'FastConformer local' if against == 'local' else 'FastConformer'
    times = [r['ms'] for r in rows if r['contestant'].startswith(wanted) and 'ms' in r]
    return min(times) if times else None


def of_task(report: dict, task: str) -> list[dict]:
    return [row for row in report['rows'] if row['task'] == task]


def task_table(report: dict, task: str, absolute: bool) -> list[str]:
    rows = of_task(report, task)
    share, against = GOALS.get(task, (None, 'better'))
    if share and not absolute:
        share = 1.0
    peer = peer_ms(rows, against)
    lines = [f'### {task}{"" if absolute else ", " + rows[0]["precision"]}', '']
    if share:
        name = 'the better FastConformer' if against == 'better' else 'FastConformer with local attention'
        lines += [f'Goal: at most {share} × {name}.', '']
    lines += ['| encoder | × FastConformer | ms (least to most) | GiB | RTFx | share of ceiling |', '|' + ' --- |' * 6]
    for row in rows:
        if 'ms' not in row:
            lines.append(f'| {row["contestant"]} | {row["error"]} | | | | |')
            continue
        time = f'{row["ms"]:.1f} ({row["ms_least"]:.1f} to {row["ms_most"]:.1f})' if absolute else '-'
        memory = '-' if row['gib'] is None else f'{row["gib"]:.2f}'
        ceiling = '-' if not row['share_of_ceiling'] else f'{100 * row["share_of_ceiling"]:.0f}%'
        ratio = '-' if not peer else f'{row["ms"] / peer:.2f}'
        if peer and not absolute:
            ratio += f' ({row["ms_least"] / peer:.2f} to {row["ms_most"] / peer:.2f})'
        rate = f'{row["rtfx"]:.0f}' if absolute else '-'
        lines.append(f'| {row["contestant"]} | {ratio} | {time} | {memory} | {rate} | {ceiling} |')
    return [*lines, '']


def section(report: dict) -> list[str]:
    gpu = report['device'].startswith('NVIDIA')
    ceiling = f', bf16 matrix product {report["ceiling_tflops"]:.0f} TFLOP/s' if gpu else ''
    lines = [
        f'## {report["device"]}, {report["date"]}, commit {report["commit"]}', '',
        f'torch {report["torch"]}, Python {report["python"]}{ceiling}. `{report["command"]}`', '',
    ]  # fmt: skip
    if report['checks']:
        errors = ', '.join(f'{c["contestant"]} {c["input"]} {c["error"]:.1e}' for c in report['checks'])
        lines += [f'Output against the reference in fp32, relative, before timing: {errors}.', '']
    for task in dict.fromkeys(row['task'] for row in report['rows']):
        lines += task_table(report, task, gpu)
    for record in report.get('profiles', []):
        lines += [
            f'Profile of {record["task"]}, {record["contestant"]}: {record["launches"]} launches, '
            f'{record["busy_ms"]:.1f} ms of kernels. Most:', '',
            '| ms | launches | µs each | kernel |', '| --- | --- | --- | --- |',
        ]  # fmt: skip
        for kernel in record['most'][:8]:
            each = 1000 * kernel['ms'] / kernel['count']
            lines.append(f'| {kernel["ms"]:.2f} | {kernel["count"]} | {each:.1f} | `{kernel["kernel"][:60]}` |')
        lines.append('')
    return lines


def side_section(name: str, report: dict) -> list[str]:
    """A section from streaming_speed.py or transcribe_speed.py; of a CPU the ratios only."""
    heading, about, peer, columns = SIDES[name]
    gpu = report['device'].startswith('NVIDIA')
    columns = columns if gpu else {}
    sizes = ', '.join(f'{who} {count / 1e6:.0f}M' for who, count in report['parameters'].items())
    lines = [
        f'## {heading}: {report["device"]}, {report["date"]}, commit {report["commit"]}', '',
        f'{about} Parameters of the encoders: {sizes}.', '',
        f'torch {report["torch"]}, NeMo {report["nemo"]}, Python {report["python"]}. `{report["command"]}`', '',
    ]  # fmt: skip
    if report.get('checks'):
        errors = ', '.join(f'{c["contestant"]} {c["input"]} {c["error"]:.1e}' for c in report['checks'])
        lines += [f'Streams against the offline encoder in fp32, small sizes, before timing: {errors}.', '']
    for task in dict.fromkeys(row['task'] for row in report['rows']):
        rows = of_task(report, task)
        times = {row['contestant']: row.get('ms') for row in rows}
        heads = ['contestant', f'× {peer}', *['ms (least to most)'] * gpu, *columns.values()]
        lines += [f'### {task}, {rows[0]["precision"]}', '', f'| {" | ".join(heads)} |', '|' + ' --- |' * len(heads)]
        for row in rows:
            if 'ms' not in row:
                cells = [row['error'], *[''] * (len(heads) - 2)]
            else:
                cells = [f'{row["ms"] / times[peer]:.2f}' if times.get(peer) else '-']
                cells += [f'{row["ms"]:.1f} ({row["ms_least"]:.1f} to {row["ms_most"]:.1f})'] * gpu
                cells += [f'{row[key]:.0f}' if row[key] >= 100 else f'{row[key]:.2f}' for key in columns]
            lines.append(f'| {row["contestant"]} | {" | ".join(cells)} |')
        lines.append('')
    return lines


def figure(reports: list[dict]) -> None:
    bars = []
    for report in reports:
        for task in dict.fromkeys(row['task'] for row in report['rows']):
            rows = of_task(report, task)
            peer = peer_ms(rows)
            bars += [(f'{task}\n{r["contestant"]}', r['ms'] / peer) for r in rows if 'LaCT' in r['contestant'] and peer]
    axes = plt.subplots(figsize=(8, 0.42 * len(bars) + 1))[1]
    axes.barh([name for name, _ in bars], [value for _, value in bars], color='tab:blue')
    axes.axvline(1.0, color='black', linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel('time / time of the better FastConformer')
    axes.tick_params(labelsize=7)
    plt.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    plt.savefig(FIGURE, dpi=110)


def main() -> None:
    reports = [json.loads(path.read_text()) for path in sorted(RESULTS.glob('speed_*.json'))]
    lines = [
        '# Performance', '',
        '<!-- Made by benchmarks/performance_page.py from benchmarks/results/*speed_*.json and '
        'benchmarks/performance_notes.md: change those. -->', '',
        'The encoder alone, random features, beside the ConformerEncoder of NeMo 3.0 in the size of FastConformer-L. '
        'Contestants take turns; median of the rounds. benchmarks/speed.py says how, and measures again. '
        'Training rows are forward and backward without an optimiser step. Rows of a CPU are ratios only.', '',
        '![Time beside FastConformer](figures/speed.png)', '',
    ]  # fmt: skip
    for report in reports:
        lines += section(report)
    for name in SIDES:
        for path in sorted(RESULTS.glob(f'{name}_*.json')):
            lines += side_section(name, json.loads(path.read_text()))
    lines.append((HERE / 'performance_notes.md').read_text().rstrip())
    PAGE.write_text('\n'.join(lines) + '\n')
    figure(reports)


if __name__ == '__main__':
    main()
