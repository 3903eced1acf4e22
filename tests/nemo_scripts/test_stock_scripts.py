"""NeMo's own scripts against this package: `NEMO_DIR=<NeMo checkout> pytest -m stock -s`. Takes minutes."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("run_stock_scripts.py")


def installed() -> bool:
    try:
        return bool(importlib.metadata.version("nemo-lact"))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.stock
@pytest.mark.slow
@pytest.mark.skipif("NEMO_DIR" not in os.environ, reason="set NEMO_DIR to a checkout of the installed NeMo's version")
@pytest.mark.skipif(not installed(), reason="install nemo_lact: the scripts must find it alone")
def test_stock_scripts(tmp_path):
    command = [sys.executable, str(HARNESS), "--nemo", os.environ["NEMO_DIR"], "--workdir", str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"\n{done.stdout}"


def test_wrong_checkout_is_named(tmp_path):
    command = [sys.executable, str(HARNESS), "--nemo", str(tmp_path), "--workdir", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "give the root of a NeMo checkout" in done.stderr
