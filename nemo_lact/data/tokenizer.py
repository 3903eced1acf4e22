"""Subword tokenizers with the function that NeMo's process_asr_text_tokenizer.py uses, laid out as that script does."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from nemo_lact.transcription import read_manifest

TYPES = ('bpe', 'unigram', 'char', 'word')


def train_tokenizer(
    manifests: Sequence[str | Path],
    output: str | Path,
    vocab_size: int = 1024,
    kind: str = 'bpe',
    character_coverage: float = 1.0,
    force: bool = False,
) -> Path:
    """Folder OUTPUT/tokenizer_spe_KIND_vSIZE with tokenizer.model, tokenizer.vocab and vocab.txt.

    It appears whole, and one that is there is kept (except with `force`).

    Args:
        manifests: NeMo manifests whose texts it is trained on; texts are lower-cased, as NeMo's script does.
        vocab_size: pieces in all; few texts can give fewer.
        kind: one of `TYPES`.
        character_coverage: share of characters that get a piece; 0.9995 for scripts with many.

    Raises:
        FileNotFoundError: no such manifest.
        ValueError: no text at all, or more pieces than the text can give.
    """
    folder = Path(output) / f'tokenizer_spe_{kind}_v{vocab_size}'
    if (folder / 'tokenizer.model').is_file() and not force:
        return folder
    texts = list(_texts(manifests))
    if not texts:
        raise ValueError(f'no text in {", ".join(map(str, manifests))}; a tokenizer is trained on the texts of rows')
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import create_spt_model

    scratch = folder.with_name(f'.{folder.name}.{os.getpid()}')
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        document = scratch / 'document.txt'
        document.write_text('\n'.join(texts) + '\n', encoding='utf-8')
        create_spt_model(
            data_file=str(document),
            vocab_size=vocab_size,
            sample_size=-1,
            do_lower_case=True,
            output_dir=str(scratch),
            tokenizer_type=kind,
            character_coverage=character_coverage,
        )
        document.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(scratch, folder)
    except RuntimeError as error:
        raise ValueError(f'no tokenizer of {vocab_size} {kind} pieces from {len(texts):,} texts: {error}') from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _texts(manifests: Sequence[str | Path]) -> Iterable[str]:
    for manifest in manifests:
        for row in read_manifest(manifest):
            text = row.get('text')
            if isinstance(text, str) and text.strip():
                yield ' '.join(text.split())
