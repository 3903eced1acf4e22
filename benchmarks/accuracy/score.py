"""Word and character errors of a model on held-out voices and real speech: utterances and sessions, clean and noisy.

A session is utterances of one speaker, end to end with short pauses, in one room with one noise; sessions of different
length hold the same words. A LaCT model is scored twice, its memory learning and frozen.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from corpus import load
from feed import RATE, acoustics

from nemo_lact.evaluation import count as errors

SESSIONS = {'30 s': 30, '2 min': 120, '10 min': 600, '1 h': 3600}
# How the sets of the held-out voices begin -> their shards: sentences drawn, definitions of a field and accents if
# there are.
VOICES = {'': 'test-voice', 'fields, ': 'test-fields', 'accents, ': 'test-accents'}
AT_ONCE = 3 * 3700 * RATE  # samples of a batch, padding counted
FULL_ATTENTION_MOST = 900  # seconds; at an hour its scores alone take more memory than a GPU has


def sessions(rows: list[dict], seconds: float) -> list[dict]:
    """Utterances of each speaker in their order, joined until `seconds`; the same seed gives the same pauses."""
    found, people = [], {}
    for row in rows:
        people.setdefault(row['speaker'], []).append(row)
    for name, utterances in people.items():
        rng, part, samples = random.Random(name), [], 0
        for row in utterances:
            if part and samples + row['samples'] > seconds * RATE:
                found.append(_join(part))
                part, samples = [], 0
            pause = np.zeros(int(rng.uniform(0.1, 0.7) * RATE), np.int16)
            part.append((row, pause))
            samples += row['samples'] + len(pause)
        found.append(_join(part))
    return found


def _join(part: list) -> dict:
    sound = np.concatenate([x for row, pause in part for x in (row['sound'], pause)])
    text = ' '.join(row['text'] for row, _ in part)
    return dict(sound=sound, samples=len(sound), text=text, speaker=part[0][0]['speaker'])


def plan(corpus: Path, only: Sequence[str] = ()) -> dict[str, tuple[str, int, bool]]:
    """Name of each test set -> its shards, seconds of its sessions (0: utterances), and whether it gets noise.

    Args:
        only: names, or beginnings of names, of those wanted, in the order wanted; none: all.

    Raises:
        ValueError: one of `only` is the beginning of no name.
    """
    sets = {}
    for path in sorted(corpus.glob('test-*.jsonl')):
        if not path.stem.startswith(tuple(VOICES.values())):
            sets[f'{path.stem[5:]}, utterances'] = (path.stem, 0, False)
            sets[f'{path.stem[5:]}, sessions of 2 min'] = (path.stem, 120, False)
    for before, shards in VOICES.items():
        if before and not any(corpus.glob(f'{shards}*.jsonl')):
            continue
        for kind, (name, seconds) in product(('clean', 'noisy'), {'utterances': 0, **SESSIONS}.items()):
            sets[f'{before}{name}, {kind}'] = (shards, seconds, kind == 'noisy')
    for start in only:
        if not any(name.startswith(start) for name in sets):
            raise ValueError(f"no test set begins with '{start}'; there are {', '.join(map(repr, sets))}")
    wanted = {name: None for start in only or [''] for name in sets if name.startswith(start)}
    return {name: sets[name] for name in wanted}


def test_sets(corpus: Path, most: float, only: Sequence[str] = ()) -> Iterator[tuple[str, list[dict], bool]]:
    """Name, rows, whether they get noise; `most` and `only` as `score` has them."""

    def some(rows):  # of every speaker alike
        people, kept = {}, []
        for row in rows:
            people.setdefault(row['speaker'], []).append(row)
        for utterances in people.values():
            seconds = 0.0
            for row in utterances:
                if seconds < most / len(people):
                    kept.append(row)
                    seconds += row['samples'] / RATE
        return kept

    for name, (shards, seconds, noisy) in plan(corpus, only).items():
        rows = some(load(corpus, shards))
        yield name, sessions(rows, seconds) if seconds else rows, noisy


@torch.inference_mode()
def transcribe(model, rows: list[dict], noisy: bool, autocast: bool = True) -> list[str]:
    """Greedy CTC. Rows of like lengths go together; what noise a row gets depends on its place alone.

    A batch that memory is too short for is halved, and so are those after it.

    Args:
        autocast: bf16 on a GPU; False: the model's own precision.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i]['samples'])
    texts, at, most = {}, 0, AT_ONCE
    while at < len(order):
        stop = at + 1
        while stop < len(order) and rows[order[stop]]['samples'] * (stop + 1 - at) <= most:
            stop += 1
        batch = {i: rows[i] for i in order[at:stop]}
        try:
            texts |= _greedy(model, batch, noisy, autocast)
        except torch.cuda.OutOfMemoryError:  # others may be on the GPU
            if len(batch) == 1:
                raise
            torch.cuda.empty_cache()
            most = sum(row['samples'] for row in batch.values()) // 2
            continue
        at = stop
    return [texts[i] for i in range(len(rows))]


def sound_of(row: dict) -> torch.Tensor:
    """Of a row as `load` and `sessions` have them: float in −1 … 1, [samples]."""
    return torch.from_numpy(np.array(row['sound'])).float() / 32768


def _greedy(model, rows: dict[int, dict], noisy: bool, autocast: bool) -> dict[int, str]:
    """Texts of the rows, by their places."""
    device = model.device
    lengths = torch.tensor([row['samples'] for row in rows.values()], device=device)
    sound = torch.zeros(len(rows), int(lengths.max()), device=device)
    for target, (i, row) in zip(sound, rows.items()):
        piece = sound_of(row).to(device)
        if noisy:
            generator = torch.Generator(device).manual_seed(i)
            length = torch.tensor([len(piece)], device=device)
            piece = acoustics(piece[None], length, clean=0.0, generator=generator)[0]
        target[: len(piece)] = piece
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast and device.type == 'cuda'):
        features, frames = model.preprocessor(input_signal=sound, length=lengths)
        encoded, frames = model.encoder(audio_signal=features, length=frames)
        best = model.decoder(encoder_output=encoded).argmax(-1)  # [B, T]
    return {i: spelled(model, heard[:n]) for i, heard, n in zip(rows, best.tolist(), frames.tolist())}


def spelled(model, heard: list[int]) -> str:
    """Text of the best token of each frame."""
    blank = len(model.tokenizer.vocab)
    return model.tokenizer.ids_to_text(
        [t for n, t in enumerate(heard) if t != blank and (n == 0 or heard[n - 1] != t)]
    )


def count(rows: list[dict], texts: list[str]) -> dict:
    """Errors, words and characters of each row, and rates over all."""
    found = [errors(row['text'], text) for row, text in zip(rows, texts)]
    words = [[f['substitutions'] + f['deletions'] + f['insertions'], f['words']] for f in found]
    chars = [[f['character_errors'], f['characters']] for f in found]
    rates = [sum(e for e, _ in part) / max(1, sum(n for _, n in part)) for part in (words, chars)]
    return dict(wer=rates[0], cer=rates[1], words=words, chars=chars)


def score(
    model, corpus: Path, most: float = 1e9, keep=lambda results: None, only: Sequence[str] = (), frozen: bool = True
) -> dict:
    """Set -> counts; of a model with a memory also with it frozen.

    Args:
        most: seconds of each set.
        keep: called with what there is after each set.
        only: names, or beginnings of names, of the sets wanted; none: all.
        frozen: False leaves out the pass with the memory frozen.
    """
    encoder, results = model.encoder, {}
    learning = getattr(encoder, 'adaptation', None)
    full = getattr(encoder, 'self_attention_model', '') == 'rel_pos' and learning is None
    for name, rows, noisy in test_sets(corpus, most, only):
        if full and max(row['samples'] for row in rows) > FULL_ATTENTION_MOST * RATE:
            continue
        texts = transcribe(model, rows, noisy)
        results[name] = count(rows, texts) | (dict(texts=texts) if len(texts) < 200 else {})
        print(f'{name:32s} WER {results[name]["wer"]:.2%}', end='', flush=True)
        if learning and frozen:
            encoder.adaptation = False
            results[f'{name}, frozen'] = fixed = count(rows, transcribe(model, rows, noisy))
            encoder.adaptation = learning
            print(f'   frozen {fixed["wer"]:.2%}', end='')
        print(flush=True)
        keep(results)
    return results
