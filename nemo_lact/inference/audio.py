"""Audio read block by block: one channel, at the model's sample rate, never the whole file in memory."""

import logging

import numpy as np
import soundfile
import soxr

log = logging.getLogger('nemo_lact')


class AudioBlocks:
    """One recording, or a part of it, as consecutive blocks of samples.

    Args:
        path: audio file (whatever soundfile reads).
        sample_rate: samples a second to give; other files are resampled as they are read.
        channel: channel to use of files with several.
        offset, duration: the part to read, in seconds; None: to the end.

    Attributes:
        samples: how many will come in all, known before reading.

    Raises:
        ValueError: several channels and none chosen, nothing in the part, or samples that are not finite.
    """

    def __init__(
        self, path, sample_rate: int, channel: int | None = None, offset: float = 0.0, duration: float | None = None
    ):
        self.path, self.rate = str(path), sample_rate
        self.file = soundfile.SoundFile(self.path)
        own = self.file.samplerate
        if self.file.channels > 1 and channel is None:
            raise ValueError(f'{path}: {self.file.channels} channels, the model takes one; choose channel 0, 1, ...')
        self.channel = 0 if channel is None else channel
        first = round(offset * own)
        left = self.file.frames - first
        if duration is not None:
            left = min(left, round(duration * own))
        if left <= 0:
            raise ValueError(f'{path}: no audio at {offset:g} s; the file has {self.file.frames / own:.3f} s')
        if first:
            self.file.seek(first)
        self.first, self.left, self.given = first, left, 0
        self.samples = left if own == sample_rate else round(left * sample_rate / own)
        self.resampler = None if own == sample_rate else Resampler(own, sample_rate)
        self.ready = np.zeros(0, dtype=np.float32)

    def read(self, samples: int) -> np.ndarray:
        """The next block, float32 [n]: n is `samples`, or less at the end; empty after it."""
        wanted = min(samples, self.samples - self.given)
        parts, have = [self.ready], len(self.ready)
        while have < wanted:
            block = self._decode()
            if block is None:  # the resampler rounded: silence makes up for a sample or two
                block = np.zeros(wanted - have, dtype=np.float32)
            parts.append(block)
            have += len(block)
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self.ready = joined[wanted:]
        self.given += wanted
        return joined[:wanted]

    def _decode(self) -> np.ndarray | None:
        if self.left == 0:
            return None
        block = self.file.read(min(self.left, 1 << 18), dtype='float32', always_2d=True)[:, self.channel]
        if len(block) == 0:
            seconds = (self.first + self.given) / self.rate
            raise ValueError(f'{self.path}: ends after {seconds:.1f} s, before its header says; it is cut or damaged')
        if not np.isfinite(block).all():
            at = self.file.tell() / self.file.samplerate
            raise ValueError(f'{self.path}: samples that are not finite before {at:.1f} s; repair or convert the file')
        self.left -= len(block)
        return block if self.resampler is None else self.resampler.feed(block, last=self.left == 0)

    def close(self) -> None:
        self.file.close()


class ArrayBlocks:
    """`AudioBlocks` of samples that are in memory: [n] floats from −1 to 1, at the model's sample rate."""

    def __init__(self, samples: np.ndarray):
        self.array, self.given = np.asarray(samples), 0
        if self.array.ndim != 1 or not len(self.array) or self.array.dtype.kind != 'f':
            raise ValueError(f'audio is {self.array.dtype} {self.array.shape}; give floats from -1 to 1, [n], n > 0')
        self.samples = len(self.array)

    def read(self, samples: int) -> np.ndarray:
        """As `AudioBlocks.read`."""
        block = self.array[self.given : self.given + samples].astype(np.float32)
        if not np.isfinite(block).all():
            raise ValueError(f'audio has samples that are not finite among {self.given} to {self.given + len(block)}')
        self.given += len(block)
        return block

    def close(self) -> None:
        pass


class Resampler:
    """Streaming resampling (soxr): the blocks' outputs, joined, are those of the whole."""

    def __init__(self, rate: int, wanted: int):
        self.rate = rate
        self.stream = soxr.ResampleStream(rate, wanted, 1, dtype='float32')

    def feed(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        return self.stream.resample_chunk(samples, last=last)


def finite(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Live samples as float32 with whatever is not finite silenced, and how many those were."""
    samples = np.asarray(samples)
    if samples.ndim != 1:
        raise ValueError(f'samples have shape {samples.shape}; give one channel, [n]')
    if samples.dtype.kind == 'i':
        samples = samples / float(np.iinfo(samples.dtype).max + 1)
    samples = samples.astype(np.float32)
    bad = ~np.isfinite(samples)
    return np.where(bad, np.float32(0), samples), int(bad.sum())
