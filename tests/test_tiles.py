"""Tiles cover an image evenly, and boxes are merged across their seams."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import opencv4
import pytest

import gpudarknet as gd
from gpudarknet import tiles
from gpudarknet.boxes import to_corners
from gpudarknet.errors import DataError
from gpudarknet.inference import ScoredBoxes


@pytest.mark.parametrize(
    "W, H, width, height, overlap", [(100, 60, 40, 30, 0.25), (97, 61, 40, 61, 0.0), (41, 300, 40, 32, 0.5)]
)
def test_tiles_cover_the_image_and_overlap(W, H, width, height, overlap):
    parts = tiles.split(W, H, width, height, overlap)
    seen = np.zeros((H, W), int)
    for left, top, right, bottom in parts:
        assert (right - left, bottom - top) == (min(width, W), min(height, H))
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    columns = sorted({(left, right) for left, _, right, _ in parts})
    for (_, end), (begin, _) in pairwise(columns):
        assert end - begin >= int(overlap * width)


def test_an_image_that_fits_is_one_tile():
    assert tiles.split(30, 20, 40, 20, 0.25) == [(0, 0, 30, 20)]


def test_bad_tiles():
    with pytest.raises(DataError) as e:
        tiles.split(30, 20, 10, 10, 1.0)
    assert str(e.value) == "tiles of 10 x 10 with overlap 1: need sizes above 0, overlap in 0 to 1"


class FakeDetector:
    """Detects painted boxes, odd values as class 0 and even values as class 1, as far as they are in the tile."""

    class network:
        width, height, batch = 64, 48, 2

    def __init__(self):
        self.batches = []

    def detect_boxes(self, images, thresh, nms):
        self.batches.append(len(images))
        return [self.detect(image) for image in images]

    def detect(self, image):
        H, W = image.shape[:2]
        boxes, probs = [], []
        for value in np.unique(image[..., 0]):
            rows, columns = np.nonzero(image[..., 0] == value)
            if value:
                left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                boxes.append([(left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H])
                prob = 0.5 + min(len(rows) / 2000, 0.4)
                probs.append([prob, 0] if value % 2 else [0, prob])
        return ScoredBoxes(np.array(boxes).reshape(-1, 4), np.array(probs).reshape(-1, 2), W, H)


def painted(*boxes):
    image = np.zeros((100, 200, 3), np.uint8)
    for value, (left, top, right, bottom) in boxes:
        image[top:bottom, left:right] = value
    return image


def test_cut_objects_are_merged_and_neighbours_are_not():
    # 1: wider than a tile. 2: in a corner where four tiles meet. 3 and 5: side by side, one class, across a seam. 4: alone.
    drawn = [
        (1, (10, 5, 150, 25)), (2, (40, 30, 70, 60)), (3, (90, 70, 112, 95)), (5, (115, 70, 137, 95)), (4, (180, 80, 199, 99)),
    ]  # fmt: skip
    detector = FakeDetector()
    scored = tiles.detect_boxes(detector, painted(*drawn), whole=False)
    corners = (to_corners(scored.boxes) * [200, 100, 200, 100]).round().astype(int)
    assert sorted(map(tuple, corners.tolist())) == sorted(box for _, box in drawn)
    classes = dict(zip(map(tuple, corners.tolist()), scored.probs.argmax(axis=1).tolist(), strict=True))
    assert classes == {box: 1 - value % 2 for value, box in drawn}
    assert max(detector.batches) == 2 and (scored.width, scored.height) == (200, 100)


def test_the_whole_image_adds_objects_larger_than_a_tile():
    detector = FakeDetector()
    scored = tiles.detect_boxes(detector, painted((1, (5, 5, 195, 95))))
    assert len(scored.boxes) == 1
    np.testing.assert_allclose(scored.boxes[0], [0.5, 0.5, 0.95, 0.9], atol=0.01)
    assert sum(detector.batches) == len(tiles.split(200, 100, 64, 48, 0.25)) + 1


def test_no_objects():
    scored = tiles.detect_boxes(FakeDetector(), painted())
    assert scored.boxes.shape == (0, 4) and scored.probs.shape == (0, 2)


def test_with_a_network(tmp_path):
    opencv4.write(tmp_path)
    detector = gd.Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", backend="numpy")
    image = np.ascontiguousarray(np.tile(opencv4.scene(), (2, 2, 1)))
    scored = tiles.detect_boxes(detector, image, thresh=0.8)
    assert len(scored.boxes) == len(scored.probs) > 0 and scored.probs.shape[1] == 4
    small = tiles.detect_boxes(detector, image[:64, :96], thresh=0.8)  # one tile: nothing to merge
    (plain,) = detector.detect_boxes([image[:64, :96]], 0.8)
    np.testing.assert_array_equal(small.boxes, plain.boxes)
