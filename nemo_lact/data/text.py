"""Text normalisation by named rules, each counted, so that nothing leaves a transcript unseen.

Digits are kept and reported: how '1984' was spoken only the recording knows. Spell them out, or leave those rows out.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

APOSTROPHES = dict.fromkeys(map(ord, '\u2018\u2019\u02bc\u0060\u00b4\uff07'), "'")  # ‘ ’ ʼ ` ´ ＇
RULES = (
    ('unicode', 'one code point for each letter (NFC), no invisible characters'),
    ('apostrophes', "‘ ’ ʼ ` ´ become ', the one in words stays"),
    ('case', 'lower case (--keep-case leaves it)'),
    ('punctuation', "punctuation and symbols become blanks, except ' inside words and what --keep-chars names"),
    ('blanks', 'one blank between words, none at the ends'),
    ('digits', 'kept and reported; --drop-digits takes these rows out'),
)
EXAMPLES = 3


@dataclass
class Report:
    """What `normalise` did to many texts: rows changed by each rule, characters taken out, texts with digits."""

    texts: int = 0
    changed: Counter = field(default_factory=Counter)
    removed: Counter = field(default_factory=Counter)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    digits: list[str] = field(default_factory=list)


class Normaliser:
    """Callable text → text; `report` counts what each rule did.

    Args:
        lower: lower-case the text.
        keep: punctuation to keep beside the apostrophe inside words, e.g. '.,?-'.
    """

    def __init__(self, lower: bool = True, keep: str = ''):
        self.lower = lower
        self.keep = set(keep)
        self.report = Report()

    def __call__(self, text: str) -> str:
        """The normalised text, empty if no letter or digit is left."""
        report = self.report
        report.texts += 1
        for rule, apply in (
            ('unicode', _unicode),
            ('apostrophes', lambda text: text.translate(APOSTROPHES)),
            ('case', str.lower if self.lower else str),
            ('punctuation', self._punctuation),
            ('blanks', lambda text: ' '.join(text.split())),
        ):
            before, text = text, apply(text)
            if before != text:
                report.changed[rule] += 1
                examples = report.examples.setdefault(rule, [])
                if len(examples) < EXAMPLES:
                    examples.append((before, text))
        if has_digits(text):
            report.changed['digits'] += 1
            report.digits.append(text)
        return text if any(char.isalnum() for char in text) else ''

    def _punctuation(self, text: str) -> str:
        kept = []
        for i, char in enumerate(text):
            inside = 0 < i < len(text) - 1 and text[i - 1].isalpha() and text[i + 1].isalpha()
            word = unicodedata.category(char)[0] in 'LMN'  # letters, the marks that belong to them, digits
            if word or char.isspace() or char in self.keep or (char == "'" and inside):
                kept.append(char)
            else:
                self.report.removed[char] += 1
                kept.append(' ')
        return ''.join(kept)


def show(report: Report) -> None:
    """A table of the rules on stderr: what each did to how many texts, with an example."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f'text normalisation, {report.texts:,} texts')
    for column in ('rule', 'what it does', 'texts', 'example'):
        table.add_column(column)
    for rule, what in RULES:
        before, after = report.examples.get(rule, [('', '')])[0]
        at = max(0, len(os.path.commonprefix([before, after])) - 12)  # where they begin to differ
        example = f'{before[at : at + 30]!r} → {after[at : at + 30]!r}' if before else ''
        if rule == 'digits' and report.digits:
            example = repr(report.digits[0][:60])
        table.add_row(rule, what, f'{report.changed[rule]:,}', example)
    console = Console(stderr=True, markup=False)
    console.print(table)
    if report.removed:
        common = ', '.join(f'{char!r} {count:,}' for char, count in report.removed.most_common(20))
        console.print(f'characters that became blanks: {common}')


def has_digits(text: str) -> bool:
    """Whether there is a digit of any script in the text."""
    return any(unicodedata.category(char) == 'Nd' for char in text)


def characters(texts: Iterable[str]) -> Counter:
    """How often each character occurs."""
    found = Counter()
    for text in texts:
        found.update(text)
    return found


def _unicode(text: str) -> str:
    text = unicodedata.normalize('NFC', text)
    # Cc and Cf: control and formatting characters such as the soft hyphen and the zero-width blank
    return re.sub(r'\s', ' ', ''.join(c for c in text if c.isspace() or unicodedata.category(c) not in ('Cc', 'Cf')))
