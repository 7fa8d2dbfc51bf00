"""The formats of the files that `detector valid` writes: VOC's text lines and COCO's JSON records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import boxes as geometry
from ..data.datafile import label_path
from .detection import ImageEval


def image_id(path: str) -> str:
    """Return the file name of an image without its extension, which VOC's result files list."""
    return label_path(path).stem


def coco_image_id(path: str) -> int | None:
    """Return the number that ends the file name of an image, its image_id in COCO; None if there is none."""
    digits = image_id(path).rpartition("_")[2]
    return int(digits) if digits.isdecimal() else None


def voc_lines(img: ImageEval, k: int) -> Iterator[str]:
    """Yield lines `id probability left top right bottom` for class k, in pixels from 1 to the image's size."""
    W, H = img.scored.width, img.scored.height
    corners = geometry.to_corners(img.scored.boxes) * (W, H, W, H) + 1
    for p, (left, top, right, bottom) in zip(img.scored.probs[:, k], corners, strict=True):
        if p > 0:
            left, top, right, bottom = max(left, 1), max(top, 1), min(right, W), min(bottom, H)
            yield f"{image_id(img.path)} {p:f} {left:f} {top:f} {right:f} {bottom:f}"


def coco_results(img: ImageEval, categories: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield COCO's result records: boxes in pixels, clipped to the image; image_id is the number that ends the file name."""
    W, H = img.scored.width, img.scored.height
    number = coco_image_id(img.path) or 0
    corners = np.clip(geometry.to_corners(img.scored.boxes) * (W, H, W, H), 0, (W, H, W, H))
    for i, k in zip(*np.nonzero(img.scored.probs), strict=True):
        left, top, right, bottom = (round(float(v), 3) for v in corners[i])
        yield {"image_id": number, "category_id": int(categories[k]), "score": round(float(img.scored.probs[i, k]), 6),
               "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)]}  # fmt: skip
