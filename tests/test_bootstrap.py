"""Bootstrap intervals: known cases, pairing, coverage, and what cannot be estimated."""

import numpy as np
import pytest

from nemo_lact import bootstrap
from nemo_lact.bootstrap import Estimate, paired, rate, rate_difference, relative_difference


def test_rate_is_of_the_sums_and_the_interval_as_in_the_normal_limit():
    rng = np.random.default_rng(1)
    errors, words = rng.binomial(100, 0.2, size=400), np.full(400, 100)
    found = rate(errors, words)
    assert found.value == errors.sum() / 40000
    half = 1.96 * (errors / 100).std() / 20  # units of one size: the mean of 400 rates
    assert found.high - found.value == pytest.approx(half, rel=0.08)
    assert found.value - found.low == pytest.approx(half, rel=0.08)
    assert rate(errors, words) == found  # the seed is fixed


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, covered, trials = np.random.default_rng(2), 0, 400
    for _ in range(trials):
        # Sessions of different lengths and difficulty: errors within one depend on each other.
        words = rng.integers(50, 300, size=40)
        errors = rng.binomial(words, rng.beta(2, 8, size=40))  # the true rate is 0.2
        _, low, high = rate(errors, words, resamples=1000)
        covered += low <= 0.2 <= high
    assert 0.90 <= covered / trials <= 0.98  # 95% but for 40 units; a word-wise interval covers about half


def test_differences_are_paired():
    rng = np.random.default_rng(3)
    base = rng.integers(10, 200, size=30)  # sessions of very different difficulty
    words = np.full(30, 400)
    fewer = base * 9 // 10
    relative, points = relative_difference(fewer, base), rate_difference(fewer, base, words)
    assert relative.value == (fewer.sum() - base.sum()) / base.sum()
    assert -0.12 < relative.low <= relative.value <= relative.high < -0.1  # the rates alone are uncertain by far more
    assert points.value == pytest.approx(rate(fewer, words).value - rate(base, words).value)
    wide = rate(base, words)
    assert wide.high - wide.low > 5 * (points.high - points.low)


def test_no_difference_is_exactly_zero():
    base = [3, 0, 7, 2]
    assert relative_difference(base, base) == rate_difference(base, base, [10] * 4) == Estimate(0.0, 0.0, 0.0)
    assert relative_difference([0, 0], [0, 0]) == Estimate(0.0, 0.0, 0.0)


def test_what_is_not_defined_is_none():
    assert rate([2], [10]) == Estimate(0.2, None, None)  # one session says nothing of others
    assert rate([1, 2], [0, 0]) == Estimate(None, None, None)
    assert relative_difference([1, 2], [0, 0]) == Estimate(None, None, None)
    found = relative_difference([2, 2], [0, 4])  # drawn twice, the first has no errors to compare with
    assert found.value == 0 and found.high is None and found.low == -0.5


def test_units_without_words_do_not_spoil_it():
    found = rate([0, 5], [0, 10])
    assert found == Estimate(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    'columns, options, message',
    [
        (([1, 2], [1]), {}, 'columns of'),
        (([], []), {}, 'at least one unit'),
        (([-1, 2], [3, 4]), {}, '0 or more'),
        (([float('nan'), 2], [3, 4]), {}, 'finite'),
        (([1, 2], [3, 4]), {'confidence': 95}, 'between 0 and 1'),
        (([1, 2], [3, 4]), {'resamples': 0}, 'resamples=0'),
    ],
)
def test_bad_values_are_named(columns, options, message):
    with pytest.raises(ValueError, match=message):
        rate(*columns, **options)


def test_many_units_are_drawn_in_blocks(monkeypatch):
    rng = np.random.default_rng(4)
    errors, words = rng.integers(0, 9, 500), np.full(500, 40)
    whole = rate(errors, words)
    monkeypatch.setattr(bootstrap, 'BLOCK', 50_000)
    drawn = []
    statistic = lambda e, w: drawn.append(e) or e / w  # noqa: E731
    parts = paired(statistic, (errors, words), 0.95, bootstrap.RESAMPLES)
    blocks = drawn[1:]  # after the value itself
    assert [len(b) for b in blocks] == [100] * 40 and len(np.unique(np.concatenate(blocks))) > 300
    assert parts.low == pytest.approx(whole.low, rel=0.02) and parts.high == pytest.approx(whole.high, rel=0.02)
