"""Registration with NeMo's target guard and with Hydra. Each case runs in a fresh interpreter."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import nemo_lact

ROOT = Path(nemo_lact.__file__).resolve().parent.parent
GUARD = "nemo.core.classes.common"


def run(code: str, folder: Path, *args: str, **env: str) -> str:
    """Runs `code` as a script in `folder`, with this checkout importable; returns stdout, fails on an error."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), **env}
    done = subprocess.run([sys.executable, script, *args], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def stub_nemo(tmp_path) -> Path:
    """A folder with a stub `nemo.core.classes.common`, so that the order of imports is tested without NeMo's 10 s."""
    package = tmp_path / "nemo" / "core" / "classes"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parent.parent):
        (folder / "__init__.py").touch()
    (package / "common.py").write_text("ALLOWED_TARGET_PREFIXES = ['nemo.collections.']\n")
    return tmp_path


def test_import_is_light(tmp_path):
    heavy = run(
        """
        import sys, nemo_lact
        print([m for m in ("torch", "nemo", "hydra", "omegaconf", "lightning", "numpy") if m in sys.modules])
        """,
        tmp_path,
    )
    assert heavy.strip() == "[]"


def test_unknown_attribute_is_named():
    with pytest.raises(AttributeError, match="'nemo_lact' has no attribute 'LaCTDecoder'"):
        _ = nemo_lact.LaCTDecoder
    assert {"LaCTEncoder", "LaCTEncoderConfig", "LaCTState", "register"} <= set(dir(nemo_lact))


@pytest.mark.parametrize(
    "imports",
    [
        f"import nemo_lact; import {GUARD}",
        f"import {GUARD}; import nemo_lact",
        f"import nemo_lact; import {GUARD}; nemo_lact.register(); nemo_lact.register()",
        f"import nemo_lact; nemo_lact.register(); import {GUARD}; import importlib; importlib.reload(nemo_lact)",
        f"import nemo_lact; import {GUARD}; import importlib; importlib.reload({GUARD})",
    ],
    ids=["before", "after", "twice", "reloaded", "nemo-reloaded"],
)
def test_registered_once_in_any_import_order(stub_nemo, imports):
    out = run(f"{imports}\nprint({GUARD}.ALLOWED_TARGET_PREFIXES)", stub_nemo)
    assert out.strip() == "['nemo.collections.', 'nemo_lact.']"


def test_nemo_module_keeps_its_source(stub_nemo):
    out = run(f"import nemo_lact, inspect, {GUARD} as m; print(inspect.getsource(m)); print(m.__loader__)", stub_nemo)
    assert "ALLOWED_TARGET_PREFIXES =" in out and "SourceFileLoader" in out


@pytest.mark.parametrize("imports", [f"import nemo_lact, {GUARD}", f"import {GUARD}, nemo_lact"])
@pytest.mark.parametrize("guard", ["ALLOWED_TARGET_PREFIXES = ('nemo.',)", "pass"], ids=["tuple", "absent"])
def test_unknown_guard_warns_and_does_not_raise(stub_nemo, guard, imports):
    (stub_nemo / "nemo" / "core" / "classes" / "common.py").write_text(guard + "\n")
    out = run(f"import sys; sys.stderr = sys.stdout; {imports}; print('still alive')", stub_nemo)
    assert "not a list: this NeMo may refuse nemo_lact's classes" in out and "still alive" in out


def test_error_inside_nemo_is_nemos_own(stub_nemo):
    (stub_nemo / "nemo" / "core" / "classes" / "common.py").write_text("raise RuntimeError('from NeMo')\n")
    code = f"""
        import nemo_lact
        for _ in range(2):
            try:
                import {GUARD}
            except RuntimeError as error:
                print(error)
        """
    assert run(code, stub_nemo).split("\n")[:2] == ["from NeMo", "from NeMo"]


def test_absent_nemo_is_still_an_import_error(tmp_path):
    code = f"""
        import nemo_lact
        try:
            import {GUARD}
        except ModuleNotFoundError as error:
            print(error)
        """
    (tmp_path / "nemo" / "core" / "classes").mkdir(parents=True)  # namespace packages without the guard module
    for folder in ("nemo", "nemo/core", "nemo/core/classes"):
        (tmp_path / folder / "__init__.py").touch()
    assert run(code, tmp_path).strip() == f"No module named '{GUARD}'"


HYDRA_APP = """
    import hydra

    @hydra.main(version_base=None, config_path="conf", config_name="own")
    def main(cfg):
        import sys
        print("source", cfg.source, "registered", "nemo_lact" in sys.modules)

    main()
    """


@pytest.fixture
def hydra_app(tmp_path) -> Path:
    """A Hydra app with its own conf/own.yaml, beside a copy of our plugin whose YAML folder has three configs."""
    for folder, names in {"conf": ["own", "lact_both"], "ours": ["own", "lact_both", "lact_x"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.yaml").write_text(f"source: {folder}\nhydra: {{run: {{dir: .}}}}\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import nemo_lact.registration as r, pathlib\n"
        f"r.config_dir = lambda: pathlib.Path({str(tmp_path / 'ours')!r})\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "args, source",
    [([], "conf"), (["--config-name=lact_x"], "ours"), (["--config-name=lact_both"], "conf")],
    ids=["default", "ours-without-config-path", "app-wins"],
)
def test_hydra_finds_our_configs_after_the_apps_own(hydra_app, args, source):
    out = run(HYDRA_APP, hydra_app, *args)
    assert out.strip() == f"source {source} registered True"


def test_hydra_app_survives_a_broken_installation(hydra_app):
    (hydra_app / "sitecustomize.py").write_text(
        "import nemo_lact.registration as r\ndef broken(): raise FileNotFoundError\nr.config_dir = broken\n"
    )
    assert "source conf" in run(HYDRA_APP, hydra_app)


def test_config_dir_has_yamls_or_says_what_to_do(monkeypatch, tmp_path):
    from nemo_lact import registration

    monkeypatch.setattr(registration, "__file__", str(tmp_path / "nemo_lact" / "registration.py"))
    with pytest.raises(FileNotFoundError, match="reinstall nemo-lact"):
        registration.config_dir()
    (tmp_path / "examples" / "asr" / "conf" / "lact").mkdir(parents=True)
    assert registration.config_dir() == tmp_path / "examples" / "asr" / "conf" / "lact"
    (tmp_path / "nemo_lact" / "conf").mkdir(parents=True)
    assert registration.config_dir() == tmp_path / "nemo_lact" / "conf"


@pytest.mark.slow
def test_real_nemo_builds_our_class_only_once_we_are_registered(tmp_path):
    """And the error NeMo gives where this package is not installed names the class, as the README says."""
    (tmp_path / "stand_in.py").write_text("import torch\nclass Encoder(torch.nn.Module): pass\n")
    code = """
        from nemo.core.classes.common import Serialization, _is_target_allowed
        from omegaconf import OmegaConf

        try:
            Serialization.from_config_dict(OmegaConf.create({"_target_": "nemo_lact.modules.LaCTEncoder"}))
        except ValueError as error:
            print(error)

        import nemo_lact, stand_in, sys

        sys.modules["nemo_lact.stand_in"] = nemo_lact.stand_in = stand_in
        print("allowed", _is_target_allowed("nemo_lact.stand_in.Encoder"), _is_target_allowed("nemo_lact.register"))
        """
    out = run(code, tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert "'nemo_lact.modules.LaCTEncoder' is blocked" in out
    assert "allowed True False" in out
