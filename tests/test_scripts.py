"""The scripts' options, up to where they would install or train."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / 'scripts'

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir() or not shutil.which('bash'), reason='needs a checkout and bash')


def run(script, *arguments, **environment):
    command = ['bash', str(SCRIPTS / script), *arguments]
    # Without an interpreter no call can get as far as an installation.
    environment = {'PATH': '/usr/bin:/bin', 'PYTHON': '/no/such/python', **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--foo'], 'unknown option --foo'),
        (['foo'], "unknown argument 'foo'"),
        (['--epochs'], '--epochs needs a value'),
        (['--epochs', '0'], '--epochs 0: needs a whole number above 0'),
        (['--batch-size=many'], '--batch-size many: needs a whole number'),
        (['--dataset-size', 'huge'], '--dataset-size huge: must be sample, minimal, standard or full'),
        (['--dataset-size=full'], 'no /no/such/python found'),
        (['--dataset-size=minimal', '--config-name', 'nope'], 'there are: '),
        (['--dataset-size=minimal', '--epochs', '3'], 'unknown option --epochs'),
        (['--config-name', 'nope'], 'there are: '),
        (['--init-from', '/nope.nemo'], '--init-from /nope.nemo: no such file'),
        (['--data-dir', '/nope'], 'no /nope/train.json'),
        (['--download-only', '--skip-download'], 'exclude each other'),
        ([], 'no /no/such/python found'),
    ],
)
def test_wrong_use_ends_with_one_clear_message(arguments, message):
    done = run('setup_and_train.sh', *arguments)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--foo'], 'unknown option --foo'),
        ([], '--data-dir FOLDER is missing'),
        (['--data-dir'], '--data-dir needs a value'),
        (['--data-dir', 'x', '--size=sample'], '--size sample: must be minimal, standard or full'),
        (['--data-dir', 'x', '--long-seconds', '-1'], '--long-seconds -1: needs a whole number'),
        (['--data-dir', 'x', '--vocab-size=0'], '--vocab-size 0: needs a whole number above 0'),
        (['--data-dir', 'x', '--seed', 'any'], '--seed any: needs a whole number'),
        (['--data-dir', 'x', 'trainer.max_steps=2'], 'no /no/such/python found'),
    ],
)
def test_librispeech_script_is_as_clear(arguments, message):
    done = run('train_librispeech.sh', *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_unknown_options_come_with_the_list():
    done = run('setup_and_train.sh', '--nope')
    options = re.findall(r'^  (?:-h, )?(--[a-z-]+)', run('setup_and_train.sh', '--help').stdout, re.M)
    assert len(options) == 11
    assert all(option in done.stderr for option in options)


def test_the_sample_needs_no_download():
    done = run('setup_and_train.sh', '--download-only')
    assert done.returncode == 0 and 'nothing to download' in done.stdout


def test_options_are_listed_with_every_recipe():
    done = run('show_options.sh')
    assert done.returncode == 0, done.stderr
    for config in (REPOSITORY / 'examples' / 'asr' / 'conf' / 'lact').glob('*.yaml'):
        assert config.stem in done.stdout
    for name in ('--init-from', 'TORCH_SPEC', 'SKIP_INSTALL', 'model.optim.lr'):
        assert name in done.stdout


def test_skip_install_says_what_is_missing():
    python = shutil.which('python3', path='/usr/bin:/bin')
    if python is None:
        pytest.skip('no system Python')
    done = run('run_tests.sh', '--version', PYTHON=python, SKIP_INSTALL='1', PYTHONNOUSERSITE='1')
    if done.returncode != 0:  # 0: this system has all that is needed, and pytest printed its version
        assert done.returncode == 2
        assert re.search(r'has no torch|needs Python 3\.10', done.stderr)


def test_scripts_pass_shellcheck():
    if not shutil.which('shellcheck'):
        pytest.skip('no shellcheck')
    done = subprocess.run(
        ['shellcheck', '-x', *map(str, sorted(SCRIPTS.glob('*.sh')))], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def train_sample(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import train_sample

    return train_sample


SCRATCH = ('--config-name', 'lact_ctc_char_sample')


def parsed(train_sample, monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['train_sample.py', *arguments])
    args = train_sample.parse_arguments()
    return train_sample.hydra_overrides(args)


def test_paths_with_odd_characters_reach_the_config(train_sample, monkeypatch, tmp_path):
    from nemo_lact.training import compose

    folder = tmp_path / "it's = a, {folder} of mine"
    overrides = parsed(train_sample, monkeypatch, '--output-dir', str(folder), '--data-dir', str(folder))
    cfg = compose(train_sample.DEFAULT_CONFIG, overrides)
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=False)
    assert plain['model']['train_ds']['manifest_filepath'] == str(folder / 'train.json')
    assert plain['exp_manager']['explicit_log_dir'] == str(folder / 'training')


def test_fine_tuning_starts_from_the_starter_model(train_sample, monkeypatch, tmp_path):
    from nemo_lact import starter
    from nemo_lact.training import compose

    def start(*arguments):
        overrides = parsed(train_sample, monkeypatch, '--output-dir', str(tmp_path), *arguments)
        return compose(train_sample.parse_arguments().config_name, overrides).get('init_from_nemo_model')

    other = tmp_path / 'other.nemo'
    assert start() == start('--init-from', 'starter') == str(starter.FILE)
    assert start('--init-from', str(other)) == start(*SCRATCH, '--init-from', str(other)) == str(other)
    assert start(*SCRATCH) is None


def test_the_users_overrides_have_the_last_word(train_sample, monkeypatch):
    from nemo_lact.training import compose

    overrides = parsed(train_sample, monkeypatch, '--epochs', '7', '--batch-size', '3', 'trainer.max_epochs=9')
    cfg = compose(train_sample.DEFAULT_CONFIG, overrides)
    assert (cfg.trainer.max_epochs, cfg.trainer.max_time, cfg.trainer.max_steps) == (9, None, -1)
    assert cfg.model.train_ds.batch_size == 3


def test_the_recipe_trains_on_rows_of_its_own_where_word_ends_are_known(train_sample, monkeypatch, tmp_path):
    from nemo_lact.training import compose

    options = (*SCRATCH, '--output-dir', str(tmp_path / 'run'), 'splice.rows=6', 'splice.share=0')
    monkeypatch.setattr(sys, 'argv', ['train_sample.py', *options])
    args = train_sample.parse_arguments()
    assert train_sample.splice(args)
    rows = (tmp_path / 'run' / 'speech' / 'train.json').read_text().splitlines()
    assert len(rows) == 6
    cfg = compose(args.config_name, train_sample.hydra_overrides(args, spliced=True))
    assert cfg.model.train_ds.manifest_filepath == str(tmp_path / 'run' / 'speech' / 'train.json')
    assert cfg.model.train_ds.augmentor is None


def test_the_texts_of_the_sample_language_model(train_sample, monkeypatch):
    from nemo_lact.training import compose

    def rows(split):
        return [json.loads(line)['text'] for line in (data / f'{split}.json').read_text().splitlines()]

    data = train_sample.REPOSITORY / 'data/asterisk_en'
    search = compose(train_sample.DEFAULT_CONFIG, parsed(train_sample, monkeypatch)).language_model
    texts = train_sample.texts_to_count(search, data)
    assert len(texts) == search.train_repeats * len(rows('train')) + 12_000 + 32_327
    held_out = {text for text in rows('dev') + rows('test') if len(text.split()) > 2}
    assert len(held_out) > 30 and not held_out & (set(texts) - set(rows('train')))
    assert train_sample.texts_to_count({}, data) == rows('train')
    one = {'train_repeats': 2, 'more_texts': 'data/telephone/texts.txt'}
    assert len(train_sample.texts_to_count(one, data)) == 2 * len(rows('train')) + 12_000


@pytest.mark.parametrize(
    'options', [[*SCRATCH, 'splice.rows=0'], ['--data-dir', '.'], ['~splice']], ids=['rows 0', 'no word ends', 'none']
)
def test_the_prompts_as_they_are(train_sample, monkeypatch, tmp_path, options):
    monkeypatch.setattr(sys, 'argv', ['train_sample.py', '--output-dir', str(tmp_path), *options])
    assert not train_sample.splice(train_sample.parse_arguments())
    assert not list(tmp_path.iterdir())


def test_blend_is_between_the_two_models(tmp_path):
    import torch
    from small_models import build

    from nemo_lact.blending import blend
    from nemo_lact.transcription import load_model

    sizes = dict(feat_in=16, d_model=32, n_layers=1, n_heads=2, num_lact_heads=2)
    options = sizes | dict(conv_kernel_size=5, conv_norm_type='batch_norm')
    files = [tmp_path / name for name in ('first.nemo', 'tuned.nemo', 'blend.nemo')]
    weights = []
    for seed, file in enumerate(files[:2]):
        torch.manual_seed(seed)
        model = build(options)
        model.encoder.layers[0].conv.batch_norm.running_mean.fill_(seed)
        model.save_to(str(file))
        weights.append(model.state_dict())
    blend(files[1], str(files[0]), 0.25, files[2])
    found = load_model(files[2], 'cpu').state_dict()
    assert found.keys() == weights[1].keys()
    for name, weight in found.items():
        if weight.is_floating_point():
            assert torch.allclose(weight, 0.75 * weights[0][name] + 0.25 * weights[1][name], atol=1e-6), name
    assert (found['encoder.layers.0.conv.batch_norm.running_mean'] == 0.25).all()
    qkv = 'encoder.layers.0.mixer.qkv.weight'
    assert not torch.equal(weights[0][qkv], weights[1][qkv])
    for share in (0, 1.5):
        with pytest.raises(ValueError, match=f'blend={share}'):
            blend(files[1], files[0], share, files[2])
    build(options | dict(d_model=16)).save_to(str(files[2]))
    with pytest.raises(ValueError, match='has not the weights of'):
        blend(files[1], files[2], 0.5, files[2])


@pytest.mark.parametrize('share', ['0', 'half'])
def test_a_wrong_blend_stops_before_the_training(train_sample, monkeypatch, tmp_path, share):
    options = ['--output-dir', str(tmp_path), 'splice.rows=0', f'blend={share}']
    monkeypatch.setattr(sys, 'argv', ['train_sample.py', *options])
    with pytest.raises(ValueError, match=f'blend={share}; give the share'):
        train_sample.main(train_sample.parse_arguments())
    assert not list(tmp_path.iterdir())
