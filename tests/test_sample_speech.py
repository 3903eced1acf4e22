"""The bundled speech: readable, true to its manifests, free of overlap between splits, small, with its licence."""

import json
from pathlib import Path

import pytest
import soundfile

FOLDER = Path(__file__).parent.parent / 'data' / 'asterisk_en'
SPLITS = ('train', 'dev', 'test')
ALPHABET = set("abcdefghijklmnopqrstuvwxyz' ")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason='data/asterisk_en is not part of an installed package')


def rows_of(split):
    return [json.loads(line) for line in (FOLDER / f'{split}.json').read_text(encoding='utf-8').splitlines()]


@pytest.mark.parametrize('split', SPLITS)
def test_rows_have_what_nemo_needs(split):
    rows = rows_of(split)
    assert len(rows) == {'train': 390, 'dev': 53, 'test': 50}[split]
    for row in rows:
        assert set(row) == {'audio_filepath', 'duration', 'text', 'speaker'}
        assert not Path(row['audio_filepath']).is_absolute()
        assert row['text'] and row['text'] == ' '.join(row['text'].split())
        assert set(row['text']) <= ALPHABET, row['text']


@pytest.mark.parametrize('split', SPLITS)
def test_audio_is_16_khz_mono_and_as_long_as_the_manifest_says(split):
    for row in rows_of(split):
        info = soundfile.info(FOLDER / row['audio_filepath'])
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, 'OPUS')
        assert info.frames / info.samplerate == pytest.approx(row['duration'], abs=0.02), row['audio_filepath']


def test_audio_decodes_to_sound_of_that_length():
    for row in rows_of('test')[::10]:
        samples, rate = soundfile.read(FOLDER / row['audio_filepath'])
        assert len(samples) / rate == pytest.approx(row['duration'], abs=0.02)
        assert abs(samples).max() > 0.1


def test_no_text_and_no_file_is_in_two_splits_and_no_file_is_left_over():
    texts = {split: {row['text'] for row in rows_of(split)} for split in SPLITS}
    assert not texts['train'] & texts['dev']
    assert not texts['train'] & texts['test']
    assert not texts['dev'] & texts['test']
    named = [row['audio_filepath'] for split in SPLITS for row in rows_of(split)]
    assert len(set(named)) == len(named)
    assert set(named) == {f'audio/{path.name}' for path in (FOLDER / 'audio').iterdir()}


def test_licence_and_credits_are_there():
    licence = (FOLDER / 'LICENSE').read_text(encoding='utf-8')
    assert 'Attribution-ShareAlike 3.0' in licence and len(licence.split()) > 2000
    readme = (FOLDER / 'README.md').read_text(encoding='utf-8')
    for name in ('Allison Smith', 'Digium', 'CC-BY-SA-3.0', 'Opus'):
        assert name in readme


def test_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file()) < 6_000_000


def test_nemo_finds_the_audio_beside_the_manifest():
    """NeMo resolves our relative paths against the manifest's folder, from any working directory."""
    from nemo.collections.asr.data.audio_to_text import AudioToCharDataset

    dataset = AudioToCharDataset(str(FOLDER / 'dev.json'), labels=sorted(ALPHABET), sample_rate=16000)
    assert len(dataset) == 53
    signal, length, tokens, token_count = dataset[0]
    assert length / 16000 == pytest.approx(dataset.manifest_processor.collection[0].duration, abs=0.02)
    assert len(tokens) == token_count > 0
