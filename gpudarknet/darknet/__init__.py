"""Darknet-compatible API: Darknet's Python module without the compiled library. Only the import changes.

    import gpudarknet.darknet as darknet

    network, class_names, class_colors = darknet.load_network("yolov4.cfg", "coco.data", "yolov4.weights")
    image = darknet.make_image(darknet.network_width(network), darknet.network_height(network), 3)
    darknet.copy_image_from_bytes(image, frame_resized.tobytes())
    for label, confidence, (x, y, w, h) in darknet.detect_image(network, class_names, image, thresh=0.25): ...

The functions are those of the AlexeyAB fork and of its successor: the result of load_network can be used as a network or
unpacked into network, names and colors. Three bugs of the originals are not reproduced: detections are sorted by
numeric confidence, the boxes of a batch are assigned to the right image, and memory does not leak.
"""

from __future__ import annotations

import colorsys
import hashlib
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_void_p, pointer
from typing import Any

import numpy as np

from .library import (
    AnyPath,
    Handle,
    add_skipped_class,
    clear_skipped_classes,
    copy_image_from_bytes,
    del_skipped_class,
    do_nms_obj,
    do_nms_sort,
    free_batch_detections,
    free_detections,
    free_image,
    free_network_ptr,
    get_network_boxes,
    letterbox_image,
    load_image,
    load_meta,
    load_net,
    load_net_custom,
    make_image,
    network_dimensions,
    network_height,
    network_predict_batch,
    network_width,
    predict,
    predict_image,
    predict_image_letterbox,
    reset_rnn,
    rgbgr_image,
    set_gpu,
)
from .structs import BOX, DETECTION, DETNUMPAIR, IMAGE, METADATA

network_predict = predict
Color = tuple[int, int, int]
DetectionTuple = tuple[Any, Any, tuple[float, float, float, float]]  # label, confidence, (center x, y, width, height)

__all__ = [
    "BOX", "DETECTION", "DETNUMPAIR", "IMAGE", "METADATA", "POINTER", "Handle", "add_skipped_class", "batch_detection",
    "bbox2points", "c_char_p", "c_float", "c_int", "c_void_p", "class_colors", "clear_skipped_classes",
    "copy_image_from_bytes", "decode_detection", "del_skipped_class", "detect", "detect_image", "do_nms_obj",
    "do_nms_sort", "draw_boxes", "free_batch_detections", "free_detections", "free_image", "free_network_ptr",
    "get_network_boxes", "init_cpu", "letterbox_image", "load_image", "load_meta", "load_net", "load_net_custom",
    "load_network", "make_image", "network_dimensions", "network_height", "network_predict", "network_predict_batch",
    "network_width", "pointer", "predict", "predict_image", "predict_image_letterbox", "print_detections",
    "remove_negatives", "remove_negatives_faster", "reset_rnn", "rgbgr_image", "set_gpu", "set_output_stream", "set_verbose",
    "show_version_info", "version_short", "version_string",
]  # fmt: skip


def load_network(config_file: AnyPath, data_file: AnyPath, weights: AnyPath | None, batch_size: int = 1) -> Handle:
    """Load a network with its class names. The result unpacks into network, class_names and class_colors.

    Raises CfgError, DataError, WeightsError.
    """
    net = load_net_custom(config_file, weights, 0, batch_size)
    net.names = [name.decode() for name in load_meta(data_file).names]
    net.colors = class_colors(net.names)
    return net


def class_colors(names: Sequence[str]) -> dict[str, Color]:
    """Return a bright color for each name, deterministically."""
    hues = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32 for name in names}
    colors = {name: colorsys.hsv_to_rgb(hue, 0.8, 1.0) for name, hue in hues.items()}
    return {name: (round(255 * r), round(255 * g), round(255 * b)) for name, (r, g, b) in colors.items()}


def bbox2points(bbox: Sequence[float]) -> tuple[int, int, int, int]:
    """Convert center x, y, width, height to left, top, right, bottom, rounded."""
    x, y, w, h = bbox
    return round(x - w / 2), round(y - h / 2), round(x + w / 2), round(y + h / 2)


def detect_image(
    network: Handle, class_names: Sequence[str], image: IMAGE, thresh: float = 0.5, hier_thresh: float = 0.5, nms: float = 0.45
) -> list[DetectionTuple]:  # fmt: skip
    """Detect objects: (label, confidence in percent as text, (center x, y, width, height) in pixels of `image`).

    Sorted by ascending confidence.
    """
    predict_image(network, image)
    dets = get_network_boxes(network, image.w, image.h, thresh, hier_thresh, None, 0, None, 0)
    if nms:
        do_nms_sort(dets, len(dets), len(class_names), nms)
    return decode_detection(sorted(remove_negatives(dets, class_names, len(dets)), key=lambda detection: detection[1]))


def detect(
    net: Handle, meta: METADATA, image: AnyPath, thresh: float = 0.5, hier_thresh: float = 0.5, nms: float = 0.45
) -> list[DetectionTuple]:  # fmt: skip
    """Detect objects in an image file: (name as bytes, probability, box in pixels), by descending probability.

    This is the oldest version of the API.
    """
    im = load_image(image, 0, 0)
    predict_image(net, im)
    dets = get_network_boxes(net, im.w, im.h, thresh, hier_thresh, None, 0, None, 0)
    if nms:
        do_nms_sort(dets, len(dets), meta.classes, nms)
    return sorted(remove_negatives(dets, meta.names, len(dets)), key=lambda detection: -detection[1])


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
        resized = [cv2.resize(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), (width, height)) for image in batch]
        planes = np.concatenate([image.transpose(2, 0, 1) for image in resized])
        im = IMAGE.from_planes(planes / np.float32(255))
        pairs = network_predict_batch(network, im, len(batch), 1, 1, thresh, hier_thresh, None, 1, 0)
        for image, pair in zip(batch, pairs, strict=True):
            H, W = image.shape[:2]
            for det in pair.dets:
                det.bbox = BOX(det.bbox.x * W, det.bbox.y * H, det.bbox.w * W, det.bbox.h * H)
            if nms:
                do_nms_sort(pair.dets, pair.num, len(class_names), nms)
            detections.append(remove_negatives(pair.dets, class_names, pair.num))
            draw_boxes(detections[-1], image, class_colors)
    return list(images), detections


def remove_negatives(detections: Sequence[DETECTION], class_names: Sequence[Any], num: int) -> list[DetectionTuple]:
    """Return (name, probability, box) for every class with non-zero probability of every box."""
    return [
        (class_names[i], float(det.prob[i]), (det.bbox.x, det.bbox.y, det.bbox.w, det.bbox.h))
        for det in detections[:num]
        for i in np.flatnonzero(det.prob[: len(class_names)] > 0).tolist()
    ]


def remove_negatives_faster(
    detections: Sequence[DETECTION], class_names: Sequence[Any], num: int
) -> list[DetectionTuple]:
    """Return (name, probability, box) for the best class of every box."""
    best = [(det, det.best_class_idx) for det in detections[:num]]
    return [
        (class_names[i], float(det.prob[i]), (det.bbox.x, det.bbox.y, det.bbox.w, det.bbox.h))
        for det, i in best
        if i >= 0
    ]


def decode_detection(detections: Sequence[DetectionTuple]) -> list[DetectionTuple]:
    """Convert probabilities to percentages, as text with two decimals."""
    return [(str(label), str(round(confidence * 100, 2)), bbox) for label, confidence, bbox in detections]


def print_detections(detections: Sequence[DetectionTuple], coordinates: bool = False) -> None:
    """Print one line per object, with its box if `coordinates`."""
    lines = ["", "Objects:"]
    for label, confidence, (x, y, w, h) in detections:
        box = f"    (left_x: {x:.0f}   top_y:  {y:.0f}   width:   {w:.0f}   height:  {h:.0f})" if coordinates else ""
        lines.append(f"{label}: {confidence}%{box}")
    sys.stdout.write("\n".join(lines) + "\n")


def draw_boxes(detections: Sequence[DetectionTuple], image: np.ndarray, colors: dict[str, Color]) -> np.ndarray:
    """Draw boxes and labels on an image (H, W, 3) in place, and return it."""
    import cv2

    for label, confidence, bbox in detections:
        left, top, right, bottom = bbox2points(bbox)
        cv2.rectangle(image, (left, top), (right, bottom), colors[label], 1)
        text = f"{label} [{float(confidence):.2f}]"
        cv2.putText(image, text, (left, top - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colors[label], 2)
    return image


def init_cpu() -> None:
    """No-op: nothing needs initialization."""


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
