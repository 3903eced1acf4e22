"""GPU memory of one training step, for the batch sizes in the headers of the YAMLs.

    python benchmarks/encoder_memory.py --output benchmarks/results/encoder_memory.json

Encoder, CTC loss and AdamW of a config, rows of 16.7 s of random features, forward + backward + step; peak of
torch.cuda.max_memory_allocated. Needs a CUDA GPU.
"""

import argparse
import json
import platform
import shlex
import sys
from datetime import date
from pathlib import Path

import torch
from speed import recipe_encoder

from nemo_lact.modules import LaCTEncoder

SIZES = {  # recipe, and what its header's table changes
    'small': ('lact_ctc_bpe', dict(d_model=256, n_layers=12, n_heads=4, num_lact_heads=2)),
    'base': ('lact_ctc_bpe', {}),
    'large': ('lact_ctc_bpe', dict(d_model=1024, n_layers=24, n_heads=16, num_lact_heads=4)),
    'conformer_base': ('lact-conformer_ctc_bpe', {}),
}


def peak_gib(options: dict, batch: int, dtype, frames: int = 1670) -> float:
    encoder = LaCTEncoder(**options).cuda().train()
    head = torch.nn.Linear(encoder.d_model, 129).cuda()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-4)
    signal = torch.randn(batch, 80, frames, device='cuda')
    length = torch.full((batch,), frames, device='cuda')
    targets = torch.randint(0, 128, (batch, 60), device='cuda')
    for step in range(2):  # the second has the optimiser's state
        if step:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast('cuda', dtype=dtype, enabled=dtype is not None):
            out, n = encoder(audio_signal=signal, length=length)
            logits = head(out.transpose(1, 2)).float().log_softmax(-1)
        loss = torch.nn.functional.ctc_loss(
            logits.transpose(0, 1), targets, n, torch.full((batch,), 60, device='cuda'), blank=128
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', help='JSON file to write')
    parser.add_argument('--precisions', nargs='*', default=['bf16-mixed', '32'], choices=['bf16-mixed', '32'])
    args = parser.parse_args()
    report = {
        'device': torch.cuda.get_device_name(),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'date': date.today().isoformat(),
        'command': shlex.join(['python', *sys.argv]),
        'rows': [],
    }
    precisions = {'32': None, 'bf16-mixed': torch.bfloat16}
    for precision in args.precisions:
        for name, (recipe, changes) in SIZES.items():
            options = recipe_encoder(recipe) | changes
            for batch in (8, 16, 32, 64):
                try:
                    peak = round(peak_gib(options, batch, precisions[precision]), 2)
                except torch.cuda.OutOfMemoryError:
                    peak = None
                torch.cuda.empty_cache()
                report['rows'].append(dict(model=name, precision=precision, batch=batch, seconds=16.7, peak_gib=peak))
                print(report['rows'][-1], flush=True)
                if args.output:  # a run cut short keeps what it has
                    Path(args.output).write_text(json.dumps(report, indent=1))


if __name__ == '__main__':
    main()
