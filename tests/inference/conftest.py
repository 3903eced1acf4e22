"""Small models that stream or not, and recordings for them."""

import pytest
import soundfile
import torch
from small_models import RATE, build, decided, sound

STREAMING = dict(
    lact_mode='causal',
    causal_downsampling=True,
    att_context_style='chunked_limited',
    att_context_size=[[12, 3], [12, 1]],
)


@pytest.fixture
def offline(tiny):
    """A bidirectional model with per-feature normalisation."""
    torch.manual_seed(3)
    return decided(build({**tiny, 'segment_frames': 48}))


@pytest.fixture
def streaming(tiny):
    torch.manual_seed(4)
    model = build({**tiny, **STREAMING, 'segment_frames': 48})
    model.preprocessor.featurizer.normalize = None
    with torch.no_grad():  # features are not normalised: keep the encoder's input in range
        model.encoder.pre_encode.out.weight.mul_(0.3)
    return decided(model)


@pytest.fixture
def recording(tmp_path):
    def write(seconds: float, seed: int = 0, rate: int = RATE, name: str | None = None) -> str:
        path = tmp_path / (name or f'{seconds:g}s_{seed}_{rate}.wav')
        soundfile.write(path, sound(seconds * rate / RATE, seed), rate, subtype='FLOAT')
        return str(path)

    return write
