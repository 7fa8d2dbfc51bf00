"""Darknet's Python module, without a compiled library: `import gpudarknet.darknet as darknet` is the one line to change.

    network, class_names, class_colors = darknet.load_network("yolov4.cfg", "coco.data", "yolov4.weights")
    picture = darknet.make_image(darknet.network_width(network), darknet.network_height(network), 3)
    darknet.copy_image_from_bytes(picture, frame_resized.tobytes())
    for label, confidence, (x, y, w, h) in darknet.detect_image(network, class_names, picture, thresh=0.25): ...

The functions are those of the AlexeyAB fork and of its successor: what load_network returns can be used as a network or
unpacked into network, names and colours. Three faults of the originals are not copied: detections are sorted by their
confidence as a number, a batch's boxes belong to their own picture, and nothing leaks.
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
from .records import BOX, DETECTION, DETNUMPAIR, IMAGE, METADATA

network_predict = predict
Triple = tuple[Any, Any, tuple[float, float, float, float]]  # label, confidence, (centre x, y, width, height)

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


def load_network(config_file: Any, data_file: Any, weights: Any, batch_size: int = 1) -> Handle:
    """Load a network and its class names: a network, which unpacks into network, class_names and class_colors.

    Raises CfgError, DataError, WeightsError.
    """
    net = load_net_custom(config_file, weights, 0, batch_size)
    net.names = [name.decode() for name in load_meta(data_file).names]
    net.colors = class_colors(net.names)
    return net


def class_colors(names: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return a bright colour for each name, the same one every time."""
    hues = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32 for name in names}
    return {name: tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.8, 1.0)) for name, hue in hues.items()}  # type: ignore[misc]


def bbox2points(bbox: Sequence[float]) -> tuple[int, int, int, int]:
    """Turn centre x, y, width, height into left, top, right, bottom, rounded."""
    x, y, w, h = bbox
    return round(x - w / 2), round(y - h / 2), round(x + w / 2), round(y + h / 2)


def detect_image(
    network: Any, class_names: Sequence[str], image: IMAGE, thresh: float = 0.5, hier_thresh: float = 0.5, nms: float = 0.45
) -> list[Triple]:  # fmt: skip
    """Find objects: (label, confidence in percent as text, (centre x, y, width, height) in pixels of `image`).

    Sorted by confidence, the greatest last.
    """
    predict_image(network, image)
    found = get_network_boxes(network, image.w, image.h, thresh, hier_thresh, None, 0, None, 0)
    if nms:
        do_nms_sort(found, len(found), len(class_names), nms)
    triples = sorted(remove_negatives(found, class_names, len(found)), key=lambda triple: triple[1])
    return decode_detection(triples)


def detect(
    net: Any, meta: METADATA, image: Any, thresh: float = 0.5, hier_thresh: float = 0.5, nms: float = 0.45
) -> list[Triple]:  # fmt: skip
    """Find objects in a picture file: (name as bytes, probability, box in pixels), the greatest first; the oldest form."""
    picture = load_image(image, 0, 0)
    predict_image(net, picture)
    found = get_network_boxes(net, picture.w, picture.h, thresh, hier_thresh, None, 0, None, 0)
    if nms:
        do_nms_sort(found, len(found), meta.classes, nms)
    return sorted(remove_negatives(found, meta.names, len(found)), key=lambda triple: -triple[1])


def batch_detection(
    network: Any, images: Sequence[np.ndarray], class_names: Sequence[str], class_colors: dict[str, Any],
    thresh: float = 0.25, hier_thresh: float = 0.5, nms: float = 0.45, batch_size: int = 4,
) -> tuple[list[np.ndarray], list[list[Triple]]]:  # fmt: skip
    """Find objects in pictures (H, W, 3) BGR of any sizes, batch_size at a time; draw them, in place.

    Returns the pictures and, for each, (label, probability, (centre x, y, width, height) in its own pixels).
    """
    import cv2

    width, height = network_width(network), network_height(network)
    found: list[list[Triple]] = []
    for begin in range(0, len(images), max(batch_size, 1)):
        part = images[begin : begin + max(batch_size, 1)]
        small = [cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), (width, height)) for picture in part]
        planes = np.concatenate([picture.transpose(2, 0, 1) for picture in small])
        block = IMAGE.of(planes / np.float32(255))
        pairs = network_predict_batch(network, block, len(part), 1, 1, thresh, hier_thresh, None, 1, 0)
        for picture, pair in zip(part, pairs, strict=True):
            H, W = picture.shape[:2]
            for det in pair.dets:
                det.bbox = BOX(det.bbox.x * W, det.bbox.y * H, det.bbox.w * W, det.bbox.h * H)
            if nms:
                do_nms_sort(pair.dets, pair.num, len(class_names), nms)
            found.append(remove_negatives(pair.dets, class_names, pair.num))
            draw_boxes(found[-1], picture, class_colors)
    return list(images), found


def remove_negatives(detections: Sequence[DETECTION], class_names: Sequence[Any], num: int) -> list[Triple]:
    """Return (name, probability, box) for every class of a box whose probability is not 0."""
    return [
        (class_names[i], float(det.prob[i]), (det.bbox.x, det.bbox.y, det.bbox.w, det.bbox.h))
        for det in detections[:num]
        for i in np.flatnonzero(det.prob[: len(class_names)] > 0).tolist()
    ]


def remove_negatives_faster(detections: Sequence[DETECTION], class_names: Sequence[Any], num: int) -> list[Triple]:
    """Return (name, probability, box) for the best class of every box."""
    best = [(det, det.best_class_idx) for det in detections[:num]]
    return [
        (class_names[i], float(det.prob[i]), (det.bbox.x, det.bbox.y, det.bbox.w, det.bbox.h))
        for det, i in best
        if i >= 0
    ]


def decode_detection(detections: Sequence[Triple]) -> list[Triple]:
    """Turn probabilities into percent, as text with two digits."""
    return [(str(label), str(round(confidence * 100, 2)), bbox) for label, confidence, bbox in detections]


def print_detections(detections: Sequence[Triple], coordinates: bool = False) -> None:
    """Print a line for each object, with its box if asked."""
    lines = ["", "Objects:"]
    for label, confidence, (x, y, w, h) in detections:
        place = f"    (left_x: {x:.0f}   top_y:  {y:.0f}   width:   {w:.0f}   height:  {h:.0f})" if coordinates else ""
        lines.append(f"{label}: {confidence}%{place}")
    sys.stdout.write("\n".join(lines) + "\n")


def draw_boxes(detections: Sequence[Triple], image: np.ndarray, colors: dict[str, Any]) -> np.ndarray:
    """Draw boxes and labels on a picture (H, W, 3), in place, and return it."""
    import cv2

    for label, confidence, bbox in detections:
        left, top, right, bottom = bbox2points(bbox)
        cv2.rectangle(image, (left, top), (right, bottom), colors[label], 1)
        text = f"{label} [{float(confidence):.2f}]"
        cv2.putText(image, text, (left, top - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.5, colors[label], 2)
    return image


def init_cpu() -> None:
    """Change nothing: there is nothing to prepare."""


def set_verbose(verbose: bool) -> None:
    """Change nothing: loading prints nothing here."""


def set_output_stream(path: Any) -> None:
    """Change nothing: there is no output of its own to send elsewhere."""


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
