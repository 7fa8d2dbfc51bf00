"""Jobs on Ray: every image has one row, with the objects that a detector finds without Ray."""

from __future__ import annotations

import json

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cluster, image
from gpudarknet.cluster import runtime

pytest.importorskip("ray")

MODEL = ("cfg/digits.cfg", "cfg/digits.weights", "cfg/digits.names")


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for the tests of this module, which jobs join."""
    with runtime.connect("local", cpus=2):
        yield


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresh": None}, "thresh None: must be 0 to 1, for example 0.25"),
        ({"nms": "0.4"}, "nms 0.4: must be 0 to 1, for example 0.45"),
        ({"precision": "fp99"}, "precision 'fp99': choose one of fp32, tf32, fp16, bf16"),
        ({"shard": 10**30}, f"shard {10**30}: must be an integer of at least 1"),
        ({"shard": "5"}, "shard '5': must be an integer of at least 1"),
        ({"batch": True}, "batch True: must be an integer of at least 1"),
        ({"workers": 1.5}, "workers 1.5: must be an integer of at least 1"),
        ({"gpus_per_worker": "1"}, "gpus_per_worker 1: must be a number of GPUs, as 1 or 0.5"),
        ({"cfg": None}, "cfg None: is not a path; workers get what is in the file"),
        ({"cfg": 3}, "cfg 3: is not a path; workers get what is in the file"),
        ({"names": 3}, "names int: is neither a path nor a list of texts"),
        ({"names": [1] * 10}, "names list: is neither a path nor a list of texts"),
        ({"out": None}, "None: is not the path of a folder; give that of the results"),
        ({"out": "a\0b"}, r"'a\x00b': is not the path of a folder; give that of the results"),
        ({"weights": 3}, "weights 3: is not a path; workers get what is in the file"),
        (
            {"source": [[], np.zeros((3, 3, 3), np.uint8)]},
            "source: ndarray is an image, not the path of one, and workers read the images; save it, or use"
            " Detector.detect_stream",
        ),
    ],
)
def test_an_argument_is_checked_before_the_folder_belongs_to_the_job(options, message, tmp_path, photos):
    arguments = {"source": photos, **dict(zip(("cfg", "weights", "names"), MODEL, strict=True)), **options}
    with pytest.raises(gd.errors.DataError) as raised:
        cluster.detect(**{"out": tmp_path / "found", "shard": 8, **arguments})
    assert str(raised.value) == message
    assert not (tmp_path / "found" / "manifest.json").exists()


def test_folders_and_files_of_merge_are_checked(tmp_path):
    for found, out, message in (
        (3, "x.csv", "3: is not the path of a folder"),
        (tmp_path, None, "None: is not a path; "),
    ):
        with pytest.raises(gd.errors.DataError, match=message):
            cluster.merge(found, out)


def test_numbers_may_be_numpys(tmp_path, photos):
    numbers = {
        "thresh": np.float32(0.5),
        "nms": np.float16(0.5),
        "max_det": np.int64(3),
        "gpus_per_worker": np.float32(1),
    }
    counts = {name: np.int32(1) for name in ("workers", "threads", "retries")} | {"batch": np.int64(4)}
    flags = {name: np.bool_(False) for name in ("tiles", "letterbox", "recursive")}
    source = [str(photos / "000.png"), [photos / "001.png"]]  # lists may be nested
    summary = cluster.detect(source, tmp_path / "found", *MODEL, shard=np.uint8(1), **numbers, **counts, **flags)
    assert (summary.images, summary.shards) == (2, 2)
    manifest = json.loads((tmp_path / "found" / "manifest.json").read_text())
    assert manifest["source"] == [str(photos / "000.png"), [str(photos / "001.png")]]
    assert manifest["options"] == {
        "thresh": 0.5, "nms": 0.5, "max_det": 3, "tiles": False, "letterbox": False, "precision": "fp32",
    }  # fmt: skip


def test_a_folder_with_a_slash_is_the_same_source(tmp_path, photos):
    for source in (photos, f"{photos}/", [f"{photos}/"]):
        assert cluster.detect(source, tmp_path / str(isinstance(source, list)), *MODEL, shard=20).images == 20
    with pytest.raises(gd.errors.DataError, match="belongs to another job: source is"):
        cluster.detect(photos.parent, tmp_path / "False", *MODEL, shard=20, recursive=True)


@pytest.mark.slow
def test_files_of_images_that_were_removed_are_not_left_beside_the_results(tmp_path, photos):
    out = tmp_path / "found"
    cluster.detect(photos, out, *MODEL, shard=8)
    (out / "_SUCCESS.json").unlink()
    for k in range(16, 20):
        (photos / f"{k:03}.png").unlink()
    with pytest.raises(gd.errors.DataError) as raised:
        cluster.detect(photos, out, *MODEL, shard=8)
    assert str(raised.value) == (
        f"{out}/part-00000002.jsonl: its images are not in the source now; choose another folder, or remove this file and"
        " those after it"
    )
    (out / "part-00000002.jsonl").unlink()
    assert cluster.detect(photos, out, *MODEL, shard=8).images == len(rows(out)) == 16


def test_records_that_were_changed(tmp_path, photos):
    out = tmp_path / "found"
    cluster.detect(photos, out, *MODEL, shard=20)
    (out / "_SUCCESS.json").write_text('{"shards": 1}')
    with pytest.raises(gd.errors.DataError) as raised:
        cluster.detect(photos, out, *MODEL, shard=20)
    assert str(raised.value) == f"{out}/_SUCCESS.json: was changed; remove this file, and run the job again"
    (out / "_SUCCESS.json").unlink()
    (out / ".tmp").touch()
    with pytest.raises(gd.errors.DataError) as raised:
        cluster.detect(photos, out, *MODEL, shard=20)
    assert str(raised.value) == f"{out}/.tmp: cannot be removed (Not a directory); remove it"
