"""Darknet-compatible API: the functions of libdarknet that scripts call. Paths are str or bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import backend, boxes, image
from ..array import Array
from ..data.datafile import DataFile, read_names
from ..errors import DataError
from ..inference import InferencePipeline
from ..network import Network, load_network
from .structs import BOX, DETECTION, DETNUMPAIR, IMAGE, METADATA

AnyPath = str | bytes | os.PathLike[str]


class Handle:
    """A loaded network and the outputs of its last run.

    It also unpacks into network, class_names and colors, the three results of load_network in the AlexeyAB fork.
    """

    def __init__(self, network: Network, batch: int):
        self.network, self.batch = network, batch
        self.stretched, self.letterboxed = InferencePipeline(network), InferencePipeline(network, letterbox=True)
        self.outputs: list[Array] = []
        self.skipped: set[int] = set()
        self.names: list[str] = []
        self.colors: dict[str, tuple[int, int, int]] = {}

    def __iter__(self) -> Iterator[Any]:
        return iter((self, self.names, self.colors))


def path(name: AnyPath) -> str:
    """Convert a path from bytes or str to str."""
    return os.fsdecode(name)


def load_net_custom(config_file: AnyPath, weights: AnyPath | None, clear: int = 0, batch_size: int = 1) -> Handle:
    """Load a network for batches of batch_size images; clear=1 resets the count of images seen.

    It runs on the GPU if available. Raises CfgError, WeightsError.
    """
    network = load_network(path(config_file), path(weights) if weights else None, batch=batch_size)
    if clear:
        network.seen = 0
    return Handle(network, batch_size)


def load_net(config_file: AnyPath, weights: AnyPath | None, clear: int = 0) -> Handle:
    """Load a network for single images, like `load_net_custom`."""
    return load_net_custom(config_file, weights, clear, 1)


def load_meta(data_file: AnyPath) -> METADATA:
    """Read the class names of a .data file. Raises DataError."""
    names = [name.encode() for name in read_names(DataFile.read(path(data_file)).names_path())]
    return METADATA(len(names), names)


def free_network_ptr(net: Handle) -> None:
    """Release a network's weights and outputs."""
    net.network.weights, net.outputs = [], []


def network_width(net: Handle) -> int:
    """Return the width of the network's input, in pixels."""
    return net.network.width


def network_height(net: Handle) -> int:
    """Return the height of the network's input, in pixels."""
    return net.network.height


def network_dimensions(net: Handle) -> tuple[int, int, int]:
    """Return (width, height, channels) of the network's input."""
    return net.network.width, net.network.height, net.network.channels


def reset_rnn(net: Handle) -> None:
    """Reset the state of recurrent layers."""
    for weights in net.network.weights:
        weights.pop("state", None)


def set_gpu(number: int) -> None:
    """Make a GPU current; no-op without a GPU."""
    be = backend.get("auto")
    if be.current_device() is not None:
        be.xp.cuda.Device(number).use()


def add_skipped_class(net: Handle, class_id: int) -> None:
    """Stop reporting boxes of a class."""
    net.skipped.add(class_id)


def del_skipped_class(net: Handle, class_id: int) -> None:
    """Report boxes of a skipped class again."""
    net.skipped.discard(class_id)


def clear_skipped_classes(net: Handle) -> None:
    """Report boxes of all classes again."""
    net.skipped.clear()


# Images


def make_image(w: int, h: int, c: int) -> IMAGE:
    """Return a black image."""
    return IMAGE.from_planes(np.zeros((c, h, w), np.float32))


def copy_image_from_bytes(im: IMAGE, data: bytes) -> None:
    """Fill an image from bytes (h, w, c), scaled to 0 to 1. Raises DataError if there are too few."""
    count = im.w * im.h * im.c
    if len(data) < count:
        raise DataError(
            f"copy_image_from_bytes: {len(data)} bytes for {im.w} x {im.h} x {im.c}; resize the image to the network's input"
        )
    pixels = np.frombuffer(data, np.uint8, count).reshape(im.h, im.w, im.c)
    im.planes()[0] = pixels.transpose(2, 0, 1) / np.float32(255)


def load_image(file: AnyPath, w: int = 0, h: int = 0) -> IMAGE:
    """Read an image; with w and h, resize it. Raises ImageError."""
    img = image.read(path(file))
    size = (w, h) if w and h else img.shape[1::-1]
    return IMAGE.from_planes(image.network_input(img, *size))


def letterbox_image(im: IMAGE, w: int, h: int) -> IMAGE:
    """Return an image resized with its aspect ratio and padded with gray."""
    return IMAGE.from_planes(image.letterbox(im.pixels(), w, h).transpose(2, 0, 1))


def rgbgr_image(im: IMAGE) -> None:
    """Swap red and blue, in place."""
    planes = im.planes()[0]
    planes[[0, 2]] = planes[[2, 0]]


def free_image(im: IMAGE) -> None:
    """No-op: Python frees an image with its last reference."""


# Running


def predict(net: Handle, data: Any) -> np.ndarray:
    """Run the network on a pointer to floats (c, h, w); return its last output, flat."""
    w, h, c = network_dimensions(net)
    return run(net, np.ctypeslib.as_array(data, (net.batch, c, h, w)))


def predict_image(net: Handle, im: IMAGE) -> np.ndarray:
    """Run the network on an image, stretched to its input; return its last output, flat."""
    return run(net, net.stretched.preprocess([im.pixels()]))


def predict_image_letterbox(net: Handle, im: IMAGE) -> np.ndarray:
    """Run the network on an image, letterboxed to its input; return its last output, flat."""
    return run(net, net.letterboxed.preprocess([im.pixels()]))


def run(net: Handle, x: Any) -> np.ndarray:
    """Run the network on x (N, C, H, W); store its outputs for `get_network_boxes`."""
    net.outputs = net.stretched.predict(x)
    return net.network.backend.to_numpy(net.outputs[-1]).ravel()


# Boxes


def get_network_boxes(
    net: Handle, w: int, h: int, thresh: float, hier: float = 0.5, map: object = None, relative: int = 0, num: Any = None,
    letter: int = 0,
) -> list[DETECTION]:  # fmt: skip
    """Return the boxes of the last run with objectness above thresh, for an image of w x h pixels.

    Boxes are in pixels, or with relative=1 in fractions of the image; num[0] is set to their number. `hier` and `map` have
    no effect, as in Darknet.
    """
    (dets,) = decode(net, w, h, thresh, relative, letter, 1)
    if num is not None:
        num[0] = len(dets)
    return dets


def network_predict_batch(
    net: Handle, im: IMAGE, batch_size: int, w: int, h: int, thresh: float, hier: float = 0.5, map: object = None,
    relative: int = 0, letter: int = 0,
) -> list[DETNUMPAIR]:  # fmt: skip
    """Run the network on images of its input size, concatenated in one IMAGE; return the boxes of each image.

    As in Darknet, the IMAGE's own width and height are ignored; scripts set them to w and h.
    """
    width, height, channels = network_dimensions(net)
    run(net, np.ctypeslib.as_array(im.data, (batch_size, channels, height, width)))
    return [DETNUMPAIR(len(dets), dets) for dets in decode(net, w, h, thresh, relative, letter, batch_size)]


def decode(net: Handle, w: int, h: int, thresh: float, relative: int, letter: int, batch: int) -> list[list[DETECTION]]:
    """Decode the boxes of the last run, by image."""
    pipeline = net.letterboxed if letter else net.stretched
    unit = np.float32(1) if relative else np.array([w, h, w, h], np.float32)
    dets: list[list[DETECTION]] = []
    for rows in pipeline.decode(net.outputs, thresh, [(w, h)] * batch):
        rows[:, [5 + i for i in net.skipped if 5 + i < rows.shape[1]]] = 0
        xywh = (rows[:, 1:5] * unit).tolist()
        dets.append([DETECTION(BOX(*box), row[5:], float(row[0])) for row, box in zip(rows, xywh, strict=True)])
    return dets


def do_nms_sort(dets: list[DETECTION], total: int, classes: int, thresh: float) -> None:
    """NMS per class, by probability: set the probabilities of suppressed boxes to 0, in place."""
    if total:
        probs = boxes.nms(box_array(dets[:total]), np.stack([d.prob for d in dets[:total]]), thresh)
        for det, prob in zip(dets, probs, strict=False):
            det.prob = prob


def do_nms_obj(dets: list[DETECTION], total: int, classes: int, thresh: float) -> None:
    """NMS across classes, by objectness: set objectness and probabilities of suppressed boxes to 0, in place."""
    if total:
        objectness = np.array([[d.objectness] for d in dets[:total]], np.float32)
        for det, (kept,) in zip(dets, boxes.nms(box_array(dets[:total]), objectness, thresh), strict=False):
            if kept == 0:
                det.objectness, det.prob = 0.0, np.zeros_like(det.prob)


def box_array(dets: list[DETECTION]) -> np.ndarray:
    """Return boxes as an array (K, 4) of center x, y, width, height."""
    return np.array([(d.bbox.x, d.bbox.y, d.bbox.w, d.bbox.h) for d in dets], np.float64).reshape(-1, 4)


def free_detections(dets: object, count: int) -> None:
    """No-op: Python frees boxes with their last reference."""


def free_batch_detections(pairs: object, count: int) -> None:
    """No-op, like `free_detections`."""
