"""The small model that comes with the package, to try things out and to fine-tune from. Its card: docs/starter.md."""

import hashlib
from pathlib import Path

NAME = 'starter'  # stands for its path in `init_from_nemo_model` and `--init-from`
FILE = Path(__file__).resolve().parent / 'models' / 'lact-conformer-starter.nemo'
NOTICE = (
    'no --model: this is the starter model, which knows synthetic voices and one real one, and little of others; '
    'fine-tune it on your speech (docs/starter.md)'
)
SHA256 = '2d8e61eeffa1c92746b5ca3986b97591cb5671f658ddcdb331cb02f266f119fe'


def resolve(model: str | Path) -> Path:
    """Path of a model: `FILE` for the name 'starter', unless a file is called so, else the path as it is.

    Raises:
        FileNotFoundError: the starter is asked for and not installed.
    """
    path = Path(model).expanduser()
    if str(model) != NAME or path.exists():
        return path
    if not FILE.is_file():
        raise FileNotFoundError(f'the starter model is not at {FILE}: reinstall nemo-lact, or give another model')
    return FILE


def intact() -> bool:
    """Whether the installed file has the checksum of the release."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest() == SHA256
