"""One long session of each held-out voice, for scripts that score the same weights in several ways."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
from corpus import load
from feed import RATE
from nemo.collections.asr.models import ASRModel
from score import sessions

import nemo_lact  # noqa: F401  registers LaCTEncoder with NeMo


def script_options(doc: str) -> argparse.ArgumentParser:
    """Model, and where the report goes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path)
    parser.add_argument('--output', type=Path)
    return parser


def options(doc: str, seconds: float) -> argparse.ArgumentParser:
    """Also the corpus, and seconds of each voice."""
    parser = script_options(doc)
    parser.add_argument('--corpus', type=Path, required=True)
    parser.add_argument('--seconds', type=float, default=seconds, help='of each voice')
    return parser


def restored(path: Path) -> ASRModel:
    """For evaluation, on the GPU if there is one."""
    model = ASRModel.restore_from(str(path), map_location='cpu')
    return model.eval().to('cuda' if torch.cuda.is_available() else 'cpu')


def held_out(corpus: Path, shards: str = 'test-voice') -> Iterator[tuple[str, list[dict]]]:
    """Name of each held-out voice, and its rows; `shards`: how the names begin.

    Raises:
        FileNotFoundError: the corpus has none.
    """
    for name in sorted(path.stem for path in corpus.glob(f'{shards}*.jsonl')) or [shards]:
        yield name, load(corpus, name)


def voices(corpus: Path, most: float, shards: str = 'test-voice') -> Iterator[tuple[str, float, list[dict]]]:
    """Name of each voice, its seconds, and its utterances as one session; the one that passes `most` ends it.

    Args:
        shards: how the names of the voices begin.

    Raises:
        FileNotFoundError: the corpus has none.
    """
    for name, rows in held_out(corpus, shards):
        kept, seconds = [], 0.0
        for row in rows:
            kept.append(row)
            seconds += row['samples'] / RATE
            if seconds > most:
                break
        yield name, seconds, sessions(kept, float('inf'))


class Report:
    """What was run on what, and a row each time; the file is written anew with every row."""

    def __init__(self, args: argparse.Namespace, model: ASRModel):
        self.output, self.rows = args.output, []
        self.head = dict(
            model=args.model.name, device=str(model.device), date=date.today().isoformat(),
            command=shlex.join(['python', *sys.argv]),
        )  # fmt: skip

    def add(self, **row) -> None:
        self.rows.append(row)
        if self.output:
            self.output.write_text(json.dumps(self.head | dict(rows=self.rows), indent=1))
