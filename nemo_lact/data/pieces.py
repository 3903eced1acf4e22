"""Utterances to join: read from NeMo manifests and from Lhotse cuts, with the audio's header checked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_lact.data.manifests import Rejects, audio_info, resolve_audio
from nemo_lact.data.parallel import each
from nemo_lact.transcription import read_manifest

GROUPS = ('session', 'recording', 'chapter', 'speaker')  # looked for in this order if --by is not given


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
    by = group_keys(rows, by, source)
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


def is_cuts(path: str | Path) -> bool:
    """Whether a file is named as Lhotse names cuts: .jsonl.gz, or a .jsonl whose first object has a type."""
    path = Path(path)
    if path.name.endswith('.jsonl.gz'):
        return True
    if path.suffix != '.jsonl' or not path.is_file():
        return False
    with open(path, encoding='utf-8', errors='replace') as file:
        return '"type"' in file.readline()


def group_keys(rows: list[dict], by: Sequence[str] | None, source: Path) -> tuple[str, ...]:
    """The keys `by` if every row has them; None gives the first of `GROUPS` that every row has.

    Raises:
        ValueError: a row without the key, or no common one.
    """
    if by:
        for number, row in enumerate(rows, 1):
            if missing := [key for key in by if row.get(key) is None]:
                raise ValueError(f'{source}, row {number}: no {missing[0]!r}; rows are joined --by {",".join(by)}')
        return tuple(by)
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
