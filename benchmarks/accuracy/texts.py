"""English to speak: the usage examples of WordNet, and its definitions (Debian package wordnet-base, its own licence).

    python benchmarks/accuracy/texts.py OUT.txt                     # fetches the package with apt-get download
    python benchmarks/accuracy/texts.py OUT.txt --wordnet FOLDER    # that holds data.noun and so on
    python benchmarks/accuracy/texts.py data/wordnet/texts.txt --split train
    python benchmarks/accuracy/texts.py OUT.txt --definitions       # some 113,000 more, all for training

One a line, lower case a-z and apostrophes. `split` says by the text alone whether a sentence is for training or test,
so that no test sentence is ever spoken in training, whoever speaks it. Test sentences are usage examples, with or
without the definitions, of which those are left out that have five words in a row of a test sentence.
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

WORDS = (4, 24)  # a sentence has so many
SAME = 5  # words in a row that a definition may not have of a test sentence


def glosses(folder: Path) -> Iterator[str]:
    """Definitions and "examples" of each entry."""
    for path in sorted(folder.glob('data.*')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            yield line.partition('|')[2]


def sentences(folder: Path) -> list[str]:
    """The examples."""
    return _spoken(example for gloss in glosses(folder) for example in re.findall(r'"([^"]+)"', gloss))


def definitions(folder: Path, examples: list[str]) -> list[str]:
    """The definitions, each for training: nothing in `split`'s test part, nor like an example there."""
    said = {run for text in examples if split(text) == 'test' for run in _runs(text)}
    parts = (part for gloss in glosses(folder) for part in re.sub(r'"[^"]*"|\([^)]*\)', '', gloss).split(';'))
    known = set(examples)
    return [
        text
        for text in _spoken(parts)
        if text not in known and split(text) == 'train' and said.isdisjoint(_runs(text))
    ]


def _spoken(raw: Iterable[str]) -> list[str]:
    """Those of a sentence's length without digits and signs (how they are spoken is not in the text), each once."""
    found = {}
    for text in raw:
        if re.search(r"[^A-Za-z' ,;:.!?-]", text):
            continue
        words = ' '.join(w.strip("'") for w in re.sub(r"[^a-z']", ' ', text.lower()).split()).split()
        if WORDS[0] <= len(words) <= WORDS[1]:
            found.setdefault(' '.join(words))
    return list(found)


def _runs(text: str) -> set[str]:
    """Every `SAME` words in a row; of a shorter text all of it."""
    words = text.split()
    return {' '.join(words[i : i + SAME]) for i in range(max(1, len(words) - SAME + 1))}


def split(text: str) -> str:
    """'test' for one in twenty."""
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).digest()
    return 'test' if digest[0] < 13 else 'train'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('output', type=Path)
    parser.add_argument('--wordnet', type=Path, help='folder with data.noun, data.verb, data.adj and data.adv')
    parser.add_argument('--split', choices=['train', 'test'], help='only those of it (default: both)')
    parser.add_argument('--definitions', action='store_true', help='the definitions too')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wordnet = args.wordnet
        if wordnet is None:
            subprocess.run(['apt-get', 'download', 'wordnet-base'], cwd=folder, check=True)
            package = next(Path(folder).glob('*.deb'))
            subprocess.run(['dpkg-deb', '-x', str(package), folder], check=True)
            wordnet = Path(folder, 'usr/share/wordnet')
        texts = sentences(wordnet)
        texts += definitions(wordnet, texts) if args.definitions else []
    if not texts:
        raise SystemExit(f"no examples in {wordnet}: it must hold WordNet's data.noun, data.verb, data.adj, data.adv")
    if args.split:
        texts = [text for text in texts if split(text) == args.split]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text('\n'.join(texts) + '\n')
    print(f'{len(texts)} sentences, {sum(split(t) == "test" for t in texts)} of them for test')


if __name__ == '__main__':
    main()
