"""Object detection: a detector computed by hand, and photographs with pretrained weights."""

from __future__ import annotations

import tracemalloc
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny

import gpudarknet
from gpudarknet import Detector, image
from gpudarknet.errors import DarknetError, DataError, ImageError, WeightsError
from gpudarknet.io import download, resources

# Detections of the original program in photographs of the scikit-image package, at threshold 0.25 and with its own order
# (its command `detector test -out`): network / how the image is fitted / file -> label, confidence, relative box.
PHOTOGRAPHS = {
    "yolov4-tiny/stretch/coffee.png": [
        ("diningtable", 0.27826, (0.501126, 0.416547, 0.616208, 0.898272)),
        ("cup", 0.737244, (0.482306, 0.344699, 0.401599, 0.629292)),
        ("bowl", 0.327721, (0.482306, 0.344699, 0.401599, 0.629292)),
    ],
    "yolov4-tiny/stretch/chelsea.png": [
        ("dog", 0.336021, (0.426845, 0.503326, 0.929011, 0.977176)),
        ("cat", 0.372929, (0.499235, 0.419918, 0.909189, 0.959003)),
    ],
    "yolov4-tiny/letter/motorcycle_left.png": [
        ("motorbike", 0.948988, (0.506344, 0.496307, 0.830257, 0.806247)),
        ("motorbike", 0.279202, (0.031688, 0.352184, 0.067873, 0.230147)),
        ("motorbike", 0.277915, (0.204805, 0.411768, 0.33463, 0.401098)),
        ("motorbike", 0.272495, (0.114741, 0.384274, 0.170446, 0.348622)),
    ],
    "yolov3-tiny/letter/coffee.png": [("cup", 0.640471, (0.482486, 0.412765, 0.461219, 0.709286))],
    "yolov3-tiny/stretch/motorcycle_left.png": [("motorbike", 0.300838, (0.499864, 0.500153, 0.835385, 0.717679))],
    "yolov3-tiny/stretch/chelsea.png": [],
}
ROUNDING = 1e-5  # the program prints six decimals; its sums and ours are in float32, in another order


@pytest.fixture
def toy(tmp_path, be):
    """Return a function that makes the tiny detector."""
    tiny.files(tmp_path)

    def make(cfg=tiny.CFG, names=("cat", "dog"), **more):
        (tmp_path / "tiny.cfg").write_text(cfg)
        return Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", names, be, **more)

    return make


def test_detections_equal_hand_computed_ones(toy):
    cat, dog, half = toy().detect(tiny.image())
    assert [(d.label, d.class_id) for d in (cat, dog, half)] == [("cat", 0), ("dog", 1), ("cat", 0)]
    assert [d.confidence for d in (cat, dog, half)] == pytest.approx([0.864955, 0.455150, 0.451594], abs=1e-6)
    assert cat.box == pytest.approx((46, 19, 20, 10)) and dog.box == half.box == pytest.approx((14, 3, 20, 10))
    assert cat.relative == pytest.approx((3.5 / 4, 1.5 / 2, 20 / 64, 10 / 32))


def test_the_threshold_must_be_exceeded(toy):
    detector = toy()
    confidence = detector.detect(tiny.image(), thresh=0.5)[0].confidence
    assert len(detector.detect(tiny.image(), thresh=confidence - 1e-6)) == 1
    assert detector.detect(tiny.image(), thresh=confidence) == []


def test_a_batch_returns_a_list_per_image(toy, tmp_path):
    detector, black = toy(), np.zeros((45, 17, 3), np.uint8)
    large = np.full((96, 40, 3), (255, 0, 0), np.uint8)
    images = [black, tiny.image(), large, str(tmp_path / "tiny.png"), tmp_path / "tiny.png"]
    batch = detector.detect_batch(images)
    assert [len(one) for one in batch] == [0, 3, 8, 3, 3]
    for one, alone in zip(batch, images, strict=True):
        assert one == detector.detect(alone)
    assert detector.detect_batch([]) == []


def spotted(count: int) -> np.ndarray:
    """Return an image (32, 64, 3) in which `count` of the eight cells see a cat."""
    shown = np.zeros((32, 64, 3), np.uint8)
    for cell in range(count):
        shown[16 * (cell // 4), 16 * (cell % 4)] = 255 - 9 * cell, 0, 0  # of different confidences
    return shown


@pytest.mark.parametrize("batch", [1, 3, 8, None])
def test_results_do_not_depend_on_the_batch(toy, batch):
    detector, images = toy(), [spotted(k % 9) for k in range(20)]
    for given in (images, iter(images)):
        results = detector.detect_batch(given, nms=0, batch=batch)
        assert [len(one) for one in results] == [len(detector.detect(one, nms=0)) for one in images]
        for together, image_ in zip(results, images, strict=True):
            alone = detector.detect(image_, nms=0)
            assert together.class_id.tolist() == alone.class_id.tolist()
            np.testing.assert_allclose(together.xywhn, alone.xywhn, atol=ROUNDING)
            np.testing.assert_allclose(together.confidence, alone.confidence, atol=ROUNDING)
    assert {len(one) for one in results} == set(range(9))


def test_a_list_runs_in_batches_of_eight(toy, monkeypatch):
    detector, sizes, images = toy(), [], [tiny.image()] * 19
    run = detector.network.detect
    monkeypatch.setattr(detector.network, "detect", lambda x, *args: sizes.append(len(x)) or run(x, *args))
    for detect in (detector.detect_batch, detector.detect_boxes, lambda images: list(detector.detect_stream(images))):
        sizes.clear()
        assert len(detect(iter(images))) == 19 and sizes == [8, 8, 3]
    sizes.clear()
    assert len(detector.detect_batch(images, batch=None)) == 19 and sizes == [19]


def test_max_det_keeps_the_most_confident(toy):
    detector, image_ = toy(), spotted(8)
    everything = detector.detect(image_, nms=0, max_det=None)
    assert len(everything) == 8 and everything == detector.detect(image_, nms=0)
    for detect in (
        detector.detect,
        lambda *a, **k: detector.detect_batch([a[0]], *a[1:], **k)[0],
        lambda *a, **k: next(detector.detect_stream([a[0]], *a[1:], **k)),
    ):
        assert detect(image_, nms=0, max_det=3) == everything[:3]
        assert detect(image_, nms=0, max_det=np.int64(100)) == everything
    (scored,) = detector.detect_boxes([image_], nms=0)
    assert len(scored.boxes) == 8  # all, as mAP needs them
    assert detector.to_detections(scored) == everything and detector.to_detections(scored, 2) == everything[:2]


def test_max_det_counts_pairs_of_box_and_class_that_are_shown(toy):
    shown = tiny.image()  # its second box is a dog and a cat
    assert [d.label for d in toy().detect(shown, max_det=2)] == ["cat", "dog"]
    assert [d.label for d in toy(names=["dont_show cat", "dog"]).detect(shown, max_det=1)] == ["dog"]


def test_no_more_than_300_without_asking(tmp_path, be):
    tiny.files(tmp_path)
    (tmp_path / "tiny.cfg").write_text(tiny.CFG.replace("width=64", "width=640").replace("height=32", "height=160"))
    detector = Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ["cat", "dog"], be)
    red = np.full((160, 640, 3), (255, 0, 0), np.uint8)  # 40 x 10 cells
    assert len(detector.detect(red, nms=0)) == 300 and len(detector.detect(red, nms=0, max_det=None)) == 400


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_det": 0}, "max_det 0: must be an integer of at least 1, or None for all"),
        ({"max_det": -1}, "max_det -1: must be an integer of at least 1, or None for all"),
        ({"max_det": 2.5}, "max_det 2.5: must be an integer of at least 1, or None for all"),
        ({"max_det": "all"}, "max_det all: must be an integer of at least 1, or None for all"),
        ({"thresh": 25}, "thresh 25: must be 0 to 1, for example 0.25"),
        ({"thresh": -0.1}, "thresh -0.1: must be 0 to 1, for example 0.25"),
        ({"thresh": float("nan")}, "thresh nan: must be 0 to 1, for example 0.25"),
        ({"nms": 45}, "nms 45: must be 0 to 1, for example 0.45"),
    ],
)
def test_numbers_out_of_range(toy, options, message):
    detector, shown = toy(), [tiny.image()]
    calls = [lambda: detector.detect(shown[0], **options), lambda: detector.detect_batch(shown, **options)]
    calls.append(lambda: detector.detect_stream(shown, **options))  # at once, not at the first image
    if "max_det" not in options:
        calls.append(lambda: detector.detect_boxes(shown, **options))
    for call in calls:
        with pytest.raises(DataError) as error:
            call()
        assert str(error.value) == message


@pytest.mark.parametrize("kind", ["files", "arrays"])
def test_images_of_earlier_batches_are_not_kept(tmp_path, kind):
    tiny.files(tmp_path)
    detector = Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ["cat", "dog"], "numpy")
    picture, count, file = np.zeros((500, 500, 3), np.uint8), 64, tmp_path / "black.png"
    image.write(file, picture)
    tracemalloc.start()
    try:
        if kind == "files":
            assert len(detector.detect_batch(file for _ in range(count))) == count
        else:
            assert len(list(detector.detect_stream(picture.copy() for _ in range(count)))) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 8 < peak / picture.nbytes < 32  # two batches, and what reading and resizing needs


@pytest.mark.parametrize("source", ["argument", "cfg"])
def test_the_letterbox_can_be_set_in_two_places(toy, source):
    cfg = tiny.CFG.replace("[net]", "[net]\nletter_box=1") if source == "cfg" else tiny.CFG
    detector = toy(cfg, letterbox=source == "argument")
    red = np.full(
        (64, 64, 3), (255, 0, 0), np.uint8
    )  # fills the middle half of the input; the rest is gray, and nothing
    boxes = sorted(d.box for d in detector.detect(red, thresh=0.5))
    assert np.allclose(boxes, [(-4, 6, 40, 20), (-4, 38, 40, 20), (28, 6, 40, 20), (28, 38, 40, 20)], atol=1e-4)


def test_nms_keeps_the_better_of_two(toy):
    wide = toy(tiny.CFG.replace("anchors=20,10", "anchors=200,100"))  # every box now covers the other
    assert [d.label for d in wide.detect(tiny.image(), nms=0.45)] == [
        "cat",
        "dog",
    ]  # different classes do not suppress each other
    assert [d.label for d in wide.detect(tiny.image(), nms=0)] == ["cat", "dog", "cat"]
    diou = toy(tiny.CFG.replace("anchors=20,10", "anchors=200,100") + "nms_kind=diounms\nbeta_nms=0.001\n")
    assert len(diou.detect(tiny.image(), nms=0.45)) == 3  # any distance between centers is enough here


def test_names_can_be_a_file_a_list_or_none(toy, tmp_path):
    assert toy(names=tmp_path / "tiny.names").names == ("cat", "dog")
    assert toy(names=["a", "b", "c"]).names == ("a", "b", "c")
    assert toy(names=None).detect(tiny.image())[0].label == "class 0"
    hidden = toy(names=["dont_show cat", "dog"])
    assert [d.label for d in hidden.detect(tiny.image())] == ["dog"]
    with pytest.raises(DataError) as error:
        toy(names=["cat"])
    cfg = tmp_path / "tiny.cfg"
    assert str(error.value) == f"names: has 1 names, but {cfg} has 2 classes; use the names of its data set"


def test_a_network_without_boxes_is_rejected(tmp_path):
    path = tmp_path / "x.cfg"
    path.write_text("[net]\nwidth=4\nheight=2\nchannels=3\n[avgpool]\n[softmax]\n")
    with pytest.raises(DataError) as error:
        Detector(path)
    assert str(error.value) == (
        f"{path}: has no [yolo], [Gaussian_yolo], [region] or [detection] layer, so it predicts no boxes;"
        " run a classifier with `gpudarknet classifier predict`"
    )


def test_heads_must_agree_on_classes(tmp_path):
    path = tmp_path / "x.cfg"
    head = "[convolutional]\nfilters=6\nactivation=linear\n[yolo]\nmask=0\nanchors=2,3\nclasses=1\nnum=1\n"
    path.write_text(tiny.CFG + head)
    line = (tiny.CFG + head).count("\n") - 1
    with pytest.raises(DataError) as error:
        Detector(path)
    assert str(error.value) == f"{path}:{line}: the heads have different class counts (2, 1); make them equal"


def test_other_inputs_are_rejected(toy):
    detector = toy()
    for wrong in (
        np.zeros((4, 6, 3), np.float32),
        np.zeros((4, 6, 2), np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        "no.png",
    ):
        with pytest.raises(ImageError):
            detector.detect(wrong)


def test_infinite_boxes_are_dropped(toy, tmp_path):
    detector = toy()
    bytes_ = bytearray((tmp_path / "tiny.weights").read_bytes())
    bytes_[20 + 4 * 2 : 20 + 4 * 3] = np.float32(1000).tobytes()  # the bias of the width, whose exp is infinite
    (tmp_path / "tiny.weights").write_bytes(bytes_)
    with np.errstate(over="ignore"):
        assert toy().detect(tiny.image()) == [] and len(detector.detect(tiny.image())) == 3


def test_a_region_head_with_other_sizes_than_square(tmp_path, be):
    """YOLOv2's head: cells of the map, anchors in cells, softmax over classes."""
    cfg = tiny.CFG.split("[yolo]")[0] + "[region]\nanchors=1.25,0.625\nclasses=2\nnum=1\nsoftmax=1\ncoords=4\n"
    tiny.files(tmp_path)
    (tmp_path / "tiny.cfg").write_text(cfg)
    (cat,) = Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ["cat", "dog"], be).detect(tiny.image(), 0.5)
    softmax = 1 / (1 + np.exp(-4))  # of 2 and -2
    assert cat.label == "cat" and cat.confidence == pytest.approx(softmax / (1 + np.exp(-4)), abs=1e-6)
    assert cat.box == pytest.approx((46, 19, 20, 10))


@pytest.fixture(scope="module")
def pretrained():
    """Return a function that makes a detector with pretrained weights; skip if they are not available."""

    @cache
    def weights(name: str) -> Path | str:
        try:
            return download.weights(name)
        except WeightsError as e:
            return f"no pretrained weights: {e}"

    @cache
    def get(name: str, letterbox: bool) -> Detector:
        path = weights(name)
        if isinstance(path, str):
            pytest.skip(path)
        return Detector(resources.bundled_cfg(name), path, resources.find("coco", ".names"), "numpy", letterbox)

    return get


@pytest.fixture(scope="module")
def photographs() -> Path:
    """Return the folder of photographs bundled with scikit-image."""
    return Path(pytest.importorskip("skimage").__file__).parent / "data"


@pytest.mark.parametrize("case", PHOTOGRAPHS)
def test_detections_in_photographs_equal_the_original_programs(case, pretrained, photographs):
    network, fitted, file = case.split("/")
    detector = pretrained(network, fitted == "letter")
    (scored,) = detector.detect_boxes([photographs / file])
    img = image.read(photographs / file)
    assert (scored.height, scored.width) == img.shape[:2]
    rows, classes = np.nonzero(scored.probs)  # the same order as the program's, not only the same objects
    got = [(detector.names[c], scored.probs[k, c], scored.boxes[k]) for k, c in zip(rows, classes, strict=True)]
    assert [label for label, _, _ in got] == [label for label, _, _ in PHOTOGRAPHS[case]]
    for (_, confidence, box), (_, wanted, place) in zip(got, PHOTOGRAPHS[case], strict=True):
        assert confidence == pytest.approx(wanted, abs=ROUNDING) and box == pytest.approx(place, abs=ROUNDING)


def test_a_batch_of_photographs_equals_one_by_one(pretrained, photographs):
    files = [photographs / name for name in ("coffee.png", "chelsea.png", "astronaut.png")]
    detector = pretrained("yolov4-tiny", False)
    for together, file in zip(detector.detect_batch(files), files, strict=True):
        alone = detector.detect(file)
        assert [d.label for d in together] == [d.label for d in alone]
        assert np.allclose([d.relative for d in together], [d.relative for d in alone], atol=ROUNDING)


def test_public_names():
    assert gpudarknet.Detector is Detector and issubclass(DataError, DarknetError)
    assert [name for name in gpudarknet.__all__ if not hasattr(gpudarknet, name)] == []
