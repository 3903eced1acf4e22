"""What a training loss is made of: CTC loss after half of the layers (InterCTC) and at the end, on training recordings.

    python benchmarks/accuracy/halves.py MODEL.nemo --corpus CORPUS --rows 240 --output halves.json
    python benchmarks/accuracy/halves.py two_reads-0.nemo --contestant "two reads" --corpus CORPUS

Utterances of shards of the training, and the same joined to 16 s by speaker; clean, without masks. Losses are per
token, as the model is used, and as training computes them: with dropout and a batch's own statistics. corpus.py with
the same texts and jobs, and fewer hours, makes the first of the same recordings.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from ablation_contestants import two_reads
from corpus import load
from nemo.collections.asr.models import ASRModel
from score import sessions, sound_of
from torch import Tensor, nn
from voices import Report, restored, script_options

from nemo_lact import ops
from nemo_lact.info import config_and_weights
from nemo_lact.modules.lact_layer import LaCTMixer

TWO_READS = 'two reads'
JOINED = 16.0  # seconds
AT_ONCE = 24  # rows


def opened(path: Path, contestant: str | None) -> ASRModel:
    """The model of a .nemo; of the contestant that a .nemo does not name, too."""
    if contestant != TWO_READS:
        return restored(path)
    ops.use_implementation('reference')
    model = ASRModel.restore_from(str(path), map_location='cpu', strict=False)
    two_reads(model.encoder)
    model.load_state_dict(config_and_weights(path)[1])
    return model.eval().to('cuda' if torch.cuda.is_available() else 'cpu')


@contextmanager
def dropping(model: ASRModel) -> Iterator[None]:
    """Dropout is on, attention's too, and batch norms take the batch's statistics and keep their own."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for module in model.modules():
        # They ask for `training` for nothing else.
        if isinstance(module, nn.Dropout | nn.modules.batchnorm._BatchNorm | LaCTMixer):
            module.training = True
    yield
    model.eval()
    for name, buffer in model.named_buffers():
        buffer.copy_(kept[name])


@torch.no_grad()
def losses(model: ASRModel, rows: list[dict]) -> tuple[float, float]:
    """After half of the layers and at the end, per token; without rows of more tokens than frames, as in training."""
    torch.manual_seed(0)
    layers, total, tokens = model.encoder.layers, torch.zeros(2), 0
    middle = []
    hook = layers[len(layers) // 2 - 1].register_forward_hook(lambda layer, inputs, out: middle.append(out))
    for first in range(0, len(rows), AT_ONCE):
        batch = rows[first : first + AT_ONCE]
        lengths = torch.tensor([row['samples'] for row in batch])
        sound = nn.utils.rnn.pad_sequence([sound_of(row) for row in batch], batch_first=True)
        said = [torch.tensor(model.tokenizer.text_to_ids(row['text'])) for row in batch]
        counts = torch.tensor([len(t) for t in said])
        end, frames, _ = model(input_signal=sound.to(model.device), input_signal_length=lengths.to(model.device))
        x = middle.pop()
        x = x[0] if isinstance(x, tuple) else x  # [B, T, D]
        x = model.encoder.head(x) if hasattr(model.encoder, 'head') else x
        found = torch.stack([ctc_losses(y, frames, said) for y in (model.decoder(encoder_output=x.mT), end)])
        fits = found.isfinite().all(0)  # [B]
        total, tokens = total + found[:, fits].sum(1), tokens + int(counts[fits].sum())
    hook.remove()
    return tuple((total / tokens).tolist())


def ctc_losses(log_probs: Tensor, frames: Tensor, said: list[Tensor]) -> Tensor:
    """Of each row [B]: of log probabilities [B, T, V] and tokens; infinite if there are more tokens than frames."""
    counts = torch.tensor([len(t) for t in said])
    tokens = nn.utils.rnn.pad_sequence(said, batch_first=True)
    blank = log_probs.size(-1) - 1
    log_probs = log_probs.float().cpu().transpose(0, 1)
    return nn.functional.ctc_loss(log_probs, tokens, frames.cpu(), counts, blank=blank, reduction='none')


def main() -> None:
    parser = script_options(__doc__)
    parser.add_argument('--corpus', type=Path, required=True)
    parser.add_argument('--rows', type=int, default=240, help='utterances')
    parser.add_argument('--shards', default='train-espeak', help='how their names begin')
    parser.add_argument('--contestant', choices=[TWO_READS], help='that the .nemo is of, and does not name')
    args = parser.parse_args()
    model = opened(args.model, args.contestant)
    report = Report(args, model)
    rows = random.Random(0).sample(load(args.corpus, args.shards), args.rows)
    joined = sessions(sorted(rows, key=lambda row: (row['speaker'], row['start'])), JOINED)
    for kind, some in {'utterances': rows, f'joined to {JOINED:.0f} s': joined}.items():
        some = sorted(some, key=lambda row: row['samples'])
        for mode in ('in use', 'training'):
            with nullcontext() if mode == 'in use' else dropping(model):
                middle, end = losses(model, some)
            report.add(rows=kind, mode=mode, middle=middle, end=end, count=len(some))
            print(f'{kind:15s} {mode:8s}  loss at half of the layers {middle:.3f}, at the end {end:.3f}', flush=True)


if __name__ == '__main__':
    main()
