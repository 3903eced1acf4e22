"""What a model's memory holds of a session: is it read, does it move, does it know the voice?

    python benchmarks/accuracy/probe.py MODEL.nemo --manifest voices.json --output probe.json

The manifest is NeMo's, with `speaker`. Utterances of a speaker are joined to sessions of `--seconds`, each with other
texts. For each layer:

- share: |what the memory adds| / |what the window attention adds|, over valid frames;
- moved: |W - W0| / |W0| at the end of a session;
- frozen, same_voice, other_voice: |read - read'| / |read| of the first chunk, read' with the memory frozen, or learning
  but begun with what a session of the same or another voice left; of the encoder's output, too. What the past can do
  for a recogniser is in these;
- voice: how often the nearest of all other sessions, by the cosine of what was learned (W - W0, less the mean over
  sessions), is of the same speaker; and the same by the mean over time of the layer's input, which shows what there was
  to learn. `chance` is that of a random one.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from corpus import copy, load
from feed import RATE
from score import sessions
from torch import Tensor
from voices import Report, restored, script_options

from nemo_lact import ops
from nemo_lact.state import LaCTState

FULL = 0.8  # of the wanted seconds: shorter sessions, the rest of a speaker, are left out


@dataclass
class Heard:
    """What one session [T frames] did in the encoder; the lists have an entry for each layer."""

    inputs: list[Tensor] = field(default_factory=list)  # [T, D] of the mixer
    reads: list[Tensor] = field(default_factory=list)  # [T, D] of the memory, gated
    near: list[Tensor] = field(default_factory=list)  # [T, D] of the window attention
    output: Tensor | None = None  # [T, D] of the encoder
    state: LaCTState | None = None  # after it


@torch.inference_mode()
def hear(encoder, features: Tensor, state: LaCTState | None = None) -> Heard:
    """One session [1, feat_in, T], begun with `state` (None: fresh)."""
    found = Heard()
    with ExitStack() as hooks:
        for layer in encoder.layers:
            mixer = layer.mixer
            for hook in (
                mixer.register_forward_pre_hook(lambda _, args: found.inputs.append(args[0][0])),
                mixer.memory.register_forward_hook(lambda _, args, out: found.reads.append(out[0][0])),
                mixer.out.register_forward_pre_hook(lambda _, args: found.near.append(args[0][0] - found.reads[-1])),
            ):
                hooks.callback(hook.remove)
        output, _, found.state = encoder.forward_with_state(features, None, state)
    if len(found.near) != len(encoder.layers):
        raise RuntimeError(f'heard {len(found.near)} of {len(encoder.layers)} layers: other code ran in their place')
    found.output = output[0].T
    return found


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |a|."""
    return float((a - b).norm() / a.norm())


def same_speaker(vectors: Tensor, speakers: Sequence[str]) -> float:
    """Share of the rows [N, D] whose nearest other row, by cosine about the mean, is of the same speaker."""
    x = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    nearest = (x @ x.T).fill_diagonal_(-2).argmax(1).tolist()
    return sum(speakers[i] == speakers[n] for i, n in enumerate(nearest)) / len(speakers)


def chance(speakers: Sequence[str]) -> float:
    return sum(speakers.count(s) - 1 for s in speakers) / len(speakers) / (len(speakers) - 1)


def joined(manifest: Path, seconds: float) -> list[dict]:
    """Sessions of speakers that have two or more of them."""
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder), 'test-probe', 'probe', manifest)
        found = [s for s in sessions(load(Path(folder), 'test-probe'), seconds) if s['samples'] > FULL * seconds * RATE]
    people = [s['speaker'] for s in found]
    kept = [s for s in found if people.count(s['speaker']) > 1]
    if len({s['speaker'] for s in kept}) < 2:
        raise SystemExit(
            f'{manifest}: {len(found)} sessions of {seconds:g} s, of fewer than two speakers with two or more each; '
            f'give more speech, or fewer --seconds'
        )
    return kept


def features_of(model, session: dict) -> Tensor:
    """[1, feat_in, T]."""
    sound = torch.from_numpy(np.array(session['sound'])).to(model.device)[None].float() / 32768
    length = torch.tensor([sound.size(1)], device=model.device)
    with torch.inference_mode():
        features, frames = model.preprocessor(input_signal=sound, length=length)
    return features[..., : int(frames[0])]


def measured(encoder, sessions: list[Tensor], speakers: list[str]) -> tuple[list[dict], dict]:
    """Rows of the layers and what the output changed by, of sessions as features [1, feat_in, T]."""
    layers, chunk = encoder.layers, encoder.config.lact_chunk_size
    initial = [torch.cat([w.flatten() for w in layer.mixer.memory.initial_weights()]) for layer in layers]
    inputs, learned, states, begun, values, output = [], [], [], [], [], []
    for features in sessions:
        fresh = hear(encoder, features)
        states.append(fresh.state)
        begun.append(([read[:chunk].clone() for read in fresh.reads], fresh.output[:chunk].clone()))
        inputs.append([x.mean(0) for x in fresh.inputs])
        learned.append([torch.cat([w[i, 0].flatten() for w in fresh.state.weights]) for i in range(len(layers))])
        values.append([
            dict(share=float(read.norm() / near.norm()), moved=float(moved.norm() / w0.norm()))
            for read, near, moved, w0 in zip(fresh.reads, fresh.near, learned[-1], initial)
        ])  # fmt: skip
    for n, (features, (reads, said)) in enumerate(zip(sessions, begun)):
        output.append({})
        for name, state in starts(states, speakers, n).items():
            encoder.adaptation = name != 'frozen'
            other = hear(encoder, features, state)
            encoder.adaptation = True
            for value, a, b in zip(values[n], reads, other.reads):
                value[name] = relative(a, b[:chunk])
            output[n][name] = relative(said, other.output[:chunk])
    rows = [
        dict(
            layer=i + 1, **middle([session[i] for session in values]),
            voice_by_weights=same_speaker(torch.stack([session[i] for session in learned]), speakers),
            voice_by_input=same_speaker(torch.stack([session[i] for session in inputs]), speakers),
        )
        for i in range(len(layers))
    ]  # fmt: skip
    return rows, middle(output)


def middle(sessions: list[dict]) -> dict:
    """Medians over sessions."""
    return {name: median(session[name] for session in sessions) for name in sessions[0]}


def starts(states: list[LaCTState], speakers: list[str], n: int) -> dict[str, LaCTState | None]:
    """With what session n begins: the next session's state of the same speaker, and of another."""
    after = [(n + step) % len(states) for step in range(1, len(states))]
    return {
        'frozen': None,
        'same_voice': states[next(m for m in after if speakers[m] == speakers[n])],
        'other_voice': states[next(m for m in after if speakers[m] != speakers[n])],
    }


def main() -> None:
    parser = script_options(__doc__)
    parser.add_argument('--manifest', type=Path, required=True)
    parser.add_argument('--seconds', type=float, default=25.0, help='of a session')
    args = parser.parse_args()
    model = restored(args.model)
    if not getattr(model.encoder, 'adaptation', False):
        raise SystemExit(f'{args.model}: its encoder has no memory that learns')
    sessions = joined(args.manifest, args.seconds)
    speakers = [session['speaker'] for session in sessions]
    before, began = ops.implementation(), time.monotonic()
    ops.use_implementation('reference')  # kernels of whole layers do not call what `hear` listens to
    try:
        rows, output = measured(model.encoder, [features_of(model, session) for session in sessions], speakers)
    finally:
        ops.use_implementation(before)
    report = Report(args, model)
    report.head.update(
        sessions=len(sessions), speakers=len(set(speakers)), seconds=sum(s['samples'] for s in sessions) / RATE,
        chance=chance(speakers), output=output,
    )  # fmt: skip
    for row in rows:
        report.add(**row)
        print('  '.join(f'{name} {value:.3g}' for name, value in row.items()))
    print('output  ' + '  '.join(f'{name} {value:.3g}' for name, value in output.items()))
    print(f'{len(sessions)} sessions of {len(set(speakers))} speakers, {time.monotonic() - began:.0f} s')


if __name__ == '__main__':
    main()
