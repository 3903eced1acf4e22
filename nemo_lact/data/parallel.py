"""All cores, with a progress bar on stderr where a person is looking."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

SMALL = 64  # fewer items are done here: starting processes takes longer


def progress(*columns):
    """A rich progress bar on stderr; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = columns or (MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(TextColumn('{task.description}'), BarColumn(), *columns, console=console, disable=not _watched())


def _watched() -> bool:
    return sys.stderr.isatty()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def each(function: Callable, items: Sequence, what: str, jobs: int | None = None, chunk: int = 16) -> Iterator:
    """`function` of each item, in order, on `jobs` processes (None: all cores).

    Args:
        function: a module-level function; what it takes and returns must pickle.
        items: its arguments, one each.
        what: shown beside the bar.
        chunk: items handed to a process at a time.
    """
    jobs = min(jobs or cores(), -(-len(items) // chunk))
    with progress() as bar:
        task = bar.add_task(what, total=len(items))
        if jobs <= 1 or len(items) < SMALL:
            for item in items:
                yield function(item)
                bar.advance(task)
            return
        # Not by fork: the parent may have threads of torch, and a forked copy of their locks never opens.
        method = 'forkserver' if 'forkserver' in multiprocessing.get_all_start_methods() else 'spawn'
        pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context(method))
        try:
            for result in pool.map(function, items, chunksize=chunk):
                yield result
                bar.advance(task)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
