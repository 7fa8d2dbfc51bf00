"""Addresses of object stores: reading, listing, errors of one line."""

from __future__ import annotations

import cv2
import fsspec
import numpy as np
import pytest

import gpudarknet as gd
from gpudarknet import image
from gpudarknet.errors import DataError, ImageError
from gpudarknet.image_sources import is_single
from gpudarknet.io import remote
from gpudarknet.io.remote import Address


@pytest.fixture
def memory():
    """fsspec's files in memory, with a few."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe({"/b/photos/a.jpg": b"abc", "/b/photos/sub/c.png": b"defg", "/b/x/q?z#[1].jpg": b"q"})
    yield fs
    fs.store.clear()


def test_addresses():
    for address in ("s3://b", "S3://b/a", "gs://b", "memory://a", "sftp://u:p@h/a", "hdfs:///a"):
        assert remote.is_remote(address)
    for other in (
        "http://h/a",
        "https://h/a",
        "file:///a",
        "nosuch://a",
        "s3:/a",
        "C://a",
        "zip://a::http://h/a",
        b"s3://b",
        None,
    ):
        assert not remote.is_remote(other)


@pytest.mark.parametrize(
    ("address", "text", "parts", "parent"),
    [
        ("s3://b/photos//", "s3://b/photos", ("photos",), "s3://b"),
        ("s3://b/", "s3://b", (), "s3://b"),
        ("s3://b/x/a.JPG", "s3://b/x/a.JPG", ("x", "a.JPG"), "s3://b/x"),
        ("hdfs:///x/a", "hdfs:///x/a", ("x", "a"), "hdfs:///x"),
    ],
)
def test_an_address_is_like_a_path(address, text, parts, parent):
    one = Address(address)
    assert (str(one), one.parts, str(one.parent)) == (text, parts, parent)
    assert one.name == (parts[-1] if parts else "") and one.parent / one.name == one


def test_reading(memory):
    assert remote.read_bytes("memory://b/photos/a.jpg", 3) == b"abc"
    assert remote.read_bytes("MEMORY://b/x/q?z#[1].jpg", 9) == b"q"
    assert remote.listing("memory://b/photos") == (["a.jpg"], ["sub"])
    assert remote.listing("memory://b/photos/") == (["a.jpg"], ["sub"])
    assert [remote.kind(f"memory://b/{name}") for name in ("photos", "photos/a.jpg", "none")] == [
        "directory",
        "file",
        None,
    ]
    with remote.open_file("memory://b/photos/sub/c.png") as file:
        assert (file.read(1), file.seek(2), file.tell(), file.read()) == (b"d", 2, 2, b"fg")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: remote.read_bytes("memory://b/none", 9), "memory://b/none: no such file, folder or bucket; check the address"),
        (lambda: remote.open_file("memory://b/none"), "memory://b/none: no such file, folder or bucket; check the address"),
        (lambda: remote.listing("memory://none"), "memory://none: no such file, folder or bucket; check the address"),
        (lambda: remote.read_bytes("memory://b/photos/a.jpg", 2),
         "memory://b/photos/a.jpg: has more than 2 bytes; download it and give the file"),
        (lambda: remote.read_bytes("sftp://me:secret@127.0.0.1/a", 9),
         "sftp://127.0.0.1/a: 127.0.0.1 is not a public address; set GPUDARKNET_ALLOW_PRIVATE_URLS=1 if your own computers"
         " are meant"),
        (lambda: remote.read_bytes("oci://b/a", 9), "oci://b/a: ocifs is not installed; pip install 'gpudarknet[cluster]' ocifs"),
    ],
)  # fmt: skip
def test_errors(memory, call, message):
    with pytest.raises(DataError) as e:
        call()
    assert str(e.value) == message


def test_errors_of_a_file_system_are_one_line_without_secrets(memory, monkeypatch):
    def fail(*_, **__):
        raise PermissionError("Access\n  Denied: https://key:secret@h/b?X-Amz-Signature=secret")

    monkeypatch.setattr(type(memory), "cat_file", fail)
    with pytest.raises(DataError) as e:
        remote.read_bytes("memory://b/a", 9)
    assert str(e.value) == (
        "memory://b/a: cannot be accessed (Access Denied: https://h/b); check the credentials, and what they permit"
    )


def test_without_fsspec(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(DataError) as e:
        remote.read_bytes("s3://b/a", 9)
    assert str(e.value) == "s3://b/a: fsspec is not installed; pip install 'gpudarknet[cluster]' s3fs"


# Sources


@pytest.fixture
def photos(memory):
    """A folder with images, other files, hidden files, and subfolders with images."""
    memory.store.clear()
    for name in (
        "b.jpg",
        "a.PNG",
        "notes.txt",
        ".hidden.jpg",
        "film.mp4",
        "2024/z.jpg",
        "2024/may/y.webp",
        ".git/x.jpg",
    ):
        memory.pipe(f"/b/photos/{name}", b"")
    return memory


def found(source, **options):
    images = list(gd.sources(source, **options))
    assert all(type(one) is str for one in images)
    return [one.removeprefix("memory://b/photos/") for one in images]


TOP = ["a.PNG", "b.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", TOP),
        ("[bc].*", ["b.jpg"]),
        ("?.jpg", ["b.jpg"]),
        ("*/*.jpg", ["2024/z.jpg"]),
        ("2*/z.jpg", ["2024/z.jpg"]),
        ("**/*.webp", ["2024/may/y.webp"]),
        ("**", [*TOP, "2024/z.jpg", "2024/may/y.webp"]),
        ("**/2024/**/*.*", ["2024/z.jpg", "2024/may/y.webp"]),
        (".h*", [".hidden.jpg"]),
    ],
)
def test_a_pattern(photos, pattern, expected, tmp_path, monkeypatch):
    assert found(f"memory://b/photos/{pattern}") == expected
    for path in photos.store:  # on this machine they come in the same order
        local = tmp_path / path[len("/b/photos/") :]
        local.parent.mkdir(parents=True, exist_ok=True)
        local.touch()
    monkeypatch.chdir(tmp_path)
    assert [str(one) for one in gd.sources(pattern)] == expected


def test_a_folder(photos):
    for folder in ("memory://b/photos", "memory://b/photos/"):
        assert found(folder) == TOP
        assert found(folder, recursive=True) == [*TOP, "2024/z.jpg", "2024/may/y.webp"]
        assert not is_single(folder)
    assert found("memory://b/photos/a.PNG") == ["a.PNG"] and is_single("memory://b/photos/a.PNG")


def test_names_that_exist_are_not_patterns(photos):
    photos.pipe({"/b/photos/[1].jpg": b"", "/b/photos/set[2]/a.jpg": b""})
    assert found("memory://b/photos/[1].jpg") == ["[1].jpg"]
    assert found("memory://b/photos/set[2]") == found("memory://b/photos/set[2]/*.jpg") == ["set[2]/a.jpg"]


def test_a_list(photos):
    text = "b.jpg\n\n ./2024/z.jpg\r\n../other/ä.jpg\n/photos/x.jpg\nhttp://h/x.jpg\ns3://c/x.jpg\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        photos.pipe("/b/photos/list.txt", text.encode(encoding))
        assert found("memory://b/photos/list.txt") == [
            "b.jpg", "2024/z.jpg", "memory://b/other/ä.jpg", "x.jpg", "http://h/x.jpg", "s3://c/x.jpg",
        ]  # fmt: skip
    assert not is_single("memory://b/photos/list.txt")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://b/photos/.git/*.png", "memory://b/photos/.git/*.png: matches no image; found nothing"),
        ("memory://none/*.jpg", "memory://none/*.jpg: matches no image; found nothing"),
        ("memory://b/other", "memory://b/other: has no image; found 1 other files (1 .mp4) and subfolders, which are"
                             " searched with recursive"),
        ("memory://b/empty.txt", "memory://b/empty.txt: is empty; it must have the path of an image on each line"),
        ("gs://b/photos", "gs://b/photos: gcsfs is not installed; pip install 'gpudarknet[cluster]' gcsfs"),
    ],
)  # fmt: skip
def test_no_images(photos, source, message):
    photos.pipe({"/b/other/a.mp4": b"", "/b/other/sub/a.jpg": b"", "/b/empty.txt": b""})
    with pytest.raises(DataError) as e:
        list(gd.sources(source))
    assert str(e.value) == message


def test_images_are_read(photos):
    img = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    photos.pipe("/b/photos/a.PNG", cv2.imencode(".png", img[..., ::-1])[1].tobytes())
    assert np.array_equal(image.read("memory://b/photos/a.PNG"), img)
    for name, message in (
        ("none.jpg", "no such file, folder or bucket; check the address"),
        ("b.jpg", "is empty; use a JPEG, PNG or BMP file"),
        ("notes.txt", "is empty; use a JPEG, PNG or BMP file"),
    ):
        with pytest.raises(ImageError) as e:
            image.read(f"memory://b/photos/{name}")
        assert str(e.value).startswith(f"memory://b/photos/{name}: {message}")
    with pytest.raises(ImageError, match=r"^nosuch://b/a: is no http or https address; "):
        image.read("nosuch://b/a")


def test_a_folder_is_listed_once(photos, monkeypatch):
    calls = []
    ls = type(photos).ls
    monkeypatch.setattr(
        type(photos), "ls", lambda self, path, **options: (calls.append(path), ls(self, path, **options))[1]
    )
    found("memory://b/photos/**")
    assert calls == ["/b/photos", "/b/photos/2024", "/b/photos/2024/may"]
