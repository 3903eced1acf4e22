"""GPU-hours of the LibriSpeech recipe, from the training steps that speed.py measured.

    python benchmarks/librispeech_budget.py            # the table
    python benchmarks/librispeech_budget.py --write    # put it into docs/librispeech.md

Reads results/speed_gpu*.json. A step there is the encoder's forward and backward pass alone.
"""

import argparse
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / 'docs' / 'librispeech.md'
HOURS = 960  # train-clean-100, train-clean-360 and train-other-500, by their name
STEPS, BATCH_SECONDS = 200_000, 300  # scripts/train_librispeech.sh --size full, one GPU
COLUMNS = (
    'encoder', 'parameters', 'batch', 'GPU', 'measured', 'ms a step', 'hours of audio a GPU-hour',
    f'GPU-hours for one pass of {HOURS} h', 'GPU-hours for the recipe',
)  # fmt: skip
START, END = '<!-- Made by benchmarks/librispeech_budget.py --write. -->\n', '<!-- End of that. -->\n'


def measured(folder: Path) -> list[tuple[dict, dict]]:
    """(report, row) of each training step that was measured on a GPU, those of the same batch together.

    Raises:
        FileNotFoundError: there is none.
    """
    found = []
    for path in sorted(folder.glob('speed_gpu*.json')):
        report = json.loads(path.read_text(encoding='utf-8'))
        rows = [row for row in report['rows'] if row.get('training') and row.get('ms')]
        found += [(report, row) for row in rows if report['device'].startswith('NVIDIA')]
    if not found:
        raise FileNotFoundError(f'no training step in {folder}/speed_gpu*.json; run benchmarks/speed.py on a GPU')
    return sorted(found, key=lambda pair: (pair[1]['seconds'], pair[1]['rows']))


def budget(row: dict) -> tuple[float, float, float]:
    """(hours of audio a GPU-hour, GPU-hours for a pass, GPU-hours for the recipe) of one measured row."""
    speed = row['rows'] * row['seconds'] / (row['ms'] / 1000)
    return speed, HOURS / speed, STEPS * BATCH_SECONDS / 3600 / speed


def table(folder: Path) -> str:
    """The Markdown table."""
    lines = [COLUMNS, ['---'] * len(COLUMNS)]
    for report, row in measured(folder):
        speed, one, recipe = budget(row)
        size = report['parameters'].get(row['contestant'])
        lines.append([
            row['contestant'], f'{size / 1e6:.0f}M' if size else '', f'{row["rows"]} x {row["seconds"]} s',
            report['device'].removeprefix('NVIDIA '), f'{report["date"]}, {report["commit"]}, {row["precision"]}',
            f'{row["ms"]:.0f}', f'{speed:.0f}', f'{one:.2f}', f'{recipe:.1f}',
        ])  # fmt: skip
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def write(page: Path, text: str) -> None:
    """Put the table between the marks of the page."""
    before = page.read_text(encoding='utf-8')
    after, found = re.subn(f'(?s)(?<={re.escape(START)}).*?(?={re.escape(END)})', lambda _: f'\n{text}\n', before)
    if found != 1:
        raise ValueError(f'{page}: no marks for the table, {START.strip()} and {END.strip()}')
    page.write_text(after, encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=HERE / 'results', help='folder of the JSON files')
    parser.add_argument('--write', action='store_true', help='put the table into docs/librispeech.md')
    args = parser.parse_args()
    text = table(args.results)
    print(text, end='')
    if args.write:
        write(PAGE, text)


if __name__ == '__main__':
    try:
        main()
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f'librispeech_budget.py: {error}')
