"""Does it help to have heard it before? WER of short sessions, and of the same with every utterance a second time.

    python benchmarks/accuracy/corpus.py CORPUS --texts texts.txt --hours 0.1 --test-hours 0.2
    python benchmarks/accuracy/again.py MODEL.nemo --corpus CORPUS --output again.json

Each in its own noise and room, the memory learning and frozen. A model that recognises what comes again has fewer
errors in the second.
"""

from collections.abc import Iterator
from pathlib import Path

from feed import RATE
from score import count, sessions, transcribe
from voices import Report, held_out, options, restored

UTTERANCES = 12  # of a session


def drawn(corpus: Path, most: float) -> Iterator[list[dict]]:
    """Utterances of a session each, of every held-out voice up to `most` seconds."""
    for _, rows in held_out(corpus):
        seconds = 0.0
        for i in range(0, len(rows), UTTERANCES):
            if seconds >= most:
                break
            yield rows[i : i + UTTERANCES]
            seconds += sum(row['samples'] for row in rows[i : i + UTTERANCES]) / RATE


def main() -> None:
    args = options(__doc__, seconds=500).parse_args()
    model = restored(args.model)
    report, said = Report(args, model), list(drawn(args.corpus, args.seconds))
    for learning in (True, False):
        model.encoder.adaptation = learning
        for times in (1, 2):
            rows = [session for part in said for session in sessions(part * times, float('inf'))]
            found = count(rows, transcribe(model, rows, True))
            report.add(learning=learning, times=times, **found)
            how = 'learning' if learning else 'frozen'
            print(f'{how:8s} each {times} times  WER {found["wer"]:.2%}', flush=True)


if __name__ == '__main__':
    main()
