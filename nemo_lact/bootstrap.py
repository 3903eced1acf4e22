"""Bootstrap intervals of error rates: whole sessions (or recordings) are drawn again, not words.

Errors of one session depend on each other, so an interval over words or utterances would be far too narrow. All
functions take one entry per unit, in the same order for all systems, and draw the same units for both sides of a
comparison (percentile bootstrap, fixed seed).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

RESAMPLES = 4000
SEED = 0
BLOCK = 1 << 22  # draws held at a time: resamples × units


class Estimate(NamedTuple):
    """A value and the ends of its interval, as fractions; None where it is not defined.

    The ends are None with fewer than two units, or where a drawn set makes the value infinite.
    """

    value: float | None
    low: float | None
    high: float | None


def rate(errors: Sequence[int], words: Sequence[int], confidence: float = 0.95, resamples: int = RESAMPLES) -> Estimate:
    """Error rate: sum of `errors` [n] over sum of `words` [n], with its interval.

    Raises:
        ValueError: as `paired`.
    """
    return paired(lambda e, w: e / w, (errors, words), confidence, resamples)


def relative_difference(
    errors: Sequence[int], base: Sequence[int], confidence: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """(errors − base) / base of the sums, errors of two systems on the same units: −0.1 is 10% fewer than `base`."""
    return paired(lambda e, b: np.where(e == b, 0.0, (e - b) / b), (errors, base), confidence, resamples)


def rate_difference(
    errors: Sequence[int],
    base: Sequence[int],
    words: Sequence[int],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """(errors − base) / words of the sums: the difference of two rates, −0.01 is one point less than `base`."""
    return paired(lambda e, b, w: (e - b) / w, (errors, base, words), confidence, resamples)


def paired(statistic, columns: Sequence[Sequence[int]], confidence: float, resamples: int) -> Estimate:
    """A function of column sums, with the interval from units drawn with replacement.

    Args:
        statistic: takes an array [resamples] of sums for each column, gives [resamples]. Draws where it is NaN (no
            words) are left out.
        columns: counts [n] each, one entry per unit.

    Raises:
        ValueError: columns of different lengths, none, negative or not finite counts, or a confidence outside (0, 1).
    """
    table = _table(columns)
    if not 0 < confidence < 1:
        raise ValueError(f'confidence={confidence}; give a share between 0 and 1, such as 0.95')
    if resamples < 1:
        raise ValueError(f'resamples={resamples}; give 1 or more, usually some thousands')
    value = _finite(_of(statistic, table.sum(axis=1, keepdims=True))[0])  # 0 / 0, no words, is NaN
    units = table.shape[1]
    if units < 2 or value is None:
        return Estimate(value, None, None)
    found, block = [], max(1, BLOCK // units)
    for start in range(0, resamples, block):
        drawn = _draws(units, start, min(block, resamples - start))
        found.append(_of(statistic, table @ drawn.astype(np.float64)))  # of [columns, block] sums
    tail, found = (1 - confidence) / 2, np.concatenate(found)
    low, high = np.quantile(found[~np.isnan(found)], [tail, 1 - tail], method='inverted_cdf')
    return Estimate(value, _finite(low), _finite(high))


@lru_cache(maxsize=16)  # drawing takes longer than all else, and many comparisons are of the same units
def _draws(units: int, start: int, count: int) -> np.ndarray:
    """How often each unit is drawn, [units, count], from resample `start` on."""
    rng = np.random.default_rng((SEED, start))
    return rng.multinomial(units, np.full(units, 1 / units), size=count).T.astype(np.uint16)


def _table(columns) -> np.ndarray:
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise ValueError(f'columns of {lengths} units; give one count per unit in each, and at least one unit')
    table = np.asarray(columns, dtype=np.float64)
    if not np.isfinite(table).all() or table.min() < 0:
        raise ValueError('counts of errors and words must be finite and 0 or more')
    return table


def _of(statistic, sums: np.ndarray) -> np.ndarray:
    with np.errstate(divide='ignore', invalid='ignore'):
        return statistic(*sums)


def _finite(value) -> float | None:
    return float(value) if np.isfinite(value) else None
