"""Darknet-compatible API: Darknet's Python module without the compiled library. Only the import changes.

    import gpudarknet.darknet as darknet

    network, class_names, class_colors = darknet.load_network("yolov4.cfg", "coco.data", "yolov4.weights")
    image = darknet.make_image(darknet.network_width(network), darknet.network_height(network), 3)
    darknet.copy_image_from_bytes(image, frame_resized.tobytes())
    for label, confidence, (x, y, w, h) in darknet.detect_image(network, class_names, image, thresh=0.25): ...

It has the functions of the AlexeyAB fork's darknet.py since 2018, of the original and of its successor; docs/darknet.md lists
them. Three bugs of the originals are not reproduced: detections are sorted by numeric confidence, the boxes of a batch are
assigned to the right image, and memory does not leak.
"""

from __future__ import annotations

import ctypes as ct
import importlib
import math
import os
import random
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_ubyte
from pathlib import Path
from typing import Any

import numpy as np

from .. import backend, image
from ..errors import DarknetError
from . import library as lib
from .library import AnyPath, Handle
from .results import (
    Color,
    DetectionTuple,
    bbox2points,
    c_array,
    class_colors,
    decode_detection,
    draw_boxes,
    non_max_suppression_fast,
    print_detections,
    remove_negatives,
    remove_negatives_faster,
    sample,
)
from .structs import BOX, DETECTION, DETNUMPAIR, IMAGE, METADATA

FloatPtr, IntPtr = POINTER(c_float), POINTER(c_int)
DETECTIONPtr, DETNUMPAIRPtr = POINTER(DETECTION), POINTER(DETNUMPAIR)

# darknet.py's names of the library's functions
load_net, load_net_custom, load_meta = lib.load_network, lib.load_network_custom, lib.get_metadata
free_network_ptr, reset_rnn, set_gpu, init_cpu = lib.free_network_ptr, lib.reset_rnn, lib.cuda_set_device, lib.init_cpu
network_width, network_height, network_dimensions = lib.network_width, lib.network_height, lib.network_dimensions
add_skipped_class, del_skipped_class = lib.add_skipped_class, lib.del_skipped_class
clear_skipped_classes = lib.clear_skipped_classes
make_image, load_image, free_image = lib.make_image, lib.load_image_color, lib.free_image
copy_image_from_bytes, ndarray_image = lib.copy_image_from_bytes, lib.ndarray_to_image
letterbox_image, rgbgr_image = lib.letterbox_image, lib.rgbgr_image
predict = network_predict = lib.network_predict_ptr
predict_image, predict_image_letterbox = lib.network_predict_image, lib.network_predict_image_letterbox
network_predict_batch = network_predict_custom = lib.network_predict_batch
get_network_boxes, make_network_boxes = lib.get_network_boxes, lib.make_network_boxes
do_nms_obj, do_nms_sort = lib.do_nms_obj, lib.do_nms_sort
free_detections, free_batch_detections, free_ptrs = lib.free_detections, lib.free_batch_detections, lib.free_ptrs

netMain: Handle | None = None  # what performDetect loaded, and detect, detect_image and classify take names from
metaMain: METADATA | None = None
altNames: list[str] | None = None

darknet = sys.modules[__name__]  # for `from darknet import darknet`

__all__ = [
    "BOX", "DETECTION", "DETNUMPAIR", "IMAGE", "METADATA", "DETECTIONPtr", "DETNUMPAIRPtr", "FloatPtr", "Handle",
    "IntPtr", "add_skipped_class", "altNames", "array_to_image", "batch_detection", "bbox2points", "c_array",
    "class_colors", "classify", "clear_skipped_classes", "copy_image_from_bytes", "ct", "cv2", "decode_detection",
    "del_skipped_class", "detect", "detect_image", "do_nms_obj", "do_nms_sort", "draw_boxes", "free_batch_detections",
    "free_detections", "free_image", "free_network_ptr", "free_ptrs", "get_network_boxes", "hasGPU", "init_cpu",
    "letterbox_image", "lib", "load_image", "load_meta", "load_net", "load_net_custom", "load_network", "make_image",
    "make_network_boxes", "math", "metaMain", "ndarray_image", "netMain", "network_dimensions", "network_height",
    "network_predict", "network_predict_batch", "network_predict_custom", "network_width", "non_max_suppression_fast",
    "np", "nparray_to_image", "os", "performDetect", "predict", "predict_image", "predict_image_letterbox",
    "print_detections", "random", "remove_negatives", "remove_negatives_faster", "reset_rnn", "rgbgr_image", "sample",
    "set_gpu", "set_output_stream", "set_verbose", "show_version_info", "version_short", "version_string",
]  # fmt: skip
__all__ += [name for name in vars(ct) if not name.startswith("_")]  # darknet.py begins with `from ctypes import *`


def __getattr__(name: str) -> Any:
    """Return hasGPU, cv2, a name of ctypes, or a function of the library under its C name."""
    if name == "cv2":  # darknet.py imports it
        return importlib.import_module(name)
    if name == "hasGPU":
        return backend.get("auto").current_device() is not None
    for module in (ct, lib):
        found = None if name.startswith("_") else vars(module).get(name)
        if found is not None and (module is ct or getattr(found, "__module__", "") == lib.__name__):
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Loading


class InvalidArgumentError(DarknetError, ValueError):
    """An argument of `performDetect` that darknet.py rejects too."""


def load_network(config_file: AnyPath, data_file: AnyPath, weights: AnyPath | None, batch_size: int = 1) -> Handle:
    """Load a network with its class names. The result unpacks into network, class_names and class_colors.

    Raises CfgError, DataError, WeightsError.
    """
    net = load_net_custom(config_file, weights, 0, batch_size)
    net.names = [name.decode() for name in load_meta(data_file).names]
    net.colors = class_colors(net.names)
    return net


def array_to_image(arr: np.ndarray) -> IMAGE:
    """Convert an array (h, w, c) of 0 to 255 to an IMAGE of 0 to 1. The result unpacks into it and its pixels, flat."""
    return IMAGE.from_planes(arr.transpose(2, 0, 1) / np.float32(255))


def nparray_to_image(img: np.ndarray) -> IMAGE:
    """Convert an array (h, w, c) of bytes to an IMAGE."""
    return ndarray_image(img.ctypes.data_as(POINTER(c_ubyte)), img.ctypes.shape, img.ctypes.strides)


# Detection


def detect_image(
    network: Any = None, class_names: Any = None, image: Any = None, thresh: float = 0.5, hier_thresh: float = 0.5,
    nms: float = 0.45, debug: bool = False, *, net: Any = None, meta: Any = None, im: Any = None,
) -> list[DetectionTuple]:  # fmt: skip
    """Detect objects, as darknet.py does since 2020 or, if the second argument is METADATA, as it did before.

    With class names: (label, confidence in percent as text, (center x, y, width, height) in pixels of `image`), by ascending
    confidence. With METADATA: (name, probability, box), by descending probability; names are bytes, or those of `altNames`.
    """
    network, names, image = net or network, meta or class_names, im or image
    named = altNames or names.names if isinstance(names, METADATA) else names
    predict_image(network, image)
    dets = get_network_boxes(network, image.w, image.h, thresh, hier_thresh, None, 0, None, 0)
    if nms:
        do_nms_sort(dets, len(dets), len(named), nms)
    found = remove_negatives(dets, named, len(dets))
    if isinstance(names, METADATA):
        return _descending(found)
    return sorted(decode_detection(found), key=lambda detection: float(detection[1]))


def detect(
    net: Handle, meta: METADATA, image: AnyPath | np.ndarray | IMAGE, thresh: float = 0.5, hier_thresh: float = 0.5,
    nms: float = 0.45, debug: bool = False,
) -> list[DetectionTuple]:  # fmt: skip
    """Detect objects in an image file, an array (h, w, c) or an IMAGE, as `detect_image` with METADATA does."""
    if isinstance(image, np.ndarray):
        image = array_to_image(image)
    im = image if isinstance(image, IMAGE) else load_image(image, 0, 0)
    return detect_image(net, meta, im, thresh, hier_thresh, nms, debug)


def classify(net: Handle, meta: METADATA, im: IMAGE) -> list[tuple[Any, float]]:
    """Classify an image: (name, probability), by descending probability; names as in `detect_image`."""
    names, out = altNames or meta.names, predict_image(net, im)
    if len(out) < meta.classes:
        raise InvalidArgumentError(f"classify: the network has {len(out)} outputs, the names are {meta.classes}")
    return _descending((names[i], out[i]) for i in range(meta.classes))


def _descending(found: Any) -> Any:
    return sorted(found, key=lambda result: -result[1])


def performDetect(
    imagePath: AnyPath = "data/dog.jpg", thresh: float = 0.25, configPath: AnyPath = "./cfg/yolov4.cfg",
    weightPath: AnyPath = "yolov4.weights", metaPath: AnyPath = "./cfg/coco.data", showImage: bool = True,
    makeImageOnly: bool = False, initOnly: bool = False,
) -> Any:  # fmt: skip
    """Detect objects in an image file; the network is loaded by the first call (netMain, metaMain, altNames).

    Returns (name, probability, box) for each; with showImage, a dict of these `detections`, `image` (H, W, 3) RGB with boxes,
    and `caption`, and shows the image in a window unless makeImageOnly. initOnly: load the network, return None.
    Raises a ValueError if a file does not exist or thresh is not between 0 and 1.
    """
    global netMain, metaMain, altNames
    if not 0 < thresh < 1:
        raise InvalidArgumentError(f"thresh {thresh}: must be between 0 and 1")
    for kind, path in (("config", configPath), ("weight", weightPath), ("data file", metaPath)):
        _check_file(kind, path)
    netMain = netMain or load_net_custom(configPath, weightPath, 0, 1)
    metaMain = metaMain or load_meta(metaPath)
    altNames = altNames or [name.decode().strip() for name in metaMain.names]
    if initOnly:
        sys.stdout.write("Initialized detector\n")
        return None
    _check_file("image", imagePath)
    detections = detect(netMain, metaMain, imagePath, thresh)
    if not showImage:
        return detections
    caption = [f"{label}: {np.rint(100 * confidence)}%" for label, confidence, _ in detections]
    sys.stdout.write("\n".join([f"*** {len(detections)} Results, color coded by confidence ***", *caption, ""]))
    drawn = _draw(image.read(os.fsdecode(imagePath)), detections)  # type: ignore[arg-type]
    if not makeImageOnly:
        _show(drawn)
    return {"detections": detections, "image": drawn, "caption": "\n<br/>".join(caption)}


def _check_file(kind: str, path: AnyPath) -> None:
    name = Path(os.fsdecode(path))  # type: ignore[arg-type]
    if not name.exists():
        raise InvalidArgumentError(f"Invalid {kind} path `{name.absolute()}`")


def _draw(picture: np.ndarray, detections: Sequence[DetectionTuple]) -> np.ndarray:
    """Draw boxes on a copy, from red to green by confidence."""
    import cv2

    canvas = picture.copy()
    for _, confidence, bbox in detections:
        left, top, right, bottom = bbox2points(bbox)
        color = (int(255 * (1 - confidence**2)), int(255 * confidence**2), 0)
        cv2.rectangle(canvas, (left, top), (right, bottom), color, 3)
    return canvas


def _show(picture: np.ndarray) -> None:
    """Show an RGB image in a window until a key is pressed, or say that this is impossible."""
    import cv2

    try:
        cv2.imshow("performDetect", picture[..., ::-1])
        cv2.waitKey()
    except cv2.error as error:
        sys.stdout.write(f"Unable to show image: {error.err}\n")


def batch_detection(
    network: Handle, images: Sequence[np.ndarray], class_names: Sequence[str], class_colors: dict[str, Color],
    thresh: float = 0.25, hier_thresh: float = 0.5, nms: float = 0.45, batch_size: int = 4,
) -> tuple[list[np.ndarray], list[list[DetectionTuple]]]:  # fmt: skip
    """Detect objects in images (H, W, 3) BGR of any sizes, batch_size at a time; draw them in place.

    Returns the images and, for each, (label, probability, (center x, y, width, height) in pixels of that image).
    """
    import cv2

    width, height = network_width(network), network_height(network)
    detections: list[list[DetectionTuple]] = []
    for begin in range(0, len(images), max(batch_size, 1)):
        batch = images[begin : begin + max(batch_size, 1)]
        resized = [cv2.resize(cv2.cvtColor(one, cv2.COLOR_BGR2RGB), (width, height)) for one in batch]
        planes = np.concatenate([one.transpose(2, 0, 1) for one in resized])
        im = IMAGE.from_planes(planes / np.float32(255))
        pairs = network_predict_batch(network, im, len(batch), 1, 1, thresh, hier_thresh, None, 1, 0)
        for one, pair in zip(batch, pairs, strict=True):
            H, W = one.shape[:2]
            for det in pair.dets:
                det.bbox = BOX(det.bbox.x * W, det.bbox.y * H, det.bbox.w * W, det.bbox.h * H)
            if nms:
                do_nms_obj(pair.dets, pair.num, len(class_names), nms)
            detections.append(remove_negatives(pair.dets, class_names, pair.num))
            draw_boxes(detections[-1], one, class_colors)
    return list(images), detections


# Versions and messages


def set_verbose(verbose: bool) -> None:
    """No-op: loading prints nothing."""


def set_output_stream(path: object) -> None:
    """No-op: the package itself prints nothing."""


def version_string() -> str:
    """Return the name and version of this package."""
    return f"gpudarknet v{version_short()}"


def version_short() -> str:
    """Return the version of this package."""
    from .. import __version__

    return __version__


def show_version_info() -> None:
    """Write the name and version of this package to standard output."""
    sys.stdout.write(version_string() + "\n")
