"""Lists of difficult boxes are paired with images by name, and by position where names do not decide."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from gpudarknet.data.datafile import DataFile
from gpudarknet.data.difficult import difficult_labels, pair_by_name
from gpudarknet.errors import DataError, DataWarning


def pairs(folder, images, entries, files=None):
    """Pair lists of paths relative to a folder; return image -> label file. files: those that exist, by default all."""
    for name in entries if files is None else files:
        path = folder / name.replace("JPEGImages", "labels").replace(".jpg", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0 .5 .5 .1 .1\n")
    (folder / "difficult.txt").write_text("".join(f"{folder / name}\n" for name in entries))
    (folder / "x.data").write_text("difficult=difficult.txt\n")
    paths = [str(folder / name) for name in images]
    found = difficult_labels(DataFile.read(folder / "x.data"), paths)
    assert found is not None
    return {
        name: str(Path(file).relative_to(folder))
        for name, path in zip(images, paths, strict=True)
        if (file := found(path))
    }


VOC7, VOC12 = "VOC2007/JPEGImages", "VOC2012/JPEGImages"


@pytest.mark.parametrize(
    ("images", "entries", "expected"),
    [
        (["1.jpg", "2.jpg"], ["2.jpg", "1.jpg"], {"1.jpg": "1.txt", "2.jpg": "2.txt"}),
        (  # as Darknet's scripts/voc_label_difficult.py writes them
            [f"{VOC7}/000001.jpg", f"{VOC12}/2008_000001.jpg"],
            [f"{VOC12}/difficult_2008_000001.jpg", f"{VOC7}/difficult_000001.jpg"],
            {
                f"{VOC7}/000001.jpg": "VOC2007/labels/difficult_000001.txt",
                f"{VOC12}/2008_000001.jpg": "VOC2012/labels/difficult_2008_000001.txt",
            },
        ),
        (  # one name in two folders, and one image that the list lacks
            ["a/1.jpg", "b/1.jpg", "b/2.jpg"],
            ["b/difficult_1.jpg", "a/difficult_1.jpg"],
            {"a/1.jpg": "a/difficult_1.txt", "b/1.jpg": "b/difficult_1.txt"},
        ),
        (  # folders decide although one of the two is not listed, or the list is in another folder
            ["a/1.jpg", "b/1.jpg"],
            ["b/hard-1.jpg"],
            {"b/1.jpg": "b/hard-1.txt"},
        ),
        (
            ["a/1.jpg", "b/1.jpg", "c/1.jpg"],
            ["hard/c/1.jpg", "hard/a/1.jpg"],
            {"a/1.jpg": "hard/a/1.txt", "c/1.jpg": "hard/c/1.txt"},
        ),
        (  # a suffix; the folders do not help
            ["a/000001.jpg", "a/2_b.jpg"],
            ["hard/2_b_difficult.jpg", "hard/000001_difficult.jpg", "hard/000009_difficult.jpg"],
            {"a/000001.jpg": "hard/000001_difficult.txt", "a/2_b.jpg": "hard/2_b_difficult.txt"},
        ),
        (  # a prefix that names of other images have too
            ["cat.jpg", "black_cat.jpg", "dog.jpg"],
            ["hard_black_cat.jpg", "hard_white_dog.jpg", "hard_dog.jpg"],
            {"black_cat.jpg": "hard_black_cat.txt", "dog.jpg": "hard_dog.txt"},
        ),
        (  # label files instead of images
            [f"{VOC7}/1.jpg", f"{VOC12}/1.jpg"],
            ["VOC2012/labels/difficult_1.txt", "VOC2007/labels/difficult_1.txt"],
            {f"{VOC7}/1.jpg": "VOC2007/labels/difficult_1.txt", f"{VOC12}/1.jpg": "VOC2012/labels/difficult_1.txt"},
        ),
    ],
)
def test_names_decide(tmp_path, images, entries, expected):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "[^:]*: `difficult`: 1 of 3 entries match no image")
        assert pairs(tmp_path, images, entries) == expected


def test_position_decides_where_names_do_not(tmp_path):
    """As always in Darknet: names that two images share, or that have nothing in common."""
    with pytest.warns(
        DataWarning, match="`difficult`: is paired with the images by position, as names do not decide, first"
    ):
        assert pairs(tmp_path, ["a/1.jpg", "b/1.jpg"], ["x/1.jpg", "y/1.jpg"]) == {
            "a/1.jpg": "x/1.txt", "b/1.jpg": "y/1.txt"
        }  # fmt: skip
    with pytest.warns(DataWarning, match="by position"):
        assert pairs(tmp_path, ["a.jpg", "b.jpg"], ["x.jpg", "y.jpg"]) == {"a.jpg": "x.txt", "b.jpg": "y.txt"}


def test_what_cannot_be_paired_is_an_error(tmp_path):
    with pytest.raises(DataError) as e:
        pairs(tmp_path, ["a/1.jpg", "b/1.jpg", "b/2.jpg"], ["x/1.jpg", "b/2.jpg"])
    assert str(e.value) == (
        f"{tmp_path}/x.data: `difficult`: names and folders do not say which image an entry belongs to, for 1 of 2, first"
        f" {tmp_path}/x/1.jpg; write more of the images' folders, or one entry for each image, in their order"
    )
    with pytest.raises(DataError, match=r"for 2 of 3, first .*/x/1.jpg; write more"):  # two entries for one image
        pairs(tmp_path, ["a/1.jpg", "a/2.jpg"], ["x/1.jpg", "y/1.jpg", "a/2.jpg"])
    with pytest.raises(
        DataError, match="none of its 1 entries matches an image"
    ):  # 2008_000001 of VOC 2012 is another image
        pairs(tmp_path, [f"{VOC7}/000001.jpg", f"{VOC7}/000002.jpg"], [f"{VOC12}/difficult_2008_000001.jpg"])
    with pytest.raises(DataError) as e:
        pairs(tmp_path, ["1.jpg", "2.jpg"], ["x.jpg"])
    assert str(e.value) == (
        f"{tmp_path}/x.data: `difficult`: none of its 1 entries matches an image, first {tmp_path}/x.jpg; use the images'"
        " names, with or without a prefix or a suffix such as difficult_"
    )


def test_what_is_not_used_is_said(tmp_path):
    with pytest.warns(DataWarning) as warned:
        assert pairs(tmp_path, ["1.jpg", "2.jpg"], ["7.jpg", "1.jpg", "2.jpg"], files=["1.jpg"]) == {"1.jpg": "1.txt"}
    assert [str(w.message) for w in warned] == [
        f"{tmp_path}/x.data: `difficult`: 1 of 3 entries match no image and are not used, first {tmp_path}/7.jpg",
        f"{tmp_path}/x.data: `difficult`: 1 of 2 label files do not exist, first {tmp_path}/2.txt; their images have no"
        " difficult boxes",
    ]
    with pytest.raises(
        DataError, match=r"`difficult`: 1 of 1 label files do not exist, first .*/5.txt; check the list$"
    ):
        pairs(tmp_path, ["5.jpg"], ["5.jpg"], files=[])


def test_no_list_of_difficult_boxes(tmp_path):
    (tmp_path / "x.data").write_text("classes=1\n")
    assert difficult_labels(DataFile.read(tmp_path / "x.data"), ["a.jpg"]) is None


def test_long_lists_are_paired():
    """Twenty thousand images in two folders."""
    images = [f"/{folder}/{n:06}.jpg" for n in range(10_000) for folder in "ab"]
    entries = [path.replace("/0", "/difficult_0") for path in reversed(images)]
    found, ambiguous = pair_by_name(images, entries)
    assert not ambiguous and found == dict(zip(images, reversed(entries), strict=True))
