"""OpenCV-compatible API: OpenCV 4's `Model`, `DetectionModel` and `ClassificationModel`, for Darknet networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..errors import ImageError
from .arguments import REQUIRED, flag, integer, kind, number, resolve, scalar, size, texts, to_array
from .errors import ArgumentError, NetError, opencv_errors, raises_opencv_errors
from .net import Net
from .read import path, readNet
from .replacement import CLASSES, OPENCV, ReplacementMeta

Scalar = tuple[float, float, float, float]


def net_argument(value: Any) -> Any:
    """Convert a network, ours or OpenCV's."""
    if not isinstance(value, Net):
        raise ArgumentError(f"must be a Net, not {kind(value)}")
    return value


FORMS = (
    {"model": (path, REQUIRED), "config": (path, "")},
    {"network": (net_argument, REQUIRED)},
)
SIZE_FORMS = (
    {"size": (size, REQUIRED)},
    {"width": (integer, REQUIRED), "height": (integer, REQUIRED)},
)


class ModelMeta(ReplacementMeta):
    """The type of models: a model of a network that is OpenCV's, such as one read from ONNX, is OpenCV's."""

    @opencv_errors
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return OpenCV's model for OpenCV's network."""
        if cls.__name__ not in CLASSES:  # a subclass, with arguments of its own
            return super().__call__(*args, **kwargs)
        form, values = resolve(cls.__name__, args, kwargs, *FORMS)
        net = values["network"] if form else readNet(**values)
        return super().__call__(net) if type(net) is Net else OPENCV[cls.__name__](net)


@raises_opencv_errors
class Model(metaclass=ModelMeta):
    """A network with its preprocessing: Model(model, config="") reads files as readNet does, Model(network) takes a Net.

    Images are uint8 (H, W, 3) in OpenCV's channel order, BGR, as arrays or cv2.UMat. The methods that set something return
    the model.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        form, values = resolve(type(self).__name__, args, kwargs, *FORMS)
        self._net: Net = values["network"] if form else readNet(**values)
        shape = self._net._input_shape
        self._size = (shape[3], shape[2]) if len(shape) == 4 else (0, 0)
        self._scale: Scalar = scalar([1.0] * 4)
        self._mean: Scalar = scalar(None)
        self._swap, self._crop = False, False
        self._names = self._net.getUnconnectedOutLayersNames()

    def setInputParams(
        self, scale: float = 1.0, size: Any = (0, 0), mean: Any = (0, 0, 0, 0), swapRB: bool = False, crop: bool = False
    ) -> None:
        """Set the preprocessing: resize to size (width, height), subtract mean, multiply by scale, swap red and blue.

        mean: up to four numbers, one per channel.
        """
        self._scale = scalar([number(1.0 if scale is None else scale)] * 4)
        self._size, self._mean, self._swap, self._crop = to_size(size), scalar(mean), flag(swapRB), flag(crop)

    def setInputSize(self, *args: Any, **kwargs: Any) -> Model:
        """Set the input size.

        setInputSize(size), with (width, height), setInputSize(width, height)
        """
        form, values = resolve("setInputSize", args, kwargs, *SIZE_FORMS)
        self._size = (values["width"], values["height"]) if form else values["size"]
        return self

    def setInputScale(self, scale: Any) -> Model:
        """Set the factor for pixel values: one for all channels or one per channel."""
        values = scalar(scale)
        if not values[0]:
            raise ArgumentError("setInputScale: a factor of 0 makes every image black")
        self._scale = values if any(values[1:]) else scalar([values[0]] * 4)
        return self

    def setInputMean(self, mean: Any) -> Model:
        """Set the mean to subtract from pixel values, one value per channel."""
        self._mean = scalar(mean)
        return self

    def setInputSwapRB(self, swapRB: bool) -> Model:
        """Set whether to swap red and blue: Darknet networks expect RGB, OpenCV reads BGR."""
        self._swap = flag(swapRB)
        return self

    def setInputCrop(self, crop: bool) -> Model:
        """Set whether to crop the image to the input's aspect ratio instead of stretching it."""
        self._crop = flag(crop)
        return self

    def setOutputNames(self, outNames: Sequence[str]) -> Model:
        """Set the layers whose outputs `predict` returns."""
        self._names = texts(outNames)
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
        flag(useWinograd)
        return self

    def predict(self, frame: Any, outs: Any = None) -> tuple[np.ndarray, ...]:
        """Run the network on an image; return its outputs like Net.forward, those of a cv2.UMat as cv2.UMat."""
        if isinstance(frame, cv2.UMat):
            as_umat: Any = cv2.UMat
            return tuple(as_umat(y) for y in self.predict(frame.get()))
        if frame is None or np.size(frame) == 0:
            raise ImageError("predict: the image is empty; did imread find the file?")
        if min(self._size) < 1:
            raise NetError("predict: the input size is not set; call setInputParams(size=(width, height)) first")
        params = cv2.dnn.Image2BlobParams()
        params.scalefactor, params.mean, params.size, params.swapRB = self._scale, self._mean, self._size, self._swap
        params.paddingmode = cv2.dnn.DNN_PMODE_CROP_CENTER if self._crop else cv2.dnn.DNN_PMODE_NULL
        self._net.setInput(cv2.dnn.blobFromImageWithParams(frame, params))
        return self._net.forward(outBlobNames=self._names)


to_size = size  # `size` is also an argument of setInputParams


@raises_opencv_errors
class DetectionModel(Model):
    """Object detection with a network that has [yolo] or [region] layers. It turns off the NMS of [region] itself."""

    _nms_across = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._net._region_nms = False

    def setNmsAcrossClasses(self, value: bool) -> DetectionModel:
        """Set whether boxes of different classes suppress each other."""
        self._nms_across = flag(value)
        return self

    def getNmsAcrossClasses(self) -> bool:
        """Return whether boxes of different classes suppress each other."""
        return self._nms_across

    def detect(self, frame: Any, confThreshold: float = 0.5, nmsThreshold: float = 0.0) -> tuple[Any, Any, Any]:
        """Detect objects: class ids (K,) int32, confidences (K,) float32, boxes (K, 4) int32 left, top, width, height.

        Three empty tuples if there are none. Boxes are in pixels and clipped to the image, sorted by class, then by
        descending confidence; without NMS in the order of the rows. Each box has only its best class.
        """
        confidence = number(0.5 if confThreshold is None else confThreshold)
        nms = number(nmsThreshold)
        outputs = self.predict(frame := to_array(frame))
        if (last := self._net.getLayer(self._net.getLayerNames()[-1])).type != "Region":
            raise NetError(
                f"detect: the last layer, {last.name}, is no [yolo] or [region]; use predict or ClassificationModel"
            )
        H, W = frame.shape[:2]  # with setInputCrop too, as in OpenCV, although boxes then refer to the cropped image
        found = [best(y, confidence) for y in outputs if y.ndim == 2]  # OpenCV finds no rows in feature maps
        if not any(len(scores) for _, scores, _ in found):
            return (), (), ()
        classes, scores, relative = map(np.concatenate, zip(*found, strict=True))
        boxes = to_pixels(relative, W, H)
        kept = self._nms(classes, scores, boxes, confidence, nms)
        return (classes[kept], scores[kept], boxes[kept]) if len(kept) else ((), (), ())

    def _nms(self, classes: Any, scores: Any, boxes: Any, confidence: float, nms: float) -> np.ndarray:
        """Return the indices of the boxes that NMS keeps, in OpenCV's order."""
        if not nms:
            return np.arange(len(boxes))
        groups = (
            [np.arange(len(boxes))] if self._nms_across else [np.flatnonzero(classes == c) for c in np.unique(classes)]
        )
        kept = []
        for group in groups:
            chosen = cv2.dnn.NMSBoxes(boxes[group].tolist(), scores[group].tolist(), confidence, nms)
            kept.append(group[np.asarray(chosen, int).reshape(-1)])
        return np.concatenate(kept)


@raises_opencv_errors
class ClassificationModel(Model):
    """Image classification with a network that has one output."""

    _softmax = False

    def setEnableSoftmaxPostProcessing(self, enable: bool) -> ClassificationModel:
        """Set whether the outputs are passed through a softmax."""
        self._softmax = flag(enable)
        return self

    def getEnableSoftmaxPostProcessing(self) -> bool:
        """Return whether the outputs are passed through a softmax."""
        return self._softmax

    def classify(self, frame: Any) -> tuple[int, float]:
        """Return the most probable class of an image and its confidence."""
        outputs = self.predict(to_array(frame))
        if len(outputs) != 1:
            raise NetError(f"classify: the network has {len(outputs)} outputs; setOutputNames selects one")
        y = outputs[0].reshape(-1)
        if self._softmax:
            e = np.exp(y - y.max())
            y = e / e.sum()
        best = int(y.argmax())
        return best, float(y[best])


def best(rows: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best class (K,), its score (K,) and the box (K, 4) of the rows whose score is at least `confidence`."""
    probs = rows[:, 5:]
    scores = probs.max(axis=1)
    kept = scores >= confidence
    return probs[kept].argmax(axis=1).astype(np.int32), scores[kept], rows[kept, :4]


def to_pixels(boxes: np.ndarray, W: int, H: int) -> np.ndarray:
    """Convert relative center boxes (K, 4) to pixels: left, top, width, height, truncated and clipped as in OpenCV."""
    scaled = np.nan_to_num(boxes * np.array([W, H, W, H], np.float32))
    x, y, w, h = np.clip(scaled, -(2**30), 2**30).astype(np.int32).T
    left, top = np.clip(x - w // 2, 0, W - 1), np.clip(y - h // 2, 0, H - 1)
    return np.stack([left, top, np.clip(w, 1, W - left), np.clip(h, 1, H - top)], axis=1).astype(np.int32)
