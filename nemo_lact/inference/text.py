"""Greedy CTC text as it comes: tokens, words with times and confidence, subtitles."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Token:
    """A token of greedy CTC: first and last encoder frame, mean probability over its frames."""

    id: int
    first: int
    last: int
    confidence: float
    frames: int = 1


@dataclass(frozen=True)
class Word:
    """A word with its times in seconds from the start of the recording and a confidence from 0 to 1.

    The confidence is the mean over the word's tokens of the probability of each in its frames.
    """

    word: str
    start: float
    end: float
    confidence: float

    def rounded(self) -> dict:
        return {
            'word': self.word,
            'start': round(self.start, 3),
            'end': round(self.end, 3),
            'confidence': round(self.confidence, 4),
        }


class GreedyText:
    """Collects greedy CTC tokens of one recording, block by block.

    Args:
        model: a NeMo CTC model, whose vocabulary or tokenizer is used.
        frame_seconds: seconds of an encoder frame.
        offset: seconds at which the recording starts.
    """

    def __init__(self, model, frame_seconds: float, offset: float = 0.0):
        self.decoding = model.decoding
        self.tokenizer = getattr(model, 'tokenizer', None)
        self.vocabulary = list(model.decoder.vocabulary)
        self.blank = len(self.vocabulary)
        self.frame_seconds, self.offset = frame_seconds, offset
        self.tokens: list[Token] = []
        self.frames = 0
        self.previous = self.blank

    def feed(self, ids: np.ndarray, probabilities: np.ndarray) -> None:
        """Best token and its probability of the next n frames, [n] each."""
        for i in range(len(ids)):
            token, p = int(ids[i]), float(probabilities[i])
            if token != self.blank:
                if token == self.previous:
                    last = self.tokens[-1]
                    last.confidence += (p - last.confidence) / (last.frames + 1)
                    last.last, last.frames = self.frames + i, last.frames + 1
                else:
                    self.tokens.append(Token(token, self.frames + i, self.frames + i, p))
            self.previous = token
        self.frames += len(ids)

    @property
    def text(self) -> str:
        """All so far, as `model.transcribe` writes it."""
        return self._join(self.tokens)

    def words(self, start: int = 0) -> list[Word]:
        """Words from token `start` on, which begins a word; the last may still grow."""
        return [self._word(tokens) for tokens in self._split(self.tokens[start:])]

    def complete(self, start: int) -> tuple[list[Word], int]:
        """Words from token `start` on that can no longer grow, and the token where the next one begins."""
        groups = list(self._split(self.tokens[start:]))
        closed = bool(self.tokens[start:]) and self._is_space(self.tokens[-1])
        done = groups if closed else groups[:-1]
        if closed:
            return [self._word(g) for g in done], len(self.tokens)
        at = self.tokens.index(groups[-1][0], start) if groups else start
        return [self._word(g) for g in done], at

    def _is_space(self, token: Token) -> bool:
        return self.tokenizer is None and self.vocabulary[token.id] == ' '

    def _is_punctuation(self, token: Token) -> bool:
        return self.tokenizer is None and self.vocabulary[token.id] in (self.decoding.supported_punctuation or ())

    def _begins_word(self, token: Token) -> bool:
        return self.tokenizer is not None and self.tokenizer.ids_to_tokens([token.id])[0].startswith('▁')

    def _split(self, tokens: Sequence[Token]) -> Iterator[list[Token]]:
        word: list[Token] = []
        for i, token in enumerate(tokens):
            if self._is_space(token):
                if i + 1 < len(tokens) and self._is_punctuation(tokens[i + 1]):
                    continue  # NeMo drops a space before a mark
                if word:
                    yield word
                word = []
                continue
            if word and self._begins_word(token):
                yield word
                word = []
            word.append(token)
        if word:
            yield word

    def _word(self, tokens: list[Token]) -> Word:
        start = self.offset + tokens[0].first * self.frame_seconds
        end = self.offset + (tokens[-1].last + 1) * self.frame_seconds
        return Word(self._join(tokens).strip(), start, end, sum(t.confidence for t in tokens) / len(tokens))

    def _join(self, tokens: Sequence[Token]) -> str:
        return self.decoding.decode_tokens_to_str_with_strip_punctuation([t.id for t in tokens])


def subtitles(words: Iterable[dict], style: str, characters: int = 84, seconds: float = 6.0, pause: float = 1.0) -> str:
    """Words (`word`, `start`, `end`) as subtitles.

    Args:
        style: 'srt' or 'vtt'.
        characters, seconds: the most one subtitle holds, two lines of half the characters.
        pause: silence in seconds that starts a new one.
    """
    groups: list[list[dict]] = []
    for word in words:
        last = groups[-1] if groups else None
        if last is not None:
            length = sum(len(w['word']) + 1 for w in last) + len(word['word'])
            fits = length <= characters and word['end'] - last[0]['start'] <= seconds
        if last is not None and fits and word['start'] - last[-1]['end'] < pause:
            last.append(word)
        else:
            groups.append([word])
    mark = ',' if style == 'srt' else '.'
    lines = [] if style == 'srt' else ['WEBVTT', '']
    for number, group in enumerate(groups, 1):
        if style == 'srt':
            lines.append(str(number))
        lines.append(f'{_clock(group[0]["start"], mark)} --> {_clock(group[-1]["end"], mark)}')
        lines += _two_lines([w['word'] for w in group], characters // 2) + ['']
    return '\n'.join(lines)


def _two_lines(words: list[str], width: int) -> list[str]:
    text = ' '.join(words)
    if len(text) <= width:
        return [text]
    breaks = [i for i, c in enumerate(text) if c == ' ']
    if not breaks:
        return [text]
    middle = min(breaks, key=lambda i: abs(i - len(text) / 2))
    return [text[:middle], text[middle + 1 :]]


def _clock(seconds: float, mark: str) -> str:
    ms = round(seconds * 1000)
    return f'{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1000 % 60:02d}{mark}{ms % 1000:03d}'
