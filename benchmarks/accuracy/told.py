"""What there is to learn of a voice: weights that are told about it, by the true texts or by the model's own.

    python benchmarks/accuracy/told.py MODEL.nemo --contestant "two lasting memories, self-conditioned" \\
        --corpus CORPUS --output told.json

Of each test shard the first `--seconds` are told: rows of 16 s, CTC by gradient steps on all weights, or on those alone
with which the memories begin. The next `--seconds` are scored in sessions of 2 minutes, and so are another shard's, to
see whether what was learned is of the voice. It says how much a memory could gain, whatever it learns from.
"""

import copy
import random
from pathlib import Path

import torch
from corpus import load
from feed import RATE
from grafts import ALL
from halves import ctc_losses
from nemo.collections.asr.models import EncDecCTCModelBPE
from score import count, sessions, sound_of, transcribe
from voices import Report, script_options

ROW, SESSION = 16.0, 120.0  # seconds
AT_ONCE = 4  # rows of a step
RATES = {'all': 2e-4, 'memories': 5e-3}  # which weights -> Adam's step


def opened(path: Path, contestant: str) -> EncDecCTCModelBPE:
    """The model of a .nemo of train.py, which names NeMo's class instead of the contestant's."""
    kind = ALL[contestant].model
    cfg = kind.restore_from(str(path), return_config=True, map_location='cpu')
    cfg.pop('target', None)
    model = kind.restore_from(str(path), override_config_path=cfg, map_location='cpu').eval()
    model.ways()['']()
    return model


def first(rows: list[dict], seconds: float) -> int:
    """How many of them last that long; one at least."""
    total = 0.0
    for i, row in enumerate(rows):
        total += row['samples'] / RATE
        if total > seconds:
            return max(i, 1)
    raise ValueError(f'{total:.0f} s of {rows[0]["speaker"]}: too few for {seconds:.0f}')


def tell(model: EncDecCTCModelBPE, rows: list[dict], which: str, steps: int, rate: float = 1.0) -> None:
    """Gradient steps on rows with their `text`, in order of a fixed draw."""
    named = dict(model.named_parameters())
    chosen = [p for name, p in named.items() if which == 'all' or name.split('.')[-2] in ('w0', 'w1', 'w2')]
    for p in named.values():
        p.requires_grad_(False)
    for p in chosen:
        p.requires_grad_(True)
    optimizer, rng = torch.optim.Adam(chosen, lr=rate * RATES[which]), random.Random(0)
    for _ in range(steps):
        batch = rng.sample(rows, min(AT_ONCE, len(rows)))
        lengths = torch.tensor([row['samples'] for row in batch])
        sound = torch.nn.utils.rnn.pad_sequence([sound_of(row) for row in batch], batch_first=True)
        said = [torch.tensor(model.tokenizer.text_to_ids(row['text'])) for row in batch]
        log_probs, frames, _ = model(input_signal=sound, input_signal_length=lengths)
        losses = ctc_losses(log_probs, frames, said)
        fits = losses.isfinite()  # others have more tokens than frames
        loss = losses[fits].sum() / max(1, sum(len(t) for t, fit in zip(said, fits) if fit))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimizer.step()


def main() -> None:
    parser = script_options(__doc__)
    parser.add_argument('--contestant', choices=list(ALL), required=True, metavar='contestant')
    parser.add_argument('--corpus', type=Path, required=True)
    parser.add_argument('--shards', nargs='+', default=['test-accents0', 'test-accents2', 'test-voice0'])
    parser.add_argument('--seconds', type=float, default=600.0)
    parser.add_argument('--steps', type=int, default=40)
    parser.add_argument('--rate', type=float, default=1.0, help='of the steps, times RATES')
    args = parser.parse_args()
    model = opened(args.model, args.contestant)
    report, base = Report(args, model), copy.deepcopy(model.state_dict())

    def scored(**named) -> None:
        for other in (named['shard'], *(shard for shard in args.shards if shard != named['shard'])):
            if other != named['shard'] and (named['weights'], named['texts']) != ('all', 'true'):
                continue
            rows = load(args.corpus, other)
            start = first(rows, args.seconds)
            rows = rows[start : start + first(rows[start:], args.seconds)]
            rows = sessions(rows, SESSION)
            found = count(rows, transcribe(model, rows, noisy=False))
            report.add(**named, scored=other, **found)
            print(f'{named} on {other}: WER {found["wer"]:.2%}', flush=True)

    for shard in args.shards:
        rows = load(args.corpus, shard)
        rows = sessions(rows[: first(rows, args.seconds)], ROW)
        model.load_state_dict(base)
        scored(shard=shard, weights='none', texts='')
        own = [row | dict(text=text) for row, text in zip(rows, transcribe(model, rows, noisy=False))]
        for texts, told in (('true', rows), ('own', own)):
            for which in RATES:
                model.load_state_dict(base)
                tell(model, told, which, args.steps, args.rate)
                scored(shard=shard, weights=which, texts=texts)


if __name__ == '__main__':
    main()
