"""OpenCV-compatible API: OpenCV 4's `DetectionModel` and `ClassificationModel`, for Darknet networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError, ImageError
from .net import Net
from .read import readNet

Size = Sequence[int]


class Model:
    """A network with its preprocessing. Images are uint8 (H, W, 3) in OpenCV's channel order, BGR."""

    def __init__(self, model: Any, config: str = ""):
        self._net: Net = model if isinstance(model, Net) else readNet(model, config)
        self._size = (0, 0)
        self._scale: Any = 1.0
        self._mean: Any = (0.0, 0.0, 0.0, 0.0)
        self._swap, self._crop = False, False
        self._names = self._net.getUnconnectedOutLayersNames()

    def setInputParams(
        self, scale: Any = 1.0, size: Size = (0, 0), mean: Any = (0, 0, 0, 0), swapRB: bool = False, crop: bool = False
    ) -> None:
        """Set the preprocessing: resize to size (width, height), subtract mean, multiply by scale, swap red and blue."""
        self._scale, self._size, self._mean = scale, (int(size[0]), int(size[1])), mean
        self._swap, self._crop = bool(swapRB), bool(crop)

    def setInputSize(self, *size: Any) -> Model:
        """Set the input size: (width, height), as one argument or as two."""
        width, height = size if len(size) == 2 else size[0]
        self._size = int(width), int(height)
        return self

    def setInputScale(self, scale: Any) -> Model:
        """Set the factor for pixel values: one for all channels or one per channel."""
        self._scale = scale
        return self

    def setInputMean(self, mean: Any) -> Model:
        """Set the mean to subtract from pixel values, one value per channel."""
        self._mean = mean
        return self

    def setInputSwapRB(self, swapRB: bool) -> Model:
        """Set whether to swap red and blue: Darknet networks expect RGB, OpenCV reads BGR."""
        self._swap = bool(swapRB)
        return self

    def setInputCrop(self, crop: bool) -> Model:
        """Set whether to crop the image to the input's aspect ratio instead of stretching it."""
        self._crop = bool(crop)
        return self

    def setOutputNames(self, outNames: Sequence[str]) -> Model:
        """Set the layers whose outputs `predict` returns."""
        self._names = tuple(outNames)
        return self

    def setPreferableBackend(self, backendId: int) -> Model:
        """See Net.setPreferableBackend."""
        self._net.setPreferableBackend(backendId)
        return self

    def setPreferableTarget(self, targetId: int) -> Model:
        """See Net.setPreferableTarget."""
        self._net.setPreferableTarget(targetId)
        return self

    def enableWinograd(self, useWinograd: bool) -> Model:
        """No-op, see Net.enableWinograd."""
        return self

    def predict(self, frame: Any) -> tuple[np.ndarray, ...]:
        """Run the network on an image; return its outputs like Net.forward."""
        import cv2

        if frame is None or np.size(frame) == 0:
            raise ImageError("predict: the image is empty; did imread find the file?")
        if min(self._size) < 1:
            raise DataError("predict: the input size is not set; call setInputParams(size=(width, height)) first")
        scale = np.asarray(self._scale, np.float32).reshape(-1)
        mean = tuple(np.asarray(self._mean, float).reshape(-1))
        blob = cv2.dnn.blobFromImage(frame, 1.0, self._size, mean, self._swap, self._crop)
        self._net.setInput(blob * (scale if scale.size == 1 else scale[: blob.shape[1]].reshape(-1, 1, 1)))
        return self._net.forward(self._names)


class DetectionModel(Model):
    """Object detection with a network that has [yolo] or [region] layers."""

    _nms_across = False

    def setNmsAcrossClasses(self, value: bool) -> DetectionModel:
        """Set whether boxes of different classes suppress each other."""
        self._nms_across = bool(value)
        return self

    def getNmsAcrossClasses(self) -> bool:
        """Return whether boxes of different classes suppress each other."""
        return self._nms_across

    def detect(self, frame: Any, confThreshold: float = 0.5, nmsThreshold: float = 0.0) -> tuple[Any, Any, Any]:
        """Detect objects: class ids (K,) int32, confidences (K,) float32, boxes (K, 4) int32 left, top, width, height.

        Three empty tuples if there are none. Boxes are in pixels and clipped to the image, sorted by class, then by
        descending confidence. Each box has only its best class.
        """
        rows = np.concatenate([y.reshape(-1, y.shape[-1]) for y in self.predict(frame)])
        H, W = np.shape(frame)[
            :2
        ]  # as in OpenCV, also with setInputCrop, although boxes then refer to the cropped image
        scores = rows[:, 5:].max(axis=1)
        rows, scores = rows[scores >= confThreshold], scores[scores >= confThreshold]
        classes = rows[:, 5:].argmax(axis=1).astype(np.int32)
        boxes = to_pixels(rows[:, :4], W, H)
        kept = self._nms(classes, scores, boxes, confThreshold, nmsThreshold)
        if not len(kept):
            return (), (), ()
        return classes[kept], scores[kept], boxes[kept]

    def _nms(self, classes: Any, scores: Any, boxes: Any, confidence: float, nms: float) -> np.ndarray:
        """Return the indices of the boxes that NMS keeps, in OpenCV's order."""
        import cv2

        if not nms:
            return np.arange(len(boxes))
        groups = (
            [np.arange(len(boxes))] if self._nms_across else [np.flatnonzero(classes == c) for c in np.unique(classes)]
        )
        kept = []
        for group in groups:
            chosen = cv2.dnn.NMSBoxes(boxes[group].tolist(), scores[group].tolist(), confidence, nms)
            kept.append(group[np.asarray(chosen, int).reshape(-1)])
        return np.concatenate(kept) if kept else np.arange(0)


class ClassificationModel(Model):
    """Image classification."""

    _softmax = False

    def setEnableSoftmaxPostProcessing(self, enable: bool) -> ClassificationModel:
        """Set whether the outputs are passed through a softmax."""
        self._softmax = bool(enable)
        return self

    def getEnableSoftmaxPostProcessing(self) -> bool:
        """Return whether the outputs are passed through a softmax."""
        return self._softmax

    def classify(self, frame: Any) -> tuple[int, float]:
        """Return the most probable class of an image and its confidence."""
        y = self.predict(frame)[0].reshape(-1)
        if self._softmax:
            e = np.exp(y - y.max())
            y = e / e.sum()
        best = int(y.argmax())
        return best, float(y[best])


def to_pixels(boxes: np.ndarray, W: int, H: int) -> np.ndarray:
    """Convert relative center boxes (K, 4) to pixels: left, top, width, height, truncated and clipped as in OpenCV."""
    scaled = np.nan_to_num(boxes * np.array([W, H, W, H], np.float32))
    x, y, w, h = np.clip(scaled, -(2**30), 2**30).astype(np.int32).T
    left, top = np.clip(x - w // 2, 0, W - 1), np.clip(y - h // 2, 0, H - 1)
    return np.stack([left, top, np.clip(w, 1, W - left), np.clip(h, 1, H - top)], axis=1).astype(np.int32)
