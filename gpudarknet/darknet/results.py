"""Darknet-compatible API: darknet.py's functions on results: names, percentages, colors, drawing."""

from __future__ import annotations

import colorsys
import hashlib
import random
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from .. import boxes
from ..io.text import valid_utf8

Color = tuple[int, int, int]
DetectionTuple = tuple[Any, Any, tuple[float, float, float, float]]  # label, confidence, (center x, y, width, height)
T = TypeVar("T")


def class_colors(names: Sequence[str]) -> dict[str, Color]:
    """Return a bright color for each name, deterministically."""
    hues = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32 for name in names}
    colors = {name: colorsys.hsv_to_rgb(hue, 0.8, 1.0) for name, hue in hues.items()}
    return {name: (round(255 * r), round(255 * g), round(255 * b)) for name, (r, g, b) in colors.items()}


def bbox2points(bbox: Sequence[float]) -> tuple[int, int, int, int]:
    """Convert center x, y, width, height to left, top, right, bottom, rounded."""
    x, y, w, h = bbox
    return round(x - w / 2), round(y - h / 2), round(x + w / 2), round(y + h / 2)


def remove_negatives(detections: Any, class_names: Sequence[Any], num: int) -> list[DetectionTuple]:
    """Return (name, probability, box) for every class with non-zero probability of every box."""
    return [
        (class_names[i], prob, _box(det))
        for det in (detections[j] for j in range(num))
        for i, prob in enumerate(det.prob[: min(det.classes or len(class_names), len(class_names))])
        if prob > 0
    ]


def remove_negatives_faster(detections: Any, class_names: Sequence[Any], num: int) -> list[DetectionTuple]:
    """Return (name, probability, box) for the best class of every box."""
    best = [(det, det.best_class_idx) for det in (detections[j] for j in range(num))]
    return [(class_names[i], det.prob[i], _box(det)) for det, i in best if i >= 0]


def _box(det: Any) -> tuple[float, float, float, float]:
    return det.bbox.x, det.bbox.y, det.bbox.w, det.bbox.h


def decode_detection(detections: Sequence[DetectionTuple]) -> list[DetectionTuple]:
    """Convert probabilities to percentages, as text with two decimals."""
    return [(str(label), str(round(confidence * 100, 2)), bbox) for label, confidence, bbox in detections]


def non_max_suppression_fast(detections: Sequence[T], overlap_thresh: float) -> list[T]:
    """Suppress boxes that overlap one that ends lower in the image, by more than overlap_thresh of their own area.

    detections: tuples of four, whose last element is the box, center x, y, width, height in pixels. Lowest first.
    """
    if not detections:
        return []
    corners = boxes.to_corners([detection[3] for detection in detections])  # type: ignore[index]
    area = (corners[:, 2:] - corners[:, :2] + 1).prod(axis=1)
    remaining, kept = np.argsort(corners[:, 3]), []
    while remaining.size:
        lowest, others = remaining[-1], remaining[:-1]
        kept.append(detections[lowest])
        low = np.maximum(corners[lowest, :2], corners[others, :2])
        high = np.minimum(corners[lowest, 2:], corners[others, 2:])
        overlap = np.maximum(0, high - low + 1).prod(axis=1) / area[others]
        remaining = others[overlap <= overlap_thresh]
    return kept


def print_detections(detections: Sequence[DetectionTuple], coordinates: bool = False) -> None:
    """Print one line per object, with its box if `coordinates`."""
    lines = ["", "Objects:"]
    for label, confidence, (x, y, w, h) in detections:
        box = f"    (left_x: {x:.0f}   top_y:  {y:.0f}   width:   {w:.0f}   height:  {h:.0f})" if coordinates else ""
        lines.append(f"{label}: {confidence}%{box}")
    sys.stdout.write("\n".join(lines) + "\n")


def draw_boxes(detections: Sequence[DetectionTuple], image: np.ndarray, colors: dict[str, Color]) -> np.ndarray:
    """Draw boxes and labels on an image (H, W, 3) in place, and return it."""
    import cv2

    for label, confidence, bbox in detections:
        left, top, right, bottom = bbox2points(bbox)
        cv2.rectangle(image, (left, top), (right, bottom), colors[label], 1)
        text = valid_utf8(f"{label} [{float(confidence):.2f}]")
        cv2.putText(image, text, (left, top - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colors[label], 2)
    return image


def sample(probs: Sequence[float]) -> int:
    """Draw an index at random, with these probabilities or weights."""
    return random.choices(range(len(probs)), probs)[0]


def c_array(ctype: Any, values: Sequence[Any]) -> Any:
    """Return a ctypes array of these values."""
    return (ctype * len(values))(*values)
