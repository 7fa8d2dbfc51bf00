"""The text files around a network: .names, .data, and the path of an image's labels (src/utils.c, src/option_list.c)."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..cfg import atoi, resolve_path
from ..errors import DataError, DataWarning
from ..image.formats import SUFFIXES
from ..io.text import read_text

LABELS = (  # image folder -> label folder, in Darknet's order
    ("/images/train2017/", "/labels/train2017/"),
    ("/images/val2017/", "/labels/val2017/"),
    ("/JPEGImages/", "/labels/"),
    ("/images/train2014/", "/labels/train2014/"),
    ("/images/val2014/", "/labels/val2014/"),
)
REPLACED = SUFFIXES | {".txt"}  # what .txt replaces; any other ending is part of the name


def read_names(path: str | Path) -> tuple[str, ...]:
    """Read class names, one per line, unchanged; trailing empty lines are ignored. Raises DataError."""
    names = [line.rstrip("\r") for line in read_text(path).split("\n")]
    while names and not names[-1].strip():
        names.pop()
    if not names:
        raise DataError(f"{path}: is empty; it must have one class name per line")
    return tuple(names)


def empty_lines(names: Sequence[str]) -> str:
    """Return a clause for messages about the number of names if some of them are empty lines, which count as in Darknet."""
    empty = [str(line) for line, name in enumerate(names, 1) if not name.strip()]
    return f" (line {empty[0]} is empty)" if empty else ""


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """A .data file: the classes and files of a data set. Keys that Darknet does not know are dropped."""

    path: str
    classes: int = 20
    names: str | None = None
    labels: str | None = None  # legacy alias of `names`
    train: str | None = None
    valid: str | None = None
    backup: str = "backup"
    results: str = "results"
    eval: str = "voc"
    difficult: str | None = None
    map: str | None = None
    leaves: str | None = None
    top: int = 1
    saveweights: int = 0
    savelast: int = 0
    keys: frozenset[str] = frozenset()  # those that the file has

    @classmethod
    def read(cls, path: str | Path) -> DataFile:
        """Read a .data file: key=value lines; whitespace is removed, the first of duplicate keys is used. Raises DataError.

        Paths are those of `written_path`.
        """
        kinds = {f.name: f.type for f in fields(cls) if f.name not in ("path", "keys")}
        values: dict[str, str | int] = {}
        for number, raw in enumerate(read_text(path).split("\n"), 1):
            line = re.sub(r"[ \t\r]", "", raw)
            if not line or line[0] in "#;":
                continue
            key, equals, value = line.partition("=")
            if not equals or not value:
                raise DataError(f"{path}:{number}: expected key=value, found '{line[:40]}'")
            if key in kinds and key not in values:
                values[key] = (
                    atoi(value)[0] if kinds[key] == "int" else written_path(path, raw.partition("=")[2].strip())
                )
        if not values:
            raise DataError(f"{path}: has none of the keys {', '.join(kinds)}; is it a .data file?")
        return cls(path=str(path), keys=frozenset(values), **values)  # type: ignore[arg-type]

    def find(self, key: str) -> Path:
        """Return the file that a key names: as given, or relative to the .data file's folder or its parent. Raises DataError."""
        value = getattr(self, key)
        if not value:
            raise DataError(f"{self.path}: has no key '{key}'; add a line {key}=FILE")
        return resolve_path(self.path, value)

    def validation_key(self) -> str:
        """Return the key of the images to measure on: `valid` or, without it, `train`, as in Darknet, with a DataWarning."""
        if self.valid or not self.train:
            return "valid"
        warnings.warn(
            f"{self.path}: has no key 'valid'; the images of `train` are used, on which results are better than on others",
            DataWarning, stacklevel=3,
        )  # fmt: skip
        return "train"

    def names_path(self) -> Path:
        """Return the path of the class names. Raises DataError if there is none."""
        return self.find("names" if self.names or not self.labels else "labels")

    def read_labels(self) -> tuple[str, ...]:
        """Read the labels that name a classifier's classes in image paths: `labels`, else `names`, without spaces at the ends."""
        return tuple(label.strip() for label in read_names(self.find("labels" if self.labels else "names")))

    def read_names(self) -> tuple[str, ...]:
        """Read the class names."""
        return read_names(self.names_path())

    def class_count(self) -> int:
        """Return the number of class names or, if there is no such file, `classes`."""
        named = (self.names or self.labels) and self.names_path().is_file()
        return len(self.read_names()) if named else self.classes

    def check_names(self, classes: int, cfg: str) -> None:
        """Raise DataError unless the number of names equals the number of a cfg's classes."""
        names = self.read_names()
        count = len(names)
        if count != classes:
            raise DataError(
                f"{self.names_path()}: has {count} names{empty_lines(names)}, {cfg} has {classes} classes; the numbers"
                " must be equal"
            )


def written_path(file: str | Path, text: str) -> str:
    """Return the path that a .data file means by a value, with slashes for backslashes.

    If only a path without whitespace exists, relative to the current folder, the file's or its parent, it is that, as Darknet
    removes whitespace. A leading `~` is the home folder, $NAME an environment variable.
    """
    text = os.path.expanduser(os.path.expandvars(text))
    squeezed, folder = re.sub(r"\s", "", text), Path(file).resolve().parent
    slashes, bases = text.replace("\\", "/"), (Path(), folder, folder.parent)
    spellings = dict.fromkeys((text, slashes, squeezed, squeezed.replace("\\", "/")))
    return next((path for path in spellings if any(os.path.exists(base / path) for base in bases)), slashes)


def listed_path(line: str, folder: str) -> str:
    """Return the path that a line of a list in `folder` means: relative to the current folder or, if it is not there, to that.

    A leading `~` is the home folder. If a path with backslashes does not exist, as in a list from Windows, they become slashes.
    """
    if line.startswith("~"):
        line = os.path.expanduser(line)

    def resolve(line: str) -> str:
        return line if not folder or os.path.isabs(line) or os.path.exists(line) else os.path.join(folder, line)

    path = resolve(line)
    return path if "\\" not in path or os.path.exists(path) else resolve(line.replace("\\", "/"))


def label_path(image: str | Path) -> Path:
    """Return the path of an image's labels: with .txt, and `labels` in place of the image folders of COCO and VOC.

    .txt replaces the extension of an image; it is appended to any other name (replace_image_to_label).
    """
    return Path(label_name(str(image)))


def label_name(image: str) -> str:
    """Return `label_path` as a string, with slashes."""
    path = image.replace("\\", "/")
    for images, labels in LABELS:
        path = path.replace(images, labels, 1)
    stem, dot, extension = path.rpartition(".")
    return (stem if (dot + extension).lower() in REPLACED else path) + ".txt"
