"""`LaCTState`: what a stream remembers, as a value that is passed in and out, never kept inside modules."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = 'nemo_lact.state.2'
GROUPS = ('weights', 'momentum', 'pending', 'attention', 'convolution', 'features')  # [., B, ...] each
COUNTERS = ('position', 'frames', 'filled', 'heard')  # [B] each


@dataclass(frozen=True)
class LaCTState:
    """All that B streams remember.

    `weights[i]` holds how far W0, W1, W2 (i = 0, 1, 2) have moved from the learned initial weights, so zeros are a
    fresh stream. The tensors of a group are [n_layers, B, ...] (`features`: [1, B, ...]; those of the memory have the
    layers that have one); a group that a model does not need is empty. An offline encoder has memory only: an utterance
    ends with each call.

    Attributes:
        weights: three tensors [n_layers, B, H, m, d], [n_layers, B, H, d, m], [n_layers, B, H, m, d].
        momentum: three tensors of the same shapes; empty without `use_momentum`.
        position: [B] int64, encoder frames heard so far.
        fingerprint: sizes and initial weights of the model the state belongs to, as a short hash.
        pending: gradient sums of the unfinished chunk, shapes as `weights`, and sums of the momentum gate
            [n_layers, B, H]. Streaming only, as all below.
        frames: [B] int64, encoder frames of this utterance so far.
        filled: [B] int64, of these the frames in the unfinished chunk.
        attention: keys (rotated) and values [n_layers, B, left context, d_model], latest last.
        convolution: inputs of the convolution module [n_layers, B, kernel − 1, d_model].
        features: the last feature frames [1, B, frames, feat_in], still needed by the front end.
        heard: [B] int64, feature frames of this utterance so far.
    """

    weights: Sequence[Tensor]
    momentum: Sequence[Tensor]
    position: Tensor
    fingerprint: str = ''
    pending: Sequence[Tensor] = ()
    frames: Tensor | None = None
    filled: Tensor | None = None
    attention: Sequence[Tensor] = ()
    convolution: Sequence[Tensor] = ()
    features: Sequence[Tensor] = ()
    heard: Tensor | None = None

    def __post_init__(self):
        for name in COUNTERS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, torch.zeros_like(self.position))

    @property
    def batch_size(self) -> int:
        return self.position.size(0)

    @property
    def streaming(self) -> bool:
        """True if it carries what a streaming encoder needs besides the memory."""
        return bool(self.attention)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        tensors = [t for name in GROUPS for t in getattr(self, name)] + [getattr(self, name) for name in COUNTERS]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _map(self, change: Callable[[Tensor], Tensor], count: Callable[[Tensor], Tensor]) -> 'LaCTState':
        groups = {name: tuple(change(t) for t in getattr(self, name)) for name in GROUPS}
        return replace(self, **groups, **{name: count(getattr(self, name)) for name in COUNTERS})

    def to(self, device=None, dtype=None) -> 'LaCTState':
        """On another device, or with its tensors in another floating-point type."""
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
        for name in GROUPS:
            shapes = [tuple((t.size(0), *t.shape[2:]) for t in getattr(s, name)) for s in states]
            if len(set(shapes)) != 1:
                raise ValueError(f'cannot merge states whose {name} differ in shape: {sorted(set(shapes))}')
        return replace(
            states[0],
            **{n: tuple(torch.cat(t, dim=1) for t in zip(*(getattr(s, n) for s in states))) for n in GROUPS},
            **{n: torch.cat([getattr(s, n) for s in states]) for n in COUNTERS},
        )

    def decay(self, factor: float, rows: Tensor | Sequence[int] | None = None) -> 'LaCTState':
        """A copy in which the streams `rows` (None: all) have kept only `factor` (0 to 1) of what was learned."""
        if not 0 <= factor <= 1:
            raise ValueError(f'decay factor {factor}; give 0 (forget all) to 1 (keep all)')
        rows = self._rows(range(self.batch_size) if rows is None else rows)

        def less(t: Tensor) -> Tensor:
            return t.index_copy(1, rows.to(t.device), t.index_select(1, rows.to(t.device)) * factor)

        return replace(self, **{n: tuple(less(t) for t in getattr(self, n)) for n in ('weights', 'momentum')})

    def next_utterance(self) -> 'LaCTState':
        """The memory alone goes on: caches are cleared, and the unfinished chunk is dropped.

        `encoder.end_utterance(state)` learns from the unfinished chunk first.
        """
        cleared = {n: tuple(torch.zeros_like(t) for t in getattr(self, n)) for n in GROUPS[2:]}
        return replace(self, **cleared, **{n: torch.zeros_like(self.position) for n in COUNTERS[1:]})

    def memory_only(self) -> 'LaCTState':
        """Weights and momentum without the caches: what a session keeps of a voice."""
        return LaCTState(self.weights, self.momentum, self.position, self.fingerprint)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        tensors = {name: getattr(self, name).contiguous() for name in COUNTERS}
        for name in GROUPS:
            tensors.update({f'{name}.{i}': t.detach().contiguous() for i, t in enumerate(getattr(self, name))})
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
        groups = {name: _in_order(tensors, name) for name in GROUPS}
        return cls(fingerprint=own, **groups, **{name: tensors[name] for name in COUNTERS})

    def _rows(self, rows) -> Tensor:
        index = torch.as_tensor(rows, dtype=torch.long, device=self.position.device).reshape(-1)
        if index.numel() and not (0 <= int(index.min()) and int(index.max()) < self.batch_size):
            raise IndexError(f'rows {index.tolist()} are outside 0..{self.batch_size - 1}, the streams of this state')
        return index


def _in_order(tensors: dict, group: str) -> tuple[Tensor, ...]:
    names = sorted(n for n in tensors if n.startswith(group + '.'))
    return tuple(tensors[n] for n in names)
