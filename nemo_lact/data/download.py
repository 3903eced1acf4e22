"""Files from the web that survive cut connections, wrong bytes and full disks, and archives unpacked whole."""

import errno
import hashlib
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

BLOCK = 1 << 20
TIMEOUT = 60  # seconds without a byte
ATTEMPTS = 8  # in a row without a single new byte
PAUSE = 1.0  # seconds before the second attempt; doubles from there


class DownloadError(OSError):
    """A download that cannot go on; what is there is kept for the next call, unless its bytes were wrong."""


def remote_size(url: str) -> int | None:
    """Bytes a server says the file has, None if it does not say.

    Raises:
        DownloadError: no answer, or no such file.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=TIMEOUT) as reply:
            length = reply.headers.get('Content-Length')
            return int(length) if length and length.isdigit() else None
    except (OSError, HTTPException, ValueError) as error:
        raise DownloadError(f'{url}: {_reason(error)}; check the network, or give another --mirror') from error


def check_space(folder: str | Path, needed: int, what: str) -> None:
    """Raise OSError unless the disk of `folder` has `needed` bytes free."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f'{what} needs {needed / 1e9:.1f} GB on the disk of {folder}, which has {free / 1e9:.1f} GB free; '
            f'make room, choose fewer subsets, or another --data-dir'
        )


def download(url: str, target: str | Path, md5: str | None = None, report: Callable = lambda done, total: None) -> Path:
    """Fetch `url` to `target`. What arrives is kept in `target`.part, and a later call goes on from there.

    Args:
        md5: hex digest the file must have; None checks the length only.
        report: called with bytes there and bytes in all (None if unknown).

    Raises:
        DownloadError: the server refuses, or sends nothing several times in a row.
        ValueError: the bytes do not match `md5`, twice. They are removed.
        OSError: the disk is full; what is there is kept.
    """
    target = Path(target)
    part = target.with_name(target.name + '.part')
    if target.exists() and (md5 is None or _md5(target) == md5):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2):  # bytes can be wrong because an old .part was of another file: once more from the start
        _fetch(url, part, report)
        found = _md5(part) if md5 else None
        if found == md5:
            os.replace(part, target)
            return target
        part.unlink()
        if attempt == 2:
            raise ValueError(
                f'{url}: the file has MD5 {found}, expected {md5}; twice the same, so it is the server: '
                f'try another --mirror'
            )
    raise AssertionError('not reached')


def _fetch(url: str, part: Path, report: Callable) -> None:
    failures = 0
    while True:
        start = part.stat().st_size if part.exists() else 0
        try:
            if _fetch_rest(url, part, start, report):
                return
            error = 'the connection closed early'
        except urllib.error.HTTPError as refused:
            if refused.code == 416 and start:  # the part is longer than the file, so it is of another file
                part.unlink()
                error = _reason(refused)
            elif refused.code in (408, 425, 429, 500, 502, 503, 504):
                error = _reason(refused)
            else:
                raise DownloadError(f'{url}: {_reason(refused)}; check the address, or give another --mirror') from None
        except (OSError, HTTPException) as problem:
            if getattr(problem, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    problem.errno,
                    f'the disk is full after {start / 1e6:.0f} MB of {url}; make room and call again, it goes on there',
                ) from problem
            error = _reason(problem)
        there = part.stat().st_size if part.exists() else 0
        failures = 0 if there > start else failures + 1
        if failures >= ATTEMPTS:
            raise DownloadError(
                f'{url}: {error}, {failures} times without a new byte; {there / 1e6:.0f} MB are kept, call again later'
            )
        time.sleep(PAUSE * 2**failures / 2)


def _fetch_rest(url: str, part: Path, start: int, report: Callable) -> bool:
    """Append what is missing; True if the file is then complete."""
    request = urllib.request.Request(url, headers={'Range': f'bytes={start}-'} if start else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
        if start and not (reply.headers.get('Content-Range') or '').startswith(f'bytes {start}-'):
            start = 0  # a server without ranges sends all of it
        length = reply.headers.get('Content-Length')
        total = start + int(length) if length and length.isdigit() else None
        with open(part, 'ab' if start else 'wb') as file:
            done = start
            while block := reply.read(BLOCK):
                file.write(block)
                done += len(block)
                report(done, total)
    return total is None or done >= total


def unpack(archive: str | Path, folder: str | Path, name: str) -> Path:
    """Unpack a tar archive so that `folder`/`name` appears whole or not at all.

    Other files of the archive's top folder (licence, speaker lists) come along if they are not there yet.

    Args:
        name: path of the folder wanted, inside the archive and below `folder`, e.g. 'LibriSpeech/dev-clean'.

    Raises:
        ValueError: no tar archive, a broken one, one with unsafe paths, or without `name`.
        OSError: the disk is full.
    """
    target = Path(folder) / name
    scratch = Path(folder) / f'.unpacking-{target.name}'
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            # 'data' refuses paths that lead out of the folder; Pythons before 3.10.12 have no such filter
            tar.extractall(scratch, **({'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}))
        if not (scratch / name).is_dir():
            raise ValueError(f'{archive} has no folder {name}')
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in (scratch / name).parent.iterdir():
            if path.is_file() and not (target.parent / path.name).exists():
                os.replace(path, target.parent / path.name)
        os.replace(scratch / name, target)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f'{archive} is no archive that can be unpacked ({error}); remove it and call again') from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, 'rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f'HTTP {error.code} {error.reason}'
    return str(getattr(error, 'reason', None) or error) or type(error).__name__
