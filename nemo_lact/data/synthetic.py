"""A corpus of many voices from text, spoken by espeak-ng: for tests and experiments where there is no real speech.

Everything says that it is synthetic: each row has `"synthetic": true`, the folder a README. A speaker is a voice ×
pitch × rate. A session is one room, channel, noise and gain for all its utterances (conditions.py).
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_lact.data import audio, conditions
from nemo_lact.data.espeak import espeak
from nemo_lact.data.manifests import Rejects, audio_info, said, seconds, whole_file, write_manifest
from nemo_lact.data.parallel import each
from nemo_lact.data.text import Normaliser, has_digits

VARIANTS = (  # espeak-ng's variants that sound like people; robots and whispers are left out
    'f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 Alex Alicia Andrea Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee '
    'Marco Mario Michael Mike Reed adam anika antonio belinda boris david ed edward iven john linda marcelo max michel '
    'miguel norbert pablo paul pedro quincy rob robert sandro shelby steph travis victor zac'
).split()
README = """Synthetic speech
================

Everything in this folder was spoken by a machine: espeak-ng, with made-up rooms, channels and noise. It is good for
trying programs. A result on it says nothing about a result on people.

{speakers} speakers (voice x pitch x rate), language {language}, seed {seed}, made by `nemo-lact data synthetic`.
"""


@dataclass(frozen=True)
class Speaker:
    """One voice. `pitch` 0 to 99, `rate` words per minute."""

    name: str
    voice: str
    pitch: int
    rate: int


@dataclass(frozen=True)
class Session:
    """Utterances of one speaker under the same conditions."""

    speaker: Speaker
    number: int
    texts: tuple[str, ...]
    conditions: conditions.Conditions
    folder: str
    sample_rate: int


def draw_speakers(count: int, language: str, seed: int) -> list[Speaker]:
    """Different speakers; no two have the same voice, pitch and rate."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        key = (f'{language}+{rng.choice(VARIANTS)}', rng.randrange(20, 81, 2), rng.randrange(120, 221, 5))
        found.setdefault(key, Speaker(f'spk{len(found):04d}', *key))
    return list(found.values())


def make(
    texts: Sequence[str],
    output: str | Path,
    speakers: int = 40,
    sessions: int = 2,
    utterances: int = 20,
    language: str = 'en-us',
    dev_speakers: int = 0,
    test_speakers: int = 0,
    clean: bool = False,
    sample_rate: int = 16000,
    seed: int = 0,
    jobs: int | None = None,
) -> dict[str, str]:
    """Speak the texts; writes OUTPUT/audio, OUTPUT/README.txt and OUTPUT/train.json (dev.json, test.json if asked for).

    Texts are dealt out to sessions in random order, and used again in other voices when they run out. Texts with
    digits are left out with a note: how they are spoken must be in the text. A second call makes only what is missing.

    Args:
        speakers: in all; `dev_speakers` and `test_speakers` of them are in no other set.
        sessions: per speaker, each with its own room, channel, noise and gain.
        utterances: per session.
        clean: no rooms, channels or noise.

    Returns:
        What each file holds, as text.

    Raises:
        ValueError: no usable text, or numbers that make no sense.
        RuntimeError: espeakng-loader is not installed.
    """
    if min(speakers, sessions, utterances) < 1 or speakers <= dev_speakers + test_speakers:
        raise ValueError(
            f'{speakers} speakers with {sessions} sessions of {utterances} utterances, {dev_speakers} of them for dev '
            f'and {test_speakers} for test: all must be 1 or more, and some must be left for training'
        )
    output = Path(output).absolute()
    usable, rejects = _usable(texts)
    espeak()  # a missing library or language is said before processes are started
    people = draw_speakers(speakers, language, seed)
    espeak().say('one', people[0].voice)
    work = _deal(usable, people, sessions, utterances, clean, str(output / 'audio'), sample_rate, seed)
    rows = [row for session in each(_speak, work, 'speaking', jobs, chunk=1) for row in session]
    names = [speaker.name for speaker in people]
    parts = {'test': set(names[:test_speakers]), 'dev': set(names[test_speakers : test_speakers + dev_speakers])}
    parts['train'] = set(names) - parts['test'] - parts['dev']
    with whole_file(output / 'README.txt') as file:
        file.write(README.format(speakers=speakers, language=language, seed=seed))
    made = {}
    for split in ('train', 'dev', 'test'):
        part = [row for row in rows if row['speaker'] in parts[split]]
        if part:
            write_manifest(output / f'{split}.json', part)
            made[f'{split}.json'] = f'{said(len(part), seconds(part))}, synthetic, {len(parts[split])} speakers'
    if left := rejects.write(output / 'texts.json'):
        made[left.name] = f'{len(rejects)} texts left out, with the reasons'
    return made


def read_texts(path: str | Path) -> list[str]:
    """Lines of a text file, or the texts of a NeMo manifest (.json, .jsonl).

    Raises:
        FileNotFoundError: no such file.
        ValueError: no UTF-8, or no manifest.
    """
    path = Path(path)
    if path.suffix in ('.json', '.jsonl'):
        from nemo_lact.transcription import read_manifest

        return [row['text'] for row in read_manifest(path) if isinstance(row.get('text'), str)]
    if not path.is_file():
        raise FileNotFoundError(f'no text file at {path}')
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: no UTF-8 text ({error.reason} at byte {error.start})') from error


def _usable(texts: Sequence[str]) -> tuple[list[str], Rejects]:
    normalise, rejects, usable = Normaliser(), Rejects(), []
    for number, text in enumerate(texts, 1):
        done = normalise(text)
        if done and not has_digits(done):
            usable.append(done)
        elif text.strip():
            rejects.add('digits: spell them out' if done else 'no letters', line=number, text=text)
    if not usable:
        raise ValueError(f'none of {len(texts)} texts can be spoken; one sentence a line, without digits')
    return usable, rejects


def _deal(texts, people, sessions, utterances, clean, folder, sample_rate, seed) -> list[Session]:
    rng, deck, work = random.Random(seed), [], []
    for speaker in people:
        for number in range(sessions):
            while len(deck) < utterances:
                deck = rng.sample(texts, len(texts)) + deck
            hand, deck = tuple(deck[-utterances:]), deck[:-utterances]
            drawn = rng.randrange(2**31)  # also if clean: the same texts either way
            how = conditions.Conditions() if clean else conditions.draw(drawn)
            work.append(Session(speaker, number, hand, how, folder, sample_rate))
    return work


def _speak(session: Session) -> list[dict]:
    speaker, rows = session.speaker, []
    name = f'{speaker.name}-{session.number:02d}'
    for part, text in enumerate(session.texts):
        # The name holds all that the sound depends on, so that a file that is there is the right one.
        recipe = json.dumps([speaker.voice, speaker.pitch, speaker.rate, text, repr(session.conditions), part])
        digest = hashlib.sha1(recipe.encode(), usedforsecurity=False).hexdigest()[:8]
        path = Path(session.folder, speaker.name, name, f'{name}-{part:04d}-{digest}.flac')
        if path.exists():
            length = audio_info(path).duration
        else:
            synthesiser = espeak()
            samples = synthesiser.say(text, speaker.voice, speaker.pitch, speaker.rate)
            samples = audio.resample(samples, synthesiser.sample_rate, session.sample_rate)
            samples = conditions.apply(samples, session.sample_rate, session.conditions, part)
            length = audio.write(path, samples, session.sample_rate)
        row = {'audio_filepath': str(path), 'duration': length, 'text': text, 'speaker': speaker.name, 'session': name}
        row |= {'voice': speaker.voice, 'pitch': speaker.pitch, 'rate': speaker.rate, 'synthetic': True}
        rows.append({**row, 'conditions': session.conditions.describe()})
    return rows
