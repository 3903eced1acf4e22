"""Synthetic speech in bulk: many espeak-ng speakers, flite's voices where flite is, and any manifests, as raw shards.

    python benchmarks/accuracy/corpus.py OUT --texts texts.txt --hours 30 --flite-hours 3 \\
        --manifests natural:natural/natural.json asterisk:data/asterisk_en/train.json

An utterance is in OUT/<shard>.i16 (16 kHz int16, end to end) and a line of OUT/<shard>.jsonl: start, samples, text,
speaker, source. Training shards speak the texts that texts.py gives to training, in voices that no test shard has;
test shards hold an hour of each of three held-out voices, all with the same words in another order. With --fields there
are shards whose speakers say definitions of one field, one after another, so that words come again within a session;
with --accents that share of espeak-ng's speakers has an accent (accents.py; with --exchange those in which sounds
change places), and there are held-out voices with two each. --drawn makes shards to choose settings by: speakers drawn
as those of training, who say the texts of the tests. `load` reads a folder.
"""

import argparse
import json
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import flite
import numpy as np
from accents import EXCHANGES, accented
from texts import split

from nemo_lact.data import audio
from nemo_lact.data.synthetic import VARIANTS

RATE = 16000
VARIETIES = ['en-us'] * 5 + ['en-gb-x-rp', 'en-gb-scotland', 'en-029']
HELD_OUT = ('f3', 'm5', 'Annie', 'Mike', 'linda', 'Diogo')  # variants that speak in tests only
TEST = [('en-us+f3', 55, 165), ('en-gb-x-rp+Annie', 50, 155), ('en-us+Mike', 40, 190)]
DRAWN = 7000  # the first seed of `drawn`; shards of training have those below and from 10**6
TESTED = 10**6  # the first accent of the tests; training has those below. Those that exchange begin at EXCHANGES
FLITE = {'slt': (150, 190), 'rms': (85, 115), 'awb': (95, 130)}  # Hz, mean pitch


@dataclass(frozen=True)
class Job:
    """One shard: `hours` of speech by one process."""

    name: str
    hours: float
    texts: tuple[str, ...]
    seed: int
    engine: str = 'espeak'
    voice: tuple | None = None  # voice, pitch, rate and, maybe, accent; None draws speakers
    utterances: int = 40  # per speaker
    accents: float = 0.0  # share of the speakers drawn that have one
    first_accent: int = 0
    in_order: bool = False  # each speaker says neighbours among the texts, from a place drawn for them


def drawn(count: int, hours: float, texts: tuple[str, ...], first_accent: int, accents: bool) -> list[Job]:
    """A shard of each of `count` speakers drawn as those of training, and of as many with an accent."""
    kinds = {'voice': (DRAWN, 0.0)} | ({'accents': (DRAWN + 100, 1.0)} if accents else {})
    return [
        Job(f'drawn-{kind}{i}', hours, texts, seed + i, utterances=10**9, accents=share, first_accent=first_accent)
        for kind, (seed, share) in kinds.items()
        for i in range(count)
    ]


def tests(name: str, hours: float, texts: tuple[str, ...], voices: list[tuple] = TEST, **options) -> list[Job]:
    """A shard of each held-out voice."""
    return [Job(f'test-{name}{i}', hours, texts, i, voice=v, utterances=10**9, **options) for i, v in enumerate(voices)]


class Shard:
    """Writes OUT/name.i16 and OUT/name.jsonl."""

    def __init__(self, folder: Path, name: str):
        self.sound, self.lines = open(folder / f'{name}.i16', 'wb'), open(folder / f'{name}.jsonl', 'w')
        self.samples = 0

    def add(self, samples: np.ndarray, **row) -> None:
        self.lines.write(json.dumps(dict(start=self.samples, samples=len(samples), **row)) + '\n')
        self.sound.write((samples * 32767).clip(-32768, 32767).astype(np.int16).tobytes())
        self.samples += len(samples)

    def close(self) -> None:
        self.sound.close()
        self.lines.close()


def parts(texts: list[str]) -> tuple[tuple[str, ...], ...]:
    """Those for training and those for test."""
    return tuple(tuple(t for t in texts if split(t) == part) for part in ('train', 'test'))


def speak(folder: Path, job: Job) -> float:
    """Makes one shard; returns its hours."""
    rng, shard, said = random.Random(f'{job.engine} {job.seed}'), Shard(folder, job.name), 0
    texts = job.texts if job.in_order else rng.sample(job.texts, len(job.texts))
    while shard.samples < job.hours * 3600 * RATE:
        if said % job.utterances == 0:
            who = job.voice or _draw(rng, job)
            first = rng.randrange(len(texts)) if job.in_order else 0
        text = texts[(first + said) % len(texts)]
        if job.engine == 'espeak':
            samples = audio.resample(accented().say(text, *who), accented().sample_rate, RATE)
        else:
            samples = audio.resample(*flite.say(text, *who), RATE)
        said += 1
        loud = np.flatnonzero(np.abs(samples) > 0.01)
        if len(loud) < RATE // 10:
            continue
        samples = samples[max(0, loud[0] - 800) : loud[-1] + 800]
        samples = 0.5 * samples / np.abs(samples).max()
        shard.add(samples, text=text, speaker=f'{job.engine}-{"-".join(map(str, who))}', source=job.engine)
    shard.close()
    return shard.samples / RATE / 3600


def _draw(rng: random.Random, job: Job) -> tuple:
    if job.engine == 'flite':
        voice = rng.choice(list(FLITE))
        return voice, rng.randint(*FLITE[voice]), round(rng.uniform(0.8, 1.25), 2)
    variant = rng.choice([v for v in VARIANTS if v not in HELD_OUT])
    who = f'{rng.choice(VARIETIES)}+{variant}', rng.randrange(20, 81, 2), rng.randrange(120, 216, 5)
    return (*who, job.first_accent + rng.randrange(TESTED)) if rng.random() < job.accents else who


def copy(folder: Path, name: str, source: str, manifest: Path) -> float:
    """A NeMo manifest as a shard; returns its hours."""
    shard = Shard(folder, name)
    for line in manifest.read_text().splitlines():
        row = json.loads(line)
        samples = audio.resample(*audio.read(manifest.parent / row['audio_filepath']), RATE)
        samples = 0.5 * samples / max(0.01, np.abs(samples).max())
        shard.add(samples, text=row['text'], speaker=row.get('speaker', source), source=source)
    shard.close()
    return shard.samples / RATE / 3600


def load(folder: Path, names: str = 'train') -> list[dict]:
    """Rows of all shards whose name starts with `names`; `sound` is the utterance, int16 [samples], on disk."""
    rows = []
    for path in sorted(folder.glob(f'{names}*.jsonl')):
        sound = np.memmap(path.with_suffix('.i16'), np.int16, 'r')
        for line in path.read_text().splitlines():
            row = json.loads(line)
            rows.append(row | {'sound': sound[row['start'] : row['start'] + row['samples']]})
    if not rows:
        raise FileNotFoundError(f'no {names}*.jsonl in {folder}: benchmarks/accuracy/corpus.py makes them')
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('output', type=Path)
    parser.add_argument('--texts', type=Path, required=True)
    parser.add_argument('--hours', type=float, default=30.0, help='of espeak-ng for training')
    parser.add_argument('--flite-hours', type=float, default=0.0)
    parser.add_argument('--test-hours', type=float, default=1.0, help='of each of the three test voices')
    parser.add_argument(
        '--manifests', nargs='*', default=[], help='name:path; "test" in the name keeps it out of training'
    )
    parser.add_argument('--fields', type=Path, help='definitions, of texts.py; each speaker says some of one field')
    parser.add_argument('--field-hours', type=float, default=30.0, help='of them for training')
    parser.add_argument('--accents', type=float, default=0.0, help="share of espeak-ng's speakers that have one")
    parser.add_argument('--exchange', action='store_true', help='accents in which pairs of sounds change places')
    parser.add_argument('--drawn', type=int, default=0, help='voices to choose settings by; as many with accents')
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    began, texts = time.monotonic(), args.texts.read_text().splitlines()
    train, test = parts(texts)
    jobs = tests('voice', args.test_hours, test)
    accents = dict(accents=args.accents, first_accent=EXCHANGES if args.exchange else 0)
    if args.accents:
        tested = accents['first_accent'] + TESTED
        voices = [(*voice, tested + 2 * i + j) for i, voice in enumerate(TEST) for j in range(2)]
        jobs += tests('accents', args.test_hours, test, voices)
    jobs += drawn(args.drawn, args.test_hours, test, accents['first_accent'], bool(args.accents))
    jobs += [
        Job(f'train-flite{i}', args.flite_hours / 8, train, i, 'flite') for i in range(8 if args.flite_hours else 0)
    ]
    shards = max(1, 3 * args.jobs)
    jobs += [Job(f'train-espeak{i}', args.hours / shards, train, i, **accents) for i in range(shards)]
    if args.fields:
        train, test = parts(args.fields.read_text().splitlines())
        jobs += tests('fields', args.test_hours, test, in_order=True)
        hours, way = args.field_hours / shards, dict(in_order=True, **accents)
        jobs += [Job(f'train-fields{i}', hours, train, 10**6 + i, **way) for i in range(shards)]
    manifests = [m.split(':', 1) for m in args.manifests]
    with ProcessPoolExecutor(args.jobs) as pool:
        made = [pool.submit(copy, args.output, n if 'test' in n else f'train-{n}', n, Path(p)) for n, p in manifests]
        made += [pool.submit(speak, args.output, job) for job in jobs]
        hours = sum(m.result() for m in made)
    print(f'{hours:.1f} h of speech in {time.monotonic() - began:.0f} s, {args.jobs} processes')


if __name__ == '__main__':
    main()
