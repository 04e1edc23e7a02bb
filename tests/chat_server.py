"""A small OpenAI-compatible server on loopback that answers as a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
Answer = tuple[int, Any, dict[str, str]]
"""Status, body (plain values, bytes as they are, or an iterator of bytes that are sent one by one), headers."""


class ChatServer:
    """What it serves, what it understands, and what it was asked.

    `behave(body, nth)` may return an answer in place of the usual one, or None; `nth` counts the chat requests.
    """

    def __init__(self) -> None:
        self.models: list[Body] | None = [{"id": "served", "object": "model"}]
        self.listing: bytes | None = None
        self.takes_video = self.takes_n = self.takes_logprobs = True
        self.key: str | None = None
        self.behave: Callable[[Body, int], Answer | None] = lambda body, nth: None
        self.bodies: list[Body] = []
        self.keys: set[str | None] = set()
        self.held = self.most = 0
        self.lock = threading.Lock()

    @property
    def asked(self) -> list[Body]:
        """Chat requests that were no trial."""
        return [body for body in self.bodies if body["max_tokens"] > 1]

    def answer_chat(self, body: Body) -> Answer:
        """The usual answer, unless `behave` has another or the request is more than this server understands."""
        self.bodies.append(body)
        special = self.behave(body, len(self.bodies) - 1)
        if special is not None:
            return special
        parts = [part["type"] for message in body["messages"] for part in message["content"]]
        for wanted, there in (
            ("video_url" in parts, self.takes_video),
            ("n" in body, self.takes_n),
            ("logprobs" in body, self.takes_logprobs),
        ):
            if wanted and not there:
                return error(400, "not understood")
        return 200, completion(body), {}


def completion(body: Body) -> Body:
    """Choices that tell their seed, and the usage."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": f"text {body.get('seed', 0) + index}"},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "t", "logprob": -0.5}] * 3} if body.get("logprobs") else None,
        }
        for index in range(body.get("n", 1))
    ]
    return {"choices": choices[::-1], "usage": {"prompt_tokens": 100, "completion_tokens": 3 * len(choices)}}


def error(status: int, message: str, **headers: str) -> Answer:
    """An error as vLLM and OpenAI put it."""
    return status, {"error": {"message": message, "code": status}}, headers


@contextmanager
def running(server: ChatServer, port: int = 0) -> Iterator[str]:
    """Serve on loopback; gives the base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self._let_in():
                return
            if server.listing is not None:
                self._send(200, server.listing, {})
                return
            there = server.models is not None and self.path == "/v1/models"
            self._send(200, {"data": server.models}, {}) if there else self._send(*error(404, "no such page"))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._let_in():
                return
            with server.lock:
                server.held += 1
                server.most = max(server.most, server.held)
            try:
                answer = server.answer_chat(body)
            finally:
                with server.lock:
                    server.held -= 1
            self._send(*answer)

        def _let_in(self) -> bool:
            key = self.headers.get("Authorization")
            server.keys.add(key)
            if server.key is None or key == f"Bearer {server.key}":
                return True
            self._send(*error(401, "invalid key"))
            return False

        def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
            if status == 0:  # hang up without an answer
                self.close_connection = True
                return
            if isinstance(body, Iterator):
                self._send_pieces(status, body, headers)
                return
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                **headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def _send_pieces(self, status: int, pieces: Iterator[bytes], headers: dict[str, str]) -> None:
            """As long as somebody listens."""
            self.close_connection = True
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
            except OSError:
                pass

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def slowly(seconds: float) -> Callable[[Body, int], Answer | None]:
    """A behaviour that only takes time."""

    def behave(body: Body, nth: int) -> None:
        time.sleep(seconds)

    return behave
