"""Darknet's output formats: text lines, JSON, label files (draw_detections_v3, detection_to_json, test_detector)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..detector import HIDDEN_PREFIX, Detection
from ..inference import ScoredBoxes

JSON_THRESH = 0.005  # fixed in Darknet, independent of -thresh
JSON_FILE = "[\n", ", \n", "\n]"  # around and between the images' entries


def best_classes(
    scored: ScoredBoxes, names: Sequence[str], thresh: float, hidden: bool = False
) -> list[tuple[int, int]]:
    """Return (row, best class) of the boxes with a class above thresh; hidden classes count only if `hidden`."""
    shown = np.array([hidden or not name.startswith(HIDDEN_PREFIX) for name in names[: scored.probs.shape[1]]], bool)
    probs = np.where(shown, scored.probs, 0)
    return [(i, int(p.argmax())) for i, p in enumerate(probs) if p.size and p.max() > thresh]


def other_classes(scored: ScoredBoxes, row: int, first: int, thresh: float) -> list[int]:
    """Return a box's other classes above thresh, in class order."""
    return [int(c) for c in np.flatnonzero(scored.probs[row] > thresh) if c != first]


def text_lines(scored: ScoredBoxes, names: Sequence[str], thresh: float, ext_output: bool) -> Iterator[str]:
    """Yield one line per box and class, the best class first, boxes from left to right."""
    best = best_classes(scored, names, thresh)
    best.sort(key=lambda item: scored.boxes[item[0], 0] - scored.boxes[item[0], 2] / 2)
    for row, first in best:
        coordinates = "\t" + pixel_box(scored, row) if ext_output else ""
        for c in (first, *other_classes(scored, row, first, thresh)):
            yield f"{names[c]}: {scored.probs[row, c] * 100:.0f}%{coordinates}"


def pixel_box(scored: ScoredBoxes, row: int) -> str:
    """Format a box for -ext_output: in rounded pixels, not clipped to the image."""
    x, y, w, h = scored.boxes[row].tolist()
    W, H = scored.width, scored.height
    values = [half_up(v) for v in ((x - w / 2) * W, (y - h / 2) * H, w * W, h * H)]
    return "(left_x: {:4.0f}   top_y: {:4.0f}   width: {:4.0f}   height: {:4.0f})".format(*values)


def half_up(value: float) -> float:
    """Round half away from zero, as in C."""
    return math.copysign(math.floor(abs(value) + 0.5), value)


def labelled_boxes(scored: ScoredBoxes, names: Sequence[str], thresh: float) -> list[Detection]:
    """Return the boxes to draw, each labeled with its best class, then its other classes."""
    drawn = []
    for row, first in best_classes(scored, names, thresh):
        label = ", ".join(names[c] for c in (first, *other_classes(scored, row, first, thresh)))
        x, y, w, h = scored.boxes[row].tolist()
        W, H = scored.width, scored.height
        box = ((x - w / 2) * W, (y - h / 2) * H, w * W, h * H)
        drawn.append(Detection(label, first, float(scored.probs[row, first]), box, (x, y, w, h)))
    return drawn


def json_image(frame: int, path: str, scored: ScoredBoxes, names: Sequence[str]) -> str:
    """Return an image's entry in the JSON file. Unlike in Darknet, quotes and backslashes in names and paths are escaped."""
    objects = []
    for row, c in zip(*np.nonzero(scored.probs > JSON_THRESH), strict=True):
        if not names[c].startswith(HIDDEN_PREFIX):
            x, y, w, h = scored.boxes[row].tolist()
            objects.append(
                f'  {{"class_id":{c}, "name":{json_string(names[c])}, "relative_coordinates":{{"center_x":{x:f},'
                f' "center_y":{y:f}, "width":{w:f}, "height":{h:f}}}, "confidence":{scored.probs[row, c]:f}}}'
            )
    body = ", \n".join(objects)
    return f'{{\n "frame_id":{frame}, \n "filename":{json_string(path)}, \n "objects": [ \n{body}\n ] \n}}'


def json_string(text: str) -> str:
    """Return text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def label_lines(scored: ScoredBoxes, names: Sequence[str], thresh: float) -> str:
    """Return a label file: `class x y w h` for each box's best class, relative to the image."""
    rows = ((c, *scored.boxes[row].tolist()) for row, c in best_classes(scored, names, thresh, hidden=True))
    return "".join(f"{c} {x:2.4f} {y:2.4f} {w:2.4f} {h:2.4f}\n" for c, x, y, w, h in rows)
