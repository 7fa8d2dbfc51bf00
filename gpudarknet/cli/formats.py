"""Detections in the forms that Darknet prints and writes (draw_detections_v3, detection_to_json, test_detector)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..detector import HIDDEN_PREFIX, Detection, ScoredBoxes

JSON_THRESH = 0.005  # Darknet's own, whatever -thresh says


def best(found: ScoredBoxes, names: Sequence[str], thresh: float, hidden: bool = False) -> list[tuple[int, int]]:
    """Return (row, best class) of the boxes that have a class above thresh; a hidden class is best only if `hidden`."""
    shown = np.array([hidden or not name.startswith(HIDDEN_PREFIX) for name in names[: found.probs.shape[1]]], bool)
    probs = np.where(shown, found.probs, 0)
    return [(i, int(p.argmax())) for i, p in enumerate(probs) if p.size and p.max() > thresh]


def also(found: ScoredBoxes, row: int, first: int, thresh: float) -> list[int]:
    """Return the other classes of a box above thresh, in class order."""
    return [int(c) for c in np.flatnonzero(found.probs[row] > thresh) if c != first]


def lines(found: ScoredBoxes, names: Sequence[str], thresh: float, ext_output: bool) -> Iterator[str]:
    """Yield a line for each box's best class and then one for each of its other classes, boxes from left to right."""
    chosen = best(found, names, thresh)
    chosen.sort(key=lambda item: found.boxes[item[0], 0] - found.boxes[item[0], 2] / 2)
    for row, first in chosen:
        place = "\t" + pixels(found, row) if ext_output else ""
        for c in (first, *also(found, row, first, thresh)):
            yield f"{names[c]}: {found.probs[row, c] * 100:.0f}%{place}"


def pixels(found: ScoredBoxes, row: int) -> str:
    """Return a box as -ext_output shows it: rounded pixels, not clipped to the image."""
    x, y, w, h = found.boxes[row].tolist()
    W, H = found.width, found.height
    values = [half_up(v) for v in ((x - w / 2) * W, (y - h / 2) * H, w * W, h * H)]
    return "(left_x: {:4.0f}   top_y: {:4.0f}   width: {:4.0f}   height: {:4.0f})".format(*values)


def half_up(value: float) -> float:
    """Round half away from zero, as C does."""
    return math.copysign(math.floor(abs(value) + 0.5), value)


def marks(found: ScoredBoxes, names: Sequence[str], thresh: float) -> list[Detection]:
    """Return what to draw: one mark a box, labelled with its best class and then its others."""
    drawn = []
    for row, first in best(found, names, thresh):
        label = ", ".join(names[c] for c in (first, *also(found, row, first, thresh)))
        x, y, w, h = found.boxes[row].tolist()
        W, H = found.width, found.height
        box = ((x - w / 2) * W, (y - h / 2) * H, w * W, h * H)
        drawn.append(Detection(label, first, float(found.probs[row, first]), box, (x, y, w, h)))
    return drawn


def json_image(frame: int, path: str, found: ScoredBoxes, names: Sequence[str]) -> str:
    """Return an image's part of the JSON file. Unlike Darknet's, names and paths with quotes or backslashes are valid JSON."""
    objects = []
    for row, c in zip(*np.nonzero(found.probs > JSON_THRESH), strict=True):
        if not names[c].startswith(HIDDEN_PREFIX):
            x, y, w, h = found.boxes[row].tolist()
            objects.append(
                f'  {{"class_id":{c}, "name":{quoted(names[c])}, "relative_coordinates":{{"center_x":{x:f}, "center_y":{y:f},'
                f' "width":{w:f}, "height":{h:f}}}, "confidence":{found.probs[row, c]:f}}}'
            )
    body = ", \n".join(objects)
    return f'{{\n "frame_id":{frame}, \n "filename":{quoted(path)}, \n "objects": [ \n{body}\n ] \n}}'


def json_file(images: Sequence[str]) -> str:
    """Return the whole JSON file, of the images' parts."""
    return "[\n" + ", \n".join(images) + "\n]"


def quoted(text: str) -> str:
    """Return text as a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def label_lines(found: ScoredBoxes, names: Sequence[str], thresh: float) -> str:
    """Return a label file: `class x y w h` for each box's best class, as parts of the image."""
    rows = ((c, *found.boxes[row].tolist()) for row, c in best(found, names, thresh, hidden=True))
    return "".join(f"{c} {x:2.4f} {y:2.4f} {w:2.4f} {h:2.4f}\n" for c, x, y, w, h in rows)
