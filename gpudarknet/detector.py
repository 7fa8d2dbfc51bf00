"""Object detection on images, with class names: the inference pipeline's boxes as objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import boxes
from .backend import Backend
from .cfg import Config
from .data.datafile import read_names
from .errors import DataError
from .inference import ImageSource, InferencePipeline, ScoredBoxes
from .network import Network, load_network

HIDDEN_PREFIX = "dont_show"  # objects of classes whose names start with this are not reported


@dataclass(frozen=True)
class Detection:
    """One object of one class in one image. confidence is 0 to 1.

    box: (left, top, width, height) in pixels, not clipped to the image. relative: (center x, center y, width, height) as
    fractions of the image's width and height, as in Darknet's label and JSON files.
    """

    label: str
    class_id: int
    confidence: float
    box: tuple[float, float, float, float]
    relative: tuple[float, float, float, float]


class Detections(list[Detection]):
    """The objects of one image, sorted by descending confidence: a list that also converts to arrays."""

    @property
    def xyxy(self) -> np.ndarray:
        """Return the boxes as (K, 4) left, top, right, bottom in pixels."""
        return np.array(
            [(d.box[0], d.box[1], d.box[0] + d.box[2], d.box[1] + d.box[3]) for d in self], np.float32
        ).reshape(-1, 4)

    @property
    def confidence(self) -> np.ndarray:
        """Return the confidences (K,)."""
        return np.array([d.confidence for d in self], np.float32)

    @property
    def class_id(self) -> np.ndarray:
        """Return the class indices (K,)."""
        return np.array([d.class_id for d in self], int)

    def to_supervision(self) -> Any:
        """Convert to supervision.Detections, with data["class_name"]. Raises DataError if supervision is not installed."""
        try:
            import supervision
        except ImportError:
            raise DataError(
                "to_supervision: the package supervision is not installed; pip install supervision"
            ) from None
        names = np.array([d.label for d in self], str)
        return supervision.Detections(
            xyxy=self.xyxy, confidence=self.confidence, class_id=self.class_id, data={"class_name": names}
        )


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
        precision: Literal["fp32", "tf32", "fp16"] = "fp32",
    ):
        if isinstance(names, (str, Path)):
            names, source = read_names(names), str(names)
        else:
            source = "names"
        network = cfg if isinstance(cfg, Network) else load_network(cfg, weights, backend, batch, width, height)
        super().__init__(network, letterbox or bool(network.net.letter_box), precision)
        self.names = labels(names, self.head.num_labels, source, network.config.path)

    def detect(self, image: ImageSource, thresh: float = 0.25, nms: float = 0.45) -> Detections:
        """Detect the objects in one image, sorted by descending confidence.

        image: a path, a uint8 array (H, W, 3) in RGB, or anything else that `image.as_image` accepts. thresh: only
        objects with a higher confidence are returned. nms: of two boxes of one class that overlap by more than this, the
        less confident one is suppressed; 0 keeps all. A box above thresh for several classes yields one Detection for
        each. Raises ImageError.
        """
        return self.detect_batch([image], thresh, nms)[0]

    def detect_batch(
        self, images: Iterable[ImageSource], thresh: float = 0.25, nms: float = 0.45, batch: int | None = None
    ) -> list[Detections]:
        """Detect the objects in several images, of any sizes, in one forward pass; one list per image.

        batch: the most images per forward pass, as in `detect_stream`.
        """
        return [self.to_detections(scored) for scored in self.detect_boxes(images, thresh, nms, batch)]

    def detect_stream(
        self, images: Iterable[ImageSource], thresh: float = 0.25, nms: float = 0.45, batch: int = 8
    ) -> Iterator[Detections]:
        """Detect the objects in a stream of images, finite or not: a generator of one list per image, in order.

        The network processes `batch` images at a time. On a GPU, it computes one batch while the next is read and
        uploaded, so a batch's results appear once the next batch has been read; with NumPy, at once. An unreadable image
        raises ImageError after the results of all earlier batches.
        """
        return (self.to_detections(scored) for scored in self.run(images, thresh, nms, batch))

    def detect_boxes(
        self, images: Iterable[ImageSource], thresh: float = 0.25, nms: float = 0.45, batch: int | None = None
    ) -> list[ScoredBoxes]:
        """Like `detect_batch`, but return boxes with all class probabilities, as arrays."""
        return list(self.run(images, thresh, nms, batch))

    def to_detections(self, scored: ScoredBoxes) -> Detections:
        """Convert arrays to Detections, sorted by descending confidence, without classes named dont_show..."""
        k, c = np.nonzero(scored.probs)
        order = np.argsort(-scored.probs[k, c], kind="stable")
        k, c = k[order], c[order]
        relative = scored.boxes[k].astype(float)
        pixels = boxes.to_ltwh(relative * [scored.width, scored.height, scored.width, scored.height])
        rows = zip(c.tolist(), scored.probs[k, c].tolist(), pixels.tolist(), relative.tolist(), strict=True)
        return Detections(
            Detection(self.names[i], i, confidence, tuple(box), tuple(fractions))
            for i, confidence, box, fractions in rows
            if not self.names[i].startswith(HIDDEN_PREFIX)
        )


def labels(names: Sequence[str] | None, classes: int, source: str, cfg: str) -> tuple[str, ...]:
    """Return a label for each class of a cfg: `names`, read from `source`, or "class 7". Raises DataError if too few."""
    if names is None:
        return tuple(f"class {i}" for i in range(classes))
    if len(names) < classes:
        raise DataError(
            f"{source}: has {len(names)} names, but {cfg} has {classes} classes; use the names of its data set"
        )
    return tuple(names)
