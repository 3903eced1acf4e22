"""Accents of a speaker: espeak-ng's English with some of its sounds replaced by others, throughout.

An accent is a number. Below EXCHANGES each sound that it may touch (REPLACEMENTS) is replaced with the chance SHARE,
always by the same other one, and two sounds may become one. From EXCHANGES on, pairs of near sounds change places, as
in chain shifts of vowels: a listener who knows the accent hears every word as plainly as without it, and who does not,
hears another one. espeak-ng reads such rules from the file of a voice's variant; they are written into a copy of its
data.
"""

import random
import re
import shutil
import tempfile
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path

from nemo_lact.data.espeak import Espeak

SHARE = 0.4
REPLACEMENTS = {  # espeak-ng's names of sounds -> what learners and dialects of English say instead
    'i:': 'I eI', 'I': 'i: E', 'E': 'I a eI', 'a': 'E V A:', 'V': 'a 0 U', '0': 'O: V A:', 'O:': 'oU 0 u:',
    'U': 'u: V', 'u:': 'U oU', 'A:': 'O: a', '3:': 'e@ O:', 'eI': 'E aI i:', 'aI': 'OI eI A:', 'oU': 'O: aU u:',
    'aU': 'oU u: a', 'OI': 'aI O:',
    'T': 't s f', 'D': 'd z v', 'v': 'w b f', 'w': 'v', 'z': 's', 's': 'S T', 'S': 's tS', 'tS': 'S t', 'dZ': 'tS j z',
    'r': 'l w', 'l': 'r w', 'j': 'dZ', 'h': 'x', 'N': 'n', 'b': 'p v', 'd': 't', 'g': 'k', 'p': 'b f', 'k': 'g x',
    't': 'd', 'f': 'p', 'n': 'N', 'm': 'n',
}  # fmt: skip
EXCHANGES = 10**7
PAIRS = """
i: I | I E | E a | a V | V 0 | 0 O: | O: oU | oU u: | u: U | U V | eI aI | aI OI | eI i: | aU oU | A: O: | a A: | 3: O:
p b | t d | k g | f v | s z | S tS | tS dZ | T s | D d | D z | r l | w v | m n | n N | f T | j dZ | b v | l w | r w
s S | h x
"""
PAIR_SHARE = 0.5  # of the pairs whose sounds are still in their places, each looked at once: 23 of the 40 sounds move


def exchanged(accent: int, share: float = PAIR_SHARE) -> list[tuple[str, str]]:
    """Pairs of sounds, none in two of them."""
    rng, pairs = random.Random(f'accent {accent}'), [tuple(pair.split()) for pair in re.split(r'[|\n]', PAIRS.strip())]
    found, moved = [], set()
    for pair in rng.sample(pairs, len(pairs)):
        if not moved.intersection(pair) and rng.random() < share:
            found.append(pair)
            moved.update(pair)
    return found


def rules(accent: int, share: float = SHARE) -> list[str]:
    """Lines of a voice file."""
    if accent >= EXCHANGES:
        return [f'replace 0 {a} {b}' for one, other in exchanged(accent) for a, b in ((one, other), (other, one))]
    rng = random.Random(f'accent {accent}')
    return [
        f'replace 0 {sound} {rng.choice(others.split())}'
        for sound, others in REPLACEMENTS.items()
        if rng.random() < share
    ]


class Accented:
    """espeak-ng with accents."""

    def __init__(self):
        import espeakng_loader

        folder = Path(tempfile.mkdtemp(prefix='accents'))
        Finalize(None, shutil.rmtree, (folder, True), exitpriority=1)  # in worker processes too
        original, data = Path(espeakng_loader.get_data_path()), folder / 'espeak-ng-data'
        _linked(original, data, but='voices')
        _linked(original / 'voices', data / 'voices', but='!v')
        self.variants = data / 'voices/!v'
        shutil.copytree(original / 'voices/!v', self.variants)
        self.espeak = Espeak(data)
        self.sample_rate = self.espeak.sample_rate

    def say(self, text: str, voice: str, pitch: int, rate: int, accent: int | None = None):
        """As `Espeak.say`, of a voice with a variant."""
        if accent is not None:
            language, variant = voice.split('+')
            voice = f'{voice}-{accent}'
            file = self.variants / f'{variant}-{accent}'
            if not file.exists():
                file.write_text((self.variants / variant).read_text() + '\n' + '\n'.join(rules(accent)) + '\n')
        return self.espeak.say(text, voice, pitch, rate)


def _linked(source: Path, target: Path, but: str) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != but:
            (target / path.name).symlink_to(path)


@lru_cache(maxsize=1)
def accented() -> Accented:
    """The synthesiser of this process, which has only one."""
    return Accented()
