"""A job's rows in one file: equal to what `detector test` writes, complete or not written at all. Ray is not needed."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import cluster, image
from gpudarknet.cli import main
from gpudarknet.cluster.job import Model, Summary, write_manifest, write_success
from gpudarknet.cluster.parts import Parts
from gpudarknet.cluster.rows import Options, detect_rows
from gpudarknet.cluster.shards import split
from gpudarknet.cluster.store import open_store
from gpudarknet.errors import DataError, DataWarning
from gpudarknet.evaluate import result_files
from gpudarknet.io import resources

MODEL = ("cfg/digits.cfg", "cfg/digits.weights", "cfg/digits.names")
REDO = "is missing or damaged; remove _SUCCESS.json, and run the job again"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine pictures with digits, each ending in its number, and a file that is no image."""
    folder = tmp_path_factory.mktemp("merge") / "photos"
    folder.mkdir()
    picture = image.read(resources.find("digits", ".jpg"))
    for k in range(9):
        image.write(folder / f"p_{k:03}.png", np.ascontiguousarray(picture[7 * k :, 11 * k :]))
    (folder / "p_009.png").write_text("no image")
    return folder


def write_job(photos, out, form):
    """Write a job as its driver and workers do, in this process."""
    options, store, digest = Options(thresh=0.1), open_store(out), hashlib.sha256()
    model = Model.load(*MODEL, options, "numpy")
    with store.locked():
        write_manifest(store, {"source": str(photos), **model.files, "form": form})
        for number, shard in enumerate(split(photos, 8)):
            Parts(store, form).write(number, shard, detect_rows(model.detector(), shard.items(), options, 8))
            digest.update(shard.key(()).encode())
        write_success(store, Summary(images=10, shards=2), digest.hexdigest())


@pytest.fixture(scope="module", params=["jsonl", "parquet"])
def found(request, photos, tmp_path_factory):
    """A complete job."""
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path_factory.mktemp(request.param) / "found"
    write_job(photos, out, request.param)
    return out


def test_csv_and_coco_are_those_of_a_run_without_a_cluster(found, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for out in ("job.csv", "job.json"):
        counts = cluster.merge(found, out)
        assert (counts.images, counts.errors) == (10, 1) and counts.objects > 50
    (tmp_path / "digits.data").write_text(f"names = {resources.find('digits', '.names')}\n")
    words = ["digits.data", "digits", str(resources.find("digits", ".weights")), str(photos), "-thresh", "0.1"]
    assert main(["detector", "test", *words, "-backend", "numpy", "-csv", "run.csv", "-coco", "run.json"]) == 2
    capsys.readouterr()
    assert (tmp_path / "job.csv").read_text() == (tmp_path / "run.csv").read_text()
    assert (tmp_path / "job.json").read_text() == (tmp_path / "run.json").read_text()
    assert {entry["image_id"] for entry in json.loads((tmp_path / "job.json").read_text())} == set(range(9))


def test_rows(found, photos, tmp_path):
    rows = list(cluster.read(found))
    assert [row["image"] for row in rows] == sorted(map(str, photos.iterdir()))
    assert list(rows[0]) == ["image", "width", "height", "objects", "error"]
    plain = gd.Detector(*MODEL, backend="numpy").detect(photos / "p_000.png", 0.1)
    assert [one["name"] for one in rows[0]["objects"]] == [d.label for d in plain]
    assert "is not an image" in rows[9]["error"] and rows[9]["width"] is None
    cluster.merge(found, tmp_path / "all.jsonl")
    assert [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().split("\n")[:-1]] == rows


def test_parquet(found, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    cluster.merge(found, tmp_path / "all.PARQUET")
    file = parquet.ParquetFile(tmp_path / "all.PARQUET")
    assert file.num_row_groups == 1 and file.read().to_pylist() == list(cluster.read(found))
    monkeypatch.setattr(sys.modules["gpudarknet.cluster.merge"], "ROW_GROUP", 5)
    cluster.merge(found, tmp_path / "all.parquet")
    assert parquet.ParquetFile(tmp_path / "all.parquet").num_row_groups == 2


def test_a_job_in_an_object_store(photos, tmp_path):
    pytest.importorskip("fsspec")
    write_job(photos, "memory://merge/found", "jsonl")
    write_job(photos, tmp_path / "found", "jsonl")
    for found, out in (("memory://merge/found", "there.csv"), (tmp_path / "found", "here.csv")):
        assert cluster.merge(found, tmp_path / out).images == 10
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


def test_the_command(found, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cluster", "merge", str(found), "all.csv"]) == 0
    count = len((tmp_path / "all.csv").read_text().splitlines()) - 1
    line = f"10 images, {count} objects, 1 error"
    assert capsys.readouterr() == ("", f"{line} (not in this format) in all.csv\n")
    assert main(["cluster", "merge", str(found), "all.jsonl"]) == 0
    assert capsys.readouterr() == ("", f"{line} in all.jsonl\n")
    assert main(["cluster", "merge", str(found), "-"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == list(cluster.read(found)) and not (tmp_path / "-").exists()


def remove_last_row(part):
    if part.suffix == ".parquet":
        from pyarrow import parquet

        table = parquet.read_table(part)
        parquet.write_table(table.slice(0, table.num_rows - 1), part)
    else:
        part.write_text("".join(part.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    "damage", [lambda part: part.unlink(), lambda part: part.write_bytes(b"\xff{"), remove_last_row],
    ids=["missing", "bytes", "row"],
)  # fmt: skip
def test_a_damaged_file_is_named_and_nothing_is_written(found, damage, tmp_path):
    copy, out = tmp_path / "found", tmp_path / "all.csv"
    shutil.copytree(found, copy)
    (part,) = copy.glob("part-00000000.*")
    damage(part)
    out.write_text("before")
    with pytest.raises(DataError) as e:
        cluster.merge(copy, out)
    assert str(e.value) == f"{part}: {REDO}"
    assert out.read_text() == "before" and sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "found"]


def test_a_shard_of_another_job(found, tmp_path):
    shutil.copytree(found, tmp_path / "found")
    first, second = sorted((tmp_path / "found").glob("part-*"))
    shutil.copy(first, second)
    with pytest.raises(DataError, match=r"some file is not of this job; remove _SUCCESS.json, and run the job again$"):
        cluster.merge(tmp_path / "found", tmp_path / "all.csv")
    assert not (tmp_path / "all.csv").exists()


def test_jobs_that_are_not_complete(found, tmp_path):
    with pytest.raises(
        DataError, match=r"has no job's results \(there is no manifest.json\); give the folder of a job$"
    ):
        cluster.merge(tmp_path, tmp_path / "all.csv")
    shutil.copytree(found, tmp_path / "found")
    (tmp_path / "found/_SUCCESS.json").unlink()
    with pytest.raises(DataError, match=r"found: is not complete; run the job again, it resumes$"):
        next(cluster.read(tmp_path / "found"))
    for text in ("{}", '{"shards": "x"}', "[]", "{"):
        (tmp_path / "found/_SUCCESS.json").write_text(text)
        with pytest.raises(DataError, match=r"(was changed; run the job in another folder|is damaged; .*)$"):
            cluster.merge(tmp_path / "found", tmp_path / "all.csv")


@pytest.mark.parametrize("name", ["part-00000000.jsonl", "PART-00000001.parquet", "manifest.json", "_SUCCESS.json"])
def test_files_of_the_job_are_not_replaced(found, name, tmp_path):
    before = {path: path.read_bytes() for path in found.iterdir()}
    (tmp_path / "link").symlink_to(found)
    (tmp_path / "file.json").symlink_to(found / "manifest.json")
    for out in (found / name, found / "../found" / name, tmp_path / "link" / name, tmp_path / "file.json"):
        with pytest.raises(DataError, match=r"would replace a file of the job; choose another name$"):
            cluster.merge(found, out)
    assert {path: path.read_bytes() for path in found.iterdir()} == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("all.txt", "its suffix is the format: .json, .csv, .jsonl, .parquet (COCO's results are .json)"),
        ("no/all.csv", "cannot be written (No such file or directory); use a file in an existing folder"),
        ("s3://bucket/all.csv", "is in an object store; write a local file, and copy it"),
    ],
)
def test_files_that_cannot_be_written(found, out, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["cluster", "merge", str(found), out]) == 2
    assert capsys.readouterr().err == f"error: {out}: {message}\n" and list(tmp_path.iterdir()) == []


def test_numbers_of_images(tmp_path, monkeypatch):
    box = {"x1": -5.0, "y1": 1.0, "x2": 4.00004, "y2": 99.0}
    one = {"name": "x", "class": 79, "confidence": 0.5, "box": box}
    monkeypatch.setattr(result_files, "MAX_IDS", 2)
    with open(tmp_path / "coco.json", "w") as file, result_files.coco_file(file) as add:
        add("a_1.jpg", 10, 20, [one], 80)
        add("a_2.jpg", 10, 20, [one], 2**7)
        add("a_3.jpg", 10, 20, [], 80)
        with pytest.warns(DataWarning, match=r"^b_2.jpg: has the image_id 2 of another image; names should end in"):
            add("b_2.jpg", 10, 20, [], 80)
        add("b_1.jpg", 10, 20, [], 80)  # once is enough
    first, second = json.loads((tmp_path / "coco.json").read_text())
    assert first == {"image_id": 1, "category_id": 90, "score": 0.5, "bbox": [0.0, 1.0, 4.0, 19.0]}
    assert second["category_id"] == 80
