"""An S3 server on loopback: moto's, behind a door that counts what is asked and can be shut for a while."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SETTINGS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Door:
    """A WSGI application before another one."""

    def __init__(self, inside: Callable[..., Iterable[bytes]]) -> None:
        self._inside = inside
        self._lock = threading.Lock()
        self.asked: list[tuple[str, str, str]] = []
        """Method, path and range of every request."""
        self.sent_bytes: dict[str, int] = {}
        """Bytes of the bodies that were sent, by path."""
        self.refused = 0
        """Requests that came while it was shut."""
        self._shut_at: int | None = None
        self._shut_until = 0.0
        self._seconds = 0.0

    def shut(self, *, after: int, seconds: float) -> None:
        """Answer with 503 for so long, once so many requests more were served."""
        with self._lock:
            self._shut_at, self._seconds = len(self.asked) + after, seconds

    def _is_shut(self) -> bool:
        if self._shut_at is not None and len(self.asked) >= self._shut_at:
            self._shut_at, self._shut_until = None, time.monotonic() + self._seconds
        return time.monotonic() < self._shut_until

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        with self._lock:
            if self._is_shut():
                self.refused += 1
                start("503 Service Unavailable", [("Content-Length", "0")])
                return [b""]
            self.asked.append((environ["REQUEST_METHOD"], path, environ.get("HTTP_RANGE", "")))
        body = list(self._inside(environ, start))
        with self._lock:
            self.sent_bytes[path] = self.sent_bytes.get(path, 0) + sum(map(len, body))
        return body


@contextmanager
def serving() -> Iterator[Door]:
    """A server that is empty; the environment of this process and its children leads to it."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    from s3fs import S3FileSystem
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_arguments: Any) -> None:
            pass

    app = server.DomainDispatcherApplication(server.create_backend_app)
    door = Door(app)
    http = make_server("127.0.0.1", 0, door, threaded=True, request_handler=Quiet)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    before = dict(os.environ)
    os.environ.update(SETTINGS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{http.server_port}")
    S3FileSystem.clear_instance_cache()
    try:
        yield door
    finally:
        S3FileSystem.clear_instance_cache()
        os.environ.clear()
        os.environ.update(before)
        http.shutdown()
        http.server_close()
