"""Things made from parameters, kept until a parameter is changed or moved."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


def versions(tensors: Iterable[Tensor]) -> tuple:
    """Equal for the same tensors with the same values; tensors of inference mode do not tell their changes."""
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)


class KeptFor:
    """One thing for each module, gone with the module; never part of it, so not copied, pickled or saved."""

    def __init__(self):
        self._all: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def get(self, module, key, tensors: Iterable[Tensor], make: Callable[[], Any]) -> Any:
        """What was made for the module from these tensors under `key`, else the result of `make`, kept instead."""
        tensors = list(tensors)
        if any(t.is_inference() for t in tensors):
            return make()  # they do not tell when they are changed
        key = key, versions(tensors)
        if module not in self._all or self._all[module][0] != key:
            self._all.pop(module, None)  # before the new one is made: there need not be room for two
            self._all[module] = key, make()
        return self._all[module][1]

    def drop(self, module) -> None:
        """Keep nothing for the module any more."""
        self._all.pop(module, None)
