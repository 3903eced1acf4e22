"""Rotary positions (arXiv 2104.09864)."""


import torch
from torch import Tensor


def rotary_tables(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [..., T, width / 2] fp32 of the angles at `positions` [..., T].

    Angles are made in float64: after ten hours the position is 450,000, where float32 is off by 0.03 rad.
    """
    dtype = torch.float32 if positions.device.type == 'mps' else torch.float64
    freq = theta ** -(torch.arange(0, width, 2, device=positions.device, dtype=dtype) / width)  # [width / 2]
    angle = positions.to(dtype)[..., None] * freq  # [..., T, width / 2]
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + width / 2) of x [..., T, width]; tables as `rotary_tables` gives. Keeps the dtype."""
    y = x if x.dtype == torch.float64 else x.float()
    a, b = y.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
