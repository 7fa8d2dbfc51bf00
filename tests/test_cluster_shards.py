"""Shards: what a source is cut into, and the images that a worker reads from each; damaged archives and tables."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import threading
import tracemalloc
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import image
from gpudarknet.cluster import archives, tables
from gpudarknet.cluster.rows import Options, detect_rows
from gpudarknet.cluster.shards import ArchiveShard, FileShard, TableShard, split
from gpudarknet.errors import DataError, DataWarning, ImageError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def detector():
    return gd.Detector("cfg/digits.cfg", "cfg/digits.weights", "cfg/digits.names", backend="numpy")


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The contents of ten PNG files; number k is 40 + k pixels wide."""
    path, rng = tmp_path_factory.mktemp("png") / "image.png", np.random.default_rng(0)
    files = []
    for k in range(10):
        image.write(path, rng.integers(0, 255, (40, 40 + k, 3), dtype=np.uint8))
        files.append(path.read_bytes())
    return files


@pytest.fixture
def folder(tmp_path, contents, monkeypatch):
    """The current folder, with photos/0.png to photos/9.png."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for k, data in enumerate(contents):
        Path(f"photos/{k}.png").write_bytes(data)
    return tmp_path


def write_tar(path, members, mode="w", form=tarfile.GNU_FORMAT):
    with tarfile.open(path, mode, format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return Path(path)


def rows_of(detector, source, size=4, **options):
    """Return the rows of all shards, which travel as to a worker."""
    shards = [pickle.loads(pickle.dumps(shard)) for shard in split(source, size, **options)]
    return [row for s in shards for row in detect_rows(detector, s.items(), Options(0.9), 4, source=str(s))]


def widths(rows):
    return {row["image"]: row["width"] for row in rows}


def errors(rows):
    return {row["image"]: row["error"] for row in rows if row["error"]}


# Files


def test_relative_paths_are_those_of_the_folder_where_the_job_began(detector, folder, monkeypatch, tmp_path_factory):
    shards = list(split("photos", 4))
    monkeypatch.chdir(tmp_path_factory.mktemp("worker"))
    rows = [row for shard in shards for row in detect_rows(detector, shard.items(), Options(), 4)]
    assert widths(rows) == {f"photos/{k}.png": 40 + k for k in range(10)}


def test_all_kinds_of_sources_in_one_list(detector, folder, contents):
    Path("list.txt").write_text("photos/3.png\n\na.tar\n")
    write_tar("a.tar", [("dog.png", contents[5])])
    parquet.write_table(pyarrow.table({"path": ["photos/6.png"]}), "p.parquet")
    source = ["photos/0.png", Path("photos/[12].png"), ["list.txt"], "p.parquet", "photos/0.png", "missing.png"]
    rows = rows_of(detector, source)
    assert [row["image"] for row in rows] == [
        "photos/0.png", "photos/1.png", "photos/2.png", "photos/3.png", "a.tar/dog.png", "photos/6.png", "photos/0.png",
        "missing.png",
    ]  # fmt: skip
    assert [row["width"] for row in rows] == [40, 41, 42, 43, 45, 46, 40, None]
    assert errors(rows) == {"missing.png": f"{folder}/missing.png: no such file; check the path"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("typo", "typo: no such file or folder; check the path"),
        ("typo.tar", "typo.tar: no such file or folder; check the path"),
        ("typo.parquet", "typo.parquet: no such file or folder; check the path"),
        ("*.tar", "*.tar: matches no image; found nothing"),
        ("", "sources: a path is empty; give that of an image or a folder"),
        ([], "source: has no image; it is an empty list or table, or an iterable that has been used up"),
        (iter(()), "source: has no image; it is an empty list or table, or an iterable that has been used up"),
        (7, "source: int is not a path; give one, or a list of them"),
        (b"photos", "source: bytes is an image, not the path of one, and workers read the images"),
        ([np.zeros((4, 4, 3), np.uint8)], "source: ndarray is an image, not the path of one, and workers read the images"),
        ("https://example.com/a.tar", "https://example.com/a.tar: is an archive or a table behind a URL; download it"),
        ("shards", "shards: has no image; found 1 other files (1 .tar); archives and tables are given by a pattern: 'shards/*."),
    ],
)  # fmt: skip
def test_a_source_without_images_is_an_error_before_anything_is_computed(folder, source, message):
    Path("shards").mkdir()
    write_tar("shards/a.tar", [])
    with pytest.raises(DataError) as error:
        split(source, 4)
    assert str(error.value).startswith(message)


def test_an_endless_generator_is_cut_as_it_yields():
    taken = count()
    shards = split((f"{next(taken)}.jpg" for _ in count()), 4)
    assert [shard.names[0] for shard in islice(shards, 3)] == ["0.jpg", "4.jpg", "8.jpg"]
    assert next(taken) <= 12


def test_memory_does_not_grow_with_the_number_of_images():
    tracemalloc.start()
    try:
        shards = split((f"s3://bucket/photos/{k:09}.jpg" for k in range(100_000)), 256)
        next(shards)
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        assert sum(1 for _ in shards) == 390
        assert tracemalloc.get_traced_memory()[1] - before < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_shard_is_sent_as_its_names():
    names = [f"photos/holiday/{k:09}.jpg" for k in range(256)]
    (shard,) = split(names, 256)
    assert len(pickle.dumps(shard)) < 256 + sum(len(name) + 5 for name in names)


def test_subfolders_are_listed_while_shards_are_taken(folder):
    for k in range(5):
        Path(f"tree/{k}").mkdir(parents=True)
        Path(f"tree/{k}/a.png").touch()
    shards = split("tree", 1, recursive=True)
    next(shards)
    Path("tree/4/b.png").touch()
    assert [shard.names for shard in shards] == [
        (f"tree/{k}/{n}.png",) for k in range(1, 5) for n in "ab"[: 1 + k // 4]
    ]


def test_names_that_are_no_text(detector, folder, contents):
    odd = ["a\nb.png", "a\u2028b.png", os.fsdecode(b"\xff.png")]
    for name in odd:
        Path("photos", name).write_bytes(contents[1])
    rows = rows_of(detector, [f"photos/{name}" for name in [*odd, os.fsdecode(b"\xfe.png")]])
    assert [row["image"] for row in rows] == ["photos/a\nb.png", "photos/a\u2028b.png", "photos/?.png", "photos/?.png"]
    assert [row["width"] for row in rows] == [41, 41, 41, None]
    assert rows[3]["error"] == f"{folder}/photos/?.png: no such file; check the path"


# Names of label files


def labels(shards):
    return {str(item): item.label for shard in shards for item in shard.items()}


def test_label_files_of_a_folder_have_the_paths_of_its_images(folder):
    for name in ("a/dog.jpg", "a/dog.old.jpg", "a/dog.png", "a/DOG.bmp", "a/b/dog.jpg", "dog.jpg"):
        Path("tree", name).parent.mkdir(parents=True, exist_ok=True)
        Path("tree", name).touch()
    expected = {
        "tree/dog.jpg": "dog", "tree/a/DOG.bmp": "a/DOG", "tree/a/dog.jpg": "a/dog_2", "tree/a/dog.old.jpg": "a/dog.old",
        "tree/a/dog.png": "a/dog_3", "tree/a/b/dog.jpg": "a/b/dog",
    }  # fmt: skip
    assert labels(split("tree", 2, recursive=True, labels=True)) == expected
    assert labels(split("tree/**/*", 2, labels=True)) == expected
    assert set(labels(split("tree", 2, recursive=True)).values()) == {None}


def test_label_files_of_other_sources_are_in_folders_of_their_shards(folder, contents):
    write_tar("a.tar", [("x/1.png", b""), ("y/1.jpg", b""), ("../../1.png", b"")])
    source = ["photos/1.png", "../1.png", "https://example.com/1.png?size=2", "photos/" + "é" * 110 + ".jpg", "a.tar"]
    assert list(labels(split(source, 4, labels=True)).values()) == [
        "00000000/1", "00000000/1_2", "00000000/1_3", "00000000/" + "é" * 100, "00000001/1", "00000001/1_2", "00000001/1_3",
    ]  # fmt: skip


# Archives


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.TGZ", "w:gz"), ("a.tar.xz", "w:xz")]
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_an_archive_is_one_shard(detector, folder, contents, name, mode, form):
    long = "d/" * 80 + "ü" * 60 + ".png"
    members = [
        ("0.png", contents[0]), ("0.json", b"{}"), ("0.cls", b"3"), ("._1.png", b"no image"), (long, contents[1]),
        ("../../etc/2.PNG", contents[2]), ("/3.png", contents[3]), ("4.png", b""), ("4.txt", b"text"),
    ]  # fmt: skip
    write_tar(name, members, mode, form)
    rows = rows_of(detector, name, 2)
    assert widths(rows) == {
        f"{name}/{member}": width
        for member, width in [("0.png", 40), (long, 41), ("../../etc/2.PNG", 42), ("/3.png", 43), ("4.png", None)]
    }
    assert list(errors(rows)) == [f"{name}/4.png"]
    assert sorted(os.listdir()) == sorted([name, "photos"])


def test_patterns_of_archives(folder, contents):
    for k in range(8, 12):
        write_tar(f"train-{k:03}.tar", [("0.png", contents[0])])
    every = [f"train-{k:03}.tar" for k in range(8, 12)]
    assert [str(shard) for shard in split("train-*.tar", 4)] == every
    assert [str(shard) for shard in split("train-{008..011}.tar", 4)] == every


def test_braces():
    assert list(archives.expand_braces("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(archives.expand_braces("{a,b}-{2..1}")) == ["a-2", "a-1", "b-2", "b-1"]
    assert list(archives.expand_braces("{a}-{}-{1..x}")) == ["{a}-{}-{1..x}"]
    assert next(archives.expand_braces("{0..999999999999}.tar")) == "0.tar"


def test_members_that_are_no_files_have_rows(detector, folder, contents):
    with tarfile.open("a.tar", "w") as tar:
        tar.add("photos/0.png")
        for kind, name in ((tarfile.SYMTYPE, "s.png"), (tarfile.LNKTYPE, "l.png"), (tarfile.FIFOTYPE, "p.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "photos/0.png"
            tar.addfile(info)
        info = tarfile.TarInfo("folder.png")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    rows = rows_of(detector, "a.tar")
    assert widths(rows) == {"a.tar/photos/0.png": 40, "a.tar/s.png": None, "a.tar/l.png": None, "a.tar/p.png": None}
    assert errors(rows)["a.tar/l.png"] == "a.tar/l.png: is a link or a device in the archive; store the file itself"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_images_before_the_damage_have_rows(detector, folder, contents, mode):
    write_tar("a.tar", [(f"{k}.png", contents[k]) for k in range(4)], mode)
    data, seen = Path("a.tar").read_bytes(), set()
    for length in range(0, len(data), 517):
        Path("a.tar").write_bytes(data[:length])
        rows = rows_of(detector, "a.tar")
        names = [row["image"] for row in rows]
        if names[-1] == "a.tar":  # not cut in the blocks after the end
            assert rows[-1]["error"].startswith("a.tar: is not a tar archive, or a damaged one (")
            names.pop()
        assert names == [f"a.tar/{k}.png" for k in range(len(names))]
        assert list(errors(rows)) in ([], ["a.tar"])
        seen.add((len(names), len(rows) - len(names)))
    assert {(k, 1) for k in range(4)} <= seen
    assert not any(error == 0 for images, error in seen if images < 4)


def test_a_damaged_header_does_not_end_an_archive_silently(detector, folder, contents):
    write_tar("a.tar", [(f"{k}.png", contents[k]) for k in range(3)])
    data = bytearray(Path("a.tar").read_bytes())
    second = 512 + -(-len(contents[0]) // 512) * 512
    data[second + 148] ^= 1  # of its checksum
    Path("a.tar").write_bytes(data)
    rows = rows_of(detector, "a.tar")
    assert [row["image"] for row in rows] == ["a.tar/0.png", "a.tar"]
    assert "(bad checksum)" in rows[1]["error"]


@pytest.mark.parametrize("size", [10**6, 8**11 - 1, -(10**6)])
def test_a_member_that_lies_about_its_size(detector, folder, contents, size):
    with tarfile.open("a.tar", "w") as tar:
        tar.add("photos/0.png", "0.png")
        info = tarfile.TarInfo("1.png")
        info.size = size
        tar.addfile(info)  # without content
    tracemalloc.start()
    rows = rows_of(detector, "a.tar")
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    assert rows[0]["image"] == "a.tar/0.png"
    assert "a.tar" in errors(rows)


def test_an_archive_without_images_has_a_row(detector, folder):
    write_tar("a.tar", [("1.json", b"{}"), ("2.json", b"{}"), ("README", b"")])
    Path("b.tar").write_text("no archive")
    assert errors(rows_of(detector, ["a.tar", "b.tar", "c.tar"])) == {
        "a.tar": "a.tar: has no image; found 2 .json, 1 without a suffix",
        "b.tar": "b.tar: is not a tar archive, or a damaged one (truncated header);"
        " images after the damage are missing",
        "c.tar": "c.tar: cannot be read (No such file or directory); check the path",
    }
    with pytest.raises(DataError, match=r"a\.tar: has no image"):
        (shard,) = split("a.tar", 4)
        detect_rows(detector, shard.items(), Options(), 4, source=str(shard), strict=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_pipe_is_not_waited_for(detector, folder):
    os.mkfifo("a.tar")
    assert errors(rows_of(detector, ["a.tar"])) == {"a.tar": "a.tar: is not a regular file; give one, or a pattern"}


def test_an_archive_is_read_by_one_thread_that_ends(folder, contents):
    write_tar("a.tar", [(f"{k}.png", contents[0]) for k in range(40)])
    before = threading.active_count()
    items = ArchiveShard(str(folder), None, "a.tar").items()
    assert [str(item) for item in islice(items, 2)] == ["a.tar/0.png", "a.tar/1.png"]
    items.close()
    assert threading.active_count() == before


# Tables


def test_a_table_of_paths_is_a_list(detector, folder):
    Path("tables").mkdir()
    Path("photos/0.png").rename("tables/own.png")
    paths = ["photos/1.png", "own.png", "photos/missing.png", None]
    parquet.write_table(pyarrow.table({"path": paths, "label": [1, 2, 3, 4]}), "tables/p.parquet")
    rows = rows_of(detector, "tables/p.parquet", 3)
    assert widths(rows) == {
        "photos/1.png": 41, "tables/own.png": 40, "tables/photos/missing.png": None, "tables/p.parquet/3": None,
    }  # fmt: skip


def test_a_path_in_a_table_that_is_not_utf8(folder):
    column = pyarrow.array([b"a.png", b"\xff.png"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"path": column}), "p.parquet")
    with pytest.raises(DataError, match=r"p.parquet: is not a Parquet file, or a damaged one \('utf-8' codec"):
        split("p.parquet", 4)


def test_texts_and_contents_of_any_type(detector, folder, contents):
    paths = pyarrow.array(["photos/0.png", "photos/1.png"])
    for column in (paths.dictionary_encode(), paths.cast(pyarrow.large_string()), paths.cast(pyarrow.string_view())):
        parquet.write_table(pyarrow.table({"path": column}), "p.parquet")
        assert widths(rows_of(detector, "p.parquet")) == {"photos/0.png": 40, "photos/1.png": 41}
    images = pyarrow.array(contents[:2])
    for column in (images.cast(pyarrow.large_binary()), images.cast(pyarrow.binary_view())):
        parquet.write_table(pyarrow.table({"bytes": column}), "b.parquet")
        assert widths(rows_of(detector, "b.parquet")) == {"b.parquet/0": 40, "b.parquet/1": 41}


def test_a_table_of_paths_is_read_by_batches(folder):
    text = pyarrow.array(f"s3://bucket/{k}.jpg" for k in range(200_000))
    parquet.write_table(pyarrow.table({"path": text}), "p.parquet")
    del text
    before, most = pyarrow.total_allocated_bytes(), 0
    for number, shard in enumerate(split("p.parquet", 1000)):
        assert shard.names[0] == f"s3://bucket/{number * 1000}.jpg"
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert number == 199
    assert most < 4_000_000


def test_tables_of_contents_are_cut_by_rows(detector, folder, contents):
    parquet.write_table(pyarrow.table({"bytes": contents}), "a.parquet", row_group_size=3)
    named = pyarrow.table({"path": [f"x/{k}.png" for k in range(5)], "bytes": contents[:5]})
    parquet.write_table(named, "b.parquet")
    shards = list(split("[ab].parquet", 4))
    assert [(shard.address, shard.start, shard.stop) for shard in shards] == [
        ("a.parquet", 0, 4), ("a.parquet", 4, 8), ("a.parquet", 8, 10), ("b.parquet", 0, 4), ("b.parquet", 4, 5),
    ]  # fmt: skip
    assert widths(rows_of(detector, "[ab].parquet")) == {f"a.parquet/{k}": 40 + k for k in range(10)} | {
        f"b.parquet/{k}/x/{k}.png": 40 + k for k in range(5)
    }


def test_any_rows_of_any_row_groups(folder):
    values = [b"%d" % k for k in range(50)]
    parquet.write_table(pyarrow.table({"bytes": values}), "a.parquet", row_group_size=7)
    for start in range(0, 50, 3):
        for stop in range(start + 1, 51, 4):
            with open("a.parquet", "rb") as file:
                assert [data for _, data in tables.Table(file, "a").records(start, stop)] == values[start:stop]


def test_images_of_hugging_face_datasets(detector, folder, contents):
    column = [
        {"bytes": contents[0], "path": "dog.png"}, {"bytes": None, "path": "photos/1.png"}, {"bytes": contents[2], "path": None},
        {"bytes": None, "path": None}, None, {"bytes": b"no image", "path": None},
    ]  # fmt: skip
    parquet.write_table(pyarrow.table({"image": column, "label": list(range(6))}), "h.parquet")
    rows = rows_of(detector, "h.parquet", 4)
    assert widths(rows) == {
        "h.parquet/0/dog.png": 40, "h.parquet/1/photos/1.png": 41, "h.parquet/2": 42, "h.parquet/3": None,
        "h.parquet/4": None, "h.parquet/5": None,
    }  # fmt: skip
    assert errors(rows)["h.parquet/4"] == "h.parquet/4: has neither bytes nor a path"
    assert errors(rows)["h.parquet/5"].startswith("h.parquet/5: is not an image that OpenCV can read")


def test_damaged_and_other_tables(detector, folder, contents):
    parquet.write_table(pyarrow.table({"bytes": contents}), "a.parquet")
    Path("b.parquet").write_bytes(Path("a.parquet").read_bytes()[:-20])
    parquet.write_table(pyarrow.table({"x": [1]}), "c.parquet")
    parquet.write_table(pyarrow.table({"bytes": pyarrow.array([], pyarrow.binary())}), "d.parquet")
    rows = rows_of(detector, "*.parquet", 10)
    assert len(rows) == 13 and not errors(rows[:10])
    found = errors(rows)
    assert found["b.parquet"].startswith("b.parquet: is not a Parquet file, or a damaged one (")
    assert found["c.parquet"] == (
        "c.parquet: has neither a column path of texts, nor bytes of binary values, nor image with bytes in it (its columns: x);"
        " rename the one that has the images"
    )
    assert found["d.parquet"] == "d.parquet: has no image; it has no rows"
    for name in ("b.parquet", "c.parquet"):
        with pytest.raises(DataError, match=name):
            split(name, 4)


def test_damage_within_a_table_has_a_row_after_the_images_before_it(detector, folder, contents):
    parquet.write_table(pyarrow.table({"bytes": contents}), "a.parquet", row_group_size=2, compression="NONE")
    data = bytearray(Path("a.parquet").read_bytes())
    page = data.index(contents[6]) - 40
    data[page - 30 : page + 30] = bytes(60)  # the header of a page
    Path("a.parquet").write_bytes(data)
    rows = rows_of(detector, "a.parquet", 10)
    assert list(errors(rows)) == ["a.parquet"]
    assert [row["image"] for row in rows[:-1]] == [f"a.parquet/{k}" for k in range(len(rows) - 1)]


def test_a_table_that_shrank_since_it_was_listed(detector, folder, contents):
    parquet.write_table(pyarrow.table({"bytes": contents}), "a.parquet")
    (shard,) = split("a.parquet", 10)
    parquet.write_table(pyarrow.table({"bytes": contents[:4]}), "a.parquet")
    rows = detect_rows(detector, shard.items(), Options(), 4, source=str(shard))
    assert len(rows) == 5 and rows[4]["error"] == "a.parquet: has 4 rows, and had 10 before; start another job"


def test_large_row_groups_are_reported(folder):
    parquet.write_table(pyarrow.table({"bytes": [b""] * 100}), "a.parquet")
    with pytest.warns(DataWarning, match=r"row groups of up to 100 rows.*row_group_size=4"):
        list(split("a.parquet", 4))


def test_without_pyarrow(folder, monkeypatch):
    Path("a.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"^a.parquet: pyarrow is not installed; pip install 'gpudarknet\[cluster\]'$"):
        split("a.parquet", 4)


# Object stores


@pytest.fixture
def bucket():
    """An fsspec file system in this process."""
    fs = pytest.importorskip("fsspec").filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def test_archives_and_tables_in_an_object_store(detector, folder, contents, bucket):
    for k in range(2):
        bucket.pipe(f"/b/t-{k}.tar.gz", write_tar("a.tar.gz", [("0.png", contents[k])], "w:gz").read_bytes())
    parquet.write_table(pyarrow.table({"bytes": contents[:3]}), "a.parquet")
    bucket.pipe("/b/t.parquet", Path("a.parquet").read_bytes())
    parquet.write_table(pyarrow.table({"path": ["x/3.png", "memory://b/x/4.png"]}), "a.parquet")
    bucket.pipe({"/b/u.parquet": Path("a.parquet").read_bytes(), "/b/x/3.png": contents[3], "/b/x/4.png": contents[4]})
    expected = {
        "memory://b/t-0.tar.gz/0.png": 40, "memory://b/t-1.tar.gz/0.png": 41, "memory://b/t.parquet/0": 40,
        "memory://b/t.parquet/1": 41, "memory://b/t.parquet/2": 42, "memory://b/x/3.png": 43, "memory://b/x/4.png": 44,
    }  # fmt: skip
    assert widths(rows_of(detector, ["memory://b/*.tar.gz", "memory://b/*.parquet"], 2)) == expected
    assert widths(rows_of(detector, "memory://b/t-{0..1}.tar.gz")) == dict(list(expected.items())[:2])
    (lost,) = rows_of(detector, "memory://b/lost.tar")
    assert lost["error"] == "memory://b/lost.tar: no such file, folder or bucket; check the address"
    assert labels(split("memory://b", 2, recursive=True, labels=True)) == {
        "memory://b/x/3.png": "x/3", "memory://b/x/4.png": "x/4"
    }  # fmt: skip


# Hashes


def test_shards_are_told_apart_before_they_are_read():
    shards = [
        FileShard("/x", None, ("a", "b")), FileShard("/x", None, ("a", "c")), ArchiveShard("/x", None, "a"),
        TableShard("/x", None, "a", 0, 4), TableShard("/x", None, "a", 4, 8),
    ]  # fmt: skip
    assert len({shard.key(()) for shard in shards}) == 5
    assert FileShard("/y", ("l", "m"), ("a", "b")).key(()) == shards[0].key(())


def test_an_item_whose_content_is_an_error():
    (one,) = next(split(["a.png"], 1)).items()
    one.content = ImageError("a.png: is lost")
    with pytest.raises(ImageError, match="is lost"):
        one.read(3)
