"""Mozilla Common Voice: the official folder of one language to NeMo manifests.

The layout: DIR/{train,dev,test,validated,other,invalidated}.tsv beside DIR/clips/*.mp3, where DIR is .../xx of a
release. Columns differ a little over the releases ('accent' became 'accents'); those below are read where they are.
"""

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from nemo_lact.data.audio import convert
from nemo_lact.data.manifests import Rejects, audio_info, said, seconds, write_manifest
from nemo_lact.data.parallel import each
from nemo_lact.data.text import Normaliser

SPLITS = ('train', 'dev', 'test', 'validated', 'other', 'invalidated')
KEPT = ('client_id', 'accents', 'gender', 'age', 'locale', 'variant', 'segment', 'up_votes', 'down_votes')


def find_language(folder: str | Path, language: str) -> Path:
    """The folder with the TSVs of a language: FOLDER itself, FOLDER/xx, or FOLDER/cv-corpus-*/xx.

    Raises:
        FileNotFoundError: none of them has TSVs and clips.
    """
    folder = Path(folder)
    candidates = [folder / language, *sorted(folder.glob(f'cv-corpus-*/{language}'), reverse=True)]
    if folder.name == language or not any(path.is_dir() for path in candidates):
        candidates.insert(0, folder)
    for path in candidates:
        if (path / 'clips').is_dir() and any((path / f'{split}.tsv').is_file() for split in SPLITS):
            return path.absolute()
    raise FileNotFoundError(
        f"no Common Voice for '{language}' below {folder}; expected {folder / language}/train.tsv and clips/"
    )


def prepare(
    folder: str | Path,
    language: str,
    output: str | Path,
    splits: Sequence[str] = ('train', 'dev', 'test'),
    convert_to: str | None = None,
    sample_rate: int = 16000,
    normalise: Normaliser | None = None,
    jobs: int | None = None,
) -> dict[str, str]:
    """Manifests OUTPUT/SPLIT.json; rows that cannot be used go to OUTPUT/SPLIT.rejected.jsonl with the reason.

    Rows have audio_filepath, duration, text, speaker (the client_id) and the columns of `KEPT` that are not empty.

    Args:
        convert_to: 'flac' or 'wav' writes mono audio of `sample_rate` to OUTPUT/clips and refers to that; None reads
            the mp3 as they are.
        normalise: applied to the sentence; the original is kept as `sentence` where it differs.

    Returns:
        What each file holds, as text.

    Raises:
        FileNotFoundError: no such language or split.
        ValueError: a TSV without the columns 'path' and 'sentence', or a split without any usable row.
    """
    source, output = find_language(folder, language), Path(output)
    made = {}
    for split in splits:
        table = source / f'{split}.tsv'
        if not table.is_file():
            there = [name for name in SPLITS if (source / f'{name}.tsv').is_file()]
            raise FileNotFoundError(f'no {table}; there: {", ".join(there)}')
        lines = read_tsv(table, needed=('path', 'sentence'))
        clips = [source / 'clips' / line['path'] for line in lines]
        if convert_to is None:
            jobs_found = each(_probe, clips, split, jobs)
        else:
            pairs = [(clip, output / 'clips' / f'{clip.stem}.{convert_to}') for clip in clips]
            jobs_found = each(partial(_convert, sample_rate=sample_rate), pairs, f'{split}: converting', jobs)
        rows, rejects = [], Rejects()
        for number, (line, found) in enumerate(zip(lines, jobs_found), 2):  # line 1 is the header
            text = normalise(line['sentence']) if normalise else line['sentence'].strip()
            if isinstance(found, str):
                rejects.add(found, line=number, path=line['path'])
            elif not text:
                rejects.add('no text', line=number, path=line['path'], sentence=line['sentence'])
            else:
                rows.append(_row(line, text, *found))
        if not rows:
            reason = rejects.rows[0]['reason'] if rejects else 'the table is empty'
            raise ValueError(f'{table}: none of {len(lines)} rows can be used, the first because of: {reason}')
        manifest = output / f'{split}.json'
        write_manifest(manifest, rows)
        made[manifest.name] = said(len(rows), seconds(rows))
        if left := rejects.write(manifest):
            made[left.name] = f'{len(rejects)} rows left out, with the reasons'
    return made


def read_tsv(path: Path, needed: Sequence[str], delimiter: str = '\t') -> list[dict]:
    """Rows of a table with a header, as dicts of strings.

    Raises:
        ValueError: a needed column is missing, a row has too many or too few cells, or the file is no UTF-8.
    """
    try:
        # A tab-separated table has no quoting: a quotation mark at the start of a sentence is part of it.
        quoting = csv.QUOTE_NONE if delimiter == '\t' else csv.QUOTE_MINIMAL
        with open(path, encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
            header = reader.fieldnames or []
            if missing := [name for name in needed if name not in header]:
                raise ValueError(f'{path} has no column {missing[0]!r}; it has {", ".join(header) or "none"}')
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f'{path}, line {reader.line_num}: not the {len(header)} cells of the header')
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{path} is no table of UTF-8 text: {error}') from error
    return rows


def _row(line: dict, text: str, path: str, duration: float) -> dict:
    line = {**line, 'accents': line.get('accents') or line.get('accent')}
    row = {'audio_filepath': path, 'duration': duration, 'text': text, 'speaker': line.get('client_id') or None}
    row |= {key: line[key] for key in KEPT if line.get(key)}
    if text != line['sentence']:
        row['sentence'] = line['sentence']
    return {key: value for key, value in row.items() if value is not None}


def _probe(clip: Path) -> tuple[str, float] | str:
    """(path, seconds), or what is wrong."""
    try:
        duration = audio_info(clip).duration
    except (OSError, ValueError) as error:
        return str(error)
    return (str(clip), duration) if duration > 0 else f'{clip}: no audio in it'


def _convert(pair: tuple[Path, Path], sample_rate: int) -> tuple[str, float] | str:
    source, target = pair
    try:
        if not target.exists():  # a run that was interrupted goes on: files appear only when they are whole
            convert(source, target, sample_rate)
    except (OSError, ValueError) as error:
        return str(error)
    return _probe(target.absolute())
