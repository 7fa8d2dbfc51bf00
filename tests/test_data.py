"""Label files, augmentation and the loader: boxes match the pixels, errors are reported, batches are deterministic."""

from __future__ import annotations

import numpy as np
import pytest
from spots import files, spots

from gpudarknet import cfg, data
from gpudarknet.data.augment import (
    ClassifierAugment,
    Colors,
    DetectionAugment,
    Margins,
    crop,
    crop_boxes,
    shift_margins,
)
from gpudarknet.errors import CfgWarning, DataError
from gpudarknet.layers import SECTIONS
from gpudarknet.layers.class_tree import Tree

STILL = dict(classes=3, truth=SECTIONS["yolo"](max=5).truth, jitter=0.0, flip=False)


def check(x, truth, at_least=1):
    """Check that every true box tightly encloses pixels of its class's color, within 2 pixels; return their number."""
    _, H, W = x.shape
    rows = truth.reshape(-1, 6)
    rows = rows[rows[:, 2] > 0]
    assert len(rows) >= at_least
    for bx, by, w, h, k, _ in rows:
        color = (x[int(k)] > 0.6) & (x.sum(axis=0) - x[int(k)] < 0.5)
        i, j = np.nonzero(color)
        inside = (np.abs(j + 0.5 - bx * W) < w * W / 2 + 2) & (np.abs(i + 0.5 - by * H) < h * H / 2 + 2)
        assert inside.sum() > 0.8 * (w * W - 2) * (h * H - 2)
    return len(rows)


AUGMENTS = {
    "still": {},
    "flip": dict(flip=True),
    "jitter": dict(jitter=0.3),
    "resize": dict(resize=1.5, jitter=0.1),
    "letter_box": dict(letter_box=True),
    "mosaic": dict(mosaic=True, jitter=0.2, flip=True, resize=1.3),
    "mosaic_bound": dict(mosaic=True, mosaic_bound=True, jitter=0.3, flip=True),
    "blur and noise": dict(blur=1, gaussian_noise=10),
    "colors": dict(colors=Colors(saturation=1.3, exposure=1.2)),
}


@pytest.mark.parametrize("name", AUGMENTS)
def test_boxes_match_the_pixels(name):
    augment = DetectionAugment(**STILL | AUGMENTS[name])
    total = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, truth = augment.sample(lambda r: spots(seed=int(r.integers(9))), rng, 128, 96)
        assert x.shape == (3, 96, 128) and x.dtype == np.float32 and 0 <= x.min() and x.max() <= 1 + 1e-6
        total += check(x, truth, 0)
    assert total > 20


def test_a_still_image_is_only_resized():
    image, boxes = spots()
    x, truth = DetectionAugment(**STILL).sample(lambda r: (image, boxes), np.random.default_rng(0), 90, 60)
    np.testing.assert_array_equal(np.rint(x * 255).astype(np.uint8), image.transpose(2, 0, 1))
    rows = truth.reshape(5, 6)
    np.testing.assert_allclose(rows[np.argsort(rows[:3, 4]), :5], boxes, atol=1e-6)
    assert not rows[3:].any()


def test_letter_box_keeps_the_aspect_ratio():
    """A 90 x 30 image in 64 x 64: 21 rows of image, the mean color above and below."""
    image = np.full((30, 90, 3), 200, np.uint8)
    boxes = np.array([[0.5, 0.5, 0.2, 0.2, 0]], np.float32)
    x, truth = DetectionAugment(**STILL, letter_box=True).sample(
        lambda r: (image, boxes), np.random.default_rng(0), 64, 64
    )
    assert x.min() == x.max()  # the mean color of one color
    assert truth[:5] == pytest.approx([0.5, 0.5, 0.2, 0.2 / 3, 0], abs=1e-6)


def test_mixup_averages_two_images():
    dark, light = np.full((6, 9, 3), 10, np.uint8), np.full((6, 9, 3), 211, np.uint8)
    box = np.array([[0.5, 0.5, 0.5, 0.5, 1]], np.float32)
    for seed in range(20):
        images = iter((dark, light))
        x, truth = DetectionAugment(**STILL, mixup=True).sample(
            lambda r, p=images: (next(p), box), np.random.default_rng(seed), 8, 6
        )
        if x[0, 0, 0] * 255 != pytest.approx(10):
            assert x[0, 0, 0] * 255 == pytest.approx(111, abs=1)
            assert truth.reshape(5, 6)[:3, 4].tolist() == [1, 1, 0]
            return
    pytest.fail("no mixup in 20 samples")


def test_crop_fills_with_the_mean_color():
    image, _ = spots()
    out = crop(image, Margins(left=-5, right=10, top=4, bottom=-6))
    assert out.shape == (60 - 4 + 6, 90 + 5 - 10, 3)
    np.testing.assert_array_equal(out[:-6, 5:], image[4:, :80])
    mean = np.rint(image.mean(axis=(0, 1)))
    assert (out[:, :5] == mean).all() and (out[-6:] == mean).all()


def test_negative_ranges_are_their_absolute_values():
    """As in Darknet, whose rand_uniform exchanges the ends."""
    net = cfg.parse("[net]\nwidth=32\nheight=32\nchannels=3\nhue=-.1\nangle=-7\n[yolo]\n").net
    with pytest.warns(CfgWarning, match="jitter=-0.3 must be between 0 and 1"):
        config = cfg.parse("[net]\nwidth=32\nheight=32\nchannels=3\nhue=-.1\n[yolo]\njitter=-.3\n")
    detection = DetectionAugment.of(config.net, config.layers[0])
    assert (detection.jitter, detection.colors.hue) == (0.3, 0.1)
    classification = ClassifierAugment.of(net, 2)
    assert (classification.angle, classification.colors.hue) == (7, 0.1)


@pytest.mark.parametrize("margins", [(9, -9, 0, 0), (-9, 9, 0, 0), (0, 0, 9, -9), (0, 0, -9, 9)])
def test_a_crop_beside_the_image_has_its_mean_color(margins):
    """With a jitter of more than 1."""
    image = np.full((4, 4, 3), 7, np.uint8)
    np.testing.assert_array_equal(crop(image, Margins(*margins)), image)


def test_boxes_that_leave_the_crop_are_clipped_and_dropped():
    boxes = np.array([[0.1, 0.5, 0.1, 0.2, 0], [0.5, 0.5, 0.4, 0.2, 1]], np.float32)
    out = crop_boxes(boxes, Margins(50, 0, 0, 0), 100, 60, False, np.random.default_rng(0))
    out = out[out[:, 4].argsort()]
    assert out[0, 2] == 0  # left of the crop
    assert out[1, :4] == pytest.approx([0.2, 0.5, 0.4, 0.2])  # 0.5 .. 0.7 of the image is 0 .. 0.4 of the crop
    mirrored = crop_boxes(boxes, Margins(50, 0, 0, 0), 100, 60, True, np.random.default_rng(0))
    assert mirrored[mirrored[:, 4].argsort()][1, 0] == pytest.approx(0.8)


def clipped(boxes, margins, ow, oh, flip=False):
    """Return what `correct_boxes` and `fill_truth_detection` of src/data.c make of boxes, written as loops."""
    sx, sy = (ow - margins.left - margins.right) / ow, (oh - margins.top - margins.bottom) / oh
    dx, dy = margins.left / ow / sx, margins.top / oh / sy
    out = []
    for x, y, w, h, k in boxes:
        if x == y == 0 or x + w / 2 < 0 or y + h / 2 < 0 or x - w / 2 > 1 or y - h / 2 > 1:
            continue
        left, right, top, bottom = (
            (x - w / 2) / sx - dx,
            (x + w / 2) / sx - dx,
            (y - h / 2) / sy - dy,
            (y + h / 2) / sy - dy,
        )
        if flip:
            left, right = 1 - right, 1 - left
        left, right, top, bottom = (min(max(v, 0), 1) for v in (left, right, top, bottom))
        if right - left >= 1 / 100 and bottom - top >= 1 / 60:
            out.append(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top, k))
    return sorted(out, key=lambda row: row[4])


# Boxes of one class each: over the left edge with the center outside, over the right edge, above the image, larger than the
# image, right of it, below it, and around its corner
EDGE = [(-0.05, 0.5, 0.2, 0.2, 0), (1.0, 0.5, 0.3, 0.1, 1), (0.5, -0.2, 0.1, 0.2, 2), (0.5, 0.5, 1.5, 1.2, 3),
        (1.2, 0.5, 0.1, 0.1, 4), (0.5, 1.15, 0.2, 0.2, 5), (0, 0, 0.4, 0.4, 6)]  # fmt: skip


def sampled(margins, flip=False, **keys):
    """Return the truths (K, 5), sorted by class, of a 100 x 60 image with EDGE as its boxes, cropped by these margins."""

    class Fixed(DetectionAugment):
        def random_margins(self, rng, ow, oh, ratio):
            return margins

    augment = Fixed(**STILL | dict(classes=7, truth=SECTIONS["yolo"](max=9).truth, flip=flip) | keys)
    seed = next(s for s in range(99) if not flip or np.random.default_rng(s).random() < 0.5)
    image, boxes = np.zeros((60, 100, 3), np.uint8), np.array(EDGE, np.float32)
    rows = augment.sample(lambda r: (image, boxes), np.random.default_rng(seed), 100, 60)[1].reshape(-1, 6)[:, :5]
    rows = rows[rows[:, 2] > 0]
    return rows[rows[:, 4].argsort()]


def test_boxes_that_reach_over_the_edge_are_clipped():
    """By hand: -0.05 +- 0.1 becomes 0 .. 0.05, 1 +- 0.15 becomes 0.85 .. 1, and all of the image is 0 .. 1."""
    rows = sampled(Margins(0, 0, 0, 0))
    expected = [[0.025, 0.5, 0.05, 0.2, 0], [0.925, 0.5, 0.15, 0.1, 1], [0.5, 0.5, 1, 1, 3]]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("margins", [Margins(10, -20, 5, 0), Margins(-30, 0, -15, -40), Margins(40, 30, -6, 20)])
def test_boxes_over_the_edge_are_cropped_as_in_darknet(margins, flip):
    """They reach into a border; boxes outside the image do not come back in it."""
    expected = clipped(EDGE, margins, 100, 60, flip)
    np.testing.assert_allclose(sampled(margins, flip), expected, atol=1e-6)


@pytest.mark.parametrize("keys", [dict(mosaic=True), dict(mosaic=True, mosaic_bound=True), dict(mixup=True)])
def test_boxes_outside_the_image_do_not_come_back_in_combined_images(keys):
    image, boxes = np.zeros((60, 100, 3), np.uint8), np.array(EDGE, np.float32)
    augment = DetectionAugment(**STILL | dict(classes=7, truth=SECTIONS["yolo"](max=40).truth, jitter=0.3) | keys)
    seen = set()
    for seed in range(30):
        rows = augment.sample(lambda r: (image, boxes), np.random.default_rng(seed), 100, 60)[1].reshape(-1, 6)
        rows = rows[rows[:, 2] > 0]
        seen |= {*rows[:, 4].tolist()}
        corners = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2])
        assert corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6
    assert seen == {0, 1, 3}


def test_truths_in_cells():
    """fill_truth_region by hand: a cell has 1, the class, x and y within it, w and h; of two boxes in a cell the first counts."""
    head = SECTIONS["detection"](side=2, classes=3, coords=4)
    boxes = np.array([[0.75, 0.3, 0.4, 0.1, 2], [0.6, 0.4, 0.9, 0.9, 0], [0.1, 1.0, 0.2, 0.2, 1]], np.float32)
    truth = head.truth(boxes).reshape(2, 2, 8)
    np.testing.assert_allclose(truth[0, 1], [1, 0, 0, 1, 0.5, 0.6, 0.4, 0.1], atol=1e-6)
    np.testing.assert_allclose(truth[1, 0], [1, 0, 1, 0, 0.2, 1.0, 0.2, 0.2], atol=1e-6)
    assert not truth[0, 0].any() and not truth[1, 1].any()
    np.testing.assert_allclose(head.truth_boxes(truth.reshape(-1)), boxes[[0, 2]], atol=1e-6)
    rows = SECTIONS["yolo"](max=5)
    np.testing.assert_array_equal(rows.truth_boxes(rows.truth(boxes)), boxes)


def test_shifted_margins_keep_the_size():
    margins = Margins(3, -7, 2, 5)
    for corner in range(4):
        for flip in (False, True):
            new = shift_margins(margins, corner, flip)
            assert (new.left + new.right, new.top + new.bottom) == (-4, 7)
            assert 0 in (new.left, new.right) and 0 in (new.top, new.bottom)


# Classifier


def classifier(**keys):
    return ClassifierAugment(**dict(classes=4, min_crop=24, max_crop=24, flip=False) | keys)


def test_the_center_crop():
    """min_crop = the short side = the input: the center of the image, unscaled."""
    image = np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8)
    x, truth = classifier().sample(lambda r: (image, np.array([[0, 0, 0, 0, 2]])), np.random.default_rng(0), 24, 24)
    np.testing.assert_allclose(x, image.transpose(2, 0, 1) / 255, atol=1e-6)
    assert truth.tolist() == [0, 0, 1, 0]


def test_rotation_by_90_degrees():
    """A dot right of the center moves above it: the crop is sampled along rotated axes."""
    image = np.zeros((25, 25, 1), np.uint8)
    image[12, 20] = 255
    augment = classifier(min_crop=25, max_crop=25, angle=90.0)

    class Full(np.random.Generator):
        def uniform(self, low, high, size=None):
            return high

    x, _ = augment.augment_image(lambda r: (image, np.zeros((1, 5))), Full(np.random.PCG64(0)), 25, 25)
    assert np.unravel_index(x.argmax(), x.shape)[:2] in {(4, 12), (4, 13), (5, 12), (5, 13)}


@pytest.mark.parametrize(
    ("mixing", "values"),
    [("mixup", {10, 200, 105}), ("cutmix", {10, 200}), ("mosaic", {10, 200}), ("cutmix or mosaic", {10, 200})],
)
def test_mixed_images_mix_their_labels(mixing, values):
    """The truth is the fraction of each image's pixels."""
    shades, mixed = (10, 200), 0
    for seed in range(12):

        def draw(rng):
            k = int(rng.integers(2))
            return np.full((24, 24, 3), shades[k], np.uint8), np.array([[0, 0, 0, 0, k]], np.float32)

        x, truth = classifier(mixing=mixing).sample(draw, np.random.default_rng(seed), 24, 24)
        assert set(np.unique(np.rint(x * 255)).astype(int)) <= values
        assert truth.sum() == pytest.approx(1)
        assert x.mean() * 255 == pytest.approx(10 * truth[0] + 200 * truth[1], abs=1e-2)
        mixed += truth.max() < 1
    assert mixed


def test_truths():
    assert classifier(label_smooth_eps=0.3).truth(np.array([1])) == pytest.approx([0.1, 0.7, 0.1, 0.1])
    tree = Tree(names=tuple("abcdef"), parents=(-1, -1, 1, 1, 0, 0), starts=(0, 2, 4))
    assert classifier(classes=6, tree=tree).truth(np.array([3])).tolist() == [0, 1, 0, 1, -1234, -1234]


# Files


def test_labels(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        "2 0.5 0.25 0.1 0.2\n\n0 0.5 0.5 1.5 0.2 9\n7 0.5 0.5 0.1 0.1\n-1 .5 .5 .1 .1\n0.5 .5 .5 .1 .1\n"
        "1 .1 .1 .2 .1 .2 .2\n1 0.5 x 0.1 0.1\n1 .5 .5 .1 .1\n"
    )
    boxes, errors = data.read_labels(path, 3)
    np.testing.assert_allclose(boxes, [[0.5, 0.25, 0.1, 0.2, 2], [0.5, 0.5, 1.5, 0.2, 0]])
    assert errors == [
        f"{path}:4: class 7 is not one of 0 to 2",
        f"{path}:5: class -1 is not one of 0 to 2",
        f"{path}:6: class 0.5 is not one of 0 to 2",
        f"{path}:7: has 7 values; a box has five: class x y width height",
        f"{path}:8: expected 'class x y width height', found '1 0.5 x 0.1 0.1'; the rest of the file is ignored",
    ]
    path.write_text("\ufeff0 0.5 0.5 0.1 0.001\r\n0 0.5 0.5 0 0.1\n0 0.5 nan 0.1 0.1\n")
    boxes, errors = data.read_labels(path, 3, (416, 320))
    np.testing.assert_allclose(boxes, [[0.5, 0.5, 0.1, 0.001, 0]])
    assert errors == [
        f"{path}:1: box of 42 x 0.32 pixels in an input of 416 x 320 is smaller than one pixel and is not trained",
        f"{path}:2: box 0.5 0.5 0 0.1 has no size",
        f"{path}:3: expected 'class x y width height', found '0 0.5 nan 0.1 0.1'; the rest of the file is ignored",
    ]
    for line in ("0_1 .5 .5 .1 .1", "\uff11 .5 .5 .1 .1"):  # which float() reads as 1
        path.write_text(f"0 .5 .5 .1 .1\n{line}\n")
        boxes, errors = data.read_labels(path, 3)
        assert len(boxes) == 1
        assert errors == [
            f"{path}:2: expected 'class x y width height', found '{line}'; the rest of the file is ignored"
        ]
    boxes, errors = data.read_labels(tmp_path / "none.txt", 3)
    assert boxes.shape == (0, 5)
    assert errors == [f"{tmp_path}/none.txt: cannot be read (No such file or directory); its image counts as empty"]


def test_boxes_that_reach_over_the_edge_are_not_clipped(tmp_path):
    """Darknet clips them in training only (correct_boxes), after the crop; boxes that do not overlap the image are errors."""
    path = tmp_path / "a.txt"
    path.write_text(
        "0 0 0.5 0.2 0.2\n0 -0.05 0.5 0.2 0.2\n0 1.09 1.05 0.2 0.2\n0 0.5 0.5 1.2 1.5\n"
        "0 -0.1 0.5 0.2 0.2\n0 1.2 0.5 0.2 0.2\n0 50 40 20 10\n0 0.5 0.5 50 1\n"
    )
    boxes, errors = data.read_labels(path, 1)
    np.testing.assert_allclose(
        boxes[:, :4],
        [[0, 0.5, 0.2, 0.2], [-0.05, 0.5, 0.2, 0.2], [1.09, 1.05, 0.2, 0.2], [0.5, 0.5, 1.2, 1.5], [0.5, 0.5, 50, 1]],
    )
    assert errors == [
        f"{path}:5: box -0.1 0.5 0.2 0.2 is outside the image; values must be relative, 0 to 1",
        f"{path}:6: box 1.2 0.5 0.2 0.2 is outside the image; values must be relative, 0 to 1",
        f"{path}:7: box 50 40 20 10 is outside the image; values must be relative, 0 to 1",
        f"{path}:8: box 0.5 0.5 50 1 is far larger than the image; values must be relative, 0 to 1",
    ]


def test_tracks(tmp_path):
    """A sixth number is the track; without one each line of each file has a unique one. Only with tracks=True."""
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    for name in (path, other):
        name.write_text("0 .5 .5 .1 .1 17\n1 .5 .5 .1 .1\n2 .5 .5 .1 .1\n")
    (boxes, _), (more, _) = (data.read_labels(name, 3, tracks=True) for name in (path, other))
    assert boxes.shape == (3, 6) and boxes[0, 5] == more[0, 5] == 17
    assert boxes[2, 5] - boxes[1, 5] == 1 and len({*boxes[1:, 5], *more[1:, 5]}) == 4
    assert data.read_labels(path, 3)[0].shape == (3, 5)
    path.write_text("0 .5 .5 .1 .1 a\n")
    assert data.read_labels(path, 3, tracks=True)[1] == [
        f"{path}:1: expected 'class x y width height [track]', found '0 .5 .5 .1 .1 a'; the rest of the file is ignored"
    ]


@pytest.mark.parametrize("extra", [{}, dict(mosaic=True, jitter=0.2, flip=True), dict(mixup=True, jitter=0.2, blur=3)])
def test_sequences(extra):
    """Two subdivisions of three steps of two sequences with stride 1 to 2; all steps of a sequence are augmented alike."""
    paths, read = [str(k) for k in range(50)], []

    class Frames(data.DataSet):
        def first_readable(self, indices):
            read.append(indices[0])
            rng = np.random.default_rng(indices[0])  # other boxes in every frame
            boxes = np.concatenate([rng.uniform(0.2, 0.6, (int(rng.integers(5)), 5)) * [1, 1, 1, 1, 0]])
            return spots()[0], boxes.astype(np.float32)

    source = Frames(paths, DetectionAugment(**STILL | extra), None, sequences=data.Sequences(3, 2, 2))
    samples, frames = [], []
    for number in range(12):
        read.clear()
        samples.append(source.sample(1, 7, number, (64, 48))[0])
        frames.append(list(read))
    begins = []
    for part in (0, 6):
        for sequence in (0, 1):
            steps = np.array(frames[part + sequence : part + 6 : 2])  # [step, image of the sample]
            assert set((steps[1] - steps[0]).tolist()) <= {1, 2} and (steps[2] - steps[1] == steps[1] - steps[0]).all()
            begins.append(steps[0, 0])
            if "blur" not in extra:  # which depends on the boxes
                for k in (2, 4):
                    np.testing.assert_array_equal(samples[part + sequence], samples[part + sequence + k])
    assert len(set(begins)) == 4


def test_an_error_is_written_once(tmp_path):
    """Also by several runs; each run reports its own errors."""
    for _ in range(2):
        bad_samples = data.BadSamples(tmp_path)
        for _ in range(2):
            bad_samples.add_label("a.txt:1: wrong")
        assert bad_samples.labels == ["a.txt:1: wrong"]
    assert (tmp_path / "bad_label.list").read_text() == "a.txt:1: wrong\n"
    nowhere = data.BadSamples(tmp_path / "none")  # an unwritable folder does not stop training
    nowhere.add_label("a.txt:1: wrong")
    assert nowhere.labels == ["a.txt:1: wrong"]


def test_a_list_of_images(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "list.txt").write_text("a.png\n\n/b/c.png\r\n")
    assert data.read_list(tmp_path / "sub" / "list.txt") == [str(tmp_path / "sub" / "a.png"), "/b/c.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home.txt").write_text("~/d.png\n")
    assert data.read_list(tmp_path / "home.txt") == [str(tmp_path / "d.png")]
    (tmp_path / "windows.txt").write_text("sub\\list.txt\nsub\\none.png\n")
    assert data.read_list(tmp_path / "windows.txt") == [f"{tmp_path}/sub/list.txt", f"{tmp_path}/sub/none.png"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=r"empty.txt: is empty; it must have the path of an image on each line$"):
        data.read_list(tmp_path / "empty.txt")
    (tmp_path / "row.txt").write_text("a.png," * 1000)
    with pytest.raises(
        DataError, match=r"row.txt: has a line of 6000 characters; it must have the path of an image on each"
    ):
        data.read_list(tmp_path / "row.txt")


def test_batches_depend_on_seed_and_iteration_only(tmp_path):
    augment = DetectionAugment(**STILL | AUGMENTS["mosaic"])
    source = data.DataSet(files(tmp_path), augment, data.detection_boxes(3))
    with data.Loader(source, 3, lambda k: (64, 32 + 32 * (k % 2)), seed=1, workers=2) as loader:
        straight = [loader.get(k) for k in range(4)]
    assert [x.shape for x, _ in straight] == [(3, 3, 32, 64), (3, 3, 64, 64)] * 2
    assert straight[0][1].shape == (3, 30)
    with data.Loader(source, 3, lambda k: (64, 32 + 32 * (k % 2)), seed=1, workers=1) as loader:
        for k in (3, 1):
            for a, b in zip(loader.get(k), straight[k], strict=True):
                np.testing.assert_array_equal(a, b)
    assert not np.array_equal(straight[0][0], straight[2][0])


def test_unreadable_images_are_skipped(tmp_path):
    paths = files(tmp_path, 1)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nxx")
    (tmp_path / "0.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    source = data.DataSet(
        [*paths, str(broken)], DetectionAugment(**STILL), data.detection_boxes(3), bad_samples=data.BadSamples(tmp_path)
    )
    with data.Loader(source, 6, lambda k: (64, 32)) as loader:
        assert loader.get(0)[0].shape == (6, 3, 32, 64)
    reason = f"{broken}: is truncated; download or save the file again"
    assert source.bad_samples.images == [reason]
    assert (tmp_path / "bad.list").read_text() == f"{reason}\n"
    assert (tmp_path / "bad_label.list").read_text() == f"{tmp_path}/0.txt:1: class 9 is not one of 0 to 2\n"
    nothing = data.DataSet([str(broken)], DetectionAugment(**STILL), data.detection_boxes(3))
    with data.Loader(nothing, 1, lambda k: (64, 32)) as loader, pytest.raises(DataError) as e:
        loader.get(0)
    assert str(e.value) == f"{reason}; no readable image in 100 tries, check the list"


def test_classes_by_path():
    bad_samples = data.BadSamples()
    read = data.classifier_boxes(["cat", "dog"])
    assert read("/x/dog.1.png", bad_samples)[:, 4].tolist() == [1]
    read("/x/cow.png", bad_samples)
    assert read("/x/dogcat.png", bad_samples)[:, 4].tolist() == [0, 1]
    assert bad_samples.labels == [
        "/x/cow.png: 0 labels occur in its path; it should be one",
        "/x/dogcat.png: 2 labels occur in its path: 'cat' 'dog'; it should be one",
    ]


def test_random_sizes():
    net = cfg.parse("[net]\nwidth=416\nheight=320\nchannels=3\nmax_batches=1000\n[avgpool]\n").net
    fixed = data.input_size(net, [SECTIONS["yolo"]()], 0)
    assert fixed(5) == fixed(500) == (416, 320)
    heads = [SECTIONS["yolo"](), SECTIONS["yolo"](random=1.0), SECTIONS["avgpool"]()]
    size = data.input_size(net, heads, 0)
    largest = (int(1.4 * 416 / 32 + 1.5) * 32, int(1.4 * 320 / 32 + 1.5) * 32)
    assert size(0) == size(950) == largest
    assert all(size(10 * k) == size(10 * k + 9) for k in range(1, 20))
    assert size(900) == size(909) != largest  # the last size drawn before the last 100 iterations
    sizes = {size(10 * k) for k in range(1, 60)}
    assert len(sizes) > 8 and all(w % 32 == h % 32 == 0 and w <= largest[0] for w, h in sizes)


@pytest.mark.parametrize(
    ("section", "varies"), [("yolo", True), ("Gaussian_yolo", True), ("region", True), ("detection", False)]
)
def test_the_last_head_decides_on_random_sizes(section, varies):
    """As in Darknet; in [detection] the key `random` has another meaning."""
    net = cfg.parse("[net]\nwidth=416\nheight=320\nchannels=3\nmax_batches=1000\n[avgpool]\n").net
    last_random = data.input_size(net, [SECTIONS["yolo"](random=0.0), SECTIONS[section](random=1.5)], 0)
    assert (last_random(0) != (416, 320)) is varies
    assert data.input_size(net, [SECTIONS["yolo"](random=1.0), SECTIONS[section](random=0.0)], 0)(0) == (416, 320)


@pytest.mark.parametrize(
    ("keys", "mosaic", "mixup"),
    [
        ("", False, False),
        ("mixup=1", False, True),
        ("mixup=1\nmosaic=1", True, False),  # mosaic takes precedence
        ("mixup=1\ncutmix=1", False, False),
        ("mosaic=1\ncutmix=1", True, False),
        ("mixup=3", True, False),  # the number of mosaic
    ],
)
def test_how_a_detector_mixes_images(keys, mosaic, mixup):
    net = cfg.parse(f"[net]\nwidth=8\nheight=8\nchannels=3\n{keys}\n[avgpool]\n").net
    augment = DetectionAugment.of(net, SECTIONS["yolo"]())
    assert (augment.mosaic, augment.mixup) == (mosaic, mixup)


def test_keys_of_net_and_head():
    text = "[net]\nwidth=8\nheight=8\nchannels=3\nhue=.1\nsaturation=1.5\nmosaic=1\ncutmix=1\nflip=0\nmin_crop=5\n[avgpool]\n"
    net = cfg.parse(text).net
    augment = DetectionAugment.of(net, SECTIONS["yolo"](classes=7, max=9, jitter=0.3, resize=1.5))
    assert (augment.classes, augment.jitter, augment.resize, augment.flip, augment.mosaic) == (7, 0.3, 1.5, False, True)
    assert augment.truth(np.zeros((20, 5))).shape == (9 * 6,)
    assert augment.colors == Colors(hue=0.1, saturation=1.5)
    classifier_augment = ClassifierAugment.of(net, 4)
    assert (classifier_augment.min_crop, classifier_augment.max_crop) == (5, 16)
    assert classifier_augment.mixing == "cutmix or mosaic"
