"""A noisy copy of a manifest: its audio as it would sound with one room, channel and noise for each session.

The conditions of a session follow from the seed and the session's name alone, so that utterances and the long rows
joined from them sound alike, and anyone with the corpus gets the same files.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nemo_lact.data import audio, conditions
from nemo_lact.data.manifests import Rejects, audio_info, resolve_audio, write_manifest
from nemo_lact.data.parallel import each
from nemo_lact.data.pieces import group_keys
from nemo_lact.transcription import read_manifest


def add_noise(
    source: str | Path,
    output: str | Path,
    by: Sequence[str] | None = None,
    snr: tuple[float, float] | None = None,
    seed: int = 0,
    jobs: int | None = None,
) -> tuple[list[dict], Rejects, tuple[str, ...]]:
    """Write the noisy audio as FLAC to the folder OUTPUT without its suffix, and the manifest OUTPUT.

    Rows keep their keys and their order and gain `conditions`; `offset` goes, as each row has a file of its own. A
    second call makes only what is missing.

    Args:
        source: NeMo manifest.
        by: keys whose values are equal within a session; None takes the first of `pieces.GROUPS` that all rows have.
        snr: lowest and highest energy of speech over noise in dB, drawn evenly for each session; None draws 5 to 35 dB
            and leaves a fifth of the sessions without noise, as in the synthetic corpus.
        seed: another one gives other conditions.

    Returns:
        The rows, what was left out and why, and the keys that make a session.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: no manifest, no such key, no usable row, limits that make no sense, or OUTPUT is the source.
    """
    source, output = Path(source), Path(output)
    if output.absolute() == source.absolute() or not output.suffix:
        raise ValueError(f'{output}: must be another file than the source, named NAME.json')
    if snr is not None and not (all(map(math.isfinite, snr)) and snr[0] <= snr[1]):
        raise ValueError(f'snr={snr[0]:g} to {snr[1]:g} dB: give two numbers, the lower one first')
    rows = read_manifest(source)
    by = group_keys(rows, by, source)
    parts: dict[tuple, int] = {}
    work = []
    for row in rows:
        session = tuple(str(row[key]) for key in by)
        parts[session] = part = parts.get(session, -1) + 1
        path = resolve_audio(str(row.get('audio_filepath')), source)
        work.append((row, path, str(output.absolute().with_suffix('')), conditions_of(session, snr, seed), part))
    done, rejects = [], Rejects()
    for number, (job, found) in enumerate(zip(work, each(_write, work, 'adding noise', jobs, chunk=4)), 1):
        if isinstance(found, str):
            rejects.add(found, row=number, audio_filepath=job[1])
        else:
            done.append(found)
    if not done:
        raise ValueError(f'{source}: no usable row; the first because of: {rejects.rows[0]["reason"]}')
    write_manifest(output, done)
    return done, rejects, by


def conditions_of(
    session: Sequence[str], snr: tuple[float, float] | None = None, seed: int = 0
) -> conditions.Conditions:
    """What a session of this name sounds like; `snr` in dB as in `add_noise`."""
    digest = hashlib.sha256(json.dumps([seed, *session]).encode()).digest()
    number = int.from_bytes(digest[:4], 'big')
    drawn = conditions.draw(number)
    if snr is None:
        return drawn
    return dataclasses.replace(drawn, snr=round(float(np.random.default_rng((number, 1)).uniform(*snr)), 1))


def _write(job: tuple[dict, str, str, conditions.Conditions, int]) -> dict | str:
    """The row of the noisy file, or why there is none."""
    row, path, folder, how, part = job
    try:
        offset = float(row.get('offset') or 0.0)
        duration = None if row.get('duration') is None else float(row['duration'])
    except (TypeError, ValueError):
        return f'offset {row.get("offset")!r} and duration {row.get("duration")!r} must be numbers'
    # The name holds all that the sound depends on, so that a file that is there is the right one.
    recipe = json.dumps([path, offset, duration, repr(how), part])
    name = f'{Path(path).stem}-{hashlib.sha1(recipe.encode(), usedforsecurity=False).hexdigest()[:8]}.flac'
    target = Path(folder, name)
    try:
        if target.exists():
            length = audio_info(target).duration
        else:
            known = audio_info(path).duration
            if not (0 <= offset < known and (duration is None or 0 < duration <= known - offset + 0.05)):
                return f'{duration} s from {offset:g} s on, but the file has {known:g} s'
            samples, rate = audio.read(path, offset=offset, duration=duration)
            length = audio.write(target, conditions.apply(samples, rate, how, part), rate)
    except (OSError, ValueError) as error:
        return str(error)
    kept = {key: value for key, value in row.items() if key != 'offset'}
    return {**kept, 'audio_filepath': str(target), 'duration': length, 'conditions': how.describe()}
