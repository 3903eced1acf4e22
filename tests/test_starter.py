"""The starter model: the released file, which NeMo restores, knows the bundled voice and can be fine-tuned."""

import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from typer.testing import CliRunner

from nemo_lact import evaluation, starter, training, transcription
from nemo_lact.cli import app

DATA = Path(__file__).parents[1] / 'data/asterisk_en'
DATASETS = ('model.train_ds', 'model.validation_ds')


@pytest.fixture(scope='module')
def model():
    from nemo.collections.asr.models import ASRModel, EncDecCTCModelBPE

    model = ASRModel.restore_from(str(starter.FILE), map_location='cpu')
    assert type(model) is EncDecCTCModelBPE
    return model.eval()


@pytest.fixture
def few(tmp_path):
    """A manifest of eight bundled prompts."""
    rows = [json.loads(line) for line in (DATA / 'test.json').read_text().splitlines()[:8]]
    path = tmp_path / 'few.json'
    lines = [json.dumps(row | {'audio_filepath': str(DATA / row['audio_filepath'])}) for row in rows]
    path.write_text('\n'.join(lines) + '\n')
    return path


def overrides(manifest, *more):
    given = [f'{part}.{key}' for part in DATASETS for key in (f'manifest_filepath={manifest}', 'num_workers=0')]
    quick = ['trainer.max_steps=2', 'trainer.devices=1', 'trainer.enable_progress_bar=false', 'model.optim.lr=1e-4']
    return [*given, *quick, 'model.optim.sched.warmup_steps=1', 'model.train_ds.batch_size=2', *more]


def test_file_is_the_released_one():
    assert starter.intact()
    assert starter.FILE.stat().st_size < 40e6
    with tarfile.open(starter.FILE) as tar:
        config = OmegaConf.create(tar.extractfile('./model_config.yaml').read().decode())
    folders = [str(value) for value in OmegaConf.to_container(config.tokenizer).values()]
    assert not any(value.startswith('/') for value in folders)


def test_knows_the_bundled_voice(model):
    rows = transcription.transcribe(model, transcription.collect([DATA / 'test.json']), 16, progress=False)
    rates, _ = evaluation.score(rows)
    assert rates['rows_scored'] == 50
    assert rates['wer'] < 0.20 and rates['cer'] < 0.08  # 16.9% and 6.2% (docs/starter.md)


def test_another_retention_goes_into_the_file_and_counts_from_the_second_chunk(tmp_path):
    from nemo.collections.asr.models import ASRModel
    from omegaconf import open_dict

    model = ASRModel.restore_from(str(starter.FILE), map_location='cpu').eval()
    assert model.encoder.config.lact_retention == 0.8
    chunk = model.encoder.config.lact_chunk_size * 8  # feature frames
    signal = torch.randn(1, 80, chunk + 400)
    with torch.inference_mode():
        before = model.encoder(audio_signal=signal, length=torch.tensor([signal.size(2)]))[0]
    with open_dict(model.cfg):
        model.cfg.encoder.lact_retention = model.encoder.config.lact_retention = 0.1
    model.save_to(str(tmp_path / 'forgetting.nemo'))
    other = ASRModel.restore_from(str(tmp_path / 'forgetting.nemo'), map_location='cpu').eval()
    assert other.encoder.config.lact_retention == 0.1
    with torch.inference_mode():
        after = other.encoder(audio_signal=signal, length=torch.tensor([signal.size(2)]))[0]
        given = dict(audio_signal=signal[..., :chunk], length=torch.tensor([chunk]))
        model.encoder.config.lact_retention = 0.8
        assert torch.equal(model.encoder(**given)[0], other.encoder(**given)[0])
    assert (before - after).abs().max() > 1e-3


def test_name_stands_for_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert starter.resolve('starter') == starter.FILE
    assert starter.resolve('other.nemo') == Path('other.nemo')
    monkeypatch.setattr(starter, 'FILE', tmp_path / 'gone.nemo')
    with pytest.raises(FileNotFoundError, match='gone.nemo: reinstall'):
        starter.resolve('starter')
    Path('starter').touch()  # a file of that name has the last word
    assert starter.resolve('starter') == Path('starter')


def test_transcribe_without_a_model():
    done = CliRunner().invoke(app, ['transcribe', str(DATA / json.loads(
        (DATA / 'test.json').read_text().splitlines()[0])['audio_filepath'])])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert starter.NOTICE in done.stderr
    assert done.stdout.strip() and done.stdout.isascii()


def test_fine_tuning_starts_from_its_weights(model, few, tmp_path):
    given = overrides(few, 'init_from_nemo_model=starter', f'++exp_manager.explicit_log_dir={tmp_path / "run"}')
    cfg = training.check(training.compose('lact_finetune', given), given)
    assert cfg.init_from_nemo_model == str(starter.FILE)
    (path, *_) = training.train(cfg)
    tuned = transcription.load_model(path, 'cpu')
    assert tuned.tokenizer.vocab_size == model.tokenizer.vocab_size
    moved = {name: (p - dict(model.named_parameters())[name]).abs().max() for name, p in tuned.named_parameters()}
    assert 0 < max(moved.values()) < 1e-3  # two steps of 1e-4
    assert tuned.encoder.adaptation


def test_fine_tuning_with_a_memory_that_does_not_learn(few, tmp_path):
    log = f'++exp_manager.explicit_log_dir={tmp_path / "run"}'
    given = overrides(few, 'init_from_nemo_model=starter', log, 'adaptation=false', 'trainer.max_steps=1')
    (path, *_) = training.train(training.check(training.compose('lact_finetune', given), given))
    assert not transcription.load_model(path, 'cpu').encoder.adaptation


def test_only_an_encoder_with_a_memory_has_adaptation():
    with pytest.raises(training.ConfigError, match='adaptation=False: Identity has no memory'):
        training._let_learn(SimpleNamespace(encoder=torch.nn.Identity()), False)


def test_wrong_fine_tuning_configs(few, tmp_path):
    def problem(*more, match):
        given = overrides(few, *more)
        with pytest.raises(training.ConfigError, match=match):
            training.check(training.compose('lact_finetune', given), given)

    problem(match='init_from_nemo_model=...')
    problem('init_from_nemo_model=null', match='no model.encoder and no init_from_nemo_model')
    start = 'init_from_nemo_model=starter'
    problem(start, 'model.tokenizer.update_tokenizer=true', match='update_tokenizer needs model.tokenizer.dir')
    problem(start, 'model.char_labels.update_labels=true', match='needs model.char_labels.labels')
    both = ('model.tokenizer.update_tokenizer=true', 'model.char_labels.update_labels=true')
    problem(start, *both, match='exclude each other')
    problem(start, 'adaptation=maybe', match='adaptation=maybe: true, false, or null')
    with pytest.raises(training.ConfigError, match='is for fine-tuning'):
        given = overrides(few, '+adaptation=false', f'model.tokenizer.dir={tmp_path}')
        training.check(training.compose('lact_ctc_bpe', given), given)


def test_texts_are_held_against_its_subwords(few):
    row = json.loads(few.read_text().splitlines()[0])
    few.write_text(json.dumps(row | {'text': 'zq ' * 300}) + '\n')
    # the training set alone: what is wrong with a validation set does not stop a training
    given = overrides(few, 'init_from_nemo_model=starter', f'model.validation_ds.manifest_filepath={DATA}/dev.json')
    with pytest.raises(ValueError, match='can be learned from'):
        training.check(training.compose('lact_finetune', given), given)


def test_half_precision_weights_become_float(model):
    assert {p.dtype for p in model.parameters()} == {torch.float32}
