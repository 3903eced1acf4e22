"""Counts of errors to rates and differences with intervals, and errors by the time of the words."""

from collections.abc import Sequence

import numpy as np

from nemo_lact import bootstrap

BORDERS = (10.0, 70.0)  # seconds of a session: its beginning, the next minute, later


def compare(errors: dict[str, np.ndarray], totals: np.ndarray, pairs: Sequence[tuple[str, str]]) -> dict:
    """Rates and paired differences with 95% intervals (see `nemo_lact.bootstrap`).

    Args:
        errors: of each system, [units, 2] errors in words and in characters; [units, 1] is words only.
        totals: of the same shape, words and characters of the reference.
        pairs: (system, the one it is compared with).

    Returns:
        `units` (those with anything to count), `words`; `rates` by system and `wer`, `cer`; `differences`, each with
        `of`, `to`, `wer_relative` ((of − to) / to), `wer_points` (of − to), and the same of `cer`.
    """
    names = ('wer', 'cer')[: totals.shape[1]]
    used = (totals > 0).any(axis=1) | np.any([(e > 0).any(axis=1) for e in errors.values()], axis=0)
    units = int(used.sum())
    if not units:
        used[:1] = True  # a unit of zeros: all is None
    errors, totals = {system: e[used] for system, e in errors.items()}, totals[used]
    rates = {
        system: {name: bootstrap.rate(e[:, i], totals[:, i])._asdict() for i, name in enumerate(names)}
        for system, e in errors.items()
    }
    differences = []
    for system, base in pairs:
        entry = {'of': system, 'to': base}
        for i, name in enumerate(names):
            a, b = errors[system][:, i], errors[base][:, i]
            relative = bootstrap.relative_difference(a, b) if units else bootstrap.Estimate(None, None, None)
            entry[f'{name}_relative'] = relative._asdict()
            entry[f'{name}_points'] = bootstrap.rate_difference(a, b, totals[:, i])._asdict()
        differences.append(entry)
    return {'units': units, 'words': int(totals[:, 0].sum()), 'rates': rates, 'differences': differences}


def by_position(row: dict, found: str, start: float, borders: Sequence[float] = BORDERS):
    """Word errors and words of one row between borders of time, [len(borders) + 1] each.

    Args:
        found: the text to compare with `row['text']`. A word it inserts counts where the word before it stands.
        start: seconds of its session at which the row begins.
    """
    from kaldialign import align

    errors, words = np.zeros(len(borders) + 1, int), np.zeros(len(borders) + 1, int)
    places = np.searchsorted(borders, word_times(row, start), side='right')
    np.add.at(words, places, 1)
    places = places if len(places) else np.searchsorted(borders, [start], side='right')
    at = -1
    for said, heard in align(row['text'].split(), found.split(), ' '):  # ' ' stands for no word
        at += said != ' '
        errors[places[max(at, 0)]] += said != heard
    return errors, words


def word_times(row: dict, start: float) -> np.ndarray:
    """[words] seconds of the session at which the words of a row begin, if the row begins at `start`.

    Words are spread evenly over the row, or over the pieces of a long row (`pieces` of `nemo-lact data longform`).
    """
    pieces = row.get('pieces')
    if not pieces or ' '.join(piece['text'] for piece in pieces).split() != row['text'].split():
        pieces = [{'start': 0.0, 'end': float(row['duration']), 'text': row['text']}]
    spread = [np.linspace(p['start'], p['end'], len(p['text'].split()), endpoint=False) for p in pieces]
    return start + np.concatenate(spread)
