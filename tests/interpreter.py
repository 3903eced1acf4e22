"""Triton's interpreter without the work it does twice. What the kernels compute is untouched."""

from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    """Replaces triton.language's functions once a launch, not again at each call of a function inside the kernel.

    Every `tl.sum` or `tl.sigmoid` is such a call, and looks through all of triton.language: a third of the time.
    A Triton made otherwise is left as it is.
    """
    if not (hasattr(interpreter, '_patch_lang') and hasattr(interpreter, 'GridExecutor')):
        return
    patch, run = interpreter._patch_lang, interpreter.GridExecutor.__call__

    def launch(executor, *args, **kwargs):
        done = {}

        def patch_once(function):
            language = id(function.__globals__)  # what is patched is what the function's module sees
            if language not in done:
                done[language] = patch(function)
            return done[language]

        interpreter._patch_lang = patch_once
        try:
            return run(executor, *args, **kwargs)
        finally:
            interpreter._patch_lang = patch

    interpreter.GridExecutor.__call__ = launch
