"""`nemo-lact data check`: every kind of problem, --fix, --strict, speed, and manifests of random content."""

import contextlib
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mini import RATE, noise, read_rows, run, write_rows

from nemo_lact.data.check import check_manifests, fix
from nemo_lact.data.problems import KINDS, show
from nemo_lact.data.vocabulary import Characters, Spelling, Subwords, encoder_frames, frames_needed, of_nemo_file

LABELS = " abcdefghijklmnopqrstuvwxyz'"
CHARACTERS = Spelling(Characters(LABELS), 4)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Audio of 2 s: good.wav, more.wav (8 kHz), two.wav (stereo), none.wav (empty), broken.wav (no audio)."""
    folder = tmp_path_factory.mktemp('audio')
    soundfile.write(folder / 'good.wav', noise(2.0), RATE)
    soundfile.write(folder / 'more.wav', noise(1.0), 8000)
    soundfile.write(folder / 'two.wav', np.stack([noise(2.0)] * 2, axis=1), RATE)
    soundfile.write(folder / 'none.wav', np.zeros(0), RATE)
    (folder / 'broken.wav').write_text('no audio at all')
    return folder


def row(name='good.wav', **more):
    return {'audio_filepath': name, 'duration': 2.0, 'text': 'a good row', **more}


def found(path, audio=True, **options):
    """{kind: lines} of one manifest."""
    (report,) = check_manifests([path], options.pop('spelling', CHARACTERS), audio=audio, **options)
    assert list(report.found) == [kind for kind in KINDS if kind in report.found]
    return {kind: problem.lines for kind, problem in report.found.items()}


def test_a_clean_manifest(folder):
    path = write_rows(folder / 'clean.json', [row(), row(offset=0.5, duration=1.0)])
    assert found(path) == {}
    out = run('data', 'check', path, '--labels', LABELS, '--subsampling-factor', 4, '--strict').stdout
    assert 'usable' in out and 'of 2' in out


@pytest.mark.parametrize(
    'bad, kind',
    [
        ('{"audio_filepath": "good.wav", ', 'json'),
        ('["a list"]', 'json'),
        ('17', 'json'),
        ('[' * 100_000, 'json'),
        ('{"text": "\\ud800", "audio_filepath": "good.wav", "duration": 2}', 'json'),
        ({'duration': 2.0, 'text': 'x'}, 'audio_filepath'),
        (row(['good.wav']), 'audio_filepath'),
        (row('gone.wav'), 'missing'),
        (row('.'), 'missing'),
        (row(duration='2.0', offset=0.1), 'unmeasured'),
        (row(duration=None), 'unmeasured'),
        (row(duration=-1, offset=0.1), 'unmeasured'),
        (row('gone.wav', duration=math.nan), 'duration'),
        (row(offset=-1), 'offset'),
        (row(offset='x'), 'offset'),
        (row(text=''), 'text'),
        (row(text='  '), 'text'),
        (row(text=None), 'text'),
        (row(text=7), 'text'),
        (row(text='Ärger'), 'characters'),
        (row(text='x' * 51, offset=0.0), 'ctc'),
        (row('broken.wav'), 'unreadable'),
        (row('none.wav'), 'empty'),
        (row('two.wav'), 'channels'),
        (row(offset=2.5), 'end'),
        (row(duration=3.0), 'wrong'),
        (row(duration=1.0), 'wrong'),
        (row('more.wav', duration=2.0), 'rate'),
    ],
)
def test_each_problem_has_its_line(folder, bad, kind):
    path = folder / 'bad.json'
    lines = [json.dumps(row(offset=0.25, duration=1.5)), '', bad if isinstance(bad, str) else json.dumps(bad)]
    path.write_text('\n'.join(lines) + '\n')
    assert found(path, sample_rate=RATE)[kind] == [3]
    what = KINDS[kind][0]
    strict = run('data', 'check', path, '--labels', LABELS, '--subsampling-factor', 4, '--strict', code=what != 'note')
    assert KINDS[kind][1][:12] in strict.stdout


def test_bytes_that_are_no_text(folder):
    path = folder / 'bytes.json'
    path.write_bytes(json.dumps(row()).encode() + b'\n\xff\xfe\x00\n' + b'\xef\xbb\xbf' + json.dumps(row()).encode())
    assert found(path)['json'] == [2, 3]


def test_duplicates_within_and_across(folder):
    test = write_rows(folder / 'test.json', [row(), row(offset=1.0, duration=0.5)])
    train = write_rows(folder / 'train.json', [row(str(folder / 'good.wav'), text='x'), row(offset=0.5, duration=1.0)])
    first, second = check_manifests([test, train])
    assert first.found == {}
    assert second.found['split'].lines == [1] and 'test.json, line 1' in second.found['split'].example
    assert second.found['same text'].lines == [2]
    twice = write_rows(folder / 'twice.json', [row(), row(offset=0.0)])
    assert found(twice)['duplicate'] == [2]


def test_filtered_rows_are_a_note_until_all_are(folder):
    path = write_rows(folder / 'long.json', [row(), row(offset=1.0, duration=0.5)])
    (report,) = check_manifests([path], max_duration=1)
    assert report.found['filtered'].lines == [1] and not report.all_filtered and report.usable == 1 and report.clean
    (report,) = check_manifests([path], min_duration=7)
    assert report.all_filtered and report.usable == 0
    assert 'no usable row in' in run('data', 'check', path, '--min-duration', 7, code=1).stderr


def test_fix_writes_what_is_clean_and_what_went(folder, tmp_path):
    umlaut = row(text='Ä', offset=0.5, duration=1.0)
    rows = [row(), row('gone.wav'), row('more.wav', duration=9.0), umlaut, row('two.wav'), {}]
    rows = [{**r, 'audio_filepath': str(folder / r['audio_filepath'])} if 'audio_filepath' in r else r for r in rows]
    path = write_rows(tmp_path / 'm.json', rows)
    with open(path, 'a') as file:
        file.write('{half\n')
    result = run('data', 'check', path, '--labels', LABELS, '--subsampling-factor', 4, '--fix')
    assert str(tmp_path / 'm.clean.json') in result.stdout.replace('\n', '')
    assert read_rows(tmp_path / 'm.clean.json') == [rows[0], {**rows[2], 'duration': 2.0}]
    removed = read_rows(tmp_path / 'm.removed.jsonl')
    assert [(entry['line'], entry['why']) for entry in removed] == [
        (2, KINDS['missing'][1]),
        (3, 'corrected'),
        (4, KINDS['characters'][1]),
        (5, KINDS['channels'][1]),
        (6, KINDS['audio_filepath'][1]),
        (7, KINDS['json'][1]),
    ]
    assert removed[-1]['row'] == '{half'
    run('data', 'check', tmp_path / 'm.clean.json', '--labels', LABELS, '--subsampling-factor', 4, '--strict')


def test_missing_manifest_is_one_message(tmp_path):
    assert 'no manifest at' in run('data', 'check', tmp_path / 'gone.json', code=1).stderr
    assert 'no usable row' in run('data', 'check', write_rows(tmp_path / 'empty.json', []), code=1).stderr


# ---- vocabulary and CTC


def test_frames_are_those_of_the_model():
    import torch
    from nemo.collections.asr.modules import AudioToMelSpectrogramPreprocessor

    from nemo_lact import LaCTEncoder

    preprocessor = AudioToMelSpectrogramPreprocessor(features=16, dither=0.0, pad_to=0)
    options = dict(feat_in=16, d_model=16, n_layers=1, n_heads=2, num_lact_heads=1, subsampling_conv_channels=8)
    encoders = {f: LaCTEncoder(subsampling_factor=f, lact_chunk_size=16, **options).eval() for f in (2, 4, 8)}
    for samples in (RATE, 12345, 20000, 16001, 31999):
        signal, length = torch.randn(1, samples), torch.tensor([samples])
        features, frames = preprocessor(input_signal=signal, length=length)
        for factor, encoder in encoders.items():
            with torch.no_grad():
                _, encoded = encoder(audio_signal=features, length=frames)
            assert encoder_frames(samples / RATE, factor) == int(encoded), (samples, factor)


def test_frames_needed_is_where_the_ctc_loss_becomes_infinite():
    import torch

    for text in ('abc', 'aabb', 'aaaa', 'abab', 'a'):
        tokens = torch.tensor([[ord(c) - 96 for c in text]])
        for frames in range(1, 9):
            logits = torch.randn(frames, 1, 5).log_softmax(-1)
            loss = torch.nn.functional.ctc_loss(
                logits, tokens, torch.tensor([frames]), torch.tensor([len(text)]), reduction='sum'
            )
            assert bool(torch.isfinite(loss)) == (frames >= frames_needed(text)), (text, frames)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('tokenizer')
    rows = [{'text': f'{a} {b}'} for a in ('hello', 'yellow', 'fellow') for b in ('world', 'word', 'sword')]
    manifest = write_rows(folder / 'm.json', rows)
    out = run('data', 'tokenizer', manifest, '-o', folder, '--vocab-size', 24).stdout.split()[-1]
    assert Path(out) == folder / 'tokenizer_spe_bpe_v24' and (Path(out) / 'vocab.txt').is_file()
    return Path(out)


def test_subwords(tokenizer, folder):
    words = Subwords(tokenizer / 'tokenizer.model')
    assert words.outside('hello world') == set() and words.outside('Hello zoo') == {'z'}  # it lower-cases
    tokens = words.pieces.encode('hello')
    assert words.needed(['hello']) == [frames_needed(tokens)]
    path = write_rows(folder / 'words.json', [row(text='hello world'), row(text='hello ' * 40, offset=0.0)])
    lines = found(path, spelling=Spelling(words, 8))  # 2 s are 25 frames
    assert lines['ctc'] == [2] and 'characters' not in lines
    needs = run('data', 'check', path, '--config-name', 'lact_ctc_bpe', code=1)
    assert 'has subwords; give --tokenizer FOLDER' in needs.stderr
    result = run('data', 'check', path, '--config-name', 'lact_ctc_bpe', '--tokenizer', tokenizer, '--strict', code=1)
    assert 'CTC frames' in ' '.join(result.stdout.split())
    result = run('data', 'check', path, '--tokenizer', tokenizer, '--subsampling-factor', 8, '--strict', code=1)
    assert 'CTC frames' in ' '.join(result.stdout.split())


def test_tokenizer_is_kept_and_its_mistakes_are_said(tokenizer, tmp_path):
    before = (tokenizer / 'tokenizer.model').stat().st_mtime_ns
    run('data', 'tokenizer', tokenizer.parent / 'm.json', '-o', tokenizer.parent, '--vocab-size', 24)
    assert (tokenizer / 'tokenizer.model').stat().st_mtime_ns == before
    silent = write_rows(tmp_path / 'silent.json', [{'text': ''}, {'audio_filepath': 'x'}])
    assert 'no text in' in run('data', 'tokenizer', silent, '-o', tmp_path, code=1).stderr
    assert '--type x' in run('data', 'tokenizer', silent, '-o', tmp_path, '--type', 'x', code=1).stderr
    assert not list(tmp_path.glob('*tokenizer*'))


def test_spelling_of_a_nemo_file(tmp_path, tokenizer):
    from nemo.collections.asr.models import EncDecCTCModelBPE
    from omegaconf import OmegaConf

    encoder = {'_target_': 'nemo_lact.modules.LaCTEncoder', 'feat_in': 80, 'n_layers': 1, 'd_model': 16, 'n_heads': 2}
    encoder |= {'num_lact_heads': 1, 'subsampling_factor': 8, 'subsampling_conv_channels': 8, 'lact_chunk_size': 16}
    config = {
        'preprocessor': {'_target_': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor', 'features': 80},
        'encoder': encoder,
        'tokenizer': {'dir': str(tokenizer), 'type': 'bpe'},
        'decoder': {
            '_target_': 'nemo.collections.asr.modules.ConvASRDecoder',
            'feat_in': None,
            'num_classes': -1,
            'vocabulary': [],
        },
    }
    EncDecCTCModelBPE(OmegaConf.create(config)).save_to(str(tmp_path / 'm.nemo'))
    spelling = of_nemo_file(tmp_path / 'm.nemo')
    assert spelling.subsampling_factor == 8 and spelling.vocabulary.outside('hello Z') == {'Z'}
    (tmp_path / 'x.nemo').write_text('no model')
    rows = write_rows(tmp_path / 'm.json', [row()])
    assert 'is no .nemo file' in run('data', 'check', rows, '--model', tmp_path / 'x.nemo', code=1).stderr


# ---- many rows


def test_many_rows_in_little_time(folder, tmp_path):
    path = tmp_path / 'many.json'
    text = 'the quick brown fox jumps over the lazy dog and then it rests'
    with open(path, 'w') as file:
        for i in range(30_000):
            one = row(str(folder / 'good.wav'), offset=float(i), duration=5.0 + i % 7, text=f'{text} {"x" * (i % 9)}')
            file.write(json.dumps(one) + '\n')
    started = time.process_time()
    (report,) = check_manifests([path], CHARACTERS)
    spent = time.process_time() - started
    assert report.rows == report.usable == 30_000
    assert spent < 5, f'{spent:.1f} s of processor time for 30 thousand rows'


def test_headers_are_read_by_several_processes(tmp_path):
    samples = noise(0.1)
    for i in range(600):
        soundfile.write(tmp_path / f'{i}.wav', samples if i != 555 else samples[:1], RATE)
    (tmp_path / '300.wav').write_text('broken')
    rows = [row(f'{i}.wav', duration=0.1) for i in range(600)]
    path = write_rows(tmp_path / 'm.json', rows)
    (report,) = check_manifests([path], audio=True, jobs=2)
    assert {kind: part.lines for kind, part in report.found.items()} == {'unreadable': [301]}


# ---- nothing a manifest holds reaches the user as a traceback

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x), max_leaves=5)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        'audio_filepath': st.sampled_from(['good.wav', 'gone.wav', 'none.wav', 'two.wav', '', '.', '\0']) | VALUES,
        'duration': st.sampled_from([2.0, 2, 1e-9, 1e308, 10**400, -0.0]) | VALUES,
        'offset': st.sampled_from([0, 0.5, 1.9999, 1e308]) | VALUES,
        'text': st.sampled_from(['a good row', '', 'Ä', '\ud800', '\x00', '[red]x[/red]', '[/]']) | VALUES,
        'speaker': VALUES,
        '_skipme': VALUES,
    },
)
LINES = (ROWS | VALUES).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40)
MANIFESTS = st.lists(LINES, max_size=6).map(b'\n'.join)
FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@FUZZ
@given(MANIFESTS, st.booleans())
def test_fuzzed_manifests_are_checked_and_fixed(folder, content, audio):
    path = folder / 'fuzz.json'
    path.write_bytes(content)
    (report,) = check_manifests([path], CHARACTERS, 0.1, 20, audio=audio, sample_rate=RATE)
    with contextlib.redirect_stdout(io.StringIO()):
        show([report])
    assert report.rows == sum(bool(line.strip()) for line in content.split(b'\n'))
    assert 0 <= report.usable <= report.rows
    clean, _, kept = fix(report)
    assert kept == report.rows - len(report.removed) == len(read_rows(clean))
    if audio:
        (again,) = check_manifests([clean], CHARACTERS, 0.1, 20, audio=True, sample_rate=RATE)
        assert again.clean, again.found
        assert again.rows == kept


@settings(FUZZ, max_examples=25)
@given(MANIFESTS)
@pytest.mark.parametrize('command', ['check', 'text', 'longform', 'generic', 'tokenizer'])
def test_fuzzed_manifests_never_give_a_traceback(folder, command, content):
    from typer.testing import CliRunner

    from nemo_lact.cli import app

    path = folder / 'fuzz2.json'
    path.write_bytes(content)
    more = {
        'check': ['--fix', '--strict', '--labels', LABELS, '--subsampling-factor', '4', '--max-duration', '5'],
        'text': ['-o', str(folder / 'out.json'), '--drop-digits'],
        'longform': ['-o', str(folder / 'out.json'), '--by', 'speaker', '--write-audio', str(folder / 'long')],
        'generic': ['-o', str(folder / 'out.json')],
        'tokenizer': ['-o', str(folder / 'tok'), '--vocab-size', '20', '--force'],
    }[command]
    result = CliRunner().invoke(app, ['data', command, str(path), *more])
    assert result.exit_code in (0, 1), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    if result.exit_code == 1 and command != 'check':
        assert result.stderr.startswith('error: ') and 'Error: ' not in result.stderr, result.stderr


# ---- before training


def config(path, **options):
    from omegaconf import OmegaConf

    data = {'manifest_filepath': str(path), **options}
    model = {'labels': list(LABELS), 'encoder': {'subsampling_factor': 4}, 'train_ds': data}
    return OmegaConf.create({'model': model, 'trainer': {'accelerator': 'cpu'}})


@settings(FUZZ, max_examples=60)
@given(MANIFESTS)
def test_fuzzed_manifests_before_training(folder, content):
    from nemo_lact import training

    path = folder / 'fuzz3.json'
    path.write_bytes(content)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(ValueError, FileNotFoundError):
        training.check(config(path, max_duration=5))


def test_training_stops_with_what_to_do(folder, capsys):
    from nemo_lact import training

    def message(rows, **options):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            training.check(config(write_rows(folder / 'train.json', rows), **options))
        return str(error.value)

    assert 'none of the 1 rows of' in message([row()], max_duration=1)
    assert 'min_duration=3 and max_duration=inf (they have 2 to 2 s)' in message([row()], min_duration=3)
    gone = message([row(), row('gone.wav')])
    assert 'line 2: audio file is missing in 1 of 2 rows (gone.wav)' in gone and 'data check' in gone
    assert 'line 1: offset is no number' in message([row(offset='x')])
    hopeless = message([row(text='x' * 99), row(text='')])
    assert 'none of the 2 rows' in hopeless and 'CTC frames' in hopeless
    parts = [{'type': 'nemo', 'manifest_filepath': str(folder / 'gone.json'), 'weight': 1}]
    assert 'gone.json: no such file' in message([row()], manifest_filepath=None, input_cfg=parts)

    capsys.readouterr()
    training.check(config(write_rows(folder / 'train.json', [row(), row(text='Ä', offset=0.0)])))
    assert 'characters outside' in capsys.readouterr().err
    training.check(config(write_rows(folder / 'train.json', [row()])))
    assert capsys.readouterr().err == ''
