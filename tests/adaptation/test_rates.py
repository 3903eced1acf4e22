"""Errors by position, and comparisons from counts."""

import numpy as np
import pytest

from nemo_lact.adaptation import compare
from nemo_lact.adaptation.rates import by_position, word_times


def test_words_are_spread_over_their_row():
    assert word_times({'text': 'a b c d', 'duration': 8.0}, 5.0).tolist() == [5.0, 7.0, 9.0, 11.0]
    assert word_times({'text': '', 'duration': 8.0}, 5.0).tolist() == []


def test_words_are_spread_over_the_pieces_of_their_row():
    pieces = [{'start': 0.0, 'end': 2.0, 'text': 'a b'}, {'start': 60.0, 'end': 61.0, 'text': 'c'}]
    row = {'text': 'a b c', 'duration': 90.0, 'pieces': pieces}
    assert word_times(row, 1.0).tolist() == [1.0, 2.0, 61.0]
    row['text'] = 'a b d'  # pieces that say something else are not believed
    assert word_times(row, 0.0).tolist() == [0.0, 30.0, 60.0]


@pytest.mark.parametrize(
    'found, errors',
    [
        ('a b c d', [0, 0, 0]),
        ('x b c d', [1, 0, 0]),  # substituted
        ('a b d', [0, 1, 0]),  # c is missing
        ('a b c d e f', [0, 0, 2]),  # said after d
        ('e a b c d', [1, 0, 0]),  # said before a
        ('a e f b c d', [2, 0, 0]),
        ('', [2, 1, 1]),
    ],
)
def test_errors_stand_where_their_word_stands(found, errors):
    row = {'text': 'a b c d', 'duration': 12.0}  # at 3, 6, 9 and 12 s
    got, words = by_position(row, found, 3.0, borders=(9.0, 12.0))
    assert got.tolist() == errors and words.tolist() == [2, 1, 1]


def test_what_is_found_in_silence_counts_where_the_row_begins():
    got, words = by_position({'text': '', 'duration': 5.0}, 'a b', 11.0)
    assert got.tolist() == [0, 2, 0] and words.sum() == 0


def test_units_with_nothing_to_count_are_no_units():
    errors = {'a': np.array([[1, 2], [0, 0], [2, 2]]), 'b': np.array([[2, 4], [0, 0], [2, 2]])}
    found = compare(errors, np.array([[10, 50], [0, 0], [20, 90]]), [('a', 'b')])
    assert found['units'] == 2 and found['words'] == 30
    assert found['rates']['a']['wer']['value'] == 0.1 and found['rates']['b']['cer']['value'] == 6 / 140
    assert found['differences'][0]['wer_relative']['value'] == -0.25
    assert found['differences'][0]['wer_points']['value'] == pytest.approx(-1 / 30)
    empty = compare({'a': np.zeros((3, 2))}, np.zeros((3, 2)), [])
    assert empty['units'] == 0 and empty['rates']['a']['wer']['value'] is None
