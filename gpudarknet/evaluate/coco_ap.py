"""COCO's average precision, computed by faster-coco-eval."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from .. import boxes as geometry
from ..errors import DataError
from .detection import ImageEval

METRICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")


def coco(images: Sequence[ImageEval], names: Sequence[str]) -> tuple[dict[str, float], np.ndarray]:
    """Return COCO's six average precisions by name, and AP per class (C,); NaN if there is no truth of that kind.

    Needs faster-coco-eval, which computes the same as pycocotools. Object sizes are in pixels of the image. Raises DataError.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise DataError('COCO AP needs the package faster-coco-eval; pip install "gpudarknet[coco]"') from None
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id, img in enumerate(images, 1):
        size = np.array([img.scored.width, img.scored.height] * 2)
        for box, k in zip(geometry.to_ltwh(img.truth[:, :4]) * size, img.truth[:, 4], strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": int(k) + 1,
                                "bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": 0})  # fmt: skip
        ltwh = geometry.to_ltwh(img.scored.boxes) * size
        for i, k in zip(*np.nonzero(img.scored.probs), strict=True):
            results.append({"image_id": image_id, "category_id": int(k) + 1, "bbox": ltwh[i].tolist(),
                            "score": float(img.scored.probs[i, k])})  # fmt: skip
    if not annotations or not results:
        return dict.fromkeys(METRICS, 0.0), np.full(len(names), np.nan)
    listed = [{"id": n, "width": img.scored.width, "height": img.scored.height} for n, img in enumerate(images, 1)]
    categories = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    with redirect_stdout(io.StringIO()):
        truth = COCO({"images": listed, "annotations": annotations, "categories": categories})
        run = COCOeval_faster(truth, truth.loadRes(results), iouType="bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    precision = run.eval["precision"][:, :, :, 0, -1]  # IoU, recall, class, all sizes, most detections
    per_class = np.array([p[p > -1].mean() if (p > -1).any() else np.nan for p in precision.transpose(2, 0, 1)])
    return {name: float(run.stats[i]) if run.stats[i] >= 0 else np.nan for i, name in enumerate(METRICS)}, per_class
