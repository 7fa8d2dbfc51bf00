"""Views of feature maps in the arena of a program, in NHWC."""

from __future__ import annotations

from dataclasses import dataclass

from ...array import Array
from ...layers import Shape


@dataclass(frozen=True)
class View:
    """A map in the arena: `a` holds its first element to its last, shape is (C, H, W), pixels: the number over all images.

    ld: elements from one pixel to the next; channel_offset: its first channel in the map that owns the memory.
    """

    a: Array
    shape: Shape
    ld: int
    pixels: int
    channel_offset: int

    @property
    def sizes(self) -> tuple[int, int]:
        """(C, H*W)."""
        return self.shape[0], self.shape[1] * self.shape[2]

    def is_aligned(self, width: int) -> bool:
        """Return whether every pixel begins at a multiple of `width` elements."""
        return not (self.ld % width or self.channel_offset % width)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, without the gaps between pixels."""
        return self.pixels * self.shape[0] * self.a.itemsize

    @property
    def nchw_bytes(self) -> int:
        """Bytes of its elements as float32 (N, C, H, W), the layout of the caller."""
        return 4 * self.pixels * self.shape[0]

    def can_vectorize(self, width: int) -> bool:
        """Return whether all pixels can be accessed as vectors of `width` channels."""
        return self.shape[0] % width == 0 and self.is_aligned(width)

    def images(self, first: int, count: int) -> View:
        """Return the view of `count` images from `first` on."""
        P = self.sizes[1]
        a = self.a[first * P * self.ld :][: (count * P - 1) * self.ld + self.shape[0]]
        return View(a, self.shape, self.ld, count * P, self.channel_offset)
