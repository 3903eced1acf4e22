"""LaCTEncoder inside NeMo's own CTC models, built from Python."""

import numpy as np
import onnxruntime
import pytest
import torch
from nemo.collections.asr.models import ASRModel
from omegaconf import open_dict
from small_models import build

import nemo_lact  # noqa: F401  registers the encoder with NeMo
from nemo_lact.modules import LaCTEncoder


@pytest.fixture
def audio():
    t = np.arange(3 * 16000) / 16000
    return (0.1 * np.sin(2 * np.pi * (200 + 300 * t) * t)).astype(np.float32)


def batch(rows=2, samples=32000):
    signal, lengths = torch.randn(rows, samples) * 0.1, torch.tensor([samples, samples // 2])
    return signal, lengths, torch.randint(0, 6, (rows, 8)), torch.full((rows,), 8)


@pytest.mark.parametrize('extra', [{}, dict(lact_layers=[1]), dict(lact_layers=[])])
def test_built_saved_restored_and_transcribing(tiny, tmp_path, audio, extra):
    model = build({**tiny, **extra}).eval()
    assert isinstance(model.encoder, LaCTEncoder)
    first = model.transcribe([audio], batch_size=1, verbose=False)[0].text
    model.save_to(str(tmp_path / 'x.nemo'))
    again = ASRModel.restore_from(str(tmp_path / 'x.nemo'), map_location='cpu').eval()
    assert again.transcribe([audio], batch_size=1, verbose=False)[0].text == first
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(a, b), name


def test_timestamps_use_the_subsampling_factor(tiny, audio):
    model = build(tiny).eval()
    model.decoder.decoder_layers[0].weight.data.mul_(20)  # a random head that changes its mind
    hypothesis = model.transcribe([audio], timestamps=True, verbose=False)[0]
    ends = [c['end'] for c in hypothesis.timestamp['char']]
    assert ends and max(ends) <= 3.1 and 1.0 < max(ends)


def test_attention_can_be_changed_and_the_model_still_restores(tiny, tmp_path):
    model = build(tiny)
    model.change_attention_model('rel_pos_local_attn', [4, 4])
    model.change_subsampling_conv_chunking_factor(2)
    model.save_to(str(tmp_path / 'x.nemo'))
    again = ASRModel.restore_from(str(tmp_path / 'x.nemo'), map_location='cpu')
    assert again.encoder.att_context_size == [4, 4]
    assert again.encoder.pre_encode.subsampling_conv_chunking_factor == 2


def test_interctc_trains_middle_layers(tiny):
    model = build(tiny, interctc={'loss_weights': [0.3], 'apply_at_layers': [0]}).train()
    loss = model.training_step(batch(), 0)['loss']
    loss.backward()
    assert loss.isfinite() and model.encoder.layers[1].ff2.down.weight.grad.isfinite().all()
    with pytest.raises(ValueError, match=r'is \[7\], but the encoder has 2 layers; give places from 0 to 1,'):
        build(tiny, interctc={'loss_weights': [0.3], 'apply_at_layers': [7]}).training_step(batch(), 0)


def test_spec_augment_runs_before_the_encoder(tiny):
    spec = {'_target_': 'nemo.collections.asr.modules.SpectrogramAugmentation', 'freq_masks': 2, 'time_masks': 2,
            'freq_width': 4, 'time_width': 0.05}  # fmt: skip
    model = build(tiny, spec_augment=spec).train()
    seen = []
    model.encoder.register_forward_pre_hook(lambda m, a, kw: seen.append(kw['audio_signal']), with_kwargs=True)
    model.training_step(batch(), 0)['loss'].backward()
    assert (seen[0][0] == 0).all(dim=0).any() or (seen[0][0] == 0).all(dim=1).any()


def test_raw_waveform_front_end(tiny, audio):
    """NeMo's ConvFeatureEncoder (wav2vec 2.0) in place of the mel spectrogram: 20 ms features, 2x subsampling."""
    layers = [{'emb_dim': 12, 'kernel_size': 10, 'stride': 5}]
    layers += [{'emb_dim': 12, 'kernel_size': 3, 'stride': 2}] * 4
    layers += [{'emb_dim': 12, 'kernel_size': 2, 'stride': 2}] * 2
    front = {'_target_': 'nemo_lact.modules.waveform.ConvFeatureEncoder', 'conv_layers': layers, 'embedding_dim': 16}
    model = build({**tiny, 'subsampling_factor': 2}, preprocessor=front)
    signal, lengths, text, n = batch()
    log_probs, encoded, _ = model(input_signal=signal, input_signal_length=lengths)
    # 32000 samples / 320 per feature / 2
    assert 48 <= encoded[0] <= 51 and log_probs.isfinite().all()
    loss = model.training_step((signal, lengths, text, n), 0)['loss']
    loss.backward()
    gradient = next(p.grad for name, p in model.preprocessor.named_parameters() if p.requires_grad)
    assert loss.isfinite() and gradient.abs().sum() > 0


def test_own_feature_extractor(tiny):
    """Any NeuralModule with the preprocessor's ports works, set on the model after it is built."""
    from nemo.core.classes.module import NeuralModule

    class LogPower(NeuralModule):
        def forward(self, input_signal, length):
            frames = input_signal.unfold(1, 400, 160)  # [B, T, 400], 10 ms steps
            power = torch.fft.rfft(frames).abs().square()[..., 1:161].unflatten(-1, (16, 10)).mean(-1)
            return (power + 1e-6).log().transpose(1, 2), (length - 400) // 160 + 1

    model = build(tiny)
    model.preprocessor = LogPower()
    model.training_step(batch(), 0)['loss'].backward()
    assert model.encoder.pre_encode.out.weight.grad.abs().sum() > 0


def test_freeze_the_encoder(tiny):
    model = build(tiny)
    model.encoder.freeze()
    model.training_step(batch(), 0)['loss'].backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.decoder.parameters())
    model.encoder.unfreeze()
    assert all(p.requires_grad for p in model.encoder.parameters())


@pytest.mark.parametrize(
    'extra',
    [
        {},
        dict(conv_kernel_size=9, macaron=True, lact_retention=0.7),
        dict(lact_mode='causal'),
        dict(lact_layers=[0], lact_relevance=6, lact_retention=0.1, use_muon=False, use_momentum=False),
    ],
)
def test_onnx_of_any_length_equals_torch(tiny, tmp_path, contract, extra):
    model = build({**tiny, **extra}).eval()
    path = str(tmp_path / 'x.onnx')
    model.export(path)
    session = onnxruntime.InferenceSession(path)
    for frames, other in ((256, 200), (700, 333), (90, 41)):  # several lengths, one and many chunks
        signal, lengths = torch.randn(2, 16, frames), torch.tensor([frames, other])
        names = [i.name for i in session.get_inputs()]
        feeds = dict(zip(names, (signal.numpy(), lengths.numpy())))
        theirs = session.run(None, feeds)[0]
        with torch.inference_mode():
            encoded, n = model.encoder(audio_signal=signal, length=lengths)
            ours = model.decoder(encoder_output=encoded).numpy()
        for row in range(2):
            a, b = ours[row, : n[row]], theirs[row, : n[row]]
            contract('ONNX = torch (relative, fp32)', np.linalg.norm(a - b) / np.linalg.norm(a), 1e-4)


def test_torchscript_export(tiny, tmp_path):
    model = build(tiny).eval()
    model.export(str(tmp_path / 'x.ts'))
    scripted = torch.jit.load(str(tmp_path / 'x.ts'))
    signal, lengths = torch.randn(1, 16, 500), torch.tensor([500])
    with torch.inference_mode():
        encoded, _ = model.encoder(audio_signal=signal, length=lengths)
        expected = model.decoder(encoder_output=encoded)
    torch.testing.assert_close(scripted(signal, lengths), expected, rtol=1e-3, atol=1e-3)


def test_wrong_option_in_a_config_is_the_users_message(tiny):
    with pytest.raises(Exception, match='n_heads=5 does not divide d_model=32'):
        build({**tiny, 'n_heads': 5})


def test_cfg_survives_open_dict(tiny):
    model = build(tiny)
    with open_dict(model.cfg):
        model.cfg.encoder.lact_chunk_size = 12
    assert LaCTEncoder.from_config_dict(model.cfg.encoder).config.lact_chunk_size == 12
