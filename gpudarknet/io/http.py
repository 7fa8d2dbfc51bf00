"""Reading http and https URLs: images and weights.

    from gpudarknet.io.http import read_url
    data = read_url("https://example.org/dog.jpg")

A URL may come from a list that somebody else wrote, so it must not reach what only this machine can: other schemes,
also after a redirect, and addresses that are not public are refused. The address that is checked is the one that is
connected to, so neither another spelling (0x7f.1) nor a second answer of the name server gets past. Through a proxy of
the environment (https_proxy, no_proxy) it is the proxy that connects: what this machine resolves the name to is checked.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import math
import os
import re
import socket
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from ..errors import DownloadError

MAX_BYTES = 64 << 20
TIMEOUT = 60.0  # seconds
CONNECT_TIMEOUT = 10.0  # seconds for each address of a host: the first may be one that never answers
MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
CHUNK = 1 << 16
ALLOW_PRIVATE_URLS = "GPUDARKNET_ALLOW_PRIVATE_URLS"  # 1 allows private addresses everywhere
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses as IPv6-only networks see them


class TransferError(Exception):
    """A URL could not be read: why, and what helps."""

    def __init__(self, reason: str, remedy: str = "check the address and the connection"):
        super().__init__(reason)
        self.remedy = remedy


def read_url(url: str, max_bytes: int = MAX_BYTES, allow_private: bool = False, *, timeout: float = TIMEOUT) -> bytes:
    """Return the content of an http or https URL.

    allow_private: also from loopback, private, link-local and reserved addresses, as with
    GPUDARKNET_ALLOW_PRIVATE_URLS=1 in the environment. timeout: seconds for the content, and for each wait. Raises
    DownloadError if the URL cannot be read or has more than `max_bytes`.
    """
    too_large = TransferError(f"has more than {max_bytes} bytes", "download it and give the file")
    end = time.monotonic() + timeout
    data = bytearray()
    try:
        with open_url(url, allow_private=allow_private, timeout=timeout) as response:
            if (response.length or 0) > max_bytes:
                raise too_large
            for chunk in iter_content(response):
                data += chunk
                if len(data) > max_bytes:
                    raise too_large
                if time.monotonic() > end:
                    raise TransferError("timed out")
    except TransferError as e:
        raise DownloadError(f"{printable(url)}: {e}; {e.remedy}") from None
    return bytes(data)


def printable(url: str) -> str:
    """Return a URL for a message, without its user and password."""
    shown = re.sub(r"^(\s*\w+://)[^/?#]*@", r"\1", url)
    return "".join(c if c.isprintable() else "?" for c in shown)


@contextmanager
def open_url(
    url: str, headers: Mapping[str, str] | None = None, *, allow_private: bool = False, timeout: float = TIMEOUT
) -> Iterator[http.client.HTTPResponse]:
    """Open a URL, through redirects; yield the answer, of status 2xx. timeout: seconds of each wait. Raises TransferError."""
    opener = urllib.request.OpenerDirector()  # without urllib's own handling of redirects, files, FTP and data
    connector = Connector(allow_private or os.environ.get(ALLOW_PRIVATE_URLS) == "1")
    for handler in (urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), connector):
        opener.add_handler(handler)
    headers = headers or {}
    request = make_request(url, headers)
    for _ in range(MAX_REDIRECTS + 1):
        with translated_errors():
            response = opener.open(request, timeout=timeout)
        with response:
            if response.status in REDIRECTS and response.headers["Location"]:
                request = redirected(request, response.headers["Location"], headers)
                continue
            if not 200 <= response.status < 300:
                raise TransferError(f"HTTP {response.status} {response.reason}".strip())
            yield response
            return
    raise TransferError(f"redirects more than {MAX_REDIRECTS} times")


def iter_content(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the content of an answer as it arrives. Raises TransferError, also if it ends early."""
    left: float = math.inf if response.length is None else response.length
    with translated_errors():
        while left:
            data = response.read1(int(min(left, CHUNK)))
            left -= len(data)
            if data:
                yield data
            elif left < math.inf:
                raise TransferError(f"ended {left} bytes early")
            else:
                return


def make_request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """Return the request for a URL as people write it: with a user and password, spaces, letters beyond ASCII."""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https"):
            raise TransferError("is no http or https address", "download the file and give its path")
        host = unquote(parts.hostname or "").encode("idna").decode()
        if not re.fullmatch(r"[\w.:-]+", host):
            raise ValueError
        netloc = f"[{host}]" if ":" in host else host
        netloc += f":{parts.port}" if parts.port is not None else ""
        path, query = (quote(part, safe="/%:=&?~#+!$,;'@()*[]") for part in (parts.path or "/", parts.query))
    except ValueError:
        raise TransferError("is not a valid address", "check its spelling") from None
    full = urlunsplit((parts.scheme, netloc, path, query, ""))
    request = urllib.request.Request(full, headers={"User-Agent": "gpudarknet", **headers})
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode(errors="replace")
        request.add_unredirected_header("Authorization", f"Basic {b64encode(user).decode()}")
    return request


def redirected(request: urllib.request.Request, location: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """Return the request that follows a redirect; a password is sent on to the same server only. Raises TransferError."""
    with suppress(ValueError):  # an invalid address is refused below
        location = urljoin(request.full_url, location)
    try:
        new = make_request(location, headers)
    except TransferError as e:
        raise TransferError(f"redirects to {printable(location)}, which {e}", e.remedy) from None
    server, new_server = (urlsplit(r.full_url)[:2] for r in (request, new))
    if server[0] == "https" != new_server[0]:
        raise TransferError(f"redirects from https to {printable(location)}")
    if server == new_server:
        new.unredirected_hdrs = request.unredirected_hdrs | new.unredirected_hdrs
    return new


class Connector(urllib.request.AbstractHTTPHandler):
    """Sends requests over connections to checked addresses; the certificates of https servers are verified."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, allow_private: bool):
        super().__init__()
        self.allow_private = allow_private

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request."""
        kind = http.client.HTTPSConnection if request.type == "https" else http.client.HTTPConnection
        allow_private = self.allow_private
        if request.has_proxy() or getattr(request, "_tunnel_host", None):
            target = urlsplit(request.full_url)
            with suppress(socket.gaierror):  # only the proxy may know the name
                resolve(target.hostname or "", target.port or 80, allow_private)
            allow_private = True  # the proxy itself

        def connection(host: str, **options: Any) -> Any:
            made: Any = kind(host, **options)
            made._create_connection = functools.partial(connect, allow_private=allow_private)  # opens its socket
            return made

        return self.do_open(connection, request)

    https_open = http_open


def connect(address: tuple[str, int], timeout: float, *_: object, allow_private: bool) -> socket.socket:
    """Connect to a host and port, by the first of the host's addresses that answers. Raises TransferError and OSError."""
    error = OSError("host not found")
    for ip in resolve(*address, allow_private):
        try:
            connection = socket.create_connection((ip, address[1]), min(CONNECT_TIMEOUT, timeout))
            connection.settimeout(timeout)
            return connection
        except OSError as e:
            error = e
    raise error


def resolve(host: str, port: int, allow_private: bool) -> list[str]:
    """Return a host's IP addresses. Raises OSError, and TransferError unless all are public or private ones allowed."""
    found = [str(address[0]) for *_, address in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)]
    for ip in found:
        if not (allow_private or is_public(ip)):
            where = ip if ip == host.strip("[]") else f"{host} ({ip})"
            remedy = f"set {ALLOW_PRIVATE_URLS}=1 if your own computers are meant"
            raise TransferError(f"{where} is not a public address", remedy)
    return found


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, also if it is an IPv4 address inside an IPv6 one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(ip.packed[-4:]) if ip in NAT64 else None)
        if inner is None:
            return ip.is_global and ip in GLOBAL_UNICAST
        ip = inner
    return ip.is_global and not ip.is_multicast


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise a TransferError for what goes wrong in a connection."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as e:
        cause = e.reason if isinstance(e, urllib.error.URLError) else e
        reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        raise TransferError(" ".join(reason.split())[:200]) from None
