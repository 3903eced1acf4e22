"""What a model knows by heart: WER on texts that training has said and others, in voices that it has heard and others.

    python benchmarks/accuracy/overfit.py MODEL.nemo --texts texts.txt --seconds 2400 --output overfit.json

espeak-ng says new utterances of texts.py's training and test texts, in voices drawn as corpus.py draws
those of training and in its test voices. They come clean, one by one.
"""

import tempfile
from itertools import product
from pathlib import Path

from corpus import TEST, Job, load, parts, speak
from score import count, transcribe
from voices import Report, restored, script_options


def utterances(folder: Path, texts: tuple[str, ...], seconds: float, held_out: bool) -> list[dict]:
    """Rows as `corpus.load` has them, `seconds` in all; shards go to `folder`."""
    voices = TEST if held_out else [None]
    for i, voice in enumerate(voices):
        speak(folder, Job(f'part{i}', seconds / len(voices) / 3600, texts, 1000 + i, voice=voice, utterances=5))
    return load(folder, 'part')


def main() -> None:
    parser = script_options(__doc__)
    parser.add_argument('--texts', type=Path, required=True, help='of texts.py, as the training had it')
    parser.add_argument('--seconds', type=float, default=2400.0, help='of each of the four sets')
    args = parser.parse_args()
    model = restored(args.model)
    report = Report(args, model)
    lines = dict(zip(('train', 'test'), parts(args.texts.read_text().splitlines())))
    for (part, texts), held_out in product(lines.items(), (False, True)):
        if not texts:
            parser.error(f'--texts {args.texts}: none for {part}; benchmarks/accuracy/texts.py makes such files')
        with tempfile.TemporaryDirectory() as folder:
            rows = utterances(Path(folder), texts, args.seconds, held_out)
            found = count(rows, transcribe(model, rows, False))
        report.add(texts=part, held_out_voices=held_out, **found)
        voices = 'voices held out' if held_out else 'voices of training'
        print(f'{part:5s} texts, {voices:18s} WER {found["wer"]:.2%}  CER {found["cer"]:.2%}', flush=True)


if __name__ == '__main__':
    main()
