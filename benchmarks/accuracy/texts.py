"""English sentences to speak: the usage examples of WordNet (Debian package wordnet-base, WordNet's licence).

    python benchmarks/accuracy/texts.py OUT.txt                     # fetches the package with apt-get download
    python benchmarks/accuracy/texts.py OUT.txt --wordnet FOLDER    # that holds data.noun and so on
    python benchmarks/accuracy/texts.py data/wordnet/texts.txt --split train

One a line, lower case a-z and apostrophes. `split` says by the text alone whether a sentence is for training or test,
so that no test sentence is ever spoken in training, whoever speaks it.
"""

import argparse
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

WORDS = (4, 24)  # a sentence has so many


def sentences(folder: Path) -> list[str]:
    found = {}
    for path in sorted(folder.glob('data.*')):
        for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
            for example in re.findall(r'"([^"]+)"', line.partition('|')[2]):
                if re.search(r"[^A-Za-z' ,;:.!?-]", example):
                    continue  # digits and signs: how they are spoken is not in the text
                text = ' '.join(w.strip("'") for w in re.sub(r"[^a-z']", ' ', example.lower()).split())
                if WORDS[0] <= len(text.split()) <= WORDS[1]:
                    found.setdefault(' '.join(text.split()))
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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wordnet = args.wordnet
        if wordnet is None:
            subprocess.run(['apt-get', 'download', 'wordnet-base'], cwd=folder, check=True)
            package = next(Path(folder).glob('*.deb'))
            subprocess.run(['dpkg-deb', '-x', str(package), folder], check=True)
            wordnet = Path(folder, 'usr/share/wordnet')
        texts = sentences(wordnet)
    if not texts:
        raise SystemExit(f"no examples in {wordnet}: it must hold WordNet's data.noun, data.verb, data.adj, data.adv")
    if args.split:
        texts = [text for text in texts if split(text) == args.split]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text('\n'.join(texts) + '\n')
    print(f'{len(texts)} sentences, {sum(split(t) == "test" for t in texts)} of them for test')


if __name__ == '__main__':
    main()
