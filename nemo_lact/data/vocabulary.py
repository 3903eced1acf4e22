"""What a model can spell, and how many frames CTC needs for it.

CTC gives each token a frame, and a frame of blank between equal neighbours: a text of n tokens with r repeats needs
n + r encoder frames. With fewer its loss is infinite, which NeMo's `zero_infinity` turns into a silent 0.
"""

import math
import operator
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_lact.data.parallel import cores
from nemo_lact.transcription import check_nemo_file


def encoder_frames(duration: float, subsampling_factor: int, window_stride: float = 0.01) -> int:
    """Encoder frames of so many seconds: feature frames, halved and rounded up by each stage of the front end."""
    frames = math.floor(min(duration / window_stride + 1e-6, 1e15))  # a manifest may say 1e308 s
    for _ in range(subsampling_factor.bit_length() - 1):
        frames = (frames + 1) // 2
    return frames


def frames_needed(tokens: Sequence[int]) -> int:
    """Encoder frames without which CTC cannot align these tokens."""
    return len(tokens) + sum(map(operator.eq, tokens, tokens[1:]))


class Characters:
    """Labels of a character model.

    Raises:
        ValueError: no labels.
    """

    def __init__(self, labels: Sequence[str]):
        self.labels = list(labels)
        if not self.labels:
            raise ValueError('the list of labels is empty')
        self.known = set(self.labels) | set(''.join(self.labels) if any(len(x) > 1 for x in self.labels) else ())

    def outside(self, text: str) -> set[str]:
        """Characters that the model has no label for."""
        return set(text) - self.known

    def needed(self, texts: Sequence[str]) -> list[int]:
        """Encoder frames that CTC needs for each text; what is outside takes none, as NeMo leaves it out."""
        known = self.known
        return [
            frames_needed(text if known.issuperset(text) else [char for char in text if char in known])
            for text in texts
        ]


class Subwords:
    """A SentencePiece model.

    Args:
        model: file of the model, or its bytes.

    Raises:
        ValueError: no SentencePiece model.
    """

    def __init__(self, model: str | Path | bytes):
        import sentencepiece

        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise ValueError(f'no SentencePiece model ({error}); model.tokenizer.dir holds tokenizer.model') from error
        spelt = (i for i in range(len(self.pieces)) if not (self.pieces.is_control(i) or self.pieces.is_unknown(i)))
        self.known = set(''.join(map(self.pieces.id_to_piece, spelt))) | {' '}
        self.unknown = self.pieces.unk_id()

    def outside(self, text: str) -> set[str]:
        """Characters without a piece."""
        doubtful = set(text) - self.known
        # The model's own normalisation may still turn them into characters that it knows, a full-width A into A.
        return {char for char in doubtful if not char.isspace() and self.unknown in self.pieces.encode(char)}

    def needed(self, texts: Sequence[str]) -> list[int]:
        """Encoder frames that CTC needs for each text."""
        return [frames_needed(tokens) for tokens in self.pieces.encode(list(texts), num_threads=cores())]


Vocabulary = Characters | Subwords


@dataclass
class Spelling:
    """What a manifest's texts are held against.

    Attributes:
        vocabulary: None leaves characters unchecked, and counts one token per character.
        subsampling_factor: feature frames per encoder frame; None leaves the length unchecked.
        window_stride: seconds per feature frame.
    """

    vocabulary: Vocabulary | None = None
    subsampling_factor: int | None = None
    window_stride: float = 0.01


def of_config(model, where: str = 'the config') -> Spelling:
    """Of the `model` section of a config: its labels or tokenizer folder, and its encoder.

    Raises:
        FileNotFoundError: no tokenizer.model in the folder.
        ValueError: no SentencePiece model.
    """
    spelling = _sizes(model)
    tokenizer = model.get('tokenizer')
    if tokenizer is not None and tokenizer.get('dir'):
        file = Path(tokenizer.dir).expanduser() / 'tokenizer.model'
        if str(tokenizer.get('type', 'bpe')).lower() != 'bpe':
            return Spelling()  # WordPiece and others: left to NeMo
        if not file.is_file():
            raise FileNotFoundError(f'{where}: no tokenizer.model in model.tokenizer.dir={tokenizer.dir}')
        spelling.vocabulary = Subwords(file)
    elif tokenizer is None:
        labels = model.get('labels') or (model.get('decoder') or {}).get('vocabulary')
        spelling.vocabulary = Characters(labels) if labels else None
    return spelling


def of_nemo_file(path: str | Path) -> Spelling:
    """Of a .nemo file, without loading its weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no .nemo file, or one without config.
    """
    from omegaconf import OmegaConf

    check_nemo_file(path)
    with tarfile.open(path) as tar:
        members = {member.name.removeprefix('./'): member for member in tar.getmembers()}
        if 'model_config.yaml' not in members:
            raise ValueError(f'{path} has no model_config.yaml; it is no .nemo file')
        config = OmegaConf.create(tar.extractfile(members['model_config.yaml']).read().decode())
        spelling = _sizes(config)
        stored = str((config.get('tokenizer') or {}).get('model_path') or '').removeprefix('nemo:')
        if stored in members:
            spelling.vocabulary = Subwords(tar.extractfile(members[stored]).read())
        elif labels := (config.get('decoder') or {}).get('vocabulary'):
            spelling.vocabulary = Characters(labels)
    return spelling


def of_options(
    model: Path | None,
    config_name: str | None,
    config_path: Path | None,
    tokenizer: Path | None,
    labels: str | None,
    subsampling_factor: int | None,
) -> Spelling:
    """What the options of `nemo-lact data check` say of the model; later ones have the last word."""
    spelling = Spelling()
    if model:
        spelling = of_nemo_file(model)
    elif config_name or config_path:
        from nemo_lact.training import compose

        cfg = compose(config_name or 'lact_ctc_bpe', (), config_path, complete=False)
        subwords = cfg.model.get('tokenizer')
        if subwords is not None and not subwords.get('dir') and not tokenizer:
            raise ValueError(f'the config {config_name or ""} has subwords; give --tokenizer FOLDER (or .model) too')
        spelling = of_config(cfg.model)
    if tokenizer:
        spelling.vocabulary = Subwords(tokenizer / 'tokenizer.model' if tokenizer.is_dir() else tokenizer)
    elif labels is not None:
        spelling.vocabulary = Characters(labels)
    spelling.subsampling_factor = subsampling_factor or spelling.subsampling_factor
    return spelling


def _sizes(model) -> Spelling:
    factor = (model.get('encoder') or {}).get('subsampling_factor')
    stride = (model.get('preprocessor') or {}).get('window_stride')
    whole = isinstance(factor, int) and factor > 0
    stride = float(stride) if isinstance(stride, float) and stride > 0 else 0.01
    return Spelling(None, factor if whole else None, stride)
