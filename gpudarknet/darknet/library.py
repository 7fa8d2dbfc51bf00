"""What scripts called in libdarknet: load a network, run it, read boxes, suppress. Paths are str or bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import backend, boxes, image
from ..data.datafile import DataFile, read_names
from ..errors import DataError
from ..network import Network, load_network
from .records import BOX, DETECTION, DETNUMPAIR, IMAGE, METADATA


class Handle:
    """A loaded network, and the outputs of its last run.

    It can also be unpacked as the three things that the AlexeyAB fork's load_network returns: network, class_names, colours.
    """

    def __init__(self, network: Network, batch: int):
        self.network, self.batch = network, batch
        self.outputs: list[Any] = []
        self.skipped: set[int] = set()
        self.names: list[str] = []
        self.colors: dict[str, tuple[int, int, int]] = {}

    def __iter__(self) -> Iterator[Any]:
        return iter((self, self.names, self.colors))


def path(name: Any) -> str:
    """Return a path that a script gave as bytes or as text."""
    return os.fsdecode(name)


def load_net_custom(config_file: Any, weights: Any, clear: int = 0, batch_size: int = 1) -> Handle:
    """Load a network for batches of batch_size pictures; clear=1 forgets how many images it has seen.

    It runs on the GPU where there is one. Raises CfgError, WeightsError.
    """
    network = load_network(path(config_file), path(weights) if weights else None, batch=batch_size)
    if clear:
        network.seen = 0
    return Handle(network, batch_size)


def load_net(config_file: Any, weights: Any, clear: int = 0) -> Handle:
    """Load a network for single pictures, as `load_net_custom`."""
    return load_net_custom(config_file, weights, clear, 1)


def load_meta(data_file: Any) -> METADATA:
    """Read the class names that a .data file names. Raises DataError."""
    names = [name.encode() for name in read_names(DataFile.read(path(data_file)).names_path())]
    return METADATA(len(names), names)


def free_network_ptr(net: Handle) -> None:
    """Let go of a network's weights and outputs."""
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
    """Forget what recurrent layers remember."""
    for own in net.network.weights:
        own.pop("state", None)


def set_gpu(number: int) -> None:
    """Make a GPU the current one; nothing where there is none."""
    be = backend.get("auto")
    if be.name == "cupy":
        be.xp.cuda.Device(number).use()


def add_skipped_class(net: Handle, class_id: int) -> None:
    """Give a class no more boxes."""
    net.skipped.add(class_id)


def del_skipped_class(net: Handle, class_id: int) -> None:
    """Give a skipped class boxes again."""
    net.skipped.discard(class_id)


def clear_skipped_classes(net: Handle) -> None:
    """Give all classes boxes again."""
    net.skipped.clear()


# Pictures


def make_image(w: int, h: int, c: int) -> IMAGE:
    """Make a black picture."""
    return IMAGE.of(np.zeros((c, h, w), np.float32))


def copy_image_from_bytes(im: IMAGE, data: bytes) -> None:
    """Fill a picture from bytes (h, w, c), which become 0 to 1. Raises DataError where there are too few."""
    count = im.w * im.h * im.c
    if len(data) < count:
        raise DataError(
            f"copy_image_from_bytes: {len(data)} bytes for {im.w} x {im.h} x {im.c}; resize the picture to the network's input"
        )
    pixels = np.frombuffer(data, np.uint8, count).reshape(im.h, im.w, im.c)
    im.planes()[0] = pixels.transpose(2, 0, 1) / np.float32(255)


def load_image(file: Any, w: int = 0, h: int = 0) -> IMAGE:
    """Read a picture; with w and h, resize it. Raises ImageError."""
    picture = image.read(path(file))
    if w and h:
        return IMAGE.of(image.network_input(picture, w, h))
    return IMAGE.of(picture.transpose(2, 0, 1) / np.float32(255))


def letterbox_image(im: IMAGE, w: int, h: int) -> IMAGE:
    """Return a picture resized at its own proportions, the rest grey."""
    return IMAGE.of(image.letterbox(im.planes()[0].transpose(1, 2, 0), w, h).transpose(2, 0, 1))


def rgbgr_image(im: IMAGE) -> None:
    """Swap red and blue, in place."""
    planes = im.planes()[0]
    planes[[0, 2]] = planes[[2, 0]]


def free_image(im: IMAGE) -> None:
    """Change nothing: Python frees a picture when the last variable lets go of it."""


# Running


def predict(net: Handle, data: Any) -> np.ndarray:
    """Run the network on a pointer to floats (c, h, w); return its last output, flat."""
    w, h, c = network_dimensions(net)
    return run(net, np.ctypeslib.as_array(data, (net.batch, c, h, w)))


def predict_image(net: Handle, im: IMAGE) -> np.ndarray:
    """Run the network on a picture, stretched to its input; return its last output, flat."""
    return run(net, fitted(net, im, letterbox=False))


def predict_image_letterbox(net: Handle, im: IMAGE) -> np.ndarray:
    """Run the network on a picture at its own proportions, the rest grey; return its last output, flat."""
    return run(net, fitted(net, im, letterbox=True))


def fitted(net: Handle, im: IMAGE, letterbox: bool) -> np.ndarray:
    """Return a picture as the network's input (1, c, h, w)."""
    w, h, _ = network_dimensions(net)
    planes = im.planes()
    if (im.w, im.h) == (w, h):
        return planes
    return image.network_input(planes[0].transpose(1, 2, 0), w, h, letterbox)[None]


def run(net: Handle, x: np.ndarray) -> np.ndarray:
    """Run the network on x (N, C, H, W), and keep its outputs for `get_network_boxes`."""
    net.outputs = net.network.predict(x)
    return net.network.backend.to_numpy(net.outputs[-1]).ravel()


# Boxes


def get_network_boxes(
    net: Handle, w: int, h: int, thresh: float, hier: float = 0.5, map: Any = None, relative: int = 0, num: Any = None,
    letter: int = 0,
) -> list[DETECTION]:  # fmt: skip
    """Return the boxes of the last run whose objectness is above thresh, for a picture of w x h pixels.

    Boxes are in pixels of it, or with relative=1 in parts of it; num[0] becomes their number. `hier` and `map` change
    nothing, as in Darknet.
    """
    (found,) = decoded(net, w, h, thresh, relative, letter, 1)
    if num is not None:
        num[0] = len(found)
    return found


def network_predict_batch(
    net: Handle, im: IMAGE, batch_size: int, w: int, h: int, thresh: float, hier: float = 0.5, map: Any = None,
    relative: int = 0, letter: int = 0,
) -> list[DETNUMPAIR]:  # fmt: skip
    """Run the network on pictures of its own size, one after the other in an IMAGE; return each picture's own boxes.

    As in Darknet the IMAGE's own width and height do not count; scripts put there what w and h say.
    """
    width, height, channels = network_dimensions(net)
    run(net, np.ctypeslib.as_array(im.data, (batch_size, channels, height, width)))
    return [DETNUMPAIR(len(dets), dets) for dets in decoded(net, w, h, thresh, relative, letter, batch_size)]


def decoded(
    net: Handle, w: int, h: int, thresh: float, relative: int, letter: int, batch: int
) -> list[list[DETECTION]]:
    """Read the boxes of the last run, picture by picture."""
    network = net.network
    rows = network.detections(net.outputs, thresh)
    placed = boxes.to_image(rows[:, 2:6], network.width, network.height, w, h, bool(letter))
    placed = placed if relative else placed * np.array([w, h, w, h], np.float32)
    rows[:, [6 + i for i in net.skipped if 6 + i < rows.shape[1]]] = 0
    found: list[list[DETECTION]] = [[] for _ in range(batch)]
    for row, box in zip(rows, placed.tolist(), strict=True):
        found[int(row[0])].append(DETECTION(BOX(*box), row[6:], float(row[1])))
    return found


def do_nms_sort(dets: list[DETECTION], total: int, classes: int, thresh: float) -> None:
    """Of boxes of one class that overlap by more than thresh, set all but the most probable to 0; in place."""
    if total:
        probs = boxes.nms(corners(dets[:total]), np.stack([d.prob for d in dets[:total]]), thresh)
        for det, prob in zip(dets, probs, strict=False):
            det.prob = prob


def do_nms_obj(dets: list[DETECTION], total: int, classes: int, thresh: float) -> None:
    """Of boxes of any class that overlap by more than thresh, set all but the one of greatest objectness to 0; in place."""
    if total:
        objectness = np.array([[d.objectness] for d in dets[:total]], np.float32)
        for det, (kept,) in zip(dets, boxes.nms(corners(dets[:total]), objectness, thresh), strict=False):
            if kept == 0:
                det.objectness, det.prob = 0.0, np.zeros_like(det.prob)


def corners(dets: list[DETECTION]) -> np.ndarray:
    """Return boxes as an array (K, 4) centre x, y, width, height."""
    return np.array([(d.bbox.x, d.bbox.y, d.bbox.w, d.bbox.h) for d in dets], np.float64).reshape(-1, 4)


def free_detections(dets: Any, count: int) -> None:
    """Change nothing: Python frees boxes when the last variable lets go of them."""


def free_batch_detections(pairs: Any, count: int) -> None:
    """Change nothing, as `free_detections`."""
