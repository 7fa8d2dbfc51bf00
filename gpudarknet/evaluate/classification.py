"""Accuracy of a classifier: the fraction of images whose class is the most probable one, or among the most probable.

Source: validate_classifier_single in src/classifier.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data import BadSamples, Boxes, recorded
from ..errors import ImageError, NothingMeasuredError
from ..inference import classify
from ..network import Network, Precision

UNRANKED = 1 << 30  # the rank of a class that is unknown


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-`top` accuracy over the images.

    unlabeled: images whose class is unknown; inner: images whose class is not a leaf of the tree. Both count as wrong.
    """

    images: int
    top: int
    top1: float
    top_k: float
    unlabeled: int = 0
    inner: int = 0


def accuracy(
    network: Network, paths: Sequence[str], classes: Callable[[str, BadSamples], Boxes], top: int = 5,
    bad_samples: BadSamples | None = None, done: Callable[[int], None] = lambda count: None,
    leaves: np.ndarray | None = None, precision: Precision = "fp32",
) -> Accuracy:  # fmt: skip
    """Classify the center crop of each image and compare with its class; classes is a `data.classifier_boxes`.

    Unreadable images are not counted; they and images without exactly one class are recorded in `bad_samples` or, without it,
    reported by a DataWarning at the end. An image without a class counts as wrong; of several classes the first is right, as
    in Darknet. In a network with a tree of classes, only leaves are predicted; leaves: bool (classes,), by default those of the
    tree. done(count) is called after each image. precision: as in `Network.predict`. Raises
    NothingMeasuredError if no image can be read or none has a class.
    """
    tree = getattr(network.nodes[network.heads[-1]].layer, "tree", None)
    if tree and leaves is None:
        leaves = tree.leaves()
    ranks: list[int] = []
    unlabeled = inner = 0
    with recorded(bad_samples) as samples:
        for count, path in enumerate(paths, 1):
            try:
                probs, _ = classify(network, path, precision)
                known = classes(path, samples)
                if leaves is not None:
                    probs = np.where(leaves, probs, 0)
                order = np.argsort(-probs, kind="stable").tolist()
                ranks.append(order.index(int(known[0, 4])) if len(known) else UNRANKED)
                unlabeled += not len(known)
                inner += leaves is not None and len(known) > 0 and not leaves[int(known[0, 4])]
            except ImageError as e:
                samples.add_image(e)
            done(count)
    if len(ranks) == unlabeled:
        raise NothingMeasuredError(
            f"nothing is measured: none of {len(paths)} images can be read and has a label in its path; check the list and the"
            " labels"
        )
    rank, top = np.array(ranks), min(top, len(probs))
    return Accuracy(len(rank), top, float((rank < 1).mean()), float((rank < top).mean()), unlabeled, inner)
