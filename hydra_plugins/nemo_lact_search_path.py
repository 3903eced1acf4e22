"""Hydra plugin: `--config-name=lact_...` is found by any NeMo script, and the script may build our classes.

`hydra_plugins` is a namespace package shared with other plugins, so this folder has no `__init__.py`.
"""

import logging

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class NemoLactSearchPath(SearchPathPlugin):
    """Appends our YAML folder (after the app's own, which keep priority) and registers us with NeMo."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        # Hydra calls this in every app of the environment, NeMo's or not: an error of ours must not stop them.
        try:
            from nemo_lact.registration import config_dir, register

            register()
            search_path.append(provider="nemo_lact", path=f"file://{config_dir()}")
        except Exception as error:
            logging.getLogger("nemo_lact").warning("nemo_lact's Hydra plugin is off: %s", error)
