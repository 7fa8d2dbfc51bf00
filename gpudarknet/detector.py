"""Object detection on images: preprocess, infer, postprocess (test_detector in Darknet's src/detector.c).

NMS itself is in `boxes.py`, resizing and drawing in `image/`, large images in `tiles.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import boxes, image
from .backend import Backend
from .cfg import Config
from .data.datafile import read_names
from .errors import DataError, ImageError
from .layers import DetectionHead
from .network import Network, load_network
from .ops import resize

ImageSource = Any  # anything `image.as_image` accepts: a path, a uint8 array (H, W, 3) RGB or (H, W), a PIL image...
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


@dataclass(frozen=True)
class ScoredBoxes:
    """One image's boxes after NMS, with all class probabilities, in Darknet's order (by the last class's probability,
    then the one before it...).

    boxes: (K, 4) center x, y, width, height as fractions of the image. probs: (K, classes), 0 if not above the
    threshold. width, height: of the image, in pixels.
    """

    boxes: np.ndarray
    probs: np.ndarray
    width: int
    height: int


class Detector:
    """An object detector: a network with its class names. `cfg` may be a loaded Network, whose weights are then shared.

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
        self.network = network
        self.head = last_head(network)
        self.names = labels(names, self.head.num_labels, source, network.config.path)
        self.letterbox = letterbox or bool(network.net.letter_box)
        self.precision = precision

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
        return (self.to_detections(scored) for scored in self._stream(images, thresh, nms, batch))

    def detect_boxes(
        self, images: Iterable[ImageSource], thresh: float = 0.25, nms: float = 0.45, batch: int | None = None
    ) -> list[ScoredBoxes]:
        """Like `detect_batch`, but return boxes with all class probabilities, as arrays."""
        return list(self._stream(images, thresh, nms, batch))

    def _stream(
        self, images: Iterable[ImageSource], thresh: float, nms: float, batch: int | None
    ) -> Iterator[ScoredBoxes]:
        net, source, pending = self.network, iter(images), list[tuple[list[np.ndarray], list[Any]]]()

        def results() -> Iterator[ScoredBoxes]:
            while pending:
                batch_images, outputs = pending.pop(0)
                rows = net.decode(outputs, thresh)
                yield from (self.postprocess(rows[rows[:, 0] == i, 1:], img, nms) for i, img in enumerate(batch_images))

        while chunk := list(islice(source, batch)):
            try:
                batch_images = [image.as_image(one, net.channels) for one in chunk]
            except ImageError:
                yield from results()
                raise
            x = self.upload(batch_images)
            yield from results()
            pending.append((batch_images, net.predict(x, precision=self.precision)))
            if not net.backend.uploads_images:  # predict was synchronous
                yield from results()
        yield from results()

    def upload(self, images: Sequence[np.ndarray]) -> Any:
        """Convert uint8 images (H, W, C) to network input, for `infer`. On a GPU: start uploading their bytes and return.

        On the CPU the same as `preprocess`.
        """
        net = self.network
        if not net.backend.uploads_images:
            return self.preprocess(images)
        with net.on_device():
            return net.backend.upload(images, list(map(self._fit, images)))

    def _fit(self, image: np.ndarray) -> tuple[int, int]:
        (H, W), net = image.shape[:2], self.network
        return boxes.letterbox_size(W, H, net.width, net.height) if self.letterbox else (net.width, net.height)

    def preprocess(self, images: Sequence[np.ndarray]) -> Any:
        """Resize uint8 images (H, W, C) to network input: float32 (N, C, H, W), 0 to 1, on the network's device."""
        net, be = self.network, self.network.backend
        with net.on_device():
            fitted = [
                resize.network_input(be, be.asarray(img), net.width, net.height, *self._fit(img)) for img in images
            ]
            return be.xp.stack(fitted)

    def infer(self, x: Any, thresh: float) -> np.ndarray:
        """Run the network on the result of `upload` or `preprocess`; return boxes (K, 6 + classes) like `Network.decode`."""
        return self.network.decode(self.network.predict(x, precision=self.precision), thresh)

    def postprocess(self, rows: np.ndarray, image: np.ndarray, nms: float) -> ScoredBoxes:
        """Map one image's boxes (K, 5 + classes) to image coordinates and apply NMS."""
        H, W = image.shape[:2]
        net, probs = self.network, rows[:, 5:]
        rows = rows[(rows[:, 0] != 0) & probs.any(axis=1) & np.isfinite(rows).all(axis=1)]
        rows = rows[np.lexsort(-rows[:, 5:].T)]  # Darknet sorts by each class in turn, so the last class has priority
        xywh = boxes.to_image(rows[:, 1:5], net.width, net.height, W, H, self.letterbox)
        probs = rows[:, 5:]
        if nms:
            probs = boxes.nms(xywh, probs, nms, self.head.nms_kind, self.head.beta_nms)
        kept = probs.any(axis=1)
        return ScoredBoxes(xywh[kept], probs[kept], W, H)

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


def last_head(network: Network) -> DetectionHead:
    """Return the last detection head, which holds the NMS settings, as in Darknet. Raises DataError if there is none."""
    layers = [network.nodes[index].layer for index in network.heads]
    heads = [layer for layer in layers if isinstance(layer, DetectionHead)]
    if not heads:
        raise DataError(
            f"{network.config.path}: has no [yolo], [Gaussian_yolo], [region] or [detection] layer, so it predicts no boxes;"
            " run a classifier with `gpudarknet classifier predict`"
        )
    if len({head.num_labels for head in heads}) > 1:
        counts = ", ".join(str(head.num_labels) for head in heads)
        raise DataError(f"{network.config.path}: its heads have different class counts ({counts}); make them equal")
    return heads[-1]


def labels(names: Sequence[str] | None, classes: int, source: str, cfg: str) -> tuple[str, ...]:
    """Return a label for each class of a cfg: `names`, read from `source`, or "class 7". Raises DataError if too few."""
    if names is None:
        return tuple(f"class {i}" for i in range(classes))
    if len(names) < classes:
        raise DataError(
            f"{source}: has {len(names)} names, but {cfg} has {classes} classes; use the names of its data set"
        )
    return tuple(names)
