"""`gpudarknet demo` and examples/digits.py: the bundled network and its training."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import boxes, cli, image
from gpudarknet.data.datafile import DataFile
from gpudarknet.io import download, resources

ROOT = Path(__file__).parent.parent
PARTS = [resources.find("digits", suffix) for suffix in (".cfg", ".weights", ".names")]
TRUTHS = [  # of digits.jpg: class, then x, y, w, h relative to the image
    (6, 0.737305, 0.460938, 0.201172, 0.338542),
    (6, 0.203125, 0.114583, 0.101562, 0.171875),
    (9, 0.348633, 0.790365, 0.201172, 0.393229),
    (7, 0.408203, 0.332031, 0.257812, 0.460938),
    (1, 0.151367, 0.614583, 0.177734, 0.375),
    (2, 0.743164, 0.8125, 0.162109, 0.333333),
]
LEAST = 0.68  # the mAP that any sample of held-out images must reach; docs/digits.md has that of 400


@pytest.fixture(scope="module")
def script():
    """examples/digits.py as a module."""
    pytest.importorskip("skimage", reason="composing images needs scikit-image (extra: study)")
    pytest.importorskip("sklearn", reason="composing images needs scikit-learn (extra: study)")
    spec = importlib.util.spec_from_file_location("digits", ROOT / "examples/digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Run in an empty folder, on NumPy, where downloads fail."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    monkeypatch.setattr(download, "weights", lambda *_, **__: pytest.fail("attempted a download"))
    return tmp_path


def write_small(script, train=6, valid=3, seed=1):
    """Write a small data set where digits.data expects it, relative to the current folder."""
    data = DataFile.read(resources.find("digits", ".data"))
    script.write_data(data, train, valid, seed)
    return data


def test_demo_detects_every_digit_and_draws_it(folder, capsys):
    assert cli.main(["demo"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[0].startswith(f"{resources.find('digits', '.jpg')}: Predicted in ")
    names = resources.find("digits", ".names").read_text().split()
    assert sorted(line.split(":")[0] for line in lines[1:-1]) == sorted(names[k] for k, *_ in TRUTHS)
    assert lines[-1] == f"annotated image: {folder / 'predictions.jpg'}"
    assert image.read("predictions.jpg").shape == image.read(resources.find("digits", ".jpg")).shape


def test_boxes_match_the_digits():
    detections = gd.Detector(*PARTS, backend="numpy").detect(resources.find("digits", ".jpg"))
    overlaps = boxes.iou(np.array([d.relative for d in detections])[:, None], np.array(TRUTHS)[:, 1:])
    assert sorted(overlaps.argmax(axis=1)) == list(range(len(TRUTHS))) and overlaps.max(axis=1).min() > 0.6
    assert [d.class_id for d in detections] == [TRUTHS[i][0] for i in overlaps.argmax(axis=1)]


def test_demo_of_another_image(folder, capsys):
    cv2.imwrite("gray.png", np.full((60, 90, 3), 128, np.uint8))
    assert cli.main(["demo", "gray.png"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # no digits
    assert cli.main(["demo", "none.png"]) == 2
    assert "none.png" in capsys.readouterr().err


def test_the_bundled_files_are_small_and_match():
    cfg, weights, _ = PARTS
    assert weights.stat().st_size < 1_000_000 and resources.find("digits", ".jpg").stat().st_size < 60_000
    net = gd.load_network(cfg, weights, "numpy")
    assert net.seen == net.net.batch * net.net.max_batches


def test_images_depend_on_the_seed_and_contain_their_digits(script):
    made = [list(script.make_images(True, 3, seed)) for seed in (5, 5, 6)]
    assert all((a == c).all() and (b == d).all() for (a, b), (c, d) in zip(made[0], made[1], strict=True))
    assert [p.shape for p, _ in made[0]] == [(192, 256, 3), (288, 384, 3), (384, 512, 3)]
    assert any((a != c).any() for (a, _), (c, _) in zip(made[0], made[2], strict=True))
    for _, rows in made[0]:
        corners = boxes.to_corners(rows[:, :4])
        assert len(rows) and corners.min() >= 0 and corners.max() <= 1
        assert np.allclose(boxes.iou(rows[:, None, :4], rows[:, :4]), np.eye(len(rows)))  # they do not overlap


def test_a_box_is_where_the_ink_is(script, monkeypatch):
    """White paper, one digit: the box ends at half its opacity, within one pixel of the soft edge."""
    monkeypatch.setattr(script, "DIGITS", (1, 1))
    paper, digit = np.full((300, 400, 3), 255, np.uint8), np.zeros((1, 8, 8))
    digit[0, 1:7, 3:5] = 1
    img, rows = script.compose([paper], digit, np.array([1]), np.random.default_rng(7), scale=3)
    H, W = img.shape[:2]
    ink = 255 - img.min(axis=2)
    ys, xs = np.nonzero(ink > ink.max() / 2)
    edges = boxes.to_corners(rows[:, :4]) * (W, H, W, H)
    assert len(rows) == 1 and rows[0, 4] == 1
    assert np.abs(edges - (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)).max() <= 1


def test_held_out_photographs_are_not_in_the_training_set(script):
    train, held_out = script.photographs()
    assert all(p.dtype == np.uint8 and p.shape[2] == 3 for p in train + held_out)
    assert not {p.tobytes() for p in train} & {p.tobytes() for p in held_out}


def test_training_is_deterministic(script, folder):
    data = write_small(script)
    kept = []
    for _ in range(2):
        script.train(data, seed=3, iterations=2)
        kept.append([Path(data.backup, name).read_bytes() for name in ("digits_last.weights", "digits_last.npz")])
    assert kept[0] == kept[1]
    script.train(data, seed=4, iterations=2)
    assert Path(data.backup, "digits_last.weights").read_bytes() != kept[0][0]


def test_accuracy_on_held_out_images(script, folder):
    data = write_small(script, train=0, valid=60, seed=1234)
    report = script.measure(gd.load_network(*PARTS[:2], "numpy"), data)
    assert report.truths.sum() > 150 and report.mean > LEAST


def test_the_script_evaluates(script, folder, monkeypatch, capsys):
    monkeypatch.setattr(script, "VALID", 4)
    monkeypatch.setattr(sys, "argv", ["digits.py", "--measure", str(PARTS[1])])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 held-out images, 0 others: ") and len(lines) == 12
    assert lines[1].startswith("  zero: AP ") and lines[-1].startswith("mAP@0.5 ")
