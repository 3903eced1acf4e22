"""Audio, features and text of long recordings, block by block, equal to the whole."""

import numpy as np
import pytest
import soundfile
import torch
from small_models import RATE, sound

import nemo_lact.inference.longform as longform
from nemo_lact.inference.audio import AudioBlocks
from nemo_lact.inference.features import FeatureBlocks, Moments
from nemo_lact.inference.longform import transcribe_blocks, why_not_blocks
from nemo_lact.inference.text import GreedyText, subtitles
from nemo_lact.state import LaCTState


def rows_of(*paths, **more):
    return [
        {'audio_filepath': p, 'duration': soundfile.info(p).duration, **{k: v[i] for k, v in more.items()}}
        for i, p in enumerate(paths)
    ]


def results(model, rows, **options):
    found = {i: result for i, result, _ in transcribe_blocks(model, rows, **options)}
    assert sorted(found) == list(range(len(rows)))
    return [found[i] for i in range(len(rows))]


def test_audio_in_blocks_is_the_file(recording):
    path = recording(3.3)
    whole, _ = soundfile.read(path, dtype='float32')
    reader = AudioBlocks(path, RATE)
    parts = []
    while len(block := reader.read(7001)):
        parts.append(block)
    assert reader.samples == len(whole) and np.array_equal(np.concatenate(parts), whole)
    part = AudioBlocks(path, RATE, offset=0.5, duration=1.25).read(10**6)
    assert np.array_equal(part, whole[8000:28000])


def test_resampled_blocks_are_as_long_as_said_and_close_to_the_whole(recording):
    import soxr

    path = recording(2.7, rate=44100)
    whole, _ = soundfile.read(path, dtype='float32')
    reader = AudioBlocks(path, RATE)
    out = np.concatenate([reader.read(5000) for _ in range(9)])
    assert len(out) == reader.samples == round(len(whole) * RATE / 44100)
    truth = soxr.resample(whole, 44100, RATE)[: len(out)]
    assert np.abs(out[: len(truth)] - truth).max() < 1e-4


def test_audio_that_cannot_be_used_is_named(recording, tmp_path):
    broken = sound(1.0)
    broken[100] = np.nan
    soundfile.write(tmp_path / 'nan.wav', broken, RATE, subtype='FLOAT')
    with pytest.raises(ValueError, match='nan.wav: samples that are not finite'):
        AudioBlocks(tmp_path / 'nan.wav', RATE).read(RATE)
    soundfile.write(tmp_path / 'two.wav', np.zeros((100, 2)), RATE)
    with pytest.raises(ValueError, match='2 channels'):
        AudioBlocks(tmp_path / 'two.wav', RATE)
    with pytest.raises(ValueError, match='no audio at 9 s'):
        AudioBlocks(recording(1.0), RATE, offset=9)


@pytest.mark.parametrize('sizes', [(160,), (7001, 33), (16000,), (100, 999, 48000)])
def test_features_in_blocks_are_those_of_the_whole(offline, contract, sizes):
    audio = torch.from_numpy(np.stack([sound(4.01, 1), sound(4.01, 2)]))
    samples = torch.tensor([64160, 30001])
    audio[1, 30001:] = 0
    for normalize in (None, 'per_feature'):
        offline.preprocessor.featurizer.normalize = normalize
        whole, n = offline.preprocessor(input_signal=audio, length=samples)
        blocks = FeatureBlocks(offline.preprocessor, samples)
        assert torch.equal(blocks.lengths(), n)
        parts, at, turn = [], 0, 0
        while at < audio.size(1):
            step = sizes[turn % len(sizes)]
            parts.append(blocks.feed(audio[:, at : at + step], last=at + step >= audio.size(1)))
            at, turn = at + step, turn + 1
        if normalize:
            moments = Moments(n)
            for part in parts:
                moments.add(part)
            parts = [moments(part) for part in parts]
        out = torch.cat(parts, dim=2)
        for row in range(2):
            a, b = out[row, :, : n[row]], whole[row, :, : n[row]]
            contract('features in blocks = whole (relative)', (a - b).norm() / b.norm(), 1e-4)


def test_text_in_blocks_is_that_of_transcribe(offline, recording, monkeypatch):
    paths = [recording(31.0, 1), recording(12.3, 2), recording(0.4, 3)]
    expected = [h.text for h in offline.transcribe(paths, batch_size=1, verbose=False)]
    assert len(expected[0]) > 60
    for block, batch in ((60.0, 1), (1.7, 1), (5.0, 3)):
        monkeypatch.setattr(longform, 'BLOCK_SECONDS', block)
        assert [r['text'] for r in results(offline, rows_of(*paths), batch_size=batch)] == expected


def test_streaming_model_offline_in_blocks(streaming, recording):
    path = recording(21.0, 5)
    expected = streaming.transcribe([path], verbose=False)[0].text
    assert results(streaming, rows_of(path))[0]['text'] == expected and len(expected) > 30


def test_words_have_global_times_and_confidence(offline, recording):
    offline.decoder.decoder_layers[0].bias.data[6] = -1e4  # no apostrophes: NeMo tells them apart by spaces
    path = recording(20.0, 1)
    whole = offline.transcribe([path], timestamps=True, verbose=False)[0].timestamp['word']
    words = results(offline, rows_of(path))[0]['words']
    assert [w.word for w in words] == [w['word'] for w in whole] and len(words) > 5
    for ours, nemo in zip(words, whole):  # NeMo lets a word begin where the one before ended, pauses included
        assert nemo['start'] - 0.081 <= ours.start <= nemo['end'] + 0.081 and ours.start < ours.end
    assert all(0 < w.confidence <= 1 and w.start < w.end <= 20.1 for w in words)
    row = {**rows_of(path)[0], 'offset': 5.0, 'duration': 4.0}
    assert all(4.9 <= w.start and w.end <= 9.1 for w in results(offline, [row])[0]['words'])


def test_rows_share_a_memory_in_their_order(offline, recording):
    paths = [recording(6.0, 1), recording(5.0, 2)]
    state = offline.encoder.init_state(1)
    after = [s for _, _, s in transcribe_blocks(offline, rows_of(*paths), state=state)]
    with torch.inference_mode():
        truth = state
        for path in paths:
            audio = torch.from_numpy(soundfile.read(path, dtype='float32')[0])[None]
            features, n = offline.preprocessor(input_signal=audio, length=torch.tensor([audio.size(1)]))
            _, _, truth = offline.encoder.forward_with_state(features, n, truth)
    for a, b in zip(after[1].weights, truth.weights):
        assert (a - b).norm() / b.norm() < 1e-3
    assert torch.equal(after[1].position, truth.position)


def test_memory_by_key(offline, recording):
    paths = [recording(4.0, i) for i in range(5)]
    rows = rows_of(*paths, speaker=['a', 'b', 'a', 'c', 'a'])
    together = results(offline, rows, session_key='speaker', batch_size=2)
    for name in 'abc':
        own = [i for i, r in enumerate(rows) if r['speaker'] == name]
        alone = results(offline, [rows[i] for i in own], state=offline.encoder.init_state(1))
        assert [together[i]['text'] for i in own] == [r['text'] for r in alone]
    with pytest.raises(ValueError, match="no 'speaker'"):
        results(offline, rows_of(paths[0]), session_key='speaker')


def test_not_learning_keeps_the_memory(offline, recording):
    rows = rows_of(recording(5.0, 1))
    state = offline.encoder.init_state(1)
    (_, _, after), = transcribe_blocks(offline, rows, state=state, learn=False)
    assert not any(t.any() for t in after.weights) and int(after.position[0]) > 100


def test_models_that_cannot_are_told(offline):
    offline.encoder.change_attention_model('rel_pos')
    assert 'attends to all frames' in why_not_blocks(offline)
    with pytest.raises(ValueError, match='choose a window'):
        next(transcribe_blocks(offline, [{'audio_filepath': 'x.wav', 'duration': 1}]))
    offline.encoder = torch.nn.Linear(2, 2)
    assert 'Linear, not LaCTEncoder' in why_not_blocks(offline)


def test_memory_saved_after_blocks_can_be_loaded(offline, recording, tmp_path):
    (_, _, after), = transcribe_blocks(offline, rows_of(recording(5.0, 1)))
    after.save(tmp_path / 'a.safetensors')
    again = LaCTState.load(tmp_path / 'a.safetensors', offline.encoder.fingerprint())
    assert all(torch.equal(a, b) for a, b in zip(after.weights, again.weights))


def test_greedy_text_collapses_over_block_borders(offline):
    ids = [1, 1, 7, 1, 0, 2, 2, 2, 7, 0, 7, 3, 3]  # 7 is blank, 0 the space
    p = np.linspace(0.5, 1.0, len(ids))
    for cut in range(len(ids)):
        text = GreedyText(offline, 0.04, offset=10.0)
        text.feed(np.array(ids[:cut]), p[:cut])
        text.feed(np.array(ids[cut:]), p[cut:])
        assert text.text == 'aa b c'
        words = text.words()
        assert [w.word for w in words] == ['aa', 'b', 'c']
        assert [w.start for w in words] == pytest.approx([10.0, 10.2, 10.44])
        assert words[1].end == pytest.approx(10.32) and words[1].confidence == pytest.approx(p[5:8].mean())


def test_a_mark_joins_the_word_before_it_as_in_nemo(offline):
    text = GreedyText(offline, 0.04)
    ids = [1, 0, 6, 2, 0, 3]  # a, space, apostrophe, b, space, c
    text.feed(np.array(ids), np.ones(6))
    assert text.text == "a'b c" and [w.word for w in text.words()] == ["a'b", 'c']


def test_subtitles():
    words = [dict(word=f'word{i}', start=i * 0.5, end=i * 0.5 + 0.4) for i in range(14)]
    words += [dict(word='late', start=3725.25, end=3725.5)]
    srt = subtitles(words, 'srt')
    assert srt.startswith('1\n00:00:00,000 --> 00:00:05,900\nword0 word1')
    assert '\n3\n01:02:05,250 --> 01:02:05,500\nlate\n' in srt
    vtt = subtitles(words, 'vtt')
    assert vtt.startswith('WEBVTT\n\n00:00:00.000 -->') and vtt.count('-->') == 3
    assert all(len(line) <= 48 for line in srt.splitlines())
