"""Reading URLs: what is refused, what a broken server does, redirects, proxies. All servers are on 127.0.0.1."""

from __future__ import annotations

import base64
import http.server
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gpudarknet.errors import DarknetError, DownloadError
from gpudarknet.io import http as reader
from gpudarknet.io.http import read_url

DATA = bytes(range(256)) * 1000
Reply = Callable[[http.server.BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv(reader.ALLOW_PRIVATE_URLS, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def serve(replies: dict[str, Reply], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve on 127.0.0.1: `replies` maps paths to functions that answer; yield the server's URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            reply = replies.get(self.path.partition("?")[0])
            if reply:
                reply(self)
            else:
                self.send_error(404)

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            pass  # a client that hangs up

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
        server.shutdown()


def content(data: bytes, status: int = 200, **headers: str) -> Reply:
    """Return a reply with this content; headers with _ for -."""

    def reply(handler):
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(data))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def redirect(url: str, status: int = 302) -> Reply:
    return content(b"moved" * 100, status, Location=url)


def refusal(url: str, **options) -> str:
    """Read a URL that must be refused; return the message."""
    with pytest.raises(DownloadError) as error:
        read_url(url, **options)
    assert "\n" not in str(error.value) and isinstance(error.value, DarknetError)
    return str(error.value)


def test_a_url_is_read_through_redirects():
    replies = {"/dog.jpg": content(DATA), "/empty": content(b"")}
    for status in reader.REDIRECTS:
        replies[f"/{status}"] = redirect("dog.jpg", status)
    with serve(replies) as url:
        assert read_url(f"{url}/dog.jpg", allow_private=True) == DATA
        assert read_url(f"  {url}/dog.jpg?size=1#part ", len(DATA), allow_private=True) == DATA
        assert read_url(f"{url}/empty", allow_private=True) == b""
        for status in reader.REDIRECTS:
            assert read_url(f"{url}/{status}", allow_private=True) == DATA


def test_spaces_and_other_letters_in_a_url():
    with serve({"/m%C3%BC%20%41.jpg": content(DATA)}) as url:
        assert read_url(f"{url}/mü %41.jpg", allow_private=True) == DATA


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> Reply:
    def reply(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for chunk in chunks:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(end)
        handler.close_connection = True

    return reply


def test_content_without_a_length():
    def plain(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(DATA)

    with serve({"/chunked": chunked(DATA, DATA), "/plain": plain, "/broken": chunked(DATA, end=b"99\r\nab")}) as url:
        assert read_url(f"{url}/chunked", allow_private=True) == DATA * 2
        assert read_url(f"{url}/plain", allow_private=True) == DATA
        for path in ("chunked", "plain"):
            assert refusal(f"{url}/{path}", max_bytes=len(DATA) - 1, allow_private=True).startswith(
                f"{url}/{path}: has more than {len(DATA) - 1} bytes; "
            )
        assert refusal(f"{url}/broken", allow_private=True).startswith(f"{url}/broken: IncompleteRead(")


def test_what_a_server_announces_is_checked():
    received = threading.Event()

    def huge(handler):
        content(b"", Content_Length=str(1 << 40))(handler)
        received.wait(60)  # nothing is read from it

    with serve(
        {
            "/huge": huge,
            "/short": content(DATA, Content_Length="300000"),
        }
    ) as url:
        assert refusal(f"{url}/huge", allow_private=True).startswith(f"{url}/huge: has more than 67108864 bytes; ")
        received.set()
        assert ": ended 44000 bytes early; " in refusal(f"{url}/short", allow_private=True)
        assert (
            refusal(f"{url}/x", allow_private=True)
            == f"{url}/x: HTTP 404 Not Found; check the address and the connection"
        )


def test_a_server_that_stalls_or_trickles_is_given_up():
    stop = threading.Event()

    def stalled(handler):
        stop.wait(60)

    def trickle(handler):
        handler.send_response(200)
        handler.end_headers()
        while not stop.wait(0.02):  # each wait ends long before the timeout
            handler.wfile.write(b"x")

    with serve({"/stalled": stalled, "/slow": trickle}) as url:
        for path in ("stalled", "slow"):
            message = refusal(f"{url}/{path}", allow_private=True, timeout=0.3)
            assert message == f"{url}/{path}: timed out; check the address and the connection"
        stop.set()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/x",
        "data:,x",
        "gopher://x",
        "dog.jpg",
        "",
        "//example.org/x",
        "C:/dog.jpg",
    ],
)
def test_other_schemes_are_refused(url):
    assert refusal(url) == f"{url}: is no http or https address; download the file and give its path"


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://:80/x",
        "http://h:port/",
        "http://h:99999/",
        "http://[::1/",
        "http://a b/",
        "http://a%2fb/",
        "http://127%252e0.0.1/",
        "http://h/\udcff.jpg",
    ],
)
def test_broken_addresses_are_refused(url):
    assert refusal(url).endswith(": is not a valid address; check its spelling")


def test_a_broken_redirect_is_refused():
    with serve({"/x": redirect("http://[::1/")}) as url:
        assert ": redirects to http://[::1/, which is " in refusal(f"{url}/x", allow_private=True)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_to_other_schemes_are_refused(to):
    with serve({"/x": redirect(to)}) as url:
        assert refusal(f"{url}/x", allow_private=True) == (
            f"{url}/x: redirects to {to}, which is no http or https address; download the file and give its path"
        )


def test_the_content_of_a_redirect_is_not_read():
    def endless(handler):
        handler.send_response(302)
        handler.send_header("Location", "/dog.jpg")
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1 << 20))

    with serve({"/x": endless, "/dog.jpg": content(DATA)}) as url:
        assert read_url(f"{url}/x", allow_private=True) == DATA


def test_redirects_end():
    with serve({"/x": redirect("/x")}) as url:
        assert "redirects more than 10 times" in refusal(f"{url}/x", allow_private=True)


@pytest.mark.parametrize(
    "host",
    "127.0.0.1 127.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 0.0.0.0 0 localhost 127%2e0.0.1 [::1] [::] [::ffff:127.0.0.1]"
    " [::ffff:7f00:1] 10.0.0.1 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 240.0.0.1 255.255.255.255"
    " [fe80::1] [fc00::1] [fec0::1] [ff02::1] [64:ff9b::7f00:1] [2002:7f00:1::] [::127.0.0.1] ①②⑦.0.0.1".split(),
)
def test_private_addresses_are_refused_in_every_spelling(host):
    message = refusal(f"http://{host}:9/")
    assert (
        "is not a public address; set GPUDARKNET_ALLOW_PRIVATE_URLS=1" in message or host[0] in "[①"
    )  # unknown to some systems


def test_a_variable_allows_private_addresses(monkeypatch):
    monkeypatch.setenv("GPUDARKNET_ALLOW_PRIVATE_URLS", "1")
    with serve({"/x": content(DATA)}) as url:
        assert read_url(f"{url}/x") == DATA
    monkeypatch.setenv("GPUDARKNET_ALLOW_PRIVATE_URLS", "0")
    assert "is not a public address" in refusal(f"{url}/x")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::"])
def test_public_addresses(address):
    assert reader.is_public(address)


@pytest.fixture
def names(monkeypatch):
    """Answer for names in place of a name server: NAME -> list of answers, one for each question; the last one stays."""
    answers: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if host in answers:
            found = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port))) for address in found]
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(reader, "is_public", lambda address: address == "127.0.0.1")  # stands for all public ones
    return answers


def test_the_address_that_is_checked_is_connected_to(names):
    names["a.test"] = [["127.0.0.1"], ["127.0.0.2"]]  # a name server that changes its mind
    names["b.test"] = [["127.0.0.1", "127.0.0.2"]]
    with serve({"/x": content(DATA)}) as url:
        port = url.rpartition(":")[2]
        assert read_url(f"http://a.test:{port}/x") == DATA
        assert "a.test (127.0.0.2) is not a public address" in refusal(f"http://a.test:{port}/x")
        assert "b.test (127.0.0.2) is not a public address" in refusal(f"http://b.test:{port}/x")


def test_a_redirect_to_a_private_address_is_refused(names):
    with serve({"/x": redirect("http://127.0.0.2:9/admin")}) as url:
        assert refusal(f"{url}/x").startswith(f"{url}/x: 127.0.0.2 is not a public address; ")


def test_the_next_address_of_a_host_is_tried(names):
    with serve({"/x": content(DATA)}) as url:
        port = int(url.rpartition(":")[2])
        names["two.test"] = [["127.0.0.9", "127.0.0.1"]]  # nothing listens at the first
        assert read_url(f"http://two.test:{port}/x", allow_private=True) == DATA


def test_passwords_are_sent_to_their_server_alone_and_never_shown(names):
    names["other.test"] = [["127.0.0.1"]]
    seen: list[tuple[str, str | None]] = []

    def note(reply):
        def noted(handler):
            seen.append((handler.path, handler.headers["Authorization"]))
            reply(handler)

        return noted

    replies: dict[str, Reply] = {"/x": note(content(DATA)), "/here": note(redirect("/x"))}
    with serve(replies) as url:
        port = url.rpartition(":")[2]
        replies["/away"] = note(redirect(f"http://other.test:{port}/x"))
        secret = f"http://me:p%40ss@127.0.0.1:{port}"
        assert read_url(f"{secret}/here") == read_url(f"{secret}/away") == DATA
        basic = f"Basic {base64.b64encode(b'me:p@ss').decode()}"
        assert seen == [("/here", basic), ("/x", basic), ("/away", basic), ("/x", None)]
        message = refusal(f"{secret}/gone?id=7")
        assert message.startswith(f"{url}/gone?id=7: HTTP 404")


def test_refused_and_unknown_hosts():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        assert refusal(url, allow_private=True) == f"{url}: Connection refused; check the address and the connection"
    assert refusal("http://no-such-host.invalid/x").endswith("; check the address and the connection")
    assert refusal(f"http://{'ä' * 70}.test/x").endswith(": is not a valid address; check its spelling")


def test_a_server_that_speaks_no_http():
    def nonsense(handler):
        handler.wfile.write(b"SSH-2.0-x\r\n")

    with serve({"/x": nonsense, "/y": lambda handler: None}) as url:
        assert ": SSH-2.0-x; " in refusal(f"{url}/x", allow_private=True)
        assert "closed connection without response; " in refusal(f"{url}/y", allow_private=True)


def test_a_proxy_of_the_environment_is_used(names, monkeypatch):
    names["inside.test"] = [["127.0.0.2"]]
    replies = {"http://unknown.invalid/x": content(DATA), "/x": content(b"direct")}
    with serve(replies) as url:
        monkeypatch.setattr(reader, "is_public", lambda address: False)
        monkeypatch.setenv("http_proxy", url)
        assert (
            read_url("http://unknown.invalid/x") == DATA
        )  # a name that only the proxy knows; the proxy may be private
        assert "inside.test (127.0.0.2) is not a public address" in refusal("http://inside.test/x")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert read_url(f"{url}/x", allow_private=True) == b"direct"
        monkeypatch.setenv("http_proxy", url.replace("http", "socks5"))
        assert "unknown url type: socks5" in refusal("http://unknown.invalid/x")


def test_a_password_of_a_proxy_is_sent_to_the_proxy_alone(names, monkeypatch):
    names["a.test"] = [["127.0.0.1"]]
    seen: list[str | None] = []

    def note(reply):
        return lambda handler: (seen.append(handler.headers["Proxy-Authorization"]), reply(handler))

    replies: dict[str, Reply] = {"/x": note(content(DATA))}
    with serve(replies) as url:
        replies["http://a.test/x"] = note(redirect(f"{url}/x"))
        monkeypatch.setenv("http_proxy", url.replace("//", "//me:secret@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert read_url("http://a.test/x") == DATA
    assert seen == [f"Basic {base64.b64encode(b'me:secret').decode()}", None]


def test_an_https_request_asks_the_proxy_for_a_tunnel(monkeypatch):
    asked = []

    def connect(connection):
        asked.append(connection.recv(1000).partition(b"\r\n")[0])
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: connect(server.accept()[0]))
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "Tunnel connection failed: 403 Forbidden" in refusal("https://unknown.invalid/x")
        thread.join()
    assert asked == [b"CONNECT unknown.invalid:443 HTTP/1.0"] or asked == [b"CONNECT unknown.invalid:443 HTTP/1.1"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_certificates_are_verified_and_https_stays_https(tmp_path, monkeypatch):
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    options = (
        "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=t -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(["openssl", "req", "-x509", *options.split(), *files], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with serve({"/x": content(DATA), "/plain": redirect("http://127.0.0.1/x")}, tls) as url:
        assert "certificate verify failed" in refusal(f"{url}/x", allow_private=True)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert read_url(f"{url}/x", allow_private=True) == DATA
        assert "/plain: redirects from https to http://127.0.0.1/x; " in refusal(f"{url}/plain", allow_private=True)
