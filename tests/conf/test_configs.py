"""The YAMLs say what is true: sizes in the header tables, seconds beside the frames, every key known."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize
from nemo.collections.asr.models import EncDecCTCModel
from omegaconf import OmegaConf, open_dict

from nemo_lact.modules import LaCTEncoder, LaCTEncoderConfig
from nemo_lact.modules.wave_step import delay
from nemo_lact.registration import config_dir

OFFLINE = ['lact_ctc_bpe', 'lact_ctc_char', 'lact-conformer_ctc_bpe']
STREAMING = ['lact_ctc_bpe_streaming', 'lact_ctc_char_streaming']
FILES = OFFLINE + STREAMING
ROW = re.compile(r'#\s+\|\s*\w+\s*\(\s*(\d+)M\)\s*\|\s*(\d+)\s*\|\s*(\d+)\s*\|\s*(\d+)\s*\|\s*(\d+)\s*\|')


def text(name):
    return (Path(config_dir()) / f'{name}.yaml').read_text()


def count(module):
    return sum(p.numel() for p in module.parameters())


def encoder_options(name):
    cfg = OmegaConf.create(text(name))
    return OmegaConf.to_container(cfg.model, resolve=True)['encoder']


@pytest.mark.parametrize('name', FILES)
def test_sizes_in_the_header(name):
    rows = ROW.findall(text(name))
    assert len(rows) >= 3
    for millions, d_model, n_layers, n_heads, lact_heads in (map(int, row) for row in rows):
        options = {**encoder_options(name), 'd_model': d_model, 'n_layers': n_layers, 'n_heads': n_heads}
        options['num_lact_heads'] = lact_heads
        with_memory = range(n_layers) if options['lact_layers'] is None else options['lact_layers']
        one, two, remembering = (
            count(LaCTEncoder(**{**options, 'n_layers': n, 'lact_layers': layers}))
            for n, layers in ((1, []), (2, []), (1, [0]))
        )
        total = one + (n_layers - 1) * (two - one) + len(with_memory) * (remembering - one)
        assert total / 1e6 == pytest.approx(millions, abs=0.55)


@pytest.mark.parametrize('name', FILES)
def test_every_option_is_in_the_file_and_known(name):
    options = encoder_options(name)
    assert set(options) == {f.name for f in fields(LaCTEncoderConfig)}
    assert LaCTEncoderConfig.from_kwargs(**options)


@pytest.mark.parametrize('name', OFFLINE)
def test_window_and_memory_are_those_of_the_accuracy_runs_and_let_long_input_through_all_layers_at_once(name):
    config = LaCTEncoderConfig.from_kwargs(**encoder_options(name))
    assert config.window[0] == config.window[1] == 512 // config.subsampling_factor  # 5.1 s
    assert config.lact_chunk_size * config.subsampling_factor == 4096  # 41 s
    assert config.lact_retention == 0.1 and (config.use_muon, config.use_momentum) == (False, False)
    assert config.lact_relevance * config.frame_seconds == pytest.approx(2.0)
    quarter = config.n_layers // 4
    assert config.lact_layers == list(range(quarter, 2 * quarter))
    assert config.base_lr * config.lact_chunk_size == pytest.approx(0.05 * 512)  # a step sums over the frames
    assert delay(config, config.window) == 1  # chunks; the wavefront takes no more


@pytest.mark.parametrize('name', STREAMING)
def test_memory_of_streaming_has_the_settings_that_won_with_chunks_of_10_s(name):
    options = encoder_options(name)
    assert options['lact_chunk_size'] * options['subsampling_factor'] == 1024  # 10.2 s
    assert (options['use_muon'], options['use_momentum'], options['lact_retention']) == (False, False, 0.8)
    assert options['base_lr'] * options['lact_chunk_size'] == pytest.approx(0.05 * 128)  # a step sums over the frames


@pytest.mark.parametrize('name', FILES)
def test_second_ctc_loss_is_half_way_up(name):
    interctc = OmegaConf.create(text(name)).model.interctc
    assert interctc == dict(loss_weights=[0.3], apply_at_layers=[encoder_options(name)['n_layers'] // 2 - 1])


def test_base_model_is_as_announced():
    options = encoder_options('lact_ctc_bpe')
    assert (options['d_model'], options['n_layers'], options['n_heads'], options['num_lact_heads']) == (768, 12, 12, 4)
    assert options['feat_in'] == 80
    defaults = LaCTEncoderConfig()  # LaCT's own; the file has what won instead
    changed = {k for k, v in options.items() if v != getattr(defaults, k)}
    assert changed == {
        'att_context_size', 'lact_layers', 'use_muon', 'use_momentum', 'base_lr', 'lact_retention', 'lact_relevance'
    }  # fmt: skip


@pytest.mark.parametrize('name', FILES)
def test_training_resumes(name):
    manager = OmegaConf.create(text(name)).exp_manager
    assert manager.resume_if_exists and manager.resume_ignore_no_checkpoint


def test_characters_get_frames_enough():
    assert encoder_options('lact_ctc_char')['subsampling_factor'] == 4  # at 8 CTC cannot spell: 12.5 frames a second


@pytest.mark.parametrize('name', STREAMING)
def test_streaming_configs_stream_at_the_latencies_of_the_header(name):
    options = encoder_options(name)
    config = LaCTEncoderConfig.from_kwargs(**options)
    assert config.not_streaming() == []
    assert OmegaConf.create(text(name)).model.preprocessor.normalize == 'NA'
    rows = re.findall(r'#\s+\|\s*\[(\d+), (\d+)\]\s*\|\s*(\d+) of 10 ms\s*\|\s*(\d+) ms\s*\|', text(name))
    assert [[int(row[0]), int(row[1])] for row in rows] == options['att_context_size']
    assert [int(row[3]) for row in rows] == [1120, 560, 160, 80]
    encoder = LaCTEncoder(**{**options, 'd_model': 16, 'n_layers': 1, 'n_heads': 2, 'subsampling_conv_channels': 4})
    for left, right, features, milliseconds in (map(int, row) for row in rows):
        encoder.set_default_att_context_size([left, right])
        assert encoder.streaming_cfg.chunk_size[1] == features == milliseconds // 10
        assert (right + 1) * config.frame_seconds == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize('name', STREAMING)
def test_streaming_config_is_its_offline_one_but_for_streaming(name):
    ours, base = (OmegaConf.to_container(OmegaConf.create(text(n))) for n in (name, name.removesuffix('_streaming')))
    changed = {'causal_downsampling', 'lact_mode', 'att_context_style', 'att_context_size'}
    changed |= {'lact_layers', 'lact_chunk_size', 'lact_retention', 'lact_relevance'}  # fights were offline
    for cfg in (ours, base):
        cfg.pop('name')
        cfg['model']['preprocessor'].pop('normalize')
        for key in changed:
            cfg['model']['encoder'].pop(key)
    assert ours == base


@pytest.mark.parametrize('name', STREAMING)
def test_streaming_config_by_name_trains_on_all_latencies(name, monkeypatch):
    """A small model of it: Hydra finds the file by name, and training steps draw their window from those it gives."""
    small = ['d_model=16', 'n_layers=1', 'n_heads=2', 'num_lact_heads=1', 'subsampling_conv_channels=4']
    with initialize(version_base=None, config_path=None):
        cfg = compose(name, overrides=[f'model.encoder.{option}' for option in small])
    labels = cfg.model.get('labels', [' ', 'a', 'b'])
    with open_dict(cfg):
        for part in ('train_ds', 'validation_ds', 'test_ds', 'tokenizer', 'optim'):
            cfg.model.pop(part, None)
        cfg.model.decoder.update(vocabulary=labels, num_classes=len(labels))
    model = EncDecCTCModel(cfg=cfg.model).train()
    seen, layer = set(), model.encoder.layers[0]
    original = layer.forward
    monkeypatch.setattr(layer, 'forward', lambda *args: seen.add(tuple(args[4])) or original(*args))
    for _ in range(60):
        features, length = torch.randn(1, 80, 40), torch.tensor([40])
        log_probs, n, _ = model(processed_signal=features, processed_signal_length=length)
    text_length = torch.tensor([2])
    loss = model.loss(
        log_probs=log_probs, targets=torch.tensor([[1, 2]]), input_lengths=n, target_lengths=text_length
    )
    loss.backward()
    assert loss.isfinite() and layer.mixer.qkv.weight.grad.isfinite().all()
    assert seen == {tuple(pair) for pair in encoder_options(name)['att_context_size']}
