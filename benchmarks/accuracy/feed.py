"""Batches of raw speech for training, put together in worker processes and given acoustics on the GPU.

A row is one utterance, or several of one speaker joined with short pauses: short rows (one utterance), middle ones (up
to 16 s) and long ones (up to `longest`). A row has one room, channel, noise and gain from its start to its end.
"""

import itertools
import math
import random

import numpy as np
import torch
from torch import Tensor

RATE = 16000
PAUSE = (0.1, 0.7)  # seconds between joined utterances
KINDS = {'short': 0.35, 'middle': 0.35, 'long': 0.3}
SHORT_ONLY = 0.15  # of the steps, at the beginning: rows of one utterance, from which alignments are learned fast


class Batches(torch.utils.data.IterableDataset):
    """Batches of about `minutes` of speech: audio int16 [B, T], its lengths [B], tokens [B, U], their lengths [B].

    Args:
        rows: of corpus.load.
        tokens: of each row, ids.
        steps: batches in all, over all workers.
        weights: source -> how much more often than its share of the speech; others 1.
        longest: seconds of a long row.
        kinds: shares of the batches with short, middle and long rows.
    """

    def __init__(
        self, rows, tokens, steps: int, minutes: float, weights: dict[str, float], longest: float, seed: int,
        kinds: dict[str, float] = KINDS,
    ):  # fmt: skip
        self.rows, self.tokens, self.steps, self.minutes = rows, tokens, steps, minutes
        self.longest, self.seed, self.kinds = longest, seed, kinds
        self.people: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            self.people.setdefault(row['speaker'], []).append(i)
        self.names = list(self.people)
        seconds = [sum(rows[i]['samples'] for i in self.people[n]) for n in self.names]
        chance = [s * weights.get(rows[self.people[n][0]]['source'], 1.0) for n, s in zip(self.names, seconds)]
        self.chance = list(itertools.accumulate(chance))

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = random.Random(f'{self.seed} {number}')
        for step in range(number, self.steps, count):
            yield self._batch(rng, early=step < SHORT_ONLY * self.steps)

    def _batch(self, rng: random.Random, early: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        kind = 'short' if early else rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        budget = self.minutes * 60 * RATE
        if kind == 'short':
            # Like lengths together: from twice as many rows as needed a stretch of the sorted ones.
            people = rng.choices(self.names, cum_weights=self.chance, k=int(budget / (1.2 * RATE)))
            found = sorted((rng.choice(self.people[name]) for name in people), key=lambda i: self.rows[i]['samples'])
            first = rng.randrange(len(found) // 2)
            rows, most = [], 0
            for i in found[first:]:
                most = max(most, self.rows[i]['samples'])
                if most * (len(rows) + 1) > budget:
                    break
                rows.append([i])
        else:
            seconds = 16.0 if kind == 'middle' else rng.uniform(24.0, self.longest)
            count = max(1, int(budget / (seconds * RATE)))
            rows = [self._joined(rng, seconds) for _ in range(count)]
        return self._collate(rows, rng)

    def _joined(self, rng: random.Random, seconds: float) -> list[int]:
        """Utterances of one speaker, `seconds` at most in all; none twice: in a session no recording comes again."""
        utterances = self.people[rng.choices(self.names, cum_weights=self.chance)[0]]
        row, samples = [], 0
        for i in rng.sample(utterances, len(utterances)):
            samples += self.rows[i]['samples'] + PAUSE[1] * RATE
            if row and samples > seconds * RATE:
                break
            row.append(i)
        return row

    def _collate(self, rows: list[list[int]], rng: random.Random):
        pauses = [[int(rng.uniform(*PAUSE) * RATE) for _ in row] for row in rows]
        lengths = [sum(self.rows[i]['samples'] for i in row) + sum(p[1:]) for row, p in zip(rows, pauses)]
        sound = np.zeros((len(rows), max(lengths)), np.int16)
        for target, row, pause in zip(sound, rows, pauses):
            at = 0
            for n, (i, gap) in enumerate(zip(row, pause)):
                at += gap if n else 0
                piece = self.rows[i]['sound']
                target[at : at + len(piece)] = piece
                at += len(piece)
        tokens = [[t for i in row for t in self.tokens[i]] for row in rows]
        counts = [len(t) for t in tokens]
        padded = torch.zeros(len(rows), max(counts), dtype=torch.long)
        for target, row in zip(padded, tokens):
            target[: len(row)] = torch.tensor(row)
        return torch.from_numpy(sound), torch.tensor(lengths), padded, torch.tensor(counts)


def acoustics(sound: Tensor, lengths: Tensor, clean: float = 0.25, generator: torch.Generator | None = None) -> Tensor:
    """A room, a channel, noise and a gain for each row.

    Args:
        sound: [B, T] float in −1 … 1.
        lengths: [B] samples.
        clean: share of the rows that only get a gain.

    Returns:
        [B, T] float32.
    """
    rows, samples, device = sound.size(0), sound.size(1), sound.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, 1, generator=generator, device=device)

    def maybe(chance: float) -> Tensor:
        return (torch.rand(rows, 1, generator=generator, device=device) < chance) & ~dry

    dry = torch.rand(rows, 1, generator=generator, device=device) < clean
    inside = torch.arange(samples, device=device) < lengths[:, None]
    power = (sound.square().sum(1, keepdim=True) / lengths[:, None]).clamp(min=1e-8)
    length = _fast_length(samples + RATE // 2)
    spectrum = torch.fft.rfft(sound, length)  # [B, F]
    # Room: an exponential decay of noise behind the direct sound.
    t60, direct = uniform(0.1, 0.7), uniform(0, 15)
    t = torch.arange(RATE // 2, device=device) / RATE
    echo = torch.randn(rows, len(t), generator=generator, device=device) * 10 ** (-3 * t / t60)
    echo = echo / echo.square().sum(1, keepdim=True).sqrt() * 10 ** (-direct / 20)
    spectrum = torch.where(maybe(0.6), spectrum * (1 + torch.fft.rfft(echo, length)), spectrum)
    del echo
    # Noise of a coloured spectrum, of the power that the ratio says.
    hertz = torch.fft.rfftfreq(length, 1 / RATE, device=device)[None]
    noise = torch.fft.rfft(torch.randn(rows, length, generator=generator, device=device))
    noise *= hertz.clamp(min=20.0) ** (-uniform(0.0, 1.0))
    scale = noise.abs().square().mean(1, keepdim=True).sqrt() / math.sqrt(length)
    ratio = 10 ** (-uniform(3, 30) / 20)
    spectrum += torch.where(maybe(0.7), noise * power.sqrt() * ratio / scale, torch.zeros_like(noise))
    del noise
    # Channel: a band with slopes of 24 dB an octave.
    low, high = uniform(20, 350), 2 ** uniform(11.5, 13.0)
    band = 1 / ((1 + (low / hertz.clamp(min=1.0)) ** 8) * (1 + (hertz / high) ** 8)).sqrt()
    spectrum *= torch.where(maybe(0.5), band, torch.ones_like(band))
    y = torch.fft.irfft(spectrum, length)[:, :samples]
    y = y * 10 ** (uniform(-20, 3) / 20)
    return (y * inside).clamp(-1, 1)


def _fast_length(samples: int) -> int:
    """The next length of small factors."""
    step = 2 ** max(0, samples.bit_length() - 5)
    return -(-samples // step) * step


def faster(sound: Tensor, lengths: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """[B, T] float played `factor` times as fast, pitch and all; and the lengths."""
    out = torch.nn.functional.interpolate(sound[:, None], scale_factor=1 / factor, mode='linear')[:, 0]
    return out, (lengths / factor).long().clamp(max=out.size(1))
