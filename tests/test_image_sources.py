"""Images named by files, folders, patterns, lists and URLs."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet.errors import DataError, DataWarning, ImageError
from gpudarknet.image_sources import is_single


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a folder with photos/: images, other files, hidden files, and subfolders with images."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.jpg",
        "a.PNG",
        "c.JPeG",
        "notes.txt",
        ".hidden.jpg",
        "film.mp4",
        "2024/z.jpg",
        "2024/may/y.webp",
        ".git/x.jpg",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def found(source, **options):
    return [str(one) for one in gd.sources(source, **options)]


def error_of(source, **options):
    with pytest.raises(DataError) as e:
        list(gd.sources(source, **options))
    return str(e.value)


TOP = ["photos/a.PNG", "photos/b.jpg", "photos/c.JPeG"]


@pytest.mark.parametrize("source", ["photos", Path("photos"), "photos/"])
def test_a_folder(source):
    assert found(source) == TOP
    assert found(source, recursive=True) == [*TOP, "photos/2024/z.jpg", "photos/2024/may/y.webp"]
    assert all(isinstance(one, Path) for one in gd.sources(source))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*", TOP),
        ("photos/*.jpg", ["photos/b.jpg"]),
        ("photos/[ab].*", TOP[:2]),
        ("photos/?.jpg", ["photos/b.jpg"]),
        ("ph*/*/*.jpg", ["photos/2024/z.jpg"]),
        ("ph*/2024/z.jpg", ["photos/2024/z.jpg"]),
        ("*/../photos/*.jpg", ["photos/../photos/b.jpg"]),
        ("photos/**/*.webp", ["photos/2024/may/y.webp"]),
        ("photos/**", [*TOP, "photos/2024/z.jpg", "photos/2024/may/y.webp"]),
        ("**/2024/**/*.*", ["photos/2024/z.jpg", "photos/2024/may/y.webp"]),
        ("**/**/*.jpg", ["photos/b.jpg", "photos/2024/z.jpg"]),
        ("photos/.h*", ["photos/.hidden.jpg"]),
        ("photos/.g*/*", ["photos/.git/x.jpg"]),
    ],
)
def test_a_pattern(pattern, expected, folder):
    assert found(pattern) == expected
    assert found(str(folder / pattern)) == [str(folder / path) for path in expected]


def test_names_that_exist_are_not_patterns():
    for name in ("[1].jpg", "what?.jpg", "set[2]/a.jpg", "set[2]/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    for name in ("[1].jpg", "what?.jpg"):
        assert found(name) == [name] and is_single(name)
    assert found("set[2]") == found("set[2]/*.jpg") == ["set[2]/a.jpg", "set[2]/b.jpg"]
    Path("1.jpg").touch()
    assert found("[0-9].jpg") == ["1.jpg"]


def test_the_suffix_of_an_image_is_enough_in_an_iterable():
    Path("set.jpg").mkdir()
    Path("set.jpg/a.jpg").touch()
    assert found("set.jpg") == found(["set.jpg/*"]) == ["set.jpg/a.jpg"]
    (folder,) = gd.sources(["set.jpg"])
    with pytest.raises(ImageError, match=r"set\.jpg: is a folder; use the path of an image"):
        gd.image.read(folder)
    names = ["./a.jpg", Path("b.jpg"), "x//./c.JPG", "http://h//./d.jpg", "a\0.jpg", "../e.jpg", "//f.jpg", ".jpg"]
    assert found(names) == ["a.jpg", "b.jpg", "x/c.JPG", "http://h//./d.jpg", "a\0.jpg", "../e.jpg", "//f.jpg", ".jpg"]


def test_the_home_folder(monkeypatch, folder):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    assert found("~/photos/b.jpg") == found("~/photos/*.jpg") == [str(folder / "photos/b.jpg")]
    Path("~").mkdir()
    Path("~/q.jpg").touch()
    assert found("~/q.jpg") == ["~/q.jpg"]


def test_links_are_followed_but_not_in_circles():
    try:
        os.symlink("../..", "photos/2024/up")
        os.symlink("2024", "photos/same")
        os.symlink("b.jpg", "photos/link.jpg")
        os.symlink("endless", "photos/endless")
        os.symlink("nothing.jpg", "photos/gone.jpg")
    except OSError:
        pytest.skip("no symbolic links here")
    everything = [*TOP, "photos/gone.jpg", "photos/link.jpg", "photos/2024/z.jpg", "photos/2024/may/y.webp"]
    assert (
        found("photos", recursive=True) == found("photos/**") == everything
    )  # a broken link is reported when it is read


def test_a_list():
    Path("photos/list.txt").write_text("b.jpg\n\n  photos/a.PNG \r\n..\\photos\\c.JPeG\nhttp://h/x.jpg\nmissing.jpg\n")
    expected = ["photos/b.jpg", "photos/a.PNG", "photos/../photos/c.JPeG", "http://h/x.jpg", "photos/missing.jpg"]
    assert found("photos/list.txt") == expected
    for encoding in ("utf-8-sig", "utf-16"):
        Path("list.TXT").write_text("photos/ä.jpg\nphotos/b.jpg", encoding=encoding)
        assert found("list.TXT") == ["photos/ä.jpg", "photos/b.jpg"]
    Path("list.txt").write_bytes(b"/photos/\xff.jpg\n")
    assert found("list.txt") == [os.fsdecode(b"/photos/\xff.jpg")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "list.txt: is empty; it must have the path of an image on each line"),
        (b" \n\n", "list.txt: is empty; it must have the path of an image on each line"),
        (b"a.jpg\nb\0.jpg", "list.txt:2: is not a path; a list has the path of an image on each line"),
        (b"a" * 5000, "list.txt:1: is not a path; a list has the path of an image on each line"),
        (b"0 0.5 0.5 0.25 1e-3\n",
         "list.txt:1: is a label, not a path; give the folder or the pattern of the images, quoted"),
    ],
)  # fmt: skip
def test_a_list_without_images(content, message):
    Path("list.txt").write_bytes(content)
    assert error_of("list.txt") == message


def test_urls():
    for url in ("http://h/a.jpg", "https://h/a.jpg?b=*"):
        assert found(url) == [url] and is_single(url)
    others = ["HTTPS://h/A.jpg", "ftp://h/a.jpg", "file:///a.jpg", "rtsp://h/a*.jpg"]  # left to the reader
    Path("urls.txt").write_text("\n".join([*others, "a.jpg"]))
    assert found(others) == others and found("urls.txt") == [*others, "a.jpg"]


def test_images_and_lists_of_everything():
    from PIL import Image

    array, picture = np.zeros((2, 3, 3), np.uint8), Image.new("RGB", (3, 2))
    mixed = [array, ["photos", picture], iter([Path("x.jpg")]), "photos/*.jpg", (array,), b"GIF89a"]
    result = list(gd.sources(mixed))
    assert result[0] is array and result[-2] is array and result[-1] == b"GIF89a" and result[4] is picture
    assert [str(one) for one in (*result[1:4], *result[5:7])] == [*TOP, "x.jpg", "photos/b.jpg"]
    assert next(gd.sources(array)) is array
    for other in (3, None, [4]):
        assert error_of(other).startswith("sources: ") and "is neither a path nor an image" in error_of(other)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", "empty: has no image; found nothing"),
        ("other", "other: has no image; found 3 other files (2 .txt, 1 without a suffix) and subfolders,"
                  " which are searched with recursive"),
        ("other/*", "other/*: matches no image; found 3 other files (2 .txt, 1 without a suffix)"),
        ("none/*.jpg", "none/*.jpg: matches no image; found nothing"),
        ("", "sources: a path is empty; give that of an image or a folder"),
    ],
)  # fmt: skip
def test_no_images(source, message):
    for name in ("empty", "other/sub"):
        Path(name).mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c"):
        Path("other", name).touch()
    assert error_of(source) == message


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything can be read")
def test_a_folder_that_cannot_be_listed():
    os.chmod("photos/2024", 0)
    try:
        with pytest.warns(DataWarning, match="photos/2024: cannot be listed"):
            assert found("photos", recursive=True) == TOP
        assert error_of("photos/2024").startswith("photos/2024: cannot be listed")
    finally:
        os.chmod("photos/2024", 0o700)


def test_a_missing_file_is_left_to_its_reader():
    assert found("missing.jpg") == ["missing.jpg"] and is_single("missing.jpg")
    assert found("x" * 5000) == ["x" * 5000]
    assert [is_single(name) for name in ("photos", "photos/*.jpg")] == [False, False]
    Path("list.txt").write_text("a.jpg\n")
    assert not is_single("list.txt")


def test_a_list_is_streamed(monkeypatch):
    def lines(*_):
        yield from ("a.jpg\n", "b.jpg\n")
        pytest.fail("read further than asked")

    Path("list.txt").touch()
    monkeypatch.setattr("gpudarknet.image_sources.iter_lines", lines)
    assert list(islice(gd.sources(["list.txt", "list.txt"]), 2)) == [Path("a.jpg"), Path("b.jpg")]
