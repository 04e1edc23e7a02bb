"""Videos at https addresses: off unless allowed, only from the public internet, and bounded like local files."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clips import noise
from reelscribe import ranges
from reelscribe.types import CaptionRequest, Clip, Failure, RequestId, TimeWindow
from reelscribe.video.files import https, source
from reelscribe.video.frames.moments import FramePolicy
from reelscribe.video.limits import ReadLimits
from reelscribe.video.processes.clip_stream import read_clips
from reelscribe.video.reader import read_clip

POLICY = FramePolicy()
INSIDE = [
    "0.0.0.0",
    "127.0.0.1",
    "127.255.0.9",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd12:3456::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "::127.0.0.1",
    "::10.0.0.1",
]
LINES = 300
"""Of a head that takes half a minute."""
ALLOWED = ReadLimits(allow_remote=True, max_read_seconds=30)


class Handler(BaseHTTPRequestHandler):
    """Serves one file in many ways; the first part of the path says how."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def __init__(self, *arguments: Any, data: bytes, asked: list[str], sent: list[int]) -> None:
        self.data, self.asked, self.sent = data, asked, sent
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        how, _, rest = self.path.strip("/").partition("/")
        getattr(self, f"do_{how.partition('?')[0]}", self.do_missing)(rest)

    def _head(self, status: int, **headers: str | int) -> None:
        self.send_response(status)
        for name, value in {"Connection": "close", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_good(self, _rest: str) -> None:
        self._head(200, Content_Length=len(self.data))
        self.wfile.write(self.data)

    def _part(
        self, *, most: int | None = None, version: str = "1", moved: int = 0, cut: int | None = None, **more: str
    ) -> None:
        """The rest of the file from where it was asked for: `most` bytes of it, or cut off after `cut`."""
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        data = self.data[start:][:most]
        at = start + moved
        told = f"bytes {at}-{at + len(data) - 1}/{len(self.data)}"
        self._head(206, Content_Length=len(data), Content_Range=told, ETag=version, **more)
        for begin in range(0, len(data[:cut]), 1 << 10):
            piece = data[:cut][begin : begin + (1 << 10)]
            self.wfile.write(piece)
            self.sent.append(len(piece))

    def do_ranged(self, _rest: str) -> None:
        self._part()

    def do_capped(self, _rest: str) -> None:
        self._part(most=5000)

    def do_dropping(self, _rest: str) -> None:
        self._part(cut=7000)

    def do_silent(self, _rest: str) -> None:
        self._part(cut=None if len(self.asked) == 1 else 0)

    def do_mirrors(self, _rest: str) -> None:
        """Servers that mark one file in different ways."""
        self._part(version=f'W/"{len(self.asked)}"', most=5000, Last_Modified="Wed, 25 Nov 2026 10:00:00 GMT")

    def do_starred(self, rest: str) -> None:
        """Says not how long the file is, and gives a part of it."""
        if "Range" not in self.headers:
            self.do_good(rest)
            return
        self._head(206, Content_Length=5000, Content_Range="bytes 0-4999/*")
        self.wfile.write(self.data[:5000])

    def do_refusing(self, rest: str) -> None:
        """Takes no ranges."""
        self._head(416, Content_Length=0) if "Range" in self.headers else self.do_good(rest)

    def do_changing(self, _rest: str) -> None:
        self._part(version=str(len(self.asked)), most=5000)

    def do_lying(self, _rest: str) -> None:
        self._part(moved=1)

    def do_forgetful(self, rest: str) -> None:
        """Answers a range the first time only."""
        self._part(most=5000) if len(self.asked) == 1 else self.do_good(rest)

    def do_chunked(self, _rest: str) -> None:
        self._head(200, Transfer_Encoding="chunked")
        for part in (self.data[:100], self.data[100:], b""):
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")

    def do_endless(self, _rest: str) -> None:
        self._head(200)
        while True:
            self.wfile.write(bytes(1 << 16))

    def do_short(self, _rest: str) -> None:
        self._head(200, Content_Length=len(self.data) + 100)
        self.wfile.write(self.data)

    def do_slow(self, _rest: str) -> None:
        self._head(200, Content_Length=len(self.data))
        for at in range(50):
            self.wfile.write(self.data[at : at + 1])
            time.sleep(0.1)

    def do_cut(self, _rest: str) -> None:
        """In chunks, of which the last never comes."""
        self._head(200, Transfer_Encoding="chunked")
        self.wfile.write(b"64\r\n" + self.data[:100] + b"\r\n")

    def do_late(self, _rest: str) -> None:
        """A head of many lines, each of which comes soon."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for at in range(LINES):
            self.wfile.write(f"X-{at}: 1\r\n".encode())
            self.sent.append(at)
            time.sleep(0.1)

    def do_heads(self, _rest: str) -> None:
        """A head without an end."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X: " + b"1" * 1000 + b"\r\n")

    def do_garbage(self, _rest: str) -> None:
        self.wfile.write(b"\x1b[2J no answer\r\n\r\n")

    def do_mute(self, _rest: str) -> None:
        """No answer at all."""
        self.close_connection = True

    def do_hop(self, rest: str) -> None:
        """`hop/N`: redirected N times."""
        left = int(rest)
        self._head(302, Location=f"/hop/{left - 1}" if left else "/good", Content_Length=0)

    def do_to(self, rest: str) -> None:
        self._head(301, Location=rest.replace("!", "/"), Content_Length=0)

    def do_broken(self, _rest: str) -> None:
        self._head(503, Content_Length=0)

    def do_missing(self, _rest: str) -> None:
        self._head(404, Content_Length=0)

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of our own for the name `videos.test`, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=videos.test -keyout key.pem -out own.pem"
    command += " -addext subjectAltName=DNS:videos.test,DNS:other.test"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder / "own.pem", folder / "key.pem"


class Site:
    """A server, the names that lead to it, and what it was asked for."""

    def __init__(self, data: bytes, certificate: tuple[Path, Path]) -> None:
        self.asked: list[str] = []
        self.sent: list[int] = []
        handler = partial(Handler, data=data, asked=self.asked, sent=self.sent)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*certificate)
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.addresses = {"videos.test": ["127.0.0.1"], "other.test": ["127.0.0.1"], "hidden.test": ["10.0.0.7"]}
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def serve(self, data: bytes) -> None:
        """From now on, serve this file."""
        self.server.RequestHandlerClass = partial(Handler, data=data, asked=self.asked, sent=self.sent)  # type: ignore[assignment]

    def url(self, path: str, name: str = "videos.test") -> str:
        return f"https://{name}:{self.port}/{path}"

    def resolve(self, host: str, port: int, **_settings: Any) -> list[Any]:
        addresses = self.addresses.get(host, [host])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


@pytest.fixture
def site(
    video: Callable[[str], Path], certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    """A server that stands for one in the public internet."""
    made = Site(video("h264.mp4").read_bytes(), certificate)
    trusting = ssl.create_default_context(cafile=str(certificate[0]))
    really = https.is_public
    monkeypatch.setattr(https, "tls_context", lambda: trusting)
    monkeypatch.setattr(https, "is_public", lambda address: address == "127.0.0.1" or really(address))
    monkeypatch.setattr(https.socket, "getaddrinfo", _only_names_of_ours(made))
    yield made
    made.server.shutdown()
    made.server.server_close()


def _only_names_of_ours(site: Site) -> Callable[..., Any]:
    really = socket.getaddrinfo
    return lambda host, port, *rest, **more: (
        site.resolve(host, port) if str(host).endswith(".test") else really(host, port, *rest, **more)
    )


def failure_of(url: str, limits: ReadLimits = ALLOWED) -> Failure:
    failure = read_clip(url, POLICY, limits=limits)
    assert isinstance(failure, Failure), failure
    return failure


# which addresses


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert https.is_public(address)


@pytest.mark.parametrize(
    "address",
    INSIDE,
)
def test_addresses_inside_a_network_are_not(address: str) -> None:
    assert not https.is_public(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0", "10.0.0.1"],
)
def test_no_spelling_of_an_address_inside_gets_through(host: str) -> None:
    failure = failure_of(f"https://{host}:9/x.mp4")
    assert failure.kind in ("not_allowed", "unreadable")  # some resolvers do not know the old spellings
    assert failure.kind == "not_allowed" or "fetched" in failure.message


def test_a_name_with_one_address_inside_is_refused(site: Site) -> None:
    site.addresses["videos.test"] = ["127.0.0.1", "192.168.0.1"]
    failure = failure_of(site.url("good"))
    assert failure.kind == "not_allowed"
    assert "192.168.0.1" in failure.message
    assert site.asked == []


def test_the_checked_address_itself_is_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers otherwise the second time changes nothing."""
    connected = []
    really = socket.create_connection
    monkeypatch.setattr(https.socket, "create_connection", lambda to, *rest: connected.append(to) or really(to, *rest))
    assert isinstance(read_clip(site.url("good"), POLICY, limits=ALLOWED), Clip)
    assert connected == [("127.0.0.1", site.port)]


def test_proxies_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert isinstance(read_clip(site.url("good"), POLICY, limits=ALLOWED), Clip)


# in ranges


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A file that is nearly all media, with several key frames."""
    return noise("libx264", tmp_path / "film.mp4")


@pytest.fixture
def film_site(site: Site, film: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A server with that film, read in small blocks."""
    monkeypatch.setattr(source, "LEFT_OUT_BYTES", 0)
    for module, name in ((ranges, "BUFFER_BYTES"), (https, "BLOCK_BYTES"), (https, "CHUNK_BYTES")):
        monkeypatch.setattr(module, name, 1 << 12)
    monkeypatch.setattr(https, "SKIPPED_BYTES", 1 << 12)
    monkeypatch.setattr(https, "FIRST_WAIT_SECONDS", 0.01)
    site.serve(film.read_bytes())
    return site


@pytest.mark.parametrize(
    "path", ["ranged", "capped", "dropping", "to/!ranged", "forgetful", "mirrors", "starred", "refusing"]
)
def test_a_film_in_ranges_is_the_clip_of_its_file(film_site: Site, film: Path, path: str) -> None:
    clip, local = read_clip(film_site.url(path), POLICY, limits=ALLOWED), read_clip(film, POLICY)
    assert isinstance(clip, Clip), clip
    assert isinstance(local, Clip)
    assert np.array_equal(clip.frames, local.frames)
    assert clip.pts_seconds.tolist() == local.pts_seconds.tolist()


def test_a_window_of_a_film_is_a_part_of_its_bytes(film_site: Site, film: Path) -> None:
    window = TimeWindow(5, 5.5)
    clip = read_clip(film_site.url("ranged"), POLICY, window=window, limits=ALLOWED)
    local = read_clip(film, POLICY, window=window)
    assert isinstance(clip, Clip), clip
    assert isinstance(local, Clip)
    assert np.array_equal(clip.frames, local.frames)
    assert sum(map(len, remote_blocks(film_site.url("ranged"), window))) < 0.7 * film.stat().st_size


def remote_blocks(url: str, window: TimeWindow) -> list[bytes]:
    """What is fetched for a window of a film."""
    fetched: list[bytes] = []
    really = https.RemoteFile._fetch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(https.RemoteFile, "_fetch", lambda *given: fetched.append(really(*given)) or fetched[-1])
        read_clip(url, POLICY, window=window, limits=ALLOWED)
    return fetched


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("silent", "nothing arrived"),
        ("changing", "the file changed while it was being read"),
        ("lying", "a different byte range than requested"),
    ],
)
def test_a_film_that_does_not_arrive_is_a_failure(film_site: Site, path: str, told: str) -> None:
    failure = failure_of(film_site.url(path))
    assert failure.kind == "unreadable"
    assert told in failure.message


def test_a_film_that_takes_too_long_is_a_timeout(film_site: Site) -> None:
    limits = ReadLimits(allow_remote=True, max_read_seconds=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(https.RemoteFile, "_fetch", _slowly(https.RemoteFile._fetch))
        assert failure_of(film_site.url("ranged"), limits).kind == "timeout"


def _slowly(step: Callable[..., bytes]) -> Callable[..., bytes]:
    def slow(*given: Any) -> bytes:
        time.sleep(0.3)
        return step(*given)

    return slow


def test_a_film_is_kept_in_the_cache(film_site: Site, film: Path, tmp_path: Path) -> None:
    limits = ReadLimits(allow_remote=True, video_cache=tmp_path / "cache")
    first = read_clip(film_site.url("ranged"), POLICY, limits=limits)
    assert isinstance(first, Clip), first
    [kept] = (tmp_path / "cache").iterdir()
    assert kept.read_bytes() == film.read_bytes()
    film_site.asked.clear()
    again = read_clip(film_site.url("ranged"), POLICY, limits=limits)
    assert isinstance(again, Clip)
    assert np.array_equal(first.frames, again.frames)
    assert len(film_site.asked) == 1, "asked for its version, and for nothing of it"


def test_redirects_are_checked_for_every_range(film_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads elsewhere in the middle of a film is found out."""
    monkeypatch.setattr(https, "is_public", lambda address: address == "127.0.0.1" and len(film_site.asked) < 2)
    failure = failure_of(film_site.url("capped"))
    assert failure.kind == "unreadable"
    assert "not on the public internet" in failure.message


# what comes


@pytest.mark.parametrize("path", ["good", "chunked", "good?signature=secret&x=%20y", "hop/4"])
def test_a_remote_video_is_the_clip_of_its_file(site: Site, video: Callable[[str], Path], path: str) -> None:
    clip = read_clip(site.url(path), POLICY, limits=ALLOWED)
    local = read_clip(video("h264.mp4"), POLICY)
    assert isinstance(clip, Clip)
    assert isinstance(local, Clip)
    assert np.array_equal(clip.frames, local.frames)
    assert clip.pts_seconds.tolist() == local.pts_seconds.tolist()


@pytest.mark.parametrize(
    ("path", "kind", "told"),
    [
        ("missing", "not_found", "404"),
        ("broken", "unreadable", "503"),
        ("short", "unreadable", "bytes"),
        ("cut", "unreadable", "cannot be fetched"),
        ("heads", "unreadable", "cannot be fetched"),
        ("garbage", "unreadable", "cannot be fetched"),
        ("mute", "unreadable", "cannot be fetched"),
        ("hop/5", "unreadable", "more than 5 redirects"),
        ("to/http:!!videos.test!x.mp4", "not_allowed", "only https"),
        ("to/file:!!!etc!passwd", "not_allowed", "only https"),
        ("to/https:!!hidden.test!x.mp4", "not_allowed", "10.0.0.7"),
        ("to/https:!!169.254.169.254!latest", "not_allowed", "169.254.169.254"),
    ],
)
def test_what_goes_wrong_is_a_failure(site: Site, path: str, kind: str, told: str) -> None:
    failure = failure_of(site.url(path))
    assert failure.kind == kind
    assert told in failure.message


@pytest.mark.parametrize("path", ["good", "chunked", "endless"])
def test_the_size_is_bounded(site: Site, path: str) -> None:
    limits = ReadLimits(allow_remote=True, max_source_bytes=1000)
    assert failure_of(site.url(path), limits).kind == "too_large"


def test_without_a_limit_there_is_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "MAX_BYTES", 10_000_000)
    assert failure_of(site.url("endless")).kind == "too_large"


def test_the_time_is_bounded(site: Site) -> None:
    began = time.monotonic()
    assert failure_of(site.url("slow"), ReadLimits(allow_remote=True, max_read_seconds=1)).kind == "timeout"
    assert time.monotonic() - began < 3


def test_the_time_of_a_head_is_bounded(site: Site) -> None:
    assert failure_of(site.url("late"), ReadLimits(allow_remote=True, max_read_seconds=1)).kind == "timeout"
    assert len(site.sent) < LINES, "nobody waits for the end of it"


def test_a_server_must_prove_itself(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "tls_context", ssl.create_default_context)
    failure = failure_of(site.url("good"))
    assert failure.kind == "unreadable"
    assert "certificate" in failure.message
    assert site.asked == []


def test_secrets_of_an_address_stay_out_of_messages(site: Site) -> None:
    failure = failure_of(site.url("missing?signature=secret"))
    assert "secret" not in failure.message
    assert "/missing" in failure.message
    refused = failure_of("https://user:secret@videos.test/x.mp4")
    assert refused.kind == "not_allowed"
    assert "secret" not in refused.message


@pytest.mark.parametrize("url", ["https://", "https:///x", "https://[::1/x", "https://a b/x", "https://x:y/z"])
def test_addresses_that_are_none_are_failures(url: str) -> None:
    assert failure_of(url).kind in ("unreadable", "not_allowed", "not_found")


def test_processes_that_read_keep_the_rules(video: Callable[[str], Path]) -> None:
    urls = ["https://127.0.0.1:9/x.mp4", "https://localhost:9/x.mp4", str(video("h264.mp4"))]
    requests = [CaptionRequest(RequestId(row, 0), url, "") for row, url in enumerate(urls)]
    for allow, kinds in ((True, "not_allowed"), (False, "not_allowed")):
        limits = ReadLimits(allow_remote=allow)
        found = {one.id.row: outcome for one, outcome in read_clips(requests, POLICY, workers=1, limits=limits)}
        assert isinstance(found.pop(2), Clip)
        assert {outcome.kind for outcome in found.values() if isinstance(outcome, Failure)} == {kinds}
