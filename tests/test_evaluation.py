"""Counts of errors."""

from hypothesis import given
from hypothesis import strategies as st
from kaldialign import edit_distance

from nemo_lact.evaluation import count, distance


@given(st.text('ab ', max_size=90), st.text('abc', max_size=90))
def test_distance_is_that_of_kaldialign(a, b):
    assert distance(a, b) == edit_distance(list(a), list(b))['total']


def test_distance_of_long_texts_takes_no_table():
    text = 'the quick brown fox jumps over the lazy dog ' * 400
    assert distance(text, text) == 0
    assert distance(text, text[:9000] + text[9001:-7] + '!') == 1 + 7


def test_counts_of_an_empty_text_are_insertions():
    counts = count('', 'a bc')
    assert counts['insertions'] == 2 and counts['character_errors'] == 4
    assert counts['words'] == counts['characters'] == 0
