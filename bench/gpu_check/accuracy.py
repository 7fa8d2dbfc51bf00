"""Compare boxes and scores across precisions with real weights: pretrained ones if available, else the bundled digits.

REAL_WEIGHTS names a .weights file or a folder of them; the name of each file is that of a bundled network. Images in that
folder are used in addition to the bundled one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from gpudarknet import Detector, boxes, image, load_network
from gpudarknet.io import resources

from .case import Case, Context, Row, Skipped
from .environment import opencv
from .networks import relative_error

VARIABLE = "REAL_WEIGHTS"
THRESH = 0.25
MARGIN = 0.05  # boxes with scores this far above the threshold must be detected in every precision
# precision -> minimum IoU of a box with its counterpart, maximum difference of their scores
LIMITS = {"fp32": (0.99, 0.005), "tf32": (0.9, 0.05), "fp16": (0.9, 0.05)}
IMAGES = (".jpg", ".jpeg", ".png")


def weights_by_network() -> dict[str, Path]:
    """Return the available weights by network: those named by the variable, and the bundled ones."""
    path = Path(os.environ.get(VARIABLE, ""))
    named = [path] if path.is_file() else sorted(path.glob("*.weights")) if os.environ.get(VARIABLE) else []
    weights = {file.stem: file for file in named if resources.bundled_cfg(file.stem).is_file()}
    return weights | {"digits": resources.folder() / "digits.weights"}


def images(weights: Path) -> list[Path]:
    """Return the bundled image, and those next to the user's weights."""
    own = [] if weights.parent == resources.folder() else sorted(weights.parent.iterdir())
    return [resources.folder() / "digits.jpg", *(path for path in own if path.suffix.lower() in IMAGES)]


def boxes_and_scores(context: Context) -> Iterable[Case]:
    """List the networks with real weights, each in three precisions; and a skipped case if there are only the digits."""
    weights = weights_by_network()
    if len(weights) == 1:
        yield Case("pretrained", no_weights)
    for name in weights:
        for precision in LIMITS:
            yield Case(f"{name}/{precision}", partial(compare, context, name, precision))


def no_weights() -> Row:
    """Skip the case."""
    raise Skipped(f"{VARIABLE} names neither a .weights file of a bundled network nor a folder of such")


@lru_cache(maxsize=2)
def detector(name: str, backend: str, small: bool) -> Detector:
    """Return a detector with real weights; small: pretrained networks at 192 x 128 (digits is small anyway)."""
    width, height = (192, 128) if small and name != "digits" else (None, None)
    return Detector(
        load_network(resources.bundled_cfg(name), weights_by_network()[name], backend, width=width, height=height)
    )


def compare(context: Context, name: str, precision: Any) -> Row:
    """Compare a precision with fp32 on the same backend, and fp32 with NumPy."""
    opencv()  # needed to read images
    weights = weights_by_network()[name]
    other = "numpy" if precision == "fp32" else context.backend
    worst, failed, count, head_error = {"iou": 1.0, "score": 0.0}, list[str](), 0, 0.0
    min_iou, max_difference = LIMITS[precision]
    for path in images(weights):
        array = image.read(path)
        want, want_heads = run_detector(detector(name, other, context.small), array, "fp32")
        got, got_heads = run_detector(detector(name, context.backend, context.small), array, precision)
        head_error = max([head_error, *(relative_error(g, w) for g, w in zip(got_heads, want_heads, strict=True))])
        for one, others, which in ((want, got, "is missing"), (got, want, "is extra")):
            for label, score, box in one:
                near = [
                    (float(boxes.iou(box, b)), abs(score - s)) for other_label, s, b in others if other_label == label
                ]
                iou, difference = max(near, default=(0.0, score))
                if iou < 0.5 and score < THRESH + MARGIN:
                    continue  # at the threshold, rounding decides
                count += 1
                worst = {"iou": min(worst["iou"], iou), "score": max(worst["score"], difference)}
                if iou < 0.5:
                    failed.append(f"{path.name}: class {label} with {score:.3f} {which}")
                elif iou < min_iou or difference > max_difference:
                    failed.append(f"{path.name}: class {label}: IoU {iou:.3f}, score difference {difference:.3f}")
    row = {"network": name, "precision": precision, "against": f"fp32 on {other}", "images": len(images(weights))}
    return {**row, "boxes": count // 2, "min_iou": worst["iou"], "max_score_difference": worst["score"],
            "heads_relative_error": head_error,
            "failed": failed}  # fmt: skip


def run_detector(
    by: Detector, array: np.ndarray, precision: Any
) -> tuple[list[tuple[int, float, np.ndarray]], list[np.ndarray]]:
    """Return the detections in an image as (class, score, box), and the heads' outputs."""
    be = by.network.backend
    by.precision = precision
    heads = [be.to_numpy(y) for y in by.network.predict(by.preprocess([array]), precision=precision)]
    detections = by.detect(array, THRESH)
    return [(d.class_id, d.confidence, np.asarray(d.relative)) for d in detections], heads
