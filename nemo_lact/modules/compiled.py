"""torch.compile as an option that leaves the modules as they are: same parameters, same names, same pickles."""

import functools

import torch

BACKEND = 'inductor'


def compiled(method):
    """Decorator: the method runs through torch.compile where `self.config.compile` is true.

    One compiled function serves all layers and models of the process, so twelve layers compile once. In training,
    where every batch has another size, rows and frames are symbols of the graph from the start. Elsewhere they become
    symbols at their first change (torch's default): a new batch size or length compiles a second time, and then never
    again. One row is a graph of its own.
    """
    functions = []

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        if not self.config.compile or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        if not functions:
            _allow_variants(32)
            functions.append(torch.compile(method, backend=BACKEND))
        if self.training and torch.is_grad_enabled():
            for x in args:
                if isinstance(x, torch.Tensor):
                    torch._dynamo.maybe_mark_dynamic(x, _changing(x))
        return functions[0](self, *args, **kwargs)

    return call


def _changing(x: torch.Tensor) -> list[int]:
    """Dimensions of rows and frames: x is a mask [B, T], a table [T, d], [B, T, D] or [B, H, T, d]."""
    if x.dim() == 2:
        return [0, 1] if x.dtype == torch.bool else [0]
    return [0, x.dim() - 2]


def _allow_variants(count: int) -> None:
    """Training, evaluation, dtypes, devices, one row or many: torch gives up compiling after 8 variants."""
    settings = torch._dynamo.config
    for name in ('recompile_limit', 'cache_size_limit'):  # the name since torch 2.7, and before
        if hasattr(settings, name):
            setattr(settings, name, max(count, getattr(settings, name)))
            return
