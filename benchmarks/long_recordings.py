"""Memory and time against the length of a recording: LaCT and NeMo's FastConformer in one run, with a plot.

    python benchmarks/long_recordings.py --output benchmarks/results/long_recordings_gpu.json
    python benchmarks/long_recordings.py --size small --minutes 10 60 600 --limit-gib 8 \
        --output benchmarks/results/long_recordings_cpu.json

A recording is the bundled speech joined to so many minutes. Weights are random (blank is made likely): memory and
time do not hang on what is recognised. `peak` is what the work takes beyond the loaded model:
torch.cuda.max_memory_allocated on a GPU (`total` there has what earlier rows of the process left, unless
`--separate`); on a CPU, where each row is a process of its own, the growth of the largest
resident set after a warm-up (Linux only). On a CPU times are relative to the first row.

    LaCT blocks         audio, features, encoder and decoding block by block (`nemo-lact transcribe` on long files)
    LaCT transcribe     NeMo's model.transcribe, whole recording in, encoder in segments
    FastConformer full  NeMo's model.transcribe, full attention
    FastConformer local the same with rel_pos_local_attn [128, 128] and subsampling_conv_chunking_factor 1
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CONTESTANTS = ('LaCT blocks', 'LaCT transcribe', 'FastConformer full', 'FastConformer local')
SIZES = {
    'small': {  # 5.5 million parameters each
        'lact': dict(d_model=256, n_layers=6, n_heads=4, num_lact_heads=2, subsampling_conv_channels=64),
        'fastconformer': dict(d_model=192, n_layers=6, n_heads=4, subsampling_conv_channels=64),
    },
    'base': {  # 93 and 109 million parameters
        'lact': {},
        'fastconformer': dict(d_model=512, n_layers=17, n_heads=8, subsampling_conv_channels=256),
    },
}
BLANK_BIAS = 6.0


def joined_speech(minutes: float, folder: Path) -> Path:
    """The bundled prompts, over and over, as 16 kHz WAV."""
    import numpy as np
    import soundfile

    target = folder / f'{minutes:g}.wav'
    if target.exists():
        return target
    prompts = sorted((ROOT / 'data/asterisk_en').rglob('*.ogg'))
    speech = np.concatenate([soundfile.read(p, dtype='float32')[0] for p in prompts])
    rate = soundfile.info(prompts[0]).samplerate
    if rate != 16000:
        import soxr

        speech = soxr.resample(speech, rate, 16000)
    speech = (speech * 32767).clip(-32768, 32767).astype('int16')
    left = round(minutes * 60 * 16000)
    with soundfile.SoundFile(target, 'w', 16000, 1, subtype='PCM_16') as file:
        while left > 0:
            file.write(speech[:left])
            left -= len(speech[:left])
    return target


def build(contestant: str, size: str):
    import string

    import torch
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    import nemo_lact  # noqa: F401

    labels = [' ', *string.ascii_lowercase, "'"]
    if contestant.startswith('LaCT'):
        encoder = {'_target_': 'nemo_lact.modules.LaCTEncoder', 'feat_in': 80, **SIZES[size]['lact']}
    else:
        encoder = {
            '_target_': 'nemo.collections.asr.modules.ConformerEncoder', 'feat_in': 80, 'feat_out': -1,
            **SIZES[size]['fastconformer'], 'subsampling': 'dw_striding', 'subsampling_factor': 8,
            'subsampling_conv_chunking_factor': 1,
            'conv_kernel_size': 9, 'self_attention_model': 'rel_pos', 'att_context_size': [-1, -1],
            'dropout': 0.1, 'dropout_pre_encoder': 0.1, 'dropout_emb': 0.0, 'dropout_att': 0.1, 'xscaling': True,
            'untie_biases': True, 'pos_emb_max_len': 5000, 'ff_expansion_factor': 4, 'conv_norm_type': 'batch_norm',
        }  # fmt: skip
    features = {
        '_target_': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor', 'sample_rate': 16000,
        'features': 80, 'normalize': 'per_feature', 'dither': 0.0, 'pad_to': 0,
    }  # fmt: skip
    decoder = {
        '_target_': 'nemo.collections.asr.modules.ConvASRDecoder', 'feat_in': None, 'num_classes': len(labels),
        'vocabulary': labels,
    }  # fmt: skip
    torch.manual_seed(0)
    cfg = {'sample_rate': 16000, 'labels': labels, 'preprocessor': features, 'encoder': encoder, 'decoder': decoder}
    model = EncDecCTCModel(OmegaConf.create(cfg))
    model.decoder.decoder_layers[0].bias.data[-1] = BLANK_BIAS
    if contestant == 'FastConformer local':
        model.change_attention_model('rel_pos_local_attn', [128, 128])
        model.change_subsampling_conv_chunking_factor(1)
    return model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()


def measure(contestant: str, size: str, recording: Path) -> dict:
    import soundfile
    import torch

    from nemo_lact.inference.longform import transcribe_blocks

    model, cuda = build(contestant, size), torch.cuda.is_available()
    duration = soundfile.info(recording).duration

    def run(path, seconds) -> int:
        if contestant == 'LaCT blocks':
            rows = [{'audio_filepath': str(path), 'duration': seconds}]
            ((_, result, _),) = transcribe_blocks(model, rows, half=cuda)
            return len(result['text'])
        with torch.autocast('cuda' if cuda else 'cpu', torch.bfloat16, enabled=cuda):
            return len(model.transcribe([str(path)], batch_size=1, verbose=False)[0].text)

    with tempfile.TemporaryDirectory() as folder:
        # Libraries, kernels, caches; on a GPU several segments, as kernels are compiled for their sizes.
        minutes = 12 if cuda and contestant.startswith('LaCT') else 0.5
        run(joined_speech(minutes, Path(folder)), minutes * 60.0)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path('/proc/self/clear_refs').write_text('5')  # the peak is counted from here
        before = _resident('VmRSS')
    started = time.perf_counter()
    characters = run(recording, duration)
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    if cuda:
        peak, total = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_allocated()
    else:
        total = _resident('VmHWM')
        peak = total - before
    return {
        'peak_gib': round(peak / 2**30, 3),
        'total_gib': round(total / 2**30, 3),
        'seconds': round(seconds, 3),
        'real_time_factor': round(seconds / duration, 6),
        'characters': characters,
        'parameters': sum(p.numel() for p in model.parameters()),
    }


def _resident(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM the most since /proc/self/clear_refs (Linux)."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def one_row(args, contestant: str, minutes: float, recording: Path) -> dict:
    import torch

    row = {'contestant': contestant, 'minutes': minutes}
    if torch.cuda.is_available() and not args.separate:
        try:
            return {**row, **measure(contestant, args.size, recording)}
        except torch.cuda.OutOfMemoryError:
            return {**row, 'failed': 'out of memory'}
        except RuntimeError as error:  # an index beyond 2^31 and the like
            return {**row, 'failed': str(error).splitlines()[0][:200]}
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    command = [sys.executable, __file__, '--size', args.size, '--one', contestant, '--recording', str(recording)]
    if args.limit_gib:
        command = ['prlimit', f'--as={round(args.limit_gib * 2**30)}', *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        return {**row, 'failed': f'over {args.timeout} s'}
    if done.returncode == 0:
        return {**row, **json.loads(done.stdout.strip().splitlines()[-1])}
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    memory = any(word in done.stderr for word in ('OutOfMemoryError', "can't allocate memory", 'MemoryError'))
    return {**row, 'failed': 'out of memory' if memory or done.returncode == -9 else lines[-1][:200]}


def plot(found: dict, target: Path) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for contestant in CONTESTANTS:
        rows = [r for r in found['rows'] if r['contestant'] == contestant and 'failed' not in r]
        if rows:
            minutes = [r['minutes'] for r in rows]
            axes[0].plot(minutes, [r['peak_gib'] for r in rows], 'o-', label=contestant)
            axes[1].plot(minutes, [r['seconds' if found['gpu'] else 'relative_time'] for r in rows], 'o-')
    axes[0].set_ylabel('peak memory beyond the model, GiB')
    axes[1].set_ylabel('seconds' if found['gpu'] else 'time relative to the first row')
    for axis in axes:
        axis.set(xscale='log', yscale='log', xlabel='recording, minutes')
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f'{found["machine"]}, {found["date"]}: lines end where a contestant failed')
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, nargs='+', default=[10, 60, 180, 960])
    parser.add_argument('--contestants', nargs='+', default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument('--size', choices=SIZES, default='base')
    parser.add_argument('--limit-gib', type=float, help='address space of a row, so that a CPU run cannot take all')
    parser.add_argument('--timeout', type=float, default=900, help='seconds for a row')
    parser.add_argument('--output', type=Path, help='JSON file; the plot goes beside it')
    parser.add_argument('--separate', action='store_true', help='a process for each row on a GPU too')
    parser.add_argument('--commit', help='to note in the result, where there is no git')
    parser.add_argument('--one', help=argparse.SUPPRESS)
    parser.add_argument('--recording', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        out = os.dup(1)
        os.dup2(2, 1)  # libraries print; stdout is for the result
        result = measure(args.one, args.size, args.recording)
        os.write(out, (json.dumps(result) + '\n').encode())
        return
    import torch

    gpu = torch.cuda.is_available()
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, cwd=ROOT)
    found = {
        'command': f'python benchmarks/{" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])}',
        'date': date.today().isoformat(),
        'machine': torch.cuda.get_device_name() if gpu else f'{os.cpu_count()} CPU cores',
        'gpu': gpu,
        'precision': 'bf16 autocast' if gpu else 'fp32',
        'torch': torch.__version__,
        'python': platform.python_version(),
        'commit': args.commit or commit.stdout.strip() or None,
        'rows': [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for minutes in args.minutes:
            recording = joined_speech(minutes, Path(folder))
            for contestant in args.contestants:
                shorter = [r for r in found['rows'] if r['contestant'] == contestant]
                if shorter and 'failed' in shorter[-1]:
                    row = {'contestant': contestant, 'minutes': minutes, 'failed': 'not tried: a shorter one failed'}
                else:
                    row = one_row(args, contestant, minutes, recording)
                found['rows'].append(row)
                print(json.dumps(row), flush=True)
                write(found, args.output)  # after each row: a run may be cut
            recording.unlink()


def write(found: dict, output: Path | None) -> None:
    if output is None:
        return
    found = json.loads(json.dumps(found))
    first = next((r['seconds'] for r in found['rows'] if 'failed' not in r), None)
    if not found['gpu']:  # absolute times of a CPU say little elsewhere
        for row in found['rows']:
            if 'failed' not in row:
                row['relative_time'] = round(row.pop('seconds') / first, 3)
                row.pop('real_time_factor')
    output.write_text(json.dumps(found, indent=1) + '\n')
    if first is not None:
        plot(found, output.with_suffix('.png'))


if __name__ == '__main__':
    main()
