"""Compare boxes and scores between precisions with real weights: published ones where they are at hand, else the shipped digits.

REAL_WEIGHTS names a .weights file or a folder of such; each is of the shipped network that its name says. Images that lie in
that folder are looked at too, beside the shipped one.
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
from .networks import distance

VARIABLE = "REAL_WEIGHTS"
THRESH = 0.25
SURE = 0.05  # how far above the threshold a score must be so that its box must be found in every precision
# precision -> the least overlap of a box with its counterpart, and how far scores may be apart
ALLOWED = {"fp32": (0.99, 0.005), "tf32": (0.9, 0.05), "fp16": (0.9, 0.05)}
IMAGES = (".jpg", ".jpeg", ".png")


def real_weights() -> dict[str, Path]:
    """Return the weights at hand by network: those that the variable names, and the shipped ones."""
    place = Path(os.environ.get(VARIABLE, ""))
    named = [place] if place.is_file() else sorted(place.glob("*.weights")) if os.environ.get(VARIABLE) else []
    found = {path.stem: path for path in named if resources.bundled_cfg(path.stem).is_file()}
    return found | {"digits": resources.folder() / "digits.weights"}


def images(weights: Path) -> list[Path]:
    """Return the shipped image, and those that lie beside weights of the user's."""
    own = [] if weights.parent == resources.folder() else sorted(weights.parent.iterdir())
    return [resources.folder() / "digits.jpg", *(path for path in own if path.suffix.lower() in IMAGES)]


def boxes_and_scores(context: Context) -> Iterable[Case]:
    """List the networks with real weights, each in the three precisions; and a row that says where only digits are at hand."""
    found = real_weights()
    if len(found) == 1:
        yield Case("published", no_weights)
    for name in found:
        for precision in ALLOWED:
            yield Case(f"{name}/{precision}", partial(compare, context, name, precision))


def no_weights() -> Row:
    """Say what is missing."""
    raise Skipped(f"{VARIABLE} names no .weights file of a shipped network, and no folder of such")


@lru_cache(maxsize=2)
def detector(name: str, where: str, small: bool) -> Detector:
    """Return a detector with real weights; small: published ones at 192 x 128, the digits are small anyway."""
    width, height = (192, 128) if small and name != "digits" else (None, None)
    return Detector(load_network(resources.bundled_cfg(name), real_weights()[name], where, width=width, height=height))


def compare(context: Context, name: str, precision: Any) -> Row:
    """Compare a precision with fp32 on the same backend, and fp32 with NumPy."""
    opencv()  # reads images
    weights = real_weights()[name]
    other = "numpy" if precision == "fp32" else context.backend
    worst, failed, count, maps = {"iou": 1.0, "score": 0.0}, list[str](), 0, 0.0
    least, most = ALLOWED[precision]
    for path in images(weights):
        array = image.read(path)
        want, want_heads = seen(detector(name, other, context.small), array, "fp32")
        got, got_heads = seen(detector(name, context.backend, context.small), array, precision)
        maps = max([maps, *(distance(g, w) for g, w in zip(got_heads, want_heads, strict=True))])
        for one, others, which in ((want, got, "is not found"), (got, want, "is found only there")):
            for label, score, box in one:
                near = [
                    (float(boxes.iou(box, b)), abs(score - s)) for other_label, s, b in others if other_label == label
                ]
                iou, apart = max(near, default=(0.0, score))
                if iou < 0.5 and score < THRESH + SURE:
                    continue  # at the threshold a rounding decides
                count += 1
                worst = {"iou": min(worst["iou"], iou), "score": max(worst["score"], apart)}
                if iou < 0.5:
                    failed.append(f"{path.name}: class {label} with {score:.3f} {which}")
                elif iou < least or apart > most:
                    failed.append(f"{path.name}: class {label}: overlap {iou:.3f}, scores {apart:.3f} apart")
    row = {"network": name, "precision": precision, "against": f"fp32 on {other}", "images": len(images(weights))}
    return {**row, "boxes": count // 2, "least_iou": worst["iou"], "scores_apart": worst["score"], "maps_relative": maps,
            "failed": failed}  # fmt: skip


def seen(
    by: Detector, array: np.ndarray, precision: Any
) -> tuple[list[tuple[int, float, np.ndarray]], list[np.ndarray]]:
    """Return the objects in an image as (class, score, box), and the heads' maps."""
    be = by.network.backend
    by.precision = precision
    maps = [be.to_numpy(y) for y in by.network.predict(by.input([array]), precision=precision)]
    found = by.detect(array, THRESH)
    return [(d.class_id, d.confidence, np.asarray(d.relative)) for d in found], maps
