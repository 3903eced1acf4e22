"""Train and score many contestants on the GPUs there are, some at a time on each.

    python benchmarks/accuracy/ablations.py --output OUT --at-once 6 --time 560 --corpus CORPUS --steps 1500 --ema

Options it does not know go to train.py. The log of a run is OUT/NAME-SEED.log, its report OUT/NAME-SEED.json. The first
run is alone until its first line with a loss, so that the others find what torch compiled in the cache.

Runs that share a GPU take turns on it, unless NVIDIA's MPS runs (`nvidia-cuda-mps-control -d`): then their kernels run
side by side. Steps of these models are bound by launches, so that about doubled what an H200 got done.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

TRAIN = Path(__file__).with_name('train.py')
BASE = 'LaCT-Conformer'
LOSS = re.compile(r'^ *\d+ loss ', re.MULTILINE)
# Those from which most is to be learned come first: the last ones may find no time.
ORDER = f"""
{BASE}:0 | {BASE}:1 | two reads | dropout 0.1 | norm after each block | biases
CR-CTC | both modes | streaming | chunk jitter | LaCT-Conformer, memory not learning
no convolution | no macaron | LaCT transformer | same step for any evidence | chunk 32 | chunk 512 | no InterCTC
masks of the mean | Muon | no momentum | rotary memory | 4 memory heads | 1 memory head
memory width 2 | window 16 | window 128 | no long rows | more long rows
no retention | window 16, memory not learning | causal | causal, chunk 32 | causal, chunk 32, more long rows
two windows | base_lr 0.001 | frozen at times | norm and biases | norm and biases, chunk 512
norm and biases, dropout 0.1 | norm and biases, memory not learning | two reads, InterCTC 0.1
two reads, InterCTC 0.5
two reads, window 16
"""


@dataclass
class Run:
    """One contestant, written NAME or NAME:SEED."""

    contestant: str
    seed: int
    gpu: int | str | None = None
    process: subprocess.Popen | None = None
    began: float = 0.0

    @classmethod
    def parsed(cls, text: str) -> 'Run':
        name, _, seed = text.strip().partition(':')
        if not re.fullmatch(r'\d*', seed):
            raise argparse.ArgumentTypeError(f"'{text}': write NAME or NAME:SEED, the seed a number")
        return cls(name, int(seed or 0))

    @property
    def name(self) -> str:
        return f'{self.contestant.replace(" ", "_").replace(",", "")}-{self.seed}'

    def start(self, gpu: int | str | None, folder: Path, options: list[str]) -> None:
        command = [sys.executable, str(TRAIN), self.contestant, '--seed', str(self.seed), '--output', str(folder)]
        settings = dict(os.environ) if gpu is None else os.environ | {'CUDA_VISIBLE_DEVICES': str(gpu)}
        self.gpu, self.began = gpu, time.monotonic()
        with open(folder / f'{self.name}.log', 'w') as log:
            self.process = subprocess.Popen(command + options, stdout=log, stderr=subprocess.STDOUT, env=settings)

    def finished(self) -> bool:
        return self.process.poll() is not None

    def learns(self, folder: Path) -> bool:
        return LOSS.search((folder / f'{self.name}.log').read_text(errors='replace')) is not None


def everyone() -> list[Run]:
    return [Run.parsed(name) for name in re.split(r'[|\n]', ORDER.strip())]


def gpus() -> list[int | str | None]:
    """Those that CUDA_VISIBLE_DEVICES names, else all; [None]: the CPU."""
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    return (named.split(',') if named else list(range(torch.cuda.device_count()))) or [None]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        '--contestants', type=Run.parsed, nargs='+', default=everyone(), metavar='NAME[:SEED]',
        help=f'in this order; left out: {"; ".join(f"{run.contestant}:{run.seed}" for run in everyone())}',
    )  # fmt: skip
    parser.add_argument('--output', type=Path, required=True)
    parser.add_argument('--at-once', type=int, default=1, help='runs on each GPU')
    parser.add_argument('--time', type=float, default=float('inf'), help='seconds for all; what runs then is ended')
    args, options = parser.parse_known_args()
    args.output.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault('TORCHINDUCTOR_COMPILE_THREADS', '2')
    os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', str(Path(tempfile.gettempdir()) / 'nemo_lact_ablations'))
    failed, ended, left_out = run_all(args.contestants, args.output, gpus(), args.at_once, args.time, options)
    for what, runs in (('failed', failed), ('ended: the time is over', ended), ('left out: too little time', left_out)):
        if runs:
            print(f'{what}: {", ".join(run.name for run in runs)}', flush=True)
    raise SystemExit(1 if failed else 0)


def run_all(
    waiting: list[Run], folder: Path, places: list, at_once: int, seconds: float, options: list[str]
) -> tuple[list[Run], list[Run], list[Run]]:
    """All of them, each as soon as a place is free.

    A run that would not be over in time, going by the longest before it, is not begun.

    Returns:
        Those that failed, those ended because the time was over, those not begun.
    """
    waiting, running, failed, left_out = list(waiting), [], [], []
    began, longest, warm = time.monotonic(), 0.0, False
    while waiting or running:
        now = time.monotonic() - began
        if now > seconds:
            break
        for run in [r for r in running if r.finished()]:
            running.remove(run)
            took, code = time.monotonic() - run.began, run.process.returncode
            longest = max(longest, took) if code == 0 else longest
            failed += [run] if code else []
            how = f'error, exit status {code}' if code else f'{took:.0f} s'
            print(f'{now:5.0f} s  {run.name}: {how}', flush=True)
        if waiting and now + longest > seconds:
            left_out, waiting = left_out + waiting, []
        warm = warm or any(r.learns(folder) for r in running)
        busy = [r.gpu for r in running]
        place = min(places, key=busy.count)
        if waiting and busy.count(place) < at_once and (warm or not running):
            run = waiting.pop(0)
            run.start(place, folder, options)
            running.append(run)
            print(f'{now:5.0f} s  {run.name} begins' + ('' if place is None else f' on GPU {place}'), flush=True)
        else:
            time.sleep(0.2)
    for run in running:
        run.process.terminate()
    for run in running:
        try:
            run.process.wait(10)
        except subprocess.TimeoutExpired:
            run.process.kill()
    return failed, running, left_out + waiting


if __name__ == '__main__':
    main()
