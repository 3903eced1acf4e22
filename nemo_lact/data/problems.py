"""What can be wrong with a manifest, how often it was found, and the table that says so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DROP, FIX, NOTE = 'drop', 'fix', 'note'  # cannot be used; --fix corrects it; works, but look at it
KINDS = {  # kind: (what becomes of the row, what it means)
    'json': (DROP, 'no JSON object in UTF-8'),
    'audio_filepath': (DROP, 'no audio_filepath'),
    'missing': (DROP, 'audio file is missing'),
    'duration': (DROP, 'duration is missing, or no number above 0'),
    'offset': (DROP, 'offset is no number from 0 on'),
    'text': (DROP, 'text is missing or empty'),
    'characters': (DROP, 'characters outside the vocabulary'),
    'ctc': (DROP, 'text is longer than the CTC frames allow'),
    'duplicate': (DROP, 'audio is in this manifest before'),
    'split': (DROP, 'audio is in another manifest too'),
    'unreadable': (DROP, 'audio cannot be read'),
    'empty': (DROP, 'audio is empty'),
    'channels': (DROP, 'audio has several channels'),
    'end': (DROP, 'offset is past the end of the file'),
    'wrong': (FIX, 'duration differs from the file'),
    'unmeasured': (FIX, 'duration is missing, the file tells it'),
    'rate': (NOTE, 'another sample rate: resampled while loading'),
    'same text': (NOTE, 'text is in another manifest too'),
    'filtered': (NOTE, 'outside min_duration and max_duration'),
}
FIRST = 5  # line numbers kept of each kind


@dataclass
class Found:
    """Rows with one kind of problem: how many, the first lines, and what the first one looks like."""

    count: int = 0
    lines: list[int] = field(default_factory=list)
    example: str = ''


@dataclass
class Report:
    """What was found in one manifest.

    Attributes:
        path: the manifest.
        rows: lines that are not blank.
        usable: rows that nothing speaks against, filtered ones not counted.
        kept: rows within min_duration and max_duration of those with a duration.
        seconds: of the rows with a duration.
        shortest, longest: seconds; infinity and 0 without any row.
        found: by kind, in the order of `KINDS`.
        removed: line number → (kind, detail), for every row that --fix leaves out.
        corrected: line number → new duration.
    """

    path: str
    rows: int = 0
    usable: int = 0
    kept: int = 0
    seconds: float = 0.0
    shortest: float = math.inf
    longest: float = 0.0
    found: dict[str, Found] = field(default_factory=dict)
    removed: dict[int, tuple[str, str]] = field(default_factory=dict)
    corrected: dict[int, float] = field(default_factory=dict)

    def add(self, kind: str, line: int, example: str = '') -> None:
        """Count a problem; a row that has one already is counted again under the new kind."""
        found = self.found.setdefault(kind, Found())
        found.count += 1
        if len(found.lines) < FIRST:
            found.lines.append(line)
            found.example = found.example or printable(example)
        if KINDS[kind][0] == DROP:
            self.removed.setdefault(line, (kind, example))

    @property
    def clean(self) -> bool:
        """Nothing but notes."""
        return all(KINDS[kind][0] == NOTE for kind in self.found)

    @property
    def all_filtered(self) -> bool:
        """There are rows with a duration, and none is within the limits."""
        return self.rows > 0 and self.kept == 0 and 'filtered' in self.found


def show(reports: Sequence[Report], console=None) -> None:
    """One table of all that was found."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title='manifests')
    for name in ('manifest', 'problem', 'rows', 'first lines', 'example'):
        table.add_column(name, justify='right' if name == 'rows' else 'left', overflow='fold')
    for report in reports:
        name = escape(printable(Path(report.path).name))
        span = f'{report.shortest:g} to {report.longest:g} s each' if report.longest else ''
        hours = f'{report.seconds / 3600:.2f} h' if math.isfinite(report.seconds) else ''
        table.add_row(name, 'usable', f'{report.usable:,}', f'of {report.rows:,}', f'{hours}  {span}'.strip())
        for kind, found in report.found.items():
            lines = ', '.join(map(str, found.lines)) + (', …' if found.count > len(found.lines) else '')
            table.add_row('', KINDS[kind][1], f'{found.count:,}', lines, escape(found.example))
        table.add_section()
    (console or Console()).print(table)


def printable(text: str) -> str:
    text = str(text)[:160]
    return text if text.isprintable() else ''.join(char if char.isprintable() else '�' for char in text)
