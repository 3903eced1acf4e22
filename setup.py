"""Puts the YAMLs, which live in examples/asr/conf/lact only, into the wheel as nemo_lact/conf.

Everything else is in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path("examples/asr/conf/lact")


class BuildWithConfigs(build_py):
    """build_py that also copies the YAMLs. Not in an editable install, which reads them where they lie."""

    def _config_files(self) -> dict[str, str]:
        target = Path(self.build_lib) / "nemo_lact" / "conf"
        return {str(target / source.name): str(source) for source in sorted(CONFIGS.glob("*.yaml"))}

    def run(self):
        super().run()
        if self.editable_mode:
            return
        if not self._config_files():
            raise FileNotFoundError(f"no YAML in {CONFIGS.resolve()}: a wheel without configs would be of no use")
        for target, source in self._config_files().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else list(self._config_files()))

    def get_output_mapping(self):
        return super().get_output_mapping() | ({} if self.editable_mode else self._config_files())


setup(cmdclass={"build_py": BuildWithConfigs})
