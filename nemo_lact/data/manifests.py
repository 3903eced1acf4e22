"""What all the corpora share: rows of a NeMo manifest, their audio's length, and files that appear whole or not at all.

A manifest has one JSON object a line: `audio_filepath`, `duration` (seconds), `text`, and whatever else is known
(`speaker`, `session`, ...). `offset` (seconds) marks a part of a longer file.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple


class AudioInfo(NamedTuple):
    """What the header of an audio file says: seconds, samples per second, channels."""

    duration: float
    sample_rate: int
    channels: int


def audio_info(path: str | Path) -> AudioInfo:
    """Length and form of an audio file, from its header.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not readable as audio.
    """
    import soundfile

    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path}: no such file')
    try:
        info = soundfile.info(str(path))
    except Exception as error:  # libsndfile's errors have no common class over the versions
        raise ValueError(f'{path}: not readable as audio ({str(error).splitlines()[0]})') from error
    return AudioInfo(round(info.frames / info.samplerate, 6), info.samplerate, info.channels)


@contextlib.contextmanager
def whole_file(path: str | Path, mode: str = 'w') -> Iterator:
    """A file to write that takes its name only when the block ends well; a reader never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if 'b' in mode else 'utf-8'
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_manifest(path: str | Path, rows: Iterable[dict]) -> int:
    """Write the rows, whole or not at all; returns how many there were.

    Raises:
        OSError: the folder cannot be written.
    """
    count = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + '\n')
            count += 1
    return count


def resolve_audio(name: str, manifest: str | Path) -> str:
    """The path of a row's audio: relative ones start from the manifest's folder if the file is there, as in NeMo."""
    if os.path.isabs(name):
        return name
    beside = os.path.join(os.path.dirname(os.path.abspath(manifest)), name)
    return beside if os.path.isfile(beside) else os.path.expanduser(name)


def seconds(rows: Iterable[dict]) -> float:
    """Sum of the durations."""
    return sum(row['duration'] for row in rows)


def said(count: int, seconds: float) -> str:
    """'1,234 rows, 5.67 h'."""
    span = f'{seconds / 3600:.2f} h' if seconds >= 3600 else f'{seconds / 60:.1f} min'
    return f'{count:,} rows, {span}'


class Rejects:
    """Rows that could not be used, and why; a corpus is never made smaller in silence."""

    def __init__(self):
        self.rows = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, reason: str, **what) -> None:
        self.rows.append({'reason': reason, **what})

    def write(self, manifest: str | Path) -> Path | None:
        """Write them beside a manifest as NAME.rejected.jsonl. Without any, that file of an earlier run is removed."""
        manifest = Path(manifest)
        path = manifest.with_name(manifest.name.removesuffix('.gz').rpartition('.')[0] + '.rejected.jsonl')
        if not self.rows:
            path.unlink(missing_ok=True)
            return None
        write_manifest(path, self.rows)
        return path
