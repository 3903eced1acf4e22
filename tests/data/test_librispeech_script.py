"""scripts/train_librispeech.sh on a miniature tree: manifests, tokenizer, long rows, training, report, and resuming."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mini import read_rows

SCRIPTS = Path(__file__).parents[2] / 'scripts'
TINY = [
    'model.encoder.d_model=16',
    'model.encoder.n_layers=1',
    'model.encoder.lact_layers=null',
    'model.interctc.apply_at_layers=[0]',
    'model.encoder.n_heads=2',
    'model.encoder.num_lact_heads=2',
    'model.encoder.subsampling_conv_channels=4',
    'model.encoder.use_muon=false',
    'model.encoder.att_context_size=[8,8]',
    'model.encoder.lact_chunk_size=8',
    'model.log_prediction=false',
    'model.optim.sched.warmup_steps=1',
    *(f'model.{part}.{key}' for part in ('train_ds', 'validation_ds') for key in ('num_workers=0', 'pin_memory=false')),
    'trainer.accelerator=cpu',
    'trainer.limit_train_batches=2',
    'model.train_ds.shuffle_buffer_size=20',
    'model.train_ds.bucket_buffer_size=20',
]

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir() or not shutil.which('bash'), reason='needs a checkout and bash')


def train(corpus, output, steps):
    command = ['bash', SCRIPTS / 'train_librispeech.sh', '--data-dir', corpus, '--skip-download', '--vocab-size', '30']
    command += ['--long-seconds', '6', '--output-dir', output, *TINY, f'trainer.max_steps={steps}']
    environment = {**os.environ, 'PYTHON': sys.executable, 'SKIP_INSTALL': '1', 'VIRTUAL_ENV': ''}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_from_a_tree_to_a_report_and_on_from_there(librispeech, tmp_path):
    output = tmp_path / 'run'
    first = train(librispeech, output, steps=2)
    manifests = librispeech / 'manifests-minimal'
    assert {'train.json', 'dev.json', 'test.json', 'train_long_6.jsonl.gz'} <= {p.name for p in manifests.iterdir()}
    tokenizer = manifests / 'tokenizer_spe_bpe_v30' / 'tokenizer.model'
    assert tokenizer.is_file()
    assert (output / 'model.nemo').is_file() and 'Word error rate' in (output / 'report.md').read_text()
    assert len(read_rows(output / 'test_transcripts.json')) == 2
    assert re.search(r'step +2 .* memory updates \d', first), first

    made = {path: path.stat().st_mtime_ns for path in (tokenizer, manifests / 'dev-clean.json')}
    again = train(librispeech, output, steps=6)
    assert {path: path.stat().st_mtime_ns for path in made} == made, 'done work was done again'
    steps = [int(step) for step in re.findall(r'step +(\d+) ', again)]
    assert steps and 2 < min(steps) <= 6, 'it did not go on from step 2'
