"""Jobs on Ray: every image has one row, with the objects that a detector finds without Ray."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cluster, image

pytest.importorskip("ray")

MODEL = ("cfg/digits.cfg", "cfg/digits.weights", "cfg/digits.names")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(20):
        height, width = rng.integers(40, 90, 2)
        image.write(folder / f"{k:03}.png", rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    (folder / "007.png").write_text("no image")
    return folder


def rows(out):
    return [json.loads(line) for part in sorted(out.glob("part-*.jsonl")) for line in part.read_text().splitlines()]


def test_a_job_equals_detect_stream(tmp_path, photos):
    out = tmp_path / "found"
    summary = cluster.detect(photos, out, *MODEL, thresh=0.05, shard=8, workers=2, backend="numpy")
    found = rows(out)
    readable = [path for path in sorted(photos.iterdir()) if path.name != "007.png"]
    plain = gd.Detector(*MODEL, backend="numpy").detect_stream(readable, 0.05)
    expected = {str(path): objects.summary() for path, objects in zip(readable, plain, strict=True)}
    assert [row["image"] for row in found] == sorted(map(str, photos.iterdir()))
    assert {row["image"]: row["objects"] for row in found if row["error"] is None} == expected
    (error,) = [row["error"] for row in found if row["error"]]
    assert error.startswith(f"{photos}/007.png: is not an image that OpenCV can read")
    assert (summary.images, summary.errors, summary.shards, summary.resumed) == (20, 1, 3, 0)
    assert sorted(p.name for p in out.iterdir()) == [
        "_SUCCESS.json", "manifest.json", "part-00000000.jsonl", "part-00000001.jsonl", "part-00000002.jsonl",
    ]  # fmt: skip
