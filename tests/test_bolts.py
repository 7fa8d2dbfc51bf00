"""examples/bolts.py draws the same data set for the same seed, with labels that fit what is drawn."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from gpudarknet import image
from gpudarknet.data import read_labels, read_list
from gpudarknet.data.datafile import DataFile, label_path

SCRIPT = Path(__file__).parent.parent / "examples/bolts.py"


@pytest.fixture(scope="module")
def bolts():
    spec = importlib.util.spec_from_file_location("bolts", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_data_set_is_complete_and_the_same_for_a_seed(bolts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, train, seed in (("a", 6, 1), ("b", 6, 1), ("c", 1, 2)):
        bolts.write(Path(folder), train, 3, seed)
    file = DataFile.read("a/bolts.data")
    assert (file.classes, file.read_names(), file.backup) == (2, ("nut", "bolt"), "a/backup")
    paths = read_list(file.find("train")) + read_list(file.find("valid"))
    assert len(paths) == 9
    boxes = []
    for path in paths:
        assert min(image.read(path).shape[:2]) >= 256 and max(image.read(path).shape[:2]) <= 416
        labels, errors = read_labels(label_path(path), 2)
        assert not errors
        boxes.append(labels)
    labels = np.concatenate(boxes)
    assert set(labels[:, 4]) == {0, 1}
    low, high = labels[:, :2] - labels[:, 2:4] / 2, labels[:, :2] + labels[:, 2:4] / 2
    assert low.min() >= -1e-5 and high.max() <= 1 + 1e-5 and labels[:, 2:4].min() > 0.02
    images = {folder: sorted(Path(folder).rglob("*.jpg")) for folder in "abc"}
    content = {folder: [path.read_bytes() for path in paths] for folder, paths in images.items()}
    assert content["a"] == content["b"] and len(set(content["a"])) == 9
    assert not set(content["a"]) & set(content["c"])


def test_a_label_is_the_box_of_what_was_drawn(bolts, monkeypatch):
    """On an even surface, without light, shadow and other objects, the pixels that differ are those of the box."""
    monkeypatch.setattr(bolts, "surface", lambda rng, H, W: np.full((H, W, 3), 400, np.float32))
    monkeypatch.setattr(bolts, "OBJECTS", (1, 1))
    draw, found = bolts.draw, 0

    def draw_black(img, kind, rng):
        alpha, area = draw(np.zeros_like(img), kind, rng)
        if kind in bolts.DISTRACTORS:
            return np.zeros_like(alpha), 0.0
        img[alpha > 0.5] = 0
        return alpha, area

    monkeypatch.setattr(bolts, "draw", draw_black)
    for seed in range(8):
        img, labels = bolts.compose(np.random.default_rng(seed))
        ys, xs = np.nonzero(img[..., 0] == 0)
        for _, x, y, w, h in labels:
            H, W = img.shape[:2]
            found += 1
            assert (round((x - w / 2) * W), round((x + w / 2) * W)) == (xs.min(), xs.max() + 1)
            assert (round((y - h / 2) * H), round((y + h / 2) * H)) == (ys.min(), ys.max() + 1)
    assert found >= 4
