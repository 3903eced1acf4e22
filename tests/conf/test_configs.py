"""The YAMLs say what is true: sizes in the header tables, seconds beside the frames, every key known."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_lact.modules import LaCTEncoder, LaCTEncoderConfig
from nemo_lact.registration import config_dir

FILES = ['lact_ctc_bpe', 'lact_ctc_char', 'lact-conformer_ctc_bpe']
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
        one, two = (count(LaCTEncoder(**{**options, 'n_layers': n})) for n in (1, 2))
        assert (one + (n_layers - 1) * (two - one)) / 1e6 == pytest.approx(millions, abs=0.55)


@pytest.mark.parametrize('name', FILES)
def test_every_option_is_in_the_file_and_known(name):
    options = encoder_options(name)
    assert set(options) == {f.name for f in fields(LaCTEncoderConfig)}
    assert LaCTEncoderConfig.from_kwargs(**options)


@pytest.mark.parametrize('name', FILES)
def test_window_and_chunk_are_4096_feature_frames(name):
    options = encoder_options(name)
    assert options['lact_chunk_size'] * options['subsampling_factor'] == 4096
    assert sum(options['att_context_size']) * options['subsampling_factor'] == 4096


def test_base_model_is_as_announced():
    options = encoder_options('lact_ctc_bpe')
    assert (options['d_model'], options['n_layers'], options['n_heads'], options['num_lact_heads']) == (768, 12, 12, 4)
    assert options['use_muon'] and options['use_momentum'] and options['feat_in'] == 80
    defaults = LaCTEncoderConfig()
    assert {k: v for k, v in options.items() if v != getattr(defaults, k)} == {}


@pytest.mark.parametrize('name', FILES)
def test_training_resumes(name):
    manager = OmegaConf.create(text(name)).exp_manager
    assert manager.resume_if_exists and manager.resume_ignore_no_checkpoint


def test_characters_get_frames_enough():
    assert encoder_options('lact_ctc_char')['subsampling_factor'] == 4  # at 8 CTC cannot spell: 12.5 frames a second
