"""The records that scripts pass to and get from Darknet: IMAGE is C's own, so that scripts may build it from a pointer."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class IMAGE(ctypes.Structure):
    """A picture: w, h, c and a pointer to c planes of h x w floats, RGB, 0 to 1. Python owns its memory."""

    _fields_ = (
        ("w", ctypes.c_int),
        ("h", ctypes.c_int),
        ("c", ctypes.c_int),
        ("data", ctypes.POINTER(ctypes.c_float)),
    )

    def __init__(self, w: int = 0, h: int = 0, c: int = 0, data: Any = None):
        super().__init__(w, h, c, data) if data is not None else super().__init__(w, h, c)
        self._memory = data  # a pointer made by NumPy holds its array

    @classmethod
    def of(cls, planes: np.ndarray) -> IMAGE:
        """Make an IMAGE of planes (C, H, W)."""
        planes = np.ascontiguousarray(planes, np.float32)
        C, H, W = planes.shape
        return cls(W, H, C, planes.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))

    def planes(self) -> np.ndarray:
        """View its numbers as a batch of one, (1, c, h, w)."""
        return np.ctypeslib.as_array(self.data, (1, self.c, self.h, self.w))


@dataclass
class BOX:
    """A box: centre x, y, width, height."""

    x: float
    y: float
    w: float
    h: float


@dataclass
class DETECTION:
    """A box with its probabilities: prob[i] of class i, 0 where it is below the threshold."""

    bbox: BOX
    prob: np.ndarray
    objectness: float
    sort_class: int = -1

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.prob)

    @property
    def best_class_idx(self) -> int:
        """The most probable class, -1 where none is left."""
        best = int(self.prob.argmax()) if len(self.prob) else 0
        return best if len(self.prob) and self.prob[best] > 0 else -1


@dataclass
class DETNUMPAIR:
    """One picture's share of a batch: num detections dets."""

    num: int
    dets: list[DETECTION]


@dataclass
class METADATA:
    """Class names, as bytes."""

    classes: int
    names: list[bytes] = field(default_factory=list)
