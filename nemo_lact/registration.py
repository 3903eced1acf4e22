"""Make this package known to NeMo's target guard, without importing NeMo or torch.

NeMo instantiates a `_target_` only if it starts with a prefix in `nemo.core.classes.common.ALLOWED_TARGET_PREFIXES`.
Three doors lead to `register`, so that NeMo's own scripts and `ASRModel.restore_from` work unchanged:
`import nemo_lact`; the entry point of group `torch.backends`, which torch calls while it is imported; and the Hydra
plugin `hydra_plugins/nemo_lact_search_path.py`. The entry point is off under `TORCH_DEVICE_BACKEND_AUTOLOAD=0`: a
script which is not a Hydra script then needs `import nemo_lact`.
"""

import logging
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

GUARD_MODULE = "nemo.core.classes.common"
PREFIX = "nemo_lact."


def register() -> None:
    """Allow `_target_: nemo_lact...` in NeMo configs, now if NeMo is loaded, else as soon as it is.

    Safe to call often. Never raises: it runs inside `import torch` and inside every Hydra app. If NeMo's guard is not
    what we know, it logs a warning that says so.
    """
    if not any(isinstance(finder, _AfterNemoImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterNemoImport())
    module = sys.modules.get(GUARD_MODULE)
    if module is not None:
        _allow(module)


def config_dir() -> Path:
    """Folder of this package's YAMLs (`lact_*.yaml`): inside the package when installed from a wheel, else the
    checkout's `examples/asr/conf/lact`.

    Raises:
        FileNotFoundError: neither folder exists (a damaged installation).
    """
    package = Path(__file__).resolve().parent
    folders = [package / "conf", package.parent / "examples" / "asr" / "conf" / "lact"]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"nemo_lact's YAML configs are in neither {folders[0]} nor {folders[1]}: reinstall nemo-lact, "
        "or pass --config-path=<folder of your YAMLs> to the script."
    )


def _allow(module) -> None:
    prefixes = getattr(module, "ALLOWED_TARGET_PREFIXES", None)
    if not isinstance(prefixes, list):
        logging.getLogger("nemo_lact").warning(
            "%s.ALLOWED_TARGET_PREFIXES is %s, not a list: this NeMo may refuse nemo_lact's classes. "
            "nemo_lact supports nemo_toolkit >=2.7,<3.1.",
            GUARD_MODULE,
            type(prefixes).__name__,
        )
    elif PREFIX not in prefixes:
        prefixes.append(PREFIX)


class _AfterNemoImport(MetaPathFinder):
    """Finds nothing itself: asks the other finders for NeMo's guard module and adds a step after its import."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != GUARD_MODULE:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            _allow(module)

        # On the loader's instance, not as a new loader: `inspect` and tracebacks keep finding NeMo's source.
        spec.loader.exec_module = exec_module
        return spec
