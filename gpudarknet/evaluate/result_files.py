"""The formats of files of results: VOC's text lines, COCO's JSON records, CSV."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import numpy as np

from .. import boxes as geometry
from ..data.datafile import label_path
from ..errors import DataWarning
from .detection import ImageEval

# category_id of COCO's 80 classes, which are not consecutive
COCO_IDS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
CORNERS = ("x1", "y1", "x2", "y2")
Objects = Iterable[dict[str, Any]]  # of an image, as `Detections.summary` returns them
AddImage = Callable[
    [str, int, int, Objects, int], None
]  # path, width and height, objects, the network's number of classes
MAX_IDS = 1_000_000  # so that memory does not grow with the number of images


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
    corners = geometry.to_corners(img.scored.boxes) * (W, H, W, H)
    for i, k in zip(*np.nonzero(img.scored.probs), strict=True):
        yield coco_record(coco_image_id(img.path) or 0, categories[k], img.scored.probs[i, k], corners[i], W, H)


def coco_record(image_id: int, category: int, score: float, corners: Iterable[float], W: int, H: int) -> dict[str, Any]:
    """Return COCO's record of an object. corners: left, top, right, bottom in pixels."""
    limits = (W, H, W, H)
    left, top, right, bottom = (round(float(min(max(v, 0), n)), 3) for v, n in zip(corners, limits, strict=True))
    return {"image_id": image_id, "category_id": int(category), "score": round(float(score), 6),
            "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)]}  # fmt: skip


@contextmanager
def csv_file(file: TextIO) -> Iterator[AddImage]:
    """Write CSV with one line per object: image, class, name, confidence, box in pixels, not clipped to the image."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["image", "class_id", "name", "confidence", "left", "top", "width", "height"])

    def add(path: str, W: int, H: int, objects: Objects, classes: int) -> None:
        for one in objects:
            left, top, right, bottom = (one["box"][key] for key in CORNERS)
            box = [f"{v:.2f}" for v in (left, top, right - left, bottom - top)]
            table.writerow([path, one["class"], one["name"], f"{one['confidence']:.5f}", *box])

    yield add


@contextmanager
def coco_file(file: TextIO) -> Iterator[AddImage]:
    """Write COCO's results: image_id is the number that ends the file name, category_id is COCO's if there are 80 classes.

    Warns of the first image that has the number of another; compared are the first MAX_IDS numbers.
    """
    ids, separator, warned = set[int](), "", False

    def add(path: str, W: int, H: int, objects: Objects, classes: int) -> None:
        nonlocal separator, warned
        number = coco_image_id(path) or 0
        if number in ids and not warned:
            warned = True
            message = f"{path}: has the image_id {number} of another image; names should end in numbers"
            warnings.warn(message, DataWarning, stacklevel=2)
        if len(ids) < MAX_IDS:
            ids.add(number)
        categories = COCO_IDS if classes == len(COCO_IDS) else range(1, classes + 1)
        for one in objects:
            corners = [one["box"][key] for key in CORNERS]
            record = coco_record(number, categories[one["class"]], one["confidence"], corners, W, H)
            file.write(separator + json.dumps(record))
            separator = ", "

    file.write("[")
    yield add
    file.write("]\n")
