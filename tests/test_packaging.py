"""`pip install .`, `pip install -e .` and sdist -> wheel, each into its own environment, must give the same package."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import nemo_lact

ROOT = Path(nemo_lact.__file__).resolve().parent.parent
YAML = "lact_placeholder_for_the_packaging_test"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="runs in a checkout, not in an installed package"),
]

CHECK = """
import sys, torch                                    # as a script which knows nothing of this package
assert "nemo_lact.registration" in sys.modules, "the torch.backends entry point is not installed"
assert not [name for name in sys.modules if name.split(".")[0] in ("nemo", "hydra")]
import importlib.metadata, nemo_lact
print("version", importlib.metadata.version("nemo-lact"), nemo_lact.__version__)
print("conf", nemo_lact.config_dir())
from nemo_lact import starter
assert starter.intact(), "the starter model is not installed as it was released"
from hydra import compose, initialize_config_dir
with initialize_config_dir(sys.argv[1], version_base=None):
    print("hydra", compose(sys.argv[2]).found)
"""


def run(*command, **env) -> str:
    keep = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TORCH_DEVICE_BACKEND_AUTOLOAD")}
    command = [str(part) for part in command]
    # From the root folder: the checkout in the current directory would be importable and hide a missing file.
    done = subprocess.run(command, env={**keep, **env}, cwd=Path(ROOT.anchor), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def pip(*args, python=sys.executable) -> str:
    return run(sys.executable, "-m", "pip", f"--python={python}", "--disable-pip-version-check", *args)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the files the package is built from, with one more YAML, so that the checkout stays clean."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"building needs setuptools >=77, here is {setuptools.__version__}")
    copy = tmp_path_factory.mktemp("source")
    for name in ("nemo_lact", "hydra_plugins", "examples"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    conf = copy / "examples" / "asr" / "conf" / "lact"
    conf.mkdir(parents=True, exist_ok=True)
    (conf / f"{YAML}.yaml").write_text("found: true\n")
    return copy


@pytest.fixture
def python(tmp_path) -> Path:
    """The interpreter of a new environment which sees this one's packages behind its own."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    scheme = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    site = Path(sysconfig.get_path("purelib", "venv", scheme))
    (site / "zz_host.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Path(sysconfig.get_path("scripts", "venv", scheme)) / Path(sys.executable).name


def check_installed(python: Path, tmp_path: Path, conf: str) -> None:
    empty = tmp_path / "app_conf"
    empty.mkdir()
    out = run(python, "-c", CHECK, empty, YAML)
    assert f"version {nemo_lact.__version__} {nemo_lact.__version__}" in out
    assert "hydra True" in out
    assert out.split("conf ")[1].splitlines()[0].endswith(conf.replace("/", os.sep))


def build(source: Path, kind: str, out: Path) -> Path:
    """kind: 'wheel' or 'sdist'; through the build hooks that pip itself calls."""
    code = f"import setuptools.build_meta as b; print('built', b.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.rsplit("built ", 1)[1].strip()


def test_wheel(source, python, tmp_path):
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={tmp_path}", source)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"nemo_lact", "hydra_plugins"}
    assert "hydra_plugins/__init__.py" not in names  # it would hide every other Hydra plugin
    configs = {path.name for path in (source / "examples/asr/conf/lact").glob("*.yaml")}
    assert {Path(name).name for name in names if name.startswith("nemo_lact/conf/")} == configs
    modules = {p.relative_to(source).as_posix() for p in (source / "nemo_lact").rglob("*.py")}
    assert modules == {name for name in names if name.startswith("nemo_lact/") and name.endswith(".py")}

    pip("install", "--no-deps", "--no-index", wheel, python=python)
    check_installed(python, tmp_path, "nemo_lact/conf")


def test_sdist_to_wheel(source, python, tmp_path):
    sdist = build(source, "sdist", tmp_path)
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", sdist, python=python)
    check_installed(python, tmp_path, "nemo_lact/conf")


def test_editable(source, python, tmp_path):
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", source, python=python)
    check_installed(python, tmp_path, "examples/asr/conf/lact")
    added = source / "examples/asr/conf/lact/lact_added_after_installation.yaml"
    added.write_text("found: true\n")
    run(python, "-c", CHECK, tmp_path / "app_conf", added.stem)


def test_wheel_without_configs_is_refused(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy", ignore=shutil.ignore_patterns("*.yaml", "build", "*.egg-info"))
    with pytest.raises(AssertionError, match="a wheel without configs would be of no use"):
        build(copy, "wheel", tmp_path)


def test_uninstall_leaves_nothing_behind(source, python):
    """An entry point without its package would stop `import torch`."""
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", source, python=python)
    # This environment's own folder only: it also sees the packages of the one that runs the tests.
    look = (
        "import importlib.metadata as m, os, sysconfig; p = sysconfig.get_path('purelib');"
        "print([d.metadata['Name'] for d in m.distributions(path=[p])], [n for n in os.listdir(p) if 'lact' in n])"
    )
    assert "nemo-lact" in run(python, "-c", look)
    pip("uninstall", "--yes", "nemo-lact", python=python)
    assert run(python, "-c", look).strip() == "[] []"
