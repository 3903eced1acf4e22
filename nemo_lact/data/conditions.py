"""Acoustic conditions of a session: a room, a channel, noise and a gain, made up from a seed with NumPy and SciPy.

For the synthetic corpus, and as recordings of rooms and noise for augmentation on the fly. They are simple on purpose:
a room is an exponential decay of white noise, a channel a band, noise has a coloured spectrum.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_lact.data.audio import write
from nemo_lact.data.manifests import whole_file

COLOURS = {'white': 0.0, 'pink': 1.0, 'brown': 2.0}  # power falls with frequency to this power
BANDS = {'wide': None, 'telephone': (300.0, 3400.0), 'small speaker': (200.0, 6000.0), 'muffled': (60.0, 2500.0)}


@dataclass(frozen=True)
class Conditions:
    """What one session sounds like.

    Attributes:
        t60: seconds until the room's echo has fallen by 60 dB; 0 is no room.
        direct: energy of the direct sound over that of the echo, dB.
        channel: a key of `BANDS`.
        noise: a key of `COLOURS`.
        snr: energy of speech over noise, dB; infinity is no noise.
        gain: dB.
        seed: of the room's echo and the noise.
    """

    t60: float = 0.0
    direct: float = 10.0
    channel: str = 'wide'
    noise: str = 'white'
    snr: float = float('inf')
    gain: float = 0.0
    seed: int = 0

    def describe(self) -> dict:
        """For a manifest row; finite numbers only."""
        found = {'t60': self.t60, 'channel': self.channel, 'gain_db': self.gain}
        return found | ({'noise': self.noise, 'snr_db': self.snr} if np.isfinite(self.snr) else {})


def draw(seed: int) -> Conditions:
    """Random conditions; about a fifth of them have no room and a fifth no noise."""
    rng = np.random.default_rng(seed)
    return Conditions(
        t60=round(float(rng.choice([0.0, rng.uniform(0.15, 0.9)], p=[0.2, 0.8])), 3),
        direct=round(float(rng.uniform(0, 15)), 1),
        channel=str(rng.choice(list(BANDS), p=[0.55, 0.15, 0.15, 0.15])),
        noise=str(rng.choice(list(COLOURS))),
        snr=round(float(rng.choice([np.inf, rng.uniform(5, 35)], p=[0.2, 0.8])), 1),
        gain=round(float(rng.uniform(-12, 6)), 1),
        seed=seed,
    )


def apply(samples: np.ndarray, sample_rate: int, conditions: Conditions, part: int = 0) -> np.ndarray:
    """Speech [T] as it sounds under these conditions, [T] float32 within −1 … 1.

    Args:
        part: number of the utterance in the session: the room stays, the noise goes on.
    """
    from scipy.signal import butter, fftconvolve, sosfilt

    out = samples.astype(np.float64)
    if conditions.t60 > 0:
        out = fftconvolve(out, impulse_response(conditions, sample_rate))[: len(out)]
    if np.isfinite(conditions.snr) and len(out):
        power = np.mean(out**2)
        rng = np.random.default_rng((conditions.seed, part))
        hiss = coloured_noise(len(out), conditions.noise, rng)
        out = out + hiss * np.sqrt(power * 10 ** (-conditions.snr / 10))
    if band := BANDS[conditions.channel]:
        high = min(band[1], 0.45 * sample_rate)
        out = sosfilt(butter(4, (band[0], high), 'bandpass', fs=sample_rate, output='sos'), out)
    out = out * 10 ** (conditions.gain / 20)
    peak = np.abs(out).max(initial=0.0)
    return (out / peak * 0.99 if peak > 0.99 else out).astype(np.float32)


def impulse_response(conditions: Conditions, sample_rate: int) -> np.ndarray:
    """Of the room: 1 at time 0, then echo that falls by 60 dB in `t60` seconds. Float64 [T]."""
    count = max(2, round(conditions.t60 * sample_rate))
    rng = np.random.default_rng(conditions.seed)
    echo = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / count)
    echo[0] = 0.0
    echo *= 10 ** (-conditions.direct / 20) / np.sqrt(np.sum(echo**2))
    echo[0] = 1.0
    return echo


def coloured_noise(count: int, colour: str, rng: np.random.Generator) -> np.ndarray:
    """Noise [count] of power 1."""
    if count < 2:
        return np.zeros(count)
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** (COLOURS[colour] / 2)
    spectrum[0] = 0.0
    hiss = np.fft.irfft(spectrum, count)
    return hiss / np.sqrt(np.mean(hiss**2))


def write_noises(folder: str | Path, count: int, seconds: float, sample_rate: int = 16000, seed: int = 0) -> Path:
    """`count` recordings of noise, FOLDER/noise-*.flac, and FOLDER/noises.jsonl.gz, the Lhotse cuts for `noise_path`.

    Args:
        seconds: of each; as long as the longest rows, so that a row has one noise from its start to its end.
    """
    folder, cuts = Path(folder).absolute(), []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        colour = list(COLOURS)[i % len(COLOURS)]
        samples = coloured_noise(round(seconds * sample_rate), colour, rng)
        # Rooms are seldom steady: the level drifts by some dB over seconds.
        knots = rng.uniform(-4, 4, max(2, round(seconds / 5)))
        drift = np.interp(np.linspace(0, 1, len(samples)), np.linspace(0, 1, len(knots)), knots)
        path = folder / f'noise-{i:03d}-{colour}.flac'
        length = write(path, 0.05 * samples * 10 ** (drift / 20), sample_rate)
        cut = {'id': path.stem, 'start': 0, 'duration': length, 'channel': 0, 'supervisions': []}
        cuts.append({**cut, 'recording': _recording(path, length, sample_rate, len(samples)), 'type': 'MonoCut'})
    return _write_lines(folder / 'noises.jsonl.gz', cuts)


def write_rooms(folder: str | Path, count: int, sample_rate: int = 16000, seed: int = 0) -> Path:
    """`count` impulse responses, FOLDER/room-*.flac, and FOLDER/rooms.jsonl.gz, Lhotse recordings for `rir_path`."""
    folder, recordings = Path(folder).absolute(), []
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        room = Conditions(t60=float(rng.uniform(0.15, 0.9)), direct=float(rng.uniform(0, 15)), seed=seed * 100003 + i)
        samples = impulse_response(room, sample_rate)
        path = folder / f'room-{i:03d}.flac'
        length = write(path, 0.5 * samples / np.abs(samples).max(), sample_rate)
        recordings.append(_recording(path, length, sample_rate, len(samples)))
    return _write_lines(folder / 'rooms.jsonl.gz', recordings)


def _recording(path: Path, seconds: float, sample_rate: int, samples: int) -> dict:
    """A Lhotse Recording as JSON."""
    source = {'type': 'file', 'channels': [0], 'source': str(path)}
    found = {'id': path.stem, 'sources': [source], 'sampling_rate': sample_rate, 'num_samples': samples}
    return {**found, 'duration': seconds, 'channel_ids': [0]}


def _write_lines(path: Path, lines: list[dict]) -> Path:
    with whole_file(path, 'wb') as file:
        file.write(gzip.compress(''.join(json.dumps(line) + '\n' for line in lines).encode(), mtime=0))
    return path
