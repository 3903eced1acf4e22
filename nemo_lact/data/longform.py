"""Consecutive utterances of one speaker, chapter or session joined to long rows, so that training sees many chunks.

Nothing is copied where it can be joined on the fly: parts of one file that follow each other become one manifest row
with `offset`; pieces from several files become a Lhotse MixedCut that NeMo's `use_lhotse: true` loads. Only a NeMo
manifest of pieces from several files needs audio to be written.

Texts are joined with a blank, and each row keeps its `pieces`: start and end in the row (seconds), text, source.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nemo_lact.data.audio import read, write
from nemo_lact.data.manifests import Rejects, audio_info, resolve_audio, whole_file
from nemo_lact.data.parallel import each
from nemo_lact.transcription import read_manifest

GROUPS = ('session', 'recording', 'chapter', 'speaker')  # looked for in this order if --by is not given
TOLERANCE = 0.01  # seconds: parts that overlap by rounding still follow each other


@dataclass
class Piece:
    """One utterance: where its audio is, and what is said in it. Times in seconds."""

    path: str
    offset: float
    duration: float
    text: str
    group: tuple
    sample_rate: int
    recording: float  # duration of the whole file
    row: dict = field(repr=False, default_factory=dict)

    @property
    def end(self) -> float:
        return self.offset + self.duration


@dataclass
class LongRow:
    """Pieces that follow each other, and the second of the row each starts at."""

    pieces: list[Piece]
    starts: list[float]
    in_one_file: bool

    @property
    def duration(self) -> float:
        return round(self.starts[-1] + self.pieces[-1].duration, 6)

    @property
    def text(self) -> str:
        return ' '.join(piece.text for piece in self.pieces)

    def describe(self) -> list[dict]:
        """The pieces as the manifest has them."""
        return [
            {
                'start': round(start, 6),
                'end': round(start + piece.duration, 6),
                'text': piece.text,
                'audio_filepath': piece.path,
            }
            for start, piece in zip(self.starts, self.pieces)
        ]


def read_pieces(source: str | Path, by: Sequence[str] | None = None, jobs: int | None = None):
    """Pieces of a NeMo manifest or of Lhotse cuts (.jsonl.gz, .jsonl of cuts), in order, and what had to be left out.

    Args:
        by: keys whose values must be equal within a row; None takes the first of `GROUPS` that all rows have.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no manifest, no such key, or not one usable piece.
    """
    source = Path(source)
    rows = _cut_rows(source) if is_cuts(source) else read_manifest(source)
    by = tuple(by) if by else _common_key(rows, source)
    for number, row in enumerate(rows, 1):
        if missing := [key for key in by if row.get(key) is None]:
            raise ValueError(f'{source}, row {number}: no {missing[0]!r}; rows are joined --by {",".join(by)}')
    rejects, pieces = Rejects(), []
    paths = [resolve_audio(str(row.get('audio_filepath')), source) for row in rows]
    unique = list(dict.fromkeys(paths))
    infos = dict(zip(unique, each(_header, unique, 'reading headers', jobs)))
    for number, (row, path) in enumerate(zip(rows, paths), 1):
        piece = _piece(row, path, infos[path], tuple(str(row[key]) for key in by))
        if isinstance(piece, str):
            rejects.add(piece, line=number, audio_filepath=path)
        else:
            pieces.append(piece)
    if not pieces:
        raise ValueError(f'{source}: no usable row; the first because of: {rejects.rows[0]["reason"]}')
    return pieces, rejects, by


def join(
    pieces: Sequence[Piece],
    lengths: Sequence[float] = (120.0,),
    gap: float = 0.3,
    max_pause: float = 2.0,
) -> list[LongRow]:
    """Long rows of consecutive pieces of one group; no piece is left out, used twice or moved.

    Args:
        pieces: in the order they are joined in; those of one file are put in the order of their offsets.
        lengths: longest row in seconds; with several, rows take turns, which makes a mixture of lengths. A piece that
            is longer than that is a row of its own.
        gap: seconds of silence between pieces of different files. Parts of one file keep the real pause.
        max_pause: a longer pause between parts of one file starts a new row: somebody may speak there, unwritten.

    Raises:
        ValueError: lengths or gap that make no sense.
    """
    if not lengths or min(lengths) <= 0 or not all(np.isfinite(lengths)):
        raise ValueError(f'lengths of rows are {list(lengths)}; give seconds above 0, for example 120')
    if not (0 <= gap < min(lengths) and max_pause >= 0):
        raise ValueError(f'gap={gap} s and max_pause={max_pause} s: must be 0 or more, and gap below {min(lengths)} s')
    groups: dict[tuple, list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(piece.group, []).append(piece)
    rows, turns = [], itertools.cycle(lengths)
    for group in groups.values():
        current, limit = None, next(turns)
        for piece in _in_time(group):
            start = None if current is None else _start(current, piece, gap, max_pause)
            if start is None or start + piece.duration > limit:
                current, limit = LongRow([piece], [0.0], True), next(turns) if current else limit
                rows.append(current)
            else:
                current.in_one_file &= piece.path == current.pieces[-1].path
                current.pieces.append(piece)
                current.starts.append(start)
    return rows


def write_nemo(rows: Sequence[LongRow], output: str | Path, audio: str | Path | None = None, jobs=None) -> list[dict]:
    """Write a NeMo manifest, and the audio of the rows that need it to the folder `audio` (FLAC, as the first piece).

    Raises:
        ValueError: rows of several files, and no folder for them.
    """
    need = [row for row in rows if not row.in_one_file]
    if need and audio is None:
        raise ValueError(
            f'{len(need)} of {len(rows)} rows join several files, which a NeMo manifest cannot say without new audio; '
            f'give --write-audio FOLDER, or write Lhotse cuts: --output NAME.jsonl.gz'
        )
    if need:
        audio = Path(audio).absolute()
        targets = [str(audio / f'{_name(row, i)}.flac') for i, row in enumerate(need)]
        durations = list(each(_write_audio, list(zip(need, targets)), 'joining audio', jobs, chunk=1))
        written = {id(row): pair for row, pair in zip(need, zip(targets, durations))}
    done = []
    for row in rows:
        first = row.pieces[0]
        if row.in_one_file:
            where = {'audio_filepath': first.path, 'offset': first.offset, 'duration': row.duration}
        else:
            where = dict(zip(('audio_filepath', 'duration'), written[id(row)]))
        done.append({**where, 'text': row.text, **_common(row), 'pieces': row.describe()})
    with whole_file(output) as file:
        for row in done:
            file.write(json.dumps(row, ensure_ascii=False) + '\n')
    return done


def write_cuts(rows: Sequence[LongRow], output: str | Path, gain_db: float = 0.0, seed: int = 0) -> None:
    """Write Lhotse cuts (.jsonl or .jsonl.gz), one per row, each with one supervision of the whole text.

    Args:
        gain_db: one gain per row, drawn from −gain_db … +gain_db.
    """
    import gzip

    rng = random.Random(seed)
    with whole_file(output, 'wb') as raw:
        compress = str(output).endswith('.gz')
        file = gzip.GzipFile(fileobj=raw, mode='wb', mtime=0) if compress else raw
        for i, row in enumerate(rows):
            cut = _cut(row, f'{_name(row, i)}')
            if gain_db:
                cut = cut.perturb_volume(10 ** (rng.uniform(-gain_db, gain_db) / 20), affix_id=False)
            file.write((json.dumps(cut.to_dict(), ensure_ascii=False) + '\n').encode())
        if compress:
            file.close()


def is_cuts(path: str | Path) -> bool:
    """Whether a file is named as Lhotse names cuts: .jsonl.gz, or a .jsonl whose first object has a type."""
    path = Path(path)
    if path.name.endswith('.jsonl.gz'):
        return True
    if path.suffix != '.jsonl' or not path.is_file():
        return False
    with open(path, encoding='utf-8', errors='replace') as file:
        return '"type"' in file.readline()


def _cut(row: LongRow, name: str):
    from lhotse import MonoCut, Recording, SupervisionSegment
    from lhotse.audio import AudioSource
    from lhotse.cut import MixedCut, MixTrack

    rate = row.pieces[0].sample_rate
    recordings = {
        piece.path: Recording(
            id=piece.path,
            sources=[AudioSource('file', [0], piece.path)],
            sampling_rate=piece.sample_rate,
            num_samples=round(piece.recording * piece.sample_rate),
            duration=piece.recording,
        )
        for piece in row.pieces
    }
    said = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=row.duration,
        text=row.text,
        speaker=_common(row).get('speaker'),
        language=_common(row).get('lang'),
        custom={**_common(row), 'pieces': row.describe()},
    )
    first = row.pieces[0]
    if row.in_one_file:
        cut = MonoCut(name, first.offset, row.duration, 0, recording=recordings[first.path], supervisions=[said])
        return cut.resample(rate)
    # No PaddingCut between them: Lhotse's mixer leaves silence there, and some of NeMo's augmentations refuse padding.
    tracks = []
    for i, (piece, start) in enumerate(zip(row.pieces, row.starts)):
        cut = MonoCut(
            f'{name}-{i}',
            piece.offset,
            piece.duration,
            0,
            recording=recordings[piece.path],
            supervisions=[said] if i == 0 else [],
        )
        tracks.append(MixTrack(cut if piece.sample_rate == rate else cut.resample(rate), offset=round(start, 6)))
    return MixedCut(name, tracks)


def _write_audio(job: tuple[LongRow, str]) -> float:
    row, target = job
    rate = row.pieces[0].sample_rate
    if Path(target).exists():
        return audio_info(target).duration
    samples = np.zeros(round(row.duration * rate), np.float32)
    for piece, start in zip(row.pieces, row.starts):
        part, _ = read(piece.path, rate, piece.offset, piece.duration)
        at = round(start * rate)
        part = part[: len(samples) - at]
        samples[at : at + len(part)] += part
    return write(target, samples, rate)


def _start(row: LongRow, piece: Piece, gap: float, max_pause: float) -> float | None:
    """Second of the row at which the piece would start; None if it does not follow on."""
    last = row.pieces[-1]
    end = row.starts[-1] + last.duration
    if piece.path != last.path:
        return end + gap
    pause = piece.offset - last.end
    return max(end + pause, 0.0) if -TOLERANCE <= pause <= max_pause else None


def _in_time(group: list[Piece]) -> Iterator[Piece]:
    """Pieces in their order, those of one file in the order of time."""
    order = {path: i for i, path in enumerate(dict.fromkeys(piece.path for piece in group))}
    return iter(sorted(group, key=lambda piece: (order[piece.path], piece.offset)))


def _common(row: LongRow) -> dict:
    """Keys that all pieces agree on."""
    first = row.pieces[0].row
    skip = {'audio_filepath', 'duration', 'offset', 'text', 'pieces', 'sentence', 'utterance'}
    return {
        key: value
        for key, value in first.items()
        if key not in skip and all(piece.row.get(key) == value for piece in row.pieces)
    }


def _name(row: LongRow, number: int) -> str:
    group = '-'.join(''.join(c if c.isalnum() else '_' for c in value)[:40] for value in row.pieces[0].group)
    return f'{group}-{number:06d}'


def _common_key(rows: list[dict], source: Path) -> tuple[str]:
    for key in GROUPS:
        if all(row.get(key) is not None for row in rows):
            return (key,)
    raise ValueError(f'{source}: rows have none of {", ".join(GROUPS)} in common; say what belongs together with --by')


def _header(path: str):
    try:
        return audio_info(path)
    except (OSError, ValueError) as error:
        return str(error)


def _piece(row: dict, path: str, info, group: tuple) -> Piece | str:
    """A piece, or why the row cannot be one."""
    if isinstance(info, str):
        return info
    text = row.get('text')
    if not isinstance(text, str) or not text.strip():
        return 'no text'
    try:
        offset = float(row.get('offset') or 0.0)
        duration = float(info.duration - offset if row.get('duration') is None else row['duration'])
    except (TypeError, ValueError):
        return f'offset {row.get("offset")!r} and duration {row.get("duration")!r} must be numbers'
    if info.channels != 1:
        return f'{info.channels} channels; convert to one'
    if not (offset >= 0 and 0 < duration <= info.duration - offset + 0.05):
        return f'{duration:g} s from {offset:g} s on, but the file has {info.duration:g} s'
    duration = round(min(duration, info.duration - offset), 6)
    return Piece(path, offset, duration, ' '.join(text.split()), group, info.sample_rate, info.duration, row)


def _cut_rows(source: Path) -> list[dict]:
    """Manifest rows of Lhotse cuts of one channel with audio in files."""
    if not source.is_file():
        raise FileNotFoundError(f'no cuts at {source}')
    from lhotse import load_manifest_lazy
    from lhotse.cut import MonoCut

    rows = []
    try:
        for number, cut in enumerate(load_manifest_lazy(source), 1):
            if not isinstance(cut, MonoCut) or not cut.has_recording or cut.recording.sources[0].type != 'file':
                raise ValueError(f'{source}, cut {number}: only MonoCuts with audio in a file can be joined')
            row = {'audio_filepath': cut.recording.sources[0].source, 'offset': cut.start, 'duration': cut.duration}
            texts = [part.text for part in sorted(cut.supervisions, key=lambda part: part.start) if part.text]
            speakers = {part.speaker for part in cut.supervisions if part.speaker}
            row |= {'text': ' '.join(texts), 'recording': cut.recording_id}
            row |= {'speaker': speakers.pop()} if len(speakers) == 1 else {}
            rows.append({**(cut.custom or {}), **row})
    except (AttributeError, AssertionError, KeyError, TypeError, EOFError, OSError) as error:
        raise ValueError(f'{source} holds no Lhotse cuts ({type(error).__name__}: {error})') from error
    return rows
