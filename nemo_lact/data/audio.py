"""Samples in and out of files: read a part, convert, write whole."""

import os
from pathlib import Path

import numpy as np

from nemo_lact.data.manifests import audio_info


def read(path: str | Path, sample_rate: int | None = None, offset: float = 0.0, duration: float | None = None):
    """Mono samples [T] float32 in −1 … 1 and their rate; several channels are averaged.

    Args:
        sample_rate: resample to it; None leaves the rate of the file.
        offset, duration: seconds; None is up to the end.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not readable as audio.
    """
    import soundfile

    rate = audio_info(path).sample_rate
    start = round(offset * rate)
    stop = None if duration is None else start + round(duration * rate)
    try:
        samples, rate = soundfile.read(str(path), start=start, stop=stop, dtype='float32', always_2d=True)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'{path}: not readable as audio ({error})') from error
    samples = samples.mean(axis=1)
    if sample_rate is None or sample_rate == rate:
        return samples, rate
    return resample(samples, rate, sample_rate), sample_rate


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Samples [T] at another rate, float32."""
    from math import gcd

    from scipy.signal import resample_poly

    if rate == new_rate:
        return samples
    common = gcd(rate, new_rate)
    return resample_poly(samples, new_rate // common, rate // common).astype(np.float32)


def write(path: str | Path, samples: np.ndarray, sample_rate: int) -> float:
    """Write samples [T] as 16 bit by the suffix of `path`, whole or not at all; returns seconds."""
    import soundfile

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        soundfile.write(part, np.clip(samples, -1, 1), sample_rate, subtype='PCM_16')
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return round(len(samples) / sample_rate, 6)


def convert(source: str | Path, target: str | Path, sample_rate: int) -> float:
    """Any audio to mono 16 bit of `sample_rate`, FLAC or WAV by the suffix of `target`; returns seconds.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not readable, or without a sample.
    """
    samples, rate = read(source, sample_rate)
    if not len(samples):
        raise ValueError(f'{source}: no audio in it')
    return write(target, samples, rate)
