"""Addresses of object stores: reading, listing, errors of one line."""

from __future__ import annotations

import fsspec
import pytest

from gpudarknet.errors import DataError
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
    assert remote.read_bytes("memory://b/photos/a.jpg") == b"abc"
    assert remote.read_bytes("MEMORY://b/x/q?z#[1].jpg") == b"q"
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
        (lambda: remote.read_bytes("memory://b/none"), "memory://b/none: no such file, folder or bucket; check the address"),
        (lambda: remote.open_file("memory://b/none"), "memory://b/none: no such file, folder or bucket; check the address"),
        (lambda: remote.listing("memory://none"), "memory://none: no such file, folder or bucket; check the address"),
        (lambda: remote.read_bytes("memory://b/photos/a.jpg", 2),
         "memory://b/photos/a.jpg: has more than 2 bytes; download it and give the file"),
        (lambda: remote.read_bytes("sftp://me:secret@127.0.0.1/a"),
         "sftp://127.0.0.1/a: 127.0.0.1 is not a public address; set GPUDARKNET_ALLOW_PRIVATE_URLS=1 if your own computers"
         " are meant"),
        (lambda: remote.read_bytes("oci://b/a"), "oci://b/a: ocifs is not installed; pip install 'gpudarknet[cluster]' ocifs"),
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
        remote.read_bytes("memory://b/a")
    assert str(e.value) == (
        "memory://b/a: cannot be accessed (Access Denied: https://h/b); check the credentials, and what they permit"
    )


def test_without_fsspec(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(DataError) as e:
        remote.read_bytes("s3://b/a")
    assert str(e.value) == "s3://b/a: fsspec is not installed; pip install 'gpudarknet[cluster]' s3fs"
