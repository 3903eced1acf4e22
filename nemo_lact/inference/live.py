"""`nemo-lact stream`: a file at real-time pace, raw PCM from stdin, or a microphone, to words as they come."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from nemo_lact.inference.stream import Streamer
from nemo_lact.state import LaCTState

STEP_SECONDS = 0.08


def window_of(model, latency: int | None) -> list[int] | None:
    """The attention window with so many frames of look-ahead; None: the model's default.

    Raises:
        ValueError: the model was not made for it.
    """
    if latency is None:
        return None
    windows = getattr(model.encoder, 'att_context_size_all', [])
    for window in windows:
        if window[1] == latency:
            return window
    raise ValueError(f'latency {latency} encoder frames; this model was made for {[w[1] for w in windows]}')


def memory_from(file: Path | None, model, fresh: bool = False) -> LaCTState | None:
    """The memory in `file`, checked against the model; without such a file None, or a fresh one if `fresh`."""
    if file is not None and file.exists():
        return LaCTState.load(file, fingerprint=model.encoder.fingerprint())
    return model.encoder.init_state(1).memory_only() if fresh else None


class Display:
    """Words on stdout as they come; with `partial` the unfinished text behind them, on a terminal's last line."""

    def __init__(self, quiet: bool, partial: bool):
        self.quiet, self.with_partial = quiet, partial
        self.shown = self.column = 0

    def __call__(self, words, partial: str, end: bool) -> None:
        if self.quiet:
            return
        out = sys.stdout
        if self.shown:
            out.write('\b' * self.shown + ' ' * self.shown + '\b' * self.shown)
            self.shown = 0
        for word in words:
            if self.column + len(word.word) > 100:
                out.write('\n')
                self.column = 0
            out.write(word.word + ' ')
            self.column += len(word.word) + 1
        if end:
            out.write('\n')
        elif self.with_partial and partial:
            out.write(partial)
            self.shown = len(partial)
        out.flush()


def file_samples(path: str, rate: int, channel: int | None, pace: float) -> Iterator[np.ndarray]:
    """Blocks of a file, `pace` times as fast as it sounds; 0: as fast as they are read."""
    from nemo_lact.inference.audio import AudioBlocks

    reader = AudioBlocks(path, rate, channel)
    started, given = time.monotonic(), 0.0
    try:
        while len(block := reader.read(round(STEP_SECONDS * rate))):
            given += len(block) / rate
            if pace > 0:
                time.sleep(max(0.0, started + given / pace - time.monotonic()))
            yield block
    finally:
        reader.close()


def stdin_samples(rate: int) -> Iterator[np.ndarray]:
    """Raw PCM of stdin: signed 16 bit, little-endian, one channel."""
    size, rest = 2 * round(STEP_SECONDS * rate), b''
    while data := sys.stdin.buffer.read1(size):
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        yield np.frombuffer(data[:whole], dtype='<i2')


def microphone_samples(rate: int) -> Iterator[np.ndarray]:
    """The default microphone, until Ctrl-C.

    Raises:
        RuntimeError: the package sounddevice is missing, or there is no microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise RuntimeError(f'a microphone needs the package sounddevice (pip install sounddevice): {error}') from error
    try:
        stream = sounddevice.InputStream(samplerate=rate, channels=1, dtype='float32')
    except sounddevice.PortAudioError as error:
        raise RuntimeError(f'no microphone can be opened: {error}') from error
    with stream:
        while True:
            yield stream.read(round(STEP_SECONDS * rate))[0][:, 0]


def run(stream: Streamer, samples: Iterator[np.ndarray], rate: int, show) -> dict:
    """Feed a stream to its end; Ctrl-C ends it too.

    Args:
        show: called with new words, the unfinished text behind them, and whether this is the end.

    Returns:
        `seconds` heard, `real_time_factor` (computing time / seconds), `latency_seconds` by design, and
        `step_seconds`, computing time of a step: median and largest.
    """
    steps, heard = [], 0
    ended = False
    try:
        for block in samples:
            heard += len(block)
            started = time.perf_counter()
            words = stream.feed(block, rate)
            steps.append(time.perf_counter() - started)
            show(words, stream.partial, False)
    except KeyboardInterrupt:
        ended = True
    started = time.perf_counter()
    words = stream.finish()
    steps.append(time.perf_counter() - started)
    show(words, '', True)
    seconds = heard / rate
    return {
        'text': stream.text,
        'seconds': round(seconds, 3),
        'interrupted': ended,
        'latency_seconds': round(stream.latency_seconds, 4),
        'real_time_factor': round(sum(steps) / seconds, 4) if seconds else None,
        'step_seconds': {'median': round(float(np.median(steps)), 5), 'largest': round(max(steps), 5)},
        'bad_samples': stream.bad_samples,
    }
