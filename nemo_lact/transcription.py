"""Audio files, folders and manifests to text, with NeMo's `ASRModel.restore_from` and `model.transcribe`.

All checks of the input run before NeMo and the model are loaded, and name the file or the manifest line.
"""

import contextlib
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

AUDIO_SUFFIXES = ('.aif', '.aiff', '.flac', '.mp3', '.oga', '.ogg', '.opus', '.w64', '.wav')
MANIFEST_SUFFIXES = ('.json', '.jsonl')
ROUNDING = 0.1  # seconds by which offset + duration of a manifest row may pass the end of its file


def read_manifest(path: str | Path) -> list[dict]:
    """Rows of a NeMo manifest, one JSON object a line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is no JSON object, or there is no line at all.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'no manifest at {path}')
    try:
        lines = path.read_text(encoding='utf-8').split('\n')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is no manifest: no UTF-8 text ({error.reason} at byte {error.start})') from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f'{path}, line {number}: no JSON ({error}); a manifest has one JSON object a line'
            ) from error
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number}: {line.strip()[:60]!r} is no JSON object in braces')
        rows.append(row)
    if not rows:
        raise ValueError(f'manifest {path} is empty; it needs one JSON object a line, with audio_filepath and duration')
    return rows


def write_json_lines(rows: Iterable[dict], path: str | Path) -> None:
    """Write one JSON object a line, as UTF-8; '-' is stdout."""
    with contextlib.ExitStack() as stack:
        file = sys.stdout if str(path) == '-' else stack.enter_context(open(path, 'w', encoding='utf-8'))
        for row in rows:
            print(json.dumps(row, ensure_ascii=False), file=file)


def collect(inputs: Sequence[str | Path], channel: int | None = None) -> list[dict]:
    """Rows to transcribe, in the order of the inputs, folders in the order of their file names.

    Args:
        inputs: audio files, folders (searched with their subfolders) and manifests (.json, .jsonl). A relative
            audio path in a manifest starts from the manifest's folder if there is such a file, as in NeMo.
        channel: channel to use of files with several, from 0.

    Returns:
        The manifest rows with all their keys, or new rows, each with `audio_filepath` and `duration` (seconds).

    Raises:
        FileNotFoundError: an input, or the audio of a row, does not exist; or a folder has no audio.
        ValueError: audio that cannot be read, is empty, or has no such part or channel.
    """
    rows = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(p for p in path.rglob('*') if p.suffix.lower() in AUDIO_SUFFIXES and p.is_file())
            if not found:
                raise FileNotFoundError(f'no audio in folder {path}; looked for {", ".join(AUDIO_SUFFIXES)}')
            rows += [_checked({'audio_filepath': str(p)}, str(p), channel) for p in found]
        elif path.suffix.lower() in MANIFEST_SUFFIXES:
            rows += manifest_rows(path, channel)
        else:
            rows.append(_checked({'audio_filepath': str(path)}, str(path), channel))
    return rows


def manifest_rows(manifest: str | Path, channel: int | None = None) -> list[dict]:
    """What `collect` gives for one manifest, whatever its name ends with."""
    manifest = Path(manifest)
    return [_manifest_row(row, manifest, n, channel) for n, row in enumerate(read_manifest(manifest), 1)]


def load_model(path: str | Path, device: str = 'auto'):
    """An ASR model from a .nemo file, in evaluation mode.

    Args:
        device: 'auto' (a CUDA GPU if there is one), 'cpu' or 'cuda'.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .nemo file, no ASR model, or no GPU where 'cuda' is asked for.
    """
    check_nemo_file(path)
    import torch
    from nemo.collections.asr.models import ASRModel

    if device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('--device cuda, but torch finds no CUDA GPU; use --device cpu, or check the driver and torch')
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        model = ASRModel.restore_from(str(path), map_location=torch.device(device))
    except Exception as error:
        raise ValueError(
            f'{path} could not be restored as an ASR model: {_first_line(error)}. `nemo-lact info` shows what it holds'
        ) from error
    if not hasattr(model, 'transcribe'):
        raise ValueError(f'{path} holds a {type(model).__name__}, which does not transcribe; give a CTC ASR model')
    return model.eval()


def check_nemo_file(path: str | Path) -> None:
    """Raise FileNotFoundError or ValueError unless `path` is a tar archive, as .nemo files are."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'no model file at {path}')
    if not tarfile.is_tarfile(path):
        raise ValueError(f'{path} is no .nemo file (a tar archive); NeMo writes one with model.save_to("name.nemo")')


def transcribe(
    model,
    rows: Sequence[dict],
    batch_size: int = 4,
    timestamps: bool = False,
    channel: int | None = None,
    workers: int = 0,
    progress: bool = True,
) -> list[dict]:
    """The rows with `pred_text` and, if asked for, `timestamps` (words and segments, seconds).

    Args:
        model: what `load_model` gives.
        rows: what `collect` gives.
        batch_size: rows at a time.
        timestamps: add start and end of words and segments; needs an encoder with `subsampling_factor`.
        channel: channel to use of files with several.
        workers: processes that read audio.
        progress: show NeMo's progress bar.

    Raises:
        RuntimeError: out of GPU memory, or NeMo returned another number of texts than there are rows.
    """
    import torch
    from omegaconf import open_dict

    if model.cfg.get('validation_ds') is None:  # NeMo's subword models read this section while transcribing
        with open_dict(model.cfg):
            model.cfg.validation_ds = {}
    order = sorted(range(len(rows)), key=lambda i: -rows[i]['duration'])  # like lengths together: less padding
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, 'rows.json')
        write_json_lines((_for_nemo(rows[i]) for i in order), manifest)
        try:
            found = model.transcribe(
                str(manifest),
                batch_size=batch_size,
                return_hypotheses=timestamps,
                timestamps=timestamps or None,
                channel_selector=channel,
                num_workers=workers,
                verbose=progress,
            )
        except torch.cuda.OutOfMemoryError as error:
            longest = rows[order[0]]['duration']
            raise RuntimeError(
                f'out of GPU memory at --batch-size {batch_size} (longest row {longest:.1f} s); use a smaller batch, '
                f'cut the recording, or --device cpu'
            ) from error
    if len(found) != len(rows):
        raise RuntimeError(f'NeMo returned {len(found)} texts for {len(rows)} rows; run with --verbose to see why')
    done = [None] * len(rows)
    for i, hypothesis in zip(order, found, strict=True):
        text = hypothesis if isinstance(hypothesis, str) else hypothesis.text
        done[i] = {**rows[i], 'audio_filepath': os.path.abspath(rows[i]['audio_filepath']), 'pred_text': text}
        if timestamps:
            done[i]['timestamps'] = {
                unit: [_span(piece, unit) for piece in hypothesis.timestamp.get(unit, [])]
                for unit in ('word', 'segment')
            }
    return done


def _span(piece: dict, unit: str) -> dict:
    return {unit: piece[unit], 'start': round(float(piece['start']), 3), 'end': round(float(piece['end']), 3)}


def _for_nemo(row: dict) -> dict:
    """What NeMo's loaders need; the text is left out because they drop rows whose text they cannot tokenize."""
    kept = {key: row[key] for key in ('offset', 'duration') if row.get(key) is not None}
    return {'audio_filepath': os.path.abspath(row['audio_filepath']), 'text': '', **kept}


def _manifest_row(row: dict, manifest: Path, number: int, channel: int | None) -> dict:
    where = f'{manifest}, row {number}'
    name = row.get('audio_filepath')
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: no 'audio_filepath'; it has {', '.join(row) or 'no keys'}")
    beside = manifest.parent / name
    path = beside if beside.is_file() else Path(name).expanduser()
    return _checked({**row, 'audio_filepath': str(path)}, f'{where} ({name})', channel)


def _checked(row: dict, where: str, channel: int | None) -> dict:
    """The row with its duration, measured if it has none."""
    path = row['audio_filepath']
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{where}: no such file')
    try:
        info = soundfile.info(path)
    except Exception as error:
        raise ValueError(
            f'{where}: not readable as audio ({_first_line(error)}); '
            f'convert it, for example: ffmpeg -i INPUT -ar 16000 -ac 1 OUTPUT.wav'
        ) from error
    if info.channels > 1 and channel is None:
        raise ValueError(f'{where}: {info.channels} channels, the model takes one; choose with --channel 0')
    if channel is not None and not 0 <= channel < info.channels:
        raise ValueError(f'{where}: no channel {channel}; it has {info.channels}, counted from 0')
    offset = float(row.get('offset') or 0)
    left = info.frames / info.samplerate - offset
    if info.frames == 0 or left <= 0:
        raise ValueError(f'{where}: no audio at {offset:g} s; the file has {info.frames / info.samplerate:.3f} s')
    duration = row.get('duration')
    if duration is not None and float(duration) > left + ROUNDING:
        raise ValueError(
            f'{where}: duration {duration} s from {offset:g} s on, but the file has only {left:.3f} s left'
        )
    return {**row, 'duration': round(min(float(duration or left), left), 6)}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
