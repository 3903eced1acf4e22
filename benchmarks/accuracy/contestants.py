"""The encoders that are compared, of about equal size, and NeMo's model around them."""

import tempfile
from pathlib import Path

import torch
from feed import acoustics, faster
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
ENCODERS = {
    'FastConformer full': CONFORMER | dict(self_attention_model='rel_pos', att_context_size=[-1, -1]),
    'FastConformer local': CONFORMER | dict(self_attention_model='rel_pos_local_attn', att_context_size=[64, 64]),
    'LaCT transformer': LACT | dict(n_layers=14),
    'LaCT-Conformer': LACT_CONFORMER,
    'LaCT-Conformer, memory not learning': LACT_CONFORMER | dict(adaptation=False),
    # ablations of LaCT-Conformer
    'no retention': LACT_CONFORMER | dict(lact_retention=1.0),
    'chunk 32': LACT_CONFORMER | dict(lact_chunk_size=32),
    'chunk 512': LACT_CONFORMER | dict(lact_chunk_size=512),
    'window 16': LACT_CONFORMER | dict(att_context_size=[16, 16]),
    'window 16, memory not learning': LACT_CONFORMER | dict(att_context_size=[16, 16], adaptation=False),
    'Muon': LACT_CONFORMER | dict(use_muon=True, base_lr=0.001),
    'no momentum': LACT_CONFORMER | dict(use_momentum=False),
    'causal': LACT_CONFORMER | dict(lact_mode='causal'),
    'base_lr 0.001': LACT_CONFORMER | dict(base_lr=0.001),
}
MEL = (-7.5, 4.0)  # about the mean and deviation of log mel features of speech


class Contestant(EncDecCTCModelBPE):
    """NeMo's model; batches come as raw speech and get their acoustics on the device."""

    augment = True

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


def config(encoder: dict, tokenizer_dir: Path, lr: float, steps: int) -> OmegaConf:
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
                _target_='nemo.collections.asr.modules.SpectrogramAugmentation', freq_masks=2, time_masks=5,
                freq_width=27, time_width=0.04,
            ),
            encoder=encoder,
            decoder=dict(
                _target_='nemo.collections.asr.modules.ConvASRDecoder', feat_in=encoder['d_model'], num_classes=-1,
                vocabulary=[],
            ),
            interctc=dict(loss_weights=[0.3], apply_at_layers=[encoder['n_layers'] // 2 - 1]),
            optim=dict(
                name='adamw', lr=lr, betas=[0.9, 0.98], weight_decay=1e-3, fused=True,
                sched=dict(name='CosineAnnealing', warmup_steps=min(300, steps // 8), min_lr=lr / 100, max_steps=steps),
            ),
        )
    )  # fmt: skip
