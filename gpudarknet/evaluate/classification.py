"""Accuracy of a classifier: the fraction of images whose class is the most probable one, or among the most probable.

Source: validate_classifier_single in src/classifier.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data import BadSamples, Boxes
from ..errors import DataError, ImageError
from ..inference import classify
from ..network import Network


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-`top` accuracy over the images."""

    images: int
    top: int
    top1: float
    top_k: float


def accuracy(
    network: Network, paths: Sequence[str], classes: Callable[[str, BadSamples], Boxes], top: int = 5,
    bad_samples: BadSamples | None = None, done: Callable[[int], None] = lambda count: None,
) -> Accuracy:  # fmt: skip
    """Classify the center crop of each image and compare with its class; classes is a `data.classifier_boxes`.

    Images that are unreadable or have no class are recorded in `bad_samples` and not counted. done(count) is called after
    each image. Raises DataError if no image can be counted.
    """
    bad_samples = bad_samples or BadSamples()
    ranks: list[int] = []
    for count, path in enumerate(paths, 1):
        try:
            probs, _ = classify(network, path)
        except ImageError as e:
            bad_samples.add_image(e)
            continue
        known = classes(path, bad_samples)
        if len(known):
            ranks.append(int(np.argsort(-probs, kind="stable").tolist().index(int(known[0, 4]))))
        done(count)
    if not ranks:
        raise DataError(f"{paths[0]}: none of {len(paths)} images can be read and has a label's name in its path")
    rank = np.array(ranks)
    return Accuracy(len(rank), top, float((rank < 1).mean()), float((rank < top).mean()))
