"""flite through ctypes: text to samples in this process. The libraries come with Debian's package libflite1."""

import ctypes
from functools import lru_cache

import numpy as np


class _Wave(ctypes.Structure):
    _fields_ = [
        ('type', ctypes.c_char_p),
        ('sample_rate', ctypes.c_int),
        ('samples', ctypes.c_int),
        ('channels', ctypes.c_int),
        ('data', ctypes.POINTER(ctypes.c_short)),
    ]


class _Voice(ctypes.Structure):
    _fields_ = [('name', ctypes.c_char_p), ('features', ctypes.c_void_p)]


@lru_cache
def _library() -> ctypes.CDLL:
    # The voices find the functions of the libraries before them.
    names = ('flite', 'flite_usenglish', 'flite_cmulex')
    main = [ctypes.CDLL(f'lib{name}.so.1', ctypes.RTLD_GLOBAL) for name in names][0]
    main.flite_init()
    main.flite_text_to_wave.restype = ctypes.POINTER(_Wave)
    main.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Voice)]
    main.flite_feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
    main.delete_wave.argtypes = [ctypes.POINTER(_Wave)]
    return main


@lru_cache
def _voice(name: str):
    register = getattr(ctypes.CDLL(f'libflite_cmu_us_{name}.so.1', ctypes.RTLD_GLOBAL), f'register_cmu_us_{name}')
    register.restype, register.argtypes = ctypes.POINTER(_Voice), [ctypes.c_char_p]
    return register(None)


def say(text: str, voice: str, pitch: float, stretch: float) -> tuple[np.ndarray, int]:
    """Samples [T] float32 and their rate. `pitch`: mean, Hz; `stretch`: of the durations; voices slt, rms, awb."""
    library, speaker = _library(), _voice(voice)
    library.flite_feat_set_float(speaker.contents.features, b'int_f0_target_mean', pitch)
    library.flite_feat_set_float(speaker.contents.features, b'duration_stretch', stretch)
    wave = library.flite_text_to_wave(text.encode(), speaker)
    samples = np.ctypeslib.as_array(wave.contents.data, (wave.contents.samples,)).astype(np.float32) / 32768
    rate = wave.contents.sample_rate
    library.delete_wave(wave)
    return samples, rate
