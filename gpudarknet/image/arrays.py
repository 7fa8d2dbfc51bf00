"""Convert other libraries' images and arrays to NumPy arrays."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from . import formats

CUDA_DEVICES = (2, 13)  # DLPack's device types for CUDA memory, plain and managed

EXIF_ORIENTATION = 0x0112
ORIENT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # (H, W, ...) as stored -> as it is to be seen
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


def to_numpy(source: Any) -> NDArray[Any]:
    """Convert a PIL image, or an array of any library, to a NumPy array. Raises ImageError."""
    if isinstance(source, np.ndarray):
        return source
    if hasattr(source, "convert") and hasattr(source, "mode"):  # a PIL image, without importing PIL
        return _from_pil(source)
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


def _from_pil(source: Any) -> NDArray[np.uint8]:
    """Convert a PIL image as `read` reads its file: orientation applied, alpha dropped, 16 bits reduced to 8."""
    name = getattr(source, "filename", "") or "image"
    try:
        formats.check_pixels(*source.size)  # before it is loaded
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    mode = source.mode
    if mode in ("I", "F"):
        raise ImageError(f"{name}: PIL mode {mode} has no fixed range; scale it to 0..255 as mode L first")
    try:
        if mode.startswith("I;16"):
            array = (np.asarray(source) >> 8).astype(np.uint8)
        elif mode in ("1", "L", "LA", "La"):
            array = np.asarray(source.convert("L"))
        else:  # by RGBA, because PIL warns of a palette with transparency
            array = np.asarray(source.convert("RGBA" if mode in ("P", "PA") else "RGB"))[..., :3]
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:  # what its file readers raise
        raise ImageError(f"{name}: PIL cannot load it ({' '.join(str(error).split())}); {formats.AGAIN}") from None
    orient = ORIENT.get(_orientation(source))  # after loading, which applies and removes a TIFF's
    return np.ascontiguousarray(orient(array)) if orient else array


def _orientation(source: Any) -> int:
    try:
        return int(source.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:  # PIL's parsers raise many kinds; unreadable EXIF is ignored, as by OpenCV
        return 1


def _from_cuda(source: Any) -> NDArray[Any]:
    try:
        import cupy
    except ImportError:
        raise ImageError("image: is in GPU memory, and CuPy is not installed; copy it to the host first") from None
    convert = cupy.asarray if hasattr(source, "__cuda_array_interface__") else cupy.from_dlpack
    return convert(source).get()
