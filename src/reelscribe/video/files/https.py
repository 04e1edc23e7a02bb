"""A video at an `https://` address, read in ranges or fetched into an anonymous file. FFmpeg itself never opens a
connection; HTTP is httpcore's (httpx's transport), over connections that are opened here.

Only addresses on the public internet are connected to, so that a data set cannot make this machine send requests inside
its own network: the name of each hop is resolved here, every address is checked, and the connection goes to the checked
address itself, so that a second answer of the name server changes nothing. Proxies are not used.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import IO, Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import httpcore

from ...ranges import Ranged, nameless_file
from ...stores import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, shown
from ..rejection import RejectedError, reason

MAX_REDIRECTS = 5
"""Redirects that are followed, each checked like the first address."""
MAX_BYTES = 4 << 30
"""Largest file that is fetched unless a smaller limit is given."""
OPERATION_SECONDS = 30.0
"""Time within which something must arrive."""
CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 1 << 20
"""Bytes that are cached and requested at a time."""
BLOCKS_KEPT = 16
SKIPPED_BYTES = 1 << 20
"""Up to so many bytes skipping is preferred to a new request."""
ATTEMPTS = 6
"""Tries for a block; the waits between them double, six seconds in all."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_OK, _PARTIAL = 200, 206
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_NO_SUCH_RANGE = 416
"""Answers to a request for everything from the first byte on: for empty files, and if ranges are refused."""
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_URL_CHARS = "/%:@!$&'()*+,;=~-._?"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def open_remote(url: str, *, max_bytes: int | None, seconds: float) -> RemoteFile | IO[bytes]:
    """The file at an address: one to be read in ranges, or if the server does not support them, all of it in an open
    anonymous temporary file.

    Args:
        url: an `https://` address.
        max_bytes: largest file; None: `MAX_BYTES`.
        seconds: time for everything that is fetched of it.

    Raises:
        RejectedError: `not_allowed` for another scheme or an address that is not public, `not_found`, `too_large`,
            `timeout`, or `unreadable` if the server fails.
    """
    bound = max_bytes or MAX_BYTES
    with refusals(url):
        clock = _Clock(seconds)
        with clock.running():
            answer = _ask(url, 0, clock)
            if answer.in_ranges and answer.size is None:  # then its end is unknown
                answer.close()
                answer = _ask(url, None, clock)
            try:
                _check_size(url, answer.size or 0, bound)
                if answer.in_ranges and answer.size is not None:
                    return RemoteFile(url, answer, answer.size, clock)
                return _save(answer, clock, bound)
            except BaseException:
                answer.close()
                raise


@contextmanager
def refusals(url: str) -> Iterator[None]:
    """Turn exceptions of a request into a rejection of the video."""
    try:
        yield
    except TimeoutError as exc:
        raise RejectedError("timeout", f"{shown(url)} did not arrive in time") from exc
    except (OSError, httpcore.ProtocolError, ValueError) as exc:
        raise RejectedError("unreadable", f"{shown(url)} cannot be fetched: {reason(exc)}") from exc


class RemoteFile(Ranged):
    """A file on a server that supports ranges; read as a stream while reads are consecutive.

    Args:
        url: where it was asked for.
        answer: to a request for all of it.
        size: in bytes.
        clock: time for what is fetched.
    """

    def __init__(self, url: str, answer: _Answer, size: int, clock: _Clock) -> None:
        self.url = url
        self._answer: _Answer | None = answer
        self._size, self._versions, self._clock = size, answer.versions, clock
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    @property
    def is_versioned(self) -> bool:
        """Whether the server identifies the content."""
        return any(self._versions)

    def stat(self) -> SimpleNamespace:
        """Size and version as the server reports them."""
        return SimpleNamespace(st_size=self._size, st_mtime_ns=" ".join(self._versions))

    def close(self) -> None:
        """Close the connection."""
        if self._answer is not None:
            self._answer.close()
        self._answer = None

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`, from cached blocks."""
        end = min(end, self._size)
        first, last = start // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        with self._clock.running():
            pieces = b"".join(self._block(number) for number in range(first, last + 1)) if end > start else b""
        return pieces[start - first * BLOCK_BYTES : end - first * BLOCK_BYTES]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._blocks[number] = self._patiently(number)
            while len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _patiently(self, number: int) -> bytes:
        """A block; retried while it does not arrive and retrying may help."""
        wait, attempts = FIRST_WAIT_SECONDS, 0
        while True:
            try:
                return self._fetch(number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, self._size))
            except TimeoutError:
                raise
            except (OSError, httpcore.ProtocolError, RejectedError) as exc:
                self.close()
                attempts += 1
                if _is_final(exc) or attempts == ATTEMPTS:
                    raise OSError(reason(exc)) from exc
                time.sleep(min(self._clock.seconds_left(), wait))
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _fetch(self, start: int, end: int) -> bytes:
        """These bytes; a server may give fewer at a time."""
        found = bytearray()
        while start + len(found) < end:
            answer = self._answer_at(start + len(found))
            data = answer.read(min(end - start - len(found), CHUNK_BYTES))
            if not data:
                self.close()
                if answer.gave_nothing:
                    raise OSError("nothing arrived")
            found += data
            self._clock.seconds_left()
        return bytes(found)

    def _answer_at(self, place: int) -> _Answer:
        """A response whose next byte is at this position: the current one, or a new one; one that returns everything is
        skipped up to there."""
        answer = self._answer
        if answer is None or not 0 <= place - answer.place <= SKIPPED_BYTES:
            self.close()
            answer = self._answer = self._asked(place)
        while place > answer.place and answer.read(min(place - answer.place, CHUNK_BYTES)):
            self._clock.seconds_left()
        if answer.place != place:
            raise OSError(f"the response ends at byte {answer.place} of {self._size}")
        return answer

    def _asked(self, place: int) -> _Answer:
        answer = _ask(self.url, place, self._clock)
        if answer.size not in (None, self._size) or not _is_same(answer.versions, self._versions):
            answer.close()
            raise _ChangedError("the file changed while it was being read")
        return answer


class _ChangedError(OSError):
    """The file has been replaced."""


def _is_final(exc: Exception) -> bool:
    """Whether retrying cannot fix it."""
    return isinstance(exc, _ChangedError) or (isinstance(exc, RejectedError) and exc.failure.kind != "unreadable")


def _is_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two responses are of one file: servers behind one name may differ in its tag, or in its date."""
    told = [(mine, theirs) for mine, theirs in zip(one, other, strict=True) if mine and theirs]
    return not told or any(mine == theirs for mine, theirs in told)


def is_public(address: str) -> bool:
    """Whether this IP address is on the public internet, including an IPv4 address wrapped into an IPv6 one."""
    ip: Address = ipaddress.ip_address(address.partition("%")[0])
    return all(one.is_global and not _is_special(one) for one in (ip, *_wrapped(ip)))


def _is_special(ip: Address) -> bool:
    return ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_unspecified


def _wrapped(ip: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address leads to through mapping, NAT64, 6to4 or Teredo."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    inside: list[Address | None] = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if any(ip in network for network in _NAT64) or int(ip) >> 32 == 0:
        inside.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [one for one in inside if one is not None]


class _Clock:
    """A time budget for fetching; it runs only during a fetch.

    Args:
        seconds: in all.
    """

    def __init__(self, seconds: float) -> None:
        self._left, self._end = seconds, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """While something is fetched."""
        self._end = time.monotonic() + self._left
        try:
            yield
        finally:
            self._left = self._end - time.monotonic()

    def seconds_left(self) -> float:
        """Time for the next step.

        Raises:
            TimeoutError: none is left.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, OPERATION_SECONDS)


class _Answer:
    """A server's response, and where it starts.

    Raises:
        OSError: it sends other bytes than those from `start` on.
    """

    def __init__(
        self, url: str, connection: httpcore.HTTPConnection, response: httpcore.Response, start: int | None
    ) -> None:
        self.url, self._connection = url, connection
        self._pieces, self._piece = response.iter_stream(), b""
        headers = _headers(response)
        self.in_ranges = response.status == _PARTIAL
        self.start = self.place = (start or 0) if self.in_ranges else 0
        """Where the next byte belongs."""
        self._has_length = "content-length" in headers and "transfer-encoding" not in headers
        self.size = int(headers["content-length"]) if self._has_length else None
        """Size of the whole file, in bytes; None: unknown."""
        self.versions = (headers.get("etag", "").removeprefix("W/"), headers.get("last-modified", ""))
        if self.in_ranges:
            told = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            if told is None or int(told[1]) != start:
                raise OSError("the server returned a different byte range than requested")
            self.size = int(told[2]) if told[2] != "*" else None

    @property
    def gave_nothing(self) -> bool:
        """Whether no byte has been read."""
        return self.place == self.start

    def read(self, count: int) -> bytes:
        """Up to so many bytes; none at the end, even if that comes before the announced length."""
        try:
            self._piece = self._piece or next(self._pieces, b"")
        except httpcore.RemoteProtocolError:
            if not self._has_length:
                raise
        data, self._piece = self._piece[:count], self._piece[count:]
        self.place += len(data)
        return data

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _ask(url: str, start: int | None, clock: _Clock) -> _Answer:
    """Request a file from a byte on, over redirects, each checked like the first address; with None, all of it without
    a range, which is also the fallback if a server does not support ranges there."""
    asked = url
    for _ in range(MAX_REDIRECTS + 1):
        connection, request = _prepared(_checked(url), start, clock)
        try:
            response = connection.handle_request(request)
            if response.status not in _REDIRECTS and not (response.status == _NO_SUCH_RANGE and start == 0):
                _check_status(url, response.status)
                return _Answer(url, connection, response, start)
        except BaseException:
            connection.close()
            raise
        connection.close()
        start = None if response.status == _NO_SUCH_RANGE else start
        url = urljoin(url, _headers(response).get("location", ""))
    raise RejectedError("unreadable", f"{shown(asked)} needs more than {MAX_REDIRECTS} redirects")


def _headers(response: httpcore.Response) -> dict[str, str]:
    """Lower-case names and values; the first of a repeated name."""
    return {
        name.decode("latin-1").lower(): value.decode("utf-8", "replace").strip()
        for name, value in reversed(response.headers)
    }


def _check_status(url: str, status: int) -> None:
    if status in _GONE:
        raise RejectedError("not_found", f"{shown(url)} does not exist: the server answered with status {status}")
    if status not in (_OK, _PARTIAL):
        raise RejectedError("unreadable", f"{shown(url)} cannot be fetched: the server answered with status {status}")


def _check_size(url: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise RejectedError("too_large", f"{shown(url)} is larger than the limit of {max_bytes} bytes")


def _save(answer: _Answer, clock: _Clock, max_bytes: int) -> IO[bytes]:
    """The whole response, in a temporary file."""
    with nameless_file() as file:
        while data := answer.read(CHUNK_BYTES):
            _check_size(answer.url, answer.place, max_bytes)
            file.write(data)
            clock.seconds_left()
        if answer.size is not None and answer.place != answer.size:
            raise OSError(f"only {answer.place} of {answer.size} bytes arrived")
        if answer.gave_nothing:
            raise OSError("nothing arrived")
    answer.close()
    return file


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise RejectedError("not_allowed", f"{shown(url)}: only https:// addresses are fetched")
    if not parts.hostname:
        raise RejectedError("unreadable", f"{shown(url)} has no host name")
    if "@" in parts.netloc:
        raise RejectedError("not_allowed", f"{shown(url)}: addresses with a user name are not fetched")
    return parts


def _prepared(parts: SplitResult, start: int | None, clock: _Clock) -> tuple[httpcore.HTTPConnection, httpcore.Request]:
    """A connection that is not yet open, and a request on it for the file from a byte on."""
    assert parts.hostname is not None
    host, port = parts.hostname.encode("ascii" if parts.hostname.isascii() else "idna"), parts.port or 443
    target = quote(parts.path or "/", safe=_URL_CHARS)
    target += f"?{quote(parts.query, safe=_URL_CHARS)}" if parts.query else ""
    named = b"[%b]" % host if b":" in host else host
    headers = [
        (b"Host", named if port == 443 else b"%b:%d" % (named, port)),
        (b"Accept-Encoding", b"identity"),
        (b"User-Agent", b"reelscribe"),
    ]
    if start is not None:
        headers.append((b"Range", b"bytes=%d-" % start))
    url = httpcore.URL(scheme=b"https", host=host, port=port, target=target.encode("ascii"))
    connection = httpcore.HTTPConnection(url.origin, ssl_context=tls_context(), network_backend=_PublicNetwork(clock))
    return connection, httpcore.Request(b"GET", url, headers=headers)


class _PublicNetwork(httpcore.NetworkBackend):
    """Connections only to addresses on the public internet; httpcore then authenticates each as the named server.

    Args:
        clock: time for all that is sent and received.
    """

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def connect_tcp(self, host: str, port: int, *_settings: Any, **_more: Any) -> _TimedStream:
        """Resolve a name, check every address that it has, and connect to the first.

        Raises:
            RejectedError: `not_allowed`.
        """
        address = _address(host, port)
        return _TimedStream(socket.create_connection((address, port), self._clock.seconds_left()), self._clock)


class _TimedStream(httpcore.NetworkStream):
    """A connection with a time limit for each step; errors are the socket's own.

    Args:
        connected: the socket.
        clock: time for all steps.
    """

    def __init__(self, connected: socket.socket, clock: _Clock) -> None:
        self._socket, self._clock = connected, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 (the clock's)
        self._socket.settimeout(self._clock.seconds_left())
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._socket.settimeout(self._clock.seconds_left())
        self._socket.sendall(buffer)

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> _TimedStream:
        try:
            self._socket.settimeout(self._clock.seconds_left())
            return _TimedStream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._clock)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()


@cache
def tls_context() -> ssl.SSLContext:
    """The certificates this machine trusts."""
    return ssl.create_default_context()


def _address(host: str, port: int) -> str:
    """The first address of a server, if all of its addresses are public."""
    found = [str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    hidden = [address for address in found if not is_public(address)]
    if hidden or not found:
        raise RejectedError(
            "not_allowed", f"{host} is not on the public internet: {hidden[0] if hidden else 'no address'}"
        )
    return found[0]
