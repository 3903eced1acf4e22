"""Rows to transcribed rows, block by block: progress with speed and time left, resumable, sessions, subtitles."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from nemo_lact.inference.text import subtitles
from nemo_lact.state import LaCTState

SUBTITLE_STYLES = ('.srt', '.vtt')


def transcribe_rows(
    model,
    rows: Sequence[dict],
    batch_size: int = 1,
    channel: int | None = None,
    timestamps: bool = False,
    state: LaCTState | None = None,
    session_key: str | None = None,
    learn: bool = True,
    part: Path | None = None,
    progress: bool = False,
) -> tuple[list[dict], LaCTState | None]:
    """`longform.transcribe_blocks` for the command line.

    Args:
        timestamps: add `timestamps.word`: word, start, end (seconds of the file) and confidence.
        part: file that gets a JSON line for each row when it is done. Rows it holds already are not done again.
        progress: show a bar with speed (times real time) and time left.

    Returns:
        The rows in their order with `pred_text`, and the memory after the last one (if `state` was given).

    Raises:
        ValueError: as `transcribe_blocks`, or `part` with a state: what was heard is not in the file.
        RuntimeError: out of GPU memory.
    """
    import torch

    from nemo_lact.inference.longform import transcribe_blocks

    done = _read_part(part) if part is not None else {}
    found = [done.get(_key(row)) for row in rows]
    todo = [i for i, row in enumerate(found) if row is None]
    if len(todo) < len(rows) and (state is not None or session_key is not None):
        raise ValueError(f'{part} holds rows of a run that was cut, but not its memory; delete it to start again')
    with _bar(progress, sum(rows[i]['duration'] for i in todo)) as advance:
        try:
            for place, result, after in transcribe_blocks(
                model, [rows[i] for i in todo], batch_size, channel, state, session_key, learn, advance
            ):
                row = rows[todo[place]]
                row = {**row, 'audio_filepath': os.path.abspath(row['audio_filepath']), 'pred_text': result['text']}
                row['timestamps'] = {'word': [word.rounded() for word in result['words']]}
                found[todo[place]] = row
                state = after if state is not None else None
                if part is not None:
                    with part.open('a', encoding='utf-8') as file:
                        file.write(json.dumps(row, ensure_ascii=False) + '\n')
        except torch.cuda.OutOfMemoryError as error:
            raise RuntimeError(
                f'out of GPU memory with {batch_size} recordings at a time; use a smaller --batch-size'
            ) from error
    if not timestamps:
        found = [{k: v for k, v in row.items() if k != 'timestamps'} for row in found]
    return found, state


def write_subtitles(rows: Sequence[dict], target: Path) -> list[Path]:
    """Subtitles of transcribed rows with `timestamps`: `target` for one row, else a file for each in its folder.

    Raises:
        ValueError: `target` ends with neither .srt nor .vtt.
    """
    style = check_subtitle_file(target)
    if len(rows) == 1:
        files = [target]
    else:
        names = [Path(row['audio_filepath']).stem for row in rows]
        files = [target.with_name(f'{target.stem}.{i:04d}.{n}{target.suffix}') for i, n in enumerate(names, 1)]
    for file, row in zip(files, rows, strict=True):
        file.write_text(subtitles(row['timestamps']['word'], style), encoding='utf-8')
    return files


def check_subtitle_file(target: Path) -> str:
    """'srt' or 'vtt', by the file's name."""
    if target.suffix.lower() not in SUBTITLE_STYLES:
        raise ValueError(f'{target}: subtitles are written as {" or ".join(SUBTITLE_STYLES)}; name the file so')
    return target.suffix.lower()[1:]


def _key(row: dict) -> tuple:
    path = os.path.abspath(row['audio_filepath'])
    return path, round(float(row.get('offset') or 0), 3), round(float(row['duration']), 3)


def _read_part(part: Path) -> dict[tuple, dict]:
    """Finished rows; a last line cut by an interruption is left out."""
    if not part.is_file():
        return {}
    done = {}
    for line in part.read_text(encoding='utf-8').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        done[_key(row)] = row
    # Written anew, so that nothing is appended to half a line.
    part.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in done.values()), encoding='utf-8')
    return done


class _bar:
    """`with _bar(show, seconds) as advance`: advance(n) counts n seconds of audio as done."""

    def __init__(self, show: bool, seconds: float):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Speed(ProgressColumn):
            def render(self, task):
                return Text(f'{task.speed:.1f} x real time' if task.speed else '')

        self.progress = Progress(
            TextColumn('{task.percentage:3.0f} %'),
            BarColumn(),
            TextColumn('{task.completed:,.0f} of {task.total:,.0f} s'),
            Speed(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
        )
        self.task = self.progress.add_task('', total=seconds)

    def __enter__(self):
        self.progress.start()
        return lambda seconds: self.progress.advance(self.task, seconds)

    def __exit__(self, *error):
        self.progress.stop()
