"""Joining utterances: exact text, times and samples, in manifests and in Lhotse cuts, and one condition per row."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from mini import RATE, noise, read_rows, run, write_rows

from nemo_lact.data.longform import join
from nemo_lact.data.pieces import Piece

SPEECH = Path(__file__).parents[2] / 'data' / 'asterisk_en'


def piece(duration, path='a.wav', offset=0.0, group='g', text='x'):
    return Piece(path, offset, duration, text, (group,), RATE, 1000.0)


# ---- the rule of joining


def test_rows_are_filled_up_to_their_length():
    pieces = [piece(4.0, f'{i}.wav', text=f't{i}') for i in range(6)]
    rows = join(pieces, [10.0], gap=0.5)
    assert [(row.text, row.duration) for row in rows] == [('t0 t1', 8.5), ('t2 t3', 8.5), ('t4 t5', 8.5)]
    assert rows[0].starts == [0.0, 4.5] and not rows[0].in_one_file


def test_lengths_take_turns():
    rows = join([piece(1.0, f'{i}.wav') for i in range(12)], [2.0, 4.0], gap=0.0)
    assert [row.duration for row in rows] == [2.0, 4.0, 2.0, 4.0]


def test_parts_of_a_file_keep_their_pauses_and_long_ones_end_the_row():
    pieces = [piece(1.0, offset=5.0, text='b'), piece(2.0, offset=1.5, text='a'), piece(1.0, offset=20.0, text='c')]
    rows = join(pieces, [60.0], max_pause=2.0)
    assert [(row.text, row.starts, row.in_one_file) for row in rows] == [('a b', [0.0, 3.5], True), ('c', [0.0], True)]
    assert [row.text for row in join(pieces, [60.0], max_pause=20.0)] == ['a b c']


def test_groups_do_not_mix_and_too_long_pieces_stay():
    rows = join([piece(1.0, group='a'), piece(99.0, 'b.wav', group='b'), piece(1.0, 'c.wav', group='a')], [10.0])
    assert [[p.group for p in row.pieces] for row in rows] == [[('a',), ('a',)], [('b',)]]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.05, 40), st.sampled_from('ab'), st.sampled_from('gh')), max_size=20),
    st.lists(st.floats(1, 100), min_size=1, max_size=3),
    st.floats(0, 0.9),
)
def test_nothing_is_lost_moved_or_used_twice(parts, lengths, gap):
    pieces = [piece(d, f'{p}{i}.wav', group=g, text=f't{i}') for i, (d, p, g) in enumerate(parts)]
    rows = join(pieces, lengths, gap)
    for group in ('g', 'h'):
        joined = [p.text for row in rows for p in row.pieces if p.group == (group,)]
        assert joined == [p.text for p in pieces if p.group == (group,)]
    for row in rows:
        assert row.duration <= max(lengths) + 1e-6 or len(row.pieces) == 1
        ends = [start + p.duration for start, p in zip(row.starts, row.pieces)]
        assert all(abs(start - end - gap) < 1e-9 for start, end in zip(row.starts[1:], ends))


@pytest.mark.parametrize('lengths, gap', [([0], 0.1), ([], 0.1), ([float('nan')], 0.1), ([5], 6), ([5], -1)])
def test_lengths_that_make_no_sense(lengths, gap):
    with pytest.raises(ValueError, match='above 0|gap='):
        join([piece(1.0)], lengths, gap)


# ---- on real speech


@pytest.fixture(scope='module')
def rows(tmp_path_factory) -> Path:
    """The held-out prompts of the repository, checked and made absolute by `data generic`."""
    import nemo.core.config  # noqa: F401  before the first CliRunner, so that NeMo's log does not hold its streams

    if not SPEECH.is_dir():
        pytest.skip('needs a checkout')
    manifest = tmp_path_factory.mktemp('speech') / 'rows.json'
    run('data', 'generic', SPEECH / 'test.json', '-o', manifest)
    rows = read_rows(manifest)
    assert len(rows) == 50 and all(os.path.isabs(row['audio_filepath']) and row['speaker'] for row in rows)
    run('data', 'check', manifest, '--config-name', 'lact_ctc_char', '--strict')
    return manifest


def test_cuts_and_written_audio_are_the_same(rows, tmp_path):
    from lhotse import CutSet

    options = ['--by', 'speaker', '--seconds', 20, '--seconds', 60, '--gap', 0.4]
    result = run('data', 'longform', rows, '-o', tmp_path / 'long.jsonl.gz', *options)
    assert 'joined by speaker' in result.stdout
    run('data', 'longform', rows, '-o', tmp_path / 'long.json', '--write-audio', tmp_path / 'audio', *options)
    cuts, written = list(CutSet.from_file(tmp_path / 'long.jsonl.gz')), read_rows(tmp_path / 'long.json')
    assert len(cuts) == len(written) >= 3
    assert [p['text'] for row in written for p in row['pieces']] == [row['text'] for row in read_rows(rows)]
    for cut, row in zip(cuts, written):
        mixed, (samples, rate) = cut.load_audio()[0], soundfile.read(row['audio_filepath'], dtype='float32')
        assert mixed.shape == samples.shape and rate == RATE
        assert np.abs(mixed - samples).max() < 2 / 32768  # 16 bit were written
        assert row['duration'] == pytest.approx(cut.duration, abs=1e-3) == pytest.approx(len(samples) / rate, abs=1e-3)
        (said,) = cut.supervisions
        assert said.text == row['text'] == ' '.join(p['text'] for p in row['pieces'])
        assert said.custom['pieces'] == row['pieces'] and said.speaker == row['speaker']
        for one in row['pieces']:  # each piece lies where its row says, the gap is silent
            start, end = round(one['start'] * RATE), round(one['end'] * RATE)
            source, _ = soundfile.read(one['audio_filepath'], frames=end - start, dtype='float32')
            assert np.abs(samples[start : start + len(source)] - source).max() < 2 / 32768
            assert not samples[end + 2 : end + round(0.39 * RATE)].any()
    run('data', 'check', tmp_path / 'long.json', '--config-name', 'lact_ctc_char', '--strict')


def test_parts_of_one_file_need_no_new_audio(tmp_path):
    soundfile.write(tmp_path / 'hour.wav', noise(30.0), RATE)
    parts = [(0.0, 2.0), (2.5, 3.0), (6.0, 1.0), (15.0, 4.0)]
    rows = [
        {'audio_filepath': 'hour.wav', 'offset': at, 'duration': length, 'text': f't{i}', 'session': 's'}
        for i, (at, length) in enumerate(parts)
    ]
    run('data', 'longform', write_rows(tmp_path / 'm.json', rows), '-o', tmp_path / 'long.json')
    first, second = read_rows(tmp_path / 'long.json')
    assert (first['offset'], first['duration'], first['text']) == (0.0, 7.0, 't0 t1 t2')
    assert [(p['start'], p['end']) for p in first['pieces']] == [(0.0, 2.0), (2.5, 5.5), (6.0, 7.0)]
    assert (second['offset'], second['duration'], second['text']) == (15.0, 4.0, 't3')
    run('data', 'check', tmp_path / 'long.json', '--strict')
    # the same from Lhotse cuts
    run('data', 'longform', tmp_path / 'm.json', '-o', tmp_path / 'short.jsonl.gz', '--seconds', 3)
    run('data', 'longform', tmp_path / 'short.jsonl.gz', '-o', tmp_path / 'again.json')
    again = read_rows(tmp_path / 'again.json')
    keys = ('audio_filepath', 'offset', 'duration', 'text')
    assert [[row[key] for key in keys] for row in again] == [[row[key] for key in keys] for row in (first, second)]


def test_several_files_need_cuts_or_audio(rows, tmp_path):
    result = run('data', 'longform', rows, '-o', tmp_path / 'long.json', code=1)
    assert '--write-audio FOLDER' in result.stderr and '.jsonl.gz' in result.stderr
    assert not (tmp_path / 'long.json').exists()


def test_bad_input_is_named(rows, tmp_path):
    bad = write_rows(tmp_path / 'bad.json', [{**row, 'speaker': None} for row in read_rows(rows)])
    out = ['-o', tmp_path / 'x.jsonl.gz']
    assert 'say what belongs together with --by' in run('data', 'longform', bad, *out, code=1).stderr
    assert "row 1: no 'chapter'" in run('data', 'longform', rows, *out, '--by', 'chapter', code=1).stderr
    mixed = write_rows(tmp_path / 'mixed.json', [*read_rows(rows)[:2], {'audio_filepath': 'gone.wav', 'speaker': 'a'}])
    run('data', 'longform', mixed, *out)
    (left,) = read_rows(tmp_path / 'x.rejected.jsonl')
    assert left['line'] == 3 and 'gone.wav: no such file' in left['reason']
    (tmp_path / 'no.jsonl.gz').write_text('no gzip')
    assert 'holds no Lhotse cuts' in run('data', 'longform', tmp_path / 'no.jsonl.gz', *out, code=1).stderr


# ---- one room, channel, noise and gain per row, by NeMo's Lhotse loader


@pytest.fixture(scope='module')
def cuts(rows, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('cuts') / 'long.jsonl.gz'
    run('data', 'longform', rows, '-o', path, '--seconds', 30)
    return path


@pytest.fixture(scope='module')
def conditions(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('conditions')
    made = run('data', 'conditions', '-o', folder, '--rooms', 4, '--noises', 1, '--seconds', 40).stdout.split()
    assert made == [str(folder / 'rooms.jsonl.gz'), str(folder / 'noises.jsonl.gz')]
    return folder


def batch(cuts, **options):
    """(audio [B, T], cuts) of all rows, as NeMo's loader gives them."""
    from nemo.collections.asr.data.audio_to_text_lhotse import LhotseSpeechToTextBpeDataset
    from nemo.collections.common.data.lhotse.dataloader import get_lhotse_dataloader_from_config
    from nemo.collections.common.parts.preprocessing.parsers import make_parser
    from omegaconf import OmegaConf

    labels = list(" abcdefghijklmnopqrstuvwxyz'")
    config = {'cuts_path': str(cuts), 'sample_rate': RATE, 'batch_size': 99, 'force_finite': True, 'shard_seed': 1}
    dataset = LhotseSpeechToTextBpeDataset(make_parser(labels=labels, do_normalize=False), return_cuts=True)
    loader = get_lhotse_dataloader_from_config(OmegaConf.create({**config, **options}), 0, 1, dataset)
    ((audio, lengths, tokens, token_lengths, loaded),) = list(loader)
    texts = [''.join(labels[i] for i in row[:n]) for row, n in zip(tokens.tolist(), token_lengths.tolist())]
    assert texts == [cut.supervisions[0].text for cut in loaded], 'the loader changed the text'
    return audio.numpy(), list(loaded)


def test_noise_lasts_from_start_to_end_of_a_row(cuts, conditions):
    clean, loaded = batch(cuts)
    noisy, _ = batch(cuts, noise_path=str(conditions / 'noises.jsonl.gz'), noise_mix_prob=1.0, noise_snr=[10.0, 10.0])
    for row, cut in enumerate(loaded):
        added = (noisy - clean)[row][: round(cut.supervisions[0].duration * RATE)]  # without the batch's padding
        levels = [part.std() for part in np.array_split(added[: -RATE // 10], 8)]
        assert min(levels) > 0 and max(levels) / min(levels) < 4
        ratio = 10 * np.log10(np.sum(clean[row] ** 2) / np.sum(added**2))
        assert 5 < ratio < 15


def test_channel_is_one_per_row(cuts):
    _, loaded = batch(cuts, lowpass_enabled=True, lowpass_prob=1.0)
    frequencies = []
    for cut in loaded:
        recordings = [track.cut.recording for track in cut.tracks if hasattr(track.cut, 'recording')]
        of_tracks = {json.dumps([x.to_dict() for x in recording.transforms]) for recording in recordings}
        assert len(of_tracks) == 1 and len(recordings) > 1
        frequencies += of_tracks
    assert len(set(frequencies)) > 1


def test_room_is_one_per_row(cuts, conditions):
    from scipy.signal import fftconvolve

    clean, loaded = batch(cuts)
    echoes, _ = batch(cuts, rir_enabled=True, rir_prob=1.0, rir_path=str(conditions / 'rooms.jsonl.gz'))
    rooms = [soundfile.read(path)[0] for path in sorted(conditions.glob('room-*.flac'))]
    chosen = []
    for speech, heard, cut in zip(clean, echoes, loaded):
        length = round(cut.supervisions[0].duration * RATE)
        likeness = [np.corrcoef(fftconvolve(speech, room)[:length], heard[:length])[0, 1] for room in rooms]
        assert max(likeness) > 0.999, 'no single room made this row'
        chosen.append(int(np.argmax(likeness)))
    assert len(set(chosen)) > 1 and np.corrcoef(clean[0], echoes[0])[0, 1] < 0.99


def test_gain_is_one_per_row(rows, cuts, tmp_path):
    run('data', 'longform', rows, '-o', tmp_path / 'loud.jsonl.gz', '--seconds', 30, '--gain-db', 12)
    clean, loaded = batch(cuts)
    loud, _ = batch(tmp_path / 'loud.jsonl.gz')
    factors = []
    for row in range(len(loaded)):
        heard = np.abs(clean[row]) > 0.01
        factor = loud[row][heard] / clean[row][heard]
        assert factor.std() < 1e-3
        factors.append(factor.mean())
    assert max(factors) > 1.1 * min(factors) and 0.25 <= min(factors) and max(factors) <= 4
    assert '--gain-db is kept' in run('data', 'longform', rows, '-o', 'x.json', '--gain-db', 3, code=1).stderr
