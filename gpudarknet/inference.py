"""The inference pipeline: read, resize, run, decode, suppress (test_detector in Darknet's src/detector.c).

Everything that detects objects uses it: `Detector` with `tiles`, the command line, `evaluate`, and the Darknet-compatible API.
The stages' arithmetic is in `image/` (reading, resizing), the heads in `layers/` (decoding) and `boxes.py` (NMS).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import boxes, image
from .backend import PendingRows
from .errors import DataError, ImageError
from .image.batches import Batch, BatchReader
from .layers import DetectionHead
from .network import Network, Precision
from .ops import resize

ImageSource = Any  # anything `image.as_image` accepts: a path, a uint8 array (H, W, 3) RGB or (H, W), a PIL image...
Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class ScoredBoxes:
    """One image's boxes after NMS, with all class probabilities.

    They are in Darknet's order: by the last class's probability, then the one before it...

    boxes: (K, 4) center x, y, width, height as fractions of the image. probs: (K, classes), 0 if not above the
    threshold. width, height: of the image, in pixels. seconds: from the network's start to decoded boxes, divided by the
    images of the batch; in a stream, the next batch is read meanwhile.
    """

    boxes: np.ndarray
    probs: np.ndarray
    width: int
    height: int
    seconds: float = 0.0

    def most_confident(self, count: int | None) -> ScoredBoxes:
        """Keep the `count` most probable pairs of a box and a class; None keeps all."""
        if count is None or np.count_nonzero(self.probs) <= count:
            return self
        probs = np.zeros_like(self.probs)
        kept = np.argsort(-self.probs, axis=None, kind="stable")[:count]
        probs.flat[kept] = self.probs.flat[kept]
        rows = probs.any(axis=1)
        return replace(self, boxes=self.boxes[rows], probs=probs[rows])


class ImageResult(NamedTuple):
    """One image's boxes, its source as given and its pixels as read: uint8 (H, W, C)."""

    source: ImageSource
    image: image.Image
    boxes: ScoredBoxes


class InferencePipeline:
    """The stages from an image to its boxes, and `run`, which connects them.

    letterbox: keep the aspect ratio and pad with gray instead of stretching. precision: as in `Network.predict`. Raises
    DataError, BackendError if the backend cannot compute in it.
    """

    def __init__(self, network: Network, letterbox: bool = False, precision: Precision = "fp32"):
        network.check_precision(precision)
        self.network, self.letterbox, self.precision = network, letterbox, precision

    @property
    def head(self) -> DetectionHead:
        """The last detection head, which holds the NMS settings, as in Darknet.

        Raises DataError if there is none, or if the heads have different numbers of classes.
        """
        layers = [self.network.nodes[index].layer for index in self.network.heads]
        heads = [layer for layer in layers if isinstance(layer, DetectionHead)]
        if not heads:
            raise DataError(
                f"{self.network.config.path}: has no [yolo], [Gaussian_yolo], [region] or [detection] layer, so it predicts"
                " no boxes; run a classifier with `gpudarknet classifier predict`"
            )
        if len({head.num_labels for head in heads}) > 1:
            counts = ", ".join(str(head.num_labels) for head in heads)
            config, other = self.network.config, next(head for head in heads if head.num_labels != heads[0].num_labels)
            line = config.line(next(node.index for node in self.network.nodes if node.layer is other), "classes")
            raise DataError(f"{config.path}:{line}: the heads have different class counts ({counts}); make them equal")
        return heads[-1]

    def run(
        self, images: Iterable[ImageSource], thresh: float, nms: float, batch: int | None = None, class_agnostic: bool = False
    ) -> Iterator[ScoredBoxes]:  # fmt: skip
        """Detect objects in a stream of images: `run_images`, without the images."""
        return (result.boxes for result in self.run_images(images, thresh, nms, batch, class_agnostic=class_agnostic))

    def run_images(
        self,
        images: Iterable[ImageSource],
        thresh: float,
        nms: float,
        batch: int | None = None,
        *,
        class_agnostic: bool = False,
        on_error: Callable[[ImageSource, ImageError], None] | None = None,
        read: Callable[[Any], image.Image] | None = None,
    ) -> Iterator[ImageResult]:
        """Detect objects in a stream of images, `batch` at a time (None: all at once); yield one result per image, in order.

        While a batch is computed, the next is read, in threads if it consists of files: its sources are known before the
        results appear. Only on a CPU, arrays are not read ahead. At most two batches of images are held. class_agnostic: as in
        `suppress`. An unreadable image raises ImageError after the results of all earlier batches; with on_error, that is
        called with its source and error, and it has no result. read: reads a source, in place of `read`. Raises DataError if
        batch is below 1, or for one image or path.
        """
        if batch is not None and batch < 1:
            raise DataError(f"batch {batch}: must be at least 1")
        if is_one_image(images):
            raise DataError("images: is one image or path, not several; pass [image], or gpudarknet.sources(path)")
        asynchronous = self.network.backend.uploads_images  # predict returns at once

        def results(loaded: Batch, found: PendingRows, start: float) -> Iterator[ImageResult]:
            sizes = [(img.shape[1], img.shape[0]) for _, img in loaded]
            decoded = self.by_image(found.read(), sizes)
            seconds = (time.perf_counter() - start) / len(sizes)
            for rows, size, (source, img) in zip(decoded, sizes, loaded, strict=True):
                if class_agnostic:
                    rows = rows[rows[:, 0] > thresh]
                yield ImageResult(source, img, replace(self.suppress(rows, size, nms, class_agnostic), seconds=seconds))

        pending = iter(list[ImageResult]())  # of the batch that a GPU is computing
        with BatchReader(read or self.read, images, batch, self.network.backend.reader_threads(), on_error) as reader:
            while True:
                try:
                    loaded = reader.get()
                except Exception:
                    yield from pending
                    raise
                if not loaded:
                    break
                if not asynchronous:
                    reader.read_ahead()
                x = self.upload([img for _, img in loaded])
                yield from pending
                start = time.perf_counter()
                # class_agnostic: only objectness is compared with thresh, in `results`
                found = self.infer(x, float("-inf") if class_agnostic else thresh)
                pending = results(loaded, found, start)
                if not asynchronous:
                    yield from pending
            yield from pending

    def read(self, source: ImageSource) -> image.Image:
        """Return an image as uint8 (H, W, C), with the network's channels. Raises ImageError."""
        return image.as_image(source, self.network.channels)

    def upload(self, images: Sequence[np.ndarray]) -> Any:
        """Convert images to network input, for `predict`. On a GPU: start uploading their bytes and return.

        On the CPU, and for float32 images, the same as `preprocess`.
        """
        be = self.network.backend
        if not be.uploads_images or any(img.dtype != np.uint8 for img in images):
            return self.preprocess(images)
        with self.network.on_device():
            return be.upload(images, list(map(self._fit, images)))

    def preprocess(self, images: Sequence[np.ndarray]) -> Any:
        """Resize images to network input: float32 (N, C, H, W), 0 to 1, on the network's device.

        An image is (H, W, C), uint8 or float32 in 0 to 1.
        """
        net, be = self.network, self.network.backend

        fitted: list[Any] = [None] * len(images)

        def fit(k: int) -> None:
            img = images[k]
            if img.dtype != np.uint8:
                fitted[k] = be.asarray(image.network_input(img, net.width, net.height, self.letterbox))
            else:
                fitted[k] = resize.network_input(be, be.asarray(img), net.width, net.height, *self._fit(img))

        with net.on_device():
            be.run_parallel([partial(fit, k) for k in range(len(images))])
            return be.xp.stack(fitted)

    def _fit(self, img: np.ndarray) -> Size:
        (H, W), net = img.shape[:2], self.network
        return boxes.letterbox_size(W, H, net.width, net.height) if self.letterbox else (net.width, net.height)

    def infer(self, x: Any, thresh: float) -> PendingRows:
        """Start to run the network on the result of `upload` or `preprocess`, and to decode its boxes: `Network.detect`."""
        return self.network.detect(x, thresh, self.precision)

    def predict(self, x: Any) -> list[Any]:
        """Run the network on the result of `upload` or `preprocess`; return its heads' outputs."""
        return self.network.predict(x, precision=self.precision)

    def decode(self, outputs: Sequence[Any], thresh: float, sizes: Sequence[Size]) -> list[np.ndarray]:
        """Decode the heads' outputs for images of these sizes: rows (K, 5 + classes) for each image.

        A row is: objectness, box center x, y, width, height as fractions of the image, and the probability of each class, 0 if
        not above thresh. Rows with infinite or NaN elements are dropped. Raises DataError for a network without detection heads.
        """
        return self.by_image(self.network.decode(outputs, thresh), sizes)

    def by_image(self, rows: np.ndarray, sizes: Sequence[Size]) -> list[np.ndarray]:
        """Return the rows of each image, as `decode` does, from those of `Network.decode` or `Network.detect`."""
        net = self.network
        rows = rows[np.isfinite(rows).all(axis=1)]
        decoded = []
        for i, (W, H) in enumerate(sizes):
            own = rows[rows[:, 0] == i, 1:]
            own[:, 1:5] = boxes.to_image(own[:, 1:5], net.width, net.height, W, H, self.letterbox)
            decoded.append(own)
        return decoded

    def suppress(self, rows: np.ndarray, size: Size, nms: float, class_agnostic: bool = False) -> ScoredBoxes:
        """Apply NMS, of the head's kind, to one image's rows from `decode`; nms = 0 keeps all boxes.

        class_agnostic: suppress boxes of any class by objectness and IoU, and return the objectness as the only class, as
        Darknet does to measure recall.
        """
        head, scores = self.head, rows[:, :1] if class_agnostic else rows[:, 5:]
        valid = (rows[:, 0] != 0) & scores.any(axis=1)
        xywh, scores = rows[valid, 1:5], scores[valid]
        # Darknet sorts by each class in turn, so the last class has priority
        order = np.lexsort(-scores.T[scores.any(axis=0)]) if len(scores) else np.arange(0)
        xywh, scores = xywh[order], scores[order]
        if nms:
            kind = ("default", 0.6) if class_agnostic else (head.nms_kind, head.beta_nms)
            scores = boxes.nms(xywh, scores, nms, *kind)
        kept = scores.any(axis=1)
        return ScoredBoxes(xywh[kept], scores[kept], *size)


def is_one_image(images: Any) -> bool:
    """Return whether what should be several images is one image, or the path of one; iterated over, it would be nonsense."""
    shape: tuple[int, ...] = getattr(images, "shape", ())
    one = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    iterable = isinstance(images, Iterable) or hasattr(images, "__getitem__")
    return one or not iterable or isinstance(images, str | bytes | bytearray)


class ClassProbabilities(NamedTuple):
    """probs: (classes,). seconds: the time that the network took."""

    probs: np.ndarray
    seconds: float


def classify(network: Network, source: ImageSource, precision: Precision = "fp32") -> ClassProbabilities:
    """Classify the center crop of an image (predict_classifier in Darknet's src/classifier.c). Raises ImageError.

    In a network with a tree of classes, a probability is the product along the path from the root. precision: as in
    `Network.predict`.
    """
    img = image.as_image(source, network.channels)
    x = image.classifier_input(img, network.width, network.height)[None]
    start = time.perf_counter()
    probs = network.backend.to_numpy(network.predict(x, precision=precision)[-1]).reshape(-1)
    seconds = time.perf_counter() - start
    tree = getattr(network.nodes[network.heads[-1]].layer, "tree", None)
    return ClassProbabilities(tree.hierarchy(probs) if tree else probs, seconds)
