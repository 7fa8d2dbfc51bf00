"""Results of many images in other formats: CSV, COCO results, crops, tables on the terminal."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import evaluate, image
from ..detector import Detection
from ..errors import DataError
from ..inference import ScoredBoxes
from .arguments import Arguments, Flag
from .evaluate import COCO_IDS
from .outputs import writable, write


class ResultWriter(Protocol):
    """Writes the objects of all images in some format."""

    def add(self, path: str, img: image.Image, scored: ScoredBoxes, objects: list[Detection]) -> None:
        """Add an image's objects."""

    def close(self) -> None:
        """Finish after the last image."""


class CsvWriter:
    """A CSV file with one line per object: image, class, name, confidence, box in pixels."""

    def __init__(self, path: Path):
        self.path, self.text = path, io.StringIO()
        self.table = csv.writer(self.text, lineterminator="\n")
        self.table.writerow(["image", "class_id", "name", "confidence", "left", "top", "width", "height"])

    def add(self, path: str, img: image.Image, scored: ScoredBoxes, objects: list[Detection]) -> None:
        """Add an image's lines."""
        for d in objects:
            box = [f"{v:.2f}" for v in d.box]
            self.table.writerow([path, d.class_id, d.label, f"{d.confidence:.6f}", *box])

    def close(self) -> None:
        """Write the file."""
        write(self.path, self.text.getvalue())


class CocoWriter:
    """A COCO results file: image_id is the last number in the file name, category_id is COCO's if there are 80 classes."""

    def __init__(self, path: Path):
        self.path, self.entries = path, list[dict[str, Any]]()

    def add(self, path: str, img: image.Image, scored: ScoredBoxes, objects: list[Detection]) -> None:
        """Add an image's entries."""
        classes, none = scored.probs.shape[1], np.zeros((0, 5), np.float32)
        categories = COCO_IDS if classes == len(COCO_IDS) else range(1, classes + 1)
        self.entries += evaluate.coco_results(evaluate.ImageEval(scored, none, none, path), categories)

    def close(self) -> None:
        """Write the file."""
        write(self.path, json.dumps(self.entries) + "\n")


class CropWriter:
    """A folder with one image per object: IMAGE_NUMBER_NAME.png."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, path: str, img: image.Image, scored: ScoredBoxes, objects: list[Detection]) -> None:
        """Write an image's crops."""
        H, W = img.shape[:2]
        for number, d in enumerate(objects, 1):
            left, top, width, height = d.box
            x0, x1 = (int(v) for v in np.clip((left, left + width), 0, W))
            y0, y1 = (int(v) for v in np.clip((top, top + height), 0, H))
            if x1 > x0 and y1 > y0:
                name = "".join(c if c.isalnum() else "-" for c in d.label)
                image.write(self.folder / f"{Path(path).stem}_{number}_{name}.png", img[y0:y1, x0:x1])

    def close(self) -> None:
        """Do nothing: all crops are written."""


class TablePrinter:
    """Prints a table of each image's objects."""

    def add(self, path: str, img: image.Image, scored: ScoredBoxes, objects: list[Detection]) -> None:
        """Print an image's table."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("object", box=None, header_style="bold", title=escape(path), title_justify="left")
        for column in ("confidence", "left", "top", "width", "height"):
            table.add_column(column, justify="right")
        for d in objects:
            table.add_row(escape(d.label), f"{d.confidence:.0%}", *(f"{v:.0f}" for v in d.box))
        Console(highlight=False).print(table)

    def close(self) -> None:
        """Do nothing: all tables are printed."""


def folder(name: str) -> Path:
    """Create a folder if it does not exist. Raises DataError."""
    try:
        Path(name).mkdir(exist_ok=True)
    except OSError as e:
        raise DataError(f"{name}: cannot create this folder ({e.strerror}); choose another path") from None
    return Path(name)


def requested(args: Arguments) -> list[ResultWriter]:
    """Return the writers that the flags request. Raises DataError if a result cannot be written."""
    writers: list[ResultWriter] = []
    if args.csv:
        writers.append(CsvWriter(writable(args.csv)))
    if args.coco:
        writers.append(CocoWriter(writable(args.coco)))
    if args.crops:
        writers.append(CropWriter(folder(args.crops)))
    if args.table:
        writers.append(TablePrinter())
    return writers


FLAGS = (
    Flag("csv", str, None, "Write all objects to this CSV file, with boxes in pixels"),
    Flag("coco", str, None, "Write all objects to this JSON file in COCO's results format"),
    Flag("crops", str, None, "Write an image of each object into this folder"),
    Flag("table", bool, False, "Print a table of each image's objects, with boxes in pixels"),
)
