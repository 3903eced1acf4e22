"""A live stream to words: feed samples, get words."""

import logging

import numpy as np
import torch

from nemo_lact.inference.audio import Resampler, finite
from nemo_lact.inference.features import FeatureBlocks
from nemo_lact.inference.text import GreedyText, Word
from nemo_lact.modules import LaCTEncoder
from nemo_lact.state import LaCTState

log = logging.getLogger('nemo_lact')


class Streamer:
    """One live stream.

    Args:
        model: NeMo CTC model with a streaming LaCTEncoder, in evaluation mode.
        latency: attention look-ahead, one of `model.encoder.att_context_size_all`; None: the model's default.
        state: memory to start from (one stream, as `Streamer.memory` or `LaCTState.load` gives); None: fresh.
        learn: False keeps the memory as it is.

    Example:
        >>> stream = Streamer(model)
        >>> for samples in microphone:
        ...     for word in stream.feed(samples):
        ...         print(word.word)
        >>> rest = stream.finish()

    Raises:
        ValueError: a model that cannot stream, with what to change.
    """

    def __init__(self, model, latency: list[int] | None = None, state: LaCTState | None = None, learn: bool = True):
        encoder = getattr(model, 'encoder', None)
        if not isinstance(encoder, LaCTEncoder):
            raise ValueError(f'the encoder is {type(encoder).__name__}; streaming needs a LaCTEncoder')
        self.model, self.encoder = model, encoder
        model.eval()  # NeMo leaves it in training mode after `transcribe`
        encoder.get_initial_cache_state(1)  # raises for an encoder that cannot stream
        if latency is not None:
            encoder.set_default_att_context_size(list(latency))
        self.window = list(encoder.att_context_size)
        self.device = next(encoder.parameters()).device
        self.rate = int(model.cfg.preprocessor.get('sample_rate', 16000))
        self.features = self._new_features()
        self.frame_seconds = encoder.subsampling_factor * self.features.hop / self.rate
        self.state = encoder.init_state(1, memory=None if state is None else state.to(device=self.device))
        self.learn = torch.tensor([learn], device=self.device)
        self.text_so_far = GreedyText(model, self.frame_seconds)
        self.resampler: Resampler | None = None
        self.next_word = 0  # token where the first word not yet given begins
        self.heard = self.bad_samples = 0
        self.finished = False

    def _new_features(self) -> FeatureBlocks:
        features = FeatureBlocks(self.model.preprocessor)
        if features.normalize is not None:
            raise ValueError(
                f"the preprocessor's normalize={features.normalize!r} needs the whole recording; train a streaming "
                f'model with model.preprocessor.normalize=NA'
            )
        return features

    @property
    def latency_seconds(self) -> float:
        """Longest wait from a sound to the text of its frame, without computing time: an attention chunk."""
        chunk = self.encoder.config.att_chunk(tuple(self.window)) or 1
        return chunk * self.frame_seconds + self.features.reach / self.rate

    @property
    def text(self) -> str:
        """All text so far, the unfinished last word included."""
        return self.text_so_far.text

    @property
    def partial(self) -> str:
        """The last word while it may still grow."""
        return ' '.join(word.word for word in self.text_so_far.words(self.next_word))

    @property
    def memory(self) -> LaCTState:
        """What was learned so far (one stream), without the caches; after `finish` the last chunk is in it."""
        return self.state.memory_only()

    def feed(self, samples, sample_rate: int | None = None) -> list[Word]:
        """Hear more.

        Args:
            samples: [n] floats from −1 to 1 or integers, any n. What is not finite is heard as silence, and counted
                in `bad_samples`.
            sample_rate: of these samples, if not the model's; may change from call to call.

        Returns:
            Words that are new and complete.
        """
        if self.finished:
            raise ValueError('this stream has ended; begin another, with state=stream.memory to go on with its memory')
        samples, bad = finite(samples)
        if bad:
            self.bad_samples += bad
            log.warning('%d samples of a stream were not finite and are heard as silence', bad)
        samples = self._at_model_rate(samples, sample_rate)
        self._hear(samples, last=False)
        words, self.next_word = self.text_so_far.complete(self.next_word)
        return words

    def finish(self) -> list[Word]:
        """The stream ends: the remaining words."""
        if self.finished:
            return []
        rest = np.zeros(0, dtype=np.float32)
        if self.resampler is not None:
            rest = self.resampler.feed(rest, last=True)
        self._hear(rest, last=True)
        with torch.inference_mode():
            self.state = self.encoder.end_utterance(self.state, self.learn)
        self.finished = True
        words = self.text_so_far.words(self.next_word)
        self.next_word = len(self.text_so_far.tokens)
        return words

    def _at_model_rate(self, samples: np.ndarray, rate: int | None) -> np.ndarray:
        rate = self.rate if rate is None else int(rate)
        if rate < 1000:
            raise ValueError(f'sample_rate={rate}; give samples a second, such as {self.rate}')
        before = np.zeros(0, dtype=np.float32)
        if self.resampler is not None and self.resampler.rate != rate:
            before, self.resampler = self.resampler.feed(before, last=True), None
        if rate != self.rate:
            self.resampler = self.resampler or Resampler(rate, self.rate)
            samples = self.resampler.feed(samples)
        return np.concatenate([before, samples])

    @torch.inference_mode()
    def _hear(self, samples: np.ndarray, last: bool) -> None:
        self.heard += len(samples)
        audio = torch.from_numpy(samples).to(self.device)[None]  # [1, n]
        features = self.features.feed(audio, last)  # [1, F, m]
        if features.size(2) == 0 and not last:
            return
        if self.encoder.att_context_size != self.window:  # another stream of this model has its own
            self.encoder.set_default_att_context_size(self.window)
        encoded, count, self.state = self.encoder.stream_step(features, None, self.state, last, self.learn)
        if int(count[0]):
            best, ids = self.model.decoder(encoder_output=encoded).max(dim=-1)  # [1, m] each
            self.text_so_far.feed(ids[0, : count[0]].cpu().numpy(), best[0, : count[0]].float().exp().cpu().numpy())
