"""Common Voice, tables, Kaldi folders, folders of audio, and text normalisation, on miniature trees."""

import csv
import io
import json

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from mini import RATE, noise, read_rows, run

from nemo_lact.data.text import Normaliser, has_digits

# Header and columns of cv-corpus-17; older releases have 'accent' and no sentence_id.
HEADER = (
    'client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment'
).split()


def write_tsv(path, rows, header=HEADER):
    out = io.StringIO()
    table = csv.DictWriter(out, header, delimiter='\t', quoting=csv.QUOTE_NONE, quotechar=None, lineterminator='\n')
    table.writeheader()
    table.writerows({**dict.fromkeys(header, ''), **row} for row in rows)
    path.write_text(out.getvalue(), encoding='utf-8')


@pytest.fixture
def commonvoice(tmp_path):
    """cv-corpus-17.0-2024-03-15/de with two clips of 48 kHz mp3, one clip that is missing and one that is broken."""
    folder = tmp_path / 'cv-corpus-17.0-2024-03-15' / 'de'
    (folder / 'clips').mkdir(parents=True)
    for number, seconds in ((1, 1.0), (2, 2.0)):
        tone = 0.3 * np.sin(np.arange(round(48000 * seconds)) / 20)
        soundfile.write(folder / 'clips' / f'common_voice_de_{number}.mp3', tone, 48000)
    (folder / 'clips' / 'common_voice_de_4.mp3').write_bytes(b'no mp3')
    one = {'client_id': 'abc', 'path': 'common_voice_de_1.mp3', 'sentence': '„Grüße“, sagte er – schön!'}
    one |= {'locale': 'de', 'accents': 'Österreichisches Deutsch', 'up_votes': '2', 'gender': 'female_feminine'}
    two = {**one, 'client_id': 'def', 'path': 'common_voice_de_2.mp3', 'sentence': '"Ja" im Jahr 1984', 'accents': ''}
    missing = {**one, 'path': 'common_voice_de_3.mp3'}
    broken = {**one, 'path': 'common_voice_de_4.mp3'}
    silent = {**one, 'sentence': '…'}
    write_tsv(folder / 'train.tsv', [one, two, missing, broken, silent])
    write_tsv(folder / 'dev.tsv', [two])
    write_tsv(folder / 'validated.tsv', [one, two])
    return tmp_path


def test_common_voice(commonvoice, tmp_path):
    out = tmp_path / 'out'
    splits = ['--split', 'train', '--split', 'dev', '--split', 'validated']
    result = run('data', 'commonvoice', commonvoice, '--language', 'de', '-o', out, *splits)
    first, second = read_rows(out / 'train.json')
    assert first['text'] == 'grüße sagte er schön' and first['sentence'] == '„Grüße“, sagte er – schön!'
    assert (first['client_id'], first['speaker'], first['accents']) == ('abc', 'abc', 'Österreichisches Deutsch')
    assert first['duration'] == pytest.approx(1.0, abs=0.1) and first['audio_filepath'].endswith('_1.mp3')
    assert second['text'] == 'ja im jahr 1984' and 'accents' not in second
    assert 'digits' in result.stderr and '1984' in result.stderr, 'digits are reported'
    left = read_rows(out / 'train.rejected.jsonl')
    assert [row['line'] for row in left] == [4, 5, 6]
    for row, reason in zip(left, ('no such file', 'not readable', 'no text')):
        assert reason in row['reason']
    assert len(read_rows(out / 'validated.json')) == 2 and not (out / 'dev.rejected.jsonl').exists()
    run('data', 'check', out / 'dev.json', '--strict')


def test_common_voice_converted(commonvoice, tmp_path):
    out = tmp_path / 'out'
    arguments = ['data', 'commonvoice', commonvoice, '--language', 'de', '-o', out]
    arguments += ['--split', 'dev', '--convert', 'flac']
    run(*arguments, '--raw-text')
    (row,) = read_rows(out / 'dev.json')
    info = soundfile.info(row['audio_filepath'])
    assert (info.samplerate, info.channels, info.format) == (RATE, 1, 'FLAC') and row['text'] == '"Ja" im Jahr 1984'
    assert row['duration'] == pytest.approx(info.frames / RATE, abs=1e-5)
    before = (out / 'clips' / 'common_voice_de_2.flac').stat().st_mtime_ns
    run(*arguments)
    assert (out / 'clips' / 'common_voice_de_2.flac').stat().st_mtime_ns == before


def test_common_voice_of_older_releases(commonvoice, tmp_path):
    folder = commonvoice / 'cv-corpus-17.0-2024-03-15' / 'de'
    header = 'client_id path sentence up_votes down_votes age gender accent'.split()
    write_tsv(folder / 'test.tsv', [{'path': 'common_voice_de_1.mp3', 'sentence': 'Ja', 'accent': 'bavarian'}], header)
    run('data', 'commonvoice', folder, '--language', 'de', '-o', tmp_path / 'out', '--split', 'test')
    (row,) = read_rows(tmp_path / 'out' / 'test.json')
    assert row['accents'] == 'bavarian' and 'client_id' not in row


def test_common_voice_mistakes(commonvoice, tmp_path):
    def fails(*more, language='de', code=1):
        command = ['data', 'commonvoice', commonvoice, '--language', language, '-o', tmp_path / 'out', *more]
        return ' '.join(run(*command, code=code).stderr.replace('│', ' ').split())

    folder = commonvoice / 'cv-corpus-17.0-2024-03-15' / 'de'
    assert "no Common Voice for 'fr'" in fails(language='fr')
    assert 'there: train, dev, validated' in fails('--split', 'other')
    (folder / 'other.tsv').write_text('path\tx\n')
    assert "has no column 'sentence'" in fails('--split', 'other')
    (folder / 'other.tsv').write_text('path\tsentence\na\n')
    assert 'other.tsv, line 2: not the 2 cells' in fails('--split', 'other')
    assert 'must be flac or wav' in fails('--convert', 'x', code=2)


# ---- generic


@pytest.fixture
def audio(tmp_path):
    for name, seconds in (('a.wav', 1.0), ('b.flac', 2.0)):
        soundfile.write(tmp_path / name, noise(seconds), RATE)
    return tmp_path


TABLE = [
    {'file': 'a.wav', 'sentence': 'Hello, "world"', 'speaker': 's1'},
    {'file': 'b.flac', 'sentence': "It's", 'speaker': ''},
]


def write_source(folder, kind):
    path = folder / f'source.{kind}'
    if kind in ('csv', 'tsv'):
        out = io.StringIO()
        options = {'delimiter': '\t', 'quoting': csv.QUOTE_NONE, 'quotechar': None} if kind == 'tsv' else {}
        table = csv.DictWriter(out, list(TABLE[0]), **options)
        table.writeheader()
        table.writerows(TABLE)
        path.write_text(out.getvalue())
    elif kind == 'json':
        path.write_text(json.dumps(TABLE, indent=2))
    elif kind == 'jsonl':
        path.write_text('\n'.join(map(json.dumps, TABLE)))
    elif kind == 'folder':
        (folder / 'a.txt').write_text('Hello, "world"\n')
        (folder / 'b.txt').write_text("It's")
        return folder
    else:
        path.mkdir()
        (path / 'wav.scp').write_text(f'u1 {folder}/a.wav\nu2 {folder}/b.flac\n')
        (path / 'text').write_text('u1 Hello, "world"\nu2 It\'s\n')
        (path / 'utt2spk').write_text('u1 s1\n')
    return path


@pytest.mark.parametrize('kind', ['csv', 'tsv', 'json', 'jsonl', 'kaldi', 'folder'])
def test_every_source(audio, tmp_path, kind):
    out = tmp_path / 'out' / 'm.json'
    run('data', 'generic', write_source(audio, kind), '-o', out)
    first, second = read_rows(out)
    assert (first['text'], first['duration'], second['text'], second['duration']) == ('hello world', 1.0, "it's", 2.0)
    assert first['audio_filepath'] == str(audio / 'a.wav')
    if kind != 'folder':
        assert first['speaker'] == 's1' and 'speaker' not in second
    run('data', 'check', out, '--strict')


def test_kaldi_segments_and_commands(audio, tmp_path):
    folder = tmp_path / 'kaldi'
    folder.mkdir()
    (folder / 'wav.scp').write_text(f'r1 {audio}/b.flac\nr2 sox {audio}/a.wav -t wav - |\n')
    (folder / 'text').write_text('u1 one\nu2 two\nu3 three\nu4 four\n')
    (folder / 'segments').write_text('u1 r1 0.5 1.25\nu2 r1 1.5 9.0\nu3 r2 0 1\nu4 gone 0 1\n')
    run('data', 'generic', folder, '-o', tmp_path / 'm.json')
    (row,) = read_rows(tmp_path / 'm.json')
    assert (row['offset'], row['duration'], row['text'], row['recording']) == (0.5, 0.75, 'one', 'r1')
    left = {entry['where']: entry['reason'] for entry in read_rows(tmp_path / 'm.rejected.jsonl')}
    assert 'but the file has 2 s' in left['u2'] and 'which is not run' in left['u3'] and 'no such file' in left['u4']


def test_columns_may_be_named_and_mistakes_are_said(audio, tmp_path):
    path = audio / 'own.csv'
    path.write_text('wo,was\na.wav,Hallo\n')
    out = ['-o', tmp_path / 'm.json']
    assert 'no audio and text in wo, was' in run('data', 'generic', path, *out, code=1).stderr
    run('data', 'generic', path, *out, '--audio-column', 'wo', '--text-column', 'was')
    assert read_rows(tmp_path / 'm.json')[0]['text'] == 'hallo'
    (audio / 'x.xml').write_text('')
    assert 'its name must end with' in run('data', 'generic', audio / 'x.xml', *out, code=1).stderr
    assert 'no such file or folder' in run('data', 'generic', audio / 'gone', *out, code=1).stderr
    (audio / 'empty').mkdir()
    assert 'no audio in folder' in run('data', 'generic', audio / 'empty', *out, code=1).stderr
    (audio / 'all.csv').write_text('audio,text\ngone.wav,x\na.wav,…\n')
    assert 'no usable row; the first because of' in run('data', 'generic', audio / 'all.csv', *out, code=1).stderr


# ---- text


def test_rules_and_their_report(tmp_path):
    normalise = Normaliser()
    assert normalise('  “It’s   5 o’clock”, she\u00adsaid – OK? ') == "it's 5 o'clock shesaid ok"
    assert normalise("'tis rock 'n' roll") == 'tis rock n roll'
    assert normalise('Cafe\u0301 Ünïcode हिन्दी 日本') == 'café ünïcode हिन्दी 日本'
    assert normalise('… !') == ''
    report = normalise.report
    assert report.texts == 4 and report.changed['digits'] == 1 and report.digits == ["it's 5 o'clock shesaid ok"]
    assert report.removed['–'] == 1 and report.removed['“'] == 1
    assert Normaliser(lower=False, keep='.?')('Is it? Yes.') == 'Is it? Yes.'


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_normalising_twice_is_once(text):
    once = Normaliser()(text)
    assert Normaliser()(once) == once
    assert once == ' '.join(once.split())
    assert not once or any(char.isalnum() for char in once)
    assert has_digits(once) == has_digits(text) or not once


def test_text_command(tmp_path):
    rows = [{'text': 'Hello!', 'x': 1}, {'text': 'Room 101'}, {'text': '?'}, {'x': 2}]
    (tmp_path / 'm.json').write_text('\n'.join(map(json.dumps, rows)))
    result = run('data', 'text', tmp_path / 'm.json')
    assert 'text normalisation, 3 texts' in result.stderr and 'Room 101'.lower() in result.stderr
    run('data', 'text', tmp_path / 'm.json', '-o', tmp_path / 'out.json', '--drop-digits')
    assert read_rows(tmp_path / 'out.json') == [{'text': 'hello', 'x': 1}]
    left = [(row['row'], row['reason']) for row in read_rows(tmp_path / 'out.rejected.jsonl')]
    assert left == [(2, 'digits'), (3, 'nothing left of the text'), (4, 'no text')]
