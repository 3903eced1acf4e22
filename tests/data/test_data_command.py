"""`nemo-lact data` as a command: quick to start, and stopped downloads."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

PROGRAM = [sys.executable, '-c', 'from nemo_lact.cli import app; app(prog_name="nemo-lact")']


def test_help_imports_nothing_heavy():
    code = (
        'import sys\nfrom typer.testing import CliRunner\nfrom nemo_lact.cli import app\n'
        "names = 'librispeech commonvoice generic synthetic text tokenizer longform conditions check'.split()\n"
        "assert CliRunner().invoke(app, ['data', '--help']).exit_code == 0\n"
        "assert all(CliRunner().invoke(app, ['data', name, '--help']).exit_code == 0 for name in names)\n"
        "print([m for m in ('torch', 'nemo', 'lhotse', 'numpy', 'scipy', 'soundfile') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


@pytest.mark.skipif(os.name != 'posix', reason='signals')
def test_a_stopped_download_ends_soon_and_is_kept(server, tmp_path):
    server.files['/dev-clean.tar.gz'] = np.random.default_rng(0).bytes(8 << 20)
    server.slow = 0.2  # seconds per half MiB
    command = [*PROGRAM, 'data', 'librispeech', '--data-dir', str(tmp_path), '--subset', 'dev-clean']
    process = subprocess.Popen(
        [*command, '--mirror', server.url],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    part = tmp_path / 'dev-clean.tar.gz.part'
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode != 0 and 'Traceback' not in errors, errors
    assert 0 < part.stat().st_size < 8 << 20
