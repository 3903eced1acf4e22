"""A small model and rows of three sessions of two speakers, with texts that are partly right."""

import pytest
import soundfile
import torch
from small_models import RATE, build, decided, sound

from nemo_lact.inference.longform import transcribe_blocks

SECONDS = {'s0': [4.0, 2.5, 7.0], 's1': [3.0, 5.0], 's2': [6.0, 2.0, 3.5, 2.2]}
SPEAKERS = {'s0': 'ann', 's1': 'ann', 's2': 'bob'}


@pytest.fixture
def model(tiny):
    torch.manual_seed(3)
    return decided(build(tiny))


@pytest.fixture
def rows(tmp_path):
    found, seed = [], 0
    # Sessions take turns in the manifest.
    for turn in range(4):
        for session, lengths in SECONDS.items():
            if turn < len(lengths):
                path, seed = tmp_path / f'{session}-{turn}.wav', seed + 1
                soundfile.write(path, sound(lengths[turn], seed), RATE, subtype='FLOAT')
                row = {'audio_filepath': str(path), 'duration': lengths[turn], 'session': session}
                found.append({**row, 'speaker': SPEAKERS[session], 'text': f'abe {"a b cab dad " * turn}ed'})
    return found


@pytest.fixture
def spoken(model, rows):
    """Rows whose texts are what the frozen model finds, but for a word: so frozen is right and learning is not."""
    model.encoder.adaptation = False
    found = dict((i, result['text']) for i, result, _ in transcribe_blocks(model, rows))
    model.encoder.adaptation = True
    return [{**row, 'text': found[i] + ' bad'} for i, row in enumerate(rows)]
