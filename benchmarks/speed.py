"""Speed of the encoder beside FastConformer, on whatever device is there.

    python benchmarks/speed.py --output benchmarks/results            # the table of docs/performance.md
    python benchmarks/speed.py --tasks "train 32 x 15 s" --rounds 9   # one row
    python benchmarks/speed.py --output benchmarks/results --tasks "infer 1 x 600 s" --precision bf16   # on a CPU

Contestants: NeMo's ConformerEncoder (FastConformer-L: 512 × 17, 8×, dw_striding), full and local [128, 128]; LaCT as in
the recipe lact_ctc_bpe (768 × 12) but with window [128, 128], with the reference memory, with the fast one, and with
the fast one and `compile: true`; and so LaCT-Conformer of the recipe lact-conformer_ctc_bpe (512 × 16). On a CPU all
are small and of about equal size, the memory is the reference, and full attention is left out beyond a minute. Random
features, random weights; bf16 autocast on a GPU. Before timing, the fast LaCT's output is held against the reference's.
Contestants take turns within a round; reported are the median and the range over the rounds, peak memory, hours of
audio an hour (RTFx), and the share of the bf16 rate that a large matrix product reaches on this device.
"""

import argparse
import contextlib
import json
import logging
import platform
import shlex
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from nemo.collections.asr.modules import ConformerEncoder
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from nemo_lact import ops
from nemo_lact.modules import LaCTEncoder, wavefront
from nemo_lact.ops import cuda_graphs
from nemo_lact.registration import config_dir

GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'
TASKS = {  # name -> rows, seconds, training
    'train 32 x 15 s': (32, 15, True),
    'train 2 x 300 s': (2, 300, True),
    'infer 64 x 15 s': (64, 15, False),
    'infer 1 x 600 s': (1, 600, False),
    'infer 1 x 3600 s': (1, 3600, False),
    'infer 1 x 10800 s': (1, 10800, False),
    'infer 16 x 3600 s': (16, 3600, False),  # 16 streams at once
} if GPU else {'infer 1 x 600 s': (1, 600, False), 'infer 4 x 15 s': (4, 15, False)}  # fmt: skip


def conformer(full: bool) -> torch.nn.Module:
    size = dict(d_model=512, n_layers=17, n_heads=8) if GPU else dict(d_model=256, n_layers=16, n_heads=4)
    attention = dict(self_attention_model='rel_pos', att_context_size=[-1, -1])
    if not full:
        attention = dict(self_attention_model='rel_pos_local_attn', att_context_size=[128, 128])
    return ConformerEncoder(
        feat_in=80, ff_expansion_factor=4, subsampling='dw_striding', subsampling_factor=8,
        subsampling_conv_channels=256, conv_kernel_size=9, use_bias=True, **size, **attention,
    )  # fmt: skip


def recipe_encoder(name: str) -> dict:
    """Options of `LaCTEncoder` in a recipe, the name of its YAML."""
    recipe = OmegaConf.load(Path(config_dir()) / f'{name}.yaml')
    return OmegaConf.to_container(recipe.model.encoder, resolve=True)


SMALL = {  # on a CPU
    'lact_ctc_bpe': dict(d_model=384, n_layers=13, n_heads=6, num_lact_heads=3),
    'lact-conformer_ctc_bpe': dict(d_model=256, n_layers=16, n_heads=4, num_lact_heads=2),
}


def lact(compile: bool, recipe: str = 'lact_ctc_bpe') -> torch.nn.Module:
    size = {} if GPU else SMALL[recipe]
    return LaCTEncoder(**recipe_encoder(recipe) | size | dict(att_context_size=[128, 128], compile=compile))


CONFORMER_RECIPE = 'lact-conformer_ctc_bpe'


CONTESTANTS = {  # name -> builder, implementation of the memory
    'FastConformer full': (lambda: conformer(True), 'auto'),
    'FastConformer local': (lambda: conformer(False), 'auto'),
    'LaCT reference': (lambda: lact(False), 'reference'),
    'LaCT fast': (lambda: lact(False), 'fast' if GPU else 'auto'),
    'LaCT fast compiled': (lambda: lact(True), 'fast' if GPU else 'auto'),
    'LaCT-Conformer fast': (lambda: lact(False, CONFORMER_RECIPE), 'fast' if GPU else 'auto'),
    'LaCT-Conformer fast compiled': (lambda: lact(True, CONFORMER_RECIPE), 'fast' if GPU else 'auto'),
}


SHORT_ONLY = ('FastConformer full', 'LaCT reference') if GPU else ('FastConformer full',)  # beyond SHORT
SHORT = 600 if GPU else 60  # seconds; longer ones take minutes or all memory


def precision(name: str):
    if name == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(DEVICE, dtype=torch.bfloat16)


def step(encoder, signal, length, training: bool, kind: str):
    """One forward, or forward and backward, of random features."""
    if not training:
        # Not inference_mode: NeMo's local attention keeps its masks, and could not train with them after.
        with torch.no_grad(), precision(kind):
            return encoder(audio_signal=signal, length=length)[0]
    for p in encoder.parameters():
        p.grad = None
    with precision(kind):
        out = encoder(audio_signal=signal, length=length)[0]
    out.float().square().mean().backward()
    return out.detach()


def clock(function) -> float:
    """Milliseconds of one call."""
    if not GPU:
        start = time.perf_counter()
        function()
        return 1000 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def ceiling() -> float:
    """bf16 TFLOP/s of an 8192³ matrix product."""
    n = 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    times = [clock(lambda: a @ b) for _ in range(13)][3:]
    return 2 * n**3 / statistics.median(times) / 1e9


def features(rows: int, seconds: int):
    torch.manual_seed(0)
    signal = torch.randn(rows, 80, 100 * seconds, device=DEVICE)
    return signal, torch.full((rows,), 100 * seconds, device=DEVICE)


def check(kind: str, compiled: bool) -> list[dict]:
    """The fast memory's encoder output against the reference's, same weights and input; relative to its norm."""
    rows = []
    torch.manual_seed(0)
    plain = lact(False).to(DEVICE).eval()
    quick = lact(True).to(DEVICE).eval() if compiled else plain
    quick.load_state_dict(plain.state_dict())
    for count, seconds in ((4, 15), (1, 400)) if GPU else ((1, 30),):
        signal, length = features(count, seconds)
        outputs = {}
        ops.use_implementation('reference')
        outputs['fp32'] = step(plain, signal, length, False, 'fp32')
        outputs['LaCT reference'] = step(plain, signal, length, False, kind)
        ops.use_implementation('auto')
        outputs['LaCT fast'] = step(plain, signal, length, False, kind)
        if compiled:
            outputs['LaCT fast compiled'] = step(quick, signal, length, False, kind)
        truth = outputs.pop('fp32').double()
        for name, out in outputs.items():
            error = ((out.double() - truth).norm() / truth.norm()).item()
            rows.append(dict(contestant=name, input=f'{count} x {seconds} s', precision=kind, error=error))
            print(f'{name:20s} {count} x {seconds} s: {error:.2e} from the reference in fp32', flush=True)
            if name == 'LaCT reference':
                bar = max(5e-2, 1.25 * error)  # bf16 alone moves what a long listening learns; kernels no further
            elif not error < bar:
                raise SystemExit(f'{name} is {error:.2e} off the reference in fp32, over {bar:.2e}: not worth timing')
    return rows


def flops(encoder, seconds: int, full: bool) -> float:
    """Of one row, forward: counted on up to 60 s; scaled by length, which is exact but for full attention."""
    some = seconds if full else min(seconds, 60)
    ops.use_implementation('reference')
    signal, length = features(1, some)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), precision('bf16'):
        encoder.eval()(audio_signal=signal, length=length)
    ops.use_implementation('auto')
    return counter.get_total_flops() * seconds / some


def run_task(name: str, encoders: dict, rounds: int, kind: str, peak_rate: float | None) -> list[dict]:
    rows, seconds, training = TASKS[name]
    signal, length = features(rows, seconds)
    alive, times, memory = [], {}, {}
    for who, encoder in encoders.items():
        encoder.train(training)
        if seconds > SHORT and who in SHORT_ONLY:
            continue
        ops.use_implementation(CONTESTANTS[who][1])
        try:
            for _ in range(3 if GPU else 1):  # compiles, records graphs
                step(encoder, signal, length, training, kind)
            if GPU:
                torch.cuda.synchronize()
                wavefront.forget(encoder)  # buffers kept between calls count too
                cuda_graphs.forget()
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step(encoder, signal, length, training, kind)
                memory[who] = (torch.cuda.max_memory_allocated() - before) / 2**30
            alive.append(who)
            times[who] = []
        except torch.cuda.OutOfMemoryError:
            times[who] = None
            torch.cuda.empty_cache()
    for _ in range(rounds):
        for who in alive:
            ops.use_implementation(CONTESTANTS[who][1])
            times[who].append(clock(lambda who=who: step(encoders[who], signal, length, training, kind)))
    results = []
    for who, took in times.items():
        row = dict(task=name, contestant=who, precision=kind, rows=rows, seconds=seconds, training=training)
        if took is None:
            results.append({**row, 'error': 'out of memory'})
            print(f'{name:18s} {who:20s} out of memory', flush=True)
            continue
        median = statistics.median(took)
        work = None
        if GPU and not (who == 'FastConformer full' and seconds > 300):
            # Never a compiled one: the mode that counts makes torch give up compiling it, for good.
            counted = CONTESTANTS[who.removesuffix(' compiled')][0]().to(DEVICE) if 'LaCT' in who else encoders[who]
            work = rows * flops(counted, seconds, who == 'FastConformer full') * (3 if training else 1)
        row.update(
            ms=median, ms_least=min(took), ms_most=max(took), gib=memory.get(who),
            rtfx=rows * seconds / median * 1000, tflop=work and work / 1e12,
            share_of_ceiling=work and work / median / 1e9 / peak_rate,
        )  # fmt: skip
        results.append(row)
        share = f'{100 * row["share_of_ceiling"]:.0f}% of {peak_rate:.0f} TFLOP/s' if work else ''
        used = f'{memory[who]:.2f} GiB' if GPU else ''
        print(f'{name:18s} {who:20s} {median:9.2f} ms ({min(took):.2f} to {max(took):.2f}) {used} {share}', flush=True)
    return results


def profile(encoder, task: str, kind: str) -> dict:
    """Where a GPU's time goes: launches, busy milliseconds, and the kernels that take most."""
    rows, seconds, training = TASKS[task]
    signal, length = features(rows, seconds)
    step(encoder.train(training), signal, length, training, kind)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        step(encoder, signal, length, training, kind)
        torch.cuda.synchronize()
    kernels = [(e.key, e.self_device_time_total / 1000, e.count) for e in record.key_averages()]
    kernels = sorted((k for k in kernels if k[1] > 0), key=lambda k: -k[1])
    result = dict(
        task=task, launches=sum(k[2] for k in kernels), busy_ms=sum(k[1] for k in kernels),
        most=[dict(kernel=name[:100], ms=ms, count=count) for name, ms, count in kernels[:12]],
    )  # fmt: skip
    print(f'{task}: {result["launches"]} launches, {result["busy_ms"]:.1f} ms of kernels', flush=True)
    for name, ms, count in kernels[:12]:
        print(f'  {ms:8.2f} ms {count:6d} x  {name[:90]}', flush=True)
    return result


def commit() -> str:
    command = ['git', 'describe', '--always', '--dirty']
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or 'unknown'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', type=Path, help='folder for speed_gpu.json or speed_cpu_<precision>.json')
    parser.add_argument('--tasks', nargs='*', default=list(TASKS), choices=list(TASKS))
    usual = [who for who in CONTESTANTS if GPU or ' fast' not in who]
    parser.add_argument('--contestants', nargs='*', default=usual, choices=list(CONTESTANTS))
    parser.add_argument('--rounds', type=int, default=9 if GPU else 3)
    parser.add_argument('--precision', choices=('bf16', 'fp32'), default='bf16' if GPU else 'fp32')
    parser.add_argument('--commit', help='what to record where there is no git checkout')
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    rate = ceiling() if GPU else None  # without bf16 instructions this takes minutes
    report = dict(
        device=torch.cuda.get_device_name() if GPU else platform.processor() or platform.machine(),
        cores=torch.get_num_threads(), torch=torch.__version__, python=platform.python_version(),
        date=date.today().isoformat(), commit=args.commit or commit(), command=shlex.join(['python', *sys.argv]),
        ceiling_tflops=rate, checks=check(args.precision, 'LaCT fast compiled' in args.contestants), rows=[],
    )  # fmt: skip
    report['profiles'], encoders = [], {}
    for who in args.contestants:
        torch.manual_seed(0)
        encoders[who] = CONTESTANTS[who][0]().to(DEVICE)
    report['parameters'] = {who: sum(p.numel() for p in e.parameters()) for who, e in encoders.items()}
    path = args.output and args.output / ('speed_gpu.json' if GPU else f'speed_cpu_{args.precision}.json')
    for task in args.tasks:
        report['rows'] += run_task(task, encoders, args.rounds, args.precision, rate)
        if GPU and args.contestants[-1].startswith('LaCT'):
            who = args.contestants[-1]
            ops.use_implementation(CONTESTANTS[who][1])
            record = profile(encoders[who], task, args.precision)
            report['profiles'].append({'contestant': who, **record})
        if path:  # after every task: a run cut short keeps what it has
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
