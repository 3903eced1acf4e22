"""Borders of memory chunks in pauses: a border inside a word splits what the memory learns of it.

With `lact_chunk_tolerance` every border may move by so many frames to where the input is quietest. Each row has
borders of its own, so the frames are laid out anew, chunk beside chunk, each padded to the longest allowed.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ChunkLayout(NamedTuple):
    """Where frames go for chunks of unequal length.

    index: [B, n · size] the frame at each place; inside: [B, n · size] bool, False for padding of a chunk;
    place: [B, T] where each frame went; size: places of a chunk.
    """

    index: Tensor
    inside: Tensor
    place: Tensor
    size: int

    def spread(self, x: Tensor) -> Tensor:
        """Frames in dimension 2, [B, H, T, ...] -> [B, H, n · size, ...]."""
        index = self.index[:, None].reshape(x.size(0), 1, -1, *[1] * (x.dim() - 3))
        return x.gather(2, index.expand(-1, x.size(1), -1, *x.shape[3:]))

    def gathered(self, x: Tensor) -> Tensor:
        """Back: [B, H, n · size, d] -> [B, H, T, d]."""
        index = self.place[:, None, :, None]
        return x.gather(2, index.expand(-1, x.size(1), -1, x.size(3)))

    def valid(self, valid: Tensor) -> Tensor:
        """[B, T] bool -> [B, n · size]."""
        return valid.gather(1, self.index) & self.inside


def frame_energy(features: Tensor, factor: int) -> Tensor:
    """Loudness of encoder frames: mean log-mel of the feature frames around each, [B, F, T] -> [B, ceil(T / factor)].

    Frame i stands for feature frames i · factor − factor / 2 and on.
    """
    mean = features.float().mean(dim=1)  # [B, T]
    half = factor // 2
    mean = F.pad(mean, (half, -(mean.size(1) + half) % factor))
    return mean.unflatten(1, (-1, factor)).mean(dim=2)


def next_border(energy: Tensor, border: int, frames: int, chunk: int, tolerance: int) -> int:
    """The border after `border` in one row: the quietest of the frames `tolerance` around `border + chunk`.

    energy: [T]; frames: valid ones of the row. Where the row ends first, the middle.
    """
    low, high = border + chunk - tolerance, min(border + chunk + tolerance + 1, frames)
    if high <= low:
        return border + chunk
    return low + int(energy[low:high].argmin())


def borders_of(energy: Tensor, frames: Tensor, chunk: int, tolerance: int) -> list[list[int]]:
    """Borders of each row of energy [B, T], from 0 to the first at or beyond T."""
    rows, total = [], energy.size(1)
    energy = energy.cpu()
    for row, n in zip(energy, frames.tolist()):
        borders = [0]
        while borders[-1] < total:
            borders.append(next_border(row, borders[-1], n, chunk, tolerance))
        rows.append(borders)
    return rows


def layout(borders: list[list[int]], start: int, stop: int, size: int, device) -> ChunkLayout:
    """The layout of frames [start, stop), which begin and may end at borders; `size`: the longest chunk allowed."""
    inner = [[b for b in row if start < b < stop] for row in borders]
    chunks = max(map(len, inner)) + 1
    place = torch.zeros(len(borders), stop - start, dtype=torch.long)
    index = torch.zeros(len(borders), chunks * size, dtype=torch.long)
    inside = torch.zeros(len(borders), chunks * size, dtype=torch.bool)
    for row, cuts in enumerate(inner):
        edges = [start, *cuts, stop]
        for number, (a, b) in enumerate(zip(edges, edges[1:])):
            frames = torch.arange(a - start, b - start)
            at = number * size + torch.arange(b - a)
            place[row, frames] = at
            index[row, at] = frames
            inside[row, at] = True
    return ChunkLayout(index.to(device), inside.to(device), place.to(device), size)
