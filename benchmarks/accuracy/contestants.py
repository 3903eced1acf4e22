"""The contestants of the fair fights, of about equal size, and NeMo's model around them.

ablation_contestants.py has those that differ from 'LaCT-Conformer' in one thing.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from feed import KINDS, acoustics, faster
from nemo.collections.asr.models import EncDecCTCModelBPE
from omegaconf import OmegaConf

import nemo_lact  # noqa: F401  registers LaCTEncoder with NeMo

FRONT = dict(feat_in=80, subsampling='dw_striding', subsampling_factor=8, subsampling_conv_channels=96)
CONFORMER = dict(
    _target_='nemo.collections.asr.modules.ConformerEncoder', **FRONT, d_model=256, n_layers=8, n_heads=4,
    ff_expansion_factor=4, conv_kernel_size=9, dropout=0.05, dropout_pre_encoder=0.05, dropout_att=0.05, use_bias=True,
)  # fmt: skip
LACT = dict(
    _target_='nemo_lact.modules.LaCTEncoder', **FRONT, d_model=256, n_heads=4, num_lact_heads=2,
    att_context_size=[64, 64], lact_chunk_size=128, use_muon=False, base_lr=0.05, conv_norm_type='batch_norm',
    dropout=0.05, dropout_pre_encoder=0.05, dropout_att=0.05,
)  # fmt: skip
LACT_CONFORMER = LACT | dict(n_layers=8, macaron=True, conv_kernel_size=9, lact_retention=0.8)
MEL = (-7.5, 4.0)  # about the mean and deviation of log mel features of speech


class Contestant(EncDecCTCModelBPE):
    """NeMo's model; batches come as raw speech and get their acoustics on the device."""

    augment = True

    def ways(self) -> dict[str, Callable[[], None]]:
        """Ways to score the model, the first with no name: name -> what sets it up for that."""
        return {'': lambda: None}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        sound, lengths, tokens, counts = batch
        sound = sound.float() / 32768
        if self.augment:
            sound, lengths = faster(sound, lengths, float(torch.empty(()).uniform_(0.9, 1.1)))
            sound = acoustics(sound, lengths, clean=0.4)
        return sound, lengths, tokens, counts

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        # Lightning refuses a fused optimizer, which could scale gradients itself; in bf16 nothing is scaled.
        torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


@dataclass(frozen=True)
class Recipe:
    """An encoder and how it is trained."""

    encoder: dict  # options of it
    model: type[Contestant] = Contestant
    kinds: dict[str, float] = field(default_factory=lambda: KINDS)  # shares of short, middle and long rows
    interctc: float = 0.3  # weight of InterCTC after half of the layers; 0: none
    time_masks: int = 5  # of SpecAugment
    mask_value: float = 0.0  # of SpecAugment; the features' mean is about MEL[0]
    base: str | None = None  # of an ablation: the contestant it is compared with


CONTESTANTS = {
    'FastConformer full': Recipe(CONFORMER | dict(self_attention_model='rel_pos', att_context_size=[-1, -1])),
    'FastConformer local': Recipe(
        CONFORMER | dict(self_attention_model='rel_pos_local_attn', att_context_size=[64, 64])
    ),
    'LaCT transformer': Recipe(LACT | dict(n_layers=14), base='LaCT-Conformer'),  # no convolution, no macaron
    'LaCT-Conformer': Recipe(LACT_CONFORMER),
    'LaCT-Conformer, memory not learning': Recipe(LACT_CONFORMER | dict(adaptation=False), base='LaCT-Conformer'),
}


@torch.no_grad()
def centre(model: EncDecCTCModelBPE) -> None:
    """Initialise the first convolution for features as they are: of mean and deviation `MEL`, not 0 and 1.

    They are not normalised per utterance, which would be an adaptation of its own.
    """
    first = model.encoder.pre_encode.conv[0]
    first.weight /= MEL[1]
    first.bias -= MEL[0] * first.weight.sum((1, 2, 3))


def tokenizer(texts: list[str], folder: Path, size: int = 256) -> Path:
    """SentencePiece BPE of the training texts; returns its folder, as NeMo wants it."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'tokenizer.model').exists():
        with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
            file.write('\n'.join(texts))
            file.flush()
            sentencepiece.SentencePieceTrainer.train(
                input=file.name, model_prefix=str(folder / 'tokenizer'), vocab_size=size, model_type='bpe',
                bos_id=-1, eos_id=-1, character_coverage=1.0, minloglevel=2,
            )  # fmt: skip
        processor = sentencepiece.SentencePieceProcessor(str(folder / 'tokenizer.model'))
        pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        (folder / 'vocab.txt').write_text('\n'.join(p.replace('▁', '') or '##' for p in pieces))
    return folder


def config(recipe: Recipe, encoder: dict, tokenizer_dir: Path, lr: float, steps: int) -> OmegaConf:
    """NeMo's, of a recipe whose encoder options may have been changed into `encoder`."""
    middle = dict(loss_weights=[recipe.interctc], apply_at_layers=[encoder['n_layers'] // 2 - 1])
    return OmegaConf.create(
        dict(
            sample_rate=16000, log_prediction=False, ctc_reduction='mean_volume', skip_nan_grad=False,
            train_ds=None, validation_ds=None, test_ds=None,
            tokenizer=dict(dir=str(tokenizer_dir), type='bpe'),
            preprocessor=dict(
                _target_='nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor', sample_rate=16000,
                normalize='NA', window_size=0.025, window_stride=0.01, window='hann', features=80, n_fft=512,
                log=True, frame_splicing=1, dither=1e-5, pad_to=0, pad_value=0.0,
            ),
            spec_augment=dict(
                _target_='nemo.collections.asr.modules.SpectrogramAugmentation', freq_masks=2,
                time_masks=recipe.time_masks, freq_width=27, time_width=0.04,
                mask_value=recipe.mask_value,
            ),
            encoder=encoder,
            decoder=dict(
                _target_='nemo.collections.asr.modules.ConvASRDecoder', feat_in=encoder['d_model'], num_classes=-1,
                vocabulary=[],
            ),
            interctc=middle if recipe.interctc else None,
            optim=dict(
                name='adamw', lr=lr, betas=[0.9, 0.98], weight_decay=1e-3, fused=True,
                sched=dict(name='CosineAnnealing', warmup_steps=min(300, steps // 8), min_lr=lr / 100, max_steps=steps),
            ),
        )
    )  # fmt: skip
