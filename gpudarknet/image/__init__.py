"""Read images from files and from other libraries' arrays, and write them.

An image is uint8 (H, W, C) with C = 3 (RGB) or 1. Which files are read is in `formats.py`, which objects in `arrays.py`;
resizing and letterboxing are in `resize.py`, drawing detections in `drawing.py` (both re-exported), video in `video.py`.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, DownloadError, ImageError, ImageWarning
from ..io import remote
from ..io.atomic import atomic_write
from ..io.text import valid_utf8
from . import formats
from .arrays import to_numpy
from .drawing import color as color
from .drawing import draw as draw
from .resize import classifier_input as classifier_input
from .resize import letterbox as letterbox
from .resize import network_input as network_input
from .resize import resize as resize
from .resize import with_channels

Image = NDArray[np.uint8]

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # not C:// of Windows
CHUNK = 1 << 24  # bytes, of a stream
# After a file, as in imread, libjpeg reads as many ends of an image as it needs, but not after a buffer.
JPEG_PADDING = b"\xff\xd9" * 2**15
LIBJPEG_MESSAGES = (b"Corrupt JPEG data", b"Premature end of JPEG", b"Invalid SOS", b"Inconsistent progression")


# Reading and writing


def opencv() -> Any:
    """Import OpenCV. Raises ImageError if it does not load: the wheel with GUI support needs desktop libraries."""
    try:
        import cv2
    except ImportError as e:
        raise ImageError(
            f"OpenCV does not load ({e}); pip install opencv-python-headless, or on Debian apt install libgl1 libglib2.0-0"
        ) from None
    return cv2


def read(path: str | os.PathLike[str], channels: int = 3) -> Image:
    """Read an image file -> uint8 (H, W, 3) RGB, or (H, W, 1) gray with channels=1. Raises ImageError.

    The pixels are those of OpenCV's imread: EXIF orientation is applied, alpha is dropped and 16 bits are reduced to 8; of
    several pages or frames it is the first. A JPEG file that ends early is read with an ImageWarning; of damage in its middle,
    libjpeg prints a line on standard error. Only the formats of `formats.FORMATS` are read, whatever the file's name, and only
    up to `formats.max_pixels` pixels. A str that begins with http:// or https:// is downloaded (`io.http.read_url`), from
    private addresses only with GPUDARKNET_ALLOW_PRIVATE_URLS=1; s3:// and others of `io.remote.SCHEMES` are read by fsspec.
    """
    if is_url(path):
        return _decode_url(str(path), channels)
    return decode(_file_content(Path(path)), channels, os.fspath(path))


def decode(data: bytes, channels: int = 3, name: str = "image") -> Image:
    """Decode the content of an image file as `read` does; `name` is used in messages. Raises ImageError."""
    cv2 = opencv()
    if channels not in (1, 3):
        raise ImageError(f"{name}: cannot be read with {channels} channels; use 3 (RGB) or 1 (gray)")
    form = formats.check(data, name)
    truncated = form.name == "JPEG" and formats.is_truncated_jpeg(data)
    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    if truncated:
        data += JPEG_PADDING
    try:
        with _opencv_log.off(), _without_libjpeg_messages(truncated):
            image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
            if image is None and form.name == "TIFF":  # OpenCV reads uncompressed tiles only from files
                with tempfile.TemporaryDirectory() as folder:
                    (Path(folder) / "image").write_bytes(data)
                    image = cv2.imread(f"{folder}/image", flag)
    except cv2.error as error:  # its text has several lines; `err` is the condition that failed
        raise ImageError(f"{name}: OpenCV rejects this image ({error.err}); use a smaller one") from None
    if image is None:
        raise _unreadable(form, name)
    if truncated:
        warnings.warn(
            f"{name}: is truncated, its missing part is gray or blurred; {formats.AGAIN}", ImageWarning, stacklevel=3
        )
    if image.ndim == 2:
        return with_channels(image[:, :, None], channels)
    if channels == 1:  # PFM files ignore the flag
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def check(path: str | os.PathLike[str]) -> None:
    """Raise the ImageError of `read` if a file is missing, empty, damaged or of an unknown format, without decoding it."""
    form = formats.check(_file_content(Path(path)), os.fspath(path))
    name = os.fspath(path)
    if name == valid_utf8(name) and not opencv().haveImageReader(name):
        raise _unreadable(form, name)


def write(path: str | os.PathLike[str], image: Image) -> None:
    """Write uint8 (H, W, 3) RGB, (H, W, 1) or (H, W) atomically, in the format of the file name's extension."""
    cv2 = opencv()

    path = Path(path)
    if not cv2.haveImageWriter(valid_utf8(path.name)):
        raise ImageError(f"{path}: OpenCV cannot write {path.suffix!r} images; use .jpg or .png")
    bgr = image[:, :, ::-1] if image.ndim == 3 else image
    try:
        data = cv2.imencode(path.suffix, np.ascontiguousarray(bgr))[1].tobytes()
    except cv2.error:  # too large for the format, or not the shape of an image
        raise ImageError(f"{path}: OpenCV cannot write shape {image.shape} as {path.suffix}; use .png") from None
    try:
        with atomic_write(path) as tmp:
            tmp.write_bytes(data)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror}); choose another path") from None


def is_url(source: Any) -> bool:
    """Return whether an image is given as a URL or address; `read` refuses those of schemes that it does not know."""
    return isinstance(source, str) and bool(URL.match(source))


def as_image(source: Any, channels: int = 3) -> Image:
    """Return an image as uint8 (H, W, channels), without a copy if it already is one. Raises ImageError.

    `source` is a path or a URL, as for `read`; the content of an image file as bytes, or a file that is open in binary mode; a
    PIL image; or a uint8 array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, from NumPy or any library with
    `__dlpack__`, `__cuda_array_interface__` or `__array_interface__`. EXIF orientation is applied, also a PIL image's.
    OpenCV's frames are BGR: pass `frame[..., ::-1]`.
    """
    if isinstance(source, str | os.PathLike):
        return read(source, channels)
    if isinstance(source, bytes | bytearray) or (isinstance(source, memoryview) and source.ndim == 1):
        return decode(bytes(source), channels, f"image of {len(source)} bytes")
    if hasattr(source, "read"):
        return decode(_stream_content(source), channels, _stream_name(source))
    array = to_numpy(source)
    if array.dtype != np.uint8:
        raise ImageError(
            f"image: has dtype {array.dtype}, not uint8; if its values are 0..1, pass (image * 255).astype('uint8')"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ImageError(
            f"image: shape {array.shape} is not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); "
            "pass one image, channels last"
        )
    return with_channels(array[:, :, :3], channels)


# Content of files


def _file_content(path: Path) -> bytes:
    """Return the bytes of a file that begins like an image. Raises ImageError."""
    limit = formats.MAX_PIXEL_BYTES * formats.max_pixels()
    try:
        if path.is_dir():
            raise ImageError(f"{path}: is a folder; use the path of an image")
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise ImageError(f"{path}: is not a regular file; save the image to one")
        with open(path, "rb") as file:
            head = file.read(formats.HEAD)
            if head:
                formats.identify(head, str(path))
            data = head + file.read(min(limit, os.fstat(file.fileno()).st_size))  # allocates what it is asked for
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path!s}: cannot be read ({reason}); check the path and its permissions") from None
    return data


def _decode_url(url: str, channels: int) -> Image:
    from ..io.http import MAX_BYTES, printable, read_url

    try:
        data = remote.read_bytes(url, MAX_BYTES) if remote.is_remote(url) else read_url(url)
    except (DataError, DownloadError) as error:
        raise ImageError(str(error)) from None
    return decode(data, channels, printable(url))


def _stream_content(file: Any) -> bytes:
    """Return what remains in an open file. Raises ImageError."""
    try:
        data = file.read(CHUNK)
        while data and len(data) < formats.MAX_PIXEL_BYTES * formats.max_pixels() and (more := file.read(CHUNK)):
            data += more
    except (OSError, ValueError, EOFError) as error:  # ValueError: it is closed, or its bytes are no text
        raise ImageError(
            f"{_stream_name(file)}: cannot be read ({' '.join(str(error).split())}); open it as 'rb'"
        ) from None
    if not isinstance(data, bytes | bytearray):
        raise ImageError(f"{_stream_name(file)}: is open as text; open it as 'rb'")
    return bytes(data)


def _stream_name(file: Any) -> str:
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name else "image"


def _unreadable(form: formats.Format, name: str) -> ImageError:
    return ImageError(
        f"{name}: OpenCV {opencv().__version__} cannot read this {form.name} file (truncated, damaged, or a rare kind);"
        " save it again as JPEG or PNG"
    )


# What decoders print


class _OpenCVLog:
    """Switches OpenCV's log off while files are decoded: our errors say the same, with the file's name, in one line."""

    def __init__(self) -> None:
        self._lock, self._count, self._level = threading.Lock(), 0, 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """Log nothing while the block, in any thread, runs."""
        log = opencv().utils.logging
        with self._lock:
            if not self._count:
                self._level = log.setLogLevel(log.LOG_LEVEL_SILENT)
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    log.setLogLevel(self._level)


_opencv_log = _OpenCVLog()
_stderr_lock = threading.Lock()


@contextmanager
def _without_libjpeg_messages(expected: bool) -> Iterator[None]:
    """Remove from standard error what libjpeg prints of a file that is known to be truncated; it names no file.

    libjpeg writes to the descriptor, so that is replaced for the time of the block; what else arrives there is passed on.
    """
    if not expected:
        yield
        return
    with _stderr_lock, tempfile.TemporaryFile() as messages:
        try:
            stderr = os.dup(2)
        except OSError:  # closed
            yield
            return
        os.dup2(messages.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            messages.seek(0)
            for line in messages:
                if not line.startswith(LIBJPEG_MESSAGES):
                    os.write(2, line)
