"""Wrong options fail at construction, with the value, the limit and what to do."""

import pytest
from omegaconf import OmegaConf

from nemo_lact.modules import LaCTEncoder, LaCTEncoderConfig

WRONG = [
    (dict(n_heads=5), r'n_heads=5 does not divide d_model=768; choose one of \[1, 2, 3, 4'),
    (dict(num_lact_heads=7), 'num_lact_heads=7 does not divide d_model=768'),
    (dict(n_heads=0), 'n_heads=0'),
    (dict(d_model=9, n_heads=3, num_lact_heads=3), 'heads of 3 channels; rotary positions need an even number'),
    (dict(lact_chunk_size=0), 'lact_chunk_size=0; the least is 1'),
    (dict(lact_chunk_size=4096), r'lact_chunk_size=4096 encoder frames is 327.7 s .* limit of 100 s.* write 512'),
    (dict(lact_chunk_size=4096, subsampling_factor=4), 'write 1024'),
    (dict(att_context_size=[2048, 2048]), r'att_context_size=2048 encoder frames is 163.8 s .* write 256'),
    (dict(att_context_size=[128]), r'att_context_size=\[128\]; give \[left, right\]'),
    (dict(att_context_size=[-5, 3]), r'att_context_size=\[-5, 3\]'),
    (dict(lact_mode='both'), "lact_mode='both'; choose one of 'bidirectional', 'causal'"),
    (dict(subsampling_factor=3), 'subsampling_factor=3; choose one of 2, 4, 8, 16'),
    (dict(subsampling='stacking'), "subsampling='stacking'; choose one of"),
    (dict(self_attention_model='abs_pos'), "self_attention_model='abs_pos'"),
    (dict(dropout=1.0), 'dropout=1.0 is no probability'),
    (dict(lr_dim=3), 'lr_dim=3; give 1 .* or 192'),
    (dict(w0_w2_low_rank=500), 'w0_w2_low_rank=500; give -1 for full rank, or 1 to 192'),
    (dict(inter_multi=0.001), 'inter_multi=0.001 leaves the memory no hidden unit'),
    (dict(inter_multi=-1), 'inter_multi=-1; it must be above 0'),
    (dict(conv_kernel_size=8), 'conv_kernel_size=8; give 0 .* odd number'),
    (dict(conv_kernel_size=9, conv_context_size=[3, 3]), r'conv_context_size=\[3, 3\] sees 7 frames'),
    (dict(n_layers=0), 'n_layers=0; the least is 1'),
    (dict(lact_layers=[3, 12]), r'lact_layers=\[3, 12\]; give layers from 0 to 11, each once'),
    (dict(lact_layers=[-1]), r'lact_layers=\[-1\]; give layers from 0'),
    (dict(lact_layers=[2, 2]), r'lact_layers=\[2, 2\]; .*each once'),
    (dict(lact_relevance=-1, use_muon=False), 'lact_relevance=-1; give frames, 0'),
    (dict(lact_relevance=25), 'lact_relevance=25 with use_muon=true'),
    (dict(lact_chunksize=5), "no option 'lact_chunksize'; did you mean 'lact_chunk_size'"),
    (dict(zzz=1), "no option 'zzz'. Options: _target_, activation_checkpointing"),
]


@pytest.mark.parametrize('options,message', WRONG, ids=[str(o) for o, _ in WRONG])
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        LaCTEncoder(**options)


def test_a_long_chunk_can_be_meant():
    LaCTEncoderConfig.from_kwargs(lact_chunk_size=4096, max_chunk_seconds=400)


def test_defaults_are_the_base_model():
    encoder = LaCTEncoder()
    assert 90e6 < sum(p.numel() for p in encoder.parameters()) < 95e6
    assert encoder.config.lact_chunk_size * encoder.config.frame_seconds == pytest.approx(40.96)
    assert encoder._feat_out == encoder.d_model == 768 and encoder.subsampling_factor == 8


def test_memories_are_in_the_layers_asked_for(tiny):
    def numbers(layers):
        encoder = LaCTEncoder(**{**tiny, 'n_layers': 3, 'lact_layers': layers})
        found = [i for i, layer in enumerate(encoder.layers) if layer.mixer.memory is not None]
        return found, sum(p.numel() for p in encoder.parameters()), encoder.state_bytes(), encoder.adaptation

    every, two, none = numbers(None), numbers([2, 0]), numbers([])
    assert (every[0], two[0], none[0]) == ([0, 1, 2], [0, 2], []) and (two[3], none[3]) == (True, False)
    assert every[1] - two[1] == (two[1] - none[1]) / 2 > 0  # parameters
    assert every[2] - two[2] == (two[2] - none[2]) / 2 > 0  # bytes of a stream


def test_structured_config_builds_the_encoder(tiny):
    cfg = OmegaConf.merge(OmegaConf.structured(LaCTEncoderConfig), tiny)
    encoder = LaCTEncoder.from_config_dict(cfg)
    assert isinstance(encoder, LaCTEncoder) and encoder.config.d_model == tiny['d_model']


def test_keys_nemo_writes_are_accepted(tiny):
    """change_attention_model and change_subsampling_conv_chunking_factor of NeMo's models write these."""
    encoder = LaCTEncoder(**{**tiny, 'self_attention_model': None, 'subsampling_conv_chunking_factor': -1})
    assert encoder.att_context_size == [8, 8]
    assert LaCTEncoder(**{**tiny, 'att_context_size': None}).att_context_size == [-1, -1]
    assert LaCTEncoder(**{**tiny, 'self_attention_model': 'rel_pos'}).att_context_size == [-1, -1]
