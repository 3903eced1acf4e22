"""Tables, JSON, Kaldi folders and folders of audio with .txt beside them: any of these to a NeMo manifest."""

import json
from pathlib import Path

from nemo_lact.data.commonvoice import read_tsv
from nemo_lact.data.manifests import Rejects, audio_info, resolve_audio
from nemo_lact.data.parallel import each
from nemo_lact.data.text import Normaliser
from nemo_lact.transcription import AUDIO_SUFFIXES

AUDIO_COLUMNS = ('audio_filepath', 'audio_filename', 'audio', 'path', 'file', 'filename', 'file_name', 'wav', 'clip')
TEXT_COLUMNS = ('text', 'sentence', 'transcript', 'transcription', 'normalized_text', 'words', 'label')
ROUNDING = 0.05  # seconds by which a part may pass the end of its file


def rows_of(
    source: str | Path,
    audio_column: str | None = None,
    text_column: str | None = None,
    normalise: Normaliser | None = None,
    jobs: int | None = None,
) -> tuple[list[dict], Rejects]:
    """Manifest rows of a corpus, and what could not be used with the reasons.

    Args:
        source: a .csv, .tsv, .json (a list, or one object a line) or .jsonl file; a Kaldi folder (wav.scp, text,
            perhaps segments, utt2spk); or a folder of audio with NAME.txt beside NAME.wav.
        audio_column, text_column: names of the columns; None looks for the usual ones.
        normalise: applied to each text.

    Returns:
        Rows with audio_filepath (absolute), duration, text and every other column; offset where the source has it.

    Raises:
        FileNotFoundError: no such file, or nothing usable in the folder.
        ValueError: a table without the columns, or not one usable row.
    """
    source = Path(source)
    if source.is_dir():
        found = _kaldi(source) if (source / 'wav.scp').is_file() else _pairs(source)
    elif source.is_file():
        found = _table(source, audio_column, text_column)
    else:
        raise FileNotFoundError(f'{source}: no such file or folder')
    rows, rejects = [], Rejects()
    for (where, row), problem in zip(found, each(_complete, [row for _, row in found], 'reading headers', jobs)):
        if isinstance(problem, str):
            rejects.add(problem, where=where)
            continue
        row = problem
        if normalise:
            row['text'] = normalise(row['text'])
        if not row['text'].strip():
            rejects.add('no text', where=where, audio_filepath=row['audio_filepath'])
        else:
            rows.append(row)
    if not rows:
        reason = f'the first because of: {rejects.rows[0]["reason"]}' if rejects else 'it is empty'
        raise ValueError(f'{source}: no usable row; {reason}')
    return rows, rejects


def _complete(row: dict) -> dict | str:
    """The row with its duration, measured and checked; or what is wrong."""
    try:
        info = audio_info(row['audio_filepath'])
        offset = float(row.get('offset') or 0)
        duration = float(row.get('duration') or info.duration - offset)
    except (OSError, ValueError, TypeError) as error:
        return str(error)
    if not (0 <= offset < info.duration and 0 < duration <= info.duration - offset + ROUNDING):
        return f'{row["audio_filepath"]}: {duration:g} s from {offset:g} s on, but the file has {info.duration:g} s'
    done = {**row, 'duration': round(min(duration, info.duration - offset), 6)}
    if offset:
        done['offset'] = offset
    else:
        done.pop('offset', None)
    return done


def _table(path: Path, audio_column: str | None, text_column: str | None) -> list[tuple[str, dict]]:
    suffix = path.suffix.lower()
    if suffix in ('.csv', '.tsv'):
        records = enumerate(read_tsv(path, (), '\t' if suffix == '.tsv' else ','), 2)
    elif suffix in ('.json', '.jsonl'):
        records = _json_records(path)
    else:
        raise ValueError(f'{path}: its name must end with .csv, .tsv, .json or .jsonl, or it must be a folder')
    rows = []
    for number, record in records:
        audio = audio_column or next((name for name in AUDIO_COLUMNS if name in record), None)
        text = text_column or next((name for name in TEXT_COLUMNS if name in record), None)
        if audio not in record or text not in record:
            wanted = f'column {audio if audio not in record else text!r}' if audio and text else 'audio and text'
            raise ValueError(
                f'{path}, row {number}: no {wanted} in {", ".join(map(str, record)) or "an empty row"}; '
                f'name them with --audio-column and --text-column'
            )
        rest = {k: v for k, v in record.items() if k not in (audio, text) and v not in ('', None)}
        row = {'audio_filepath': str(Path(resolve_audio(str(record[audio]), path)).absolute()), 'duration': None}
        rows.append((f'row {number}', {**row, 'text': str(record[text] or ''), **rest}))
    return rows


def _json_records(path: Path) -> list[tuple[int, dict]]:
    try:
        content = path.read_text(encoding='utf-8-sig')
        if content.lstrip().startswith('['):
            records = list(enumerate(json.loads(content), 1))
        else:
            records = [(n, json.loads(line)) for n, line in enumerate(content.split('\n'), 1) if line.strip()]
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is neither a JSON list nor one JSON object a line: {error}') from error
    for number, record in records:
        if not isinstance(record, dict):
            raise ValueError(f'{path}, row {number}: {str(record)[:60]} is no JSON object in braces')
    return records


def _pairs(folder: Path) -> list[tuple[str, dict]]:
    audio = sorted(path for path in folder.rglob('*') if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    if not audio:
        raise FileNotFoundError(f'no audio in folder {folder}; looked for {", ".join(AUDIO_SUFFIXES)}')
    rows = []
    for path in audio:
        beside = path.with_suffix('.txt')
        text = beside.read_text(encoding='utf-8', errors='replace') if beside.is_file() else ''
        row = {'audio_filepath': str(path.absolute()), 'text': ' '.join(text.split())}
        rows.append((str(path.relative_to(folder)), row))
    return rows


def _kaldi(folder: Path) -> list[tuple[str, dict]]:
    """Kaldi data folder. A wav.scp entry that is a command (ends with '|') is never run: its rows are rejected."""
    audio, texts = _scp(folder / 'wav.scp'), _scp(folder / 'text')
    speakers = _scp(folder / 'utt2spk') if (folder / 'utt2spk').is_file() else {}
    if (folder / 'segments').is_file():
        parts = {key: value.split() for key, value in _scp(folder / 'segments').items()}
    else:
        parts = {key: [key] for key in audio}
    rows = []
    for key, part in parts.items():
        source = audio.get(part[0] if part else '', '')
        row = {'audio_filepath': str(Path(resolve_audio(source, folder / 'wav.scp')).absolute()) if source else ''}
        row |= {'text': texts.get(key, ''), 'utterance': key, 'recording': part[0] if part else ''}
        if len(part) >= 3:
            try:
                start, end = float(part[1]), float(part[2])
            except ValueError as error:
                raise ValueError(f'{folder / "segments"}: {key} {" ".join(part)}: times must be numbers') from error
            row |= {'offset': start, 'duration': end - start if end >= 0 else None}
        if key in speakers:
            row['speaker'] = speakers[key]
        if source.endswith('|'):
            row['audio_filepath'] = f'{source} (a command, which is not run: write its output to a file first)'
        rows.append((key, row))
    return rows


def _scp(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f'no {path}; a Kaldi folder needs wav.scp and text')
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: no UTF-8 text ({error.reason} at byte {error.start})') from error
    return {key: value.strip() for key, _, value in (line.partition(' ') for line in lines if line.strip())}
