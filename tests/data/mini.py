"""Miniature corpora of exactly the official layouts, and small helpers of these tests."""

import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile
from typer.testing import CliRunner

from nemo_lact.cli import app

RATE = 16000
SPEAKERS_TXT = """; Some pipe(|) separated metadata about all LibriSpeech speakers
;
;ID  |SEX| SUBSET           |MINUTES| NAME
84   | F | dev-clean        |  8.02 | Christie Nowak
174  | M | dev-clean        |  8.04 | Peter Eastman
1272 | M | train-clean-100  | 25.03 | John Rose
"""
LIBRI = {  # subset -> speaker -> chapter -> utterances (seconds, text)
    'train-clean-100': {
        '1272': {'128104': [(3.0, 'MISTER QUILTER IS THE APOSTLE'), (1.5, "IT'S NOT A MAN"), (0.5, 'NO')]},
    },
    'dev-clean': {
        '84': {'121123': [(1.25, 'GO DO YOU HEAR')], '121550': [(2.0, 'BUT WITH FULL RAVISHMENT')]},
        '174': {'50561': [(0.75, 'FORGOTTEN TOO THE NAME'), (1.0, 'HE WAS LIKE UNTO MY FATHER')]},
    },
}


def run(*args, code=0):
    """The result of `nemo-lact args`, which must end with `code` and never with a traceback."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f'{result.stdout}\n{result.stderr}\n{result.exception!r}'
    assert 'Traceback' not in result.stderr
    return result


def read_rows(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding='utf-8').splitlines()]


def write_rows(path, rows) -> Path:
    path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), encoding='utf-8')
    return path


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).clip(-5, 5)


def make_librispeech(root: Path, subsets=tuple(LIBRI)) -> Path:
    """LibriSpeech/ with these subsets, named as in the official archives."""
    tree = root / 'LibriSpeech'
    for subset in subsets:
        for speaker, chapters in LIBRI[subset].items():
            for chapter, utterances in chapters.items():
                folder = tree / subset / speaker / chapter
                folder.mkdir(parents=True)
                lines = []
                for number, (seconds, text) in enumerate(utterances):
                    name = f'{speaker}-{chapter}-{number:04d}'
                    soundfile.write(folder / f'{name}.flac', noise(seconds, number), RATE)
                    lines.append(f'{name} {text}\n')
                (folder / f'{speaker}-{chapter}.trans.txt').write_text(''.join(lines))
    (tree / 'SPEAKERS.TXT').write_text(SPEAKERS_TXT)
    (tree / 'LICENSE.TXT').write_text('CC BY 4.0\n')
    return tree


def make_archive(folder: Path, subset: str) -> Path:
    tree = make_librispeech(folder / 'packing' / subset, [subset])
    archive = folder / f'{subset}.tar.gz'
    with tarfile.open(archive, 'w:gz') as tar:
        tar.add(tree, 'LibriSpeech')
    return archive
