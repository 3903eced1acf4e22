#!/usr/bin/env python3
"""More training speech from little: words of the training prompts cut out and joined to new sentences.

    python scripts/splice_speech.py data/asterisk_en/train.json FOLDER --rows 3900

A model that hears the same 390 sentences fifty times learns the sentences, not the words. A share of the rows written
here joins runs of one or two words of any prompts, cut at the word ends in word_ends.json beside the manifest; the
others are the prompts themselves. Every row has a speed of its own. Writes FOLDER/train.json (a NeMo manifest) and
FOLDER/audio/*.wav, which also load several times as fast as the compressed prompts. The same arguments give the same
files.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16000
SPEED = (0.9, 1.1)
GAIN_DB = (-4.0, 4.0)  # of one run against the others of its row
LONGEST_RUN = 2  # words taken together from one prompt
SHORTEST_WORD = 0.1  # seconds; the alignment did not find the shorter ones
LONGEST_ROW = 12  # words joined, about
LONGEST_SECONDS = 22.0
LETTERS_PER_SECOND = 22.0  # more than CTC can place in its 25 frames a second, with blanks between equal letters

Prompt = tuple[np.ndarray, list[tuple[str, int, int]]]  # samples, and each word with its first and last sample


def load(manifest: Path) -> list[Prompt]:
    """The prompts of a manifest, cut into words.

    Raises:
        ValueError: audio that is not 16 kHz mono, or word ends that do not fit a prompt's text.
    """
    ends = json.loads((manifest.parent / 'word_ends.json').read_text(encoding='utf-8'))
    prompts = []
    for line in manifest.read_text(encoding='utf-8').splitlines():
        row = json.loads(line)
        name, words = row['audio_filepath'], row['text'].split()
        samples, rate = soundfile.read(manifest.parent / name, dtype='float32')
        if rate != RATE or samples.ndim != 1:
            raise ValueError(f'{name}: {rate} Hz, {samples.ndim} dimensions; this takes {RATE} Hz, one channel')
        borders = [0] + [round(end * rate) for end in ends.get(name, [])]
        if len(borders) != len(words) + 1:
            raise ValueError(f'{name}: {len(words)} words but {len(borders) - 1} ends in word_ends.json')
        prompts.append((samples, list(zip(words, borders, borders[1:]))))
    return prompts


def at_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Played `factor` times as fast; the pitch moves along."""
    return soxr.resample(samples, RATE * factor, RATE, quality='MQ').astype(np.float32)


def spliced(prompts: list[Prompt], count: int, rng: random.Random) -> tuple[np.ndarray, str]:
    """At least `count` words from any prompts, as (samples, text)."""
    pieces, words = [], []
    while len(words) < count:
        samples, spans = rng.choice(prompts)
        first = rng.randrange(len(spans))
        run = spans[first : first + rng.randint(1, LONGEST_RUN)]
        if any(end - start < SHORTEST_WORD * RATE for _, start, end in run):
            continue
        pieces.append(10 ** (rng.uniform(*GAIN_DB) / 20) * samples[run[0][1] : run[-1][2]])
        words += [word for word, _, _ in run]
    return np.concatenate(pieces), ' '.join(words)


def usable(samples: np.ndarray, text: str) -> bool:
    seconds = len(samples) / RATE
    return seconds <= LONGEST_SECONDS and len(text) <= LETTERS_PER_SECOND * seconds


def write(manifest: Path, folder: Path, rows: int, share: float = 0.5, seed: int = 0) -> Path:
    """Write `rows` rows, of which `share` are joined from pieces; returns their manifest.

    A manifest that is there is complete and is kept.
    """
    target = folder / 'train.json'
    if target.is_file():
        return target
    (folder / 'audio').mkdir(parents=True, exist_ok=True)
    prompts, rng, lines = load(manifest), random.Random(seed), []
    for index in range(rows):
        prompt, spans = prompts[index % len(prompts)]
        speed, joined = rng.uniform(*SPEED), rng.random() < share
        samples, text = at_speed(prompt, speed), ' '.join(word for word, _, _ in spans)
        while joined or not usable(samples, text):
            samples, text = spliced(prompts, min(max(len(spans), 2), LONGEST_ROW), rng)
            samples, joined = at_speed(samples, speed), False
        name = f'audio/{index:05d}.wav'
        soundfile.write(folder / name, np.clip(samples, -1, 1), RATE, subtype='PCM_16')
        lines.append(json.dumps({'audio_filepath': name, 'duration': round(len(samples) / RATE, 3), 'text': text}))
    part = target.with_suffix('.part')
    part.write_text('\n'.join(lines) + '\n', encoding='utf-8')
    part.rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('manifest', type=Path)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--rows', type=int, default=3900)
    parser.add_argument('--share', type=float, default=0.5, help='of the rows that is joined from pieces')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    print(write(args.manifest, args.folder, args.rows, args.share, args.seed))


if __name__ == '__main__':
    main()
