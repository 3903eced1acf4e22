"""What lies between the products of a block, for the rows of several layers at once: in plain torch, which defines it.

Rows are [L · B], layer by layer; weights are [L, ...]. triton_pieces.py has the same as kernels that write into place.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_lact.ops.rotary import rotary_tables, rotate


class Sizes(NamedTuple):
    """heads of the attention, heads of the memory, columns of step sizes, rotary base, memory with positions."""

    heads: int
    memory_heads: int
    steps: int
    momentum: bool
    theta: float
    memory_rotates: bool
    lr_base: float
    eps: float


class Moment(NamedTuple):
    """Of a step: heard [R, K] bool keys that are frames of the input, valid [R, C] bool frames to learn from and count
    [R] int32 of them, start [R] int64 position of the first frame that comes in."""

    heard: Tensor
    valid: Tensor
    count: Tensor
    start: Tensor


class MemoryInput(NamedTuple):
    """q, k, v [R, H, C, d]; eta [R, H, C, 3, 1 or d] and mu [R, H, C] fp32."""

    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    mu: Tensor


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [R, heads, C, width]


def _per_row(weight: Tensor, rows: int) -> Tensor:
    """[L, ...] -> [R, ...]: each layer's weight for its rows."""
    return weight.repeat_interleave(rows // weight.size(0), dim=0)


def moment(
    step: Tensor,
    lag: int,
    behind: int,
    keys: int,
    chunk: int,
    frames: Tensor,
    learn: Tensor,
    offset: Tensor,
    layers: int,
) -> Moment:
    """Where the rows stand in a step: layer l takes in chunk step − lag · l.

    Args:
        step: int64 scalar on the device.
        behind: frames from the first key held to the first frame that comes in; keys: held in all.
        frames, learn, offset: [B] frames in all, whether the row may learn, frames heard before.
    """
    first = (step - lag * torch.arange(layers, device=step.device)) * chunk  # [L]
    positions = first[:, None, None] - behind + torch.arange(keys, device=step.device)  # [L, 1, K]
    heard = (positions >= 0) & (positions < frames[:, None])  # [L, B, K]
    valid = (heard[..., -chunk:] & learn[:, None]).flatten(0, 1)
    start = (first[:, None] + offset).flatten()
    return Moment(heard.flatten(0, 1), valid, valid.sum(dim=1, dtype=torch.int32), start)


def roll(buffers: tuple[Tensor, ...], chunk: int) -> None:
    """What is held, [R, ., width] each, moves a chunk to the past; piece by piece, as the places overlap."""
    for buffer in buffers:
        for at in range(0, buffer.size(1) - chunk, chunk):
            n = min(chunk, buffer.size(1) - chunk - at)
            buffer[:, at : at + n].copy_(buffer[:, at + chunk :][:, :n])


def mean_gate(mu: Tensor, moment: Moment) -> Tensor:
    """Mean of mu [R, H, C] over the frames to learn from: [R, H]."""
    total = (mu * moment.valid.to(mu.dtype)[:, None]).sum(dim=-1)
    return total / moment.count.clamp(min=1).to(mu.dtype)[:, None]


def split_projection(
    p: Tensor,
    bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    scale: Tensor,
    offset: Tensor,
    start: Tensor,
    sizes: Sizes,
    to: tuple[Tensor, Tensor, Tensor, Tensor],
) -> MemoryInput:
    """The projection of the mixer taken apart.

    Args:
        p: [R, C, N] products without bias; columns q, k, v [D each], step sizes, momentum gate, read gate.
        bias: [L, N]. q_norm, k_norm: [L, width]. scale, offset: [L, 2, D].
        start: [R] int64 position of the first frame.
        to: queries, keys, values of the attention [R, C, D] (q and k normed and rotated) and the read gate [R, C, H]
            fp32, written in place.
    """
    rows, frames = p.shape[:2]
    width = scale.size(-1)
    wide = bias.dtype
    p = p.to(wide) + _per_row(bias, rows)[:, None]
    low = to[0].dtype
    qkv = p[..., : 3 * width].to(low)
    q, k, v = qkv.chunk(3, dim=-1)
    positions = start[:, None, None] + torch.arange(frames, device=p.device)  # [R, 1, C]
    cos, sin = rotary_tables(positions, width // sizes.heads, sizes.theta)

    def turned(x: Tensor, norm: Tensor) -> Tensor:
        y = _split_heads(x, sizes.heads).to(wide)
        y = y * torch.rsqrt((y * y).mean(dim=-1, keepdim=True) + sizes.eps)
        y = (y * _per_row(norm, rows)[:, None, None]).to(low)
        return rotate(y, cos, sin).transpose(1, 2).flatten(2)

    def unit(x: Tensor, which: int) -> Tensor:
        own_scale, own_offset = (_per_row(t[:, which], rows)[:, None].to(low) for t in (scale, offset))
        y = F.silu(x * own_scale + own_offset)
        if sizes.memory_rotates:
            y = rotate(_split_heads(y, sizes.heads), cos, sin).transpose(1, 2).flatten(2)
        y = _split_heads(y, sizes.memory_heads).to(wide)
        return (y * torch.rsqrt((y * y).sum(dim=-1, keepdim=True) + 1e-6)).to(low)

    to[0].copy_(turned(q, q_norm))
    to[1].copy_(turned(k, k_norm))
    to[2].copy_(v)
    rest = p[..., 3 * width :].to(low).to(wide)
    heads = sizes.memory_heads
    eta = F.softplus(rest[..., : sizes.steps] + sizes.lr_base)
    eta = eta.unflatten(-1, (heads, 3, -1)).transpose(1, 2)
    at = sizes.steps + (heads if sizes.momentum else 0)
    mu = torch.sigmoid(rest[..., sizes.steps : at]).transpose(1, 2)
    if not sizes.momentum:
        mu = eta.new_zeros(eta.shape[:3])
    to[3].copy_(F.silu(rest[..., at : at + heads]))
    return MemoryInput(unit(q, 0), unit(k, 1), _split_heads(F.silu(v), heads), eta, mu)


def add_read(near: Tensor, read: Tensor, gate: Tensor, norm: Tensor, eps: float) -> Tensor:
    """Attention plus the memory's read, normed per head and gated.

    near, read [R, C, D], gate [R, C, H] fp32, norm [L, d] -> [R, C, D].
    """
    wide = norm.dtype
    y = read.unflatten(-1, (gate.size(-1), -1)).to(wide)
    y = y * torch.rsqrt((y * y).mean(dim=-1, keepdim=True) + eps) * _per_row(norm, read.size(0))[:, None, None]
    return near + (y.to(read.dtype) * gate[..., None].to(read.dtype)).flatten(2)


def swiglu(x: Tensor, bias: Tensor) -> Tensor:
    """silu(gate) · up of x + bias: [L, M, 2F] with bias [L, 2F] -> [L, M, F]."""
    gate, up = (x + bias[:, None].to(x.dtype)).chunk(2, dim=-1)
    return F.silu(gate) * up
