"""From pictures to objects: read, resize, run, decode, suppress (test_detector in src/detector.c)."""

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
from .plan import uploader

Image = Any  # whatever `image.as_image` takes: a path, a uint8 array (H, W, 3) RGB or (H, W), a PIL image...
HIDDEN = "dont_show"  # a class whose name begins so is found, but not shown


@dataclass(frozen=True)
class Detection:
    """One object of one class in one image. confidence is 0 to 1.

    box: (left, top, width, height) in pixels of the image, not clipped to it. relative: (centre x, centre y, width, height)
    as parts of the image's width and height, which is the form of Darknet's label and JSON files.
    """

    label: str
    class_id: int
    confidence: float
    box: tuple[float, float, float, float]
    relative: tuple[float, float, float, float]


class Detections(list[Detection]):
    """The objects of one image, the most confident first: a list, with what other libraries take."""

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
        """Return the class numbers (K,)."""
        return np.array([d.class_id for d in self], int)

    def to_supervision(self) -> Any:
        """Return them as supervision.Detections, with data["class_name"]. Raises DataError without that package."""
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
class Found:
    """What is left of an image's boxes after suppression, in Darknet's order (by the last class's probability, then the
    one before it...).

    boxes: (K, 4) centre x, y, width, height as parts of the image. probs: (K, classes), 0 where not above the threshold.
    width, height: of the image, in pixels.
    """

    boxes: np.ndarray
    probs: np.ndarray
    width: int
    height: int


class Detector:
    """A network that finds objects, with its class names. `cfg` may be a loaded Network, whose weights it then shares.

    names: a path of a .names file, a list, or None, which makes labels such as "class 7". letterbox: keep the image's
    proportions and fill the rest with grey, instead of stretching it; `letter_box=1` in the cfg's [net] says so too. batch,
    width and height are those of `load_network`, precision that of `Network.predict`. Raises DataError for a network without
    detection heads, and for too few names.
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
            names, where = read_names(names), str(names)
        else:
            where = "names"
        network = cfg if isinstance(cfg, Network) else load_network(cfg, weights, backend, batch, width, height)
        self.network = network
        self.head = last_head(network)
        self.names = labels(names, self.head.labels, where, network.config.path)
        self.letterbox = letterbox or bool(network.net.letter_box)
        self.precision = precision

    def detect(self, image: Image, thresh: float = 0.25, nms: float = 0.45) -> Detections:
        """Find the objects in one image, the most confident first.

        image: a path, a uint8 array (H, W, 3) in RGB, or what else `image.as_image` takes. thresh: the confidence that must
        be exceeded. nms: the overlap above which the less confident of two boxes of one class goes, 0
        keeps all. A box that exceeds thresh for several classes gives a Detection for each. Raises ImageError.
        """
        return self.detect_batch([image], thresh, nms)[0]

    def detect_batch(
        self, images: Iterable[Image], thresh: float = 0.25, nms: float = 0.45, batch: int | None = None
    ) -> list[Detections]:
        """Find the objects in several images, of any sizes, with one forward pass; one list for each image.

        batch: give the network at most so many at once, as `detect_stream` does.
        """
        return [self.detections(found) for found in self.find(images, thresh, nms, batch)]

    def detect_stream(
        self, images: Iterable[Image], thresh: float = 0.25, nms: float = 0.45, batch: int = 8
    ) -> Iterator[Detections]:
        """Find the objects in images as they come, without end if need be: a generator of one list for each, in order.

        The network gets `batch` images at once. On a GPU it works on them while the next are read and sent there, so it gives
        a batch's results when it has read the next; with NumPy, before. An image that cannot be read raises ImageError after the
        results of the batches before.
        """
        return (self.detections(found) for found in self._found(images, thresh, nms, batch))

    def find(
        self, images: Iterable[Image], thresh: float = 0.25, nms: float = 0.45, batch: int | None = None
    ) -> list[Found]:
        """As `detect_batch`, but give boxes with all their class probabilities, as arrays."""
        return list(self._found(images, thresh, nms, batch))

    def _found(self, images: Iterable[Image], thresh: float, nms: float, batch: int | None) -> Iterator[Found]:
        net, source, computing = self.network, iter(images), list[tuple[list[np.ndarray], list[Any]]]()

        def results() -> Iterator[Found]:
            while computing:
                pictures, outputs = computing.pop(0)
                rows = net.detections(outputs, thresh)
                yield from (self.suppress(rows[rows[:, 0] == i, 1:], p, nms) for i, p in enumerate(pictures))

        while taken := list(islice(source, batch)):
            try:
                pictures = [image.as_image(one, net.channels) for one in taken]
            except ImageError:
                yield from results()
                raise
            x = self.send(pictures)
            yield from results()
            computing.append((pictures, net.predict(x, precision=self.precision)))
            if net.backend.cublas is None:  # it has computed already
                yield from results()
        yield from results()

    def send(self, pictures: Sequence[np.ndarray]) -> Any:
        """Bring uint8 images (H, W, C) to the network as `rows` takes them: as `input` does, on a GPU as bytes on their way."""
        be = self.network.backend
        if be.cublas is None:
            return self.input(pictures)
        with self.network.on_device():
            return uploader(be).upload(pictures, list(map(self._fit, pictures)))

    def _fit(self, picture: np.ndarray) -> tuple[int, int]:
        (H, W), net = picture.shape[:2], self.network
        return boxes.fit(W, H, net.width, net.height) if self.letterbox else (net.width, net.height)

    def input(self, pictures: Sequence[np.ndarray]) -> Any:
        """Resize uint8 images (H, W, C) to the network's input: float32 (N, C, H, W), 0 to 1, where the network is."""
        net, be = self.network, self.network.backend
        with net.on_device():
            fitted = [resize.network_input(be, be.asarray(p), net.width, net.height, *self._fit(p)) for p in pictures]
            return be.xp.stack(fitted)

    def rows(self, x: Any, thresh: float) -> np.ndarray:
        """Run the network on what `send` or `input` gives; return boxes (K, 6 + classes) as `Network.detections` does."""
        return self.network.detections(self.network.predict(x, precision=self.precision), thresh)

    def suppress(self, rows: np.ndarray, picture: np.ndarray, nms: float) -> Found:
        """Drop doubles among one image's boxes (K, 5 + classes) and bring the rest to the image's proportions."""
        H, W = picture.shape[:2]
        net, probs = self.network, rows[:, 5:]
        rows = rows[(rows[:, 0] != 0) & probs.any(axis=1) & np.isfinite(rows).all(axis=1)]
        rows = rows[np.lexsort(-rows[:, 5:].T)]  # Darknet sorts by each class in turn, so its last class rules
        placed = boxes.to_image(rows[:, 1:5], net.width, net.height, W, H, self.letterbox)
        probs = rows[:, 5:]
        if nms:
            probs = boxes.nms(placed, probs, nms, self.head.nms_kind, self.head.beta_nms)
        kept = probs.any(axis=1)
        return Found(placed[kept], probs[kept], W, H)

    def detections(self, found: Found) -> Detections:
        """Turn arrays into Detections, the most confident first; classes named dont_show... are left out."""
        k, c = np.nonzero(found.probs)
        order = np.argsort(-found.probs[k, c], kind="stable")
        k, c = k[order], c[order]
        relative = found.boxes[k].astype(float)
        pixels = boxes.to_ltwh(relative * [found.width, found.height, found.width, found.height])
        rows = zip(c.tolist(), found.probs[k, c].tolist(), pixels.tolist(), relative.tolist(), strict=True)
        return Detections(
            Detection(self.names[i], i, confidence, tuple(box), tuple(part))
            for i, confidence, box, part in rows
            if not self.names[i].startswith(HIDDEN)
        )


def last_head(network: Network) -> DetectionHead:
    """Return the last layer that finds boxes: it says how to suppress, as in Darknet. Raises DataError where there is none."""
    layers = [network.nodes[index].layer for index in network.heads]
    heads = [layer for layer in layers if isinstance(layer, DetectionHead)]
    if not heads:
        raise DataError(
            f"{network.config.path}: has no [yolo], [Gaussian_yolo], [region] or [detection] layer, so it finds no boxes;"
            " a classifier is run with `gpudarknet classifier predict`"
        )
    if len({head.labels for head in heads}) > 1:
        counts = ", ".join(str(head.labels) for head in heads)
        raise DataError(f"{network.config.path}: its heads differ in classes ({counts}); give them the same")
    return heads[-1]


def labels(names: Sequence[str] | None, classes: int, where: str, cfg: str) -> tuple[str, ...]:
    """Return a name for each class of a cfg: names from `where`, or "class 7". Raises DataError where there are too few."""
    if names is None:
        return tuple(f"class {i}" for i in range(classes))
    if len(names) < classes:
        raise DataError(f"{where}: has {len(names)} names, {cfg} has {classes} classes; use the names of its data set")
    return tuple(names)
