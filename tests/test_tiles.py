"""Tiles: they cover a picture evenly, and boxes come together across their seams."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import opencv4
import pytest

import gpudarknet as gd
from gpudarknet import tiles
from gpudarknet.detector import Found
from gpudarknet.errors import DataError


@pytest.mark.parametrize(
    "W, H, width, height, overlap", [(100, 60, 40, 30, 0.25), (97, 61, 40, 61, 0.0), (41, 300, 40, 32, 0.5)]
)
def test_tiles_cover_the_picture_and_overlap(W, H, width, height, overlap):
    found = tiles.cut(W, H, width, height, overlap)
    seen = np.zeros((H, W), int)
    for left, top, right, bottom in found:
        assert (right - left, bottom - top) == (min(width, W), min(height, H))
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    columns = sorted({(left, right) for left, _, right, _ in found})
    for (_, end), (begin, _) in pairwise(columns):
        assert end - begin >= int(overlap * width)


def test_a_picture_that_fits_is_one_tile():
    assert tiles.cut(30, 20, 40, 20, 0.25) == [(0, 0, 30, 20)]


def test_bad_tiles():
    with pytest.raises(DataError) as e:
        tiles.cut(30, 20, 10, 10, 1.0)
    assert str(e.value) == "tiles of 10 x 10 with overlap 1: need sizes above 0, overlap in 0 to 1"


class Eye:
    """A detector that sees coloured boxes: red is class 0, blue class 1; it sees them as far as the tile shows them."""

    class network:
        width, height, batch = 64, 48, 2

    def __init__(self):
        self.batches = []

    def find(self, pictures, thresh, nms):
        self.batches.append(len(pictures))
        return [self.look(picture) for picture in pictures]

    def look(self, picture):
        H, W = picture.shape[:2]
        boxes, probs = [], []
        for value in np.unique(picture[..., 0]):
            rows, columns = np.nonzero(picture[..., 0] == value)
            if value:
                left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                boxes.append([(left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H])
                share = len(rows) / 2000
                probs.append([0.5 + min(share, 0.4), 0] if value % 2 else [0, 0.5 + min(share, 0.4)])
        return Found(np.array(boxes).reshape(-1, 4), np.array(probs).reshape(-1, 2), W, H)


def painted(*boxes):
    picture = np.zeros((100, 200, 3), np.uint8)
    for value, (left, top, right, bottom) in boxes:
        picture[top:bottom, left:right] = value
    return picture


def test_cut_objects_are_joined_and_neighbours_are_not():
    # 1: wider than a tile. 2: in a corner where four tiles meet. 3 and 5: side by side, one class, across a seam. 4: alone.
    drawn = [
        (1, (10, 5, 150, 25)), (2, (40, 30, 70, 60)), (3, (90, 70, 112, 95)), (5, (115, 70, 137, 95)), (4, (180, 80, 199, 99)),
    ]  # fmt: skip
    eye = Eye()
    found = tiles.find(eye, painted(*drawn), whole=False)
    edges = found.boxes * [200, 100, 200, 100]
    edges = (
        np.concatenate([edges[:, :2] - edges[:, 2:] / 2, edges[:, :2] + edges[:, 2:] / 2], axis=1).round().astype(int)
    )
    assert sorted(map(tuple, edges.tolist())) == sorted(box for _, box in drawn)
    classes = dict(zip(map(tuple, edges.tolist()), found.probs.argmax(axis=1).tolist(), strict=True))
    assert classes == {box: 1 - value % 2 for value, box in drawn}
    assert max(eye.batches) == 2 and (found.width, found.height) == (200, 100)


def test_the_whole_picture_adds_what_no_tile_holds():
    eye = Eye()
    found = tiles.find(eye, painted((1, (5, 5, 195, 95))))
    assert len(found.boxes) == 1
    np.testing.assert_allclose(found.boxes[0], [0.5, 0.5, 0.95, 0.9], atol=0.01)
    assert sum(eye.batches) == len(tiles.cut(200, 100, 64, 48, 0.25)) + 1


def test_nothing_found():
    found = tiles.find(Eye(), painted())
    assert found.boxes.shape == (0, 4) and found.probs.shape == (0, 2)


def test_with_a_network(tmp_path):
    opencv4.write(tmp_path)
    detector = gd.Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", backend="numpy")
    picture = np.ascontiguousarray(np.tile(opencv4.picture(), (2, 2, 1)))
    found = tiles.find(detector, picture, thresh=0.8)
    assert len(found.boxes) == len(found.probs) > 0 and found.probs.shape[1] == 4
    small = tiles.find(detector, picture[:64, :96], thresh=0.8)  # one tile: nothing to join
    (plain,) = detector.find([picture[:64, :96]], 0.8)
    np.testing.assert_array_equal(small.boxes, plain.boxes)
