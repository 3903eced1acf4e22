"""lm.py: probabilities that sum to one, Witten-Bell by hand, and the file as NeMo reads it."""

import math
import random

import pytest
import torch

from nemo_lact.lm import BOS, EOS, estimate, write_arpa

VOCABULARY = 6  # tokens 0 to 5; 5 never occurs


def sentences(seed: int, count: int = 30) -> list[tuple[list[int], float]]:
    rng = random.Random(seed)
    return [([rng.choice([0, 0, 1, 2, 3, 4]) for _ in range(rng.randint(1, 9))], 1) for _ in range(count)]


def sum_after(model, context) -> float:
    return sum(model.probability(token, context) for token in (*range(model.vocab_size), EOS))


@pytest.mark.parametrize('order', [2, 3, 5])
def test_probabilities_sum_to_one_after_any_context(order):
    model = estimate(sentences(0), VOCABULARY, order)
    contexts = [(), (BOS,), (0, 1), (BOS, 0, 0), (5, 5), (0, 5, 1), (1, 2, 3, 4, 0, 1, 2)]
    for context in contexts + [ngram for ngram in model.probabilities if EOS not in ngram]:
        assert sum_after(model, context) == pytest.approx(1, abs=1e-9), context


def test_witten_bell_by_hand():
    """After 0 came 1 twice and 2 once: 3 seen, 2 kinds. Of all 6 tokens 4 kinds: 0, 1 and EOS twice, 2 once."""
    model = estimate([([0, 1], 2), ([0, 2], 1)], vocab_size=3, order=2)
    single = {0: (3 + 4 / 4) / 13, 1: (2 + 4 / 4) / 13, 2: (1 + 4 / 4) / 13, EOS: (3 + 4 / 4) / 13}
    for token, chance in single.items():
        assert model.probability(token) == pytest.approx(chance)
    assert model.probability(1, (0,)) == pytest.approx((2 + 2 * single[1]) / 5)
    assert model.probability(0, (0,)) == pytest.approx(2 / 5 * single[0])  # never seen after 0
    assert model.probability(0, (2, BOS)) == pytest.approx((3 + single[0]) / 4)


def test_a_sentence_that_counts_twice_is_two_sentences():
    once = estimate([([0, 1], 1), ([0, 1], 1), ([2], 1)], VOCABULARY, 3)
    assert estimate([([0, 1], 2), ([2], 1)], VOCABULARY, 3) == once


def test_text_like_the_training_text_is_more_probable_than_noise():
    model = estimate([([0, 1, 2, 3], 20)], VOCABULARY, 4)
    assert model.log_probability([0, 1, 2, 3]) > model.log_probability([3, 1, 0, 2]) + 5
    assert math.isfinite(model.log_probability([5, 5, 5]))


@pytest.mark.parametrize('order', [2, 4])
def test_nemo_reads_the_file_and_gives_the_same_probabilities(tmp_path, order):
    from nemo.collections.asr.parts.submodules.ngram_lm import NGramGPULanguageModel

    model = estimate(sentences(3), VOCABULARY, order)
    write_arpa(model, tmp_path / 'lm.arpa')
    theirs = NGramGPULanguageModel.from_file(tmp_path / 'lm.arpa', vocab_size=VOCABULARY)
    texts = [[0, 1, 2], [5, 0, 5], [4, 4, 4], [0, 0, 0]]
    found = theirs(labels=torch.tensor(texts), eos=True)  # [texts, tokens + EOS]
    for text, row in zip(texts, found.tolist()):
        whole = (BOS, *text, EOS)
        expected = [math.log(model.probability(whole[i], whole[:i])) for i in range(1, len(whole))]
        assert row == pytest.approx(expected, abs=1e-4)


def test_large_token_numbers_survive_the_file(tmp_path):
    """Some of their characters are blanks or line ends to Python (token 33 is U+0085, 60 is U+00A0)."""
    from nemo.collections.asr.parts.submodules.ngram_lm import NGramGPULanguageModel

    tokens = [33, 60, 5660, 8132, 8133, 59]
    model = estimate([(tokens, 1)], 9000, 3)
    write_arpa(model, tmp_path / 'lm.arpa')
    theirs = NGramGPULanguageModel.from_file(tmp_path / 'lm.arpa', vocab_size=9000)
    assert theirs(labels=torch.tensor([tokens]), eos=True).sum().item() == pytest.approx(
        model.log_probability(tokens), abs=1e-3
    )


@pytest.mark.parametrize(
    'arguments, message',
    [
        (([], 3, 2), 'no sentence'),
        (([([0], 1)], 3, 1), 'order=1'),
        (([([3], 1)], 3, 2), 'vocab_size - 1 = 2'),
        (([([0], 0)], 3, 2), 'counts 0 times'),
        (([([0], float('inf'))], 3, 2), 'counts inf times'),
        (([([0], 1)], 60000, 2), 'room for 1 to'),
    ],
)
def test_wrong_input_names_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate(*arguments)
