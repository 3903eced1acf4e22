"""Sessions: several `model.transcribe` calls that share one memory, of a call, a meeting, a speaker."""

from pathlib import Path

import torch

from nemo_lact.modules import LaCTEncoder
from nemo_lact.state import LaCTState


class Session:
    """While open, the model's memory goes on from recording to recording.

    Args:
        model: NeMo CTC model with a LaCTEncoder.
        state: what is known already: a `LaCTState` of one stream, a file that `save` wrote, or None.
        learn: False reads the memory without changing it; may be switched at any time.

    Example:
        >>> with nemo_lact.session(model, state='anna.safetensors') as session:
        ...     text = model.transcribe(['today.wav'], batch_size=1)
        ...     session.save('anna.safetensors')

    Raises:
        ValueError: another encoder, or a state of another model or of several streams.
    """

    def __init__(self, model, state: LaCTState | str | Path | None = None, learn: bool = True):
        self.encoder = getattr(model, 'encoder', None)
        if not isinstance(self.encoder, LaCTEncoder):
            raise ValueError(f'the encoder is {type(self.encoder).__name__}; a session needs a LaCTEncoder')
        if isinstance(state, (str, Path)):
            state = LaCTState.load(state, fingerprint=self.encoder.fingerprint())
        self.learn = learn
        self.state = self._checked(state)

    def _checked(self, state: LaCTState | None) -> LaCTState:
        if state is not None and state.batch_size != 1:
            raise ValueError(
                f'the state holds {state.batch_size} streams, a session is one; state.select([0]) picks one'
            )
        return self.encoder.init_state(1, memory=state).memory_only()

    def __enter__(self) -> 'Session':
        if 'forward' in vars(self.encoder):
            raise RuntimeError('this model is in a session already; close that one first')
        plain = self.encoder.forward

        def forward(audio_signal, length=None, **others):
            if self.encoder.training or others.get('cache_last_channel') is not None:
                return plain(audio_signal=audio_signal, length=length, **others)
            if audio_signal.size(0) != 1:
                raise ValueError(
                    f'a batch of {audio_signal.size(0)} recordings in a session, which hears one at a time; call '
                    f'transcribe with batch_size=1'
                )
            self.state = self.state.to(device=audio_signal.device)
            learn = torch.tensor([self.learn], device=audio_signal.device)
            outputs, lengths, after = self.encoder.forward_with_state(audio_signal, length, self.state, learn)
            if all(bool(t.isfinite().all()) for t in after.weights):  # what was broken input must not stay
                self.state = after
            return outputs, lengths

        self.encoder.forward = forward
        return self

    def __exit__(self, *error) -> None:
        del self.encoder.forward

    def save(self, path: str | Path) -> None:
        """Write the memory as safetensors."""
        self.state.save(path)

    def reset(self) -> None:
        """Forget all."""
        self.state = self._checked(None)

    def decay(self, factor: float) -> None:
        """Keep only `factor` (0 to 1) of what was learned."""
        self.state = self.state.decay(factor)


def session(model, state: LaCTState | str | Path | None = None, learn: bool = True) -> Session:
    """`with nemo_lact.session(model, state=...) as s:`; see `Session`."""
    return Session(model, state, learn)
