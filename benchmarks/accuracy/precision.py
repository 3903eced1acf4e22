"""WER of one session a voice with Newton-Schulz in fp64, fp32, fp16 and bf16, for several chunk lengths.

    python benchmarks/accuracy/train.py Muon --corpus CORPUS --output OUT --save
    python benchmarks/accuracy/precision.py OUT/Muon-0.nemo --corpus CORPUS --output precision.json

The same weights in all, and frozen. Everything else is the reference in fp32 (its fast weights in fp64), so that
nothing but the precision differs. "difference" is |y - y64| / |y64| of the encoder's output y over valid frames, y64
that of fp64 with the same chunks; that of "frozen" shows how much all that the memory learns changes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from score import count, transcribe
from torch import Tensor
from voices import Report, options, restored, voices

from nemo_lact import ops
from nemo_lact.ops import fast_weights
from nemo_lact.ops.newton_schulz_half import SCALE, STEPS

FROZEN = 'frozen'


def steps_in(dtype: torch.dtype, scale: float) -> Callable[[Tensor, bool], Tensor]:
    """Newton-Schulz on square matrices [..., d, d] of a half precision: what is kept is rounded to `dtype`.

    Products of two such numbers are exact in fp32, in which they are summed. So it has the rounding of a GPU's
    half-precision products on any device; CPUs are ten times slower with half-precision matrices.

    Args:
        scale: of all matrices, to keep them in the range of `dtype`.
    """

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).float()

    def orthogonalise(g: Tensor, _: bool = False) -> Tensor:
        size = torch.sqrt((g * g).sum(dim=(-2, -1), keepdim=True) + 1e-14)
        x = rounded(g * (scale / size)).flatten(0, -3)
        for a, b, c in STEPS:
            gram = rounded(x @ x.mT / scale)
            poly = rounded(torch.baddbmm(gram, gram, gram, beta=b, alpha=c / scale))
            x = rounded(torch.baddbmm(x, poly, x, beta=a, alpha=1 / scale))
        return (x / scale).view(g.shape).to(g.dtype)

    return orthogonalise


PRECISIONS = {
    # The package's own for an fp32 model in evaluation, which calls it with `rounded`: the last two steps in fp32.
    'fp64': lambda g, rounded=False: ops.orthogonalise(g.double(), rounded).to(g.dtype),
    'fp32': lambda g, _=False: ops.orthogonalise(g.float()).to(g.dtype),
    'fp16': steps_in(torch.float16, SCALE),
    'bf16': steps_in(torch.bfloat16, 1.0),  # all five steps on bf16 matrices, as in the public LaCT code
}


@contextmanager
def newton_schulz(precision: str) -> Iterator[None]:
    """The reference memory runs, and orthogonalises as `PRECISIONS` says."""
    before, original = ops.implementation(), fast_weights.orthogonalise
    ops.use_implementation('reference')
    fast_weights.orthogonalise = PRECISIONS[precision]
    try:
        yield
    finally:
        fast_weights.orthogonalise = original
        ops.use_implementation(before)


def refuse(model) -> None:
    """SystemExit if there is no Newton-Schulz in the model, or none that can be had in all precisions."""
    config = getattr(model.encoder, 'config', None)
    if not getattr(config, 'use_muon', False):
        raise SystemExit(
            'the model was trained without use_muon, so it has no Newton-Schulz steps; give one that was: '
            'python benchmarks/accuracy/train.py Muon --corpus CORPUS --output OUT --save'
        )
    if config.lact_hidden_width != config.lact_head_width:
        raise SystemExit(f'inter_multi is {config.inter_multi}, fp16 and bf16 take square weights: give one with 1')


def heard(model, session: list[dict], how: str, chunk: int) -> tuple[dict, Tensor]:
    """Counts of a session, and the encoder's valid frames [frames, D] fp64 on the CPU. how: a precision, or FROZEN."""
    encoder, frames = model.encoder, []

    def keep(module, args, output):
        for row, length in zip(*output[:2]):
            frames.append(row[:, : int(length)].T.double().cpu())

    before = encoder.adaptation, encoder.config.lact_chunk_size
    encoder.adaptation, encoder.config.lact_chunk_size = how != FROZEN, chunk
    hook = encoder.register_forward_hook(keep)
    try:
        with newton_schulz('fp64' if how == FROZEN else how):
            found = count(session, transcribe(model, session, False, autocast=False))
    finally:
        hook.remove()
        encoder.adaptation, encoder.config.lact_chunk_size = before
    return found, torch.cat(frames)


def main() -> None:
    parser = options(__doc__, seconds=600)
    parser.add_argument('--chunks', type=int, nargs='+', default=[128, 32, 8], help='encoder frames of a chunk')
    args = parser.parse_args()
    if min(args.chunks) < 1:
        parser.error(f'--chunks {min(args.chunks)}: a chunk has at least 1 frame')
    model = restored(args.model)
    refuse(model)
    torch.backends.cudnn.allow_tf32 = False  # its rounding would be taken for Newton-Schulz's
    report = Report(args, model)
    for voice, seconds, session in voices(args.corpus, args.seconds):
        for chunk in args.chunks:
            for how in ('fp64', FROZEN, 'fp32', 'fp16', 'bf16'):
                began = time.monotonic()
                found, output = heard(model, session, how, chunk)
                if how == 'fp64':
                    truth = output
                difference = float((output - truth).norm() / truth.norm())
                report.add(
                    voice=voice, seconds=seconds, precision=how, chunk=chunk, words=found['words'], wer=found['wer'],
                    difference=difference, took=time.monotonic() - began,
                )  # fmt: skip
                print(
                    f'{voice:14s} {seconds:6.0f} s  chunk {chunk:3d}  {how:6s} WER {found["wer"]:.2%}  '
                    f'difference {difference:.1e}',
                    flush=True,
                )


if __name__ == '__main__':
    main()
