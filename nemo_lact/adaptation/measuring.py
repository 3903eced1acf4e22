"""`measure`: the texts of a manifest under all rules for the memory, and their error rates."""

from collections.abc import Callable, Sequence

import numpy as np

from nemo_lact.adaptation.rates import BORDERS, by_position, compare
from nemo_lact.adaptation.sessions import donors, grouped, name_of, shared_key
from nemo_lact.adaptation.sessions import session_key as session_key_of
from nemo_lact.evaluation import count

ALIGNED_CELLS = 400_000_000  # words said × words found of one row: more take gigabytes to align
RULES = {
    'frozen': 'the memory may not learn: its initial weights are read',
    'learning': 'the memory learns, and is carried from row to row of a session',
    'fresh': 'the memory learns, from a fresh start in each row',
    'other': 'what was learned from a session of another speaker is read, without learning',
    'own': 'what was learned from the other rows of the session is read, without learning',
}


def measure(
    model,
    rows: Sequence[dict],
    session_key: str | None = None,
    clean_rows: Sequence[dict] | None = None,
    leave_one_out: int = 3,
    batch_size: int = 16,
    channel: int | None = None,
    half: bool = False,
    timing: bool = True,
    say: Callable[[str], None] = lambda stage: None,
) -> dict:
    """Error rates of a model with its memory learning, frozen, and with the memory of others (see `RULES`).

    Args:
        model: NeMo CTC model with a LaCTEncoder, on any device. It is as before afterwards.
        rows: manifest rows with `audio_filepath`, `duration`, `text`, those of a session in their order. In place of a
            file a row may have `audio`: samples [n], floats from −1 to 1 at the model's rate.
        session_key: rows with the same value of this key are a session. None: the first of
            `sessions.SESSION_KEYS` that the rows have; if none, each row is a recording of its own.
        clean_rows: short clean rows, on which learning should do no harm; each is heard from a fresh start.
        leave_one_out: rows of a session that are scored after learning from all its others; 0: none.
        batch_size: rows or sessions at a time.
        channel: channel to use of files with several.
        half: bf16 autocast.
        timing: also measure what learning costs in time.
        say: told what is being done.

    Returns:
        Numbers, texts, lists and dicts, ready for JSON. Parts that the rows do not allow are None, with the reason in
        `notes`; so are the ends of intervals over fewer than two sessions.

    Raises:
        ValueError: a model without a memory, rows that cannot be used, or an argument out of range.
    """
    from nemo_lact.inference.arms import Arms, why_not_arms

    if (reason := why_not_arms(model)) is not None:
        raise ValueError(f'this model has no adaptation to measure: {reason}')
    if batch_size < 1 or leave_one_out < 0:
        raise ValueError(f'batch_size={batch_size} (1 or more), leave_one_out={leave_one_out} (0 or more)')
    if not rows or clean_rows is not None and not clean_rows:
        raise ValueError('no rows to measure; give a manifest with audio_filepath, duration and text')
    run, clean = _Run(rows, session_key_of(rows, session_key), say), None
    if clean_rows is not None:
        clean = _Run(clean_rows, shared_key(clean_rows), lambda stage: say(f'clean speech, {stage}'))
    was_training = model.training
    model.eval()  # NeMo leaves it in training mode after `transcribe`
    try:
        for part, given in ((run, rows), (clean, clean_rows)):
            if part is not None:
                part.say(f'features of {len(given)} rows')
                part.arms = Arms(model, given, batch_size, channel, half)
        run.hear()
        found = {
            **run.facts(),
            **run.arms.facts(),
            'overall': run.overall(),
            'position': run.position(),
            'cross': run.cross(),
            'leave_one_out': run.leave_one_out(leave_one_out),
            'clean': None,
            'cost': None,
        }
        if clean is not None:
            clean.hear(carried=False)
            found['clean'] = {**clean.facts(), **clean.overall()}
            run.notes += [f'clean speech: {note}' for note in clean.notes]
        if timing:
            say('time')
            found['cost'] = run.arms.cost()
    finally:
        model.train(was_training)
    if found['normalize'] is not None:
        run.notes.append(
            f'features are normalised over each row (normalize: {found["normalize"]}), which adapts to it too; '
            f'it is the same under all rules, so that only the memory differs'
        )
    return {**found, 'rules': RULES, 'per_session': run.per_session(), 'notes': run.notes}


class _Run:
    """The texts of one manifest under all rules, and what they say."""

    def __init__(self, rows: Sequence[dict], key: str | None, say):
        self.rows, self.say, self.notes, self.arms = rows, say, [], None
        self.key = key
        self.names, self.sessions = grouped(rows, key)
        self.session_of = np.zeros(len(rows), int)
        for number, session in enumerate(self.sessions):
            self.session_of[session] = number
        self.several = max(map(len, self.sessions)) > 1
        self.scored = [i for i, row in enumerate(rows) if row.get('text') is not None]
        if any(not row.get('duration') for row in rows):
            raise ValueError("a row has no 'duration' (seconds); `transcription.manifest_rows` measures it")
        if not any(rows[i]['text'].split() for i in self.scored):
            raise ValueError(f"none of the {len(rows)} rows has a 'text' with words to compare with")
        if len(self.scored) < len(rows):
            self.notes.append(f'{len(rows) - len(self.scored)} rows without text are heard but not scored')
        if len(self.sessions) == 1:
            self.notes.append('one session only, so no intervals; another --session-key may give more')
        self.donors: dict[int, int] = {}
        self.texts: dict[str, list[str]] = {}
        self.errors: dict[str, np.ndarray] = {}  # [rows, 2] in words and characters
        self.totals = np.zeros((len(rows), 2), int)

    def facts(self) -> dict:
        return {
            'rows': len(self.rows),
            'rows_scored': len(self.scored),
            'seconds': round(sum(float(row['duration']) for row in self.rows), 3),
            'session_key': self.key,
            'sessions': len(self.sessions),
        }

    def hear(self, carried: bool = True) -> None:
        """All texts but those of `leave_one_out`; `carried` False: each row from a fresh start."""
        self.say('frozen')
        self._score('frozen', self.arms.read(range(len(self.rows))))
        alone = [[i] for i in range(len(self.rows))]
        if self.several or not carried:
            self._learn('fresh', alone)
        if not carried:
            return
        if not self.several:
            self.notes.append('each session is one row: nothing is carried, and no row is left out')
        self.donors, note = donors(self.rows, self.sessions, self.key)
        self.notes += [note] if note else []
        self._learn('learning', self.sessions)

    def _learn(self, rule: str, streams: Sequence[Sequence[int]]) -> None:
        """Hears the streams; with `donors`, other sessions are read with their memories."""
        self.say(rule)
        texts, others = [''] * len(self.rows), [''] * len(self.rows)
        given = self.donors if rule == 'learning' else {}
        for numbers, found, states in self.arms.learn(streams):
            for number, of_stream in zip(numbers, found):
                for row, text in zip(streams[number], of_stream):
                    texts[row] = text
            place = {number: i for i, number in enumerate(numbers)}
            guests = [(row, place[a]) for b, a in given.items() if a in place for row in self.sessions[b]]
            if guests:
                guest_rows, which = zip(*guests)
                for row, text in zip(guest_rows, self.arms.read(guest_rows, states, which)):
                    others[row] = text
        self._score(rule, texts)
        if given:
            self._score('other', others)

    def _score(self, rule: str, texts: list[str]) -> None:
        self.texts[rule] = texts
        self.errors[rule] = np.zeros((len(self.rows), 2), int)
        for i in self.scored:
            c = count(self.rows[i]['text'], texts[i])
            wrong = c['substitutions'] + c['insertions'] + c['deletions']
            self.errors[rule][i] = wrong, c['character_errors']
            self.totals[i] = c['words'], c['characters']

    def _by_session(self, counts: np.ndarray, only: Sequence[int] | None = None) -> np.ndarray:
        """[rows, n] -> [sessions, n], sums over their rows, or over those in `only`."""
        sums = np.zeros((len(self.sessions), counts.shape[1]), int)
        which = range(len(self.rows)) if only is None else list(only)
        np.add.at(sums, self.session_of[which], counts[which])
        return sums

    def _compare(self, rules, pairs, only: Sequence[int] | None = None) -> dict:
        errors = {rule: self._by_session(self.errors[rule], only) for rule in rules}
        return compare(errors, self._by_session(self.totals, only), pairs)

    def _rules(self) -> tuple[list[str], list[tuple[str, str]]]:
        rules = [rule for rule in ('frozen', 'fresh', 'learning') if rule in self.errors]
        pairs = [('learning', 'frozen'), ('learning', 'fresh'), ('fresh', 'frozen')]
        return rules, [pair for pair in pairs if set(pair) <= set(rules)]

    def overall(self) -> dict:
        return self._compare(*self._rules())

    def position(self) -> dict:
        """Rates by the time of the words in their session."""
        (rules, pairs), n = self._rules(), len(BORDERS) + 1
        errors, words = {rule: np.zeros((len(self.rows), n), int) for rule in rules}, np.zeros((len(self.rows), n), int)
        for session in self.sessions:
            ends = np.cumsum([float(self.rows[i]['duration']) for i in session])
            for i, end in zip(session, ends):
                row, found = self.rows[i], [self.texts[rule][i] for rule in rules]
                if row.get('text') is None:
                    continue
                if self.totals[i, 0] * max(len(text.split()) for text in found) > ALIGNED_CELLS:
                    self.notes.append(f'{name_of(row, i)}: too many words to align; not in the rates by position')
                    continue
                for rule, text in zip(rules, found):
                    errors[rule][i], words[i] = by_position(row, text, end - float(row['duration']))
        words, errors = self._by_session(words), {rule: self._by_session(e) for rule, e in errors.items()}
        edges, buckets = [0.0, *BORDERS, None], []
        for b in range(n):
            here = {rule: e[:, b : b + 1] for rule, e in errors.items()}
            buckets.append({'from': edges[b], 'to': edges[b + 1], **compare(here, words[:, b : b + 1], pairs)})
        spread = 'words are spread evenly over their row, or over its pieces where it names them'
        return {'times': f'seconds of audio heard in the session; {spread}', 'buckets': buckets}

    def cross(self) -> dict | None:
        if not self.donors:
            return None
        rows = [row for b in self.donors for row in self.sessions[b]]
        pairs = [('other', 'frozen'), ('learning', 'other')]
        found = self._compare(['frozen', 'other', 'learning'], pairs, rows)
        return {**found, 'pairs': [[self.names[a], self.names[b]] for b, a in self.donors.items()]}

    def leave_one_out(self, limit: int) -> dict | None:
        """Chosen rows, each read with a memory that learned from all others of its session."""
        chosen = []
        for session in self.sessions:
            usable = [i for i in session if self.totals[i, 0]] if len(session) > 1 else []
            places = np.linspace(0, len(usable) - 1, min(limit, len(usable))).round().astype(int)
            chosen += [usable[place] for place in places]
        if not chosen:
            return None
        self.say(f'leave one out, {len(chosen)} rows')
        streams = [[i for i in self.sessions[self.session_of[one]] if i != one] for one in chosen]
        texts = [''] * len(self.rows)
        for numbers, _, states in self.arms.learn(streams):
            ones = [chosen[number] for number in numbers]
            for one, text in zip(ones, self.arms.read(ones, states, range(len(ones)))):
                texts[one] = text
        self._score('own', texts)
        rules, pairs = ['frozen', 'own'], [('own', 'frozen')]
        if set(self.session_of[chosen]) <= set(self.donors):
            rules, pairs = [*rules, 'other'], [*pairs, ('own', 'other')]
        return {'rows': len(chosen), **self._compare(rules, pairs, chosen)}

    def per_session(self) -> list[dict]:
        """Counts of each session, from which rates and intervals can be made again, or of several runs together."""
        rules = [rule for rule in self.errors if rule != 'own']
        totals, errors = self._by_session(self.totals), {rule: self._by_session(self.errors[rule]) for rule in rules}
        return [
            {
                'session': self.names[s],
                'rows': len(self.sessions[s]),
                'words': int(totals[s, 0]),
                'characters': int(totals[s, 1]),
                'word_errors': {rule: int(errors[rule][s, 0]) for rule in rules},
                'character_errors': {rule: int(errors[rule][s, 1]) for rule in rules},
            }
            for s in range(len(self.sessions))
        ]
