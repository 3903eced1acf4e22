"""Can a memory learn an accent while it listens? Asked without acoustics, on a CPU in half an hour a contestant.

    python benchmarks/accuracy/texts.py texts.txt
    python benchmarks/accuracy/texts.py definitions.txt --definitions
    python benchmarks/accuracy/symbols.py memories --texts texts.txt definitions.txt --output symbols.json

A frame is a sound of English as espeak-ng reads the texts, heard through noise. A session of `--frames` has an accent
of its own (accents.py: pairs of sounds change places) or, one in five, none; what was meant is to be said, frame by
frame. The layers are the package's, the upper half is told what the lower half would say. Errors are given by the place
in the session: what falls from its beginning to its end was learned from it.
"""

import argparse
import ctypes
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accents import EXCHANGES, PAIR_SHARE, PAIRS, exchanged
from conditioned import OpenMemory, separate
from corpus import TESTED, parts
from torch import Tensor, nn

from nemo_lact.data.espeak import espeak
from nemo_lact.modules.config import LaCTEncoderConfig
from nemo_lact.modules.lact_layer import LaCTLayer
from nemo_lact.ops import rotary_tables

WIDTH = 32  # channels of a sound
NOISE = 1.8  # standard deviation; a channel of a sound has 1
PLAIN = 0.2  # share of the sessions without an accent
INTER = 0.3  # share of the loss after half of the layers
PLACES = (0, 32, 64, 128, 256, 512)  # frames
SAME = {  # espeak-ng's names of one sound in several places
    'i': 'i:', 'I#': 'I', 'I2': 'I', 'a#': 'V', '@2': '@', '@-': '@', 'O2': 'O:', 't#': 't', 't2': 't', 'r-': 'r',
    'n-': 'n', 'aa': 'a', 'aI@': 'aI', 'aI3': 'aI', 'i@3': 'i@', 'O': 'O:',
}  # fmt: skip
SMALL = dict(
    d_model=96, n_layers=6, n_heads=3, num_lact_heads=2, macaron=True, conv_kernel_size=9, att_context_size=[64, 64],
    lact_chunk_size=96, use_muon=False, use_momentum=False, base_lr=0.05, lact_retention=0.97, dropout=0.0,
    dropout_pre_encoder=0.0, max_chunk_seconds=1000.0,
)  # fmt: skip
MUON = dict(use_muon=True, base_lr=0.001)


@dataclass(frozen=True)
class Contestant:
    options: dict = field(default_factory=dict)
    memories: tuple[int, ...] = ()  # layers that have one
    full: tuple[int, ...] = ()  # layers whose attention hears all of the session
    turned: float = 1.0  # share of attention's channels that have positions, those that turn fastest
    own: bool = False  # memories with projections of their own, and gates that begin open


CONTESTANTS = {
    'window': Contestant(),
    'full attention': Contestant(full=tuple(range(6))),
    'window, half turned': Contestant(turned=0.5),
    'full attention, half turned': Contestant(full=tuple(range(6)), turned=0.5),
    'memories': Contestant(memories=tuple(range(6))),
    'four memories': Contestant(memories=(2, 3, 4, 5)),
    'two memories': Contestant(memories=(3, 4)),
    'four memories, Muon': Contestant(MUON, (2, 3, 4, 5)),
    'four memories, momentum': Contestant(dict(use_momentum=True), (2, 3, 4, 5)),
    'four memories, retention 1': Contestant(dict(lact_retention=1.0), (2, 3, 4, 5)),
    'four memories, causal': Contestant(dict(lact_mode='causal'), (2, 3, 4, 5)),
}


def sounds(texts: list[str], cache: Path) -> list[list[str]]:
    """Of each text, as espeak-ng reads it; kept in a file beside the texts."""
    if not cache.exists():
        library = espeak()._library
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        library.espeak_SetVoiceByName(b'en-us')
        lines = []
        for text in texts:
            buffer = ctypes.create_string_buffer(text.encode())
            at, said = ctypes.c_void_p(ctypes.addressof(buffer)), []
            while at.value:  # clause by clause; names are parted by _
                said.append(library.espeak_TextToPhonemes(ctypes.byref(at), 1, ord('_') << 8).decode())
            lines.append(' '.join(said))
        cache.write_text('\n'.join(lines) + '\n')
    found = []
    for line in cache.read_text().splitlines():
        names = (name.strip("',%=|") for name in line.replace(' ', '_').split('_'))
        found.append([SAME.get(name, name) for name in names if any(c.isalnum() or c == '@' for c in name)])
    return found


class Sessions:
    """Batches of sessions.

    Args:
        said: sounds of each text.
        frames: of a session.
        tested: accents of the tests instead of those of training.
    """

    def __init__(self, said: list[list[str]], names: list[str], frames: int, seed: int, tested: bool):
        self.ids = {name: i for i, name in enumerate(names)}
        self.said = [np.array([self.ids[s] for s in sentence]) for sentence in said if sentence]
        self.frames, self.rng, self.first = frames, random.Random(seed), EXCHANGES + TESTED * tested
        # Sounds are the same vectors in every run; the last one is silence.
        self.vectors = torch.randn(len(names) + 1, WIDTH, generator=torch.Generator().manual_seed(0))
        self.vectors[-1] = 0
        self.noise = torch.Generator().manual_seed(seed)

    def batch(self, rows: int, plain: float) -> tuple[Tensor, Tensor]:
        """What is heard [B, T, WIDTH] and what was meant [B, T], −1 in silence."""
        silence = len(self.ids)
        heard = np.full((rows, self.frames), silence)
        meant = np.full((rows, self.frames), -1)
        for row in range(rows):
            moved = np.arange(silence)
            if self.rng.random() >= plain:
                for pair in exchanged(self.first + self.rng.randrange(TESTED), PAIR_SHARE):
                    a, b = (self.ids[sound] for sound in pair)
                    moved[a], moved[b] = b, a
            at = 0
            while at < self.frames:
                sentence = self.rng.choice(self.said)[: self.frames - at]
                meant[row, at : at + len(sentence)], heard[row, at : at + len(sentence)] = sentence, moved[sentence]
                at += len(sentence) + 1
        x = self.vectors[torch.from_numpy(heard)]
        return x + NOISE * torch.randn(x.shape, generator=self.noise), torch.from_numpy(meant)


class Net(nn.Module):
    """The package's layers; [B, T, channels] -> scores [B, T, sounds] after half of them and after all."""

    def __init__(self, contestant: Contestant, count: int, channels: int = WIDTH):
        super().__init__()
        self.config = LaCTEncoderConfig.from_kwargs(**SMALL | contestant.options)
        width, self.contestant, self.adaptation = self.config.d_model, contestant, True
        self.enter, self.head = nn.Linear(channels, width), nn.Linear(width, count)
        self.layers = nn.ModuleList(LaCTLayer(self.config) for _ in range(self.config.n_layers))
        for index, layer in enumerate(self.layers):
            if index not in contestant.memories:
                layer.mixer.memory = Silent()
            elif contestant.own:
                separate(layer.mixer.memory, OpenMemory)
        self.told = nn.Linear(count, width, bias=False)
        nn.init.zeros_(self.told.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.enter(x)  # [B, T, D]
        valid = torch.ones(x.shape[:2], dtype=torch.bool)
        config = self.config
        cos, sin = rotary_tables(torch.arange(x.size(1)), config.d_model // config.n_heads, config.rope_theta)
        kept = round(self.contestant.turned * cos.size(1))
        cos[:, kept:], sin[:, kept:] = 1.0, 0.0
        for index, layer in enumerate(self.layers):
            if index == len(self.layers) // 2:
                half = self.head(x)
                x = x + self.told(half.softmax(-1))
            window = (-1, -1) if index in self.contestant.full else config.window
            x, _ = layer(x, valid, cos, sin, window, self.adaptation, None, False)
        return half, self.head(x)


class Silent(nn.Module):
    """In place of a memory."""

    def forward(self, x: Tensor, *args) -> tuple[Tensor, None]:
        return torch.zeros_like(x), None


def loss(scores: Tensor, meant: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), meant.flatten(), ignore_index=-1)


@torch.inference_mode()
def errors(net: Net, sessions: Sessions, rows: int, plain: float) -> list[list[int]]:
    """Errors and sounds in each part of the sessions, as PLACES has them."""
    wrong, every = (torch.zeros(sessions.frames) for _ in range(2))
    for _ in range(rows // 16):
        x, meant = sessions.batch(16, plain)
        spoken = meant >= 0
        wrong += ((net(x)[1].argmax(-1) != meant) & spoken).sum(0)
        every += spoken.sum(0)
    ends = [*(p for p in PLACES[1:] if p < sessions.frames), sessions.frames]
    return [[int(wrong[a:b].sum()), int(every[a:b].sum())] for a, b in zip(PLACES, ends)]


def train(net: Net, sessions: Sessions, steps: int, rows: int, lr: float, tell: Callable[[int, float], None]) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=1e-3)
    warm = max(1, min(200, steps // 4))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1, (n + 1) / warm) * (0.5 + 0.5 * np.cos(np.pi * n / steps))
    )
    for step in range(1, steps + 1):
        x, meant = sessions.batch(rows, PLAIN)
        half, last = net(x)
        value = (1 - INTER) * loss(last, meant) + INTER * loss(half, meant)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tell(step, value.item())


def test(net: Net, result: dict, name: str, sessions: Callable, rows: int, plain: float) -> None:
    """Errors with memories learning and, if there are any, frozen, of the same new `sessions()`; into `result`."""
    for learning in (True, False) if net.contestant.memories else (True,):
        net.adaptation, which = learning, name if learning else f'{name}, frozen'
        result['errors'][which] = found = errors(net, sessions(), rows, plain)
        rates = ' '.join(f'{100 * wrong / max(1, every):.1f}%' for wrong, every in found)
        print(f'{result["contestant"]}: {which}: {rates}', flush=True)


def keep(path: Path, result: dict) -> None:
    """Into a list of results, instead of one of the same contestant and seed (if it has one)."""

    def whose(r: dict) -> tuple:
        return r['contestant'], r.get('seed')

    every = json.loads(path.read_text()) if path.exists() else []
    every = [r for r in every if whose(r) != whose(result)] + [result]
    path.write_text('[\n' + ',\n'.join(json.dumps(r) for r in every) + '\n]\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('contestant', choices=list(CONTESTANTS), metavar='contestant', help='; '.join(CONTESTANTS))
    parser.add_argument('--texts', type=Path, nargs='+', required=True, help='of texts.py')
    parser.add_argument('--output', type=Path, required=True, help='JSON; a result of the same name is replaced')
    parser.add_argument('--frames', type=int, default=768, help='of a session')
    parser.add_argument('--steps', type=int, default=700)
    parser.add_argument('--rows', type=int, default=8, help='sessions of a step')
    parser.add_argument('--lr', type=float, default=1.5e-3)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--test-rows', type=int, default=384)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    texts = [text for path in args.texts for text in path.read_text().splitlines()]
    said = dict(zip(texts, sounds(texts, args.texts[0].with_suffix('.sounds'))))
    names = sorted({s for sentence in said.values() for s in sentence} | set(PAIRS.replace('|', ' ').split()))
    trained, tested = ([said[text] for text in part] for part in parts(texts))
    net = Net(CONTESTANTS[args.contestant], len(names))
    log, began, lately = [], time.monotonic(), []

    def tell(step: int, value: float) -> None:
        lately.append(value)
        if step % 50 == 0:
            log.append([step, round(float(np.mean(lately)), 4)])
            print(f'{args.contestant} {step:5d} loss {log[-1][1]:.3f}  {time.monotonic() - began:.0f} s', flush=True)
            lately.clear()

    train(net, Sessions(trained, names, args.frames, args.seed, False), args.steps, args.rows, args.lr, tell)
    net.eval()
    result = dict(
        contestant=args.contestant, seed=args.seed, steps=args.steps, rows=args.rows, frames=args.frames,
        parameters=sum(p.numel() for p in net.parameters()), date=date.today().isoformat(), log=log, errors={},
    )  # fmt: skip
    for name, plain in (('accents', 0.0), ('plain', 1.0)):
        test(net, result, name, lambda: Sessions(tested, names, args.frames, 1, True), args.test_rows, plain)
    keep(args.output, result)


if __name__ == '__main__':
    main()
