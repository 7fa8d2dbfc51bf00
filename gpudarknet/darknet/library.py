"""Darknet-compatible API: the functions of libdarknet under their C names: `darknet.lib`; `__init__` has darknet.py's names.

They accept what ctypes lets scripts pass to the library: bytes, c_char_p, c_int, c_float, `byref`, pointers and arrays; and
str and paths. What would crash the library or exit the process raises DarknetError.
"""

from __future__ import annotations

import ctypes
import inspect
import os
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from .. import backend, boxes, image
from .. import network as networks
from ..array import Array
from ..data.datafile import DataFile, empty_lines
from ..errors import CfgError, DataError
from ..inference import InferencePipeline
from ..layers.gaussian_yolo import GaussianYolo
from .structs import DETNUMPAIR, IMAGE, METADATA, RECORD, counted, memory, set_best, store, view

AnyPath = str | bytes | os.PathLike[str] | ctypes.c_char_p
P = ParamSpec("P")
R = TypeVar("R")


class Handle:
    """A loaded network and the outputs of its last run.

    It is also the result of `load_network`: a sequence of the network, class_names and class_colors.
    """

    def __init__(self, network: networks.Network, batch: int):
        self.batch = batch
        self._network: networks.Network | None = network
        self.outputs: list[Array] = []
        self.skipped: set[int] = set()
        self.names: list[str] = []
        self.colors: dict[str, tuple[int, int, int]] = {}

    @property
    def network(self) -> networks.Network:
        """The network. Raises CfgError if it was freed."""
        if self._network is None:
            raise CfgError("the network was freed by free_network_ptr; load it again")
        return self._network

    def pipeline(self, letterbox: int = 0) -> InferencePipeline:
        """Return the stages that resize images for the network and decode its outputs."""
        return InferencePipeline(self.network, letterbox=bool(letterbox))

    def free(self) -> None:
        """Release the network and its outputs."""
        self._network, self.outputs = None, []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        return (self, self.names, self.colors)[index]

    def __iter__(self) -> Iterator[Any]:
        return iter((self, self.names, self.colors))


def exported(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take ctypes' numbers and strings, and check that `net` is a network, `im` an IMAGE, and numbers are.

    `num` and `data` are memory: they are passed unchanged.
    """
    parameters = inspect.signature(function).parameters
    names, numbers = tuple(parameters), {key for key, p in parameters.items() if p.annotation in ("int", "float")}
    name = function.__name__
    kinds = {"net": (Handle, "a network, the result of load_net_custom or load_network"), "im": (IMAGE, "an IMAGE")}

    def convert(parameter: str, value: Any) -> Any:
        if parameter in kinds and not isinstance(value, kinds[parameter][0]):
            raise DataError(f"{name}: {' '.join(repr(value).split()):.60} is not {kinds[parameter][1]}")
        if isinstance(value, ctypes._SimpleCData) and parameter not in ("num", "data"):
            value = value.value
        if parameter in numbers and not isinstance(value, (int, float, np.integer, np.floating)):
            raise DataError(f"{name}: {parameter} must be a number, not {value!r:.60}")
        return value

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        converted = [convert(names[i], arg) if i < len(names) else arg for i, arg in enumerate(args)]
        return function(*converted, **{key: convert(key, value) for key, value in kwargs.items()})  # type: ignore[arg-type]

    return call


def _path(name: AnyPath | None) -> str:
    """Convert a path to str, up to its first NUL, as C does. Raises DataError if it is none."""
    if not isinstance(name, (str, bytes, os.PathLike)):
        raise DataError(f"{name!r:.60} in place of a file's name")
    return os.fsdecode(name).partition("\0")[0]


# Networks


@exported
def load_network_custom(config_file: AnyPath, weights: AnyPath | None, clear: int = 0, batch: int = 1) -> Handle:
    """Load a network for batches of `batch` images; clear=1 resets the count of images seen. No weights: random ones.

    It runs on the GPU if available. Raises CfgError, WeightsError.
    """
    network = networks.load_network(_path(config_file), _path(weights) if weights else None, batch=batch)
    if clear:
        network.seen = 0
    return Handle(network, batch)


@exported
def load_network(config_file: AnyPath, weights: AnyPath | None, clear: int = 0) -> Handle:
    """Load a network for single images, like `load_network_custom`."""
    return load_network_custom(config_file, weights, clear, 1)


@exported
def get_metadata(data_file: AnyPath) -> METADATA:
    """Read the class names of a .data file, as many as its `classes` if it has this key. Raises DataError."""
    data = DataFile.read(_path(data_file))
    names = data.read_names()
    classes = data.classes if "classes" in data.keys else len(names)
    if classes > len(names):
        raise DataError(
            f"{data.path}: has classes={classes}, but {data.names_path()} has {len(names)} names{empty_lines(names)};"
            " correct one of them"
        )
    encoded = [name.encode() for name in names]
    return METADATA(classes, (ctypes.c_char_p * len(encoded))(*encoded))


@exported
def free_network_ptr(net: Handle) -> None:
    """Release a network's weights and outputs."""
    net.free()


free_network = free_network_ptr


@exported
def network_width(net: Handle) -> int:
    """Return the width of the network's input, in pixels."""
    return net.network.width


@exported
def network_height(net: Handle) -> int:
    """Return the height of the network's input, in pixels."""
    return net.network.height


@exported
def network_dimensions(net: Handle) -> tuple[int, int, int]:
    """Return (width, height, channels) of the network's input."""
    return net.network.width, net.network.height, net.network.channels


@exported
def set_batch_network(net: Handle, batch: int) -> None:
    """Set the number of images that `network_predict_ptr` runs."""
    net.batch = batch


@exported
def reset_rnn(net: Handle) -> None:
    """Reset the state of recurrent layers."""
    for weights in net.network.weights:
        weights.pop("state", None)


@exported
def cuda_set_device(number: int) -> None:
    """Make a GPU current; no-op without a GPU."""
    be = backend.get("auto")
    if be.current_device() is not None:
        be.xp.cuda.Device(number).use()


def init_cpu() -> None:
    """No-op: nothing needs initialization."""


@exported
def add_skipped_class(net: Handle, class_id: int) -> None:
    """Stop reporting boxes of a class."""
    net.skipped.add(class_id)


@exported
def del_skipped_class(net: Handle, class_id: int) -> None:
    """Report boxes of a skipped class again."""
    net.skipped.discard(class_id)


@exported
def clear_skipped_classes(net: Handle) -> None:
    """Report boxes of all classes again."""
    net.skipped.clear()


# Images


@exported
def make_image(w: int, h: int, c: int) -> IMAGE:
    """Return a black image. Raises DataError if a side is below 1."""
    if min(w, h, c) < 1:
        raise DataError(f"make_image: {w} x {h} x {c}; every side must be at least 1")
    return IMAGE.from_planes(np.zeros((c, h, w), np.float32))


@exported
def copy_image_from_bytes(im: IMAGE, data: Any) -> None:
    """Fill an image from bytes (h, w, c), scaled to 0 to 1. Raises DataError if there are too few."""
    count = im.w * im.h * im.c
    if isinstance(data, ctypes.c_char_p):
        address = ctypes.cast(data, ctypes.c_void_p).value
        data = ctypes.string_at(address, count) if address else b""
    size = memoryview(data).nbytes
    if size < count:
        raise DataError(
            f"copy_image_from_bytes: {size} bytes for {im.w} x {im.h} x {im.c}; resize the image to the network's input"
        )
    pixels = np.frombuffer(data, np.uint8, count).reshape(im.h, im.w, im.c)
    im.planes()[0] = pixels.transpose(2, 0, 1) / np.float32(255)


@exported
def load_image_color(file: AnyPath, w: int = 0, h: int = 0) -> IMAGE:
    """Read an image; with w and h, resize it. Raises ImageError."""
    if min(w, h) < 0:
        raise DataError(f"load_image: {w} x {h}; a side must be at least 1, or 0 for the image's own size")
    img = image.read(_path(file))
    size = (w, h) if w and h else img.shape[1::-1]
    return IMAGE.from_planes(image.network_input(img, *size))


@exported
def ndarray_to_image(data: Any, shape: Any, strides: Any) -> IMAGE:
    """Return the IMAGE of an array of bytes (h, w, c): pointers to its bytes, its shape and its strides in bytes."""
    h, w, c = shape[:3]
    reach = sum((side - 1) * stride for side, stride in zip((h, w, c), strides[:3], strict=True)) + 1
    pixels = np.lib.stride_tricks.as_strided(view(data, (reach,), np.uint8), (h, w, c), strides[:3])
    return IMAGE.from_planes(pixels.transpose(2, 0, 1) / np.float32(255))


@exported
def resize_image(im: IMAGE, w: int, h: int) -> IMAGE:
    """Return an image resized to w x h."""
    return IMAGE.from_planes(image.network_input(im.pixels(), w, h))


@exported
def letterbox_image(im: IMAGE, w: int, h: int) -> IMAGE:
    """Return an image resized with its aspect ratio and padded with gray."""
    return IMAGE.from_planes(image.network_input(im.pixels(), w, h, letterbox=True))


@exported
def rgbgr_image(im: IMAGE) -> None:
    """Swap red and blue, in place. Raises DataError for an image without colors."""
    if im.c < 3:
        raise DataError(f"rgbgr_image: an image of {im.c} channels has no red and blue")
    planes = im.planes()[0]
    planes[[0, 2]] = planes[[2, 0]]


@exported
def free_image(im: IMAGE) -> None:
    """No-op: Python frees an image with its last reference."""


# Running


@exported
def network_predict_ptr(net: Handle, data: Any) -> Any:
    """Run the network on floats (batch, c, h, w), a pointer or an array; return a pointer to its last output's floats."""
    w, h, c = network_dimensions(net)
    return _predict(net, view(data, (net.batch, c, h, w)))


network_predict = network_predict_ptr


@exported
def network_predict_image(net: Handle, im: IMAGE) -> Any:
    """Run the network on an image, stretched to its input; return a pointer to its last output's floats.

    Of an image with more channels than the network has, such as a color image for a gray network, the first ones count.
    """
    return _predict_image(net, im, net.pipeline())


@exported
def network_predict_image_letterbox(net: Handle, im: IMAGE) -> Any:
    """Run the network on an image, letterboxed to its input; return a pointer to its last output's floats."""
    return _predict_image(net, im, net.pipeline(letterbox=1))


def _predict_image(net: Handle, im: IMAGE, pipeline: InferencePipeline) -> Any:
    channels = net.network.channels
    if im.c < channels:
        raise DataError(f"the image has {im.c} channels, the network {channels}; make one of that many")
    return _predict(net, pipeline.preprocess([im.pixels()[..., :channels]]))


def _predict(net: Handle, x: Any) -> Any:
    """Run the network on x (N, C, H, W); store its outputs for `get_network_boxes`."""
    net.outputs = net.pipeline().predict(x)
    floats = np.array(net.network.backend.to_numpy(net.outputs[-1]), np.float32, order="C").reshape(-1)
    return counted(ctypes.c_float.from_buffer(floats.data), floats.size)


# Boxes


@exported
def get_network_boxes(
    net: Handle, w: int, h: int, thresh: float, hier: float = 0.5, map: object = None, relative: int = 0, num: Any = None,
    letter: int = 0,
) -> Any:  # fmt: skip
    """Return a pointer to the DETECTIONs of the last run with objectness above thresh, for an image of w x h pixels.

    Boxes are in pixels, or with relative=1 in fractions of the image; num[0] is set to their number. `hier` and `map` have
    no effect, as in Darknet.
    """
    pair = _decode(net, w, h, thresh, relative, letter, 1)[0]
    _set_number(num, pair.num)
    return pair.dets


@exported
def make_network_boxes(net: Handle, thresh: float = 0.0, num: Any = None) -> Any:
    """Return a pointer to as many empty DETECTIONs as the last run has above thresh."""
    count, pair = len(get_network_boxes(net, 1, 1, thresh, num=num)), DETNUMPAIR()
    store(pair, np.zeros(count), np.zeros((count, 4)), np.zeros((count, net.pipeline().head.num_labels)))
    return pair.dets


def _set_number(num: Any, value: int) -> None:
    """Store the number of detections in a pointer, a `byref` or a c_int, if given."""
    num = getattr(num, "_obj", num)  # of byref
    if isinstance(num, ctypes.c_int):
        num.value = value
    elif num is not None:
        num[0] = value


@exported
def network_predict_batch(
    net: Handle, im: IMAGE, batch_size: int, w: int, h: int, thresh: float, hier: float = 0.5, map: object = None,
    relative: int = 0, letter: int = 0,
) -> Any:  # fmt: skip
    """Run the network on images of its input size, concatenated in one IMAGE; return a pointer to one DETNUMPAIR for each.

    As in Darknet, the IMAGE's own width and height are ignored; scripts set them to w and h.
    """
    width, height, channels = network_dimensions(net)
    _predict(net, view(im.data, (batch_size, channels, height, width)))
    return _decode(net, w, h, thresh, relative, letter, batch_size)


network_predict_custom = network_predict_batch  # its name in 2019


def _decode(net: Handle, w: int, h: int, thresh: float, relative: int, letter: int, batch: int) -> Any:
    """Decode the boxes of the last run: a pointer to one DETNUMPAIR per image."""
    pipeline = net.pipeline(letter)
    unit = np.float32(1) if relative else np.array([w, h, w, h], np.float32)
    if not net.outputs:
        raise DataError("there are no boxes before an image was run; call predict_image first")
    pairs = (DETNUMPAIR * batch)()
    decoded = pipeline.decode(net.outputs, thresh, [(w, h)] * batch)
    for pair, rows, more in zip(pairs, decoded, _gaussian(net, thresh, batch), strict=True):
        probs = rows[:, 5:]
        probs[:, [i for i in net.skipped if i < probs.shape[1]]] = 0
        more = more if more and len(more[0]) == len(rows) else ()  # decode drops boxes that are not finite
        store(pair, rows[:, 0], rows[:, 1:5] * unit, probs, *more)
    return counted(pairs[0], batch)


def _gaussian(net: Handle, thresh: float, batch: int) -> list[tuple[Any, ...]]:
    """Return each image's uncertainties (K, 4) and the point of its boxes, if the heads are [Gaussian_yolo]."""
    layers = [net.network.nodes[index].layer for index in net.network.heads]
    heads = [layer for layer in layers if isinstance(layer, GaussianYolo)]
    if len(heads) < len(layers):
        return [()] * batch
    found = [head.uncertainty(net.network.backend, y, thresh) for head, y in zip(heads, net.outputs, strict=True)]
    point = {"center": 1, "left_top": 2, "right_bottom": 4}[heads[-1].yolo_point]
    return [(np.concatenate([uc[images == i] for uc, images in found]), point) for i in range(batch)]


@exported
def do_nms_sort(dets: Any, total: int, classes: int, thresh: float) -> None:
    """NMS per class, by probability: set the probabilities of suppressed boxes to 0.

    Sorts the detections in place as Darknet does: by each class in turn, so that the last one has priority.
    """
    records = _with_objectness(dets, total)
    if records.size and classes > 0:
        floats, index = _probs(records, classes)
        order = np.lexsort(-floats[index].T)
        records[:], index = records[order], index[order]
        floats[index] = boxes.nms(records["bbox"], floats[index], thresh)
        set_best(records, floats[index])
        records["sort_class"] = classes - 1


@exported
def do_nms_obj(dets: Any, total: int, classes: int, thresh: float) -> None:
    """NMS across classes, by objectness: set objectness and probabilities of suppressed boxes to 0.

    Sorts the detections in place, by objectness.
    """
    records = _with_objectness(dets, total)
    if records.size:
        records[:] = records[np.argsort(-records["objectness"], kind="stable")]
        kept = boxes.nms(records["bbox"], records["objectness"][:, None], thresh)
        floats, index = _probs(records, classes)
        floats[index[kept[:, 0] == 0]] = 0
        set_best(records, floats[index])
        records["objectness"], records["sort_class"] = kept[:, 0], -1


def _with_objectness(dets: Any, total: int) -> np.ndarray:
    """Move the detections without objectness to the end, as Darknet does; return the others, as a view (K,) of RECORDs."""
    records = view(dets, (total,), RECORD) if total else np.zeros(0, RECORD)
    first, end = 0, total
    while first < end:
        if records["objectness"][first] == 0:
            end -= 1
            records[[first, end]] = records[[end, first]]
        else:
            first += 1
    return records[:end]


def _probs(records: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the memory that holds the detections' probabilities, as floats, and their indices (K, classes) in it.

    Raises DataError if a detection has none.
    """
    start, end = int(records["prob"].min()), int(records["prob"].max())
    if not start:
        raise DataError("a detection has no probabilities: its `prob` is a null pointer")
    classes = min(classes, int(records["classes"].min()) or classes)
    index = ((records["prob"] - start) // 4).astype(np.intp)[:, None] + np.arange(classes)
    return memory(start, ((end - start) // 4 + classes,)), index


def free_detections(dets: object, count: int) -> None:
    """No-op: Python frees boxes with their last reference."""


def free_batch_detections(pairs: object, count: int) -> None:
    """No-op, like `free_detections`."""


def free_ptrs(pointers: object, count: int) -> None:
    """No-op, like `free_detections`."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise AttributeError(
        f"darknet.lib has no function {name}: there is no libdarknet, only what scripts for darknet.py call"
    )
