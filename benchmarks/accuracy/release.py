"""A trained contestant as the starter model of the package: half precision, a config without paths of its training.

    python benchmarks/accuracy/release.py OUT/no_retention-0.nemo --encoder lact_retention=0.8
    python benchmarks/accuracy/release.py OUT/CR-CTC-21.nemo --first OUT/frozen_at_times-21.nemo --share 0.5

With --first the weights are between those of two models, one trained on from the other or both from a third. Writes
nemo_lact/models/lact-conformer-starter.nemo and prints its checksum, which goes into nemo_lact/starter.py.
"""

import argparse
import hashlib
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nemo.collections.asr.models as models
import torch
from omegaconf import OmegaConf, open_dict
from sentencepiece import sentencepiece_model_pb2

from nemo_lact.blending import blend
from nemo_lact.starter import FILE


def without_paths(model: Path, folder: Path) -> Path:
    """The .nemo file with a tokenizer that does not say where it was trained, in `folder`."""
    inside = folder / 'inside'
    with tarfile.open(model) as archive:
        archive.extractall(inside, filter='data')
    for path in inside.glob('*tokenizer.model'):
        proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
        proto.trainer_spec.ClearField('input')
        proto.trainer_spec.model_prefix = 'tokenizer'
        path.write_bytes(proto.SerializeToString())
    with tarfile.open(folder / model.name, 'w') as archive:
        for path in sorted(inside.iterdir()):
            archive.add(path, f'./{path.name}')
    return folder / model.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', type=Path)
    parser.add_argument('--output', type=Path, default=FILE)
    parser.add_argument('--first', type=Path, help='the model that the training began with, or another from there')
    parser.add_argument('--share', type=float, default=0.75, help='of the trained weights, with --first')
    parser.add_argument('--encoder', nargs='*', default=[], help='other settings of the encoder than in training')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if args.first:
            model = Path(folder) / 'blend.nemo'
            blend(args.model, args.first, args.share, model)
        release(without_paths(model, Path(folder)), args.output, args.encoder)
    size, digest = args.output.stat().st_size, hashlib.sha256(args.output.read_bytes()).hexdigest()
    print(f'{args.output}: {size / 1e6:.1f} MB, SHA-256 {digest}')


def release(source: Path, target: Path, settings: Sequence[str] = ()) -> None:
    model = models.EncDecCTCModelBPE.restore_from(str(source), map_location=torch.device('cpu'))
    with open_dict(model.cfg):
        model.cfg.tokenizer.dir = 'tokenizer'
        model.cfg.encoder.merge_with(OmegaConf.from_dotlist(list(settings)))
        # NeMo's transcribe() takes its loader's settings from here
        model.cfg.validation_ds = dict(manifest_filepath=None, sample_rate=16000, batch_size=8, shuffle=False)
    model.encoder.half(), model.decoder.half()
    target.parent.mkdir(exist_ok=True)
    model.save_to(str(target))


if __name__ == '__main__':
    main()
