"""A trained contestant as the starter model of the package: half precision, a config without paths of its training.

    python benchmarks/accuracy/release.py OUT/LaCT-Conformer-0.nemo

Writes nemo_lact/models/lact-conformer-starter.nemo and prints its checksum, which goes into nemo_lact/starter.py.
"""

import argparse
import hashlib

import nemo.collections.asr.models as models
import torch
from omegaconf import open_dict

from nemo_lact.starter import FILE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model')
    args = parser.parse_args()
    model = models.EncDecCTCModelBPE.restore_from(args.model, map_location=torch.device('cpu'))
    with open_dict(model.cfg):
        model.cfg.tokenizer.dir = 'tokenizer'
        # NeMo's transcribe() takes its loader's settings from here
        model.cfg.validation_ds = dict(manifest_filepath=None, sample_rate=16000, batch_size=8, shuffle=False)
    model.encoder.half(), model.decoder.half()
    FILE.parent.mkdir(exist_ok=True)
    model.save_to(str(FILE))
    print(f'{FILE}: {FILE.stat().st_size / 1e6:.1f} MB, SHA-256 {hashlib.sha256(FILE.read_bytes()).hexdigest()}')


if __name__ == '__main__':
    main()
