"""The objects of an image, and the list of them that a detector returns: it shows, saves and converts itself."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, overload

import numpy as np

from . import image
from .errors import DataError


@dataclass(frozen=True)
class Detection:
    """One object of one class in one image. confidence is 0 to 1.

    box: (left, top, width, height) in pixels, not clipped to the image. relative: (center x, center y, width, height) as
    fractions of the image's width and height, as in Darknet's label and JSON files.
    """

    label: str
    class_id: int
    confidence: float
    box: tuple[float, float, float, float]
    relative: tuple[float, float, float, float]


class Detections(list[Detection]):
    """The objects of one image, sorted by descending confidence: a list that also knows its image.

    names: the detector's labels, by class index. shape: (H, W) of the image in pixels. source: the image, as given to the
    detector; an array or a PIL image is not copied, of a file only the path is kept. `d[2:5]`, `d[d.confidence > 0.5]` and
    `d[[0, 3]]` are Detections too, of the same image.
    """

    def __init__(
        self,
        items: Iterable[Detection] = (),
        *,
        names: Sequence[str] = (),
        shape: tuple[int, int] | None = None,
        source: Any = None,
    ):
        super().__init__(items)
        self.names, self.shape = tuple(names), shape
        self.path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        self._pixels = None if self.path else source

    @overload  # type: ignore[overload-overlap]  # an array has __index__ too
    def __getitem__(self, index: SupportsIndex) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | list[int] | list[bool] | np.ndarray) -> Detections: ...
    def __getitem__(self, index: Any) -> Detection | Detections:
        """Return one object, or the Detections of a slice, of a boolean mask or of indices."""
        if hasattr(index, "__index__") and np.ndim(index) == 0:
            return super().__getitem__(index)
        if isinstance(index, slice):
            return self._with(super().__getitem__(index))
        return self._with(list.__getitem__(self, i) for i in np.arange(len(self))[np.asarray(index)].tolist())

    def _with(self, items: Iterable[Detection]) -> Detections:
        """Return other objects of the same image."""
        other = Detections(items)
        other.__dict__.update(self.__dict__)
        return other

    @property
    def image(self) -> image.Image:
        """The image, uint8 (H, W, 3) in RGB: the array that was given, or the file, read again.

        Raises ImageError if the file cannot be read, DataError if the pixels were not kept.
        """
        source = self.path or self._pixels
        if source is None:
            raise DataError("image: its pixels were not kept; pass keep=True to detect_stream")
        return image.as_image(source)

    @property
    def xyxy(self) -> np.ndarray:
        """Return the boxes as (K, 4) left, top, right, bottom in pixels."""
        return np.array(
            [(d.box[0], d.box[1], d.box[0] + d.box[2], d.box[1] + d.box[3]) for d in self], np.float32
        ).reshape(-1, 4)

    @property
    def confidence(self) -> np.ndarray:
        """Return the confidences (K,)."""
        return np.array([d.confidence for d in self], np.float32)

    @property
    def class_id(self) -> np.ndarray:
        """Return the class indices (K,)."""
        return np.array([d.class_id for d in self], int)

    def to_supervision(self) -> Any:
        """Convert to supervision.Detections, with data["class_name"]. Raises DataError if supervision is not installed."""
        try:
            import supervision
        except ImportError:
            raise DataError(
                "to_supervision: the package supervision is not installed; pip install supervision"
            ) from None
        names = np.array([d.label for d in self], str)
        return supervision.Detections(
            xyxy=self.xyxy, confidence=self.confidence, class_id=self.class_id, data={"class_name": names}
        )
