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
from gpudarknet.errors import CfgError, DarknetError, DataError, WeightsError

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


# What the library cannot show


def test_import_star_gives_what_it_gives_in_darknet_py():
    names = {}
    exec("from gpudarknet.darknet import *", names)
    for name in (
        "detect_image",
        "performDetect",
        "lib",
        "hasGPU",
        "netMain",
        "POINTER",
        "c_float",
        "Structure",
        "np",
        "ct",
        "os",
    ):
        assert name in names
    assert names["ct"] is ctypes and isinstance(names["hasGPU"], bool)
    from gpudarknet.darknet import darknet as itself

    assert itself is darknet and darknet.cast is ctypes.cast
    with pytest.raises(AttributeError, match="no attribute 'performDance'"):
        darknet.performDance  # noqa: B018


def test_lib_has_the_functions_under_their_c_names(here):
    get_width = darknet.lib.network_width
    get_width.argtypes, get_width.restype = [ctypes.c_void_p], ctypes.c_int  # as scripts declare them
    net = darknet.lib.load_network_custom(b"tiny.cfg", b"tiny.weights", 0, 1)
    assert get_width(net) == darknet.network_width(net) == 96
    assert darknet.network_predict_image is darknet.predict_image  # some versions of darknet.py have it so
    darknet.lib.set_batch_network(net, 2)
    small = darknet.lib.resize_image(darknet.load_image(b"photo.png", 0, 0), 10, 6)
    assert (small.w, small.h) == (10, 6) and len(
        darknet.predict(net, np.zeros((2, 3, 64, 96), np.float32))
    ) == 2 * 27 * 16 * 24
    with pytest.raises(AttributeError, match=r"darknet\.lib has no function train_detector: there is no libdarknet"):
        darknet.lib.train_detector  # noqa: B018


def test_arrays_become_images_in_each_version():
    frame = opencv4.scene()
    image = darknet.array_to_image(frame)  # the original returns the image alone, the fork its pixels too
    darknet.rgbgr_image(image)
    again, pixels = darknet.array_to_image(frame[:, :, ::-1])
    np.testing.assert_array_equal(image.planes(), again.planes())
    np.testing.assert_array_equal(pixels, again.planes().ravel())
    assert darknet.array_to_image(frame)[0].w == 200
    copied = darknet.nparray_to_image(frame[::2, ::-1])
    np.testing.assert_allclose(copied.pixels(), frame[::2, ::-1] / np.float32(255))


def test_paths_and_strings_are_accepted(here):
    net = darknet.load_net(here / "tiny.cfg", "tiny.weights", 0)
    meta = darknet.load_meta(here / "tiny.data")
    by_path = darknet.detect(net, meta, here / "photo.png", thresh=0.7)
    assert by_path == darknet.detect(net, meta, "photo.png", thresh=0.7)
    assert by_path == darknet.detect(net, meta, opencv4.scene()[:, :, ::-1], thresh=0.7)
    assert by_path == darknet.detect(net, meta, darknet.load_image(b"photo.png", 0, 0), thresh=0.7)


def test_names_without_a_number_of_classes(here):
    (here / "names.data").write_text("names = tiny.names\n")
    assert darknet.load_meta(b"names.data").classes == 4


def test_pointers_end(here):
    """In the library, a loop over a pointer does not end, and an index beyond its elements reads what is there."""
    net = darknet.load_net_custom(b"tiny.cfg", b"tiny.weights", 0, 1)
    out = darknet.predict_image(net, darknet.load_image(b"photo.png", 0, 0))
    dets = darknet.get_network_boxes(net, 200, 120, 0.7)
    assert len(out) == 27 * 16 * 24 and sum(1 for _ in dets) == len(dets) > 1
    assert [d.objectness for d in dets[::-1]] == [d.objectness for d in dets][::-1]
    assert dets[-1].bbox.x == dets[len(dets) - 1].bbox.x and dets[5:2] == []
    for read in (lambda: dets[len(dets)], lambda: dets[0].prob[4], lambda: darknet.load_meta(b"tiny.data").names[4]):
        with pytest.raises(IndexError):
            read()
    with pytest.raises(IndexError):
        dets[len(dets)] = dets[0]
    assert list(darknet.get_network_boxes(net, 200, 120, 0.99999)) == []


def test_what_was_read_outlives_what_it_was_read_from(here):
    net = darknet.load_net_custom(b"tiny.cfg", b"tiny.weights", 0, 1)
    darknet.predict_image(net, darknet.load_image(b"photo.png", 0, 0))
    expected = darknet.get_network_boxes(net, 200, 120, 0.7)[0].prob[:4]
    probs = [darknet.get_network_boxes(net, 200, 120, 0.7)[0].prob for _ in range(50)]
    planes = [darknet.load_image(b"photo.png", 0, 0).planes() for _ in range(50)]
    names = darknet.load_meta(b"tiny.data").names
    darknet.free_network_ptr(net)
    assert all(prob[:4] == expected for prob in probs) and all((p == planes[0]).all() for p in planes)
    assert names[:] == [name.encode() for name in NAMES]


def test_best_classes(here):
    """The library leaves best_class_idx at 0 for [yolo], so that its remove_negatives_faster gives the first class."""
    net = darknet.load_net_custom(b"tiny.cfg", b"tiny.weights", 0, 1)
    darknet.predict_image(net, darknet.load_image(b"photo.png", 0, 0))
    dets = darknet.get_network_boxes(net, 200, 120, 0.7)
    darknet.do_nms_sort(dets, len(dets), 4, 0.45)
    best = darknet.remove_negatives_faster(dets, NAMES, len(dets))
    every = darknet.remove_negatives(dets, NAMES, len(dets))
    assert best and {b[2] for b in best} == {e[2] for e in every}
    assert all(b[1] == max(p for _, p, box in every if box == b[2]) for b in best)


def empty_image():
    return darknet.IMAGE(96, 64, 3)


def mistakes(net, folder):
    (folder / "more.data").write_text("classes = 5\nnames = tiny.names\n")
    floats = darknet.c_array(ctypes.c_float, [0.0] * 9)
    gray, meta = darknet.make_image(96, 64, 1), darknet.load_meta(b"tiny.data")
    return {
        "more.data: has classes=5, but tiny.names has 4 names; correct one of them": lambda: darknet.load_meta(b"more.data"),
        "None in place of a file's name": lambda: darknet.load_net(None, None, 0),
        "5 in place of a file's name": lambda: darknet.load_net(5, None, 0),
        "LP_c_float: points to no elements, 18432 are needed": lambda: darknet.predict_image(net, empty_image()),
        "c_float_Array_9: points to 9 elements, 18432 are needed": lambda: darknet.predict(net, floats),
        "the image has 1 channels, the network 3; make one of that many": lambda: darknet.predict_image(net, gray),
        "rgbgr_image: an image of 1 channels has no red and blue": lambda: darknet.rgbgr_image(gray),
        "make_image: 0 x 4 x 3; every side must be at least 1": lambda: darknet.make_image(0, 4, 3),
        "free_image: None is not an IMAGE": lambda: darknet.free_image(None),
        "there are no boxes before an image was run; call predict_image first":
            lambda: darknet.get_network_boxes(net, 200, 120, 0.5),
        "classify: the network has 2 outputs, the names are 4": lambda: darknet.classify(two_classes(folder), meta, photo()),
        "thresh 1: must be between 0 and 1": lambda: darknet.performDetect("photo.png", 1),
        "none.png: no such file; check the path":
            lambda: darknet.load_image(b"none.png", 0, 0),
    }  # fmt: skip


def photo():
    return darknet.load_image(b"photo.png", 0, 0)


def two_classes(folder):
    (folder / "two.cfg").write_text(opencv4.NET.format(8, 8) + opencv4.conv(2) + "[avgpool]\n[softmax]\n")
    return darknet.load_net(b"two.cfg", None, 0)


def test_mistakes_are_told_in_one_line(here):
    net = darknet.load_net(b"tiny.cfg", b"tiny.weights", 0)
    for message, call in mistakes(net, here).items():
        with pytest.raises(DarknetError) as error:
            call()
        assert str(error.value) == message
    darknet.free_network_ptr(net)
    with pytest.raises(CfgError, match="the network was freed by free_network_ptr; load it again"):
        darknet.predict_image(net, photo())


def test_perform_detect_shows_or_says_that_it_cannot(here, monkeypatch, capsys):
    files = ("photo.png", 0.7, "tiny.cfg", "tiny.weights", "tiny.data")
    shown = []
    monkeypatch.setattr(cv2, "imshow", lambda title, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda: -1)
    result = darknet.performDetect(*files)
    np.testing.assert_array_equal(shown[0], result["image"][..., ::-1])
    assert (result["image"] != opencv4.scene()[..., ::-1]).any()

    def fail(title, picture):
        raise cv2.error("no window")

    monkeypatch.setattr(cv2, "imshow", fail)
    assert darknet.performDetect(*files)["detections"] == result["detections"]
    assert "Unable to show image" in capsys.readouterr().out


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


def test_numbers_are_checked(here):
    net = darknet.load_net_custom(b"tiny.cfg", b"tiny.weights", 0, 1)
    image = darknet.load_image(b"photo.png", 0, 0)
    for thresh in (None, "0.5"):
        with pytest.raises(DataError, match=r"^get_network_boxes: thresh must be a number, not "):
            darknet.detect_image(net, NAMES, image, thresh=thresh)
    with pytest.raises(DataError, match=r"^make_image: w must be a number, not '3'$"):
        darknet.make_image("3", 2, 1)
    with pytest.raises(DataError, match="-1 x 5; a side must be at least 1"):
        darknet.load_image(b"photo.png", -1, 5)


def test_importing_all_names_gives_cv2():
    names = {}
    exec("from gpudarknet.darknet import *", names)
    assert names["cv2"] is cv2
