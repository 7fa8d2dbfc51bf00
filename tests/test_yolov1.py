"""Training and evaluation with [detection], the first YOLO, against runs of Darknet and on a data set of two shapes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import evaluate
from gpudarknet.boxes import iou
from gpudarknet.cli import main
from gpudarknet.data import read_list

CFG = """[net]
width=32
height=32
channels=3
batch=8
learning_rate=0.01
momentum=0.9
decay=0.0005
max_batches=3

[convolutional]
filters=8
size=3
stride=4
pad=1
activation=leaky

[convolutional]
filters=12
size=3
stride=3
pad=1
activation=linear

[detection]
classes=2
coords=4
side=3
num=2
sqrt=1
rescore=1
jitter=0
object_scale=1
noobject_scale=.5
class_scale=1
coord_scale=5
"""
SHAPES = """[net]
width=48
height=48
channels=3
batch=8
flip=0
learning_rate=0.015
burn_in=10
max_batches={end}

[convolutional]
filters=8
size=3
stride=4
pad=1
activation=leaky

[convolutional]
filters=16
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=16
size=3
stride=2
pad=1
activation=leaky

[connected]
output=108
activation=linear

[detection]
classes=2
coords=4
side=3
num=2
sqrt=1
rescore=1
jitter=0
object_scale=1
noobject_scale=.5
class_scale=1
coord_scale=2
"""


def initialized(cfg: Path, seed: int, scale: float) -> gd.Network:
    """Return a network whose weights are normally distributed, in the order of the file."""
    net, rng = gd.load_network(cfg, backend="numpy"), np.random.default_rng(seed)
    for own in net.weights:
        for name in own:
            own[name][...] = rng.normal(0, scale, own[name].shape)
    return net


def project(folder: Path, images: dict[str, tuple[np.ndarray, str]], cfg: str = CFG) -> str:
    """Write images with labels, x.data and x.cfg; return the path of the .data file."""
    for name, (pixels, label) in images.items():
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
        (folder / f"{name}.txt").write_text(label)
    (folder / "list.txt").write_text("".join(f"{folder / name}.png\n" for name in images))
    (folder / "x.names").write_text("a\nb\n")
    (folder / "x.data").write_text(
        f"classes=2\ntrain={folder}/list.txt\nvalid={folder}/list.txt\nnames={folder}/x.names\nbackup={folder}/backup\n"
    )
    (folder / "x.cfg").write_text(cfg)
    return str(folder / "x.data")


def symmetric(seed: int) -> np.ndarray:
    """Return a random image (32, 32, 3) that a flip does not change."""
    half = np.random.default_rng(seed).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    return np.concatenate([half, half[:, ::-1]], axis=1)


def test_a_training_goes_as_in_darknet(tmp_path):
    """Three iterations of `darknet yolo train x.cfg x.weights`: the losses it printed, and sums over the weights it wrote.

    The image has the network's size and is symmetric, so that random flips change nothing. The first box has its center above
    the image and is clipped.
    """
    label = "1 0.5 -0.05 0.3 0.3\n0 0.5 0.55 0.6 0.2\n"
    data = project(tmp_path, {"a": (symmetric(3), label)})
    trainer, losses = gd.Trainer(initialized(tmp_path / "x.cfg", 5, 0.1)), []
    trainer.net.save_weights(tmp_path / "x.weights")
    before = np.fromfile(tmp_path / "x.weights", "<f4", offset=20)
    trainer.fit(data, tmp_path / "backup", report=lambda p: losses.append(p.loss))
    after = np.fromfile(tmp_path / "backup" / "x_final.weights", "<f4", offset=20)
    assert losses == pytest.approx([96.497719, 15.949185, 45.127544], rel=1e-6)
    assert [np.abs(after - before).sum(), after.sum()] == pytest.approx([13.077029, 1.619335], rel=1e-5)


@pytest.fixture
def random_detector(tmp_path):
    """Return a detector with random weights, and the paths of its images, which have the network's size."""
    rng, images = np.random.default_rng(1), {}
    for number in range(6):
        boxes = np.column_stack([rng.integers(0, 2, 4), rng.uniform(0.1, 0.9, (4, 2)), rng.uniform(0.1, 0.9, (4, 2))])
        label = "".join(f"{int(k)} {x:.3f} {y:.3f} {w:.3f} {h:.3f}\n" for k, x, y, w, h in boxes)
        images[f"i{number}"] = symmetric(number), label
    project(tmp_path, images)
    net = initialized(tmp_path / "x.cfg", 8, 0.3)
    net.save_weights(tmp_path / "x.weights")
    return gd.Detector(net, names=["a", "b"]), read_list(tmp_path / "list.txt")


def test_map_is_that_of_darknet(random_detector):
    """`darknet detector map x.data x.cfg x.weights -iou_thresh 0.1`."""
    report = evaluate.mean_average_precision(evaluate.evaluate_images(*random_detector), 2, 0.1)
    assert (report.detection_count, report.truths.sum()) == (53, 24)
    assert (report.ap * 100).tolist() == pytest.approx([13.08, 7.04], abs=0.006)
    assert report.mean == pytest.approx(0.100562, abs=2e-6)


def test_recall_is_of_boxes_relative_to_the_image(random_detector):
    """As many proposals as `darknet detector recall` has, which compares pixels with fractions; the overlaps by loops."""
    settings = evaluate.PROPOSAL_THRESH, evaluate.PROPOSAL_NMS
    images = list(evaluate.evaluate_images(*random_detector, *settings, class_agnostic=True))
    result = evaluate.recall(images, 0.2)
    assert result.proposals == pytest.approx(11.83, abs=0.005)
    best = [max(iou(truth[:4], box) for box in img.scored.boxes) for img in images for truth in img.truth]
    assert (result.average_iou, result.recall) == pytest.approx((np.mean(best), np.mean(np.array(best) > 0.2)))
    assert 0.1 < result.recall < 0.9


def shapes(folder: Path, count: int, cfg: str) -> str:
    """Write a data set of red squares and blue discs on gray noise; return the path of its .data file."""
    rng, images = np.random.default_rng(0), {}
    for number in range(count):
        pixels = rng.integers(90, 160, (48, 48, 3), dtype=np.uint8)
        kind, r = int(rng.integers(2)), int(rng.integers(5, 10))
        x, y = (int(v) for v in rng.integers(r, 48 - r, 2))
        if kind == 0:
            cv2.rectangle(pixels, (x - r, y - r), (x + r, y + r), (30, 30, 220), -1)  # OpenCV uses BGR
        else:
            cv2.circle(pixels, (x, y), r, (220, 60, 30), -1)
        images[f"s{number}"] = pixels, f"{kind} {x / 48} {y / 48} {2 * r / 48} {2 * r / 48}\n"
    return project(folder, images, cfg)


def test_it_learns_shapes(tmp_path, monkeypatch, capsys):
    """In 140 iterations on ten images, measured by `-map`; the first weights find nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    data = shapes(tmp_path, 10, SHAPES.format(end=140))
    untrained = gd.Detector("x.cfg", names="x.names")
    images = evaluate.evaluate_images(untrained, read_list("list.txt"))
    assert evaluate.mean_average_precision(images, 2).mean < 0.1
    assert main(["detector", "train", data, "x.cfg", "-map", "-show_imgs"]) == 0
    score = capsys.readouterr().out.rpartition("(mAP@0.50) = ")[2]
    assert float(score.split(",")[0]) > 0.7
    assert cv2.imread("backup/aug_0.jpg").shape == (48, 48, 3)


def test_resumed_training_equals_one_that_never_stopped(tmp_path):
    data = shapes(tmp_path, 8, SHAPES.format(end=4).replace("burn_in=10", "burn_in=2"))
    for folder, parts in (("whole", (None,)), ("parts", (2, None))):
        weights = None
        for iterations in parts:
            trainer = gd.Trainer(gd.load_network(tmp_path / "x.cfg", weights, "numpy"), clear=weights is None)
            trainer.fit(data, tmp_path / folder, resume=weights, iterations=iterations)
            weights = tmp_path / folder / "x_last.weights"
    final = [(tmp_path / folder / "x_final.weights").read_bytes() for folder in ("whole", "parts")]
    assert final[0] == final[1]
