"""LibriSpeech (openslr.org/12): download, unpack, and a manifest for each subset.

The official tree: LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac with SPEAKER-CHAPTER.trans.txt beside
them, one 'ID TEXT' a line, and LibriSpeech/SPEAKERS.TXT.
"""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemo_lact.data.download import check_space, download, remote_size, unpack
from nemo_lact.data.manifests import audio_info, said, seconds, write_manifest
from nemo_lact.data.parallel import each, progress

MIRROR = 'https://www.openslr.org/resources/12'
MD5 = {  # as in openslr.org/resources/12/md5sum.txt
    'dev-clean': '42e2234ba48799c1f50f24a7926300a1',
    'dev-other': 'c8d0bcc9cca99d4f8b62fcc847357931',
    'test-clean': '32fa31d27d2e1cad72775fee3f4849a9',
    'test-other': 'fb5a50374b501bb3bac4815ee91d3135',
    'train-clean-100': '2a93770f6d5c6c964bc36631d331a522',
    'train-clean-360': 'c0e676e450a7ff2f54aeade5171606fa',
    'train-other-500': 'd1a0fd59409feb2c614ce4d30c387708',
}
SIZES = {
    'minimal': ('train-clean-100', 'dev-clean'),
    'standard': ('train-clean-100', 'train-clean-360', 'dev-clean', 'test-clean'),
    'full': tuple(sorted(MD5)),
}
MARGIN = 1.03  # unpacked / packed: FLAC does not shrink, small files round up to blocks


def fetch(subsets: Sequence[str], folder: str | Path, mirror: str = MIRROR, jobs: int = 2, keep: bool = False) -> None:
    """Download and unpack what is not there, into FOLDER/LibriSpeech. A second call goes on where the first stopped.

    Args:
        jobs: downloads at a time.
        keep: leave the archives there after unpacking.

    Raises:
        OSError: not enough room (checked before anything is fetched), no network, or a full disk.
        ValueError: a wrong checksum, or a broken archive.
    """
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    folder = Path(folder)
    missing = [name for name in subsets if not (folder / 'LibriSpeech' / name).is_dir()]
    if not missing:
        return
    urls = {name: f'{mirror.rstrip("/")}/{name}.tar.gz' for name in missing}
    with ThreadPoolExecutor(len(missing)) as pool:
        sizes = dict(zip(missing, pool.map(remote_size, urls.values())))
    check_space(folder, _room(folder, sizes, jobs, keep), f'LibriSpeech {", ".join(missing)}')

    stopped = threading.Event()
    with progress(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:

        def one(name: str) -> None:
            task = bar.add_task(name, total=sizes[name])

            def report(done: int, total: int | None) -> None:
                bar.update(task, completed=done, total=total)
                if stopped.is_set():
                    raise KeyboardInterrupt  # in a thread nobody else would

            archive = download(urls[name], folder / f'{name}.tar.gz', MD5[name], report)
            bar.update(task, description=f'{name}: unpacking')
            unpack(archive, folder, f'LibriSpeech/{name}')
            if not keep:
                archive.unlink()
            bar.update(task, description=f'{name}: done')

        with ThreadPoolExecutor(jobs) as pool:
            try:
                list(pool.map(one, missing))
            except KeyboardInterrupt:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _room(folder: Path, sizes: dict[str, int | None], jobs: int, keep: bool) -> int:
    """Bytes still to be written: everything unpacked, and the archives that are there at the same time."""
    known = {name: size or 0 for name, size in sizes.items()}
    archives = sorted(known.values(), reverse=True)
    there = sum(
        path.stat().st_size
        for name in known
        for path in (folder / f'{name}.tar.gz', folder / f'{name}.tar.gz.part')
        if path.exists()
    )
    return max(0, int(MARGIN * sum(archives)) + sum(archives if keep else archives[:jobs]) - there)


def find_tree(folder: str | Path) -> Path:
    """The folder that holds the subsets: FOLDER itself or FOLDER/LibriSpeech.

    Raises:
        FileNotFoundError: no subset in either.
    """
    for tree in (Path(folder) / 'LibriSpeech', Path(folder)):
        if any((tree / name).is_dir() for name in MD5):
            return tree.absolute()
    raise FileNotFoundError(
        f'no LibriSpeech below {folder}; expected {Path(folder) / "LibriSpeech" / "dev-clean"} or another subset'
    )


def prepare(
    subsets: Sequence[str], folder: str | Path, output: str | Path, jobs: int | None = None, force: bool = False
) -> dict[str, str]:
    """Manifests OUTPUT/SUBSET.json and, from these, train.json, dev.json and test.json.

    Rows have audio_filepath (absolute), duration, text (lower case), speaker, chapter, and gender where SPEAKERS.TXT
    is there. A subset that has a complete manifest is not read again, except with `force`. Where no test subset is
    chosen, every second speaker of the dev set goes to test.json instead of dev.json.

    Returns:
        What each file holds, as text.

    Raises:
        FileNotFoundError: a subset is not there.
        ValueError: a transcript without audio, audio without a transcript, unreadable audio.
    """
    tree, output = find_tree(folder), Path(output)
    for name in subsets:
        if not (tree / name).is_dir():
            raise FileNotFoundError(f'no {name} in {tree}; leave --skip-download away, or choose other --subset')
    genders = _genders(tree / 'SPEAKERS.TXT')
    rows, made = {}, {}
    for name in subsets:
        manifest = output / f'{name}.json'
        rows[name] = None if force else _complete(manifest, tree / name)
        if rows[name] is None:
            rows[name] = _subset_rows(tree / name, genders, jobs)
            write_manifest(manifest, rows[name])
        made[manifest.name] = said(len(rows[name]), seconds(rows[name]))
    parts = {split: [row for name in subsets if name.startswith(split) for row in rows[name]] for split in _SPLITS}
    if parts['dev'] and not parts['test']:
        second = set(sorted({row['speaker'] for row in parts['dev']})[1::2])
        parts['test'] = [row for row in parts['dev'] if row['speaker'] in second]
        parts['dev'] = [row for row in parts['dev'] if row['speaker'] not in second]
    for split, part in parts.items():
        if part:
            write_manifest(output / f'{split}.json', part)
            made[f'{split}.json'] = said(len(part), seconds(part))
    return made


_SPLITS = ('train', 'dev', 'test')


def _subset_rows(subset: Path, genders: dict[str, str], jobs: int | None) -> list[dict]:
    chapters = sorted(path for path in subset.glob('*/*') if path.is_dir())
    if not chapters:
        raise ValueError(f'{subset} has no SPEAKER/CHAPTER folders')
    found = each(_chapter_rows, chapters, subset.name, jobs)
    rows = [row for chapter in found for row in chapter]
    for row in rows:
        if row['speaker'] in genders:
            row['gender'] = genders[row['speaker']]
    return rows


def _chapter_rows(chapter: Path) -> list[dict]:
    speaker = chapter.parent.name
    transcript = chapter / f'{speaker}-{chapter.name}.trans.txt'
    if not transcript.is_file():
        raise ValueError(f'{transcript} is missing; the tree is incomplete: unpack that subset again')
    rows = []
    for number, line in enumerate(transcript.read_text(encoding='utf-8').splitlines(), 1):
        name, _, text = line.partition(' ')
        audio = chapter / f'{name}.flac'
        if not name or not text.strip():
            raise ValueError(f"{transcript}, line {number}: expected 'ID TEXT', found {line[:60]!r}")
        if not audio.is_file():
            raise ValueError(f'{transcript}, line {number}: no {audio.name} beside it; unpack that subset again')
        row = {'audio_filepath': str(audio), 'duration': audio_info(audio).duration, 'text': text.strip().lower()}
        rows.append({**row, 'speaker': speaker, 'chapter': chapter.name})
    if extra := {path.name for path in chapter.glob('*.flac')} - {Path(row['audio_filepath']).name for row in rows}:
        raise ValueError(f'{transcript} has no line for {min(extra)} ({len(extra)} such files)')
    return rows


def _complete(manifest: Path, subset: Path) -> list[dict] | None:
    """The rows of a manifest that was written for this very tree, None if there is none."""
    try:
        rows = [json.loads(line) for line in manifest.read_text(encoding='utf-8').splitlines()]
        chapters = {str(Path(row['audio_filepath']).parent) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return rows if chapters == {str(path) for path in subset.glob('*/*') if path.is_dir()} else None


def _genders(path: Path) -> dict[str, str]:
    """Speaker → 'M' or 'F' from SPEAKERS.TXT, lines of 'ID | SEX | SUBSET | MINUTES | NAME'; ';' starts a comment."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
    cells = [[cell.strip() for cell in line.split('|')] for line in lines if not line.startswith(';')]
    return {row[0]: row[1] for row in cells if len(row) >= 2}
