"""One function reads every text file that a user writes, whatever the editor put in front of it."""

from __future__ import annotations

import pytest

from gpudarknet import cfg, cv2dnn, data
from gpudarknet.data.datafile import DataFile, read_names
from gpudarknet.errors import CfgError, DataError
from gpudarknet.io.text import read_text
from gpudarknet.layers.class_tree import ClassMap, Tree

CFG = "[net]\nwidth=8\nheight=8\nchannels=3\n[convolutional]\nfilters=5\n"
READERS = {
    "cfg": (CFG, lambda path: cfg.read(path, strict=True).layers),
    "cfg in memory": (CFG, lambda path: cv2dnn.readNetFromDarknet(path.read_bytes()).getLayerNames()),
    "data": ("classes=3\n", lambda path: DataFile.read(path).classes),
    "names": ("cat\ndog\n", read_names),
    "list": ("/a.jpg\n/b.jpg\n", data.read_list),
    "labels": ("1 0.5 0.5 0.25 0.25\n", lambda path: (data.read_labels(path)[0].tolist(), data.read_labels(path)[1])),
    "tree": ("cat -1\ndog -1\n", Tree.read),
    "map": ("3\n1\n", ClassMap.read),
}


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_and_windows_line_ends_are_not_content(name, tmp_path):
    text, read = READERS[name]
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8", newline="\n")
    plain = read(path)
    path.write_text(text, encoding="utf-8-sig", newline="\r\n")
    assert read(path) == plain


@pytest.mark.parametrize("name", [name for name in READERS if name != "cfg in memory"])
def test_utf16_with_a_byte_order_mark_is_text(name, tmp_path):
    """`dir /b > train.txt` in PowerShell writes it."""
    text, read = READERS[name]
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    plain = read(path)
    for order in ("utf-16-le", "utf-16-be"):
        path.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode(order))
        assert read(path) == plain


def test_errors_are_of_the_callers_class(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(CfgError) as e:
        read_text(path, CfgError)
    assert str(e.value) == f"{path}: cannot be read (No such file or directory); check the path"
    for content in (b"PK\0\0", b"a" * 9):
        path.write_bytes(content)
        with pytest.raises(DataError) as binary:
            read_text(path, max_bytes=8)
        assert str(binary.value) == f"{path}: is not a text file (binary data); check the order of the files"


def test_bytes_that_are_not_utf8_are_replaced(tmp_path):
    (tmp_path / "file").write_bytes("na\u00efve".encode("latin-1"))
    assert read_text(tmp_path / "file") == "na\ufffdve"
