"""A stand-in for the Hugging Face hub on loopback: data sets of one revision, as its clients ask for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Repositories = Mapping[str, Mapping[str, bytes]]
"""`USER/NAME` to the files of a data set."""
REVISION = "1234567890" * 4


class Hub(BaseHTTPRequestHandler):
    """Answers what clients ask; anything else is not there."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: Any, repositories: Repositories) -> None:
        self.repositories = repositories
        super().__init__(*arguments)

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match parts:
            case ["api", "datasets", user, name] | ["api", "datasets", user, name, "revision", _]:
                self._about(f"{user}/{name}")
            case ["api", "datasets", user, name, "tree", _, *folder]:
                self._tree(self._files(f"{user}/{name}"), "/".join(folder))
            case ["datasets", user, name, "resolve", _, *path]:
                self._file(self._files(f"{user}/{name}").get("/".join(path)))
            case _:
                self._missing("EntryNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = urlsplit(self.path).path.strip("/").split("/")
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        files = self._files("/".join(parts[2:4]))
        self._json(
            [self._entry(files, path) for path in asked if any(f"{one}/".startswith(f"{path}/") for one in files)]
        )

    def _files(self, repository: str) -> Mapping[str, bytes]:
        return self.repositories.get(repository, {})

    def _about(self, repository: str) -> None:
        if repository not in self.repositories:
            self._missing("RepoNotFound")
            return
        files = [{"rfilename": name} for name in self._files(repository)]
        told = {"id": repository, "sha": REVISION, "private": False, "gated": False, "disabled": False, "tags": []}
        self._json({**told, "downloads": 0, "likes": 0, "siblings": files})

    def _tree(self, files: Mapping[str, bytes], folder: str) -> None:
        start = f"{folder}/" if folder else ""
        inside = [name for name in files if name.startswith(start)]
        if "recursive=true" not in self.path.lower():
            inside = list(dict.fromkeys(start + name[len(start) :].partition("/")[0] for name in inside))
        self._json([self._entry(files, name) for name in inside]) if inside else self._missing("EntryNotFound")

    @staticmethod
    def _entry(files: Mapping[str, bytes], path: str) -> dict[str, Any]:
        kind = "file" if path in files else "directory"
        return {"type": kind, "oid": "0" * 40, "size": len(files.get(path, b"")), "path": path}

    def _file(self, data: bytes | None) -> None:
        if data is None:
            self._missing("EntryNotFound")
            return
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last or len(data) - 1)
        headers = {"ETag": '"1"', "X-Repo-Commit": REVISION, "Accept-Ranges": "bytes"}
        if first:
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._send(206 if first else 200, data[start : end + 1], **headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(404, b"", **{"X-Error-Code": code})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def serving(repositories: Repositories) -> Iterator[str]:
    """The address of a hub that has these."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, repositories=repositories))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()
