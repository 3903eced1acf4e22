"""WER of one long session a voice, its memory frozen and with several `lact_retention`s: the same weights.

    python benchmarks/accuracy/corpus.py CORPUS --texts texts.txt --hours 0.1 --test-hours 3
    python benchmarks/accuracy/retention.py MODEL.nemo --corpus CORPUS --output retention.json

Values to train or release with are chosen on other voices: --shards drawn-voice drawn-accents, of corpus.py's --drawn.
Retention has no weights of its own, so a model trained with one value can be run with another. An utterance shorter
than a chunk of the memory has the same text with any.
"""

import time

from score import count, transcribe
from voices import Report, options, restored, voices


def main() -> None:
    parser = options(__doc__, seconds=3600)
    parser.add_argument(
        '--shards', nargs='*', default=['test-voice'], help='of the corpus, how their names begin, e.g. drawn-voice'
    )
    parser.add_argument('--retention', type=float, nargs='*', default=[1.0, 0.9, 0.8, 0.5])
    args = parser.parse_args()
    model = restored(args.model)
    report = Report(args, model)
    for voice, seconds, session in (v for shards in args.shards for v in voices(args.corpus, args.seconds, shards)):
        for retention in (None, *args.retention):
            model.encoder.adaptation = retention is not None
            model.encoder.config.lact_retention = retention or 1.0
            began = time.monotonic()
            found = count(session, transcribe(model, session, False))
            row = dict(voice=voice, seconds=seconds, retention=retention, words=found['words'], wer=found['wer'])
            report.add(**row, took=time.monotonic() - began)
            how = 'frozen' if retention is None else f'retention {retention}'
            print(f'{voice:14s} {seconds:6.0f} s  {how:14s} WER {found["wer"]:.2%}', flush=True)


if __name__ == '__main__':
    main()
