"""Results of many images in a form that is asked for: CSV, COCO's results, crops, a table on the terminal."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import evaluate, image
from ..detector import Detection, ScoredBoxes
from ..errors import DataError
from .arguments import Flag
from .evaluate import COCO_IDS
from .outputs import writable, write


class Result(Protocol):
    """Something that is made of the objects in all images."""

    def add(self, path: str, picture: image.Image, found: ScoredBoxes, objects: list[Detection]) -> None:
        """Take an image's objects."""

    def end(self) -> None:
        """Finish, after the last image."""


class Csv:
    """A table with a line for each object: image, class, name, confidence, box in pixels."""

    def __init__(self, path: Path):
        self.path, self.text = path, io.StringIO()
        self.table = csv.writer(self.text, lineterminator="\n")
        self.table.writerow(["image", "class_id", "name", "confidence", "left", "top", "width", "height"])

    def add(self, path: str, picture: image.Image, found: ScoredBoxes, objects: list[Detection]) -> None:
        """Add the lines of an image."""
        for d in objects:
            box = [f"{v:.2f}" for v in d.box]
            self.table.writerow([path, d.class_id, d.label, f"{d.confidence:.6f}", *box])

    def end(self) -> None:
        """Write the file."""
        write(self.path, self.text.getvalue())


class Coco:
    """COCO's results file: image_id is the last number in a file's name, category_id COCO's own where there are 80 classes."""

    def __init__(self, path: Path):
        self.path, self.entries = path, list[dict[str, Any]]()

    def add(self, path: str, picture: image.Image, found: ScoredBoxes, objects: list[Detection]) -> None:
        """Add the entries of an image."""
        classes, none = found.probs.shape[1], np.zeros((0, 5), np.float32)
        categories = COCO_IDS if classes == len(COCO_IDS) else range(1, classes + 1)
        self.entries += evaluate.coco_entries(evaluate.Judged(found, none, none, path), categories)

    def end(self) -> None:
        """Write the file."""
        write(self.path, json.dumps(self.entries) + "\n")


class Crops:
    """A folder with a picture of each object: IMAGE_NUMBER_NAME.png."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, path: str, picture: image.Image, found: ScoredBoxes, objects: list[Detection]) -> None:
        """Write the crops of an image."""
        H, W = picture.shape[:2]
        for number, d in enumerate(objects, 1):
            left, top, width, height = d.box
            x0, x1 = (int(v) for v in np.clip((left, left + width), 0, W))
            y0, y1 = (int(v) for v in np.clip((top, top + height), 0, H))
            if x1 > x0 and y1 > y0:
                name = "".join(c if c.isalnum() else "-" for c in d.label)
                image.write(self.folder / f"{Path(path).stem}_{number}_{name}.png", picture[y0:y1, x0:x1])

    def end(self) -> None:
        """Do nothing: all is written."""


class Screen:
    """A table of each image's objects on the terminal."""

    def add(self, path: str, picture: image.Image, found: ScoredBoxes, objects: list[Detection]) -> None:
        """Print the table of an image."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("object", box=None, header_style="bold", title=escape(path), title_justify="left")
        for word in ("confidence", "left", "top", "width", "height"):
            table.add_column(word, justify="right")
        for d in objects:
            table.add_row(escape(d.label), f"{d.confidence:.0%}", *(f"{v:.0f}" for v in d.box))
        Console(highlight=False).print(table)

    def end(self) -> None:
        """Do nothing: all is printed."""


def folder(name: str) -> Path:
    """Make a folder, if need be. Raises DataError."""
    try:
        Path(name).mkdir(exist_ok=True)
    except OSError as e:
        raise DataError(f"{name}: cannot create this folder ({e.strerror}); choose another path") from None
    return Path(name)


def asked(args: Any) -> list[Result]:
    """Return the results that the flags ask for. Raises DataError where they could not be written."""
    found: list[Result] = []
    if args.csv:
        found.append(Csv(writable(args.csv)))
    if args.coco:
        found.append(Coco(writable(args.coco)))
    if args.crops:
        found.append(Crops(folder(args.crops)))
    if args.table:
        found.append(Screen())
    return found


FLAGS = (
    Flag("csv", str, None, "Write all objects to this CSV file, with boxes in pixels"),
    Flag("coco", str, None, "Write all objects to this JSON file in COCO's form of results"),
    Flag("crops", str, None, "Write a picture of each object into this folder"),
    Flag("table", bool, False, "Print a table of each image's objects, with boxes in pixels"),
)
