"""LibriSpeech on miniature trees of the official layout, and downloads of miniature archives from a local server."""

import hashlib
import json
import shutil

import pytest
from mini import LIBRI, make_archive, read_rows, run

from nemo_lact.data import download as download_module
from nemo_lact.data import librispeech as corpus

SUBSETS = ['--subset', 'train-clean-100', '--subset', 'dev-clean']


@pytest.fixture
def mirror(server, tmp_path, monkeypatch):
    """The local server with both miniature archives under their official names, and their checksums."""
    monkeypatch.setattr(download_module, 'PAUSE', 0.001)
    (tmp_path / 'web').mkdir()
    for subset in LIBRI:
        content = make_archive(tmp_path / 'web', subset).read_bytes()
        server.files[f'/resources/12/{subset}.tar.gz'] = content
        monkeypatch.setitem(corpus.MD5, subset, hashlib.md5(content).hexdigest())
    return f'{server.url}/resources/12'


def test_rows_of_the_official_tree(librispeech, tmp_path):
    out = tmp_path / 'out'
    result = run('data', 'librispeech', '--data-dir', librispeech, '--skip-download', '-o', out)
    rows = read_rows(out / 'train-clean-100.json')
    folder = librispeech / 'LibriSpeech' / 'train-clean-100' / '1272' / '128104'
    assert rows[1] == {
        'audio_filepath': str(folder / '1272-128104-0001.flac'),
        'duration': 1.5,
        'text': "it's not a man",
        'speaker': '1272',
        'chapter': '128104',
        'gender': 'M',
    }
    assert [row['duration'] for row in rows] == [3.0, 1.5, 0.5]
    assert [row['speaker'] for row in read_rows(out / 'dev-clean.json')] == ['174', '174', '84', '84']
    assert read_rows(out / 'train.json') == rows
    # minimal has no test subset: every second speaker of dev-clean
    assert {row['speaker'] for row in read_rows(out / 'dev.json')} == {'174'}
    assert {row['speaker'] for row in read_rows(out / 'test.json')} == {'84'}
    assert 'train-clean-100.json: 3 rows' in result.stdout


def test_the_folder_itself_may_be_given(librispeech, tmp_path):
    run('data', 'librispeech', '--data-dir', librispeech / 'LibriSpeech', '--skip-download', '-o', tmp_path / 'out')
    assert len(read_rows(tmp_path / 'out' / 'dev-clean.json')) == 4


def test_incomplete_trees_are_named(librispeech, tmp_path):
    chapter = librispeech / 'LibriSpeech' / 'train-clean-100' / '1272' / '128104'

    def fails(message, *more):
        arguments = ['data', 'librispeech', '--data-dir', librispeech, '--skip-download', '-o', tmp_path / 'out', *more]
        assert message in ' '.join(run(*arguments, code=1).stderr.split())
        assert not (tmp_path / 'out' / 'train.json').exists()

    fails('no train-other-500 in', '--subset', 'train-other-500')
    fails('no such subset; there are dev-clean', '--subset', 'train-tiny')
    flac = chapter / '1272-128104-0001.flac'
    content = flac.read_bytes()
    flac.unlink()
    fails('line 2: no 1272-128104-0001.flac beside it')
    flac.write_bytes(b'no audio')
    fails('0001.flac: not readable as audio')
    flac.write_bytes(content)
    shutil.copy(flac, chapter / '1272-128104-0009.flac')
    fails('has no line for 1272-128104-0009.flac')
    (chapter / '1272-128104-0009.flac').unlink()
    (chapter / '1272-128104.trans.txt').rename(chapter / 'x.txt')
    fails('1272-128104.trans.txt is missing')
    arguments = ['data', 'librispeech', '--data-dir', tmp_path, '--skip-download']
    assert 'no LibriSpeech below' in run(*arguments, code=1).stderr


def test_ready_manifests_are_not_read_again(librispeech, tmp_path, monkeypatch):
    arguments = ['data', 'librispeech', '--data-dir', librispeech, '--skip-download', '-o', tmp_path / 'out']
    run(*arguments)
    calls = []
    original = corpus._chapter_rows
    monkeypatch.setattr(corpus, '_chapter_rows', lambda chapter: calls.append(chapter.name) or original(chapter))
    before = (tmp_path / 'out' / 'train.json').read_bytes()
    run(*arguments)
    assert calls == [] and (tmp_path / 'out' / 'train.json').read_bytes() == before
    manifest = tmp_path / 'out' / 'dev-clean.json'
    manifest.write_text(manifest.read_text()[:-30])  # as a copy that was cut
    run(*arguments)
    assert sorted(calls) == ['121123', '121550', '50561'] and len(read_rows(manifest)) == 4
    run(*arguments, '--force')
    assert '128104' in calls


def test_from_nothing_over_cut_connections(mirror, server, tmp_path):
    server.cut = 40_000
    data = tmp_path / 'data'
    run('data', 'librispeech', '--data-dir', data, '--mirror', mirror, '--size', 'minimal')
    assert len(read_rows(data / 'manifests' / 'train.json')) == 3
    assert len(read_rows(data / 'manifests' / 'dev-clean.json')) == 4
    assert (data / 'LibriSpeech' / 'SPEAKERS.TXT').exists()
    assert not list(data.glob('*.tar.gz*')), 'archives are removed after unpacking'
    assert any(header for _, header in server.requests), 'nothing was cut, so nothing was shown'
    asked = len(server.requests)
    run('data', 'librispeech', '--data-dir', data, '--mirror', mirror, '--size', 'minimal')
    assert len(server.requests) == asked


def test_an_interrupted_download_goes_on(mirror, server, tmp_path):
    data = tmp_path / 'data'
    content = server.files['/resources/12/dev-clean.tar.gz']
    data.mkdir()
    (data / 'dev-clean.tar.gz.part').write_bytes(content[:5000])
    run('data', 'librispeech', '--data-dir', data, '--mirror', mirror, '--subset', 'dev-clean', '--keep-archives')
    assert server.requests == [('/resources/12/dev-clean.tar.gz', 'bytes=5000-')]
    assert (data / 'dev-clean.tar.gz').read_bytes() == content


def test_wrong_bytes_are_refused(mirror, server, tmp_path, monkeypatch):
    monkeypatch.setitem(corpus.MD5, 'dev-clean', '0' * 32)
    result = run('data', 'librispeech', '--data-dir', tmp_path / 'd', '--mirror', mirror, *SUBSETS, code=1)
    assert f'expected {"0" * 32}' in result.stderr
    assert not (tmp_path / 'd' / 'LibriSpeech' / 'dev-clean').exists()


def test_disk_space_is_checked_before_anything_is_fetched(mirror, server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    result = run('data', 'librispeech', '--data-dir', tmp_path / 'd', '--mirror', mirror, *SUBSETS, code=1)
    assert 'GB free; make room' in result.stderr
    assert server.requests == []


def test_no_network_is_one_message(tmp_path):
    result = run('data', 'librispeech', '--data-dir', tmp_path, '--mirror', 'http://127.0.0.1:9', *SUBSETS, code=1)
    assert 'check the network' in result.stderr


def test_sizes_are_the_official_subsets():
    assert corpus.SIZES['minimal'] == ('train-clean-100', 'dev-clean')
    assert {'train-clean-100', 'train-clean-360'} <= set(corpus.SIZES['standard'])
    assert set(corpus.SIZES['full']) == set(corpus.MD5) and len(corpus.MD5) == 7
    assert all(len(digest) == 32 and int(digest, 16) for digest in corpus.MD5.values())


def test_rows_are_json_a_line_and_files_appear_whole(tmp_path):
    from nemo_lact.data.manifests import write_manifest

    def rows():
        yield {'text': 'ä'}
        raise KeyError('stopped half way')

    (tmp_path / 'm.json').write_text('old')
    with pytest.raises(KeyError):
        write_manifest(tmp_path / 'm.json', rows())
    assert (tmp_path / 'm.json').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1
    assert write_manifest(tmp_path / 'm.json', [{'text': 'ä'}]) == 1
    assert json.loads((tmp_path / 'm.json').read_text(encoding='utf-8')) == {'text': 'ä'}
