"""What telephone systems say, by templates of our own: words, pieces to be joined, sentences, menus, numbers, dates.

    python benchmarks/accuracy/prompts.py OUT.txt --lines 12000 --seed 0

Distinct lines of lower case a-z and apostrophes, to speak and for language models. Left out are lines of three words or
more that the bundled dev and test prompts (data/asterisk_en) have as a row, or that have five words in a row of one.
"""

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_templates import FRAGMENTS, NUMBERS, SENTENCES
from prompt_words import DAYS, DOUBLED, LETTERS, LISTS, MONTHS, NATO, NOUNS, OTHERS, SIGNS, VERBS

DATA = Path(__file__).parents[2] / 'data/asterisk_en'
SHARES = {'word': 0.15, 'fragment': 0.25, 'sentence': 0.40, 'number': 0.20}
LONGEST = 45  # words
ONES = 'zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
seventeen eighteen nineteen'.split()
TENS = 'zero ten twenty thirty forty fifty sixty seventy eighty ninety'.split()
SIZES = [(10**9, 'billion'), (10**6, 'million'), (1000, 'thousand'), (100, 'hundred')]
ORDINALS = {'one': 'first', 'two': 'second', 'three': 'third', 'five': 'fifth', 'eight': 'eighth', 'nine': 'ninth',
            'twelve': 'twelfth'}  # fmt: skip


def cardinal(n: int) -> str:
    if n < 20:
        return ONES[n]
    if n < 100:
        return f'{TENS[n // 10]} {ONES[n % 10]}' if n % 10 else TENS[n // 10]
    size, name = next((size, name) for size, name in SIZES if size <= n)
    return f'{cardinal(n // size)} {name}' + (f' {cardinal(n % size)}' if n % size else '')


def ordinal(n: int) -> str:
    first, space, last = cardinal(n).rpartition(' ')
    last = ORDINALS.get(last) or (last[:-1] + 'ieth' if last.endswith('y') else last + 'th')
    return first + space + last


def plural(noun: str) -> str:
    if re.search('[^aeiou]y$', noun):
        return noun[:-1] + 'ies'
    return noun + ('es' if re.search('(s|x|ch|sh)$', noun) else 's')


def inflected(verb: str, ending: str) -> str:
    """With 'ed' or 'ing'."""
    if verb.endswith('e') and not (verb.endswith('ee') and ending == 'ing'):
        return verb[:-1] + ending
    if re.search('[^aeiou]y$', verb) and ending == 'ed':
        return verb[:-1] + 'ied'
    return verb + (verb[-1] if verb in DOUBLED else '') + ending


def words() -> list[str]:
    """Single words, each once."""
    found = [*OTHERS.split(), *LETTERS, *NATO, *DAYS, *MONTHS, *ONES, *TENS[2:], *(name for _, name in SIZES)]
    found += [sign for sign in SIGNS.split('|') if ' ' not in sign]
    found += [ordinal(n) for n in (*range(1, 20), *range(20, 100, 10), *(size for size, _ in SIZES))]
    for verb in VERBS.split():
        base = verb.rstrip('+')
        found += [base, inflected(base, 'ing')] + ([inflected(base, 'ed')] if base == verb else [])
    for noun in NOUNS.split():
        found += [noun, plural(noun)]
    return list(dict.fromkeys(found))


class Writer:
    """Fills templates; its methods are the slots that are not lists."""

    def __init__(self, seed: int):
        self.rng = random.Random(f'prompts {seed}')
        self.lists = {name: _parts(text) for name, text in LISTS.items()}

    def fill(self, template: str) -> str:
        text = template
        while found := re.search(r'\{([^{}()]*)\}|\(([^{}()]*)\)', text):
            slot, choice = found.groups()
            new = self.rng.choice(choice.split('/')) if slot is None else self.slot(*slot.split(maxsplit=1))
            text = text[: found.start()] + new + text[found.end() :]
        return ' '.join(text.split()).replace('for to ', 'to ').replace('the the ', 'the ')

    def slot(self, name: str, argument: str = '') -> str:
        return self.rng.choice(self.lists[name]) if name in self.lists else getattr(self, name)(argument)

    def number(self, top: str) -> str:
        """From 2 to top; small ones and round ones are as frequent as large ones."""
        n = int(self.rng.uniform(1.5, int(top) ** 0.5) ** 2)
        if n > 100 and self.rng.random() < 0.3:
            n -= n % 10 ** self.rng.randrange(1, len(str(n)))
        return cardinal(n).replace('hundred ', self.rng.choice(['hundred ', 'hundred ', 'hundred and ']))

    def count(self, noun: str) -> str:
        n = self.rng.choice([1, 1, 2, 3, self.rng.randrange(2, 20), self.rng.randrange(2, 100)])
        return cardinal(n) + ' ' + (noun if n == 1 else plural(noun))

    def plural(self, _: str) -> str:
        return plural(self.fill('{thing}'))

    def ordinal(self, top: str) -> str:
        return ordinal(self.rng.randrange(1, int(top or 31) + 1))

    def digit(self, _: str) -> str:
        return self.rng.choice(ONES[:10])

    def digits(self, count: str) -> str:
        zero = self.rng.choice(['zero', 'zero', 'oh'])
        return ' '.join(ONES[n] if n else zero for n in self.rng.choices(range(10), k=int(count)))

    def phone(self, _: str) -> str:
        return self.digits(self.rng.choice(['7', '10']))

    def letter(self, _: str) -> str:
        return self.rng.choice(LETTERS)

    def letters(self, count: str) -> str:
        return ' '.join(self.rng.choices(LETTERS, k=int(count)))

    def nato(self, count: str) -> str:
        return ' '.join(self.rng.choices(NATO, k=int(count)))

    def spelling(self, _: str) -> str:
        return ' as in '.join(self.rng.choice([*zip(LETTERS, NATO)]))

    def clock(self, _: str) -> str:
        hour, minute = self.rng.randrange(1, 13), self.rng.choice([0, 15, 30, 45, self.rng.randrange(60)])
        if minute:
            spoken = cardinal(minute) if minute > 9 else f'oh {ONES[minute]}'
            short, others = f'{cardinal(hour)} {spoken}', [f'{cardinal(hour + 11)} {spoken}']
        else:
            short, others = cardinal(hour), [f"{cardinal(hour)} o'clock", 'noon', 'midnight']
        half = self.rng.choice(['a m', 'p m', 'p m', 'in the morning', 'in the evening'])
        return self.rng.choice([f'{short} {half}', f'{short} {half}', *others])

    def date(self, _: str) -> str:
        month = self.rng.choice([*MONTHS])
        day = ordinal(self.rng.randrange(1, MONTHS[month] + 1))
        return self.rng.choice([f'{month} {day}', f'{month} {day}', f'the {day} of {month}'])

    def year(self, _: str) -> str:
        century, rest = self.rng.choice([18, 19, 19, 20, 20]), self.rng.randrange(100)
        if century == 20 and (rest < 10 or self.rng.random() < 0.3):
            return cardinal(2000 + rest)
        return f'{cardinal(century)} ' + (cardinal(rest) if rest > 9 else f'oh {ONES[rest]}' if rest else 'hundred')

    def amount(self, _: str) -> str:
        return cardinal(10 ** self.rng.randrange(1, 7) * self.rng.randrange(2, 10))

    def menu(self, place: str) -> str:
        """Options with the keys from one on, all in one style."""
        style = self.rng.choice(['{0} press {1}', '{0} press {1}', '{0} dial {1}', 'press {1} {0}', 'say {1} {0}'])
        options = self.rng.sample(self.lists[place], self.rng.choice([2, 3, 3, 4, 4, 5, 6]))
        named = (option if option.startswith('to ') else f'for {option}' for option in options)
        return ' '.join(style.format(option, ONES[key]) for key, option in enumerate(named, 1))


def _parts(text: str) -> list[str]:
    return [' '.join(part.split()) for part in text.split('|')]


def _normal(text: str) -> list[str]:
    return re.sub("[^a-z']", ' ', text.lower()).split()


class Rows:
    """The rows that no line may repeat."""

    def __init__(self, texts: Iterable[str]):
        rows = [_normal(text) for text in texts]
        self.whole = {tuple(row) for row in rows}
        self.parts = {part for row in rows for part in _fives(row)}

    def __contains__(self, line: str) -> bool:
        row = line.split()
        return len(row) >= 3 and (tuple(row) in self.whole or not self.parts.isdisjoint(_fives(row)))


def _fives(row: list[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(row[i : i + 5]) for i in range(len(row) - 4))


def _sentences(writer: Writer) -> Iterator[str]:
    """One of a place, at times two."""
    places = {place: _parts(text) for place, text in SENTENCES.items()}
    sizes = [max(len(templates), 20) for templates in places.values()]
    while True:
        (place,) = writer.rng.choices([*places], sizes)
        two = len(places[place]) > 1 and writer.rng.random() < 0.15
        yield ' '.join(map(writer.fill, writer.rng.sample(places[place], 1 + two)))


def _filled(writer: Writer, templates: str) -> Iterator[str]:
    parts = _parts(templates)
    while True:
        yield writer.fill(writer.rng.choice(parts))


def lines(count: int, seed: int, banned: Rows) -> tuple[list[tuple[str, str]], int]:
    """`count` distinct lines, each with its kind, and how many others were left out as rows of `banned`."""
    writer = Writer(seed)
    singles = words()
    writer.rng.shuffle(singles)
    sources = dict(word=iter(singles), fragment=_filled(writer, FRAGMENTS), number=_filled(writer, NUMBERS),
                   sentence=_sentences(writer))  # fmt: skip
    found, left_out = {}, set()
    for kind, source in sources.items():  # sentences last: they make up for words, of which there are not so many
        end = count if kind == 'sentence' else len(found) + round(SHARES[kind] * count)
        misses = 0
        while len(found) < end and misses < 10_000:
            line = next(source, None)
            if line is None:
                break
            if line in banned:
                left_out.add(line)
            elif line not in found and len(line.split()) <= LONGEST:
                found[line], misses = kind, 0
                continue
            misses += 1
    if len(found) < count:
        raise SystemExit(f'--lines {count}: the templates give only {len(found)} distinct lines')
    result = [(kind, line) for line, kind in found.items()]
    writer.rng.shuffle(result)
    return result, len(left_out)


SPELLED_BEFORE = {'as', 'dot', *ONES, *TENS, *(sign.split()[0] for sign in SIGNS.split('|'))}
SPELLED_BEFORE -= {'new', 'full', 'question', 'open', 'close', 'single', 'double', 'number'}


def spelled(text: str) -> str:
    """The letter a, which a reader takes for the article, as 'ay'."""
    words = text.split()
    for i, word in enumerate(words):
        before, after = words[i - 1] if i else '', words[i + 1] if i + 1 < len(words) else ''
        beside = len(before) == 1 or len(after) == 1 or before in ('gate', 'letter', 'ay')
        if word == 'a' and (beside or not after or after in SPELLED_BEFORE):
            words[i] = 'ay'
    return ' '.join(words)


def bundled(data: Path = DATA) -> Rows:
    paths = [data / 'dev.json', data / 'test.json']
    return Rows(json.loads(line)['text'] for path in paths for line in path.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('output', type=Path)
    parser.add_argument('--lines', type=int, default=12_000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    found, left_out = lines(args.lines, args.seed, bundled())
    args.output.write_text('\n'.join(line for _, line in found) + '\n')
    kinds = ', '.join(f'{sum(k == kind for k, _ in found)} {kind}s' for kind in SHARES)
    print(f'{len(found)} lines: {kinds}; {left_out} left out that are or have part of a row of dev or test')


if __name__ == '__main__':
    main()
