"""Calls of darknet.py's functions in every form that scripts use, and their results on the compiled library.

Each function of ROWS takes the modules `new` (darknet.py since 2020) and `old` (2018 to 2020) and the folder of `write`, which is
the current one. To record, build the AlexeyAB fork with `make LIBSO=1`, take the last darknet.py with performDetect from its
history (6d38218a), and run this file with both paths; it needs OpenCV 5 (`drawn` depends on it), and scikit-image and matplotlib,
which performDetect draws with:

    git show 6d38218a:darknet.py > /tmp/darknet_2020.py
    PYTHONPATH=. python tests/darknet_api.py DARKNET /tmp/darknet_2020.py          # writes tests/darknet_api.json

Every row runs in a process of its own, because what fails in the library ends it: then the row is {"exit": code}.
test_darknet_api.py calls gpudarknet.darknet with both roles.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import opencv4

RECORD = Path(__file__).with_suffix(".json")
NAMES = ["ball", "cup", "dog", "egg"]
GAUSSIAN = (
    opencv4.NET.format(96, 64) + opencv4.conv(8, s=2) + opencv4.conv(8, s=2) + opencv4.conv(16, s=2)
    + opencv4.conv(39, k=1, a="linear", bn=0)
    + "[Gaussian_yolo]\nmask=0,1,2\nanchors=10,14, 23,27, 37,58\nclasses=4\nnum=3\nyolo_point=left_top\n"
)  # fmt: skip
ROWS = {}


def row(function):
    ROWS[function.__name__] = function
    return function


def write(folder):
    """Write networks, their names and a picture."""
    import cv2

    opencv4.CFGS.setdefault("gaussian", GAUSSIAN)
    opencv4.CFGS.setdefault("gray", opencv4.CFGS["tiny"].replace("channels=3", "channels=1"))
    opencv4.write(folder)
    (folder / "tiny.names").write_text("\n".join(NAMES) + "\n")
    (folder / "tiny.data").write_text("classes = 4\nnames = tiny.names\n")
    (folder / "labels.data").write_text("classes = 3\nlabels = tiny.names\n")
    (folder / "crlf.names").write_bytes(b"a ball\r\ncup\r\ndog\r\negg\r\n")
    (folder / "crlf.data").write_bytes(b"classes = 4\r\nnames = crlf.names\r\n")
    (folder / "classes.names").write_text("\n".join("abcdefghij") + "\n")
    (folder / "classes.data").write_text("classes = 10\nnames = classes.names\n")
    cv2.imwrite(str(folder / "photo.png"), opencv4.scene())
    cv2.imwrite(str(folder / "gray.png"), opencv4.scene()[..., 0])


def plain(value):
    """Convert a result for JSON, so that types stay distinct."""
    if isinstance(value, bytes):
        return {"bytes": value.decode()}
    if isinstance(value, tuple):
        return {"tuple": [plain(v) for v in value]}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if type(value) is float:
        return float(f"{value:.7g}")
    assert value is None or type(value) in (str, int, bool), type(value)
    return value


# What the rows share


def loaded(new, name="tiny", batch=1):
    return new.load_net_custom(f"{name}.cfg".encode(), f"{name}.weights".encode(), 0, batch)


def photo(new, w=0, h=0):
    return new.load_image(b"photo.png", w, h)


def pixels(im):
    """The size of an IMAGE and some of its pixels."""
    count = im.w * im.h * im.c
    return [im.w, im.h, im.c, *im.data[0:count:997]]


def found(new, net, thresh, w=200, h=120, relative=0, letter=0):
    """Boxes of the last run: a pointer and their number."""
    num = ctypes.pointer(ctypes.c_int(0))
    dets = new.get_network_boxes(net, w, h, thresh, 0.5, None, relative, num, letter)
    return dets, num[0]


def table(dets, num):
    """The number of DETECTIONs, and all that a script reads from some of them."""
    some = [*range(min(num, 4)), *range(4, num, 9)]
    return [
        num,
        *[[dets[j].bbox.x, dets[j].bbox.y, dets[j].bbox.w, dets[j].bbox.h, dets[j].objectness, dets[j].classes,
         dets[j].sort_class, *[dets[j].prob[i] for i in range(4)]] for j in some],
    ]  # fmt: skip


def batch(new, frames, w=96, h=64):
    import cv2

    planes = [cv2.resize(frame[:, :, ::-1], (w, h)).transpose(2, 0, 1) for frame in frames]
    values = np.ascontiguousarray(np.concatenate(planes).flat, dtype=np.float32) / 255.0
    return new.IMAGE(200, 120, 3, values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))), values


def boxes_by_hand(new, rows):
    """An array of DETECTIONs from rows of (x, objectness, probabilities)."""
    dets = (new.DETECTION * len(rows))()
    for det, (x, objectness, probs) in zip(dets, rows, strict=True):
        det.bbox = new.BOX(x, 40, 20, 10)
        det.objectness, det.classes = objectness, len(probs)
        det.prob = (ctypes.c_float * len(probs))(*probs)
    return dets


# Loading


@row
def width_and_height(new, old, folder):
    net = loaded(new)
    return [new.network_width(net), new.network_height(net), old.network_width(net), old.lib.network_height(net)]


@row
def load_net_takes_bytes(new, old, folder):
    return new.network_width(new.load_net(b"tiny.cfg", b"tiny.weights", 0))


@row
def load_net_takes_c_char_p(new, old, folder):
    net = new.load_net(ctypes.c_char_p(b"tiny.cfg"), ctypes.c_char_p(b"tiny.weights"), ctypes.c_int(0))
    return new.network_height(net)


@row
def load_net_custom_takes_c_char_p(new, old, folder):
    name = str(folder / "tiny").encode()
    net = old.load_net_custom(ctypes.c_char_p(name + b".cfg"), ctypes.c_char_p(name + b".weights"), 0, ctypes.c_int(2))
    return new.network_height(net)


@row
def load_net_without_weights(new, old, folder):
    return [new.network_width(new.load_net(b"tiny.cfg", weights, 0)) for weights in (None, b"")]


@row
def load_network_unpacks(new, old, folder):
    network, names, colors = new.load_network("tiny.cfg", "tiny.data", "tiny.weights")
    return [new.network_width(network), names, sorted(colors), type(colors["dog"]).__name__, len(colors["dog"])]


@row
def load_network_is_indexed(new, old, folder):
    result = new.load_network("tiny.cfg", "tiny.data", "tiny.weights", batch_size=2)
    return [new.network_width(result[0]), result[1], len(result[2]), len(result), result[-2], len(result[1:])]


@row
def load_network_takes_keywords(new, old, folder):
    result = new.load_network(config_file="tiny.cfg", data_file="tiny.data", weights="tiny.weights", batch_size=1)
    return new.network_height(result[0])


@row
def load_meta_gives_bytes(new, old, folder):
    meta = new.load_meta(b"tiny.data")
    return [meta.classes, meta.names[0], [meta.names[i] for i in range(meta.classes)], meta.names[1].decode("ascii")]


@row
def load_meta_takes_c_char_p(new, old, folder):
    meta = old.load_meta(ctypes.c_char_p(b"tiny.data"))
    return [meta.classes, meta.names[:4], old.lib.get_metadata(b"tiny.data").classes]


@row
def load_meta_has_as_many_names_as_classes(new, old, folder):
    meta = new.load_meta(b"labels.data")
    return [meta.classes, meta.names[2]]


@row
def load_meta_of_windows_files(new, old, folder):
    return new.load_network("tiny.cfg", "crlf.data", "tiny.weights")[1]


@row
def missing_cfg(new, old, folder):
    return new.load_net(b"none.cfg", b"tiny.weights", 0)


@row
def missing_weights(new, old, folder):
    return new.load_net(b"tiny.cfg", b"none.weights", 0)


@row
def missing_data(new, old, folder):
    return new.load_meta(b"none.data").classes


@row
def network_of_none(new, old, folder):
    return new.network_width(None)


@row
def free_network(new, old, folder):
    net = loaded(new)
    return new.free_network_ptr(net)


# Structs


@row
def structs(new, old, folder):
    kinds = (new.BOX, new.DETECTION, new.DETNUMPAIR, new.IMAGE, new.METADATA)
    return [[ctypes.sizeof(k), [[name, getattr(t, "__name__", "")] for name, t in k._fields_]] for k in kinds]


@row
def a_box(new, old, folder):
    box = new.BOX(1, 2, w=3.5)
    box.y += 0.25
    return [box.x, box.y, box.w, box.h]


@row
def an_image_from_an_array(new, old, folder):
    image = new.IMAGE(2, 1, 3, old.c_array(ctypes.c_float, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
    return [image.w, image.h, image.c, image.data[3], image.data[:6]]


@row
def an_empty_image(new, old, folder):
    image = new.IMAGE()
    return [image.w, image.h, image.c, bool(image.data)]


@row
def an_image_from_a_pointer(new, old, folder):
    values = np.linspace(0, 1, 12, dtype=np.float32)
    image = new.IMAGE(2, 2, 3, values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
    values[5] = 0.75
    image.data[7] = 0.5
    return [image.data[5], float(values[7]), image.data.contents.value]


@row
def names_of_ctypes(new, old, folder):
    pnum = old.pointer(old.c_int(3))
    pnum[0] += 1
    return [pnum[0], pnum.contents.value, old.sizeof(old.c_void_p), old.cast(pnum, old.POINTER(old.c_int))[0]]


@row
def a_c_array(new, old, folder):
    a = old.c_array(old.c_int, [3, 1, 2])
    return [len(a), a[0], a[1:], sum(a)]


@row
def a_sample(new, old, folder):
    return [old.sample([0, 0, 2]), old.sample([1.0, 0]), old.sample((5,))]


@row
def every_field_of_a_detection(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    det = found(new, net, 0.7)[0][0]
    pointers = [bool(p) for p in (det.prob, det.mask, det.uc, det.embeddings)]
    return [
        *pointers,
        det.classes,
        det.sort_class,
        det.points,
        det.embedding_size,
        det.sim,
        det.track_id,
        det.objectness,
    ]


@row
def pointer_types(new, old, folder):
    net, im = loaded(new), photo(new)
    out = new.predict_image(net, im)
    dets, _ = found(new, net, 0.7)
    pairs = new.network_predict_batch(net, batch(new, [opencv4.scene()])[0], 1, 200, 120, 0.7, 0.5, None, 0, 0)
    return [
        isinstance(out, new.FloatPtr), isinstance(dets, new.DETECTIONPtr), isinstance(pairs, new.DETNUMPAIRPtr),
        isinstance(pairs[0].dets, new.DETECTIONPtr), isinstance(dets[0], new.DETECTION), isinstance(im, new.IMAGE),
        isinstance(dets[0].prob, new.FloatPtr), type(dets[0].prob[0]).__name__, type(dets[0].bbox.x).__name__,
        type(out[0]).__name__, type(pairs[0].num).__name__, bool(dets), bool(out), dets.contents.classes,
    ]  # fmt: skip


# Images


@row
def make_image(new, old, folder):
    return pixels(new.make_image(12, 9, 3))


@row
def make_image_of_c_ints(new, old, folder):
    return pixels(new.make_image(ctypes.c_int(5), ctypes.c_int(4), ctypes.c_int(1)))


@row
def copy_image_from_bytes(new, old, folder):
    image = new.make_image(200, 120, 3)
    new.copy_image_from_bytes(image, opencv4.scene().tobytes())
    return pixels(image)


@row
def copy_image_from_c_char_p(new, old, folder):
    image = new.make_image(4, 1, 3)
    new.copy_image_from_bytes(image, ctypes.c_char_p(bytes([0, 51, 102, 0, 255, 0, 1, 2, 3, 4, 5, 6])))
    return image.data[:12]


@row
def load_image(new, old, folder):
    return [pixels(photo(new)), pixels(photo(new, 96, 64)), pixels(photo(new, 96, 0))]


@row
def load_image_of_c_char_p(new, old, folder):
    return pixels(old.load_image(ctypes.c_char_p(str(folder / "photo.png").encode()), 0, 0))[:9]


@row
def letterbox_image(new, old, folder):
    return [pixels(new.letterbox_image(photo(new), 96, 64)), pixels(new.letterbox_image(photo(new), 70, 200))]


@row
def rgbgr_image(new, old, folder):
    image = photo(new)
    new.rgbgr_image(image)
    return pixels(image)


@row
def array_to_image(new, old, folder):
    image, array = old.array_to_image(opencv4.scene())
    return [*pixels(image), list(array.shape), str(array.dtype), float(array[1000])]


@row
def letterbox_of_an_array(new, old, folder):
    image, _ = old.array_to_image(opencv4.scene()[:, :, ::-1])
    return pixels(old.letterbox_image(image, 64, 64))


# Running


@row
def predict_image(new, old, folder):
    out = new.predict_image(loaded(new), photo(new))
    return [out[0], out[1000], out[:40], np.ctypeslib.as_array(out, (27, 16, 24))[8, 3].tolist()]


@row
def predict_image_of_the_networks_size(new, old, folder):
    return new.predict_image(loaded(new), photo(new, 96, 64))[:50]


@row
def predict_image_of_a_gray_network(new, old, folder):
    """Images are read with three channels; the network takes the first."""
    gray, net = new.load_image(b"gray.png", 0, 0), loaded(new, "gray")
    image = new.make_image(96, 64, 1)
    new.copy_image_from_bytes(image, opencv4.scene()[:64, :96, 0].tobytes())
    return [gray.c, *[out[:20] for out in map(new.predict_image, [net] * 3, [gray, photo(new), image])]]


@row
def predict_image_letterbox_of_a_gray_network(new, old, folder):
    return new.predict_image_letterbox(loaded(new, "gray"), photo(new))[:20]


@row
def detect_with_a_gray_network(new, old, folder):
    return old.detect(loaded(new, "gray"), old.load_meta(b"tiny.data"), b"gray.png", 0.72)


@row
def predict_image_letterbox(new, old, folder):
    return new.predict_image_letterbox(loaded(new), photo(new))[:50]


@row
def predict_takes_a_pointer(new, old, folder):
    net, im = loaded(new), photo(new, 96, 64)
    return [new.predict(net, im.data)[:20], new.network_predict(net, im.data)[:20]]


@row
def predict_takes_an_array(new, old, folder):
    values = [i % 7 / 7 for i in range(96 * 64 * 3)]
    return old.predict(loaded(new), old.c_array(ctypes.c_float, values))[:20]


@row
def predict_a_batch(new, old, folder):
    _, values = batch(new, [opencv4.scene(), opencv4.scene()[::-1]])
    out = new.predict(loaded(new, batch=2), values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
    return [out[5], out[27 * 16 * 24 + 5], out[27 * 16 * 24 : 27 * 16 * 24 + 30]]


@row
def classify(new, old, folder):
    return old.classify(loaded(new, "classes"), old.load_meta(b"classes.data"), photo(old))


@row
def a_classifiers_pointer(new, old, folder):
    out = new.predict_image(loaded(new, "classes"), photo(new, 64, 64))
    return sorted(((name, out[i]) for i, name in enumerate("abcdefghij")), key=lambda x: -x[1])


# Boxes


@row
def network_boxes(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    return table(*found(new, net, 0.7))


@row
def relative_boxes(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    return table(*found(new, net, 0.7, 1, 1, relative=1))


@row
def letterboxed_boxes(new, old, folder):
    net = loaded(new)
    new.predict_image_letterbox(net, photo(new))
    return table(*found(new, net, 0.7, letter=1))


@row
def letterboxed_relative_boxes(new, old, folder):
    net = loaded(new)
    new.predict_image_letterbox(net, photo(new))
    return table(*found(new, net, 0.7, relative=1, letter=1))


@row
def boxes_with_byref(new, old, folder):
    net, num, other = loaded(new), ctypes.c_int(0), ctypes.c_int(0)
    new.predict_image(net, photo(new))
    new.get_network_boxes(net, 200, 120, ctypes.c_float(0.7), 0.5, None, 0, ctypes.byref(num), 0)
    new.get_network_boxes(net, 200, 120, 0.7, 0.5, None, 0, other, 0)
    dets = new.get_network_boxes(net, 200, 120, 0.7, 0.5, None, 0, None, 0)
    return [num.value, other.value, dets[0].prob[2]]


@row
def no_boxes(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.999999)
    new.do_nms_sort(dets, num, 4, 0.45)
    new.do_nms_obj(dets, num, 4, 0.45)
    return [num, new.remove_negatives(dets, NAMES, num)]


@row
def boxes_of_new_coords(new, old, folder):
    net = loaded(new, "csp")
    new.predict_image(net, photo(new))
    return table(*found(new, net, 0.6))


@row
def boxes_of_gaussian_yolo(new, old, folder):
    net = loaded(new, "gaussian")
    new.predict_image(net, photo(new))
    return table(*found(new, net, 0.6))


@row
def uncertainty_of_gaussian_yolo(new, old, folder):
    net = loaded(new, "gaussian")
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.6)
    return [[*dets[j].uc[:4], dets[j].points] for j in range(num)]


@row
def boxes_of_region(new, old, folder):
    net = loaded(new, "v2")
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.35)
    new.do_nms_sort(dets, num, 4, 0.45)
    return new.remove_negatives(dets, NAMES, num)


@row
def best_class_of_region(new, old, folder):
    net = loaded(new, "v2")
    new.predict_image(net, photo(new))
    return new.remove_negatives_faster(*reversed((found(new, net, 0.35)[1], NAMES, found(new, net, 0.35)[0])))


@row
def boxes_of_the_last_run(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    first = found(new, net, 0.7)
    new.predict_image(net, new.make_image(96, 64, 3))
    return [table(*first)[:3], table(*found(new, net, 0.7, 1920, 1080))[:3]]


@row
def make_network_boxes(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    return isinstance(new.make_network_boxes(net), new.DETECTIONPtr)


@row
def nms_sort(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.7)
    new.do_nms_sort(dets, num, 4, 0.45)
    return table(dets, num)


@row
def nms_obj(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.7)
    new.do_nms_obj(dets, num, 4, 0.3)
    return table(dets, num)


@row
def nms_of_fewer_classes(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.7)
    new.do_nms_sort(dets, num, ctypes.c_int(2), ctypes.c_float(0.3))
    return table(dets, num)


@row
def nms_of_no_classes(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.7)
    new.do_nms_sort(dets, num, 0, 0.3)
    return [table(dets, num), new.detect_image(net, [], photo(new))]


@row
def nms_twice(new, old, folder):
    rng = np.random.default_rng(3)
    values = (rng.permutation(120) / 121).reshape(3, 40).tolist()  # distinct: the order of equal values is not defined
    xs = rng.integers(9, 200, 40).tolist()
    rows = [(x, objectness, [a, b]) for x, objectness, a, b in zip(xs, *values, strict=True)]
    dets = boxes_by_hand(new, rows)
    new.do_nms_obj(dets, 40, 2, 0.5)
    new.do_nms_sort(dets, 40, 2, 0.3)
    return [[d.bbox.x, d.objectness, d.sort_class, *d.prob[:2]] for d in dets]


@row
def nms_of_boxes_by_hand(new, old, folder):
    rows = [
        (50, 0, [0.9, 0.1]),
        (52, 0.8, [0.6, 0.2]),
        (90, 0.7, [0.0, 0.3]),
        (54, 0.9, [0.5, 0.4]),
        (91, 0.0, [0.1, 0.2]),
    ]
    results = []
    for suppress in (new.do_nms_sort, new.do_nms_obj):
        dets = boxes_by_hand(new, rows)
        suppress(dets, 5, 2, 0.45)
        results.append([[d.bbox.x, d.objectness, d.sort_class, *d.prob[:2]] for d in dets])
    return results


@row
def a_probability_set_by_hand(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.7)
    dets[0].prob[1] = 0.125
    dets[1].bbox.x = 7
    dets[1].objectness = 0.5
    return [dets[0].prob[1], dets[1].bbox.x, dets[1].objectness]


@row
def remove_negatives(new, old, folder):
    net = loaded(new)
    new.predict_image(net, photo(new))
    dets, num = found(new, net, 0.75)
    return [new.remove_negatives(dets, NAMES, num), new.remove_negatives(dets, NAMES[:2], num - 1)]


@row
def predict_batch(new, old, folder):
    net = loaded(new, batch=2)
    im, _values = batch(new, [opencv4.scene(), opencv4.scene()[::-1]])
    pairs = new.network_predict_batch(net, im, 2, 200, 120, 0.7, 0.5, None, 0, 0)
    result = [table(pairs[b].dets, pairs[b].num) for b in range(2)]
    new.free_batch_detections(pairs, 2)
    return result


@row
def predict_batch_letterboxed_relative(new, old, folder):
    net = loaded(new, batch=3)
    frames = [opencv4.scene(), opencv4.scene()[:, ::-1], np.full((120, 200, 3), 30, np.uint8)]
    im, _values = batch(new, frames)
    pairs = new.network_predict_batch(net, im, 3, 200, 120, ctypes.c_float(0.7), 0.5, None, 1, 1)
    return [table(pairs[b].dets, pairs[b].num) for b in range(3)]


@row
def nms_in_a_batch(new, old, folder):
    """The loop of darknet_images.py's batch_detection."""
    net = loaded(new, batch=2)
    im, _values = batch(new, [opencv4.scene(), opencv4.scene()[::-1]])
    pairs = new.network_predict_batch(net, im, 2, 200, 120, 0.7, 0.5, None, 0, 0)
    predictions = []
    for b in range(2):
        num, dets = pairs[b].num, pairs[b].dets
        new.do_nms_obj(dets, num, 4, 0.45)
        predictions.append(new.remove_negatives(dets, NAMES, num))
    return predictions


# Whole detections


@row
def detect_image(new, old, folder):
    network, names, _ = new.load_network("tiny.cfg", "tiny.data", "tiny.weights")
    return sorted(new.detect_image(network, names, photo(new, 96, 64), thresh=0.7), key=lambda d: float(d[1]))


@row
def detect_image_of_another_size(new, old, folder):
    found = new.detect_image(loaded(new), NAMES, photo(new), 0.7, 0.5, 0.3)
    return sorted(found, key=lambda d: float(d[1]))


@row
def detect_image_without_nms(new, old, folder):
    found = new.detect_image(
        network=loaded(new), class_names=NAMES, image=photo(new), thresh=0.77, hier_thresh=0.5, nms=0
    )
    return sorted(found, key=lambda d: float(d[1]))


@row
def the_order_of_detect_image(new, old, folder):
    """Darknet sorts the text of confidences; these all have two digits before the point."""
    return [c for _, c, _ in new.detect_image(loaded(new), NAMES, photo(new), thresh=0.7)]


@row
def detect_image_takes_metadata(new, old, folder):
    return old.detect_image(loaded(new), old.load_meta(b"tiny.data"), photo(new), thresh=0.7)


@row
def detect_image_takes_old_keywords(new, old, folder):
    return old.detect_image(net=loaded(new), meta=old.load_meta(b"tiny.data"), im=photo(new), thresh=0.72, nms=0.3)


@row
def detect(new, old, folder):
    return old.detect(loaded(new), old.load_meta(b"tiny.data"), b"photo.png", 0.7)


@row
def detect_takes_c_char_p(new, old, folder):
    meta = old.load_meta(ctypes.c_char_p(b"tiny.data"))
    return old.detect(loaded(new), meta, ctypes.c_char_p(b"photo.png"), thresh=0.7, hier_thresh=0.5, nms=0.3)


@row
def detections_are_json(new, old, folder):
    return [json.loads(json.dumps(new.detect_image(loaded(new), NAMES, photo(new), thresh=0.7)[-1])),
            json.loads(json.dumps(old.detect(loaded(new), old.load_meta(b"tiny.data"), b"photo.png", 0.7)[0][1:]))]  # fmt: skip


def perform(old, **more):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        result = old.performDetect("photo.png", 0.7, "./tiny.cfg", "tiny.weights", metaPath="./tiny.data", **more)
    return result, text.getvalue()


@row
def perform_detect(new, old, folder):
    return list(perform(old, showImage=False))


@row
def perform_detect_makes_an_image(new, old, folder):
    result, text = perform(old, makeImageOnly=True)
    drawn = result["image"]
    return [sorted(result), result["detections"], result["caption"], text, list(drawn.shape), str(drawn.dtype)]


@row
def perform_detect_loads_only(new, old, folder):
    first = old.netMain
    result, text = perform(old, initOnly=True)
    return [first, result, text, old.network_width(old.netMain), old.metaMain.classes, old.altNames]


@row
def detect_after_perform_detect(new, old, folder):
    perform(old, initOnly=True)
    im = old.make_image(old.network_width(old.netMain), old.network_height(old.netMain), 3)
    old.copy_image_from_bytes(im, opencv4.scene()[:64, :96].copy().tobytes())
    return old.detect_image(old.netMain, old.metaMain, im, thresh=0.7)


@row
def perform_detect_refuses(new, old, folder):
    files = {"configPath": "tiny.cfg", "weightPath": "tiny.weights", "metaPath": "tiny.data"}
    cases = [
        {"configPath": "none.cfg"},
        {"weightPath": "none.weights"},
        {"metaPath": "none.data"},
        {"imagePath": "none.png"},
    ]
    errors = []
    for case in cases:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                old.performDetect(**(files | {"imagePath": "photo.png"} | case))
        except ValueError as error:
            errors.append(str(error).replace(str(folder), ""))
    return errors


# Results


@row
def points_of_boxes(new, old, folder):
    return [new.bbox2points((10.4, 20, 5, 8)), new.bbox2points((0.5, 1.5, 1, 2.0)), new.bbox2points([3, 3, 2, 2])]


@row
def decoded(new, old, folder):
    return new.decode_detection([("cat", 0.98765, (1.0, 2.0, 3.0, 4.0)), (b"dog", 0.5, (0.0, 0.0, 1.0, 1.0))])


@row
def printed(new, old, folder):
    found = [("cat", "98.77", (100.4, 50.5, 20.25, 8.0)), ("dog", "9.5", (1.0, 2.0, 3.0, 4.0))]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        new.print_detections(found)
        new.print_detections(found, coordinates=True)
    return text.getvalue()


@row
def drawn(new, old, folder):
    image = np.zeros((40, 60, 3), np.uint8)
    result = new.draw_boxes([("cat", "98.77", (30.0, 20.0, 20.0, 10.0))], image, {"cat": (10, 20, 30)})
    return [result is image, [int(v) for v in image[15, 25]], int((image > 0).any(axis=2).sum())]


@row
def fast_suppression(new, old, folder):
    rows = [
        (0, "a", 0.5, (10, 10, 8, 8)),
        (1, "b", 0.9, (11, 11, 8, 8)),
        (2, "c", 0.7, (40, 12, 8, 6)),
        (3, "d", 0.7, (10, 9, 4, 4)),
    ]
    return [new.non_max_suppression_fast(rows, 0.5), new.non_max_suppression_fast(rows, 0.9)]


@row
def colors(new, old, folder):
    made = new.class_colors(NAMES)
    return [list(made), all(isinstance(c, int) and 0 <= c <= 255 for color in made.values() for c in color)]


# Scripts in the forms of public ones


@row
def script_loop_over_a_video(new, old, folder):
    """One IMAGE for all frames, boxes in pixels of the frame, a video that is written: the tutorials of 2020."""
    import cv2

    for i in range(4):  # a sequence of files, because decoders of videos differ
        cv2.imwrite(f"frame_{i:02}.png", np.roll(opencv4.scene(), 12 * i, axis=1))
    network, class_names, class_colors = new.load_network("./tiny.cfg", "./tiny.data", "./tiny.weights", batch_size=1)
    width, height = new.network_width(network), new.network_height(network)
    darknet_image = new.make_image(width, height, 3)
    cap = cv2.VideoCapture("frame_%02d.png")
    out = cv2.VideoWriter("out.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    frames = []
    while cap.isOpened():
        ret, frame = cap.read()
        if not ret:
            break
        rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        resized = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
        new.copy_image_from_bytes(darknet_image, resized.tobytes())
        detections = new.detect_image(network, class_names, darknet_image, thresh=0.74)
        image = new.draw_boxes(detections, resized, class_colors)
        out.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        points = [new.bbox2points(bbox) for _, _, bbox in detections]
        frames.append(sorted((label, float(c), *p) for (label, c, _), p in zip(detections, points, strict=True)))
    out.release()
    new.free_image(darknet_image)
    return [frames, os.path.getsize("out.avi") > 1000]


@row
def script_labels_of_a_folder(new, old, folder):
    """darknet.py of 2018: detect for every file of a folder, label files with fractions of the image."""
    import cv2

    (folder / "images").mkdir(exist_ok=True)
    for i in range(3):
        cv2.imwrite(str(folder / f"images/{i}.png"), np.roll(opencv4.scene(), 30 * i, axis=1))
    net = old.load_net(*(f"tiny.{kind}".encode() for kind in ("cfg", "weights")), 0)
    meta = old.load_meta(b"tiny.data")
    lines = {}
    for path in sorted((folder / "images").glob("*.png")):
        H, W = cv2.imread(str(path)).shape[:2]
        r = old.detect(net, meta, str(path).encode("ascii"), thresh=0.72, nms=0.4)
        lines[path.stem] = [[k[0].decode("utf-8"), k[1], k[2][0] / W, k[2][1] / H, k[2][2] / W, k[2][3] / H] for k in r]
    return lines


@row
def script_detect_with_ctypes(new, old, folder):
    """An own detect of 2018: an IMAGE from a ctypes array, boxes by index, freed at the end."""
    net, meta = old.load_net_custom(b"tiny.cfg", b"tiny.weights", 0, 1), old.load_meta(b"tiny.data")
    arr = opencv4.scene()[:, :, ::-1].transpose(2, 0, 1)
    c, h, w = arr.shape
    data = (old.c_float * arr.size)()
    data[:] = (arr.flatten() / 255.0).tolist()
    im = old.IMAGE(w, h, c, data)
    num = old.c_int(0)
    pnum = old.pointer(num)
    old.predict_image(net, im)
    dets = old.get_network_boxes(net, im.w, im.h, 0.7, 0.5, None, 0, pnum, 0)
    num = pnum[0]
    old.do_nms_obj(dets, num, meta.classes, 0.45)
    res = []
    for j in range(num):
        for i in range(meta.classes):
            if dets[j].prob[i] > 0:
                b = dets[j].bbox
                res.append((meta.names[i], dets[j].prob[i], (b.x, b.y, b.w, b.h)))
    old.free_detections(dets, num)
    return sorted(res, key=lambda x: -x[1])


@row
def script_answers_requests(new, old, folder):
    """A web service: the network of performDetect, bytes of an image in, JSON out."""
    import cv2

    def answer(body):
        frame = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
        im, _arr = old.array_to_image(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
        found = old.detect_image(old.netMain, old.metaMain, im, thresh=0.7)
        return json.dumps(
            [{"label": f[0].decode() if isinstance(f[0], bytes) else f[0], "score": f[1], "box": f[2]} for f in found]
        )

    perform(old, initOnly=True)
    return [json.loads(answer((folder / "photo.png").read_bytes())) for _ in range(2)]


@row
def script_batch_of_files(new, old, folder):
    """The batch of darknet_images.py: planes of all images in one IMAGE, NMS by objectness, best class only."""
    import cv2

    net, meta = old.load_net_custom(b"tiny.cfg", b"tiny.weights", 0, 3), old.load_meta(b"tiny.data")
    images = [cv2.imread("photo.png")[:, ::step] for step in (1, -1, 1)]
    height, width, c = images[0].shape
    planes = [cv2.resize(cv2.cvtColor(i, cv2.COLOR_BGR2RGB), (96, 64), interpolation=cv2.INTER_NEAREST) for i in images]
    arr = np.concatenate([p.transpose(2, 0, 1) for p in planes], axis=0)
    arr = np.ascontiguousarray(arr.flat, dtype=np.float32) / 255.0
    im = old.IMAGE(96, 64, c, arr.ctypes.data_as(old.POINTER(old.c_float)))
    batch_dets = old.network_predict_batch(net, im, 3, width, height, 0.7, 0.5, None, 0, 0)
    results = []
    for b in range(3):
        num, dets = batch_dets[b].num, batch_dets[b].dets
        old.do_nms_obj(dets, num, meta.classes, 0.45)
        scores = []
        for i in range(num):
            det = dets[i]
            score, label = max((det.prob[c], c) for c in range(det.classes))
            if score > 0.7:
                left, top = int(det.bbox.x - det.bbox.w / 2), int(det.bbox.y - det.bbox.h / 2)
                scores.append([label, score, left, top])
        results.append(scores)
    old.free_batch_detections(batch_dets, 3)
    return results


@row
def script_threads_and_a_queue(new, old, folder):
    """darknet_video.py: one thread makes IMAGEs, another detects."""
    import queue
    import threading

    network, class_names, _ = new.load_network("tiny.cfg", "tiny.data", "tiny.weights")
    images, results = queue.Queue(maxsize=1), []

    def capture():
        for i in range(3):
            image = new.make_image(200, 120, 3)
            new.copy_image_from_bytes(image, np.roll(opencv4.scene(), 25 * i, axis=1).tobytes())
            images.put(image)
        images.put(None)

    def inference():
        while (image := images.get()) is not None:
            results.append(
                sorted(new.detect_image(network, class_names, image, thresh=0.74), key=lambda d: float(d[1]))
            )
            new.free_image(image)

    threads = [threading.Thread(target=target) for target in (capture, inference)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@row
def script_classifies_files(new, old, folder):
    """A classifier on files: the three best classes as text."""
    net, meta = new.load_net(b"classes.cfg", b"classes.weights", 0), new.load_meta(b"classes.data")
    lines = []
    for name in (b"photo.png", b"photo.png"):
        im = new.load_image(name, 0, 0)
        best = old.classify(net, meta, im)[:3]
        lines += [f"{name.decode()} {label.decode()} {p:.3f}" for label, p in best]
        new.free_image(im)
    return lines


# Recording


def load_module(path, name):
    """Import a darknet.py from its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_both(checkout, old_file):
    """Import both versions of darknet.py on the library of a checkout."""
    new = load_module(Path(checkout) / "darknet.py", "new")
    os.chdir(checkout)
    old = load_module(old_file, "old")
    # fields were added: the library has the new ones
    for name in ("BOX", "DETECTION", "DETNUMPAIR", "IMAGE", "METADATA"):
        setattr(old, name, getattr(new, name))
    old.lib.__dict__.update({name: f for name, f in vars(new.lib).items() if not name.startswith("_")})
    for name, function in vars(new).items():
        if isinstance(function, ctypes._CFuncPtr):
            setattr(old, name, function)
    return new, old


def run_row(name, checkout, old_file, folder):
    new, old = load_both(checkout, old_file)
    os.chdir(folder)
    return plain(ROWS[name](new, old, Path(folder)))


def record(checkout, old_file):
    """Run every row in a process of its own."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for name in ROWS:
            done = subprocess.run(
                [sys.executable, __file__, checkout, old_file, folder, name],
                capture_output=True,
                text=True,
                check=False,
            )
            last = done.stdout.strip().rpartition("\n")[2]
            if done.returncode:
                print(name, done.returncode, done.stderr.strip().rpartition("\n")[2])
            results[name] = {"exit": done.returncode} if done.returncode else json.loads(last)
    return results


if __name__ == "__main__":
    arguments = [os.path.abspath(path) for path in sys.argv[1:4]]
    if len(sys.argv) == 5:
        print(json.dumps(run_row(sys.argv[4], arguments[0], arguments[1], arguments[2])))
    else:
        recorded = record(*arguments)
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(result)}" for name, result in recorded.items())
        RECORD.write_text("{\n" + lines + "\n}\n")
        print(len(recorded), "rows")
