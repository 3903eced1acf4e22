"""Problems of a manifest found before training: one pass over its lines, and over the audio headers if asked for.

Everything a person or a program may have written into a manifest ends as a count with line numbers, never as an
exception; only a manifest that is not there raises.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_lact.data.manifests import audio_info, resolve_audio, whole_file
from nemo_lact.data.parallel import each
from nemo_lact.data.problems import KINDS, Report, printable
from nemo_lact.data.vocabulary import Spelling, encoder_frames, frames_needed

TOLERANCE = 0.1  # seconds a duration may differ from the file
BATCH = 4096  # texts tokenized at a time


@dataclass
class Seen:
    """What earlier manifests hold: (audio, offset) → (manifest, line), and text → manifest."""

    audio: dict[tuple[str, float], tuple[str, int]] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)


def check_manifests(
    paths: Sequence[str | Path],
    spelling: Spelling | None = None,
    min_duration: float | None = None,
    max_duration: float | None = None,
    audio: bool = False,
    sample_rate: int | None = None,
    seen: Seen | None = None,
    jobs: int | None = None,
) -> list[Report]:
    """One report for each manifest; the later ones are also held against the earlier ones.

    Args:
        spelling: vocabulary and subsampling of the model; None leaves both unchecked.
        min_duration, max_duration: seconds, the limits of the training config.
        audio: read the headers of all audio files, on `jobs` processes.
        sample_rate: what the model expects (with `audio`).
        seen: that of an earlier call, to go on comparing with its manifests.

    Raises:
        FileNotFoundError: a manifest does not exist.
    """
    low = 0.0 if min_duration is None else float(min_duration)
    high = math.inf if max_duration is None else float(max_duration)
    seen = Seen() if seen is None else seen
    reports = []
    for path in paths:
        report = Report(str(path))
        parts = _check_lines(report, spelling or Spelling(), low, high, seen, audio)
        if audio:
            _check_audio(report, parts, sample_rate, jobs)
        report.usable = report.rows - len(report.removed) - len(_filtered(report, parts, low, high))
        report.found = {kind: report.found[kind] for kind in KINDS if kind in report.found}
        reports.append(report)
    return reports


def fix(report: Report) -> tuple[Path, Path, int]:
    """Write NAME.clean.json without the rows that cannot be used, and NAME.removed.jsonl: what went and why.

    Returns:
        Both paths, and the rows kept.
    """
    source = Path(report.path)
    clean, removed = source.with_suffix('.clean.json'), source.with_suffix('.removed.jsonl')
    kept = 0
    with whole_file(clean) as good, whole_file(removed) as bad:
        for number, line in _lines(source):
            if number in report.removed:
                kind, detail = report.removed[number]
                text = line.decode('utf-8', errors='backslashreplace')
                entry = {'line': number, 'why': KINDS[kind][1], 'detail': printable(detail), 'row': text}
                bad.write(json.dumps(entry) + '\n')
                continue
            if number in report.corrected:
                row = {**json.loads(line), 'duration': report.corrected[number]}
                bad.write(json.dumps({'line': number, 'why': 'corrected', 'duration': row['duration']}) + '\n')
                good.write(json.dumps(row, ensure_ascii=False) + '\n')
            else:
                good.write(line.decode() + '\n')
            kept += 1
    return clean, removed, kept


def _lines(path: Path):
    """(number, bytes) of the lines that are not blank."""
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if line:
                yield number, line


def _check_lines(report: Report, spelling: Spelling, low: float, high: float, seen: Seen, audio: bool) -> list[tuple]:
    """The pass without audio; returns (line, path, offset or None, duration or None) of rows whose audio is there."""
    path = Path(report.path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no manifest at {path}')
    parts, texts, exists = [], [], {}
    for number, line in _lines(path):
        report.rows += 1
        row = _parse(line)
        if isinstance(row, str):
            report.add('json', number, row)
            continue
        name = row.get('audio_filepath', row.get('audio_filename'))
        if not isinstance(name, str) or not name:
            report.add('audio_filepath', number, f'{name!r}' if name else f'has {", ".join(row) or "no keys"}')
            continue
        source = name if os.path.isabs(name) else resolve_audio(name, path)
        if source not in exists:
            exists[source] = os.path.isfile(source)
        if not exists[source]:
            report.add('missing', number, name)
        offset, duration = _number(row.get('offset')), _number(row.get('duration'))
        if row.get('offset') is not None and (offset is None or offset < 0):
            report.add('offset', number, f'{row.get("offset")!r}')
            offset = None
        if duration is None or duration <= 0:
            duration = None
            if not (audio and exists[source]):
                report.add('duration', number, f'{row.get("duration")!r}')
        else:
            report.seconds += duration
            report.shortest, report.longest = min(report.shortest, duration), max(report.longest, duration)
            if low <= duration <= high:
                report.kept += 1
            else:
                report.add('filtered', number, f'{duration:g} s')
        text = row.get('text')
        if isinstance(text, str) and text.strip():
            texts.append((number, text, duration))
            first = seen.text.setdefault(text, report.path)
            if first != report.path:
                report.add('same text', number, f'{text[:40]!r} is in {Path(first).name}')
        elif 'text_filepath' not in row:
            report.add('text', number, f'{text!r}'[:60])
        if exists[source]:
            parts.append((number, source, offset, duration))
        key = (source, offset or 0.0)
        if number in report.removed:  # must not take a good row along
            continue
        first, line_there = seen.audio.setdefault(key, (report.path, number))
        if first != report.path:
            report.add('split', number, f'{Path(first).name}, line {line_there}: {name}')
        elif line_there != number:
            report.add('duplicate', number, f'line {line_there}: {name}')
    _check_texts(report, texts, spelling)
    return parts


def _check_texts(report: Report, texts: list[tuple], spelling: Spelling) -> None:
    vocabulary, factor = spelling.vocabulary, spelling.subsampling_factor
    if vocabulary is not None:
        for number, text, _ in texts:
            if outside := vocabulary.outside(text):
                report.add('characters', number, f'{"".join(sorted(outside))!r} in {text[:40]!r}')
    if not factor:
        return
    stride = spelling.window_stride
    timed = [(n, text, encoder_frames(duration, factor, stride)) for n, text, duration in texts if duration]
    # No token is shorter than a byte, so texts with a frame for every byte and a blank after each are fine.
    tight = [row for row in timed if 2 * len(row[1].encode()) + 2 > row[2]]
    for start in range(0, len(tight), BATCH):
        batch = tight[start : start + BATCH]
        plain = [text for _, text, _ in batch]
        needed = vocabulary.needed(plain) if vocabulary is not None else map(frames_needed, plain)
        for (number, text, frames), need in zip(batch, needed):
            if need > frames:
                report.add('ctc', number, f'needs {need} frames, has {frames}: {text[:40]!r}')


def _check_audio(report: Report, parts: list[tuple], sample_rate: int | None, jobs: int | None) -> None:
    sources = list(dict.fromkeys(source for _, source, _, _ in parts))
    infos = dict(zip(sources, each(_header, sources, f'{Path(report.path).name}: audio headers', jobs, chunk=256)))
    for number, source, offset, duration in parts:
        info = infos[source]
        if isinstance(info, str):
            report.add('unreadable', number, info)
            continue
        if info.duration <= 0:
            report.add('empty', number, source)
            continue
        if info.channels != 1:
            report.add('channels', number, f'{info.channels} in {source}')
        if sample_rate and info.sample_rate != sample_rate:
            report.add('rate', number, f'{info.sample_rate} Hz instead of {sample_rate}: {source}')
        left = info.duration - (offset or 0.0)
        if left <= 0:
            report.add('end', number, f'{offset:g} s of {info.duration:g} s: {source}')
        elif duration is None:
            report.add('unmeasured', number, f'{left:g} s: {source}')
            report.corrected[number] = round(left, 6)
        # A row with an offset is a part, and may end before the file does. One without is the whole file: Lhotse loads
        # all of it, whatever its duration says.
        elif duration > left + TOLERANCE or (offset is None and duration < left - TOLERANCE):
            report.add('wrong', number, f'{duration:g} s, the file has {left:g} s: {source}')
            report.corrected[number] = round(left, 6)


def _filtered(report: Report, parts: list[tuple], low: float, high: float) -> list[int]:
    """Lines of usable rows that training would filter."""
    if 'filtered' not in report.found:
        return []
    return [n for n, _, _, span in parts if n not in report.removed and span is not None and not low <= span <= high]


def _parse(line: bytes) -> dict | str:
    """The row, or what is wrong with it."""
    try:
        row = json.loads(line.decode())
        if b'\\u' in line:
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, but no text
    except UnicodeError as error:
        return f'no UTF-8: {error.reason}'
    except (ValueError, RecursionError) as error:
        return f'{error}'
    return row if isinstance(row, dict) else f'{str(row)[:60]} is no object in braces'


def _number(value) -> float | None:
    """A finite float, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _header(source: str):
    try:
        return audio_info(source)
    except (OSError, ValueError) as error:
        return str(error)
