"""Names, .data files and the paths of labels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpudarknet.data.datafile import DataFile, label_path, read_names
from gpudarknet.errors import DataError, DataWarning


def test_names_are_read_unchanged(tmp_path):
    path = tmp_path / "x.names"
    path.write_bytes(b"\xef\xbb\xbfperson\r\ntraffic light\r\n\r\n fire  hydrant \r\n\r\n  \r\n")
    assert read_names(path) == ("person", "traffic light", "", " fire  hydrant ")
    path.write_bytes("küche\n茶碗".encode())
    assert read_names(path) == ("küche", "茶碗")


def test_a_data_file_has_darknets_grammar(tmp_path):
    path = tmp_path / "x.data"
    path.write_text(
        "# a comment\nclasses = 3 # three\n; another\nnames= x.names\nnames=y.names\r\ntop=5\n color=red\n\n"
    )
    data = DataFile.read(path)
    assert (data.classes, data.names, data.top, data.eval, data.train) == (3, "x.names", 5, "voc", None)
    (tmp_path / "x.names").write_text("a\nb\n")  # relative to the .data file, not to the current folder
    assert data.names_path() == tmp_path / "x.names" and data.read_names() == ("a", "b")


def test_home_folder_and_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.data").write_text("names=~/x.names\nbackup = ${HOME}/backup\nresults=$NO_SUCH_NAME\n")
    (tmp_path / "x.names").write_text("a\nb\n")
    data = DataFile.read(tmp_path / "x.data")
    assert data.read_names() == ("a", "b") and data.backup == f"{tmp_path}/backup" and data.class_count() == 2
    assert data.results == "$NO_SUCH_NAME"


@pytest.mark.skipif(os.sep == "\\", reason="backslashes separate folders here")
def test_spaces_and_backslashes_of_a_path(tmp_path):
    """Darknet removes spaces; a path keeps them unless only the one without exists. Backslashes become slashes."""
    (tmp_path / "my data").mkdir()
    (tmp_path / "my data" / "a b.names").write_text("a\nb\n")
    (tmp_path / "x.data").write_text(
        "names = my data\\a b.names\nvalid = my data/ v.txt\nbackup = my\\new backup\nresults = my data \n"
    )
    (tmp_path / "mydata").mkdir()
    (tmp_path / "mydata" / "v.txt").write_text("")
    data = DataFile.read(tmp_path / "x.data")
    assert data.read_names() == ("a", "b") and data.valid == "mydata/v.txt"
    assert data.backup == "my/new backup" and data.results == "my data"


def test_labels_in_paths_have_no_spaces_at_the_ends(tmp_path):
    (tmp_path / "x.data").write_text("classes=4\nnames=x.names\n")
    assert DataFile.read(tmp_path / "x.data").class_count() == 4  # without a file of names
    (tmp_path / "x.names").write_text("cat \r\nhot dog\r\n")
    assert DataFile.read(tmp_path / "x.data").read_labels() == ("cat", "hot dog")
    assert DataFile.read(tmp_path / "x.data").class_count() == 2


def test_without_valid_the_images_of_train_are_measured(tmp_path):
    (tmp_path / "x.data").write_text("train=a.txt\n")
    with pytest.warns(DataWarning, match=r"x.data: has no key 'valid'; the images of `train` are used"):
        assert DataFile.read(tmp_path / "x.data").validation_key() == "train"
    (tmp_path / "x.data").write_text("classes=1\n")
    assert DataFile.read(tmp_path / "x.data").validation_key() == "valid"  # which an error will say is missing


def test_labels_is_an_alias_of_names(tmp_path):
    (tmp_path / "x.data").write_text(f"labels={tmp_path}/x.list\n")
    (tmp_path / "x.list").write_text("a\n")
    assert DataFile.read(tmp_path / "x.data").read_names() == ("a",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{}: has none of the keys classes, names, labels, train, valid, backup, results, eval, difficult, map, leaves,"
         " top, saveweights, savelast; is it a .data file?"),
        (b"classes\n", "{}:1: expected key=value, found 'classes'"),
        (b"\nnames=\n", "{}:2: expected key=value, found 'names='"),
        (b"classes=2\n", "{}: has no key 'names'; add a line names=FILE"),
        (b"names=a\0b\n", "{}: is not a text file (binary data); check the order of the files"),
        (None, "{}: cannot be read (No such file or directory); check the path"),
    ],
)  # fmt: skip
def test_errors_name_the_data_file(tmp_path, content, message):
    path = tmp_path / "x.data"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        DataFile.read(path).read_names()
    assert str(error.value) == message.format(path)


def test_a_file_without_names_is_refused(tmp_path):
    path = tmp_path / "x.names"
    path.write_text("\n \n")
    with pytest.raises(DataError) as error:
        read_names(path)
    assert str(error.value) == f"{path}: is empty; it must have one class name per line"


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("a/b.jpg", "a/b.txt"),
        ("a/b.v2.JPEG", "a/b.v2.txt"),
        ("coco/images/train2017/1.jpg", "coco/labels/train2017/1.txt"),
        ("coco/images/val2014/1.png", "coco/labels/val2014/1.txt"),
        ("VOC2007/JPEGImages/1.jpg", "VOC2007/labels/1.txt"),
        ("data/images/1.jpg", "data/images/1.txt"),
        ("a/b.JPG", "a/b.txt"),
        ("a/b.Tiff", "a/b.txt"),
        ("a/frame.0001", "a/frame.0001.txt"),  # not an extension
        ("a.d/b", "a.d/b.txt"),
        ("a/JPEGImages/JPEGImages/1.jpg", "a/labels/JPEGImages/1.txt"),  # Darknet replaces the first
        ("a\\JPEGImages\\1.jpg", "a/labels/1.txt"),
    ],
)
def test_labels_are_where_darknet_looks(image, label):
    assert label_path(image) == Path(label)
