"""Darknet-compatible API: Darknet's structs, as ctypes structures, because scripts build, index and point to them.

Python owns the memory that they point to: it lives as long as anything that was read from it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_float, c_int
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import DataError


class CountedPointer:
    """A pointer that knows the number of its elements: indices are checked, and loops and slices end."""

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        chosen = range(self.count)[index]  # raises IndexError
        if isinstance(chosen, range):
            return super().__getitem__(slice(chosen.start, chosen.stop, chosen.step)) if chosen else []  # type: ignore[misc]
        return super().__getitem__(chosen)  # type: ignore[misc]

    def __setitem__(self, index: int, value: Any) -> None:
        super().__setitem__(range(self.count)[index], value)  # type: ignore[misc]


@cache
def counted_type(element: Any) -> Any:
    """Return the CountedPointer type for elements of a ctypes type, a subclass of POINTER(element)."""
    pointer = POINTER(element)
    return type(pointer.__name__, (CountedPointer, pointer), {"_type_": element})


def counted(first: Any, count: int) -> Any:
    """Return a CountedPointer to `count` elements, given the first; it keeps alive what owns them."""
    element: Any = type(first)
    pointer = counted_type(element)(first)
    pointer.count = count
    return pointer


def view(data: Any, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Return a writable array view of C memory, given as a pointer, a ctypes array or a float32 array.

    Raises DataError for a null pointer, or if an array is too short.
    """
    count = math.prod(shape)
    if isinstance(data, np.ndarray):
        data = np.ascontiguousarray(data, dtype)
        size, address = data.size, data.ctypes.data
    else:
        size = len(data) if hasattr(data, "__len__") else count
        address = ctypes.addressof(data if isinstance(data, ctypes.Array) else data.contents) if data else 0
    if not address or size < count:
        raise DataError(f"{type(data).__name__}: points to {size if address else 'no'} elements, {count} are needed")
    return memory(address, shape, dtype, owner=data)


def memory(address: int, shape: tuple[int, ...], dtype: Any = np.float32, owner: Any = None) -> np.ndarray:
    """Return a writable array view of the memory at an address; it keeps `owner` alive."""
    # no ctypes.cast: its result and its argument keep each other alive until garbage is collected
    interface = {"data": (address, False), "shape": shape, "typestr": np.dtype(dtype).str, "version": 3}
    return np.asarray(SimpleNamespace(__array_interface__=interface, owner=owner)).view(dtype)


class BOX(ctypes.Structure):
    """A box: center x, y, width, height."""

    _fields_ = (("x", c_float), ("y", c_float), ("w", c_float), ("h", c_float))


class DETECTION(ctypes.Structure):
    """A box with its class probabilities; prob[i] is 0 if not above the threshold.

    best_class_idx is the most probable class, or -1 if all are 0. `uc` are the uncertainties of a [Gaussian_yolo]'s x, y, w, h,
    otherwise a null pointer, as `mask` and `embeddings` are.
    """

    _fields_ = (
        ("bbox", BOX),
        ("classes", c_int),
        ("best_class_idx", c_int),
        ("prob", POINTER(c_float)),
        ("mask", POINTER(c_float)),
        ("objectness", c_float),
        ("sort_class", c_int),
        ("uc", POINTER(c_float)),
        ("points", c_int),
        ("embeddings", POINTER(c_float)),
        ("embedding_size", c_int),
        ("sim", c_float),
        ("track_id", c_int),
    )


class DETNUMPAIR(ctypes.Structure):
    """The `num` detections `dets` of one image in a batch."""

    _fields_ = (("num", c_int), ("dets", POINTER(DETECTION)))


class METADATA(ctypes.Structure):
    """Class names, as bytes."""

    _fields_ = (("classes", c_int), ("names", POINTER(c_char_p)))


class IMAGE(ctypes.Structure):
    """An image: w, h, c and a pointer to c planes of h x w floats, RGB, 0 to 1.

    It unpacks into itself and its pixels, the results of array_to_image in the AlexeyAB fork.
    """

    _fields_ = (("w", c_int), ("h", c_int), ("c", c_int), ("data", POINTER(c_float)))

    def __init__(self, w: int = 0, h: int = 0, c: int = 0, data: Any = None):
        super().__init__(w, h, c, data) if data is not None else super().__init__(w, h, c)
        self._memory = data  # a pointer created by NumPy keeps its array alive

    def __iter__(self) -> Iterator[Any]:
        return iter((self, self.planes().ravel()))

    def __getitem__(self, index: int) -> Any:
        return (self, self.planes().ravel())[index]

    @classmethod
    def from_planes(cls, planes: np.ndarray) -> IMAGE:
        """Create an IMAGE from planes (C, H, W)."""
        planes = np.ascontiguousarray(planes, np.float32)
        C, H, W = planes.shape
        return cls(W, H, C, planes.ctypes.data_as(POINTER(c_float)))

    def planes(self) -> np.ndarray:
        """Return a view of the pixels as a batch of one, (1, c, h, w). Raises DataError if it has no pixels."""
        return view(self.data, (1, self.c, self.h, self.w))

    def pixels(self) -> np.ndarray:
        """Return a view of the pixels as an image (h, w, c). Raises DataError if it has no pixels."""
        return self.planes()[0].transpose(1, 2, 0)


FORMATS = {BOX: (np.float32, 4), c_int: np.int32, c_float: np.float32}  # every other field is a pointer
RECORD = np.dtype(
    {
        "names": [name for name, _ in DETECTION._fields_],
        "formats": [FORMATS.get(kind, np.uintp) for _, kind in DETECTION._fields_],
        "offsets": [getattr(DETECTION, name).offset for name, _ in DETECTION._fields_],
        "itemsize": ctypes.sizeof(DETECTION),
    }
)


def count_elements(structure: Any, name: str, count: str, least: int = 0) -> None:
    """Let a pointer field of a structure be read as a CountedPointer, whose number of elements is the field `count`.

    If that is below `least`, a script has not set it: the pointer is read as it is.
    """
    field = getattr(structure, name)

    def get(self: Any) -> Any:
        pointer, elements = field.__get__(self), getattr(self, count)
        return counted(pointer.contents, elements) if pointer and elements >= least else pointer

    setattr(structure, name, property(get, field.__set__))


count_elements(DETECTION, "prob", "classes", least=1)
count_elements(DETNUMPAIR, "dets", "num")
count_elements(METADATA, "names", "classes")


def store(
    pair: DETNUMPAIR, objectness: np.ndarray, boxes: np.ndarray, probs: np.ndarray, uc: np.ndarray | None = None,
    points: int = 0,
) -> None:  # fmt: skip
    """Let a pair own detections: objectness (K,), boxes (K, 4), probs (K, classes), uncertainties (K, 4) and their point."""
    K, classes = probs.shape
    floats = probs if uc is None else np.concatenate((probs, uc), axis=1)
    block = np.zeros(max(K, 1) * RECORD.itemsize + floats.size * 4, np.uint8)  # detections, then their floats
    records, start = block[: K * RECORD.itemsize].view(RECORD), block.size - floats.size * 4
    block[start:].view(np.float32).reshape(floats.shape)[:] = floats
    records["prob"] = block.ctypes.data + start + np.arange(K) * floats.shape[1] * 4
    if uc is not None:
        records["uc"], records["points"] = records["prob"] + classes * 4, points
    records["objectness"], records["bbox"], records["classes"] = objectness, boxes, classes
    set_best(records, probs)
    pair.num = K
    pair.dets = ctypes.pointer(DETECTION.from_buffer(block.data))


def set_best(records: np.ndarray, probs: np.ndarray) -> None:
    """Store the most probable classes in RECORDs (K,); probs (K, classes)."""
    if probs.size:
        records["best_class_idx"] = np.where(probs.any(axis=1), probs.argmax(axis=1), -1)
