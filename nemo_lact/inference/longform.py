"""Recordings of any length to text in flat memory: audio, features, encoder and decoding block by block.

What comes out equals the whole pass: every step keeps the context it needs across block borders.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from nemo_lact.inference.audio import ArrayBlocks, AudioBlocks
from nemo_lact.inference.features import FeatureBlocks, Moments
from nemo_lact.inference.text import GreedyText
from nemo_lact.modules import LaCTEncoder
from nemo_lact.modules.segments import SegmentedPass
from nemo_lact.state import LaCTState

BLOCK_SECONDS = 60.0  # audio read at a time


def why_not_blocks(model) -> str | None:
    """None if `transcribe_blocks` can run this model, else the reason."""
    encoder = getattr(model, 'encoder', None)
    if not isinstance(encoder, LaCTEncoder):
        return f'its encoder is {type(encoder).__name__}, not LaCTEncoder'
    if not hasattr(getattr(model, 'decoder', None), 'vocabulary'):
        return 'it has no CTC decoder with a vocabulary'
    try:
        FeatureBlocks(model.preprocessor)
    except ValueError as error:
        return str(error)
    return encoder.why_not_segments()


def transcribe_blocks(
    model,
    rows: Sequence[dict],
    batch_size: int = 1,
    channel: int | None = None,
    state: LaCTState | None = None,
    session_key: str | None = None,
    learn: bool = True,
    on_seconds: Callable[[float], None] = lambda seconds: None,
    half: bool = False,
) -> Iterator[tuple[int, dict, LaCTState]]:
    """Transcribe rows of any length: `audio_filepath`, `duration`, maybe `offset`; or `audio` (samples), `duration`.

    Args:
        model: NeMo CTC model with a LaCTEncoder, in evaluation mode; see `why_not_blocks`.
        batch_size: rows at a time, each a stream of its own.
        channel: channel to use of files with several.
        state: memory of one stream: the rows are heard one after the other in their order and share it.
        session_key: rows with the same value of this key share a memory, in their order; different values run side
            by side.
        learn: False keeps the memories as they are.
        on_seconds: called with the seconds of audio done since the last call.
        half: bf16 autocast on a GPU.

    Yields:
        Index of a row, `{'text', 'words'}` (words as `inference.text.Word`), and the memory after it (one stream).

    Raises:
        ValueError: the model cannot, a row lacks `session_key`, or audio that cannot be used.
    """
    reason = why_not_blocks(model)
    if reason is not None:
        raise ValueError(f'this model cannot transcribe block by block: {reason}')
    model.eval()  # NeMo leaves it in training mode after `transcribe`
    if model.encoder.config.lact_chunk_tolerance:
        batch_size = 1  # borders of its own in each row
    if session_key is not None:
        yield from _by_key(model, rows, batch_size, channel, session_key, learn, on_seconds, half)
        return
    if state is not None:
        for index, row in enumerate(rows):
            (result,), state = _batch(model, [row], channel, state, learn, on_seconds, half)
            yield index, result, state
        return
    order = sorted(range(len(rows)), key=lambda i: -rows[i]['duration'])  # like lengths together: less padding
    for start in range(0, len(order), batch_size):
        here = order[start : start + batch_size]
        results, after = _batch(model, [rows[i] for i in here], channel, None, learn, on_seconds, half)
        for place, (index, result) in enumerate(zip(here, results, strict=True)):
            yield index, result, after.select([place])


def _by_key(model, rows, batch_size, channel, key, learn, on_seconds, half):
    sessions: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row.get(key) is None:
            name = row.get('audio_filepath', 'audio')
            raise ValueError(f"{name} (row {index + 1}): no '{key}', by which sessions are told apart")
        sessions.setdefault(str(row[key]), []).append(index)
    longest_first = sorted(sessions.values(), key=len, reverse=True)
    for start in range(0, len(longest_first), batch_size):
        group = longest_first[start : start + batch_size]
        state = None
        for turn in range(len(group[0])):
            here = [indices[turn] for indices in group if turn < len(indices)]
            if state is not None:
                state = state.select(range(len(here)))  # sessions that are over have dropped out at the end
            results, state = _batch(model, [rows[i] for i in here], channel, state, learn, on_seconds, half)
            for place, (index, result) in enumerate(zip(here, results, strict=True)):
                yield index, result, state.select([place])


@torch.inference_mode()
def _batch(model, rows, channel, state, learn, on_seconds, half) -> tuple[list[dict], LaCTState]:
    """Rows that begin together, as independent streams."""
    encoder = model.encoder
    device = next(encoder.parameters()).device
    blocks = FeatureSource(model, rows, channel, device)
    states = encoder.memories_of(state)
    may_learn = torch.full((len(rows),), learn, device=device)
    offset = None if state is None or encoder.config.ttt_nope else state.position
    texts = [
        GreedyText(model, encoder.subsampling_factor * blocks.frame_seconds, float(row.get('offset') or 0))
        for row in rows
    ]
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        run = SegmentedPass(encoder, blocks.length, states, may_learn, offset)
        left = run.frames.tolist()  # encoder frames still to come of each row
        for features, last, seconds in blocks:
            encoded = run.feed(features, last)  # [B, D, m]
            if encoded.size(2):
                best, ids = model.decoder(encoder_output=encoded).max(dim=-1)  # [B, m] log probability, token
                best, ids = best.float().exp().cpu().numpy(), ids.cpu().numpy()
                for i, text in enumerate(texts):
                    n = min(left[i], ids.shape[1])
                    text.feed(ids[i, :n], best[i, :n])
                    left[i] -= n
            on_seconds(seconds)
    position = run.frames if state is None else state.position + run.frames
    after = encoder.state_of(run.layer_states, position)
    return [{'text': text.text, 'words': text.words()} for text in texts], after


class FeatureSource:
    """Iterates over (features [B, F, m], last, seconds of audio done) of some rows, normalised as the model wants.

    `length` [B] holds their feature frames, `frame_seconds` the seconds of one.
    """

    def __init__(self, model, rows, channel, device):
        self.model, self.rows, self.channel, self.device = model, rows, channel, device
        self.rate = int(model.cfg.preprocessor.get('sample_rate', 16000))
        with_sizes = self._open()
        self.samples = torch.tensor([r.samples for r in with_sizes], device=device)
        for reader in with_sizes:
            reader.close()
        features = FeatureBlocks(model.preprocessor, self.samples)
        self.length = features.lengths()  # [B] feature frames
        self.frame_seconds = features.hop / self.rate
        self.moments = None
        if features.normalize is not None:
            self.moments = Moments(self.length)
            for part, _, _ in self._pass():
                self.moments.add(part)

    def __iter__(self):
        for features, last, seconds in self._pass():
            yield features if self.moments is None else self.moments(features), last, seconds

    def _open(self) -> list[AudioBlocks | ArrayBlocks]:
        return [
            ArrayBlocks(row['audio'])
            if 'audio' in row
            else AudioBlocks(
                row['audio_filepath'], self.rate, self.channel, float(row.get('offset') or 0), row.get('duration')
            )
            for row in self.rows
        ]

    def _pass(self):
        readers = self._open()
        extractor = FeatureBlocks(self.model.preprocessor, self.samples)
        size, total = round(BLOCK_SECONDS * self.rate), int(self.samples.max())
        try:
            for start in range(0, total, size):
                n = min(size, total - start)
                audio = torch.zeros(len(readers), n)
                seconds = 0.0
                for row, reader in enumerate(readers):
                    block = torch.from_numpy(reader.read(n))
                    audio[row, : block.numel()] = block
                    seconds += block.numel() / self.rate
                last = start + n == total
                yield extractor.feed(audio.to(self.device), last), last, seconds
        finally:
            for reader in readers:
                reader.close()
