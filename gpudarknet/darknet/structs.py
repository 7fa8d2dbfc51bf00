"""Darknet-compatible API: Darknet's structs. IMAGE is a ctypes structure, because scripts build it from a pointer."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class IMAGE(ctypes.Structure):
    """An image: w, h, c and a pointer to c planes of h x w floats, RGB, 0 to 1. Python owns the memory."""

    _fields_ = (
        ("w", ctypes.c_int),
        ("h", ctypes.c_int),
        ("c", ctypes.c_int),
        ("data", ctypes.POINTER(ctypes.c_float)),
    )

    def __init__(self, w: int = 0, h: int = 0, c: int = 0, data: Any = None):
        super().__init__(w, h, c, data) if data is not None else super().__init__(w, h, c)
        self._memory = data  # a pointer created by NumPy keeps its array alive

    @classmethod
    def from_planes(cls, planes: np.ndarray) -> IMAGE:
        """Create an IMAGE from planes (C, H, W)."""
        planes = np.ascontiguousarray(planes, np.float32)
        C, H, W = planes.shape
        return cls(W, H, C, planes.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))

    def planes(self) -> np.ndarray:
        """Return a view of the pixels as a batch of one, (1, c, h, w)."""
        return np.ctypeslib.as_array(self.data, (1, self.c, self.h, self.w))

    def pixels(self) -> np.ndarray:
        """Return a view of the pixels as an image (h, w, c)."""
        return self.planes()[0].transpose(1, 2, 0)


@dataclass
class BOX:
    """A box: center x, y, width, height."""

    x: float
    y: float
    w: float
    h: float


@dataclass
class DETECTION:
    """A box with its class probabilities; prob[i] is 0 if not above the threshold."""

    bbox: BOX
    prob: np.ndarray
    objectness: float
    sort_class: int = -1

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.prob)

    @property
    def best_class_idx(self) -> int:
        """The most probable class, or -1 if all probabilities are 0."""
        best = int(self.prob.argmax()) if len(self.prob) else 0
        return best if len(self.prob) and self.prob[best] > 0 else -1


@dataclass
class DETNUMPAIR:
    """The `num` detections `dets` of one image in a batch."""

    num: int
    dets: list[DETECTION]


@dataclass
class METADATA:
    """Class names, as bytes."""

    classes: int
    names: list[bytes] = field(default_factory=list)
