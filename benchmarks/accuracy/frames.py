"""symbols.py on speech: what was meant is to be said of every frame of log mel features. On a CPU, 20 minutes a run.

    python benchmarks/accuracy/frames.py make frames.pt --texts texts.txt definitions.txt
    python benchmarks/accuracy/frames.py memories --data frames.pt --output frames.json

A session is 30 s of one of espeak-ng's speakers, whose accent is as in symbols.py. Its sounds and their places come
from espeak-ng; what was meant is what the same voice says without the accent. Voices, accents and texts of the tests
are those of corpus.py's tests.
"""

import argparse
import ctypes
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import symbols
import torch
from accents import EXCHANGES, Accented
from corpus import HELD_OUT, RATE, TEST, TESTED, VARIETIES, parts
from symbols import CONTESTANTS, MUON, PLAIN, SAME, Contestant, Net, train

from nemo_lact.data import audio, espeak
from nemo_lact.data.synthetic import VARIANTS

FRAMES = 768  # of 40 ms
MELS = 40  # of 10 ms; a frame is four of them
NOISE = 0.4  # on features of deviation 1
TEXTS = 20000  # of training
SILENCE = ('_:', '_', '_!', ';')
RARE = 50  # frames of a sound that is not counted
PHONEME, PHONEME_EVENTS = 7, 1  # espeak_EVENT_TYPE, option of espeak_Initialize
LONG, LONGEST = (dict(lact_chunk_size=size, lact_retention=0.97 ** (size / 96)) for size in (256, FRAMES))
WIDE = dict(att_context_size=[128, 128])
FIGHT = WIDE | LONGEST  # as in the fights: windows of 5 s beside long chunks
ALL = CONTESTANTS | {
    'wide window': Contestant(WIDE),
    'wide window, early memories, chunks of 31 s': Contestant(FIGHT, (1, 2)),
    'wide window, late memories, chunks of 31 s': Contestant(FIGHT, (3, 4)),
    'wide window, three memories, chunks of 31 s': Contestant(FIGHT, (1, 2, 3)),
    'wide window, memories, chunks of 31 s': Contestant(FIGHT, tuple(range(6))),
    'wide window, early memories, chunks of 31 s, Muon': Contestant(FIGHT | MUON, (1, 2)),
    'wide window, early memories, chunks of 31 s, rotary': Contestant(FIGHT | dict(ttt_nope=False), (1, 2)),
    'wide window, early memories, chunks of 31 s, steps of 0.2': Contestant(FIGHT | dict(base_lr=0.2), (1, 2)),
    'early memories': Contestant(memories=(1, 2)),
    'early memories, own projections': Contestant(memories=(1, 2), own=True),
    'early memories, chunks of 10 s': Contestant(LONG, (1, 2)),
    'early memories, chunks of 31 s': Contestant(LONGEST, (1, 2)),
    'one memory, chunks of 10 s': Contestant(LONG, (1,)),
    'one memory, chunks of 31 s': Contestant(LONGEST, (1,)),
    'memories, chunks of 31 s': Contestant(LONGEST, tuple(range(6))),
    'late memories': Contestant(memories=(3, 4)),
}


class _Event(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ('type', 'id', 'text', 'length', 'milliseconds', 'sample')),
        ('data', ctypes.c_void_p), ('name', ctypes.c_char * 8),
    ]  # fmt: skip


class Speaker(Accented):
    """espeak-ng with accents that says when which sound begins."""

    def __init__(self):
        usual, espeak.DO_NOT_EXIT = espeak.DO_NOT_EXIT, espeak.DO_NOT_EXIT | PHONEME_EVENTS
        try:
            super().__init__()
        finally:
            espeak.DO_NOT_EXIT = usual
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
        self.events: list[tuple[int, str]] = []
        self._own = kind(self._receive)
        self.espeak._library.espeak_SetSynthCallback(self._own)

    def _receive(self, samples, count, events) -> int:
        place = 0
        while events and events[place].type:
            if events[place].type == PHONEME:
                name = events[place].name.decode('utf8', 'replace').strip("',%=|")
                self.events.append((events[place].milliseconds, SAME.get(name, name)))
            place += 1
        return self.espeak._receive(samples, count, None)

    def spoken(self, *who) -> tuple[np.ndarray, list[tuple[int, str]]]:
        """Samples, and where sounds begin, in ms."""
        self.events = []
        return self.say(*who), self.events


@lru_cache(maxsize=1)
def speaker() -> Speaker:
    return Speaker()


@lru_cache(maxsize=1)
def filters() -> np.ndarray:
    """Mel filters from 40 to 7600 Hz for a spectrum of 512 points, [MELS, 257]."""
    mel = np.linspace(*(2595 * np.log10(1 + hertz / 700) for hertz in (40, 7600)), MELS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1) / RATE * 512
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.arange(257)
    return np.maximum(0, np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)))


def features(samples: np.ndarray) -> np.ndarray:
    """[T] at 16 kHz -> [frames of 40 ms, 4 · MELS] log mel."""
    count = (len(samples) - 400) // 160 + 1
    windows = samples[np.arange(400) + 160 * np.arange(count)[:, None]] * np.hanning(400)
    power = np.abs(np.fft.rfft(windows, 512)) ** 2
    return np.log(power @ filters().T + 1e-6).astype(np.float32)[: count // 4 * 4].reshape(-1, 4 * MELS)


def session(seed: int, tested: bool, plain: float, texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Features [FRAMES, 4 · MELS] fp16, and the sound meant in each frame."""
    rng, voice = random.Random(f'{seed} {tested}'), TEST[seed % len(TEST)]
    if not tested:
        variety, variant = rng.choice(VARIETIES), rng.choice([v for v in VARIANTS if v not in HELD_OUT])
        voice = f'{variety}+{variant}', rng.randrange(20, 81, 2), rng.randrange(120, 216, 5)
    accent = None if rng.random() < plain else EXCHANGES + TESTED * tested + rng.randrange(TESTED)
    found, meant = [], []
    while len(meant) < FRAMES:
        text = rng.choice(texts)
        samples, heard = speaker().spoken(text, *voice, accent)
        said = heard if accent is None else speaker().spoken(text, *voice)[1]
        samples = audio.resample(samples, speaker().sample_rate, RATE)
        if len(said) != len(heard) or not said or len(samples) < RATE // 8:
            continue
        x = features(np.pad(0.5 * samples / max(1e-3, np.abs(samples).max()), 200))
        begins = [milliseconds for milliseconds, _ in heard]
        places = np.searchsorted(begins, np.arange(len(x)) * 40 + 20, side='right') - 1  # in the middle of the frame
        meant += [said[place][1] if place >= 0 else '' for place in places]
        found.append(x)
    return np.concatenate(found)[:FRAMES].astype(np.float16), meant[:FRAMES]


def make(path: Path, texts: list[str], count: int, tests: int, jobs: int) -> None:
    """`count` sessions of training, `tests` with accents and half as many without, into a file."""
    trained, tested = parts(texts)
    trained = random.Random(0).sample(trained, min(TEXTS, len(trained)))
    wanted = [(i, False, PLAIN, trained) for i in range(count)]
    wanted += [(i, True, 0.0, tested) for i in range(tests)]
    wanted += [(1000 + i, True, 1.0, tested) for i in range(tests // 2)]
    with ProcessPoolExecutor(jobs) as pool:
        made = list(pool.map(session, *zip(*wanted), chunksize=16))
    frames = Counter(name for _, meant in made for name in meant)
    kept = sorted(name for name, often in frames.items() if name not in ('', *SILENCE) and often > RARE)
    ids = {name: i for i, name in enumerate(kept)}
    y = torch.tensor([[ids.get(name, -1) for name in meant] for _, meant in made])
    x = torch.from_numpy(np.stack([x for x, _ in made]))
    torch.save(dict(x=x, y=y, names=kept, train=count, accents=tests), path)


class Sessions:
    """As symbols.Sessions: batches in order from a file of `make`, with mean and deviation of its training."""

    def __init__(self, data: dict, start: int, stop: int, seed: int):
        self.mean, self.deviation = data['mean'], data['deviation']  # [4 · MELS]
        self.x, self.y = data['x'][start:stop], data['y'][start:stop]
        self.noise, self.order, self.at = torch.Generator().manual_seed(seed), [], 0
        self.frames, self.shuffled = self.x.size(1), start == 0

    def batch(self, rows: int, plain: float) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, 4 · MELS], meant [B, T]; `plain` is what the file has."""
        while len(self.order) < self.at + rows:
            count = len(self.x)
            order = torch.randperm(count, generator=self.noise) if self.shuffled else torch.arange(count)
            self.order += order.tolist()
        some, self.at = self.order[self.at : self.at + rows], self.at + rows
        x = (self.x[some].float() - self.mean) / self.deviation
        return x + NOISE * torch.randn(x.shape, generator=self.noise), self.y[some]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True, metavar='make | contestant')
    making = commands.add_parser('make', help='sessions, into a file')
    making.add_argument('data', type=Path)
    making.add_argument('--texts', type=Path, nargs='+', required=True, help='of texts.py')
    making.add_argument('--sessions', type=int, default=1600, help='of training')
    making.add_argument('--tests', type=int, default=192, help='with an accent; half as many without')
    making.add_argument('--jobs', type=int, default=2)
    for name in ALL:
        running = commands.add_parser(name)
        running.add_argument('--data', type=Path, required=True)
        running.add_argument('--output', type=Path, required=True, help='JSON; a result of the same name is replaced')
        running.add_argument('--steps', type=int, default=500)
        running.add_argument('--rows', type=int, default=8, help='sessions of a step')
        running.add_argument('--lr', type=float, default=1.5e-3)
        running.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.command == 'make':
        texts = [text for path in args.texts for text in path.read_text().splitlines()]
        make(args.data, texts, args.sessions, args.tests, args.jobs)
        return
    data = torch.load(args.data)
    some = data['x'][: data['train']].float()
    data |= dict(mean=some.mean((0, 1)), deviation=some.std((0, 1)))
    del some
    torch.manual_seed(args.seed)
    net = Net(ALL[args.command], len(data['names']), 4 * MELS)
    began = time.monotonic()

    def tell(step: int, value: float) -> None:
        if step % 50 == 0:
            print(f'{args.command} {step:5d} loss {value:.3f}  {time.monotonic() - began:.0f} s', flush=True)

    start, accents, end = data['train'], data['train'] + data['accents'], len(data['x'])
    train(net, Sessions(data, 0, start, args.seed), args.steps, args.rows, args.lr, tell)
    net.eval()
    result = dict(
        contestant=args.command, seed=args.seed, steps=args.steps, rows=args.rows,
        parameters=sum(p.numel() for p in net.parameters()), date=date.today().isoformat(), errors={},
    )  # fmt: skip
    for name, first, last in (('accents', start, accents), ('plain', accents, end)):
        symbols.test(net, result, name, partial(Sessions, data, first, last, 5), last - first, 0.0)
    symbols.keep(args.output, result)


if __name__ == '__main__':
    main()
