"""Decoding with an n-gram language model through NeMo's own beam search for CTC, and making such a model.

NeMo's strategy `beam_batch` searches whole batches in PyTorch, on CPU and GPU, with no library beside it. See
docs/decoding.md for how to choose the numbers.
"""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_lact import lm

TEXT_SUFFIXES = ('.txt',)
LM_SUFFIXES = ('.arpa', '.nemo')
BEAM_SIZE = 16
LM_WEIGHT = 0.5
TOKEN_BONUS = 1.0
LM_ORDER = 6


def texts_of(inputs: Sequence[str | Path]) -> list[str]:
    """The `text` of manifests (.json, .jsonl) and the lines of text files (.txt), blank ones left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, a manifest row without text, or no text at all.
    """
    from nemo_lact.transcription import MANIFEST_SUFFIXES, read_manifest

    texts = []
    for path in map(Path, inputs):
        if path.suffix.lower() in MANIFEST_SUFFIXES:
            for number, row in enumerate(read_manifest(path), 1):
                if not isinstance(row.get('text'), str):
                    raise ValueError(f"{path}, row {number}: no 'text'; it has {', '.join(row) or 'no keys'}")
                texts.append(row['text'])
        elif path.suffix.lower() in TEXT_SUFFIXES:
            if not path.is_file():
                raise FileNotFoundError(f'no text file at {path}')
            try:
                texts += path.read_text(encoding='utf-8').splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f'{path}: no UTF-8 text ({error.reason} at byte {error.start})') from error
        else:
            kinds = ', '.join((*TEXT_SUFFIXES, *MANIFEST_SUFFIXES))
            raise ValueError(f'{path}: texts come from files that end with {kinds}')
    texts = [' '.join(text.split()) for text in texts if text.strip()]
    if not texts:
        raise ValueError(f'no text in {", ".join(map(str, inputs))}')
    return texts


def tokens_of(model, texts: Sequence[str]) -> tuple[list[list[int]], int]:
    """The texts as the model's tokens, and how many of them were left out for characters that the model has not.

    Texts are brought to lower case for a character model without capitals.
    """
    _check_ctc(model)
    tokenizer = getattr(model, 'tokenizer', None)
    if tokenizer is not None:
        unknown = tokenizer.text_to_ids('\u2603')[-1:]  # a snowman is in no vocabulary
        coded = [tokenizer.text_to_ids(text) for text in texts]
        kept = [ids for ids in coded if ids and not set(unknown) & set(ids)]
        return kept, len(texts) - len(kept)
    number = {label: i for i, label in enumerate(model.decoder.vocabulary)}
    if not any(label.lower() != label for label in number):
        texts = [text.lower() for text in texts]
    kept = [[number[char] for char in text] for text in texts if set(text) <= number.keys()]
    return kept, len(texts) - len(kept)


def make_language_model(model, texts: Sequence[str], output: str | Path, order: int = LM_ORDER) -> dict:
    """Estimate an n-gram model over the tokens of `model` from `texts` and write it as an ARPA file.

    Returns:
        What was made: `texts`, `left_out` (texts with characters that the model has not), `tokens`, `ngrams`.

    Raises:
        ValueError: `output` does not end with .arpa, no text fits the model's vocabulary, or order below 2.
    """
    output = Path(output)
    if output.suffix != '.arpa':
        raise ValueError(f'{output}: the file is an ARPA file; its name must end with .arpa, NeMo goes by it')
    tokens, left_out = tokens_of(model, texts)
    if not tokens:
        raise ValueError(f'none of the {len(texts)} texts is written in the characters of the model')
    made = lm.estimate(((ids, 1) for ids in tokens), _vocab_size(model), order)
    lm.write_arpa(made, output)
    total = sum(map(len, tokens))
    return {'texts': len(tokens), 'left_out': left_out, 'tokens': total, 'ngrams': len(made.probabilities)}


def use_language_model(
    model,
    path: str | Path,
    weight: float = LM_WEIGHT,
    beam_size: int = BEAM_SIZE,
    token_bonus: float = TOKEN_BONUS,
) -> None:
    """From now on the model transcribes with beam search and this language model.

    A text scores log P(text | audio) + weight · log P(text) + token_bonus · number of its tokens.

    Args:
        model: an EncDecCTCModel or EncDecCTCModelBPE.
        path: n-gram model over the tokens of this model, .arpa or .nemo (NeMo's NGramGPULanguageModel).
        weight: of the language model, 0 or more.
        beam_size: texts kept at each frame.
        token_bonus: makes up for the language model's liking for short texts.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no n-gram model for this vocabulary, a number out of range, or no CTC model.
    """
    from omegaconf import OmegaConf

    path = Path(path)
    if weight < 0 or beam_size < 1:
        raise ValueError(f'weight={weight} and beam_size={beam_size}; they must be at least 0 and at least 1')
    _check_ctc(model)
    check_lm_file(path, _vocab_size(model))
    beam = {
        'beam_size': beam_size,
        'ngram_lm_model': str(path),
        'ngram_lm_alpha': weight,
        'beam_beta': token_bonus,
        'return_best_hypothesis': True,
    }
    decoding = {'strategy': 'beam_batch', 'beam': beam, 'compute_timestamps': False, 'preserve_alignments': False}
    with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):  # bars
        model.change_decoding_strategy(OmegaConf.create(decoding), verbose=False)
    search = model.decoding.decoding
    search.search_algorithm = _PaddingAside(search.search_algorithm)


class _PaddingAside:
    """NeMo's search with the padding of shorter rows made certain blanks.

    The search goes on over a row's padding, where a token with its bonus may outdo blank: the text then depends on the
    other rows of the batch.
    """

    def __init__(self, search):
        self.search = search

    def __call__(self, log_probs, lengths):
        import torch

        frames = torch.arange(log_probs.shape[1], device=log_probs.device)
        padding = frames >= lengths.to(log_probs.device)[:, None]  # [B, T]
        silence = torch.full_like(log_probs[0, 0], float('-inf'))
        silence[-1] = 0.0  # blank
        return self.search(torch.where(padding[..., None], silence, log_probs), lengths)


def check_lm_file(path: Path, vocab_size: int | None = None) -> None:
    """Raise unless `path` can be the language model of a vocabulary of this size; NeMo itself stops at an assertion."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no language model at {path}')
    if path.suffix not in LM_SUFFIXES:
        raise ValueError(f'{path}: NeMo takes n-gram models as {" or ".join(LM_SUFFIXES)} files, not {path.suffix!r}')
    if path.suffix == '.nemo':
        return
    with open(path, encoding='utf-8') as file:
        try:
            head = file.readline().strip()
        except UnicodeDecodeError:
            head = ''
        if head != '\\data\\':
            raise ValueError(f'{path} is no ARPA file: its first line is not \\data\\. KenLM binaries do not work here')
        if vocab_size is None:
            return
        highest = 0
        for line in file:
            if line.startswith('\\2-grams'):
                break
            columns = line.rstrip('\n').split('\t')
            if len(columns) > 1 and columns[1] not in ('<s>', '</s>', '<unk>'):
                if len(columns[1]) != 1 or ord(columns[1]) < lm.TOKEN_OFFSET:
                    raise ValueError(
                        f'{path} lists {columns[1]!r}: a model of words or letters. It must be over the tokens of the '
                        f'acoustic model, each written as one character; `nemo-lact lm` makes such a file'
                    )
                highest = max(highest, ord(columns[1]) - lm.TOKEN_OFFSET + 1)
        else:
            raise ValueError(f'{path} has no 2-grams; NeMo needs a model of order 2 or more')
    if highest > vocab_size:
        raise ValueError(
            f'{path} has tokens up to number {highest}, the acoustic model has {vocab_size}: it was made for another '
            f'model. Make one with: nemo-lact lm TEXTS --model MODEL.nemo --output LM.arpa'
        )


def _vocab_size(model) -> int:
    return len(model.decoder.vocabulary)


def _check_ctc(model) -> None:
    if not hasattr(model, 'change_decoding_strategy') or not hasattr(getattr(model, 'decoder', None), 'vocabulary'):
        raise ValueError(f'{type(model).__name__} is no CTC model; the language model is for EncDecCTCModel(BPE)')
