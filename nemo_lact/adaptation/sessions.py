"""Which rows of a manifest belong together, and whose memory is given to whom."""

from collections.abc import Sequence

SESSION_KEYS = ('session', 'session_id', 'speaker')  # the first one that a manifest has tells sessions apart
SPEAKER_KEY = 'speaker'


def session_key(rows: Sequence[dict], wanted: str | None) -> str | None:
    """`wanted`, or the first of `SESSION_KEYS` that a row has; None: no row has one.

    Raises:
        ValueError: no row has `wanted`.
    """
    if wanted is None:
        return next((key for key in SESSION_KEYS if any(row.get(key) is not None for row in rows)), None)
    if all(row.get(wanted) is None for row in rows):
        raise ValueError(f'--session-key {wanted}: no row has this key; the first has {", ".join(rows[0])}')
    return wanted


def shared_key(rows: Sequence[dict]) -> str | None:
    """The first of `SESSION_KEYS` that all rows have."""
    return next((key for key in SESSION_KEYS if all(row.get(key) is not None for row in rows)), None)


def grouped(rows: Sequence[dict], key: str | None) -> tuple[list[str], list[list[int]]]:
    """Names of the sessions, and the rows of each in their order; without a key each row is one.

    Raises:
        ValueError: a row lacks the key.
    """
    sessions: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if key is not None and row.get(key) is None:
            raise ValueError(
                f"{name_of(row, i)}: no '{key}', by which sessions are told apart; add it, or name another key with "
                f'--session-key'
            )
        sessions.setdefault(f'row {i + 1}' if key is None else str(row[key]), []).append(i)
    return list(sessions), list(sessions.values())


def name_of(row: dict, number: int) -> str:
    return f'{row["audio_filepath"]} (row {number + 1})' if 'audio_filepath' in row else f'row {number + 1}'


def donors(rows: Sequence[dict], sessions: Sequence[Sequence[int]], key: str | None) -> tuple[dict[int, int], str]:
    """Of each session the one whose memory it is given, the next one of another speaker; and a note, maybe empty."""
    n = len(sessions)
    if key is None:
        return {}, f'no cross test: rows name no session or speaker ({", ".join(SESSION_KEYS)})'
    speakers, note = [rows[session[0]].get(SPEAKER_KEY) for session in sessions], ''
    if None in speakers:
        speakers = list(range(n))
        note = f"cross test: rows have no '{SPEAKER_KEY}', so each session counts as another speaker"
    found = {}
    for b in range(n):
        others = ((b + step) % n for step in range(1, n))
        donor = next((a for a in others if speakers[a] != speakers[b]), None)
        if donor is not None:
            found[b] = donor
    return found, note if found else 'no cross test: all sessions are of one speaker'
