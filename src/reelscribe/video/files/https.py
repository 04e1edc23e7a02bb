"""A video at an `https://` address, in ranges or fetched into a file without a name. FFmpeg itself never opens a
connection.

Only addresses of the public internet are connected to, so that a data set cannot make this machine ask for things
inside its own network: the names of each hop are resolved here, every address is checked, and the connection goes to
a checked address itself, so that a second answer of the name server changes nothing. Proxies are not used.
"""

from __future__ import annotations

import http.client
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
from typing import IO
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ...ranges import Ranged, nameless_file
from ...stores import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, shown
from ..rejection import RejectedError, reason

MAX_REDIRECTS = 5
"""Redirects that are followed, each checked like the first address."""
MAX_BYTES = 4 << 30
"""Largest file that is fetched where nothing smaller is asked for."""
OPERATION_SECONDS = 30.0
"""Time in which something must arrive."""
CHUNK_BYTES = 1 << 18
BLOCK_BYTES = 1 << 20
"""What is kept and asked for at once."""
BLOCKS_KEPT = 16
SKIPPED_BYTES = 1 << 20
"""What is passed over sooner than asked for again from another place."""
ATTEMPTS = 6
"""For a block; the waits between them double, and make six seconds."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_NO_SUCH_RANGE = 416
"""To a request for everything from the first byte on: of empty files, and where ranges are refused."""
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_URL_CHARS = "/%:@!$&'()*+,;=~-._?"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def open_remote(url: str, *, max_bytes: int | None, seconds: float) -> RemoteFile | IO[bytes]:
    """The file at an address: one to be read in ranges, or where the server knows none, all of it in an open
    temporary file without a name.

    Args:
        url: an `https://` address.
        max_bytes: largest file; None: `MAX_BYTES`.
        seconds: time for everything that is fetched of it.

    Raises:
        RejectedError: `not_allowed` for another scheme or an address that is not public, `not_found`, `too_large`,
            `timeout`, or `unreadable` where the server fails.
    """
    bound = max_bytes or MAX_BYTES
    with refusals(url):
        clock = _Clock(seconds)
        with clock.running():
            answer = _ask(url, 0, clock)
            if answer.in_ranges and answer.size is None:  # then nobody knows where it ends
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
    """What is raised while a file is asked for is a rejection of the video."""
    try:
        yield
    except TimeoutError as exc:
        raise RejectedError("timeout", f"{shown(url)} does not arrive in time") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise RejectedError("unreadable", f"{shown(url)} cannot be fetched: {reason(exc)}") from exc


class RemoteFile(Ranged):
    """A file on a server that answers ranges; read as a stream where what is wanted follows what was read.

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
        """Whether the server tells one content from another."""
        return any(self._versions)

    def stat(self) -> SimpleNamespace:
        """Size and version as the server tells them."""
        return SimpleNamespace(st_size=self._size, st_mtime_ns=" ".join(self._versions))

    def close(self) -> None:
        """Hang up."""
        if self._answer is not None:
            self._answer.close()
        self._answer = None

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to `end`, from blocks that are kept a while."""
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
        """A block, asked for again while it does not come and waiting may mend that."""
        wait, attempts = FIRST_WAIT_SECONDS, 0
        while True:
            try:
                return self._fetch(number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, self._size))
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException, RejectedError) as exc:
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
        """An answer whose next byte is at this place: the one that is there, or another; one that gives everything
        is passed over up to there."""
        answer = self._answer
        if answer is None or not 0 <= place - answer.place <= SKIPPED_BYTES:
            self.close()
            answer = self._answer = self._asked(place)
        while place > answer.place and answer.read(min(place - answer.place, CHUNK_BYTES)):
            self._clock.seconds_left()
        if answer.place != place:
            raise OSError(f"the answer ends at byte {answer.place} of {self._size}")
        return answer

    def _asked(self, place: int) -> _Answer:
        answer = _ask(self.url, place, self._clock)
        if answer.size not in (None, self._size) or not _is_same(answer.versions, self._versions):
            answer.close()
            raise _ChangedError("the file has changed while it was read")
        return answer


class _ChangedError(OSError):
    """Another file is there now."""


def _is_final(exc: Exception) -> bool:
    """Whether waiting mends nothing."""
    return isinstance(exc, _ChangedError) or (isinstance(exc, RejectedError) and exc.failure.kind != "unreadable")


def _is_same(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether two answers are of one file: servers behind one name may differ in how they mark it, or in its date."""
    told = [(mine, theirs) for mine, theirs in zip(one, other, strict=True) if mine and theirs]
    return not told or any(mine == theirs for mine, theirs in told)


def is_public(address: str) -> bool:
    """Whether this IP address lies in the public internet, also where an IPv4 address is wrapped into an IPv6 one."""
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
    """Time for what is fetched; it runs only while something is.

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
            TimeoutError: there is none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, OPERATION_SECONDS)


class _Answer:
    """What a server sends, and from where on.

    Raises:
        OSError: it sends other bytes than those from `start` on.
    """

    def __init__(
        self, url: str, connection: _Connection, response: http.client.HTTPResponse, start: int | None
    ) -> None:
        self.url, self._connection, self._response = url, connection, response
        self.in_ranges = response.status == http.client.PARTIAL_CONTENT
        self.start = self.place = (start or 0) if self.in_ranges else 0
        """Where the next byte belongs."""
        self.size = response.length
        """Of the whole file, in bytes; None: it is not told."""
        headers = response.headers
        self.versions = (headers.get("ETag", "").removeprefix("W/"), headers.get("Last-Modified", ""))
        if self.in_ranges:
            told = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            if told is None or int(told[1]) != start:
                raise OSError("the server gives another part of the file than it was asked for")
            self.size = int(told[2]) if told[2] != "*" else None

    @property
    def gave_nothing(self) -> bool:
        """Whether no byte has come."""
        return self.place == self.start

    def read(self, count: int) -> bytes:
        """Up to so many bytes; none at the end."""
        data = self._response.read1(count)
        self.place += len(data)
        return data

    def close(self) -> None:
        """Hang up."""
        self._response.close()
        self._connection.close()


def _ask(url: str, start: int | None, clock: _Clock) -> _Answer:
    """Ask for a file from a byte on, over redirects, each checked like the first address; with None, for all of it
    without speaking of ranges, which is done as well where a server knows none there."""
    asked = url
    for _ in range(MAX_REDIRECTS + 1):
        connection = _Connection(_checked(url), clock.seconds_left())
        try:
            response = connection.ask(start)
            if response.status not in _REDIRECTS and not (response.status == _NO_SUCH_RANGE and start == 0):
                _check_status(url, response.status)
                return _Answer(url, connection, response, start)
            start = None if response.status == _NO_SUCH_RANGE else start
            url = urljoin(url, response.headers.get("Location", ""))
        except BaseException:
            connection.close()
            raise
        connection.close()
    raise RejectedError("unreadable", f"{shown(asked)} is behind more than {MAX_REDIRECTS} redirects")


def _check_status(url: str, status: int) -> None:
    if status in _GONE:
        raise RejectedError("not_found", f"{shown(url)} does not exist: the server says {status}")
    if status not in (http.client.OK, http.client.PARTIAL_CONTENT):
        raise RejectedError("unreadable", f"{shown(url)} cannot be fetched: the server says {status}")


def _check_size(url: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise RejectedError("too_large", f"{shown(url)} is larger than the limit of {max_bytes} bytes")


def _save(answer: _Answer, clock: _Clock, max_bytes: int) -> IO[bytes]:
    """All that comes, in a temporary file."""
    with nameless_file() as file:
        while data := answer.read(CHUNK_BYTES):
            _check_size(answer.url, answer.place, max_bytes)
            file.write(data)
            clock.seconds_left()
        if answer.size is not None and answer.place != answer.size:
            raise OSError(f"{answer.place} of {answer.size} bytes arrived")
        if answer.gave_nothing:
            raise OSError("nothing arrived")
    answer.close()
    return file


def _checked(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise RejectedError("not_allowed", f"{shown(url)}: only https:// addresses are fetched")
    if not parts.hostname:
        raise RejectedError("unreadable", f"{shown(url)} names no server")
    if "@" in parts.netloc:
        raise RejectedError("not_allowed", f"{shown(url)}: an address with a user's name is not fetched")
    return parts


class _Connection(http.client.HTTPSConnection):
    """A connection to an address that was checked, which proves itself as the server that was named."""

    def __init__(self, parts: SplitResult, seconds: float) -> None:
        assert parts.hostname is not None
        super().__init__(parts.hostname, parts.port or 443, timeout=seconds, context=tls_context())
        self._tls = tls_context()
        self._wanted = quote(parts.path or "/", safe=_URL_CHARS)
        self._wanted += f"?{quote(parts.query, safe=_URL_CHARS)}" if parts.query else ""

    def connect(self) -> None:
        plain = socket.create_connection((_address(self.host, self.port), self.port), self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise

    def ask(self, start: int | None) -> http.client.HTTPResponse:
        """Send a request for the file from a byte on, and read the head of the answer."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "reelscribe"}
        if start is not None:
            headers["Range"] = f"bytes={start}-"
        self.request("GET", self._wanted, headers=headers)
        return self.getresponse()


@cache
def tls_context() -> ssl.SSLContext:
    """The certificates this machine trusts."""
    return ssl.create_default_context()


def _address(host: str, port: int) -> str:
    """The first address of a server, where all that it has are public."""
    found = [str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    hidden = [address for address in found if not is_public(address)]
    if hidden or not found:
        raise RejectedError(
            "not_allowed", f"{host} is not in the public internet: {hidden[0] if hidden else 'nowhere'}"
        )
    return found[0]
