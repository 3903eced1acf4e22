"""The command `nemo-lact`: every subcommand on tiny models and synthetic speech, and what it says to wrong input."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import soundfile
import torch
from omegaconf import OmegaConf
from peak import Peak
from typer.testing import CliRunner

from nemo_lact import __version__, evaluation, training, transcription
from nemo_lact import info as info_module
from nemo_lact.cli import app

RATE = 16000
LABELS = list(" abcdefghijklmnopqrstuvwxyz'")
ENCODER = {
    '_target_': 'nemo_lact.modules.LaCTEncoder',
    'feat_in': 80,
    'n_layers': 2,
    'd_model': 32,
    'n_heads': 4,
    'num_lact_heads': 2,
    'subsampling_factor': 4,
    'subsampling_conv_channels': 8,
    'att_context_size': [8, 8],
    'lact_chunk_size': 24,
}
CONFORMER = {
    '_target_': 'nemo.collections.asr.modules.ConformerEncoder',
    'feat_in': 80,
    'n_layers': 1,
    'd_model': 32,
    'n_heads': 4,
    'subsampling_factor': 4,
    'subsampling_conv_channels': 8,
}
LOADER = {'batch_size': 2, 'shuffle': False}
# What `train` gets from --config-path.
CONFIG = {
    'name': 'tiny',
    'model': {
        'sample_rate': RATE,
        'labels': LABELS,
        'train_ds': {'manifest_filepath': '???', 'sample_rate': RATE, 'labels': LABELS, **LOADER},
        'validation_ds': {'manifest_filepath': '???', 'sample_rate': RATE, 'labels': LABELS, **LOADER},
        'preprocessor': {
            '_target_': 'nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor',
            'sample_rate': RATE,
            'features': 80,
            'window_size': 0.025,
            'window_stride': 0.01,
            'n_fft': 512,
            'dither': 0.0,
        },
        'encoder': ENCODER,
        'decoder': {
            '_target_': 'nemo.collections.asr.modules.ConvASRDecoder',
            'feat_in': None,
            'num_classes': -1,
            'vocabulary': LABELS,
        },
        'optim': {'name': 'adamw', 'lr': 0.001},
    },
    'trainer': {
        'devices': -1,
        'accelerator': 'auto',
        'strategy': 'ddp',
        'precision': 'bf16-mixed',
        'max_steps': '???',
        'num_sanity_val_steps': 0,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'logger': False,
    },
    'exp_manager': {
        'exp_dir': '???',
        'name': 'tiny',
        'create_tensorboard_logger': False,
        'create_checkpoint_callback': True,
        'checkpoint_callback_params': {'monitor': 'val_wer', 'mode': 'min', 'save_top_k': 1},
    },
}


def run(*args, code=0):
    """The result of `nemo-lact args`, which must end with `code` and never with a traceback."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f'{result.stdout}\n{result.stderr}\n{result.exception!r}'
    assert 'Traceback' not in result.stderr
    return result


def words(result) -> str:
    """stderr with the line breaks and frames of rich taken out."""
    return ' '.join(result.stderr.replace('│', ' ').split())


def write_manifest(path: Path, rows) -> Path:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


@pytest.fixture(scope='module')
def speech(tmp_path_factory) -> Path:
    """A folder with three recordings of 0.6, 1.2 and 2.0 s, one of them in a subfolder, and a manifest."""
    folder = tmp_path_factory.mktemp('speech')
    (folder / 'sub').mkdir()
    noise = np.random.default_rng(0)
    rows = []
    for name, seconds, text in (('a.wav', 0.6, 'one'), ('b.flac', 1.2, 'two words'), ('sub/c.ogg', 2.0, 'it is three')):
        soundfile.write(folder / name, 0.1 * noise.standard_normal(int(seconds * RATE)), RATE)
        rows.append({'audio_filepath': name, 'duration': seconds, 'text': text, 'speaker': 'x'})
    write_manifest(folder / 'rows.json', rows)
    return folder


def build(folder: Path, encoder: dict) -> Path:
    from nemo.collections.asr.models import EncDecCTCModel

    model = {k: v for k, v in CONFIG['model'].items() if not k.endswith('_ds')}
    path = folder / 'model.nemo'
    EncDecCTCModel(OmegaConf.create({**model, 'encoder': encoder})).save_to(str(path))
    return path


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    """A random LaCT character model."""
    return build(tmp_path_factory.mktemp('lact'), ENCODER)


@pytest.fixture(scope='module')
def conformer(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp('conformer'), CONFORMER)


@pytest.fixture(scope='module')
def configs(tmp_path_factory) -> Path:
    import nemo.core.config  # noqa: F401  before the first CliRunner, so that NeMo's log does not hold its streams

    folder = tmp_path_factory.mktemp('conf')
    OmegaConf.save(OmegaConf.create(CONFIG), folder / 'tiny.yaml')
    return folder


# ---- start


def test_help_and_version_import_nothing_heavy():
    code = (
        'import sys\nfrom typer.testing import CliRunner\nfrom nemo_lact.cli import app\n'
        "for args in (['--help'], ['train', '--help'], ['--version']):\n"
        '    assert CliRunner().invoke(app, args).exit_code == 0\n'
        "print([m for m in ('torch', 'nemo', 'lightning', 'hydra', 'soundfile') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_version():
    assert run('--version').stdout.startswith(f'nemo-lact {__version__} (nemo_toolkit ')


def test_unknown_command_is_wrong_usage():
    assert 'No such command' in words(run('sing', code=2))


# ---- transcribe


def test_transcribe_writes_rows_in_order_with_all_keys(model, speech, tmp_path):
    out = tmp_path / 'out.jsonl'
    run('transcribe', speech / 'rows.json', '--model', model, '--output', out, '--batch-size', 2, '--timestamps')
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row['audio_filepath']).name for row in rows] == ['a.wav', 'b.flac', 'c.ogg']
    assert [row['text'] for row in rows] == ['one', 'two words', 'it is three']
    assert all(os.path.isabs(row['audio_filepath']) and row['speaker'] == 'x' for row in rows)
    for row in rows:
        assert ' '.join(w['word'] for w in row['timestamps']['word']) == ' '.join(row['pred_text'].split())
        assert all(0 <= w['start'] <= w['end'] <= row['duration'] + 0.1 for w in row['timestamps']['word'])


def test_transcribe_gives_what_nemo_gives(model, speech):
    from nemo.collections.asr.models import ASRModel

    paths = [str(speech / name) for name in ('a.wav', 'b.flac', 'sub/c.ogg')]
    nemo = ASRModel.restore_from(str(model), map_location='cpu').transcribe(paths, batch_size=1, verbose=False)
    expected = [h if isinstance(h, str) else h.text for h in nemo]
    lines = run('transcribe', speech, '-m', model, '--batch-size', 1).stdout.splitlines()
    assert [line.split('\t', 1) for line in lines] == [[p, t] for p, t in zip(paths, expected, strict=True)]
    assert any(expected), 'the random model says nothing, so this test shows nothing'


def test_subword_model(speech, tmp_path):
    from nemo.collections.asr.models import EncDecCTCModelBPE

    folder = tmp_path / 'tokenizer'
    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['one two three', 'words it is']),
        model_prefix=str(folder / 'tokenizer'),
        vocab_size=24,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / 'tokenizer.model'))
    (folder / 'vocab.txt').write_text(''.join(pieces.id_to_piece(i) + '\n' for i in range(len(pieces))))
    config = {k: v for k, v in CONFIG['model'].items() if k != 'labels' and not k.endswith('_ds')}
    config['decoder'] = {**config['decoder'], 'vocabulary': []}
    config['tokenizer'] = {'dir': str(folder), 'type': 'bpe'}
    EncDecCTCModelBPE(OmegaConf.create(config)).save_to(str(tmp_path / 'bpe.nemo'))

    # NeMo reads validation_ds while it transcribes with subwords; this model has none.
    result = run('evaluate', speech / 'rows.json', '-m', tmp_path / 'bpe.nemo', '--json', '-o', tmp_path / 'out.jsonl')
    assert json.loads(result.stdout)['rows_scored'] == 3
    rows = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    assert [row['text'] for row in rows] == ['one', 'two words', 'it is three']
    assert any(row['pred_text'] for row in rows)

    lm = tmp_path / 'lm.arpa'
    run('lm', speech / 'rows.json', '-m', tmp_path / 'bpe.nemo', '-o', lm, '--order', 3)
    search = ('--lm', lm, '--lm-weight', 2, '--lm-bonus', 20)
    text = run('transcribe', speech / 'a.wav', '-m', tmp_path / 'bpe.nemo', *search).stdout.strip()
    assert text and set(text) <= set('onetwo words it is three')


def test_one_file_gives_text_alone(model, speech):
    text = run('transcribe', speech / 'b.flac', '-m', model).stdout
    assert text.endswith('\n') and '\t' not in text and str(speech) not in text


def test_offset_and_duration_choose_a_part(model, speech, tmp_path):
    audio, _ = soundfile.read(speech / 'sub' / 'c.ogg', dtype='float32')
    soundfile.write(tmp_path / 'part.wav', audio[RATE // 2 : RATE + RATE // 2], RATE, subtype='FLOAT')
    row = {'audio_filepath': str(speech / 'sub' / 'c.ogg'), 'offset': 0.5, 'duration': 1.0}
    manifest = write_manifest(tmp_path / 'part.jsonl', [row])
    part = run('transcribe', manifest, '-m', model).stdout
    assert part == run('transcribe', tmp_path / 'part.wav', '-m', model).stdout
    assert part != run('transcribe', speech / 'sub' / 'c.ogg', '-m', model).stdout


def test_channel_of_stereo(model, speech, tmp_path):
    audio, _ = soundfile.read(speech / 'b.flac')
    stereo = tmp_path / 'stereo.flac'
    soundfile.write(stereo, np.stack([np.zeros_like(audio), audio], axis=1), RATE)
    assert '2 channels, the model takes one; choose with --channel 0' in words(
        run('transcribe', stereo, '-m', model, code=1)
    )
    assert 'no channel 2' in words(run('transcribe', stereo, '-m', model, '--channel', 2, code=1))
    expected = run('transcribe', speech / 'b.flac', '-m', model).stdout
    assert run('transcribe', stereo, '-m', model, '--channel', 1).stdout == expected


def test_bad_input_is_named(model, speech, tmp_path):
    (tmp_path / 'empty').mkdir()
    text_file = tmp_path / 'notes.wav'
    text_file.write_text('no audio')
    soundfile.write(tmp_path / 'nothing.wav', np.zeros(0), RATE)
    good = {'audio_filepath': str(speech / 'a.wav')}
    cases = {
        tmp_path / 'gone.wav': 'gone.wav: no such file',
        tmp_path / 'gone.json': 'no manifest at',
        tmp_path / 'empty': 'no audio in folder',
        text_file: 'notes.wav: not readable as audio',
        tmp_path / 'nothing.wav': 'nothing.wav: no audio at 0 s; the file has 0.000 s',
        write_manifest(tmp_path / '0.json', []): 'is empty',
        write_manifest(tmp_path / '1.json', [good, {'text': 'x'}]): "row 2: no 'audio_filepath'; it has text",
        write_manifest(tmp_path / '2.json', [{**good, 'offset': 9}]): 'no audio at 9 s; the file has 0.600 s',
        write_manifest(tmp_path / '3.json', [{**good, 'duration': 9}]): 'but the file has only 0.600 s left',
        write_manifest(tmp_path / '4.json', [[1]]): 'is no JSON object',
    }
    broken = tmp_path / '5.json'
    broken.write_text('{"audio_filepath"\n')
    cases[broken] = '5.json, line 1: no JSON'
    for path, message in cases.items():
        result = run('transcribe', path, '-m', model, code=1)
        assert message in words(result) and str(path.name) in words(result), words(result)
        assert result.stdout == ''


def test_bad_model_is_named(conformer, speech, tmp_path):
    wav = speech / 'a.wav'
    assert 'does not exist' in words(run('transcribe', wav, '-m', tmp_path / 'gone.nemo', code=2))
    assert 'is no .nemo file' in words(run('transcribe', wav, '-m', wav, code=1))
    other = tmp_path / 'other.nemo'
    with tarfile.open(other, 'w') as tar:
        tar.add(wav, 'a.wav')
    assert 'could not be restored as an ASR model' in words(run('transcribe', wav, '-m', other, code=1))
    assert 'has no model_config.yaml' in words(run('info', other, code=1))


def test_device_without_gpu(model, speech):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert 'no CUDA GPU' in words(run('transcribe', speech / 'a.wav', '-m', model, '--device', 'cuda', code=1))


def test_wrong_usage(model, speech):
    run('stream', speech / 'a.wav', code=2)  # transcribe alone takes the starter model
    run('transcribe', speech / 'a.wav', '-m', model, '--batch-size', 0, code=2)
    assert 'cannot be written' in words(run('transcribe', speech, '-m', model, '-o', speech / 'no' / 'x', code=2))
    assert '--timestamps needs --output' in words(run('transcribe', speech, '-m', model, '--timestamps', code=2))


@pytest.mark.slow
def test_stdout_is_clean_in_a_real_process(model, speech):
    command = [sys.executable, '-c', 'from nemo_lact.cli import app; app()']
    done = subprocess.run(
        [*command, 'transcribe', str(speech / 'a.wav'), '-m', str(model), '-o', '-'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)['duration'] for line in done.stdout.splitlines()] == [0.6]
    assert 'NeMo' not in done.stderr, 'only errors are logged without --verbose'


def test_out_of_memory_says_what_to_do(model, speech, monkeypatch):
    rows = transcription.collect([speech / 'b.flac'])
    loaded = transcription.load_model(model, 'cpu')

    def fail(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(loaded, 'transcribe', fail)
    with pytest.raises(RuntimeError, match=r'--batch-size 7 \(longest row 1.2 s\); use a smaller batch'):
        transcription.transcribe(loaded, rows, batch_size=7)


# ---- lm


def test_lm_is_made_and_used(model, speech, tmp_path):
    made = run('lm', speech / 'rows.json', '--model', model, '--output', tmp_path / 'lm.arpa', '--order', 3)
    assert '23 tokens' in made.stdout and made.stdout.startswith(str(tmp_path / 'lm.arpa'))
    # A bonus this high makes the search write a letter wherever it can, and the model only knows these.
    search = ('--lm', tmp_path / 'lm.arpa', '--lm-weight', 2, '--lm-bonus', 20, '--beam-size', 4)
    text = run('transcribe', speech / 'a.wav', '-m', model, *search).stdout.strip()
    assert text and set(text) <= set('onetwo words it is three')
    scored = json.loads(run('evaluate', speech / 'rows.json', '-m', model, '--json', *search).stdout)
    assert scored['rows_scored'] == 3


def test_lm_mistakes(model, speech, tmp_path):
    lm = tmp_path / 'lm.arpa'
    (tmp_path / 'words.txt').write_text('one\ntwo \u6f22\n', encoding='utf-8')
    assert '1 texts have characters' in run('lm', tmp_path / 'words.txt', '-m', model, '-o', lm).stderr
    assert 'must end with .arpa' in run('lm', speech / 'rows.json', '-m', model, '-o', tmp_path / 'lm', code=1).stderr
    assert 'end with .txt' in run('lm', speech / 'a.wav', '-m', model, '-o', lm, code=1).stderr
    audio = speech / 'a.wav'
    both = run('transcribe', audio, '-m', model, '--lm', lm, '--timestamps', '--output', '-', code=2)
    assert 'exclude each other' in words(both)
    assert '--lm needs --model' in words(run('evaluate', speech / 'rows.json', '--lm', lm, code=2))
    assert 'no ARPA file' in run('transcribe', audio, '-m', model, '--lm', _other(tmp_path), code=1).stderr


def _other(folder: Path) -> Path:
    (folder / 'other.arpa').write_text('hello\n')
    return folder / 'other.arpa'


# ---- evaluate


def test_counts_of_errors():
    rows = [
        {'text': 'one two three', 'pred_text': 'one too three four'},  # 1 substitution, 1 insertion
        {'text': 'five six', 'pred_text': 'six'},  # 1 deletion
        {'text': '', 'pred_text': 'noise'},  # 1 insertion
        {'text': None, 'pred_text': 'x'},
        {'pred_text': 'x'},
    ]
    summary, scored = evaluation.score(rows)
    assert {k: summary[k] for k in ('words', 'substitutions', 'insertions', 'deletions')} == {
        'words': 5,
        'substitutions': 1,
        'insertions': 2,
        'deletions': 1,
    }
    assert summary['wer'] == pytest.approx(4 / 5)
    assert (summary['rows'], summary['rows_scored'], summary['rows_without_text']) == (5, 3, 2)
    assert summary['rows_with_empty_text'] == 1
    assert [row.get('wer', 'none') for row in scored] == [pytest.approx(2 / 3, abs=1e-6), 0.5, None, 'none', 'none']


def test_rates_are_those_of_nemo():
    from nemo.collections.asr.metrics.wer import word_error_rate

    pairs = [('press one to hear it', 'pres one two here'), ("it's  late", 'its late'), ('a', ''), ('be', 'abe c')]
    summary, _ = evaluation.score([{'text': t, 'pred_text': p} for t, p in pairs])
    texts, found = zip(*pairs, strict=True)
    assert summary['wer'] == pytest.approx(word_error_rate(found, texts), abs=1e-6)
    assert summary['cer'] == pytest.approx(word_error_rate(found, texts, use_cer=True), abs=1e-6)


def test_evaluate_with_a_model(model, speech, tmp_path):
    out = tmp_path / 'rows.jsonl'
    result = run('evaluate', speech / 'rows.json', '-m', model, '--json', '-o', out)
    summary = json.loads(result.stdout)
    assert (summary['rows_scored'], summary['words'], summary['seconds']) == (3, 6, 3.8)
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert summary['substitutions'] == sum(row['substitutions'] for row in scored)
    # What it wrote can be read back without a model, to the same numbers.
    assert json.loads(run('evaluate', out, '--json').stdout) == summary


def test_evaluate_prints_a_table_and_reports_rows_without_text(tmp_path):
    rows = [{'text': 'one two', 'pred_text': 'one'}, {'text': '', 'pred_text': ''}, {'pred_text': 'x'}]
    result = run('evaluate', write_manifest(tmp_path / 'done.json', rows))
    table = {
        line.split('│')[1].strip(): line.split('│')[2].strip() for line in result.stdout.splitlines() if '│' in line
    }
    assert (table['word error rate'], table['deletions']) == ('50.00 %', '1')
    assert (table['rows with empty text'], table['rows without text']) == ('1', '1')
    assert '1 rows have no text and are not in the rates' in words(result)


def test_evaluate_refuses_what_it_cannot_score(tmp_path):
    half = write_manifest(tmp_path / 'half.json', [{'text': 'a', 'pred_text': 'a'}, {'text': 'b'}])
    assert "1 of 2 rows have no 'pred_text', the first is row 2; give --model" in words(run('evaluate', half, code=1))
    none = write_manifest(tmp_path / 'none.json', [{'pred_text': 'a'}])
    assert "none of the 1 rows has a 'text'" in words(run('evaluate', none, code=1))
    run('evaluate', half, '--json', '-o', '-', code=2)
    (tmp_path / 'binary.json').write_bytes(b'\xff\xfe\x00')
    assert 'binary.json is no manifest: no UTF-8 text' in words(run('evaluate', tmp_path / 'binary.json', code=1))


# ---- info


def test_info_of_lact_agrees_with_the_built_model(model):
    from nemo.collections.asr.models import ASRModel

    found = json.loads(run('info', model, '--json').stdout)
    built = ASRModel.restore_from(str(model), map_location='cpu')
    assert found['values']['total'] == sum(t.numel() for t in built.state_dict().values())
    assert found['values']['encoder.layers.mixer.memory'] == sum(
        p.numel() for layer in built.encoder.layers for p in layer.mixer.memory.parameters()
    )
    lact = found['lact']
    # per layer: 2 heads, three matrices of 16 x 16, fp32, and the momentum
    assert lact['state_bytes_per_stream'] >= 2 * 2 * 3 * 16 * 16 * 4 * 2
    assert lact['state_bytes_per_stream'] == built.encoder.state_bytes(1) == built.encoder.init_state(1).nbytes
    assert (lact['chunk'], lact['chunk_seconds']) == (24, pytest.approx(24 * 0.04))
    assert lact['window_seconds'] == [pytest.approx(0.32)] * 2
    assert found['file_bytes'] == model.stat().st_size


def test_info_prints_the_arithmetic_of_the_estimate(model):
    text = run('info', model, '--gpu-memory', 1).stdout
    assert 'Estimate' in text and 'not measured' in text and 'streams' in text
    room = json.loads(run('info', model, '--gpu-memory', 2, '--json').stdout)['room']
    half = json.loads(run('info', model, '--gpu-memory', 1, '--json').stdout)['room']
    assert room['streams_held'] > 1.9 * half['streams_held'] > 0


def test_info_of_another_encoder(conformer):
    result = run('info', conformer)
    assert 'ConformerEncoder' in result.stdout and 'not LaCT' in result.stdout
    assert 'is for LaCT encoders' in words(run('info', conformer, '--gpu-memory', 8, code=1))


def test_info_needs_no_nemo(conformer):
    code = (
        'import sys; from nemo_lact.info import describe; describe(sys.argv[1]); '
        "print([m for m in ('nemo', 'lightning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code, str(conformer)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


def test_info_of_a_damaged_file(model, tmp_path):
    cut = tmp_path / 'cut.nemo'
    with tarfile.open(model) as tar:
        tar.extractall(tmp_path / 'parts')
    weights = next((tmp_path / 'parts').rglob('model_weights.ckpt'))
    weights.write_bytes(weights.read_bytes()[:1000])
    with tarfile.open(cut, 'w') as tar:
        tar.add(tmp_path / 'parts', '.')
    assert 'the weights cannot be read' in words(run('info', cut, code=1))


@pytest.mark.parametrize('channels, rows, seconds', [(256, 2, 10), (8, 4, 20)])  # the front end, then a layer is widest
def test_estimate_is_near_what_a_forward_pass_takes(channels, rows, seconds):
    from nemo_lact.modules import LaCTEncoder

    options = dict(n_layers=2, d_model=256, n_heads=4, subsampling_conv_channels=channels, att_context_size=[32, 32])
    encoder = LaCTEncoder(**options, lact_chunk_size=64).eval()
    lact = info_module._lact({**options, 'lact_chunk_size': 64}, OmegaConf.create({'preprocessor': {}}))
    with torch.no_grad(), Peak(encoder) as counted:
        encoder.forward_for_export(torch.randn(rows, 80, 100 * seconds), torch.full((rows,), 100 * seconds))
    estimate = rows * info_module.row_bytes(lact, seconds)
    assert 0.6 < counted.peak / estimate < 1.4, f'{counted.peak / 2**20:.1f} MiB, estimated {estimate / 2**20:.1f}'


def test_room_refuses_a_model_that_does_not_fit():
    with pytest.raises(ValueError, match='the weights need 4.0 GiB, over 90% of 2 GiB'):
        info_module.room({'weights_bytes': 2**32, 'lact': {}, 'file': 'x'}, 2)


# ---- train


def train(configs, *args, code=0):
    return run('train', '--config-path', configs, '--config-name', 'tiny', *args, code=code)


def data(train_manifest, dev_manifest=None):
    return [
        f'model.train_ds.manifest_filepath={train_manifest}',
        f'model.validation_ds.manifest_filepath={dev_manifest or train_manifest}',
    ]


def test_train_writes_a_model_that_transcribes(configs, speech, tmp_path):
    overrides = [*data(speech / 'rows.json'), 'trainer.max_steps=2', f'exp_manager.exp_dir={tmp_path}']
    result = train(configs, *overrides, '+model.train_ds.max_duration=5')
    (line,) = result.stdout.splitlines()
    saved = Path(line.removeprefix('saved '))
    assert saved.is_file() and saved.suffix == '.nemo'
    run('transcribe', speech / 'a.wav', '-m', saved)


@pytest.mark.parametrize('use_lhotse', [False, True])
def test_train_stops_if_the_loader_drops_every_row(configs, speech, tmp_path, use_lhotse):
    rows = [json.loads(line) for line in (speech / 'rows.json').read_text().splitlines()]
    rows = [{**row, 'audio_filepath': str(speech / row['audio_filepath'])} for row in rows]
    overrides = ['trainer.max_steps=2', f'exp_manager.exp_dir={tmp_path}', f'+model.train_ds.use_lhotse={use_lhotse}']
    if use_lhotse:  # rows that only the loader knows to skip
        bad = write_manifest(tmp_path / 'bad.json', [{**row, '_skipme': True} for row in rows])
        message = 'the loader drops every row of'
    else:
        bad = write_manifest(tmp_path / 'bad.json', rows)
        overrides.append('+model.train_ds.min_duration=7')
        message = 'none of the 3 rows of'
    result = train(configs, *data(bad, speech / 'rows.json'), *overrides, code=1)
    assert message in words(result) and str(bad) in words(result)


def test_missing_values_are_listed(configs):
    result = train(configs, 'trainer.max_steps=1', code=2)
    assert '3 mandatory values are missing' in words(result)
    for key in ('model.train_ds.manifest_filepath', 'model.validation_ds.manifest_filepath', 'exp_manager.exp_dir'):
        assert f'{key}=...' in words(result)
    assert '~model.validation_ds' in words(result)


def test_config_mistakes_are_wrong_usage(configs, tmp_path):
    assert "no config 'huge'" in words(run('train', '--config-path', configs, '--config-name', 'huge', code=2))
    assert 'there: tiny' in words(run('train', '--config-path', configs, '--config-name', 'huge', code=2))
    assert 'no config folder' in words(run('train', '--config-path', tmp_path / 'gone', code=1))
    assert "Could not override 'model.nope'" in words(train(configs, 'model.nope=1', code=2))
    assert '--max-steps is no option' in words(train(configs, '--max-steps', '3', code=2))


def test_bad_files_stop_before_training(configs, speech, tmp_path):
    rest = ['trainer.max_steps=1', f'exp_manager.exp_dir={tmp_path}']
    good = speech / 'rows.json'
    empty = write_manifest(tmp_path / 'empty.json', [])
    bare = write_manifest(tmp_path / 'bare.json', [{'audio_filepath': 'a.wav', 'text': 'x'}])
    assert 'gone.json: no such file' in words(train(configs, *data(tmp_path / 'gone.json', good), *rest, code=1))
    assert 'empty.json is empty' in words(train(configs, *data(good, empty), *rest, code=1))
    assert "needs 'audio_filepath' and 'duration'" in words(train(configs, *data(bare, good), *rest, code=1))
    tokenizer = '+model.tokenizer={dir: /no/tokenizer, type: bpe}'
    assert 'no tokenizer folder' in words(train(configs, *data(good), *rest, tokenizer, code=1))


def test_trainer_fits_a_machine_without_gpu(configs, speech, tmp_path, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    overrides = [*data(speech / 'rows.json'), 'trainer.max_steps=1', f'exp_manager.exp_dir={tmp_path}']
    cfg = OmegaConf.create(train(configs, '--dry-run', *overrides).stdout)
    assert {key: cfg.trainer[key] for key in training.CPU_TRAINER} == training.CPU_TRAINER
    cfg = OmegaConf.create(train(configs, '--dry-run', *overrides, 'trainer.precision=bf16-mixed').stdout)
    assert cfg.trainer.precision == 'bf16-mixed' and cfg.trainer.devices == 1
    result = train(configs, *overrides, 'trainer.accelerator=gpu', code=2)
    assert 'trainer.accelerator=gpu, but torch finds no GPU' in words(result)


def test_trainer_is_left_alone_with_a_gpu(configs, speech, tmp_path, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    overrides = [*data(speech / 'rows.json'), 'trainer.max_steps=1', f'exp_manager.exp_dir={tmp_path}']
    cfg = OmegaConf.create(train(configs, '--dry-run', *overrides).stdout)
    assert (cfg.trainer.devices, cfg.trainer.precision, cfg.trainer.strategy) == (-1, 'bf16-mixed', 'ddp')


def test_own_configs_ask_for_the_data():
    names = training.config_names(training.config_dir())
    assert 'lact_ctc_bpe' in names
    for name in names:
        result = run('train', '--config-name', name, code=2)
        assert 'model.train_ds.manifest_filepath=...' in words(result)
