"""The equations of the encoder, free of NeMo. Every fast version has the signature of the reference here.

`lact_swiglu` is the memory (fast weights), `window_attention` the near past. Which implementation runs is
decided in this file only.
"""

from nemo_lact.ops.attention import window_attention
from nemo_lact.ops.fast_weights import (
    FastWeights,
    lact_swiglu_frozen,
    lact_swiglu_reference,
    row_length,
    zeros_like,
)
from nemo_lact.ops.newton_schulz import orthogonalise
from nemo_lact.ops.rotary import rotary_tables, rotate

__all__ = [
    'FastWeights',
    'lact_swiglu',
    'lact_swiglu_frozen',
    'lact_swiglu_reference',
    'orthogonalise',
    'rotary_tables',
    'rotate',
    'row_length',
    'window_attention',
    'zeros_like',
]


def lact_swiglu(*args, **kwargs):
    """The memory of one layer; arguments and result as `lact_swiglu_reference`, today the only implementation."""
    return lact_swiglu_reference(*args, **kwargs)
