"""The bundled speech: readable, true to its manifests, free of overlap between splits, small, with its licence; and the
training rows that scripts/splice_speech.py makes of it."""

import json
import random
from pathlib import Path

import numpy as np
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
    assert len(rows) == {'train': 449, 'dev': 53, 'test': 50}[split]
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


# ---- rows joined from words


@pytest.fixture
def splice_speech(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER.parent.parent / 'scripts'))
    import splice_speech

    return splice_speech


def test_word_ends_fit_the_training_prompts():
    """One per word, in order, the last one at the end of the prompt; and none of a held-out prompt."""
    ends = json.loads((FOLDER / 'word_ends.json').read_text(encoding='utf-8'))
    rows = {row['audio_filepath']: row for row in rows_of('train')}
    assert set(ends) == set(rows)
    for name, row in rows.items():
        assert len(ends[name]) == len(row['text'].split())
        assert ends[name] == sorted(ends[name]) and ends[name][0] > 0
        assert ends[name][-1] == pytest.approx(row['duration'], abs=0.02)


def test_a_joined_row_is_its_words_cut_out_of_the_prompts(splice_speech, monkeypatch):
    monkeypatch.setattr(splice_speech, 'GAIN_DB', (0, 0))
    ramp = np.arange(1, 40001, dtype=np.float32)
    prompts = [(ramp, [('a', 0, 10000), ('b', 10000, 30000), ('c', 30000, 40000)]), (-ramp, [('d', 0, 40000)])]
    where = {'a': ramp[:10000], 'b': ramp[10000:30000], 'c': ramp[30000:], 'd': -ramp}
    for seed in range(20):
        samples, text = splice_speech.spliced(prompts, 4, random.Random(seed))
        assert 4 <= len(text.split()) <= 5
        assert (samples == np.concatenate([where[word] for word in text.split()])).all()


def test_words_too_short_for_the_alignment_are_not_cut_out(splice_speech):
    samples = np.zeros(40000, dtype=np.float32)
    prompts = [(samples, [('the', 0, 20000), ('a', 20000, 21000), ('line', 21000, 40000)])]
    for seed in range(20):
        assert 'a' not in splice_speech.spliced(prompts, 6, random.Random(seed))[1].split()


def test_rows_are_prompts_and_joined_ones_each_at_its_speed(splice_speech, tmp_path):
    few = tmp_path / 'few'
    few.mkdir()
    rows = sorted(rows_of('train'), key=lambda row: -len(row['text']))[5:11]
    for row in rows:
        row['audio_filepath'] = str(FOLDER / row['audio_filepath'])
    (few / 'train.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    ends = json.loads((FOLDER / 'word_ends.json').read_text(encoding='utf-8'))
    ends = {str(FOLDER / name): values for name, values in ends.items()}
    (few / 'word_ends.json').write_text(json.dumps(ends))
    made = splice_speech.write(few / 'train.json', tmp_path / 'out', rows=24, share=0.5)
    found = [json.loads(line) for line in made.read_text().splitlines()]
    assert len(found) == 24
    whole = {row['text']: row['duration'] for row in rows}
    kept = [row for row in found if row['text'] in whole]
    assert 6 <= len(kept) <= 18
    words = {word for text in whole for word in text.split()}
    for row in found:
        samples, rate = soundfile.read(tmp_path / 'out' / row['audio_filepath'])
        assert rate == 16000 and len(samples) / rate == pytest.approx(row['duration'], abs=0.001)
        assert set(row['text'].split()) <= words and np.abs(samples).max() > 0.05
    speeds = [whole[row['text']] / row['duration'] for row in kept]
    assert all(0.89 < speed < 1.11 for speed in speeds) and max(speeds) - min(speeds) > 0.05

    before = made.stat().st_mtime_ns
    assert splice_speech.write(few / 'train.json', tmp_path / 'out', rows=99) == made
    assert made.stat().st_mtime_ns == before  # complete: kept, so that a resumed run sees the same rows
    again = splice_speech.write(few / 'train.json', tmp_path / 'again', rows=24, share=0.5)
    assert again.read_text() == made.read_text()


def test_prompts_that_training_would_drop_are_replaced(splice_speech):
    second = np.zeros(16000, dtype=np.float32)
    assert splice_speech.usable(second, 'please enter')
    assert not splice_speech.usable(second, 'please enter your number now')  # 28 letters in 25 frames
    assert not splice_speech.usable(np.tile(second, 23), 'please enter')


def test_word_ends_of_another_text_are_refused(splice_speech, tmp_path):
    row = rows_of('train')[0]
    row['audio_filepath'] = str(FOLDER / row['audio_filepath'])
    (tmp_path / 'train.json').write_text(json.dumps(row) + '\n')
    (tmp_path / 'word_ends.json').write_text('{}')
    with pytest.raises(ValueError, match='words but 0 ends in word_ends.json'):
        splice_speech.write(tmp_path / 'train.json', tmp_path / 'out', rows=1)
