"""Read images from files and from other libraries' arrays, and write them.

An image is uint8 (H, W, C) with C = 3 (RGB) or 1. A new file format belongs here; resizing and letterboxing are in
`resize.py`, drawing detections in `drawing.py` (both re-exported), video in `video.py`.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..io.atomic import atomic_write
from .drawing import colour as colour
from .drawing import draw as draw
from .resize import classifier_input as classifier_input
from .resize import letterbox as letterbox
from .resize import network_input as network_input
from .resize import resize as resize
from .resize import with_channels

Image = NDArray[np.uint8]

MAX_PIXELS = 2**28  # that a PNG may declare: a file of a few kilobytes can decompress to any size
NO_IMAGE = "is not an image that OpenCV can read; use a complete JPEG, PNG or BMP file"
CUDA_DEVICES = (2, 13)  # DLPack's device types for CUDA memory, plain and managed


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

    As in OpenCV, EXIF orientation is applied, alpha is dropped and 16 bits are reduced to 8.
    """
    cv2 = opencv()

    if channels not in (1, 3):
        raise ImageError(f"{path}: cannot be read with {channels} channels; use 3 (RGB) or 1 (gray)")
    data = _undamaged(Path(path))
    flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    try:
        image: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:  # its text has several lines; `err` is the condition that failed
        raise ImageError(f"{path}: OpenCV rejects this image ({error.err}); use a smaller one") from None
    if image is None:
        raise ImageError(f"{path}: {NO_IMAGE}")
    if channels == 3:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return image.reshape(*image.shape[:2], channels)


def check(path: str | os.PathLike[str]) -> None:
    """Raise the ImageError of `read` if a file is missing, empty, damaged or of an unknown format, without decoding it."""
    _undamaged(Path(path))
    if not opencv().haveImageReader(os.fspath(path)):
        raise ImageError(f"{path}: {NO_IMAGE}")


def write(path: str | os.PathLike[str], image: Image) -> None:
    """Write uint8 (H, W, 3) RGB, (H, W, 1) or (H, W) atomically, in the format of the file name's extension."""
    cv2 = opencv()

    path = Path(path)
    if not cv2.haveImageWriter(path.name):
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


def as_image(source: Any, channels: int = 3) -> Image:
    """Return an image as uint8 (H, W, channels), without a copy if it already is one. Raises ImageError.

    `source` is a path; a PIL image (EXIF orientation is not applied); or a uint8 array (H, W), (H, W, 1), (H, W, 3) RGB
    or (H, W, 4) RGBA, from NumPy or any library with `__dlpack__`, `__cuda_array_interface__` or `__array_interface__`.
    OpenCV's frames are BGR: pass `frame[..., ::-1]`.
    """
    if isinstance(source, str | os.PathLike):
        return read(source, channels)
    array = _to_numpy(source)
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


def _content(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ImageError(f"{path}: is a folder; use the path of an image")
        if path.exists() and not path.is_file():  # reading a pipe or a device may never end
            raise ImageError(f"{path}: is not a regular file; save the image to one")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path!s}: cannot be read ({reason}); check the path and its permissions") from None
    if not data:
        raise ImageError(f"{path}: is empty; use a JPEG, PNG or BMP file")
    return data


def _undamaged(path: Path) -> bytes:
    data = _content(path)
    damage = _damage(data)
    if damage:
        raise ImageError(f"{path}: {damage}")
    return data


def _damage(data: bytes) -> str:
    """Return what is wrong with a JPEG or PNG file and how to fix it, or "".

    The decoders would notice too, but they print to stderr, and old ones return a partial image.
    """
    truncated = "is truncated; download or save the file again"
    if data.startswith(b"\xff\xd8\xff"):
        return truncated if data.rfind(b"\xff\xd9") < 0 else ""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ""
    at, kind = 8, b""
    while kind != b"IEND":  # a chunk: content length, type, content, CRC of type and content
        kind, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return truncated
        critical = not kind[0] & 0x20  # decoders may ignore ancillary chunks
        if critical and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"is damaged at byte {at}; download or save the file again"
        if kind == b"IHDR":
            W, H = int.from_bytes(data[at + 8 : at + 12], "big"), int.from_bytes(data[at + 12 : at + 16], "big")
            if not 0 < W * H <= MAX_PIXELS:
                return f"declares a size of {W} x {H}; use an image of 1 to {MAX_PIXELS} pixels"
        at = end + 4
    return ""


def _to_numpy(source: Any) -> NDArray[Any]:
    """Convert a PIL image or an array of any library to a NumPy array."""
    if isinstance(source, np.ndarray):
        return source
    if hasattr(source, "convert") and hasattr(source, "mode"):  # a PIL image, without importing PIL
        if source.mode[0] in "IF":
            raise ImageError(f"image: PIL mode {source.mode} is not 8-bit; scale it to 0..255 as mode L first")
        return np.asarray(source.convert("L" if source.mode in ("1", "L", "LA") else "RGB"))
    try:
        if hasattr(source, "__cuda_array_interface__") or (
            hasattr(source, "__dlpack_device__") and source.__dlpack_device__()[0] in CUDA_DEVICES
        ):
            return _from_cuda(source)
        if hasattr(source, "__dlpack__"):
            return np.from_dlpack(source)
        if hasattr(source, "__array_interface__"):
            return np.asarray(source)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ImageError(
            f"image: this {type(source).__name__} cannot be converted ({reason}); pass a NumPy array"
        ) from None
    raise ImageError(f"image: a {type(source).__name__} is not an image; pass a path, a PIL image or a uint8 array")


def _from_cuda(source: Any) -> NDArray[Any]:
    try:
        import cupy
    except ImportError:
        raise ImageError("image: is in GPU memory, and CuPy is not installed; copy it to the host first") from None
    convert = cupy.asarray if hasattr(source, "__cuda_array_interface__") else cupy.from_dlpack
    return convert(source).get()
