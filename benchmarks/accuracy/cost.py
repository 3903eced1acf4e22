"""What learning costs: seconds with the memory learning over seconds with it frozen, of contestants' whole models.

    python benchmarks/accuracy/cost.py "few memories, self-conditioned" --output cost.json

Speech is noise and the weights are new: neither changes what has to be computed. Both ways take turns, and the medians
are divided.
"""

import argparse
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from contestants import config, tokenizer
from grafts import ALL
from omegaconf import OmegaConf
from score import RATE
from train import memory_that_can_run

from nemo_lact import ops

SHAPES = {'utterances': (64, 8), '2 min': (16, 120), '10 min': (8, 600), '1 h': (1, 3600)}  # name -> rows, seconds

WARM_UP = 2


def built(name: str, overrides: list[str]):
    recipe = ALL[name]
    encoder = OmegaConf.to_container(OmegaConf.merge(recipe.encoder, OmegaConf.from_dotlist(overrides)))
    with tempfile.TemporaryDirectory() as folder:
        texts = [''.join(chr(97 + (i * j) % 26) for i in range(9)) for j in range(99)]
        return recipe.model(config(recipe, encoder, tokenizer(texts, Path(folder), 64), 1e-3, 1)).eval()


@torch.inference_mode()
def seconds(model, sound: torch.Tensor, learning: bool) -> float:
    """Of one pass from sound [B, T] to log probabilities."""
    gpu = sound.is_cuda
    model.encoder.adaptation = learning
    lengths = torch.full((len(sound),), sound.size(1), device=sound.device)
    if gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.autocast(sound.device.type, torch.bfloat16, enabled=gpu):
        features, frames = model.preprocessor(input_signal=sound, length=lengths)
        encoded, frames = model.encoder(audio_signal=features, length=frames)
        model.decoder(encoder_output=encoded)
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(model, rows: int, length: float, times: int) -> dict:
    sound = 0.1 * torch.randn(rows, int(length * RATE), device=model.device)
    taken = [(seconds(model, sound, True), seconds(model, sound, False)) for _ in range(WARM_UP + times)][WARM_UP:]
    learning, frozen = (statistics.median(found) for found in zip(*taken))
    pairs = [one / other for one, other in taken]
    shown = dict(learning=learning, frozen=frozen) if sound.is_cuda else {}  # a CPU's say little elsewhere
    return dict(rows=rows, seconds=length, ratio=learning / frozen, lowest=min(pairs), highest=max(pairs), **shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('contestants', nargs='+', choices=list(ALL), metavar='contestant')
    parser.add_argument('--encoder', nargs='*', default=[], help='overrides, e.g. n_layers=2')
    parser.add_argument('--shapes', nargs='+', choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument('--rows', type=int, help='instead of what a shape has')
    parser.add_argument('--times', type=int, default=9)
    parser.add_argument('--output', type=Path, required=True, help='JSON')
    args = parser.parse_args()
    gpu = torch.cuda.is_available()
    report = dict(date=date.today().isoformat(), device=torch.cuda.get_device_name() if gpu else 'cpu', costs={})
    asked = ops.implementation()
    report |= dict(precision='bfloat16 autocast' if gpu else 'float32', asked=asked, ran={})
    for name in args.contestants:
        model = built(name, args.encoder)
        if getattr(model.encoder, 'adaptation', None) is not True:
            parser.error(f"'{name}' has no memory that learns")
        ops.use_implementation(asked)  # the contestant before may have needed another
        memory_that_can_run(model.encoder, 'cuda' if gpu else 'cpu')
        model.ways()['']()
        report['ran'][name] = ops.implementation()
        model.to('cuda' if gpu else 'cpu')
        report['costs'][name] = {}
        for shape in args.shapes:
            rows, length = SHAPES[shape]
            found = measure(model, args.rows or rows, length, args.times)
            report['costs'][name][shape] = found
            print(
                f'{name:44s} {shape:12s} {found["ratio"]:.3f} ({found["lowest"]:.3f} to {found["highest"]:.3f})',
                flush=True,
            )
    args.output.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
