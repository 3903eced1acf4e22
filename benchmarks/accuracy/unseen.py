"""Sessions of espeak-ng's voices that no training has, saying texts that no training says, as a NeMo manifest.

    python benchmarks/accuracy/unseen.py OUT --texts texts.txt --seconds 150
    nemo-lact data noisy OUT/unseen.json --by speaker --snr 3 15 -o OUT/noisy.json
    nemo-lact data longform OUT/noisy.json --by speaker --seconds 230 --write-audio OUT/long -o OUT/long.json
    nemo-lact evaluate OUT/long.json -m model.nemo --adaptation -b 4

Each variant of corpus.HELD_OUT in two accents, with --exchange each with sounds that change places; writes
OUT/unseen.json and a FLAC file for each utterance.
"""

import argparse
import random
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from accents import EXCHANGES
from corpus import HELD_OUT, RATE, TESTED, Job, load, parts, speak

from nemo_lact.data import audio
from nemo_lact.data.manifests import write_manifest

ACCENTS = ('en-us', 'en-gb-scotland')
FIRST = EXCHANGES + TESTED + 100  # accents that neither training nor the tests of corpus.py have


def utterances(folder: Path, texts: tuple[str, ...], seconds: float, exchange: bool = False) -> Iterator[dict]:
    """Rows of a manifest in `folder`, whose audio is written; `seconds` of each voice."""
    rng = random.Random(5)
    for i, (accent, variant) in enumerate(product(ACCENTS, HELD_OUT)):
        voice = f'{accent}+{variant}', rng.randrange(25, 76, 2), rng.randrange(130, 206, 5)  # pitch, words a minute
        voice = (*voice, FIRST + i) if exchange else voice
        with tempfile.TemporaryDirectory() as shards:
            speak(Path(shards), Job('session', seconds / 3600, texts, i, voice=voice))
            for n, row in enumerate(load(Path(shards), 'session')):
                name = f's{i}-{n:03d}.flac'
                duration = round(audio.write(folder / name, row['sound'] / 32767, RATE), 3)  # int16 as speak scales it
                yield dict(audio_filepath=name, duration=duration, text=row['text'], speaker=row['speaker'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('output', type=Path)
    parser.add_argument('--texts', type=Path, required=True, help='of texts.py; the test texts are said')
    parser.add_argument('--seconds', type=float, default=150.0, help='of each voice')
    parser.add_argument('--exchange', action='store_true', help='accents in which pairs of sounds change places')
    args = parser.parse_args()
    _, texts = parts(args.texts.read_text().splitlines())
    if not texts:
        parser.error(f'--texts {args.texts}: no test text in it; benchmarks/accuracy/texts.py makes such files')
    write_manifest(args.output / 'unseen.json', utterances(args.output, texts, args.seconds, args.exchange))


if __name__ == '__main__':
    main()
