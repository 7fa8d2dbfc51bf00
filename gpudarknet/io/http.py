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
import io
import ipaddress
import os
import re
import socket
import ssl
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
CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
TEMPORARY = (408, 429, 500, 502, 503, 504)
AGENT = "gpudarknet"
PRIVATE_VARIABLE = "GPUDARKNET_ALLOW_PRIVATE_URLS"  # 1 allows private addresses everywhere
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses as IPv6-only networks see them
CHECK = "check the address and the connection"
SECRET = re.compile(r"(?i)([?&][^&=]*(?:auth|credential|key|passw|secret|sig|token)[^&=]*=)[^&#]*")


class TransferError(Exception):
    """A URL could not be read: why, what helps, whether another attempt may succeed, and the server's status if it is why."""

    def __init__(self, reason: str, remedy: str = CHECK, temporary: bool = False, status: int = 0):
        super().__init__(reason)
        self.reason, self.remedy, self.temporary, self.status = reason, remedy, temporary, status


def read_url(url: str, max_bytes: int = MAX_BYTES, allow_private: bool = False, *, timeout: float = TIMEOUT) -> bytes:
    """Return the content of an http or https URL.

    allow_private: also from loopback, private, link-local and reserved addresses, as with
    GPUDARKNET_ALLOW_PRIVATE_URLS=1 in the environment. timeout: seconds for all of it. Raises
    DownloadError if the URL cannot be read or has more than `max_bytes`.
    """
    too_large = TransferError(f"has more than {max_bytes} bytes", "download it and give the file")
    try:
        with open_url(url, Deadline(timeout), allow_private=allow_private) as response:
            if (response.length or 0) > max_bytes:
                raise too_large
            data = bytearray()
            while chunk := response.read():
                data += chunk
                if len(data) > max_bytes:
                    raise too_large
    except TransferError as e:
        raise DownloadError(f"{printable(url)}: {e.reason}; {e.remedy}") from None
    return bytes(data)


def printable(url: str) -> str:
    """Return a URL for a message: without its user, password, and the values of parameters that look like secrets."""
    try:
        urlsplit(url).port  # noqa: B018 - raises
        login = r"[^/?#]*@"
    except ValueError:
        login = r".*@"  # perhaps a password with a slash
    shown = SECRET.sub(r"\1...", re.sub(rf"^(\s*[\w+.-]*:?/+){login}", r"\1", url))
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    return shown if len(shown) <= 300 else f"{shown[:300]}..."


class Deadline:
    """When a transfer has to be complete, or to have got further."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Start again."""
        self.end = time.monotonic() + self.seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError if there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Response:
    """The answer of a server, read piece by piece. length: bytes of its content, or None if the server does not say."""

    def __init__(self, raw: http.client.HTTPResponse, deadline: Deadline):
        self.status, self.headers, self.length = raw.status, raw.headers, raw.length
        self._raw, self._deadline, self._done = raw, deadline, 0

    def read(self) -> bytes:
        """Return the next bytes, b"" at the end. Raises TransferError, also if the content ends early."""
        left = CHUNK if self.length is None else min(CHUNK, self.length - self._done)
        if not left:
            return b""
        with explained():
            data = self._raw.read1(left)
        self._done += len(data)
        if not data and self.length is not None:
            raise TransferError(f"ended after {self._done} of {self.length} bytes", temporary=True)
        return data


@contextmanager
def open_url(
    url: str, deadline: Deadline, *, allow_private: bool = False, headers: Mapping[str, str] | None = None
) -> Iterator[Response]:
    """Open a URL, through redirects; yield the answer, whose status is 2xx. Raises TransferError."""
    allow_private = allow_private or os.environ.get(PRIVATE_VARIABLE) == "1"
    opener = urllib.request.OpenerDirector()  # without urllib's own handling of redirects, files, FTP and data
    opener.add_handler(urllib.request.ProxyHandler())
    opener.add_handler(Connector(deadline, allow_private))
    request = make_request(url, headers or {})
    for _ in range(MAX_REDIRECTS + 1):
        with explained():
            raw = opener.open(request, timeout=deadline.left())
        with raw:
            if raw.status in REDIRECTS and raw.headers["Location"]:
                request = redirected(request, raw.headers["Location"])
                continue
            if not 200 <= raw.status < 300:
                reason = f"HTTP {raw.status} {raw.reason}".strip()
                raise TransferError(reason, temporary=raw.status in TEMPORARY, status=raw.status)
            if raw.headers.get("Content-Encoding", "identity") != "identity":
                raise TransferError("answers with compressed content, which was not asked for")
            yield Response(raw, deadline)
            return
    raise TransferError(f"redirects more than {MAX_REDIRECTS} times")


class Request(urllib.request.Request):
    """A request that knows whether it goes to a proxy."""

    proxied = False

    def set_proxy(self, host: str, type: str) -> None:
        """Send the request to a proxy."""
        super().set_proxy(host, type)
        self.proxied = True


def make_request(url: str, headers: Mapping[str, str]) -> Request:
    """Return the request for a URL as people write it: with a user and password, spaces, letters beyond ASCII."""
    try:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https"):
            raise TransferError("is no http or https address", "other kinds of addresses are not read")
        host, port = unquote(parts.hostname or ""), parts.port
        if not host or not host.isprintable() or re.search(r"[\s/?#@\\]", host):
            raise ValueError
        host = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
        netloc = host if port is None else f"{host}:{port}"
        path, query = (quote(part, safe="/%:=&?~#+!$,;'@()*[]") for part in (parts.path or "/", parts.query))
    except ValueError:
        raise TransferError("is not a valid address", "check its spelling") from None
    request = Request(urlunsplit((parts.scheme, netloc, path, query, "")), headers={"User-Agent": AGENT, **headers})
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {b64encode(user.encode(errors='replace')).decode()}")
    return request


def redirected(request: Request, location: str) -> Request:
    """Return the request that follows a redirect; a password is sent on to the same server only. Raises TransferError."""
    try:
        url = urljoin(request.full_url, location)
    except ValueError:
        url = location
    try:
        new = make_request(url, {k: v for k, v in request.headers.items() if k != "Authorization"})
    except TransferError as e:
        raise TransferError(f"redirects to {printable(url)}, which {e.reason}", e.remedy) from None
    server, new_server = (urlsplit(r.full_url)[:2] for r in (request, new))
    if server[0] == "https" and new_server[0] == "http":
        raise TransferError(f"redirects from https to {printable(url)}")
    authorization = request.get_header("Authorization")
    if authorization and server == new_server and not new.has_header("Authorization"):
        new.add_header("Authorization", authorization)
    return new


class Connector(urllib.request.AbstractHTTPHandler):
    """Sends requests over connections to checked addresses."""

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, deadline: Deadline, allow_private: bool):
        super().__init__()
        self.deadline, self.allow_private = deadline, allow_private

    def http_open(self, request: Request) -> http.client.HTTPResponse:
        """Send an http request."""
        return self._open(CheckedConnection, request)

    def https_open(self, request: Request) -> http.client.HTTPResponse:
        """Send an https request; the server's certificate is verified."""
        return self._open(CheckedTLSConnection, request, context=tls_context())

    def _open(self, kind: type[CheckedConnection], request: Request, **options: Any) -> http.client.HTTPResponse:
        allow_private = self.allow_private
        if request.type not in ("http", "https"):
            raise TransferError(f"its proxy is for {request.type}, not for http", "check http_proxy and https_proxy")
        if request.proxied:
            target = urlsplit(request.full_url)
            with suppress(socket.gaierror):  # only the proxy may know the name
                resolve(target.hostname or "", target.port or 80, allow_private)
            allow_private = True  # the proxy itself
        connect = functools.partial(kind, deadline=self.deadline, allow_private=allow_private)
        return self.do_open(connect, request, **options)


class CheckedConnection(http.client.HTTPConnection):
    """A connection to an address that was checked, whose reads end at a deadline."""

    def __init__(self, host: str, *, deadline: Deadline, allow_private: bool, **options: Any):
        super().__init__(host, **options)
        self._deadline, self._allow_private = deadline, allow_private
        self._create_connection = self._connect_checked  # what http.client opens its sockets with

    def _connect_checked(self, address: tuple[str, int], *_: object) -> socket.socket:
        for family, kind, protocol, _name, target in (found := resolve(*address, self._allow_private)):
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(min(CONNECT_TIMEOUT, self._deadline.left()))
                connection.connect(target)
                connection.settimeout(self._deadline.left())
                return connection
            except OSError:
                connection.close()
                if target is found[-1][-1]:
                    raise
        raise TransferError("host not found")

    def connect(self) -> None:
        """Connect, through a tunnel of a proxy if one is set."""
        super().connect()
        self.sock = TimedSocket(self.sock, self._deadline)


class CheckedTLSConnection(CheckedConnection, http.client.HTTPSConnection):
    """The same for https."""


@functools.cache
def tls_context() -> ssl.SSLContext:
    """Return the settings of TLS connections: the system's certificates, or those that SSL_CERT_FILE names."""
    return ssl.create_default_context()


def resolve(host: str, port: int, allow_private: bool) -> list[tuple[Any, ...]]:
    """Return a host's addresses, as getaddrinfo does. Raises TransferError unless all are public or private ones allowed."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not allow_private and not is_public(str(address[0])):
            where = address[0] if address[0] == host.strip("[]") else f"{host} ({address[0]})"
            raise TransferError(
                f"{where} is not a public address",
                f"set {PRIVATE_VARIABLE}=1 if your own computers are meant",
            )
    return found


def is_private(url: str) -> bool:
    """Return whether the host of a URL has an address that is not public. Raises TransferError for an invalid URL."""
    host = urlsplit(make_request(url, {}).full_url)
    try:
        resolve(host.hostname or "", host.port or 80, allow_private=False)
        return False
    except TransferError:
        return True
    except OSError:  # unknown
        return False


def is_public(address: str) -> bool:
    """Return whether an IP address belongs to the public internet, also if it is an IPv4 address inside an IPv6 one."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None)
        if inner is None:
            return ip.is_global and ip in GLOBAL_UNICAST
        ip = inner
    return ip.is_global and not ip.is_multicast


class TimedSocket:
    """A socket whose readers end at a deadline, however slowly bytes arrive."""

    def __init__(self, connection: socket.socket, deadline: Deadline):
        self._socket, self._deadline = connection, deadline

    def makefile(self, mode: str, *_: object, **options: object) -> io.BufferedReader:
        """Return a file that reads from the socket."""
        return io.BufferedReader(TimedReader(self._socket, self._deadline))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class TimedReader(io.RawIOBase):
    """The unbuffered file of a TimedSocket."""

    def __init__(self, connection: socket.socket, deadline: Deadline):
        self._socket, self._deadline = connection, deadline
        self._file = connection.makefile("rb", buffering=0)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read once. Raises TimeoutError after the deadline."""
        self._socket.settimeout(self._deadline.left())
        return self._file.readinto(buffer)

    def close(self) -> None:
        """Close the file; the socket is closed with the last of its files."""
        self._file.close()
        super().close()


@contextmanager
def explained() -> Iterator[None]:
    """Raise a TransferError for what goes wrong in a connection."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            reason, temporary = "timed out", True
        elif isinstance(cause, socket.gaierror):
            reason, temporary = "host not found", False
        elif isinstance(cause, ssl.SSLCertVerificationError):
            raise TransferError(
                f"its certificate is not valid ({cause.verify_message})", "SSL_CERT_FILE names your own authorities"
            ) from None
        else:
            reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            temporary = isinstance(cause, (OSError, http.client.HTTPException))
            temporary &= not isinstance(cause, (ConnectionRefusedError, http.client.InvalidURL))
        raise TransferError(" ".join(reason.split())[:200], temporary=temporary) from None
