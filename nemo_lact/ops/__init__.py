"""The equations of the encoder, free of NeMo. Every fast version has the signature of the reference here.

`lact_swiglu` is the memory (fast weights), `window_attention` the near past. Which implementation runs is
decided in this file only.
"""

import math
import os

import torch
from torch import Tensor

from nemo_lact.ops.attention import cached_attention, window_attention
from nemo_lact.ops.fast_weights import (
    FastWeights,
    lact_swiglu_frozen,
    lact_swiglu_reference,
    row_length,
    zeros_like,
)
from nemo_lact.ops.newton_schulz import orthogonalise
from nemo_lact.ops.rotary import rotary_tables, rotate
from nemo_lact.ops.streaming import Pending, lact_swiglu_step, settle

try:
    from nemo_lact.ops import fast, fast_steps, triton_pieces, triton_streaming
except ImportError:  # no Triton
    fast = fast_steps = triton_pieces = triton_streaming = None

__all__ = [
    'FastWeights',
    'Pending',
    'cached_attention',
    'implementation',
    'lact_swiglu',
    'lact_swiglu_frozen',
    'lact_swiglu_reference',
    'lact_swiglu_step',
    'orthogonalise',
    'rotary_tables',
    'rotate',
    'row_length',
    'settle',
    'use_implementation',
    'why_not_fast',
    'window_attention',
    'zeros_like',
]


_IMPLEMENTATION = os.environ.get('NEMO_LACT_OPS', 'auto')


def use_implementation(name: str) -> None:
    """Which memory runs from now on: 'auto' (the rule of `lact_swiglu`), 'reference' or 'fast'.

    The environment variable NEMO_LACT_OPS gives the same choice at start.
    """
    global _IMPLEMENTATION
    if name not in ('auto', 'reference', 'fast'):
        raise ValueError(f"implementation '{name}' of the memory; choose 'auto', 'reference' or 'fast'")
    _IMPLEMENTATION = name


def implementation() -> str:
    """What `use_implementation` was last given."""
    return _IMPLEMENTATION


def why_not_fast(q: Tensor, eta: Tensor, weights: FastWeights, mode: str = 'bidirectional') -> str | None:
    """What keeps the fast memory from these arguments, in words; None where it runs."""
    if mode not in ('bidirectional', 'causal'):
        return f"mode '{mode}' is unknown"
    if torch.jit.is_tracing():
        return 'a traced graph keeps the equations, not kernels'
    if weights.w0.dtype != torch.float32:
        return f'the state is {str(weights.w0.dtype)[6:]}, it takes float32'
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f'products in {str(q.dtype)[6:]}, it takes bfloat16 and float16'
    width, hidden = q.size(-1), weights.w0.size(-2)
    if hidden != width:
        return f'hidden width {hidden} differs from the head width {width} (inter_multi 1 is needed)'
    if width > 256:
        return f'heads of {width} channels, over its limit of 256'
    if eta.size(-1) != 1:
        return 'step sizes per channel (lr_dim 1 is needed)'
    if q.numel() == 0:
        return 'nothing to do'
    if fast is None:
        return 'Triton is not installed'
    if not fast.INTERPRETED and not (q.is_cuda and _capable(q.device.index)):
        return f'it needs a CUDA GPU of compute capability 8.0 or newer, the data is on {q.device}'
    return None


@torch.compiler.assume_constant_result
def _capable(index: int | None) -> bool:
    return torch.cuda.get_device_capability(index) >= (8, 0)


_reference = torch.compiler.disable(lact_swiglu_reference)  # its loop over chunks would be unrolled for minutes


def lact_swiglu(
    q, k, v, eta, mu, valid, weights, momentum, lengths, chunk_size,
    mode='bidirectional', use_muon=True, use_momentum=True, anchor=None, retention=1.0, relevance=math.inf,
):  # fmt: skip
    """The memory of one layer; arguments and result as `lact_swiglu_reference`, which defines it.

    Runs `ops/fast.py` in evaluation on a GPU where `why_not_fast` has no objection, else the reference; in training
    only with `use_implementation('fast')` or NEMO_LACT_OPS=fast.

    Raises:
        RuntimeError: 'fast' is asked for where it cannot run.
    """
    run, problem = _reference, None
    if _IMPLEMENTATION != 'reference':
        problem = why_not_fast(q, eta, weights, mode)
        # In training only on request: its gradients in bf16 are near the reference's, but not within 2e-2 of fp32.
        if problem is None and (_IMPLEMENTATION == 'fast' or (q.is_cuda and not torch.is_grad_enabled())):
            run = fast.lact_swiglu_fast
    if _IMPLEMENTATION == 'fast' and problem is not None:
        raise RuntimeError(f'the fast memory cannot run: {problem}. Choose NEMO_LACT_OPS=auto')
    return run(
        q, k, v, eta, mu, valid, weights, momentum, lengths, chunk_size, mode, use_muon, use_momentum, anchor,
        retention, relevance,
    )  # fmt: skip
