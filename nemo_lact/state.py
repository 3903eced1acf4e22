"""`LaCTState`: what a stream remembers, as a value that is passed in and out, never kept inside modules."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 'nemo_lact.state.1'


@dataclass(frozen=True)
class LaCTState:
    """Memory of B streams, for all layers.

    `weights[i]` holds how far W0, W1, W2 (i = 0, 1, 2) have moved from the learned initial weights, so zeros are a
    fresh stream. All tensors are [n_layers, B, ...].

    Attributes:
        weights: three tensors [n_layers, B, H, m, d], [n_layers, B, H, d, m], [n_layers, B, H, m, d].
        momentum: three tensors of the same shapes; empty without `use_momentum`.
        position: [B] int64, encoder frames heard so far.
        fingerprint: sizes and initial weights of the model the state belongs to, as a short hash.
    """

    weights: Sequence[Tensor]
    momentum: Sequence[Tensor]
    position: Tensor
    fingerprint: str = ''

    @property
    def batch_size(self) -> int:
        return self.position.size(0)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        tensors = [*self.weights, *self.momentum, self.position]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _map(self, change: Callable[[Tensor], Tensor], position: Callable[[Tensor], Tensor]) -> 'LaCTState':
        return replace(
            self,
            weights=tuple(change(t) for t in self.weights),
            momentum=tuple(change(t) for t in self.momentum),
            position=position(self.position),
        )

    def to(self, device=None, dtype=None) -> 'LaCTState':
        """On another device, or with weights and momentum in another floating-point type."""
        return self._map(lambda t: t.to(device=device, dtype=dtype), lambda p: p.to(device=device))

    def detach(self) -> 'LaCTState':
        """Cut from the autograd graph."""
        return self._map(Tensor.detach, Tensor.detach)

    def clone(self) -> 'LaCTState':
        return self._map(Tensor.clone, Tensor.clone)

    def select(self, rows: Tensor | Sequence[int]) -> 'LaCTState':
        """The streams `rows`, in that order; an index may come twice."""
        rows = self._rows(rows)
        return self._map(lambda t: t.index_select(1, rows), lambda p: p.index_select(0, rows))

    def reset(self, rows: Tensor | Sequence[int]) -> 'LaCTState':
        """A copy in which the streams `rows` are fresh."""
        rows = self._rows(rows)
        return self._map(lambda t: t.index_fill(1, rows, 0), lambda p: p.index_fill(0, rows, 0))

    @staticmethod
    def merge(states: Sequence['LaCTState']) -> 'LaCTState':
        """One state with the streams of all, in order. They must belong to one model."""
        prints = {s.fingerprint for s in states}
        if len(prints) != 1:
            raise ValueError(f'cannot merge states of {len(prints)} models: fingerprints {sorted(prints)}')
        return replace(
            states[0],
            weights=tuple(torch.cat(t, dim=1) for t in zip(*(s.weights for s in states))),
            momentum=tuple(torch.cat(t, dim=1) for t in zip(*(s.momentum for s in states))),
            position=torch.cat([s.position for s in states]),
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {'position': self.position.contiguous()}
        for name, group in (('weights', self.weights), ('momentum', self.momentum)):
            tensors.update({f'{name}.{i}': t.detach().contiguous() for i, t in enumerate(group)})
        save_file(tensors, str(path), metadata={'format': FORMAT, 'fingerprint': json.dumps(self.fingerprint)})

    @classmethod
    def load(cls, path: str | Path, fingerprint: str = None, device='cpu') -> 'LaCTState':
        """Read what `save` wrote.

        Args:
            fingerprint: that of the model it is to be used with (`encoder.fingerprint()`); None skips the check.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a state file, or the state of another model.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f'no state file at {path}')
        try:
            with safe_open(str(path), framework='pt', device=str(device)) as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except Exception as error:
            raise ValueError(f'{path} is no safetensors file ({error}); give one written by LaCTState.save') from error
        if meta.get('format') != FORMAT:
            raise ValueError(f"{path} has format {meta.get('format')!r}, expected {FORMAT!r}; save it again")
        own = json.loads(meta['fingerprint'])
        if fingerprint is not None and own != fingerprint:
            raise ValueError(
                f'{path} was saved by another model (fingerprint {own}, this model has {fingerprint}); '
                f'what it learned has no meaning here. Use the model it was saved with, or start fresh'
            )
        group = {n: _in_order(tensors, n) for n in ('weights', 'momentum')}
        return cls(group['weights'], group['momentum'], tensors['position'], own)

    def _rows(self, rows) -> Tensor:
        index = torch.as_tensor(rows, dtype=torch.long, device=self.position.device).reshape(-1)
        if index.numel() and not (0 <= int(index.min()) and int(index.max()) < self.batch_size):
            raise IndexError(f'rows {index.tolist()} are outside 0..{self.batch_size - 1}, the streams of this state')
        return index


def _in_order(tensors: dict, group: str) -> list[Tensor]:
    names = sorted(n for n in tensors if n.startswith(group + '.'))
    return tuple(tensors[n] for n in names)
