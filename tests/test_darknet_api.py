"""gpudarknet.darknet: scripts written for Darknet's own Python module."""

from __future__ import annotations

import ctypes
import json
import math
import random

import cv2
import darknet_api
import numpy as np
import opencv4
import pytest

import gpudarknet as gd
import gpudarknet.darknet as darknet
from gpudarknet import image as images
from gpudarknet.errors import CfgError, DataError, WeightsError

NAMES = darknet_api.NAMES
RECORDED = json.loads(darknet_api.RECORD.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network's files: tiny.cfg, tiny.weights, tiny.data, tiny.names; and an image."""
    folder = tmp_path_factory.mktemp("darknet")
    darknet_api.write(folder)
    return folder


@pytest.fixture(scope="module")
def paths(folder):
    return [str(folder / f"tiny.{kind}") for kind in ("cfg", "data", "weights")]


@pytest.fixture
def here(folder, monkeypatch):
    """The same folder, as the current one; no network of performDetect's."""
    monkeypatch.chdir(folder)
    for name in ("netMain", "metaMain", "altNames"):
        monkeypatch.setattr(darknet, name, None)
    return folder


def same(ours, theirs, at="result"):
    """Check that two results have the same types, and the same numbers within 1e-4."""
    assert type(ours) is type(theirs), at
    if isinstance(ours, list):
        assert len(ours) == len(theirs), at
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same(one, other, f"{at}[{i}]")
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), at
        for key in ours:
            same(ours[key], theirs[key], f"{at}.{key}")
    elif isinstance(ours, float):
        assert math.isclose(ours, theirs, rel_tol=1e-4, abs_tol=1e-4), (at, ours, theirs)
    else:
        assert ours == theirs, at


ENDS = {  # what ends the process of the library
    "missing_cfg": (CfgError, "none.cfg: cannot be read (No such file or directory); check the path"),
    "missing_weights": (WeightsError, "none.weights: cannot be read (No such file or directory); check the path"),
    "missing_data": (DataError, "none.data: cannot be read (No such file or directory); check the path"),
    "network_of_none": (
        DataError, "network_width: None is not a network, the result of load_net_custom or load_network"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in RECORDED if name not in ENDS])
def test_calls_give_what_the_library_gives(name, here):
    result = darknet_api.plain(darknet_api.ROWS[name](darknet, darknet, here))
    if name == "make_network_boxes":  # darknet.py does not pass the threshold, so the library crashes
        assert result is True and RECORDED[name] == {"exit": -11}
    else:
        same(result, RECORDED[name])


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_the_process_in_the_library_raises(name, here):
    assert RECORDED[name]["exit"] != 0
    kind, message = ENDS[name]
    with pytest.raises(kind) as error:
        darknet_api.ROWS[name](darknet, darknet, here)
    assert str(error.value) == message


def test_every_row_is_recorded():
    assert RECORDED.keys() == darknet_api.ROWS.keys() and len(RECORDED) >= 60


def prepare(network, frame):
    """Convert a frame to Darknet's IMAGE, as darknet_images.py does."""
    width, height = darknet.network_width(network), darknet.network_height(network)
    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    resized = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR)
    made = darknet.make_image(width, height, 3)
    darknet.copy_image_from_bytes(made, resized.tobytes())
    return made, resized


def test_darknet_images_script(paths, capsys):
    random.seed(3)
    network, class_names, class_colors = darknet.load_network(*paths, batch_size=1)
    made, resized = prepare(network, opencv4.scene())
    detections = darknet.detect_image(network, class_names, made, thresh=0.7)
    darknet.free_image(made)
    detector = gd.Detector(paths[0], paths[2], NAMES, backend=network.network.backend)
    expected = detector.detect(resized, thresh=0.7)[::-1]
    assert detections and [label for label, _, _ in detections] == [d.label for d in expected]
    for (_, confidence, (x, y, w, h)), d in zip(detections, expected, strict=True):
        assert confidence == str(round(d.confidence * 100, 2))
        np.testing.assert_allclose((x - w / 2, y - h / 2, w, h), d.box, rtol=1e-4, atol=1e-3)
    assert [float(c) for _, c, _ in detections] == sorted(float(c) for _, c, _ in detections)
    drawn = darknet.draw_boxes(detections, resized.copy(), class_colors)
    assert (drawn != resized).any()
    darknet.print_detections(detections[-1:], True)
    label, confidence, (x, y, w, h) = detections[-1]
    assert capsys.readouterr().out == (
        f"\nObjects:\n{label}: {confidence}%    (left_x: {x:.0f}   top_y:  {y:.0f}   width:   {w:.0f}   height:  {h:.0f})\n"
    )


def test_the_result_of_load_network_is_a_network_too(paths):
    network = darknet.load_network(*paths)
    again, names, colors = network
    assert again is network and names == NAMES and set(colors) == set(NAMES)
    assert darknet.network_dimensions(network) == (96, 64, 3)
    assert colors == darknet.class_colors(NAMES)


def batch_of(network, frames):
    """Concatenate images, as the `prepare_batch` of darknet_images.py does."""
    width, height = darknet.network_width(network), darknet.network_height(network)
    planes = [cv2.resize(p[:, :, ::-1], (width, height)).transpose(2, 0, 1) for p in frames]
    values = np.ascontiguousarray(np.concatenate(planes).flat, dtype=np.float32) / 255.0
    return darknet.IMAGE(200, 120, 3, values.ctypes.data_as(darknet.POINTER(darknet.c_float)))


def test_a_batch_is_right_per_image(paths):
    network, names, colors = darknet.load_network(*paths, batch_size=3)
    frames = [opencv4.scene(), opencv4.scene()[::-1].copy(), np.full((120, 200, 3), 30, np.uint8)]
    pairs = darknet.network_predict_batch(network, batch_of(network, frames), 3, 200, 120, 0.6, 0.5, None, 0, 0)
    assert len(pairs) == 3 and len({pair.num for pair in pairs}) > 1
    for frame, pair in zip(frames, pairs, strict=True):
        darknet.predict_image(network, darknet.IMAGE(96, 64, 3, batch_of(network, [frame]).data))
        num = darknet.pointer(darknet.c_int(0))
        alone = darknet.get_network_boxes(network, 200, 120, 0.6, 0.5, None, 0, num, 0)
        assert num[0] == pair.num == len(alone)
        for a, b in zip(alone, pair.dets, strict=True):
            np.testing.assert_allclose(a.prob[:4], b.prob[:4], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose([a.bbox.x, a.bbox.h], [b.bbox.x, b.bbox.h], rtol=1e-4, atol=1e-3)
    darknet.free_batch_detections(pairs, 3)


def test_batch_detection_accepts_images_of_any_sizes(paths):
    network, names, colors = darknet.load_network(*paths, batch_size=2)
    frames = [opencv4.scene(), cv2.resize(opencv4.scene(), (400, 360)), opencv4.scene()[::-1].copy()]
    before = [p.copy() for p in frames]
    drawn, detections = darknet.batch_detection(network, frames, names, colors, thresh=0.7, batch_size=2)
    assert len(detections) == 3 and detections[0] and (drawn[0] != before[0]).any()
    for frame, found in zip(before, detections, strict=True):
        darknet.predict_image(network, prepare(network, frame)[0])
        dets = darknet.get_network_boxes(network, frame.shape[1], frame.shape[0], 0.7, 0.5, None, 0, None, 0)
        darknet.do_nms_obj(dets, len(dets), 4, 0.45)
        alone = darknet.remove_negatives(dets, names, len(dets))
        assert [(name, round(p, 4)) for name, p, _ in found] == [(name, round(p, 4)) for name, p, _ in alone]
        np.testing.assert_allclose([b for _, _, b in found], [b for _, _, b in alone], rtol=1e-3, atol=0.1)


def test_the_oldest_api_accepts_bytes(paths, folder):
    net = darknet.load_net(paths[0].encode(), paths[2].encode(), 0)
    meta = darknet.load_meta(paths[1].encode())
    assert meta.classes == 4 and meta.names[1].decode("ascii") == "cup"
    detections = darknet.detect(net, meta, str(folder / "photo.png").encode(), thresh=0.7)
    detector = gd.Detector(paths[0], paths[2], NAMES, backend=net.network.backend)
    expected = detector.detect(folder / "photo.png", thresh=0.7)
    assert [(name.decode(), round(p, 3)) for name, p, _ in detections] == [
        (d.label, round(d.confidence, 3)) for d in expected
    ]
    assert detections[0][1] >= detections[-1][1]


def test_classifier_script(folder):
    net = darknet.load_net_custom(str(folder / "classes.cfg"), str(folder / "classes.weights"), 0, 1)
    made, _ = prepare(net, opencv4.scene())
    probabilities = darknet.predict_image(net, made)
    best = sorted(((name, probabilities[i]) for i, name in enumerate("abcdefghij")), key=lambda x: -x[1])
    assert len(probabilities) == 10 and abs(sum(p for _, p in best) - 1) < 1e-5


def test_images_are_darknets(folder):
    photo = images.read(folder / "photo.png")
    loaded = darknet.load_image(str(folder / "photo.png").encode(), 96, 64)
    np.testing.assert_array_equal(loaded.planes()[0], images.network_input(photo, 96, 64))
    whole = darknet.load_image(str(folder / "photo.png"), 0, 0)
    boxed = darknet.letterbox_image(whole, 96, 64)
    assert (boxed.w, boxed.h, boxed.c) == (96, 64, 3) and boxed.planes()[0, 0, 0, 0] == 0.5
    red, blue = whole.planes()[0, 0].copy(), whole.planes()[0, 2].copy()
    darknet.rgbgr_image(whole)
    assert (whole.planes()[0, 0] == blue).all() and (whole.planes()[0, 2] == red).all()
    assert isinstance(whole.data[0], float) and ctypes.sizeof(darknet.IMAGE) >= 20


def test_skipped_classes(paths):
    network, names, _ = darknet.load_network(*paths)
    made, _ = prepare(network, opencv4.scene())
    every = darknet.detect_image(network, names, made, thresh=0.6)
    label = every[-1][0]
    darknet.add_skipped_class(network, names.index(label))
    assert label not in {name for name, _, _ in darknet.detect_image(network, names, made, thresh=0.6)}
    darknet.del_skipped_class(network, names.index(label))
    darknet.clear_skipped_classes(network)
    assert len(darknet.detect_image(network, names, made, thresh=0.6)) == len(every)


def test_bbox2points_and_version():
    assert darknet.bbox2points((10.4, 20, 5, 8)) == (8, 16, 13, 24)
    assert darknet.version_string() == f"gpudarknet v{gd.__version__}" and darknet.version_short() == gd.__version__


def test_too_few_bytes():
    with pytest.raises(DataError) as e:
        darknet.copy_image_from_bytes(darknet.make_image(4, 3, 3), b"12345")
    expected = "copy_image_from_bytes: 5 bytes for 4 x 3 x 3; resize the image to the network's input"
    assert str(e.value) == expected
