"""How good a classifier is: the part of images whose class is the most probable one, or among the most probable.

Source: validate_classifier_single in src/classifier.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .. import image
from ..data import Boxes, Faults
from ..errors import DataError, ImageError
from ..network import Network


@dataclass(frozen=True)
class Accuracy:
    """Right ones of so many images: by the most probable class, and by the `top` most probable."""

    images: int
    top: int
    first: float
    among: float


def accuracy(
    network: Network, paths: Sequence[str], classes: Callable[[str, Faults], Boxes], top: int = 5,
    faults: Faults | None = None, done: Callable[[int], None] = lambda count: None,
) -> Accuracy:  # fmt: skip
    """Classify each image, its middle, and compare with its class; classes is a `data.classifier_boxes`.

    Images that cannot be read, or that have no class, are noted in `faults` and do not count. done(count) is called after
    each image. Raises DataError where no image counts.
    """
    faults = faults or Faults()
    ranks: list[int] = []
    tree = getattr(network.nodes[network.heads[-1]].layer, "tree", None)
    for count, path in enumerate(paths, 1):
        try:
            x = image.classifier_input(image.read(path, network.channels), network.width, network.height)[None]
        except ImageError as e:
            faults.image(e)
            continue
        known = classes(path, faults)
        if len(known):
            p = network.backend.to_numpy(network.predict(x)[-1]).reshape(-1)
            p = tree.hierarchy(p) if tree else p
            ranks.append(int(np.argsort(-p, kind="stable").tolist().index(int(known[0, 4]))))
        done(count)
    if not ranks:
        raise DataError(f"{paths[0]}: none of {len(paths)} images can be read and has a label's name in its path")
    found = np.array(ranks)
    return Accuracy(len(found), top, float((found < 1).mean()), float((found < top).mean()))
