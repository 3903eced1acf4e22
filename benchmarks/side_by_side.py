"""What benchmarks share: contestants take turns, and a report says what they took."""

import argparse
import json
import logging
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

import nemo
import torch
from nemo.utils import logging as nemo_logging
from speed import GPU, commit


def clear() -> float:
    """GiB in use on the GPU, with nothing left over and the peak counted from here; 0 on a CPU."""
    if not GPU:
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**30


def peak() -> float:
    """GiB at most in use on the GPU since `clear`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if GPU else 0.0


def take_turns(calls: dict[str, Callable[[], dict]], rounds: int) -> dict[str, dict]:
    """Each contestant once to warm up, then all in turns.

    Args:
        calls: name -> a function that gives the milliseconds of one measurement as 'ms', and any other numbers.
        rounds: turns of each.

    Returns:
        name -> 'ms' (median of the rounds), 'ms_least', 'ms_most', the largest of each other number; or 'error'.
    """
    measured = {who: [] for who in calls}
    errors = {}
    for turn in range(rounds + 1):
        for who, call in calls.items():
            if who in errors:
                continue
            try:
                found = call()
            except torch.cuda.OutOfMemoryError:
                errors[who] = 'out of memory'
            else:
                measured[who] += [found] if turn else []
            if who in errors:  # here, as within `except` the error holds on to the tensors
                clear()
    results = {}
    for who, rows in measured.items():
        if who in errors:
            results[who] = {'error': errors[who]}
            continue
        times = [row['ms'] for row in rows]
        others = {name: max(row[name] for row in rows) for name in rows[0] if name != 'ms'}
        results[who] = dict(ms=statistics.median(times), ms_least=min(times), ms_most=max(times), **others)
    return results


def new_parser(about: str, tasks: Iterable[str], contestants: Iterable[str], rounds: int) -> argparse.ArgumentParser:
    """Options of a script: all of its tasks and contestants, unless it sets other defaults."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, help='folder for the results, a JSON file')
    parser.add_argument('--tasks', nargs='*', default=list(tasks), choices=list(tasks))
    parser.add_argument('--contestants', nargs='*', default=list(contestants), choices=list(contestants))
    parser.add_argument('--rounds', type=int, default=rounds)
    parser.add_argument('--precision', choices=('bf16', 'fp32'), default='bf16' if GPU else 'fp32')
    parser.add_argument('--tiny', action='store_true', help='encoders of a few narrow layers, to try the script')
    parser.add_argument('--commit', help='what to record where there is no git checkout')
    return parser


def new_report(given_commit: str | None) -> dict:
    """Machine, versions, date, commit and command. Quiets NeMo."""
    logging.disable(logging.WARNING)
    nemo_logging.setLevel(nemo_logging.ERROR)
    return dict(
        device=torch.cuda.get_device_name() if GPU else platform.processor() or platform.machine(),
        cores=torch.get_num_threads(), torch=torch.__version__, nemo=nemo.__version__,
        python=platform.python_version(), date=date.today().isoformat(), commit=given_commit or commit(),
        command=shlex.join(['python', *sys.argv]), rows=[],
    )  # fmt: skip


def add_rows(report: dict, task: str, results: dict[str, dict], path: Path | None, **about) -> None:
    """A row for each contestant, printed; written after every task, so that a run cut short keeps what it has."""
    for who, found in results.items():
        report['rows'].append({'task': task, 'contestant': who, **about, **found})
        numbers = found.get('error') or ', '.join(f'{name} {value:.2f}' for name, value in found.items())
        print(f'{task:24s} {who:26s} {numbers}', flush=True)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + '\n')
