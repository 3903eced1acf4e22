"""nemo_lact: sliding-window attention with fast-weight memory as an encoder for NVIDIA NeMo ASR.

Importing this package registers it with NeMo and imports neither torch nor NeMo; the public names below are
loaded on first use.
"""

from importlib import import_module

from nemo_lact.registration import config_dir, register

__version__ = "0.1.0"

_LAZY = {
    "LaCTEncoder": "nemo_lact.modules",
    "LaCTEncoderConfig": "nemo_lact.modules",
    "LaCTState": "nemo_lact.state",
    "Streamer": "nemo_lact.inference.stream",
    "session": "nemo_lact.inference.session",
    "transcribe_blocks": "nemo_lact.inference.longform",
}

__all__ = ["__version__", "config_dir", "register", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LAZY})


register()
