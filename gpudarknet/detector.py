"""Object detection on images, with class names: the inference pipeline's boxes as objects."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from . import boxes
from .backend import Backend
from .cfg import Config
from .data.datafile import read_names
from .detections import Detection as Detection
from .detections import Detections as Detections
from .errors import DataError
from .image.batches import is_file
from .inference import ImageSource, InferencePipeline, ScoredBoxes
from .network import Network, Precision, load_network

MAX_DET = 300  # most objects of an image, as in ultralytics
HIDDEN_PREFIX = "dont_show"  # objects of classes whose names start with this are not reported


class Detector(InferencePipeline):
    """An object detector: an `InferencePipeline` with class names, whose stages are methods of a detector too.

    `cfg` may be a loaded Network, whose weights are then shared.
    names: the path of a .names file, a list, or None for labels such as "class 7". letterbox: keep the aspect ratio and
    pad with gray instead of stretching; `letter_box=1` in the cfg's [net] has the same effect. batch, width and height:
    as in `load_network`; precision: as in `Network.predict`. Raises DataError if the network has no detection head or
    there are too few names.
    """

    def __init__(
        self,
        cfg: str | Path | Config | Network,
        weights: str | Path | None = None,
        names: str | Path | Sequence[str] | None = None,
        backend: str | Backend = "auto",
        letterbox: bool = False,
        batch: int = 1,
        width: int | None = None,
        height: int | None = None,
        precision: Precision = "fp32",
    ):
        if isinstance(names, (str, Path)):
            names, source = read_names(names), str(names)
        else:
            source = "names"
        network = cfg if isinstance(cfg, Network) else load_network(cfg, weights, backend, batch, width, height)
        super().__init__(network, letterbox or bool(network.net.letter_box), precision)
        self.names = labels(names, self.head.num_labels, source, network.config.path)

    def detect(
        self, image: ImageSource, thresh: float = 0.25, nms: float = 0.45, max_det: int | None = MAX_DET
    ) -> Detections:
        """Detect the objects in one image, sorted by descending confidence.

        image: a path, a uint8 array (H, W, 3) in RGB, or anything else that `image.as_image` accepts. thresh: only
        objects with a higher confidence are returned. nms: of two boxes of one class that overlap by more than this, the
        less confident one is suppressed; 0 keeps all. A box above thresh for several classes yields one Detection for
        each. max_det: the most Detections, the most confident; None for all. Raises ImageError; DataError if a number is
        out of range.
        """
        return self.detect_batch([image], thresh, nms, max_det=max_det)[0]

    def detect_batch(
        self,
        images: Iterable[ImageSource],
        thresh: float = 0.25,
        nms: float = 0.45,
        batch: int | None = 8,
        max_det: int | None = MAX_DET,
        keep: bool = True,
    ) -> list[Detections]:
        """Detect the objects in several images, of any sizes; one list per image.

        batch: the most images per forward pass; None: all at once. The others: as in `detect` and `detect_stream`.
        """
        return list(self._detections(images, thresh, nms, batch, max_det, keep))

    def detect_stream(
        self,
        images: Iterable[ImageSource],
        thresh: float = 0.25,
        nms: float = 0.45,
        batch: int = 8,
        max_det: int | None = MAX_DET,
        keep: bool = False,
    ) -> Iterator[Detections]:
        """Detect the objects in a stream of images, finite or not: a generator of one list per image, in order.

        The network processes `batch` images at a time. While it computes one batch, the next is read, so a batch's results
        appear once the sources of the next are known; on a CPU, those of arrays at once. An unreadable image raises ImageError
        after the results of all earlier batches. keep: the results refer to the images, so that `Detections.image`, `plot` and
        others can use them; results of files read them again without it.
        """
        return self._detections(images, thresh, nms, batch, max_det, keep)

    def _detections(
        self,
        images: Iterable[ImageSource],
        thresh: float,
        nms: float,
        batch: int | None,
        max_det: int | None,
        keep: bool,
    ) -> Iterator[Detections]:
        check_max_det(max_det)
        results = self.run_images(images, *check_fractions(thresh, nms), batch)

        def convert(source: ImageSource, img: np.ndarray, scored: ScoredBoxes) -> Detections:
            known = source if keep or is_file(source) else None
            return self.to_detections(scored, max_det, known, img if keep else None)

        return (convert(*result) for result in results)

    def detect_boxes(
        self, images: Iterable[ImageSource], thresh: float = 0.25, nms: float = 0.45, batch: int | None = 8
    ) -> list[ScoredBoxes]:
        """Like `detect_batch`, but return boxes with all class probabilities, as arrays."""
        return list(self.run(images, *check_fractions(thresh, nms), batch))

    def to_detections(
        self,
        scored: ScoredBoxes,
        max_det: int | None = None,
        source: ImageSource = None,
        pixels: np.ndarray | None = None,
    ) -> Detections:
        """Convert arrays to Detections, sorted by descending confidence, without classes named dont_show...

        max_det: the most Detections; None for all. source, pixels: as in `Detections`.
        """
        check_max_det(max_det)
        k, c = np.nonzero(scored.probs)
        order = np.argsort(-scored.probs[k, c], kind="stable")
        order = order[reported(tuple(self.names))[c[order]]][:max_det]
        k, c = k[order], c[order]
        relative = scored.boxes[k].astype(float)
        ltwh = boxes.to_ltwh(relative * [scored.width, scored.height, scored.width, scored.height])
        rows = zip(c.tolist(), scored.probs[k, c].tolist(), ltwh.tolist(), relative.tolist(), strict=True)
        items = (Detection(self.names[i], i, conf, tuple(box), tuple(fractions)) for i, conf, box, fractions in rows)
        return Detections(items, names=self.names, shape=(scored.height, scored.width), source=source, pixels=pixels)


@lru_cache
def reported(names: tuple[str, ...]) -> np.ndarray:
    """Return for each class whether its objects are reported."""
    return np.array([not name.startswith(HIDDEN_PREFIX) for name in names])


def check_fractions(thresh: float, nms: float) -> tuple[float, float]:
    """Return thresh and nms. Raises DataError if one is not in 0 to 1."""
    for name, value in (("thresh", thresh), ("nms", nms)):
        if not (hasattr(value, "__float__") and 0 <= value <= 1):
            raise DataError(f"{name} {value}: must be 0 to 1, for example {0.25 if name == 'thresh' else 0.45}")
    return thresh, nms


def check_max_det(max_det: int | None) -> None:
    """Raise DataError if max_det is neither None nor an integer of at least 1."""
    if max_det is not None and not (hasattr(max_det, "__index__") and operator.index(max_det) >= 1):
        raise DataError(f"max_det {max_det}: must be an integer of at least 1, or None for all")


def labels(names: Sequence[str] | None, classes: int, source: str, cfg: str) -> tuple[str, ...]:
    """Return a label for each class of a cfg: `names`, read from `source`, or "class 7". Raises DataError if too few."""
    if names is None:
        return tuple(f"class {i}" for i in range(classes))
    if len(names) < classes:
        raise DataError(
            f"{source}: has {len(names)} names, but {cfg} has {classes} classes; use the names of its data set"
        )
    return tuple(names)
