"""Kokoro-82M's speech in bulk on GPUs without onnxruntime: its ONNX graph in torch, see onnx_torch.py.

    python benchmarks/accuracy/kokoro_torch.py convert FOLDER --packages FOLDER     # FOLDER/kokoro.pt.xz.*; needs onnx
    python benchmarks/accuracy/kokoro_torch.py jobs FOLDER --packages FOLDER --texts texts.txt
    python benchmarks/accuracy/kokoro_torch.py check FOLDER --packages FOLDER --texts texts.txt    # needs onnxruntime
    python benchmarks/accuracy/kokoro_torch.py make OUT --model FOLDER --seconds 100 --processes 12

natural.py says what the packages are. The first two prepare FOLDER on any machine; make needs FOLDER, torch, numpy and
scipy alone, spreads its processes over the GPUs there are (or the CPU), and writes OUT/train-NAME<process>.i16 and
.jsonl, shards as corpus.py does, until the time is over. Utterances are natural.py's: speakers that mix two voices of
a sex, 16 kHz, without silence at the ends. check compares with onnxruntime, which quantises activations.
"""

import argparse
import contextlib
import io
import json
import lzma
import multiprocessing
import random
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import torch
from natural import RATE, Kokoro, trimmed
from onnx_ops import op
from onnx_torch import Graph, _used, frozen
from prompts import spelled
from scipy.signal import firwin
from texts import split
from torch import Tensor
from torch.nn import functional as F

DURATIONS = '/encoder/Gather_output_0'  # frames of 25 ms, one number a token
FRAMES = 16  # an utterance has a multiple: cuDNN plans a convolution anew for every length that it has not met
TOKENS = 170  # the longest utterance; voices have a style for every length
PART = 40 << 20  # bytes
FAILING = 0.05  # share of utterances that may fail


@op('LengthenLast')
def _lengthen_last(graph, attributes, durations):
    """The last token, a pause, takes what the utterance lacks to a multiple."""
    durations = durations.clone()
    durations[-1:] += -durations.sum() % attributes['multiple']
    return durations


class Resampler:
    """24 to 16 kHz as scipy.signal.resample_poly(x, 2, 3): two phases of its low-pass filter, every third sample.

    Call it with sound [samples], float; returns [ceil(samples * 2 / 3)].
    """

    def __init__(self, device: str | torch.device):
        taps = 2 * firwin(61, 1 / 3, window=('kaiser', 5.0))
        kernel = np.zeros((2, 1, 32))
        kernel[0, 0, :31], kernel[1, 0, 2:] = taps[60::-2], taps[59::-2]
        self.kernel = torch.from_numpy(kernel).to(device)

    def __call__(self, sound: Tensor) -> Tensor:
        length = -(-len(sound) * 2 // 3)
        sound = F.pad(sound, (15, 34 - len(sound) % 3)).double()  # in float, a GPU's convolution would round to TF32
        return F.conv1d(sound[None, None], self.kernel, stride=3)[0].T.flatten()[:length].float()


class Voice:
    """Speaks a job, a line of jobs.jsonl."""

    def __init__(self, model: dict, device: str | torch.device):
        self.graph, self.voices, self.resampled = Graph(model, device), model['voices'], Resampler(device)

    def style(self, ids: list[int], names: list[str], share: float) -> Tensor:
        first, second = (self.voices[name][len(ids) - 1].float() for name in names)
        return ((1 - share) * first + share * second)[None]

    def say(self, job: dict) -> Tensor:
        """Sound [samples] of 24 kHz on the device."""
        inputs = _inputs(job['ids'], self.style(job['ids'], job['names'], job['share']), job['speed'])
        inputs = {name: v.to(self.graph.device) if isinstance(v, Tensor) else v for name, v in inputs.items()}
        return self.graph(**inputs)[0].flatten()

    @torch.inference_mode()
    def __call__(self, job: dict) -> np.ndarray:
        """Sound int16 [samples] of 16 kHz."""
        sound = self.resampled(self.say(job)).cpu().numpy()
        if not np.isfinite(sound).all() or np.abs(sound).max() < 1e-3:
            raise ValueError('the sound is silent or not finite')
        sound = trimmed(sound, RATE)
        return (0.5 * 32767 / np.abs(sound).max() * sound).astype(np.int16)


def _inputs(ids: list[int], style: Tensor, speed: float) -> dict:
    return dict(tokens=torch.tensor([[0, *ids, 0]]), style=style, speed=np.array([speed], np.float32))


def convert(args: argparse.Namespace) -> None:
    import onnx

    kokoro = Kokoro(args.packages)
    graph, nodes = onnx.load_from_string(kokoro.model).graph, []

    def value(attribute):
        found = onnx.helper.get_attribute_value(attribute)
        if isinstance(found, onnx.TensorProto):
            return torch.tensor(onnx.numpy_helper.to_array(found))
        return found.decode() if isinstance(found, bytes) else found

    for n in graph.node:
        nodes.append((n.op_type, list(n.input), list(n.output), {a.name: value(a) for a in n.attribute}))
        if DURATIONS in n.output:
            nodes[-1][2][:] = ['durations']
            nodes.append(('LengthenLast', ['durations'], [DURATIONS], dict(multiple=FRAMES)))
    if not any(node[0] == 'LengthenLast' for node in nodes):
        raise SystemExit(f'the graph has no {DURATIONS}, the durations of tokens: another export of Kokoro?')
    tensors = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    model = dict(nodes=nodes, tensors=tensors, outputs=[o.name for o in graph.output])
    rng, examples = random.Random(0), []
    for voice, length, speed in (('af_sky', 23, 1.1), ('am_adam', 58, 0.9), ('bf_emma', 101, 1.0)):
        ids = rng.choices(range(43, 160), k=length)
        examples.append(_inputs(ids, torch.from_numpy(kokoro.voices[voice][length - 1])[None], speed))
    same = frozen(model, examples)
    model['nodes'] = _used([n for n in nodes if not all(name in same for name in n[2] if name)], model['outputs'])
    needed = {name for node in model['nodes'] for name in node[1]}
    model['tensors'] = {name: _half(t) for name, t in (tensors | same).items() if name in needed}
    model['voices'] = {name: torch.from_numpy(v[:TOKENS]).half() for name, v in kokoro.voices.items()}
    buffer = io.BytesIO()
    torch.save(model, buffer)
    filters = [dict(id=lzma.FILTER_LZMA2, preset=6, lc=0, lp=0, pb=0)]  # bytes of weights have no context
    packed = lzma.compress(buffer.getvalue(), filters=filters)
    args.folder.mkdir(parents=True, exist_ok=True)
    for i in range(0, len(packed), PART):
        (args.folder / f'kokoro.pt.xz.{i // PART}').write_bytes(packed[i : i + PART])
    print(f'{len(graph.node)} nodes, {len(model["nodes"])} left; {buffer.tell() / 1e6:.1f} MB, '
          f'{len(packed) / 1e6:.1f} MB packed')  # fmt: skip


def _half(tensor: Tensor) -> Tensor:
    return tensor.half() if tensor.dtype == torch.float32 and tensor.numel() > 4096 else tensor


def unpacked(folder: Path) -> dict:
    parts = sorted(folder.glob('kokoro.pt.xz.*'))
    if not parts:
        raise SystemExit(f'no kokoro.pt.xz.* in {folder}: kokoro_torch.py convert makes them')
    return torch.load(io.BytesIO(lzma.decompress(b''.join(part.read_bytes() for part in parts))), weights_only=True)


def jobs(args: argparse.Namespace) -> None:
    kokoro, rng, lines = Kokoro(args.packages), random.Random(f'kokoro {args.seed}'), []
    texts = [text for text in args.texts.read_text().splitlines() if split(text) == 'train']
    rng.shuffle(texts)
    for number, text in enumerate(texts[: args.count]):
        if number % 20 == 0:
            who, how = kokoro.speaker(rng)
        ids = kokoro.ids(spelled(text) if args.prompts else text)
        if 1 <= len(ids) <= TOKENS:
            lines.append(json.dumps(dict(text=text, speaker=who, ids=ids) | how))
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / 'jobs.jsonl.xz').write_bytes(lzma.compress('\n'.join(lines).encode()))
    print(f'{len(lines)} utterances of {len(texts)} texts')


def _jobs(folder: Path) -> list[dict]:
    return [json.loads(line) for line in lzma.decompress((folder / 'jobs.jsonl.xz').read_bytes()).splitlines()]


class Shard:
    """One process: writes path.i16 and path.jsonl until `end`, by time.monotonic; threads share it."""

    def __init__(self, path: Path, model: dict, todo: list[dict], device: str, end: float):
        self.path, self.model, self.todo, self.device, self.end = path, model, iter(todo), device, end
        self.lock, self.samples, self.said, self.failed = threading.Lock(), 0, 0, 0

    def __call__(self, threads: int) -> None:
        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        began = time.monotonic()
        with self.path.with_suffix('.i16').open('wb') as sound, self.path.with_suffix('.jsonl').open('w') as lines:
            with ThreadPoolExecutor(threads) as pool:
                for done in [pool.submit(self.work, sound, lines) for _ in range(threads)]:
                    done.result()
        seconds = self.samples / RATE
        print(f'{self.path.name}, {self.device}: {self.said - self.failed} utterances, {self.failed} failed, '
              f'{seconds / 3600:.2f} h, {seconds / (time.monotonic() - began):.1f} of real time')  # fmt: skip
        sys.exit(self.said == self.failed or self.failed > FAILING * self.said)

    def work(self, sound: BinaryIO, lines: TextIO) -> None:
        """One thread, with its own stream: kernels of two utterances run at once."""
        stream = torch.cuda.Stream(self.device) if self.device != 'cpu' else None
        with torch.cuda.stream(stream) if stream else contextlib.nullcontext():
            voice = Voice(self.model, self.device)
            while time.monotonic() < self.end:
                with self.lock:
                    job = next(self.todo, None)
                if job is None or (self.failed > 20 and self.failed > FAILING * self.said):
                    break
                try:
                    self.add(voice(job), job, sound, lines)
                except Exception as error:
                    self.failed, self.said = self.failed + 1, self.said + 1
                    print(f'{self.path.name}: {job["text"]!r} failed: {error}', file=sys.stderr)
                    if self.failed == 1:
                        traceback.print_exc()

    def add(self, samples: np.ndarray, job: dict, sound: BinaryIO, lines: TextIO) -> None:
        row = dict(text=job['text'], speaker=job['speaker'], source=job['source'])
        with self.lock:
            lines.write(json.dumps(dict(start=self.samples, samples=len(samples)) | row) + '\n')
            sound.write(samples.tobytes())
            self.samples += len(samples)
            self.said += 1


def make(args: argparse.Namespace) -> None:
    end = time.monotonic() + args.seconds
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model, todo = unpacked(args.model), [job | dict(source=args.name) for job in _jobs(args.model)]
    fork = multiprocessing.get_context('fork')  # shares the model and the imports; CUDA must not be up before
    with fork.Pool(1) as pool:
        devices = [f'cuda:{i}' for i in range(pool.apply(torch.cuda.device_count))] or ['cpu']
    processes = []
    for i in range(args.processes):
        path, device = args.output / f'train-{args.name}{i}', devices[i % len(devices)]
        shard = Shard(path, model, todo[i :: args.processes], device, end)
        processes.append(fork.Process(target=shard, args=(args.threads,)))
        processes[-1].start()
    for process in processes:
        process.join()
    samples = sum(path.stat().st_size / 2 for path in args.output.glob(f'train-{args.name}*.i16'))
    bad = sum(process.exitcode != 0 for process in processes)
    print(f'{samples / RATE / 3600:.2f} h of speech, {bad} of {len(processes)} processes failed')
    sys.exit(bool(bad))


def check(args: argparse.Namespace) -> None:
    """Lengths, and distances of log-mel spectra along the best alignment, to onnxruntime and to another voice."""
    import librosa

    model, kokoro, rng = unpacked(args.folder), Kokoro(args.packages), random.Random(1)
    for node in model['nodes']:
        if node[0] == 'LengthenLast':
            node[3]['multiple'] = 1
    voice = Voice(model, 'cpu')
    print(f'{len(voice.graph.steps)} operations')

    def mel(sound):
        return librosa.power_to_db(librosa.feature.melspectrogram(y=sound, sr=kokoro.rate, hop_length=300), top_db=60)

    def apart(a, b):
        cost, path = librosa.sequence.dtw(a, b, metric='euclidean')
        return cost[-1, -1] / len(path) / len(a) ** 0.5

    texts = [text for text in args.texts.read_text().splitlines() if split(text) == 'train']
    for text in rng.sample(texts, args.count):
        (_, how), (_, other) = kokoro.speaker(rng), kokoro.speaker(rng)
        began = time.monotonic()
        ours = voice.say(dict(ids=kokoro.ids(text), **how)).numpy()
        seconds = time.monotonic() - began
        theirs, another = kokoro.say(text, **how), kokoro.say(text, **(other | dict(speed=how['speed'])))
        a, b, c = mel(ours), mel(theirs), mel(another)
        same = np.corrcoef(a[:, : b.shape[1]].ravel(), b[:, : a.shape[1]].ravel())[0, 1] if len(a) else 0
        print(f'{len(ours) / 24000:.3f} s, {len(theirs) / 24000:.3f} s by onnxruntime, {apart(a, b):.1f} dB apart, '
              f'another voice {apart(c, b):.1f} dB, correlation {same:.3f}; took {seconds:.2f} s: {text}')  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function, count in ((convert, None), (jobs, 10**6), (check, 5)):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        command.add_argument('folder', type=Path)
        command.add_argument('--packages', type=Path, required=True)
        if count:
            command.add_argument('--texts', type=Path, required=True)
            command.add_argument('--count', type=int, default=count, help='utterances')
            command.add_argument('--seed', default='torch', help="another one than natural.py's")
            command.add_argument('--prompts', action='store_true', help="prompts.py's texts, with spelled letters")
    command = commands.add_parser('make')
    command.set_defaults(function=make)
    command.add_argument('output', type=Path)
    command.add_argument('--model', type=Path, required=True, help='the folder that convert and jobs made')
    command.add_argument('--seconds', type=float, default=100.0, help='from the start of the command')
    command.add_argument('--processes', type=int, default=1, help='in all; GPUs take turns')
    command.add_argument('--threads', type=int, default=1, help='of each process, each with a CUDA stream')
    command.add_argument('--name', default='kokoro', help='of the shards and the source')
    args = parser.parse_args()
    args.function(args)


if __name__ == '__main__':
    main()
