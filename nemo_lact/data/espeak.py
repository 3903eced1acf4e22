"""espeak-ng through ctypes: text to samples in this process. The library comes with the package espeakng-loader."""

import ctypes
from functools import lru_cache
from pathlib import Path

import numpy as np

SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback before espeak_Synth returns
DO_NOT_EXIT = 0x8000
RATE, PITCH = 1, 3  # espeak_PARAMETER
CHARACTERS, UTF8 = 1, 1
INSTALL = 'pip install "nemo-lact[synthetic]" (or: pip install espeakng-loader)'

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """One synthesiser; espeak-ng keeps its state in the library, so a process has only one.

    Attributes:
        sample_rate: of what `say` returns.

    Args:
        data: a folder like espeak-ng's own espeak-ng-data; None: that of espeakng-loader.

    Raises:
        RuntimeError: espeakng-loader is not installed, or its library cannot be used here.
    """

    def __init__(self, data: Path | None = None):
        try:
            import espeakng_loader
        except ImportError as error:
            raise RuntimeError(f'synthetic speech needs espeak-ng: {INSTALL}') from error
        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        except OSError as error:
            raise RuntimeError(f'the library of espeakng-loader cannot be used here: {error}') from error
        data = str(Path(data or espeakng_loader.get_data_path()).parent).encode()
        self.sample_rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, data, DO_NOT_EXIT)
        if self.sample_rate <= 0:
            raise RuntimeError(f'espeak-ng could not be started with the data in {data.decode()}')
        self._parts: list[np.ndarray] = []
        self._callback = _Callback(self._receive)  # held here: the library keeps only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, pitch: int = 50, rate: int = 175) -> np.ndarray:
        """Samples [T] float32 in −1 … 1.

        Args:
            voice: language and variant as `espeak-ng -v` takes them, e.g. 'en-us+f3'.
            pitch: 0 to 99.
            rate: words per minute, 80 to 450.

        Raises:
            ValueError: no such voice.
            RuntimeError: espeak-ng failed.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice '{voice}'; `espeak-ng --voices` lists languages")
        self._library.espeak_SetParameter(PITCH, pitch, 0)
        self._library.espeak_SetParameter(RATE, rate, 0)
        self._parts = []
        content = text.encode() + b'\0'
        status = self._library.espeak_Synth(content, len(content), 0, CHARACTERS, 0, UTF8, None, None)
        if status != 0:
            raise RuntimeError(f'espeak-ng failed with status {status} on {text[:60]!r}')
        samples = np.concatenate(self._parts) if self._parts else np.zeros(0, np.int16)
        return samples.astype(np.float32) / 32768

    def _receive(self, samples, count, events) -> int:
        if count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


@lru_cache(maxsize=1)
def espeak() -> Espeak:
    """The synthesiser of this process."""
    return Espeak()
