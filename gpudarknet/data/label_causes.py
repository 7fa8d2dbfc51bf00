"""Guess why the labels of a data set are all wrong in the same way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import image
from ..errors import DataError, ImageError
from ..io.text import read_text
from . import MAX_SIZE
from .datafile import label_path

MAX_FILES = 200  # that are read to find a cause
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
FIX = "a line must be 'class x y width height', center and size as fractions of the image"


def likely_cause(faulty: Sequence[str], paths: Sequence[str], classes: int) -> str:
    """Return a clause that names what the labels of the faulty images have in common, or "".

    paths: of all checked images, faulty ones included.
    """
    faulty = faulty[:: max(1, len(faulty) // MAX_FILES)]
    lines = [(path, line) for path in faulty for line in label_lines(path)]
    if not lines:
        cause = "" if label_path(faulty[0]).is_file() else missing(faulty)
    else:
        cause = form([line for _, line in lines])
    if not cause and lines:
        rows = [(path, line.split()) for path, line in lines]
        try:
            numbers = np.array([[float(word) for word in words[:5]] for _, words in rows])
        except ValueError:
            return ""
        if numbers.ndim == 2 and numbers.shape[1] == 5 and np.isfinite(numbers).all():
            cause = content(numbers, [path for path, _ in rows], paths, classes)
    return f"; {cause}" if cause else ""


def label_lines(path: str) -> list[str]:
    """Return the nonempty lines of an image's label file."""
    try:
        return [line.strip() for line in read_text(label_path(path)).splitlines() if line.strip()]
    except DataError:
        return []


def missing(paths: Sequence[str]) -> str:
    """Return where label files must be, and whether they are in another folder."""
    path = Path(paths[0].replace("\\", "/"))
    head, images, tail = f"/{path.as_posix()}".rpartition("/images/")
    places = [path.parent.parent / "labels" / path.name, path.parent / "labels" / path.name]
    places += [Path(f"{head}/labels/{tail}"[1:])] if images else []
    for place in places:
        if place.with_suffix(".txt").is_file():
            return f"{place.with_suffix('.txt')} exists, but labels are read from {label_path(path).parent}; move them"
    return "a label file has the name of its image and .txt"


def form(lines: Sequence[str]) -> str:
    """Return what is wrong with the form of lines."""
    words = [line.split() for line in lines]

    def all_words(pattern: str, skip: int = 0) -> bool:
        return all(re.fullmatch(pattern, word) for row in words for word in row[skip:])

    if all(len(row) >= 5 for row in words) and all_words(r"[-+]?\d+([.,]\d+)?") and any("," in line for line in lines):
        return "the numbers have decimal commas; write points"
    if all(re.fullmatch(rf"\s*{NUMBER}(\s*[,;]\s*{NUMBER}){{4,}}\s*[,;]?", line) for line in lines):
        return "the numbers are separated by commas or semicolons; write spaces"
    if all(line[0] in "<{[" for line in lines[:1]):
        return f"the files are XML or JSON; {FIX}"
    if all(len(row) >= 5 and not re.fullmatch(NUMBER, row[0]) for row in words) and all_words(NUMBER, 1):
        return "the lines begin with names; write class numbers, counted from 0 in the order of the names file"
    if all_words(NUMBER) and all(len(row) > 6 for row in words):
        return f"these are polygons (segmentation labels) or rotated boxes; {FIX}"
    if all_words(NUMBER) and all(len(row) == 4 for row in words):
        return f"the lines have no class; {FIX}"
    return ""


def content(numbers: np.ndarray, owners: Sequence[str], paths: Sequence[str], classes: int) -> str:
    """Return what is wrong with the values of lines (L, 5); owners: the image of each."""
    k, x, y, w, h = numbers.T
    if (k != k.astype(int)).any() and (h == h.astype(int)).all():
        return f"the class comes last; {FIX}"
    if k.max() == classes and all_class_numbers(paths).min(initial=1) >= 1:
        return f"the class numbers seem to start at 1; they must be 0 to {classes - 1}"
    sides = np.maximum(np.abs(numbers[:, 1:3]).max(axis=1), numbers[:, 3:].max(axis=1))
    if sides.min() <= 1 or sides.max() <= MAX_SIZE:
        return ""
    if len(numbers) > 2 and (w > x).all() and (h > y).all():
        return f"the boxes look like corners in pixels, left top right bottom; {FIX}"
    return f"the boxes are in {unit(numbers, owners)}; {FIX}"


def all_class_numbers(paths: Sequence[str]) -> np.ndarray:
    """Return the class numbers of the label files of up to MAX_FILES images."""
    lines = [line for path in paths[:: max(1, len(paths) // MAX_FILES)] for line in label_lines(path)]
    return np.array([float(match.group()) for line in lines if (match := re.match(NUMBER, line))])


def unit(numbers: np.ndarray, owners: Sequence[str]) -> str:
    """Return "percent" if no value is above 100 but some box leaves its image in pixels, else "pixels"."""
    if numbers[:, 1:].max() > 100:
        return "pixels"
    for (_, x, y, w, h), path in list(zip(numbers.tolist(), owners, strict=True))[:MAX_FILES]:
        try:
            height, width = image.read(path).shape[:2]
        except ImageError:
            continue
        if x + w / 2 > width + 1 or y + h / 2 > height + 1 or min(width, height) > 4 * numbers[:, 1:].max():
            return "percent"
    return "pixels"
