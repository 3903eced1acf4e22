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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_lact.data.audio import read, write
from nemo_lact.data.manifests import audio_info, whole_file
from nemo_lact.data.parallel import each
from nemo_lact.data.pieces import Piece

TOLERANCE = 0.01  # seconds: parts that overlap by rounding still follow each other


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
