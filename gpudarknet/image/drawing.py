"""Draw detections: boxes in Darknet's colors, labels that are readable at any image size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ImageError
from ..io.text import valid_utf8

Image = NDArray[np.uint8]

MAX_LINE_WIDTH = 32767  # OpenCV's


class Drawable(Protocol):
    """The attributes of a detection that `draw` reads: confidence 0..1, box (left, top, width, height) in pixels."""

    @property
    def label(self) -> str: ...
    @property
    def class_id(self) -> int: ...
    @property
    def confidence(self) -> float: ...
    @property
    def box(self) -> Sequence[float]: ...


def draw(
    image: Image,
    detections: Iterable[Drawable],
    names: Sequence[str] | None = None,
    *,
    conf: bool = True,
    line_width: int | None = None,
    labels: bool = True,
) -> Image:
    """Draw boxes and labels on a copy, the most confident on top. uint8 (H, W, 1 or 3) -> uint8 (H, W, 3).

    Colors are Darknet's for `len(names)` classes (without names: for 80, or more if needed). conf: labels have the
    confidence in percent. line_width: of boxes, in pixels; None: in proportion to the image. labels: write labels; those
    of equal boxes share a line. Raises ImageError if line_width is below 1.
    """
    import cv2

    if line_width is not None and not 1 <= line_width <= MAX_LINE_WIDTH:
        raise ImageError(f"line_width {line_width}: must be 1 to {MAX_LINE_WIDTH} pixels, or None")
    groups: dict[tuple[float, ...], list[Drawable]] = {}  # one box may have several classes
    for d in sorted(detections, key=lambda d: d.confidence):
        groups.setdefault(tuple(d.box), []).insert(0, d)
    best = max((d.class_id + 1 for group in groups.values() for d in group), default=0)
    classes = len(names) if names else max(80, best)
    canvas = np.array(np.broadcast_to(image, (*image.shape[:2], 3)), order="C")  # always a copy
    H, W = canvas.shape[:2]
    thickness = round(line_width) if line_width else max(1, round((W + H) / 500))
    texts = []
    for box, group in sorted(groups.items(), key=lambda item: item[1][0].confidence):
        left, top, width, height = np.nan_to_num(np.asarray(box, dtype=np.float64))
        if left >= W or top >= H or left + width < 0 or top + height < 0:
            continue
        x0, x1 = np.clip((left, left + width), 0, W - 1).astype(int).tolist()
        y0, y1 = np.clip((top, top + height), 0, H - 1).astype(int).tolist()
        box_color = color(group[0].class_id, classes)
        cv2.rectangle(canvas, (x0, y0), (x1, y1), box_color, thickness)
        text = ", ".join(f"{d.label} {d.confidence:.0%}" if conf else d.label for d in group)
        texts.append((text, x0 - thickness // 2, y0, thickness, box_color))
    if labels:
        for placed in texts:  # after all boxes, so that no line crosses a text
            _label(canvas, *placed)
    return canvas


def color(class_id: int, classes: int) -> tuple[int, int, int]:
    """Return the color (R, G, B) 0..255 of a class: Darknet's gradient magenta, red, yellow, green, cyan, blue."""
    stops = np.array([(1, 0, 1), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1)])
    t = 5 * (class_id * 123457 % classes) / classes
    mixed = (1 - t % 1) * stops[int(t)] + t % 1 * stops[int(np.ceil(t))]
    red, green, blue = (round(255 * v) for v in mixed.tolist())
    return red, green, blue


def _label(canvas: Image, text: str, x: int, y: int, thickness: int, background: tuple[int, int, int]) -> None:
    """Draw text on a filled rectangle whose lower left corner is (x, y), shifted to stay inside the image."""
    import cv2

    H, W = canvas.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    scale = max(0.4, (W + H) / 2200)
    weight = max(1, round(scale * 1.6))
    text = valid_utf8(text)
    (width, _), _ = cv2.getTextSize(text, font, scale, weight)
    (_, height), below = cv2.getTextSize("Ag", font, scale, weight)  # the same height for every text
    margin = max(2, round(height / 4))
    box_w, box_h = width + 2 * margin, height + below + margin
    x = max(0, min(x, W - box_w))
    y = y if y >= box_h else min(y + box_h + thickness // 2, H)
    cv2.rectangle(canvas, (x, y - box_h), (x + box_w - 1, y - 1), background, cv2.FILLED)
    light = np.dot(background, (0.299, 0.587, 0.114)) > 140
    foreground = (0, 0, 0) if light else (255, 255, 255)
    cv2.putText(canvas, text, (x + margin, y - below - margin // 2), font, scale, foreground, weight, cv2.LINE_AA)
