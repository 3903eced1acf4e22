"""Ways to feed training, each run for some steps with the YAML: mixtures, tarred, Shar, buckets, two processes."""

import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from mini import RATE, read_rows, run, write_rows

from nemo_lact.training_log import MemoryLog, infeasible, memory_updates

SPEECH = Path(__file__).parents[2] / 'data' / 'asterisk_en'
CHUNK = 64  # encoder frames of 40 ms: 2.6 s
TINY = [
    'model.encoder.d_model=16',
    'model.encoder.n_layers=1',
    'model.encoder.lact_layers=null',
    'model.interctc.apply_at_layers=[0]',
    'model.encoder.n_heads=2',
    'model.encoder.num_lact_heads=2',
    'model.encoder.subsampling_conv_channels=4',
    'model.encoder.use_muon=false',
    'model.encoder.att_context_size=[16,16]',
    f'model.encoder.lact_chunk_size={CHUNK}',
    'model.train_ds.num_workers=0',
    'model.train_ds.pin_memory=false',
    'model.log_prediction=false',
    '~model.validation_ds',
    'model.optim.sched.warmup_steps=5',
    'trainer.accelerator=cpu',
    'trainer.enable_progress_bar=false',
    'trainer.log_every_n_steps=1',
    '++exp_manager=null',
]
LHOTSE = [
    'model.train_ds.use_lhotse=true',
    'model.train_ds.max_duration=60',
    'model.train_ds.shuffle_buffer_size=50',
    'model.train_ds.bucket_buffer_size=50',
    '++model.train_ds.shard_seed=0',
]


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """short.json: the first 60 prompts of the sample speech; long.jsonl.gz: the same joined to rows of up to 25 s."""
    if not SPEECH.is_dir():
        pytest.skip('needs a checkout')
    import nemo.core.config  # noqa: F401  before the first CliRunner, so that NeMo's log does not hold its streams

    folder = tmp_path_factory.mktemp('data')
    rows = [row for row in read_rows(SPEECH / 'train.json') if row['duration'] < 12][:60]
    for row in rows:
        row['audio_filepath'] = str(SPEECH / row['audio_filepath'])
    write_rows(folder / 'short.json', rows)
    run('data', 'longform', folder / 'short.json', '-o', folder / 'long.jsonl.gz', '--seconds', 25)
    return folder


class Steps(__import__('lightning.pytorch', fromlist=['Callback']).Callback):
    """What each step saw."""

    def __init__(self):
        self.losses, self.updates, self.audio = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        metrics = trainer.callback_metrics
        self.losses.append(float(outputs['loss']))
        self.updates.append(float(metrics['memory_updates_per_utterance']))
        self.audio.append((batch[1] / RATE).tolist())


def train(*overrides, steps=3):
    """Train with the repository's YAML, made tiny; gives the callback with what the steps saw."""
    from nemo_lact import training

    overrides = [*TINY, f'trainer.max_steps={steps}', *overrides]
    cfg = training.check(training.compose('lact_ctc_char', overrides), overrides)
    seen = Steps()
    training.train(cfg, callbacks=[seen])
    assert len(seen.losses) == steps and all(0 < loss < 1e4 for loss in seen.losses)
    return seen


def mixture(data):
    parts = [
        f'{{type: nemo, manifest_filepath: {data / "short.json"}, weight: 0.3}}',
        f'{{type: lhotse, cuts_path: {data / "long.jsonl.gz"}, weight: 0.7}}',
    ]
    return ['model.train_ds.manifest_filepath=null', f'model.train_ds.input_cfg=[{",".join(parts)}]']


def test_fifty_steps_on_a_mixture_use_the_memory(data, tmp_path):
    seen = train(
        *mixture(data),
        *LHOTSE,
        'model.train_ds.use_bucketing=true',
        'model.train_ds.num_buckets=3',
        'model.train_ds.batch_duration=40',
        'model.train_ds.batch_size=8',
        f'++exp_manager={{explicit_log_dir: {tmp_path}, create_checkpoint_callback: false}}',
        steps=50,
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(tmp_path)).Reload()
    updates = [event.value for event in log.Scalars('memory_updates_per_utterance')]
    assert len(updates) == 50 and updates == pytest.approx(seen.updates)
    assert sum(updates) / 50 > 1 and max(updates) > 5, 'no row had several chunks'
    assert min(event.value for event in log.Scalars('memory_updates_least')) == 1
    assert all(0 <= event.value < 1 for event in log.Scalars('ctc_infeasible_share'))
    lengths = [length for batch in seen.audio for length in batch]
    assert any(length < 5 for length in lengths) and any(length > 15 for length in lengths), 'no mixture'
    for batch in seen.audio:  # buckets: like lengths together, and no more than 40 s
        assert sum(batch) <= 40 + max(batch) and len(batch) <= 8
    assert sum(seen.losses[-10:]) < sum(seen.losses[:10])


def test_plain_rows(data):
    assert train(f'model.train_ds.manifest_filepath={data / "short.json"}').updates


@pytest.mark.parametrize('use_lhotse', [False, True], ids=['plain', 'lhotse'])
def test_a_seed_gives_the_same_training_again(data, use_lhotse):
    rows = [*mixture(data), *LHOTSE[:-1]] if use_lhotse else [f'model.train_ds.manifest_filepath={data / "short.json"}']
    first, again, other = (train(*rows, 'model.train_ds.batch_size=4', f'+seed={seed}', steps=2) for seed in (1, 1, 2))
    assert first.audio == again.audio and first.losses == pytest.approx(again.losses, rel=1e-4)
    assert first.audio != other.audio and first.losses != pytest.approx(other.losses, rel=1e-4)


def test_a_seed_is_a_number(data):
    from nemo_lact import training

    overrides = [*TINY, f'model.train_ds.manifest_filepath={data / "short.json"}', '+seed=-1']
    with pytest.raises(training.ConfigError, match='seed=-1: must be a whole number'):
        training.check(training.compose('lact_ctc_char', overrides), overrides)


def tar_as_nemo(data, folder, shards=2):
    """The layout of NeMo's convert_to_tarred_audio_dataset.py: audio_N.tar, sharded_manifests/manifest_N.json and
    tarred_audio_manifest.json."""
    (folder / 'sharded_manifests').mkdir(parents=True)
    everything = []
    for shard in range(shards):
        rows = []
        with tarfile.open(folder / f'audio_{shard}.tar', 'w') as tar:
            for row in read_rows(data / 'short.json')[shard::shards]:
                name = Path(row['audio_filepath']).name
                tar.add(row['audio_filepath'], name)
                rows.append({**row, 'audio_filepath': name, 'shard_id': shard})
        write_rows(folder / 'sharded_manifests' / f'manifest_{shard}.json', rows)
        everything += rows
    write_rows(folder / 'tarred_audio_manifest.json', everything)


@pytest.mark.parametrize('use_lhotse', [False, True])
def test_tarred(data, tmp_path, use_lhotse):
    tar_as_nemo(data, tmp_path)
    manifest = 'sharded_manifests/manifest__OP_0..1_CL_.json' if use_lhotse else 'tarred_audio_manifest.json'
    more = LHOTSE if use_lhotse else []
    train(
        'model.train_ds.is_tarred=true',
        f'model.train_ds.manifest_filepath={tmp_path / manifest}',
        f'model.train_ds.tarred_audio_filepaths={tmp_path}/audio__OP_0..1_CL_.tar',
        'model.train_ds.batch_size=4',
        'model.train_ds.shuffle_n=16',
        *more,
    )


@pytest.mark.stock
@pytest.mark.skipif('NEMO_DIR' not in os.environ, reason='NEMO_DIR is not set to a NeMo checkout')
@pytest.mark.parametrize('use_lhotse', [False, True])
def test_tarred_by_nemos_own_script(data, tmp_path, use_lhotse):
    pytest.importorskip('tabulate')
    script = Path(os.environ['NEMO_DIR']) / 'scripts' / 'speech_recognition' / 'convert_to_tarred_audio_dataset.py'
    options = ['--num_shards=2', '--max_duration=60', '--min_duration=0.1', '--shuffle', '--workers=1']
    paths = [f'--manifest_path={data / "short.json"}', f'--target_dir={tmp_path}']
    subprocess.run([sys.executable, str(script), *paths, *options], check=True, capture_output=True)
    manifest = 'sharded_manifests/manifest__OP_0..1_CL_.json' if use_lhotse else 'tarred_audio_manifest.json'
    train(
        'model.train_ds.is_tarred=true',
        f'model.train_ds.manifest_filepath={tmp_path / manifest}',
        f'model.train_ds.tarred_audio_filepaths={tmp_path}/audio__OP_0..1_CL_.tar',
        'model.train_ds.batch_size=4',
        *(LHOTSE if use_lhotse else []),
    )


def test_shar_of_long_rows(data, tmp_path):
    from lhotse import CutSet
    from nemo.collections.common.data.lhotse.nemo_adapters import LazyNeMoIterator

    # Shar packs recordings, so pieces of several files are joined first.
    joined = ['-o', tmp_path / 'long.json', '--seconds', 25, '--write-audio', tmp_path / 'audio']
    run('data', 'longform', data / 'short.json', *joined)
    (tmp_path / 'shar').mkdir()
    cuts = CutSet(LazyNeMoIterator(tmp_path / 'long.json'))
    cuts.to_eager().to_shar(tmp_path / 'shar', fields={'recording': 'flac'}, shard_size=3)
    options = ['model.train_ds.manifest_filepath=null', f'model.train_ds.shar_path={tmp_path / "shar"}', *LHOTSE]
    assert max(train(*options, 'model.train_ds.batch_size=2').updates) > 5


def test_settings_that_cannot_work_with_lhotse_are_refused(data):
    from nemo_lact import training

    def refused(*more):
        overrides = [*TINY, f'model.train_ds.manifest_filepath={data / "short.json"}', *LHOTSE, *more]
        with pytest.raises(training.ConfigError) as error:
            training.check(training.compose('lact_ctc_char', overrides), overrides)
        return str(error.value)

    assert 'trainer.max_steps=-1: data with use_lhotse has no end' in refused()
    assert 'limit_train_batches=0.5' in refused('trainer.max_steps=9', 'trainer.limit_train_batches=0.5')
    overrides = [*TINY, f'model.train_ds.manifest_filepath={data / "short.json"}', *LHOTSE, 'trainer.max_steps=9']
    cfg = training.check(training.compose('lact_ctc_char', overrides), overrides)
    assert (cfg.trainer.limit_train_batches, cfg.trainer.use_distributed_sampler) == (9, False)


SCRIPT = """
import json, os, sys
from nemo_lact import training
sys.path.insert(0, os.environ['TESTS'])
from test_training_data import Steps
overrides = json.loads(os.environ['OVERRIDES'])
seen = Steps()
cfg = training.check(training.compose('lact_ctc_char', overrides), overrides)
training.train(cfg, callbacks=[seen])
with open(os.environ['OUT'] + os.environ.get('LOCAL_RANK', '0'), 'w') as file:
    json.dump([seen.losses, seen.audio], file)
"""


def test_two_processes_see_different_rows(data, tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    overrides = [
        *TINY,
        *mixture(data),
        *LHOTSE,
        'model.train_ds.batch_size=3',
        'trainer.max_steps=4',
        'trainer.devices=2',
        'trainer.strategy=ddp',
        'trainer.sync_batchnorm=false',
    ]
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        'MASTER_PORT': str(port),
        'TESTS': str(Path(__file__).parent),
        'PYTHONPATH': str(root),
        'OVERRIDES': json.dumps(overrides),
        'OUT': str(tmp_path / 'rank'),
    }
    (tmp_path / 'train.py').write_text(SCRIPT)  # Lightning starts the second process with the same command
    done = subprocess.run(
        [sys.executable, str(tmp_path / 'train.py')], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (losses, first), (other_losses, second) = (json.loads((tmp_path / f'rank{i}').read_text()) for i in (0, 1))
    assert len(losses) == len(other_losses) == 4
    assert first != second, 'both processes saw the same rows'


# ---- the callback


def test_updates_and_infeasible_rows():
    assert memory_updates(torch.tensor([0, 1, 64, 65, 129]), 64).tolist() == [0, 1, 1, 2, 3]
    tokens = torch.tensor([[1, 1, 2, 0], [1, 2, 3, 4], [5, 5, 5, 5]])
    lengths = torch.tensor([3, 4, 2])
    assert infeasible(tokens, lengths, torch.tensor([4, 4, 3])).tolist() == [False, False, False]
    assert infeasible(tokens, lengths, torch.tensor([3, 3, 2])).tolist() == [True, True, True]


def test_other_encoders_are_logged_without_updates():
    from types import SimpleNamespace

    encoder = torch.nn.Linear(1, 1)
    log, logged = MemoryLog(), {}
    log.log_dict = lambda values, **_: logged.update(values)
    log.on_fit_start(None, SimpleNamespace(encoder=encoder))
    log._lengths = torch.tensor([3, 9])
    batch = (None, None, torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4]]), torch.tensor([4, 4]))
    log.on_train_batch_end(None, SimpleNamespace(encoder=encoder), None, batch, 0)
    assert logged == {'ctc_infeasible_share': torch.tensor(0.5)}
    log.on_fit_end(None, None)
    assert not encoder._forward_hooks
