"""N-gram language models over a model's own tokens, as the ARPA files that NeMo's beam search reads.

NeMo's `beam_batch` decoding adds the log-probability of such a model to each token it appends (docs/decoding.md). KenLM
makes these files from billions of words; this module makes them from what fits in memory, in plain Python.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BOS, EOS = -1, -2  # begin and end of a sentence; the tokens of a model count from 0
TOKEN_OFFSET = 100  # NeMo writes token i as the character chr(i + 100)
MAX_VOCABULARY = 0xD800 - TOKEN_OFFSET  # the next code points are no characters
LOWEST = -99.0  # log10 of a probability that is never asked for

NGram = tuple[int, ...]


@dataclass
class NGramModel:
    """A backoff model: P(token | context) of the longest n-gram listed, times the backoffs of the contexts skipped.

    Attributes:
        order: length of the longest n-grams.
        vocab_size: number of tokens, without blank, BOS and EOS.
        probabilities: context + (token,) to a probability; has every token and EOS as an n-gram of length one.
        backoffs: context to the factor for tokens that are not listed after it; 1 if the context is not there.
    """

    order: int
    vocab_size: int
    probabilities: dict[NGram, float] = field(default_factory=dict)
    backoffs: dict[NGram, float] = field(default_factory=dict)

    def probability(self, token: int, context: NGram = ()) -> float:
        """P(token | context); of a context longer than order - 1 only the end is used."""
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        factor = 1.0
        while context + (token,) not in self.probabilities:
            factor *= self.backoffs.get(context, 1.0)
            context = context[1:]
        return factor * self.probabilities[context + (token,)]

    def log_probability(self, tokens: Sequence[int]) -> float:
        """Natural logarithm of the probability of a whole sentence, EOS included."""
        sentence = (BOS, *tokens, EOS)
        return sum(math.log(self.probability(sentence[i], sentence[:i])) for i in range(1, len(sentence)))


def estimate(sentences: Iterable[tuple[Sequence[int], float]], vocab_size: int, order: int) -> NGramModel:
    """A model with Witten-Bell smoothing: a context passes on probability as new tokens were seen to follow it.

    P(w | h) = (c(hw) + T(h) P(w | shorter h)) / (c(h) + T(h)) with T(h) the number of different tokens after h; below
    the single tokens everything is equally likely, so no sentence has probability 0.

    Args:
        sentences: token sequences, each with the number of times it counts.
        vocab_size: number of tokens of the model.
        order: length of the longest n-grams, 2 or more.

    Raises:
        ValueError: no sentence, order below 2, a token outside the vocabulary, or too large a vocabulary.
    """
    if order < 2:
        raise ValueError(f'order={order}; NeMo reads n-gram models of order 2 and more')
    if not 1 <= vocab_size <= MAX_VOCABULARY:
        raise ValueError(f'vocab_size={vocab_size}; the file format has room for 1 to {MAX_VOCABULARY} tokens')
    counts = [Counter() for _ in range(order)]
    for tokens, times in sentences:
        if any(not 0 <= token < vocab_size for token in tokens):
            raise ValueError(f'tokens {list(tokens)[:20]} are not all from 0 to vocab_size - 1 = {vocab_size - 1}')
        if not times > 0 or math.isinf(times):
            raise ValueError(f'a sentence that counts {times} times; it must be a number above 0')
        sentence = (BOS, *tokens, EOS)
        for end in range(2, len(sentence) + 1):  # BOS is never predicted
            for length in range(1, min(order, end) + 1):
                counts[length - 1][sentence[end - length : end]] += times
    if not counts[0]:
        raise ValueError('no sentence to estimate a language model from')

    model = NGramModel(order, vocab_size)
    uniform = 1 / (vocab_size + 1)
    for token in range(vocab_size):
        counts[0].setdefault((token,), 0)
    for table in counts:
        total, kinds = defaultdict(float), Counter()
        for ngram, count in table.items():
            total[ngram[:-1]] += count
            kinds[ngram[:-1]] += count > 0
        for ngram, count in table.items():
            context = ngram[:-1]
            shorter = model.probabilities[ngram[1:]] if context else uniform
            share = total[context] + kinds[context]
            model.probabilities[ngram] = (count + kinds[context] * shorter) / share
        for context in total:
            if context:
                model.backoffs[context] = kinds[context] / (total[context] + kinds[context])
    return model


def write_arpa(model: NGramModel, path: str | Path) -> None:
    """Write the text format that NeMo's NGramGPULanguageModel and KenLM read."""
    by_length: list[list[NGram]] = [[] for _ in range(model.order)]
    for ngram in model.probabilities:
        by_length[len(ngram) - 1].append(ngram)
    by_length[0].append((BOS,))
    with open(path, 'w', encoding='utf-8', newline='\n') as file:
        file.write('\\data\\\n')
        for length, ngrams in enumerate(by_length, 1):
            file.write(f'ngram {length}={len(ngrams)}\n')
        for length, ngrams in enumerate(by_length, 1):
            file.write(f'\n\\{length}-grams:\n')
            for ngram in sorted(ngrams):
                chance = model.probabilities.get(ngram)
                line = f'{LOWEST if chance is None else math.log10(chance):.7g}\t{" ".join(map(_written, ngram))}'
                if length < model.order and ngram[-1] != EOS:
                    line += f'\t{math.log10(model.backoffs.get(ngram, 1.0)):.7g}'
                file.write(line + '\n')
        file.write('\n\\end\\\n')


def _written(token: int) -> str:
    return {BOS: '<s>', EOS: '</s>'}.get(token) or chr(token + TOKEN_OFFSET)
