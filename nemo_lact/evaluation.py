"""Word and character error rates, counted as NeMo counts them: words with kaldialign's edit distance."""

from collections.abc import Sequence


def score(rows: Sequence[dict]) -> tuple[dict, list[dict]]:
    """Score `pred_text` against `text`; words are split at blanks, characters include blanks, nothing is normalised.

    A row without `text` (no key, or null) cannot be scored: it is counted in `rows_without_text`. A row whose text is
    empty is scored: every word found there is an insertion.

    Args:
        rows: dicts with `pred_text` and mostly `text`.

    Returns:
        The totals, and the rows with `wer`, `substitutions`, `insertions` and `deletions` (of words) added to the
        scored ones. A rate is a fraction of the reference words or characters, None where there are none.

    Raises:
        ValueError: rows without `pred_text`, or no row that can be scored.
    """
    lacking = [n for n, row in enumerate(rows, 1) if row.get('pred_text') is None]
    if lacking:
        raise ValueError(
            f"{len(lacking)} of {len(rows)} rows have no 'pred_text', the first is row {lacking[0]}; "
            f'give --model to transcribe them'
        )
    totals = dict.fromkeys(('words', 'substitutions', 'insertions', 'deletions', 'characters', 'character_errors'), 0)
    rows_scored = rows_empty = rows_wrong = 0
    scored = []
    for row in rows:
        text, found = row.get('text'), row['pred_text']
        if text is None:
            scored.append(dict(row))
            continue
        counts = count(text, found)
        totals = {key: totals[key] + counts[key] for key in totals}
        rows_scored += 1
        rows_empty += not text.strip()
        added = {key: counts[key] for key in ('substitutions', 'insertions', 'deletions')}
        wrong = sum(added.values())
        rows_wrong += wrong > 0
        scored.append({**row, 'wer': _rate(wrong, counts['words']), **added})
    if not rows_scored:
        raise ValueError(f"none of the {len(rows)} rows has a 'text' to compare with")
    errors = totals['substitutions'] + totals['insertions'] + totals['deletions']
    summary = {
        'wer': _rate(errors, totals['words']),
        'cer': _rate(totals['character_errors'], totals['characters']),
        **totals,
        'rows': len(rows),
        'rows_scored': rows_scored,
        'rows_with_errors': rows_wrong,
        'rows_with_empty_text': rows_empty,
        'rows_without_text': len(rows) - rows_scored,
        'seconds': round(sum(float(row.get('duration') or 0) for row in rows), 3),
    }
    return summary, scored


def count(text: str, found: str) -> dict[str, int]:
    """Words and characters of `text`, and the errors in `found`."""
    from kaldialign import edit_distance

    words = edit_distance(text.split(), found.split())
    return {
        'words': len(text.split()),
        'substitutions': words['sub'],
        'insertions': words['ins'],
        'deletions': words['del'],
        'characters': len(text),
        'character_errors': distance(text, found),
    }


def distance(a: str, b: str) -> int:
    """Edit distance in characters, of texts of hours too: a column of the table is two integers (Hyyrö 2003)."""
    if not a:
        return len(b)
    where: dict[str, int] = {}
    for i, c in enumerate(a):
        where[c] = where.get(c, 0) | 1 << i
    mask, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, errors = mask, 0, len(a)  # bit i: the column rises, or falls, from row i to i + 1
    for c in b:
        match = where.get(c, 0)
        straight = (((match & rises) + rises) ^ rises) | match | falls
        up, down = falls | (mask & ~(straight | rises)), straight & rises  # along the row
        errors += bool(up & last) - bool(down & last)
        up = up << 1 | 1
        rises, falls = (down << 1 | ~(straight | up)) & mask, up & straight & mask
    return errors


def _rate(errors: int, total: int):
    return round(errors / total, 6) if total else None
