"""WER of one long session a voice, its memory frozen and with several `lact_retention`s: the same weights.

    python benchmarks/accuracy/corpus.py CORPUS --texts texts.txt --hours 0.1 --test-hours 3
    python benchmarks/accuracy/retention.py MODEL.nemo --corpus CORPUS --output retention.json

Retention has no weights of its own, so a model trained with one value can be run with another. An utterance shorter
than a chunk of the memory has the same text with any.
"""

import argparse
import json
import shlex
import sys
import time
from datetime import date
from pathlib import Path

import torch
from corpus import load
from feed import RATE
from nemo.collections.asr.models import ASRModel
from score import count, sessions, transcribe

import nemo_lact  # noqa: F401  registers LaCTEncoder with NeMo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path)
    parser.add_argument('--corpus', type=Path, required=True)
    parser.add_argument('--seconds', type=float, default=3600, help='of each voice')
    parser.add_argument('--retention', type=float, nargs='*', default=[1.0, 0.9, 0.8, 0.5])
    parser.add_argument('--output', type=Path)
    args = parser.parse_args()
    model = ASRModel.restore_from(str(args.model), map_location='cpu')
    model.eval().to('cuda' if torch.cuda.is_available() else 'cpu')
    config = model.encoder.config
    report = dict(
        model=args.model.name, device=str(model.device), date=date.today().isoformat(),
        command=shlex.join(['python', *sys.argv]), rows=[],
    )  # fmt: skip
    for path in sorted(args.corpus.glob('test-voice*.jsonl')):
        kept, seconds = [], 0.0
        for row in load(args.corpus, path.stem):
            kept.append(row)
            seconds += row['samples'] / RATE
            if seconds > args.seconds:
                break
        session = sessions(kept, float('inf'))
        for retention in (None, *args.retention):
            model.encoder.adaptation = retention is not None
            config.lact_retention = retention or 1.0
            began = time.monotonic()
            found = count(session, transcribe(model, session, False))
            row = dict(voice=path.stem, seconds=seconds, retention=retention, words=found['words'], wer=found['wer'])
            report['rows'].append({**row, 'took': time.monotonic() - began})
            how = 'frozen' if retention is None else f'retention {retention}'
            print(f'{path.stem:14s} {seconds:6.0f} s  {how:14s} WER {found["wer"]:.2%}', flush=True)
            if args.output:
                args.output.write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
