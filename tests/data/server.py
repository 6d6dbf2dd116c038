"""A small HTTP server that misbehaves on request, and LaMP-shaped files for it to serve."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.data.helpers import LABELS, raw_sample

PAGE = b"<!DOCTYPE html><html><body>" + b"Sorry, moved. " * 1200 + b"</body></html>"
# An act answers one request in its own way; without one the server behaves.
Act = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Serves `Server.files` with ETag, Range and If-Range, unless an act is waiting."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path
        self.server.seen.append((path, dict(self.headers.items())))
        waiting = self.server.acts[path]
        content = self.server.files.get(path)
        try:
            if waiting:
                waiting.popleft()(self, content or b"")
            elif content is None:
                self.answer(404, b"not here")
            else:
                self.whole_or_rest(content)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up, which is what some tests want

    def whole_or_rest(self, content: bytes, etag: str = '"v1"') -> None:
        match = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        if match is None or self.headers.get("If-Range", etag) != etag:
            return self.answer(200, content, ETag=etag)
        start = int(match[1])
        if start >= len(content):
            return self.answer(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206, content[start:], ETag=etag, **{"Content-Range": span})

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        """Send an answer; a header given as "" is left out."""
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.acts: dict[str, deque[Act]] = defaultdict(deque)
        self.seen: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def will(self, path: str, *acts: Act) -> None:
        """Let the next requests for `path` be answered by these acts."""
        self.acts[path].extend(acts)

    def ranges(self, path: str) -> list[str]:
        """The Range of every request for `path` so far, "" where there was none."""
        return [headers.get("Range", "") for seen, headers in self.seen if seen == path]


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def cut_at(size: int, etag: str = '"v1"') -> Act:
    """Announce everything, send the first bytes, hang up."""
    return lambda h, content: h.answer(
        200, content[:size], ETag=etag, **{"Content-Length": str(len(content))}
    )


def status(code: int, body: bytes = b"no", **headers: str) -> Act:
    return lambda h, _: h.answer(code, body, **headers)


def page(h: Handler, _: bytes) -> None:
    """HTML with status 200."""
    h.answer(200, PAGE, **{"Content-Type": "text/html"})


def all_of_it(h: Handler, content: bytes) -> None:
    """No range support at all: always everything, without a version."""
    h.answer(200, content)


def stalled(size: int, seconds: float) -> Act:
    """Send some bytes, then nothing."""

    def act(h: Handler, content: bytes) -> None:
        h.answer(200, content[:size], ETag='"v1"', **{"Content-Length": str(len(content))})
        h.wfile.flush()
        time.sleep(seconds)

    return act


def questions_of(task: str, part: str, count: int) -> bytes:
    digit = ("train", "dev", "test").index(part)
    records = [raw_sample(task, f"{digit}{i}", f"query {part} {i}") for i in range(count)]
    return json.dumps(records).encode()


def outputs_of(task: str, part: str, count: int) -> bytes:
    digit = ("train", "dev", "test").index(part)
    gold = LABELS[task] or "a gold tweet"
    golds = [{"id": f"{digit}{i}", "output": gold} for i in range(count)]
    return json.dumps({"task": task, "golds": golds}).encode()
