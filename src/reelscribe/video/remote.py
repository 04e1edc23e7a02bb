"""A video at an `https://` address, fetched into a file without a name. FFmpeg itself never opens a connection.

Only addresses of the public internet are connected to, so that a data set cannot make this machine ask for things
inside its own network: the names of each hop are resolved here, every address is checked, and the connection goes to
a checked address itself, so that a second answer of the name server changes nothing. Proxies are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import IO
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ..stores import shown
from .rejection import RejectedError, reason

MAX_REDIRECTS = 5
"""Redirects that are followed, each checked like the first address."""
MAX_BYTES = 4 << 30
"""Largest file that is fetched where nothing smaller is asked for."""
OPERATION_SECONDS = 30.0
"""Time in which something must arrive."""
_CHUNK_BYTES = 1 << 18
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_URL_CHARS = "/%:@!$&'()*+,;=~-._?"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def fetch(url: str, *, max_bytes: int | None, seconds: float) -> IO[bytes]:
    """The file at an address, as an open temporary file without a name.

    Args:
        url: an `https://` address.
        max_bytes: largest file; None: `MAX_BYTES`.
        seconds: time for all of it.

    Raises:
        RejectedError: `not_allowed` for another scheme or an address that is not public, `not_found`, `too_large`,
            `timeout`, or `unreadable` where the server fails.
    """
    fetching = _Fetching(max_bytes or MAX_BYTES, time.monotonic() + seconds)
    try:
        return fetching.file(url)
    except TimeoutError as exc:
        raise RejectedError("timeout", f"{shown(url)} does not arrive in time") from exc
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise RejectedError("unreadable", f"{shown(url)} cannot be fetched: {reason(exc)}") from exc


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


@dataclass(frozen=True, slots=True)
class _Fetching:
    """One file on its way."""

    max_bytes: int
    """Largest file."""
    end: float
    """When it must be here, on the monotonic clock."""

    def file(self, url: str) -> IO[bytes]:
        for _ in range(MAX_REDIRECTS + 1):
            with closing(_Connection(_checked(url), self._seconds_left())) as connection:
                response = connection.ask()
                if response.status not in _REDIRECTS:
                    return self._save(url, response)
                url = urljoin(url, response.headers.get("Location", ""))
        raise RejectedError("unreadable", f"{shown(url)} is behind more than {MAX_REDIRECTS} redirects")

    def _seconds_left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, OPERATION_SECONDS)

    def _save(self, url: str, response: http.client.HTTPResponse) -> IO[bytes]:
        if response.status in _GONE:
            raise RejectedError("not_found", f"{shown(url)} does not exist: the server says {response.status}")
        if response.status != http.client.OK:
            raise RejectedError("unreadable", f"{shown(url)} cannot be fetched: the server says {response.status}")
        announced = response.length
        self._check_size(url, announced or 0)
        file = tempfile.TemporaryFile(prefix="reelscribe-")  # noqa: SIM115 (the caller's)
        try:
            self._copy(url, response, file)
            if announced is not None and file.tell() != announced:
                raise OSError(f"{file.tell()} of {announced} bytes arrived")
            if not file.tell():
                raise OSError("nothing arrived")
        except BaseException:
            file.close()
            raise
        return file

    def _copy(self, url: str, response: http.client.HTTPResponse, file: IO[bytes]) -> None:
        while data := response.read1(_CHUNK_BYTES):
            self._check_size(url, file.tell() + len(data))
            file.write(data)
            self._seconds_left()
        file.flush()

    def _check_size(self, url: str, size: int) -> None:
        if size > self.max_bytes:
            raise RejectedError("too_large", f"{shown(url)} is larger than the limit of {self.max_bytes} bytes")


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

    def ask(self) -> http.client.HTTPResponse:
        """Send the request and read the head of the answer."""
        self.request("GET", self._wanted, headers={"Accept-Encoding": "identity", "User-Agent": "reelscribe"})
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
