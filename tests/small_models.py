"""Small NeMo models for tests, built from Python."""

import numpy as np
import torch
from lightning.pytorch import Trainer
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf

import nemo_lact  # noqa: F401  registers the encoder with NeMo
from nemo_lact.modules import LaCTEncoderConfig

RATE = 16000
LABELS = [' ', 'a', 'b', 'c', 'd', 'e', "'"]


def build(options, **model):
    """A character model in a few lines, as the README shows."""
    encoder = OmegaConf.merge(OmegaConf.structured(LaCTEncoderConfig), options)
    cfg = {
        'sample_rate': 16000,
        'labels': LABELS,
        'preprocessor': {
            '_target_': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor',
            'sample_rate': 16000,
            'features': options['feat_in'],
            'window_stride': 0.01,
            'normalize': 'per_feature',
            'dither': 0.0,
            'pad_to': 0,
        },
        'encoder': OmegaConf.to_container(encoder),
        'decoder': {
            '_target_': 'nemo.collections.asr.modules.ConvASRDecoder',
            'feat_in': None,
            'num_classes': len(LABELS),
            'vocabulary': LABELS,
        },
        'optim': {'name': 'adamw', 'lr': 1e-3},
        **model,
    }
    trainer = Trainer(accelerator='cpu', devices=1, max_steps=1, logger=False, enable_checkpointing=False)
    built = EncDecCTCModel(cfg=OmegaConf.create(cfg), trainer=trainer)
    built.log = lambda *args, **kwargs: None  # no Trainer.fit around: nothing to log to
    built.log_dict = built.log
    built.setup_optimization()  # NeMo's training_step reads the learning rate from it
    return built


def decided(model):
    """The model with a head whose tokens follow what is heard: much text, which hangs on no rounding."""
    model.eval()
    audio = torch.from_numpy(sound(10.0))[None]
    with torch.no_grad():
        features, n = model.preprocessor(input_signal=audio, length=torch.tensor([audio.size(1)]))
        x = model.encoder(audio_signal=features, length=n)[0][0]  # [D, T]
        layer = model.decoder.decoder_layers[0]  # a 1 × 1 convolution
        layer.weight.copy_(torch.randn_like(layer.weight) * 20 / x.std(dim=1)[:, None])
        layer.bias.copy_(-(layer.weight[..., 0] @ x.mean(dim=1)))
    return model


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Something that changes like speech: tones and noise in turns."""
    rng = np.random.default_rng(seed)
    parts = []
    while sum(map(len, parts)) < seconds * RATE:
        n = int(rng.integers(800, 6000))
        t = np.arange(n) / RATE
        tone = np.sin(2 * np.pi * rng.uniform(100, 3000) * t) * rng.uniform(0.01, 0.4)
        parts.append(tone + rng.normal(0, rng.uniform(0.001, 0.1), n))
    return np.concatenate(parts)[: int(seconds * RATE)].astype(np.float32)
