"""Downloads that are cut, wrong, refused or too large for the disk; the server is on this machine."""

import errno
import hashlib
import io
import tarfile

import numpy as np
import pytest

from nemo_lact.data import download as module
from nemo_lact.data.download import DownloadError, check_space, download, remote_size, unpack

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, 'PAUSE', 0.001)
    monkeypatch.setattr(module, 'BLOCK', 10_000)


@pytest.fixture
def url(server):
    server.files['/a.bin'] = CONTENT
    return server.url + '/a.bin'


def ranges(server):
    return [header for _, header in server.requests]


def test_whole_file(server, url, tmp_path):
    seen = []
    target = download(url, tmp_path / 'sub' / 'a.bin', MD5, report=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and [done for done, _ in seen] == sorted(d for d, _ in seen)
    assert [p.name for p in target.parent.iterdir()] == ['a.bin']


def test_cut_connections_go_on_where_they_stopped(server, url, tmp_path):
    server.cut = 100_000
    assert download(url, tmp_path / 'a.bin', MD5).read_bytes() == CONTENT
    assert ranges(server) == [None, 'bytes=100000-', 'bytes=200000-']


def test_a_second_call_goes_on(server, url, tmp_path):
    (tmp_path / 'a.bin.part').write_bytes(CONTENT[:123_456])
    assert download(url, tmp_path / 'a.bin', MD5).read_bytes() == CONTENT
    assert ranges(server) == ['bytes=123456-']


def test_a_finished_file_is_not_fetched_again(server, url, tmp_path):
    (tmp_path / 'a.bin').write_bytes(CONTENT)
    download(url, tmp_path / 'a.bin', MD5)
    assert server.requests == []


def test_a_server_without_ranges_sends_it_all_again(server, url, tmp_path):
    server.ranges = False
    (tmp_path / 'a.bin.part').write_bytes(CONTENT[:1000])
    assert download(url, tmp_path / 'a.bin', MD5).read_bytes() == CONTENT


def test_a_part_of_another_file_is_replaced(server, url, tmp_path):
    (tmp_path / 'a.bin.part').write_bytes(b'x' * 1000)  # right length, wrong bytes: found by the checksum
    assert download(url, tmp_path / 'a.bin', MD5).read_bytes() == CONTENT
    (tmp_path / 'a.bin').unlink()
    (tmp_path / 'a.bin.part').write_bytes(b'x' * 400_000)  # longer than the file: the server says 416
    assert download(url, tmp_path / 'a.bin', MD5).read_bytes() == CONTENT


def test_wrong_checksum_is_an_error_and_leaves_nothing(server, url, tmp_path):
    with pytest.raises(ValueError, match=f'has MD5 {MD5}, expected 0{{32}}'):
        download(url, tmp_path / 'a.bin', '0' * 32)
    assert list(tmp_path.iterdir()) == []


def test_busy_server_is_asked_again_and_a_missing_file_is_not(server, url, tmp_path):
    server.fail_next = 2
    assert download(url, tmp_path / 'a.bin', MD5).read_bytes() == CONTENT
    asked = len(server.requests)
    with pytest.raises(DownloadError, match='HTTP 404'):
        download(server.url + '/gone.bin', tmp_path / 'gone.bin')
    assert len(server.requests) == asked + 1


def test_silence_ends_after_some_attempts_and_keeps_what_is_there(server, url, tmp_path):
    (tmp_path / 'a.bin.part').write_bytes(CONTENT[:1000])
    server.cut = 0
    with pytest.raises(DownloadError, match='8 times without a new byte; .* call again later'):
        download(url, tmp_path / 'a.bin', MD5)
    assert (tmp_path / 'a.bin.part').stat().st_size == 1000
    server.cut = None
    assert download(url, tmp_path / 'a.bin', MD5).read_bytes() == CONTENT


def test_full_disk_is_said_and_what_is_there_is_kept(server, url, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 50_000:
                raise OSError(errno.ENOSPC, 'No space left on device')
            return super().write(data)

    monkeypatch.setattr(module, 'open', lambda path, mode: Full(path, mode), raising=False)
    with pytest.raises(OSError, match='the disk is full') as error:
        download(url, tmp_path / 'a.bin', None)
    assert error.value.errno == errno.ENOSPC
    assert (tmp_path / 'a.bin.part').read_bytes() == CONTENT[:50_000]
    monkeypatch.undo()
    assert download(url, tmp_path / 'a.bin', MD5).read_bytes() == CONTENT
    assert ranges(server)[-1] == 'bytes=50000-'


def test_disk_space_is_checked_before(tmp_path):
    check_space(tmp_path / 'not' / 'yet', 1, 'it')
    with pytest.raises(OSError, match=r'it needs 1000000.0 GB .* free; make room'):
        check_space(tmp_path / 'not' / 'yet', 10**15, 'it')


def test_no_server():
    with pytest.raises(DownloadError, match='check the network'):
        remote_size('http://127.0.0.1:9/a.bin')


def archive(path, names):
    with tarfile.open(path, 'w:gz') as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b'abc'))
    return path


def test_unpack_appears_whole_and_brings_files_beside_it(tmp_path):
    good = archive(tmp_path / 'x.tar.gz', ['Top/one/a/b.txt', 'Top/README', 'Top/two/c.txt'])
    (tmp_path / '.unpacking-one').mkdir()  # left by a run that was killed
    (tmp_path / '.unpacking-one' / 'old').write_text('')
    assert unpack(good, tmp_path, 'Top/one') == tmp_path / 'Top' / 'one'
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*') if p.is_file())
    assert found == ['Top/README', 'Top/one/a/b.txt', 'x.tar.gz']


def test_broken_archives(tmp_path):
    half = archive(tmp_path / 'half.tar.gz', [f'Top/one/{i}' for i in range(100)])
    half.write_bytes(half.read_bytes()[:-200])
    text = tmp_path / 'text.tar.gz'
    text.write_text('no archive')
    for path in (half, text):
        with pytest.raises(ValueError, match='is no archive that can be unpacked'):
            unpack(path, tmp_path, 'Top/one')
    with pytest.raises(ValueError, match='has no folder Top/one'):
        unpack(archive(tmp_path / 'other.tar.gz', ['Top/two/x']), tmp_path, 'Top/one')
    assert not (tmp_path / 'Top').exists() and not list(tmp_path.glob('.unpacking*'))


@pytest.mark.skipif(not hasattr(tarfile, 'data_filter'), reason='this Python has no tarfile filters')
def test_archives_cannot_write_outside(tmp_path):
    evil = archive(tmp_path / 'evil.tar.gz', ['Top/one/a', '../outside.txt'])
    with pytest.raises(ValueError, match='is no archive that can be unpacked'):
        unpack(evil, tmp_path / 'in', 'Top/one')
    assert not (tmp_path / 'outside.txt').exists()
