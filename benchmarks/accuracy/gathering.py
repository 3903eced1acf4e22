"""What sessions of utterances could gain from a memory that gathers evidence over them: not in the package yet.

    python benchmarks/accuracy/gathering.py MODEL.nemo accents/noisy.json --output gathering.json

A memory with `lact_relevance` takes of each utterance a step as if nothing had been heard before, and forgets for it
what the utterances before had taught. Here the step from n frames after N others is that of one chunk of N + n frames,
as far as they fill one: what is older than a chunk is forgotten. Utterances of a speaker in their order, shorter than a
chunk; the manifest has `speaker`, as unseen.py writes it. No momentum, no Muon.
"""

import json
from pathlib import Path

import torch
from score import count, spelled
from voices import Report, restored, script_options

from nemo_lact import ops
from nemo_lact.data import audio
from nemo_lact.modules import fast_weights
from nemo_lact.ops.fast_weights import FastWeights, chunk_gradient, faded, read, row_length

WAYS = ('fresh', 'carried', 'gathered')


class Gathering:
    """`lact_swiglu` for one row of at most a chunk, after `before` frames of evidence."""

    before = 0

    def __call__(
        self, q, k, v, eta, mu, valid, weights, momentum, lengths, chunk, mode, use_muon, use_momentum, anchor,
        retention, relevance,
    ):  # fmt: skip
        new = int(valid.sum())
        kept = min(self.before, max(0, chunk - new))  # frames of those before that still fit into a chunk
        total = kept + new + relevance
        # W - A holds the mean of `before` frames; `kept` of them go on, beside the sum of the new ones.
        left = kept / self.before * (self.before + relevance) / total if kept else 0.0
        eta = eta * valid[:, None, :, None, None] * ((chunk + relevance) / total)
        step = chunk_gradient(faded(weights, anchor, retention), k, v, eta)
        moved = [a + left * (w - a) + s for a, w, s in zip(anchor, weights, step)]
        weights = FastWeights(*(w * (length / row_length(w)) for w, length in zip(moved, lengths)))
        return read(weights, q), weights, momentum


@torch.inference_mode()
def errors(model, rows: list[dict], folder: Path, way: str) -> dict:
    """Word errors and words of each speaker."""
    gathering, texts = Gathering(), []
    fast_weights.lact_swiglu = gathering if way == 'gathered' else ops.lact_swiglu
    chunk, speaker, state = model.encoder.config.lact_chunk_size, None, None
    for row in rows:
        if row['speaker'] != speaker or way == 'fresh':
            speaker, state, gathering.before = row['speaker'], None, 0
        sound = torch.from_numpy(audio.read(folder / row['audio_filepath'])[0].copy()).float()[None].to(model.device)
        features, frames = model.preprocessor(input_signal=sound, length=torch.tensor([sound.size(1)]).to(model.device))
        encoded, frames, state = model.encoder.forward_with_state(features, frames, state)
        frames = int(frames[0])
        if frames > chunk:
            raise SystemExit(f'{row["audio_filepath"]} has {frames} frames, over a chunk of {chunk}; give utterances')
        gathering.before = min(chunk, gathering.before + frames)
        texts.append(spelled(model, model.decoder(encoder_output=encoded).argmax(-1)[0, :frames].tolist()))
    found = {row['speaker']: (0, 0) for row in rows}
    for row, (wrong, words) in zip(rows, count(rows, texts)['words']):
        before = found[row['speaker']]
        found[row['speaker']] = before[0] + wrong, before[1] + words
    return found


def main() -> None:
    parser = script_options(__doc__)
    parser.add_argument('manifest', type=Path)
    args = parser.parse_args()
    model = restored(args.model)
    config = model.encoder.config
    if config.lact_relevance is None or config.use_momentum or config.use_muon:
        parser.error(f'{args.model}: give a model with lact_relevance, use_momentum=false and use_muon=false')
    ops.use_implementation('reference')
    rows = [json.loads(line) for line in args.manifest.read_text().splitlines()]
    report = Report(args, model).head | dict(manifest='/'.join(args.manifest.parts[-2:]), rows=len(rows))
    report['speakers'] = {way: errors(model, rows, args.manifest.parent, way) for way in WAYS}
    fast_weights.lact_swiglu = ops.lact_swiglu
    for way, found in report['speakers'].items():
        wrong, words = (sum(part) for part in zip(*found.values()))
        print(f'{way:10s} WER {wrong / words:.2%}')
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
