"""Convert other libraries' images and arrays to NumPy arrays."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backend.interop import host_array
from ..errors import DataError, ImageError
from . import formats

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
    if not is_array(source):
        raise ImageError(f"image: a {type(source).__name__} is not an image; pass a path, a PIL image or a uint8 array")
    try:
        return host_array(source)
    except DataError as error:
        raise ImageError(f"image: {error}") from None


def is_array(source: Any) -> bool:
    """Return whether an object is an array of some library, or a PIL image, which has an array interface too."""
    return any(hasattr(source, name) for name in ("__array_interface__", "__cuda_array_interface__", "__dlpack__"))


def _from_pil(source: Any) -> NDArray[np.uint8]:
    """Convert a PIL image as `read` reads its file: orientation applied, alpha dropped, 16 bits reduced to 8."""
    name = getattr(source, "filename", "") or "image"
    formats.check_pixels(name, *source.size)  # before it is loaded
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
