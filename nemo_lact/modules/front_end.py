"""The front end: NeMo's ConvSubsampling, with kernels of our own for evaluation on a GPU."""

import os

import torch
from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling
from torch import Tensor

from nemo_lact.modules.kept import KeptFor

try:
    from nemo_lact.ops import triton_front
except ImportError:  # no Triton
    triton_front = None

_kept = KeptFor()


class FrontEnd(ConvSubsampling):
    """NeMo's, but a stream may end with any number of feature frames, and evaluation on a GPU takes other kernels.

    A causal front end makes an encoder frame of any rest, which NeMo's CacheAwareStreamingAudioBuffer would drop.
    """

    def get_sampling_frames(self) -> list[int]:
        return [1, 1]

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, F] features, [B] frames -> [B, T', D], [B]."""
        if self.why_not_fast(x) is not None:
            return self._without_masks(x, lengths) if self._nothing_padded(x, lengths) else super().forward(x, lengths)
        dtype = _products(x)
        lengths = lengths.to(torch.int64)
        out = lengths
        for _ in range(self._sampling_num):
            out = (out + self._left_padding + self._right_padding - 3) // 2 + 1
        weights = _kept.get(self, dtype, self.parameters(), lambda: self._weights(dtype))
        with torch.autocast(x.device.type, enabled=False):
            return triton_front.front_forward(x, lengths, weights), out

    def why_not_fast(self, x: Tensor) -> str | None:
        """What keeps the kernels from this input, in words; None where they run. So does NEMO_LACT_FRONT=reference."""
        dtype = _products(x)
        if os.environ.get('NEMO_LACT_FRONT') == 'reference':
            return 'the reference is asked for'
        if triton_front is None:
            return 'Triton is not installed'
        if not x.is_cuda or torch.cuda.get_device_capability(x.device) < (8, 0):
            return f'it needs a CUDA GPU of compute capability 8.0 or newer, the data is on {x.device}'
        if dtype not in (torch.bfloat16, torch.float16):
            return f'products in {str(dtype)[6:]}, it takes bfloat16 and float16'
        if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return 'it has no gradients and cannot be traced'
        if self._subsampling != 'dw_striding' or self._sampling_num < 2:
            return f'{self._subsampling} by {self.subsampling_factor}, it takes dw_striding by 4 or 8'
        return 'nothing to do' if x.numel() == 0 else None

    def _nothing_padded(self, x: Tensor, lengths: Tensor) -> bool:
        """Evaluation on a CPU of rows that are all of the same length, not so long that NeMo would split them."""
        if x.device.type != 'cpu' or torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return False
        short = 0 < x.numel() * self._conv_channels < 2**31 and self.subsampling_conv_chunking_factor in (-1, 1)
        return short and self._subsampling in ('dw_striding', 'striding') and bool((lengths == x.size(1)).all())

    def _without_masks(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """NeMo's forward to the bit: its masks, a tenth of an encoder's time on a CPU, would all be ones."""
        x = torch.nn.Sequential.forward(self.conv, x[:, None])  # [B, C, T', F']
        out = torch.full_like(lengths, x.size(2))
        return self.out(x.transpose(1, 2).flatten(2)), out

    def _weights(self, dtype: torch.dtype) -> 'triton_front.FrontWeights':
        convolutions = [layer for layer in self.conv if hasattr(layer, 'stride')]
        paddings = self._left_padding, self._left_padding + self._right_padding
        with torch.inference_mode(False), torch.no_grad():
            return triton_front.FrontWeights(convolutions, self.out, paddings, dtype)


def _products(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
