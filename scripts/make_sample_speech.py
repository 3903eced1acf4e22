#!/usr/bin/env python3
"""Rebuild data/asterisk_en, the small speech corpus that comes with this repository.

    python scripts/make_sample_speech.py [--packages FOLDER] [--output data/asterisk_en]

The source is two Debian packages with the English prompts of the Asterisk telephone exchange (CC-BY-SA-3.0):
asterisk-core-sounds-en (the texts) and asterisk-core-sounds-en-g722 (the audio). They are taken from FOLDER, or
fetched into it with `apt-get download`. Needs dpkg-deb, ffmpeg (to decode G.722) and the Python package soundfile.

Writes OUTPUT/audio/*.ogg (Opus, 16 kHz, mono), the NeMo manifests OUTPUT/{train,dev,test}.json and OUTPUT/LICENSE.
The README.md there, with the credits, is written by hand.
"""

import argparse
import gzip
import hashlib
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE = 16000
# libsndfile's scale runs from 0 (256 kbit/s) to 1 (6 kbit/s); 0.9 gives about 32 kbit/s for one channel.
COMPRESSION_LEVEL = 0.9
PACKAGES = ('asterisk-core-sounds-en', 'asterisk-core-sounds-en-g722')
SIGNS = dict(zip('0123456789*#', 'zero one two three four five six seven eight nine star pound'.split()))
SPOKEN = {  # prompt -> what its text says, and what is said
    'conf-adminmenu-menu8': ('umute', 'unmute'),
    'demo-instruct': ('28.8', 'twenty eight point eight'),
    'priv-callee-options': ('thru', 'through'),
    'spy-iax2': ('(note: does not say "2")', ''),
}
SAID_IN_OTHERS = {'conf-adminmenu', 'conf-adminmenu-162', 'dir-intro', 'dir-usingkeypad'}  # all but a word or two
CUTS = {  # prompt -> where to cut it, in seconds and words: within pauses
    'demo-instruct': [(19.7, 48), (28.19, 75), (47.63, 121), (62.25, 164)],
    'priv-callee-options': [(16.47, 43)],
}
REPOSITORY = Path(__file__).resolve().parent.parent


def normalise(text: str) -> str:
    """Lower-case `text` and keep only the letters a-z, the apostrophe inside words, and single spaces."""
    text = text.lower().replace('\u2019', "'")
    words = re.sub(r"[^a-z']", ' ', text).split()
    return ' '.join(word for word in words if word.strip("'"))


def split_of(text: str) -> str:
    """The split an utterance belongs to: 80 / 10 / 10 % by a hash of its text, so no text is in two splits."""
    bucket = int(hashlib.sha1(text.encode()).hexdigest(), 16) % 10
    return {8: 'dev', 9: 'test'}.get(bucket, 'train')


def unpack(packages: Path) -> Path:
    """Unpack both Debian packages inside `packages` (fetching what is missing); returns the unpacked root."""
    packages.mkdir(parents=True, exist_ok=True)
    root = packages / 'unpacked'
    for name in PACKAGES:
        if not list(packages.glob(f'{name}_*.deb')):
            subprocess.run(['apt-get', 'download', name], cwd=packages, check=True)
        subprocess.run(['dpkg-deb', '-x', str(next(packages.glob(f'{name}_*.deb'))), str(root)], check=True)
    return root


def read_prompts(root: Path):
    """Yield (name, source file, normalised text as spoken, split) for every prompt of speech.

    Texts with digits are all for training; of the others, the text without its signs says the split.
    """
    listing = next(root.glob('usr/share/doc/*/core-sounds-en.txt.gz'))
    sounds = next(root.glob('usr/share/asterisk/sounds/*'))
    with gzip.open(listing, 'rt', encoding='utf-8-sig') as lines:
        for line in lines:
            if line.startswith(';') or ':' not in line:
                continue
            name, text = (part.strip() for part in line.split(':', 1))
            if text.startswith(('[', '(', '<')) or name in SAID_IN_OTHERS:  # "[ascending tones]"
                continue
            source = sounds / f'{name}.g722'
            split = 'train' if re.search(r'\d', text) else split_of(normalise(text))
            spoken = text.replace(*SPOKEN.get(name, ('', '')))
            spoken = normalise(re.sub(r'[\d*#]', lambda sign: f' {SIGNS[sign[0]]} ', spoken))
            if source.exists() and spoken:
                yield name.replace('/', '_'), source, spoken, split


def pieces(name: str, seconds: float, text: str):
    """Yield (name, start, end, text) of the parts of a prompt, one part if `CUTS` does not have it."""
    words, cuts = text.split(), CUTS.get(name, [])
    borders = [(0.0, 0), *cuts, (seconds, len(words))]
    for number, ((start, first), (end, last)) in enumerate(zip(borders, borders[1:]), 1):
        yield f'{name}-{number}' if cuts else name, start, end, ' '.join(words[first:last])


def decode(source: Path) -> np.ndarray:
    """G.722 as int16 samples of 16 kHz."""
    command = ['ffmpeg', '-v', 'error', '-i', str(source), '-ac', '1', '-ar', str(SAMPLE_RATE), '-f', 's16le', '-']
    return np.frombuffer(subprocess.run(command, check=True, capture_output=True).stdout, np.int16)


def encode(samples: np.ndarray, target: Path) -> float:
    """Write Ogg/Opus `target`; returns the duration in seconds as read back."""
    with soundfile.SoundFile(
        target, 'w', SAMPLE_RATE, 1, format='OGG', subtype='OPUS', compression_level=COMPRESSION_LEVEL
    ) as out:
        out.write(samples)
    info = soundfile.info(target)
    return info.frames / info.samplerate


def licence_text(root: Path) -> str:
    """The full CC-BY-SA-3.0 text as it comes with the prompts, out of the Debian copyright file."""
    copyright_file = (root / 'usr/share/doc/asterisk-core-sounds-en/copyright').read_text(encoding='utf-8')
    # The paragraph that is headed by the licence's name and followed by its text, each line indented by a space.
    body = re.search(r'^License: CC-BY-SA-3\.0\n((?: .*\n)+?)(?=\n*License:)', copyright_file, re.M).group(1)
    lines = [line[1:].rstrip() for line in body.splitlines()]
    title = 'Creative Commons Attribution-ShareAlike 3.0 (http://creativecommons.org/licenses/by-sa/3.0/)'
    return title + '\n\n' + '\n'.join('' if line == '.' else line for line in lines).strip() + '\n'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--packages', type=Path, default=Path('asterisk-packages'), help='folder for the .deb files')
    parser.add_argument('--output', type=Path, default=REPOSITORY / 'data' / 'asterisk_en')
    args = parser.parse_args()

    root = unpack(args.packages)
    audio = args.output / 'audio'
    audio.mkdir(parents=True, exist_ok=True)
    manifests = {'train': [], 'dev': [], 'test': []}
    for name, source, text, split in read_prompts(root):
        samples = decode(source)
        for part, start, end, said in pieces(name, len(samples) / SAMPLE_RATE, text):
            cut = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
            duration = encode(cut, audio / f'{part}.ogg')
            # The path is relative: NeMo looks for it beside the manifest.
            row = {'audio_filepath': f'audio/{part}.ogg', 'duration': round(duration, 3), 'text': said}
            manifests[split].append({**row, 'speaker': 'allison_smith'})

    (args.output / 'LICENSE').write_text(licence_text(root), encoding='utf-8')
    for split, rows in manifests.items():
        (args.output / f'{split}.json').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
        print(f'{split}: {len(rows)} utterances, {sum(row["duration"] for row in rows) / 60:.1f} min')


if __name__ == '__main__':
    main()
