"""docs/accuracy.md from the reports of train.py: one section for each folder of benchmarks/results/accuracy.

    python benchmarks/accuracy/report.py                     # writes docs/accuracy.md and docs/figures/accuracy-*.png
    python benchmarks/accuracy/report.py --keep OUT --name pilot   # first takes in OUT/*.json, without their texts

benchmarks/accuracy/notes.md says what the numbers mean; a folder's notes.md goes above its tables. precision.json, of
precision.py, and probe.json with probe.md, of probe.py, beside the folders make sections of their own.
"""

import argparse
import json
from pathlib import Path

from ablation_tables import ablation_tables, precision_section
from tables import FROZEN, characters, gain, percent, probe_section, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'benchmarks/results/accuracy'


def keep(folder: Path, name: str) -> None:
    """Take reports in, with the errors, words and characters of each row and no texts."""
    (RESULTS / name).mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob('*.json')):
        report = json.loads(path.read_text())
        for results in (report.get('scores', {}), *report.get('passes', {}).values()):
            for scores in results.values():
                scores.pop('texts', None)
        (RESULTS / name / path.name).write_text(json.dumps(report, separators=(',', ':')) + '\n')


def section(folder: Path) -> str:
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]
    parts = [f'## {folder.name.replace("_", " ").capitalize()}\n']
    if (folder / 'notes.md').exists():
        parts.append((folder / 'notes.md').read_text())
    bases = {r['base'] for r in reports if r.get('base')}
    if any(r['contestant'] in bases for r in reports) and sum(bool(r.get('base')) for r in reports) > len(reports) / 2:
        return '\n'.join(parts + ablation_tables(reports))
    rows = [
        [
            r['contestant'], f'{r["parameters"] / 1e6:.1f}M', f'{r["steps"]} of {r["planned_steps"]}',
            f'{r["train_seconds"]:.0f}', f'{r["gpu_gib"]:.1f}' if r['gpu_gib'] else '-', f'{r["log"][-1]["loss"]:.2f}',
        ]
        for r in reports
    ]  # fmt: skip
    parts.append(table(['contestant', 'parameters', 'steps', 'seconds', 'GPU GiB', 'last loss'], rows))
    steps = sorted(set.intersection(*({row['step'] for row in r['log']} for r in reports)))
    losses = [[r['contestant']] + [f'{_loss(r, s):.2f}' for s in _some(steps)] for r in reports]
    parts.append('Training loss at equal steps:\n')
    parts.append(table(['contestant', *(f'step {s}' for s in _some(steps))], losses))
    parts.append(f'![Loss against steps](figures/{_figure(folder, reports)})\n')
    names = [n for n in max((r['scores'] for r in reports), key=len) if not n.endswith(FROZEN)]
    for title, cell in (
        ('WER in %, with 95% bootstrap intervals over the rows of a set:\n', percent), ('CER in %:\n', characters)
    ):  # fmt: skip
        rows = [[n, *(cell(r['scores'].get(n)) for r in reports)] for n in names]
        parts += [title, table(['set', *(r['contestant'] for r in reports)], rows)]
    for r in reports:
        if any(n.endswith(FROZEN) for n in r['scores']):
            both = [(n, r['scores'][n], r['scores'][n + FROZEN]) for n in names if n + FROZEN in r['scores']]
            parts.append(f'{r["contestant"]}, the same weights with its memory learning and frozen:\n')
            head = ['set', 'learning', 'frozen', 'errors by learning']
            parts.append(table(head, [[n, percent(a), percent(b), gain(a, b)] for n, a, b in both]))
    return '\n'.join(parts)


def _some(steps: list[int]) -> list[int]:
    return steps[:: max(1, len(steps) // 5)]


def _loss(report: dict, step: int) -> float:
    return next(row['loss'] for row in report['log'] if row['step'] == step)


def _figure(folder: Path, reports: list[dict]) -> str:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for r in reports:
        axes.plot([row['step'] for row in r['log']], [row['loss'] for row in r['log']], label=r['contestant'])
    axes.set(xlabel='step', ylabel='CTC loss in training')
    axes.legend()
    figure.tight_layout()
    name = f'accuracy-{folder.name}.png'
    figure.savefig(ROOT / 'docs/figures' / name, dpi=110)
    return name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--keep', type=Path, help='folder with reports of train.py')
    parser.add_argument('--name', help='what to keep them as')
    args = parser.parse_args()
    if args.keep:
        if not args.name:
            raise SystemExit('--keep needs --name')
        keep(args.keep, args.name)
    notes = Path(__file__).with_name('notes.md').read_text()
    head = '# Accuracy\n\n<!-- Made by benchmarks/accuracy/report.py: change its notes. -->\n\n'
    sections = [section(folder) for folder in sorted(RESULTS.iterdir()) if folder.is_dir()]
    if (RESULTS / 'precision.json').exists():
        sections.append(precision_section(json.loads((RESULTS / 'precision.json').read_text())))
    if (RESULTS / 'probe.json').exists():
        probe = json.loads((RESULTS / 'probe.json').read_text())
        sections.append(probe_section(probe, (RESULTS / 'probe.md').read_text()))
    (ROOT / 'docs/accuracy.md').write_text(head + notes + '\n' + '\n'.join(sections))


if __name__ == '__main__':
    main()
