"""The same recordings heard under different rules for the memory: learning, frozen, with the memory of another.

Features are computed once and serve every rule, so nothing but the memory differs between the texts.
"""

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_lact.inference.features import FeatureBlocks
from nemo_lact.inference.longform import FeatureSource
from nemo_lact.modules import LaCTEncoder
from nemo_lact.state import LaCTState

BATCH_SECONDS = 3600.0  # audio of a batch with its padding, at most: NeMo's decoder gives all frames at once
READERS = 4  # batches of audio read at a time


def why_not_arms(model) -> str | None:
    """None if this model has a memory that can be switched, else the reason."""
    encoder = getattr(model, 'encoder', None)
    if not isinstance(encoder, LaCTEncoder):
        return f'its encoder is {type(encoder).__name__}, not LaCTEncoder: it has no fast-weight memory'
    if not encoder.config.memory_layers:
        return 'it has no memory: it was built with lact_layers=[]'
    if not encoder.config.adaptation:
        return 'it was built with adaptation=false: its memory was never trained to learn'
    if not hasattr(getattr(model, 'decoder', None), 'vocabulary'):
        return 'it has no CTC decoder with a vocabulary; give a CTC model'
    try:
        FeatureBlocks(model.preprocessor)
    except ValueError as error:
        return str(error)
    return None


class Arms:
    """Recordings as features in main memory (115 MB an hour at 80 channels), and what a model makes of them.

    Args:
        model: NeMo CTC model with a LaCTEncoder in evaluation mode; see `why_not_arms`.
        rows: with `audio_filepath`, `duration`, maybe `offset`; or `audio` (samples) and `duration`.
        batch_size: recordings or streams at a time; fewer where they are long.
        channel: channel to use of files with several.
        half: bf16 autocast, also on a CPU.
    """

    def __init__(
        self, model, rows: Sequence[dict], batch_size: int = 16, channel: int | None = None, half: bool = False
    ):
        self.model, self.encoder = model, model.encoder
        self.batch_size, self.half = batch_size, half
        self.device = next(model.encoder.parameters()).device
        self.seconds = [float(row['duration']) for row in rows]
        self.features: list[Tensor] = [None] * len(rows)  # [T, F] each
        groups = list(self._groups(sorted(range(len(rows)), key=lambda i: -self.seconds[i]), self.seconds))

        def load(group: list[int]) -> None:
            source = FeatureSource(model, [rows[i] for i in group], channel, self.device)
            whole = torch.cat([features.cpu() for features, _, _ in source], dim=2).transpose(1, 2)  # [B, T, F]
            for i, features, n in zip(group, whole, source.length.tolist()):
                self.features[i] = features[:n].clone()

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(load, groups))

    def facts(self) -> dict:
        """What the numbers depend on besides the recordings."""
        config, cuda = self.encoder.config, self.device.type == 'cuda'
        weights = str(next(self.encoder.parameters()).dtype)[6:]
        return {
            'device': torch.cuda.get_device_name(self.device) if cuda else self.device.type,
            'precision': 'bfloat16 autocast' if self.half else weights,
            'batch_size': self.batch_size,
            'normalize': FeatureBlocks(self.model.preprocessor).normalize,
            'lact_mode': config.lact_mode,
            'chunk_seconds': round(config.lact_chunk_size * config.frame_seconds, 3),
        }

    def read(
        self, rows: Sequence[int], state: LaCTState | None = None, which: Sequence[int] | None = None
    ) -> list[str]:
        """Texts of `rows` with a memory that may not learn.

        Args:
            state: memories to read, `which` of them for each row; None: the initial weights.
        """
        texts: list[str] = [''] * len(rows)
        seconds = [self.seconds[row] for row in rows]
        with self._adaptation(False):
            for group in self._groups(sorted(range(len(rows)), key=lambda i: -seconds[i]), seconds):
                own = None if state is None else state.select([which[i] for i in group])
                found, _ = self._run([rows[i] for i in group], own)
                for i, text in zip(group, found):
                    texts[i] = text
        return texts

    def learn(self, streams: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], list[list[str]], LaCTState]]:
        """Each stream hears its rows in order with one memory that starts fresh, learns and is carried along.

        Yields:
            Numbers of some streams, the texts of their rows, and their memories after the last row.
        """
        seconds = [max(self.seconds[row] for row in stream) for stream in streams]
        order = sorted(range(len(streams)), key=lambda i: (-len(streams[i]), -seconds[i]))
        for group in self._groups(order, seconds):
            texts: list[list[str]] = [[] for _ in group]
            state, over = None, []
            for turn in range(len(streams[group[0]])):
                rows = [streams[i][turn] for i in group if turn < len(streams[i])]
                if state is not None and len(rows) < state.batch_size:  # streams that are over stand at the end
                    over.append(state.select(range(len(rows), state.batch_size)))
                    state = state.select(range(len(rows)))
                with self._adaptation(True):
                    found, state = self._run(rows, state)
                for place, text in enumerate(found):
                    texts[place].append(text)
            yield group, texts, LaCTState.merge([state, *reversed(over)])

    def cost(self, rounds: int = 3, seconds: float = 600.0) -> dict:
        """Time of encoder and decoder with learning over that without, in turns on the same audio, fresh memories.

        Args:
            rounds: pairs of passes, after one that is not counted.
            seconds: of audio, at most; the first rows are taken, at least one.

        Returns:
            `ratio` (median over rounds), `low` and `high` (least and most), `rows`, `audio_seconds`, `rounds`,
            `batch_size`; on a GPU also median `learning_seconds` and `frozen_seconds`.
        """
        rows = [i for i, end in enumerate(np.cumsum(self.seconds)) if i == 0 or end <= seconds]
        groups = self._groups(sorted(rows, key=lambda i: -self.seconds[i]), self.seconds)
        batches = [self._batch(group) for group in groups]
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(rounds + 1):
            for learning in (True, False):
                with self._adaptation(learning):
                    taken[learning].append(self._timed(batches))
        learning, frozen = taken[True][1:], taken[False][1:]
        ratios = [a / b for a, b in zip(learning, frozen)]
        found = {
            'ratio': statistics.median(ratios), 'low': min(ratios), 'high': max(ratios), 'rounds': rounds,
            'rows': len(rows), 'audio_seconds': sum(self.seconds[i] for i in rows), 'batch_size': self.batch_size,
        }  # fmt: skip
        if self.device.type == 'cuda':  # absolute times of a CPU shared with other work would mislead
            found['learning_seconds'] = statistics.median(learning)
            found['frozen_seconds'] = statistics.median(frozen)
        return found

    @torch.inference_mode()
    def _timed(self, batches) -> float:
        self._wait()
        start = time.perf_counter()
        for features, length in batches:
            with self._autocast():
                encoded, _ = self.encoder(audio_signal=features, length=length)
                self.model.decoder(encoder_output=encoded)
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    @contextlib.contextmanager
    def _adaptation(self, learning: bool):
        before, self.encoder.adaptation = self.encoder.adaptation, learning
        try:
            yield
        finally:
            self.encoder.adaptation = before

    def _groups(self, order: Sequence[int], seconds: Sequence[float]) -> Iterator[list[int]]:
        """`order` cut into batches."""
        group, longest = [], 0.0
        for i in order:
            longest = max(longest, seconds[i])
            if group and (len(group) == self.batch_size or longest * (len(group) + 1) > BATCH_SECONDS):
                yield group
                group, longest = [], seconds[i]
            group.append(i)
        if group:
            yield group

    def _batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Features [B, F, T] and their frames [B]."""
        features = pad_sequence([self.features[i] for i in rows], batch_first=True).transpose(1, 2)
        length = torch.tensor([len(self.features[i]) for i in rows])
        return features.to(self.device), length.to(self.device)

    @torch.inference_mode()
    def _run(self, rows: Sequence[int], state: LaCTState | None) -> tuple[list[str], LaCTState]:
        features, length = self._batch(rows)
        with self._autocast():
            encoded, length, state = self.encoder.forward_with_state(features, length, state)
            ids = self.model.decoder(encoder_output=encoded).argmax(dim=-1)  # [B, T']
        return [self._text(row[:n]) for row, n in zip(ids.cpu().numpy(), length.tolist())], state

    def _text(self, ids: np.ndarray) -> str:
        """Greedy CTC: repetitions are one token, blanks none."""
        tokens = ids[np.flatnonzero(np.diff(ids, prepend=-1))]
        tokens = tokens[tokens != len(self.model.decoder.vocabulary)]
        return self.model.decoding.decode_tokens_to_str_with_strip_punctuation(tokens.tolist())
