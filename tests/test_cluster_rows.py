"""The files of shards: their forms, and that a part that is damaged, incomplete or another shard's is noticed."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import image
from gpudarknet.cluster.parts import Counts, Parts
from gpudarknet.cluster.rows import FORMS, Options, detect_rows, error_row, schema
from gpudarknet.cluster.shards import FileShard, split
from gpudarknet.cluster.store import open_store
from gpudarknet.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def detector():
    return gd.Detector("cfg/digits.cfg", "cfg/digits.weights", "cfg/digits.names", backend="numpy")


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder photos with six images, one of them damaged, one uniformly black."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for k in range(5):
        image.write(f"photos/{k}.png", rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    image.write("photos/4.png", np.zeros((40, 50, 3), np.uint8))
    Path("photos/5.png").write_text("no image")
    return Path("photos")


@pytest.fixture
def store(tmp_path):
    with (store := open_store(tmp_path / "out")).locked():
        yield store


def job(detector, store, form, size=4):
    """Write the parts of photos; return them, their shards and all rows."""
    parts, shards, rows = Parts(store, form), list(split("photos", size, labels=form == "labels")), []
    for number, shard in enumerate(shards):
        own = detect_rows(detector, shard.items(), Options(0.05), 4)
        parts.write(number, shard, own)
        rows += [{**row, "shard": shard.key([row["image"] for row in own])} for row in own]
    return parts, shards, rows


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_parts_read_back_equal(detector, store, photos, form):
    parts, shards, rows = job(detector, store, form)
    read = [parts.read(number, shard) for number, shard in enumerate(shards)]
    assert [row for part in read for row in part] == rows
    assert sum(len(row["objects"]) for row in rows) > 10
    assert [Counts.of(part).images for part in read] == [4, 2]
    assert [row["error"] is None for row in rows] == [True] * 5 + [False]


def test_parquet_is_for_others_to_read(detector, store, photos):
    _, _, rows = job(detector, store, "parquet", 6)
    table = parquet.read_table(store.path / "part-00000000.parquet")
    assert table.schema.equals(schema())
    assert table.to_pylist() == rows
    assert table.column("width").to_pylist() == [50] * 5 + [None]


def test_texts_that_formats_might_trip_over():
    names = ["a\nb", "a\u2028b", "a\u2029b\x85c\x0bd", 'quote"\\', "", "\0", "🐕"]
    rows = [{**error_row(name, name), "shard": "x"} for name in names]
    for form in FORMS.values():
        assert form.decode(form.encode(rows)) == rows
    assert FORMS["jsonl"].encode(rows).count(b"\n") == len(names)
    assert error_row("a\udcff", "b\udcff: is lost")["error"] == "b?: is lost"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_damaged_part_is_computed_again(detector, store, photos, form):
    parts, shards, _ = job(detector, store, form, 6)
    path = store.path / parts.name(0)
    data = path.read_bytes()
    lengths = (
        range(0, len(data), 97) if form == "parquet" else [k + 1 for k, byte in enumerate(data[:-1]) if byte == 10]
    )
    for length in [*lengths, 0, 10, len(data) - 2]:
        path.write_bytes(data[:length])
        assert parts.read(0, shards[0]) is None
    for other in (
        b"[" * 100_000,
        b"\xff",
        b"null\n",
        b"{}\n",
        b"[1]\n",
        b'{"shard": 1, "image": "a", "objects": [], "error": null}\n',
    ):
        path.write_bytes(other)
        assert parts.read(0, shards[0]) is None


def test_any_flipped_bit_of_a_parquet_part_is_noticed_or_harmless(detector, store, photos):
    parts, shards, rows = job(detector, store, "parquet", 6)
    path, chance = store.path / parts.name(0), random.Random(0)
    data = path.read_bytes()
    for _ in range(200):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with suppress(DataError):  # of other images
            assert parts.read(0, shards[0]) in (None, rows)


def test_rows_out_of_order_or_changed_are_noticed(detector, store, photos):
    parts, shards, _ = job(detector, store, "jsonl", 6)
    path = store.path / parts.name(0)
    lines = path.read_bytes().splitlines(keepends=True)
    for changed in (
        [*lines[1:], lines[0]],
        [*lines, lines[-1]],
        [line.replace(b"photos/0", b"photos/9") for line in lines],
    ):
        path.write_bytes(b"".join(changed))
        assert parts.read(0, shards[0]) is None


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_part_of_other_images_is_an_error(detector, store, photos, form):
    parts, shards, _ = job(detector, store, form, 3)
    message = f"{parts.name(0)}: its images are not those of the source now"
    first, second = (store.path / parts.name(number) for number in (0, 1))
    with pytest.raises(DataError, match=message):
        parts.read(0, FileShard(shards[0].folder, None, (*shards[0].names[:2], "photos/new.png")))
    first.rename(store.path / "kept")
    second.rename(first)
    (store.path / "kept").rename(second)
    for number in (0, 1):
        with pytest.raises(DataError, match="its images are not those of the source now"):
            parts.read(number, shards[number])


def test_label_files(detector, store, photos, tmp_path):
    parts, shards, rows = job(detector, store, "labels")
    lines = [
        json.loads(line) for number in (0, 1) for line in (store.path / parts.name(number)).read_text().splitlines()
    ]
    assert [row["label"] for row in lines] == [f"labels/{k}.txt" for k in range(5)] + [None]
    assert sorted(path.name for path in (store.path / "labels").iterdir()) == [f"{k}.txt" for k in range(5)]
    plain = detector.detect_batch([row["image"] for row in lines[:5]], 0.05, batch=4)
    for row, found in zip(lines, plain, strict=False):
        found.save_txt(tmp_path / "label.txt")
        assert (store.path / row["label"]).read_bytes() == (tmp_path / "label.txt").read_bytes()
    assert [row["objects"] for row in lines] == [row["objects"] for row in rows]
    empty = [row for row in lines if not row["objects"] and row["label"]]
    assert empty and all((store.path / row["label"]).read_bytes() == b"" for row in empty)
    assert parts.read(0, shards[0]) == lines[:4]


def test_label_files_are_there_before_their_part(detector, store, photos, monkeypatch):
    written = []
    monkeypatch.setattr(type(store), "write", lambda self, name, data: written.append(name))
    job(detector, store, "labels", 6)
    assert written[-1] == "part-00000000.jsonl" and sorted(written[:-1]) == [f"labels/{k}.txt" for k in range(5)]


def test_boxes_beyond_float32_are_json():
    box = gd.Detections(
        [gd.Detection("a", 0, 0.5, (-3e38, 0.0, 3e38, 3e39), (0.5, 0.5, 1.0, 1.0))], names=["a"], shape=(4, 4)
    )
    text = FORMS["jsonl"].encode([{**error_row("a", ""), "objects": box.summary(), "shard": ""}])
    assert json.loads(text, parse_constant=pytest.fail)["objects"][0]["box"]["y2"] > 3e38


def test_parquet_without_pyarrow(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"^form 'parquet': pyarrow is not installed; pip install 'gpudarknet\[cluster\]'$"
    ):
        FORMS["parquet"].check()
