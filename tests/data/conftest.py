"""Fixtures: a miniature LibriSpeech, and a local web server that misbehaves on demand."""

import http.server
import re
import threading
import time
from pathlib import Path

import pytest
from mini import make_librispeech


@pytest.fixture
def librispeech(tmp_path) -> Path:
    make_librispeech(tmp_path / 'corpus')
    return tmp_path / 'corpus'


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files` with byte ranges; `server.cut` ends each reply after so many bytes, `server.slow` waits."""

    def do_HEAD(self):
        self.reply(body=False)

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get('Range')))
        self.reply(body=True)

    def reply(self, body):
        server = self.server
        content = server.files.get(self.path)
        if content is None or (body and server.fail_next > 0):
            server.fail_next -= content is not None
            self.send_error(404 if content is None else 503)
            return
        start = 0
        match = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range') or '')
        if match and server.ranges:
            start = int(match.group(1))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        else:
            self.send_response(200)
        rest = content[start:]
        self.send_header('Content-Length', str(len(rest)))
        self.end_headers()
        if body:
            rest = rest if server.cut is None else rest[: server.cut]
            for at in range(0, len(rest), 1 << 19):
                time.sleep(server.slow)
                try:
                    self.wfile.write(rest[at : at + (1 << 19)])
                    self.wfile.flush()
                except OSError:  # the client has gone
                    break
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    """A server on this machine: set `.files`, `.cut`, `.ranges`, `.fail_next`, `.slow`; read `.requests`."""
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    httpd.files, httpd.requests, httpd.cut, httpd.ranges = {}, [], None, True
    httpd.fail_next = httpd.slow = 0
    httpd.url = f'http://127.0.0.1:{httpd.server_port}'
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()
