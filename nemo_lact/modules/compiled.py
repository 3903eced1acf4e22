"""torch.compile as an option that leaves the modules as they are: same parameters, same names, same pickles."""

import functools

import torch

BACKEND = 'inductor'


def compiled(method):
    """Decorator: the method runs through torch.compile where `self.config.compile` is true.

    One compiled function serves all layers and models of the process, so twelve layers compile once. Sizes that
    change become symbols of the graph at their first change (torch's default): a new batch size or length compiles a
    second time, and then never again.
    """
    functions = []

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        if not self.config.compile or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return method(self, *args, **kwargs)
        if not functions:
            _allow_variants(32)
            functions.append(torch.compile(method, backend=BACKEND))
        return functions[0](self, *args, **kwargs)

    return call


def _allow_variants(count: int) -> None:
    """Training, evaluation, dtypes, devices, one row or many: torch gives up compiling after 8 variants."""
    settings = torch._dynamo.config
    for name in ('recompile_limit', 'cache_size_limit'):  # the name since torch 2.7, and before
        if hasattr(settings, name):
            setattr(settings, name, max(count, getattr(settings, name)))
            return
