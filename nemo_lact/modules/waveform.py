"""NeMo's raw-waveform front end, importable.

NeMo 2.7 and 3.0 ship `ConvFeatureEncoder` (wav2vec 2.0's convolutions) in a file that also imports a transformer from
a path that no longer exists, so importing the file fails. The front end does not need that transformer: it is
supplied here from where NeMo keeps it now. Used as `_target_: nemo_lact.modules.waveform.ConvFeatureEncoder`.
"""

import importlib
import sys
from types import ModuleType

_GONE = 'nemo.collections.asr.modules.common.transformer.transformer_encoders_nlp'


def _load():
    try:
        return importlib.import_module('nemo.collections.asr.modules.wav2vec_modules')
    except ModuleNotFoundError as error:
        if not (error.name or '').startswith('nemo.collections.asr.modules.common'):
            raise
    stand_in = ModuleType(_GONE)
    stand_in.TransformerEncoder = importlib.import_module(
        'nemo.collections.asr.modules.transformer.transformer_encoders'
    ).TransformerEncoder
    sys.modules[_GONE] = stand_in
    try:
        return importlib.import_module('nemo.collections.asr.modules.wav2vec_modules')
    finally:
        del sys.modules[_GONE]


ConvFeatureEncoder = _load().ConvFeatureEncoder
