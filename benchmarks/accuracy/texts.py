"""English to speak: the usage examples of WordNet, and its definitions (Debian package wordnet-base, its own licence).

    python benchmarks/accuracy/texts.py OUT.txt                     # fetches the package with apt-get download
    python benchmarks/accuracy/texts.py OUT.txt --wordnet FOLDER    # that holds data.noun and so on
    python benchmarks/accuracy/texts.py data/wordnet/texts.txt --split train
    python benchmarks/accuracy/texts.py OUT.txt --definitions       # some 113,000 others

One a line, lower case a-z and apostrophes. `split` says by the text alone whether a sentence is for training or test,
so that no test sentence is ever spoken in training, whoever speaks it. Definitions that are examples too, or have five
words in a row of a test sentence, are left out. They come by field: those of all birds in a row, after birds as such.
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompts import Rows

WORDS = (4, 24)  # a sentence has so many


def entries(folder: Path) -> Iterator[tuple[list[str], str]]:
    """Fields, as wndb(5) has them, and gloss (definitions and "examples") of each entry."""
    for path in sorted(folder.glob('data.*')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            if not line.startswith(' '):  # the licence
                head, _, gloss = line.partition('|')
                yield head.split(), gloss


def by_field(folder: Path) -> list[str]:
    """Glosses in the order of a walk through the tree of "is a kind of": neighbours have to do with each other."""
    above, found = {}, []
    for fields, gloss in entries(folder):
        first = 5 + 2 * int(fields[3], 16)  # after the words, each with a number, and how many pointers follow
        kinds = [f'{fields[2]}{fields[i + 1]}' for i in range(first, len(fields) - 3, 4) if fields[i] in ('@', '@i')]
        own = f'{fields[2]}{fields[0]}'
        above[own] = kinds[0] if kinds else None
        found.append((own, gloss))

    def path(entry: str) -> list[str]:
        way = []
        while entry in above and entry not in way:  # two verbs of WordNet are above each other
            way.append(entry)
            entry = above[entry]
        return way[::-1]

    return [gloss for _, gloss in sorted(found, key=lambda pair: path(pair[0]))]


def sentences(folder: Path) -> list[str]:
    """The examples."""
    return _spoken(example for _, gloss in entries(folder) for example in re.findall(r'"([^"]+)"', gloss))


def definitions(folder: Path, examples: list[str]) -> list[str]:
    """The definitions, by field; those for training have nothing of a test sentence, be it one of these."""
    parts = (part for gloss in by_field(folder) for part in re.sub(r'"[^"]*"|\([^)]*\)', '', gloss).split(';'))
    known = set(examples)
    found = [text for text in _spoken(parts) if text not in known]
    tested = Rows(text for text in (*examples, *found) if split(text) == 'test')
    return [text for text in found if split(text) == 'test' or text not in tested]


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


def split(text: str) -> str:
    """'test' for one in twenty."""
    digest = hashlib.sha1(text.encode(), usedforsecurity=False).digest()
    return 'test' if digest[0] < 13 else 'train'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('output', type=Path)
    parser.add_argument('--wordnet', type=Path, help='folder with data.noun, data.verb, data.adj and data.adv')
    parser.add_argument('--split', choices=['train', 'test'], help='only those of it (default: both)')
    parser.add_argument('--definitions', action='store_true', help='the definitions, not the examples')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wordnet = args.wordnet
        if wordnet is None:
            subprocess.run(['apt-get', 'download', 'wordnet-base'], cwd=folder, check=True)
            package = next(Path(folder).glob('*.deb'))
            subprocess.run(['dpkg-deb', '-x', str(package), folder], check=True)
            wordnet = Path(folder, 'usr/share/wordnet')
        texts = sentences(wordnet)
        texts = definitions(wordnet, texts) if args.definitions else texts
    if not texts:
        raise SystemExit(f"no examples in {wordnet}: it must hold WordNet's data.noun, data.verb, data.adj, data.adv")
    if args.split:
        texts = [text for text in texts if split(text) == args.split]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text('\n'.join(texts) + '\n')
    print(f'{len(texts)} sentences, {sum(split(t) == "test" for t in texts)} of them for test')


if __name__ == '__main__':
    main()
