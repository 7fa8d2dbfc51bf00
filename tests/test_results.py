"""Results for other programs: CSV, COCO results, crops, tiles on the command line, supervision's Detections."""

from __future__ import annotations

import csv
import json
import sys
import types

import cv2
import numpy as np
import opencv4
import pytest

import gpudarknet as gd
from gpudarknet import cli, image
from gpudarknet.errors import DataError

NAMES = ["ball", "coffee cup", "dog", "egg"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network's files and an image, photo_000042.png."""
    folder = tmp_path_factory.mktemp("results")
    opencv4.write(folder)
    (folder / "tiny.names").write_text("\n".join(NAMES) + "\n")
    (folder / "tiny.data").write_text(f"names={folder / 'tiny.names'}\n")
    cv2.imwrite(str(folder / "photo_000042.png"), opencv4.scene())
    return folder


@pytest.fixture
def detections(folder):
    detector = gd.Detector(folder / "tiny.cfg", folder / "tiny.weights", NAMES, backend="numpy")
    return detector.detect(folder / "photo_000042.png", thresh=0.7)


def detect(folder, *words, photo="photo_000042.png"):
    files = [str(folder / f"tiny.{kind}") for kind in ("data", "cfg", "weights")]
    words = [*files, str(folder / photo), "-thresh", "0.7", "-backend", "numpy", *map(str, words)]
    return cli.main(["detector", "test", *words])


def test_csv(folder, detections, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert detect(folder, "-csv", "all.csv") == 0
    with open("all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [d.label for d in detections] and rows
    for row, d in zip(rows, detections, strict=True):
        assert row["image"].endswith("photo_000042.png") and int(row["class_id"]) == d.class_id
        assert abs(float(row["confidence"]) - d.confidence) < 1e-5
        box = [float(row[key]) for key in ("left", "top", "width", "height")]
        np.testing.assert_allclose(box, d.box, atol=0.006)


def test_coco(folder, detections, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert detect(folder, "-coco", "coco.json") == 0
    entries = json.loads((tmp_path / "coco.json").read_text())
    assert len(entries) == len(detections) and {entry["image_id"] for entry in entries} == {42}
    assert {entry["category_id"] for entry in entries} == {d.class_id + 1 for d in detections}
    for left, top, width, height in (entry["bbox"] for entry in entries):
        assert 0 <= left <= left + width <= 200.001 and 0 <= top <= top + height <= 120.001


def test_crops(folder, detections, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert detect(folder, "-crops", "crops") == 0
    names = sorted(path.name for path in (tmp_path / "crops").iterdir())
    assert len(names) == len(detections)
    first = detections[0]
    crop = image.read(tmp_path / "crops" / f"photo_000042_1_{first.label.replace(' ', '-')}.png")
    left, top, width, height = first.box
    x0, x1, y0, y1 = max(int(left), 0), min(int(left + width), 200), max(int(top), 0), min(int(top + height), 120)
    np.testing.assert_array_equal(crop, opencv4.scene()[y0:y1, x0:x1, ::-1])


def test_table(folder, detections, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert detect(folder, "-table") == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.split()[:2] == ["object", "confidence"])
    first = detections[0]
    expected = [*first.label.split(), f"{first.confidence:.0%}", *(f"{v:.0f}" for v in first.box)]
    assert lines[header + 1].split() == expected and len(lines) == header + 1 + len(detections)


def test_tiles(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert detect(folder, "-tiles", "-csv", "tiles.csv") == 0
    assert "Predicted in" in capsys.readouterr().out
    assert len((tmp_path / "tiles.csv").read_text().splitlines()) > 1


@pytest.mark.parametrize("flag", ["-csv", "-coco"])
def test_a_result_that_cannot_be_written(folder, flag, tmp_path, capsys):
    out = tmp_path / "none" / "x"
    assert detect(folder, flag, out) == 2
    assert (
        capsys.readouterr().err
        == f"error: {out}: cannot be written (No such file or directory); use a file in an existing folder\n"
    )


def test_crops_into_a_file(folder, tmp_path, capsys):
    (tmp_path / "crops").write_text("")
    assert detect(folder, "-crops", tmp_path / "crops") == 2
    expected = f"error: {tmp_path / 'crops'}: cannot create this folder (File exists); choose another path\n"
    assert capsys.readouterr().err == expected


def test_detections_as_arrays_and_for_supervision(detections, monkeypatch):
    assert detections.xyxy.shape == (len(detections), 4) and detections.confidence.dtype == np.float32
    assert detections.class_id.tolist() == [d.class_id for d in detections]
    left, top, width, height = detections[0].box
    np.testing.assert_allclose(detections.xyxy[0], [left, top, left + width, top + height], rtol=1e-5, atol=1e-3)
    stand_in = types.SimpleNamespace(Detections=types.SimpleNamespace)
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    made = detections.to_supervision()
    assert made.data["class_name"].tolist() == [d.label for d in detections]
    assert (made.xyxy == detections.xyxy).all() and (made.confidence == detections.confidence).all()
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(DataError) as e:
        detections.to_supervision()
    assert str(e.value) == "to_supervision: the package supervision is not installed; pip install supervision"


def test_no_detections_as_arrays():
    none = gd.detector.Detections()
    assert none.xyxy.shape == (0, 4) and none.class_id.dtype == int
