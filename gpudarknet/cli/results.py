"""What is written for each image: Darknet's text, JSON and label files, annotated images, CSV, COCO results, crops, tables."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from .. import evaluate, image
from ..data.datafile import label_path
from ..detections import Detections, crop
from ..detector import MAX_DET
from ..errors import DataError, ImageError
from ..image.formats import SUFFIXES
from ..image.video import BackgroundWriter
from ..inference import ScoredBoxes
from ..io.atomic import create_folder
from ..io.text import UniqueNames
from . import eprint, formats
from .arguments import Arguments, Flag, UsageError
from .inputs import ImagePath
from .outputs import STDOUT, joined, text_file, writable, writable_folder, write

PREDICTIONS = "predictions.jpg"
Background = Callable[[Callable[..., None]], BackgroundWriter]


class DetectedImage(NamedTuple):
    """An image and what was found in it: `scored` for Darknet's formats, `objects`, and the most confident of them, `shown`."""

    path: ImagePath
    image: image.Image
    scored: ScoredBoxes
    objects: Detections
    shown: Detections


class ResultWriter(ABC):
    """Writes the objects of all images in some format."""

    replaced = 0  # files of an earlier run

    @abstractmethod
    def add(self, result: DetectedImage) -> None:
        """Add an image's objects."""


# Darknet's formats


class TextPrinter(ResultWriter):
    """Prints Darknet's lines."""

    def __init__(self, args: Arguments):
        self.thresh, self.ext_output = args.thresh, args.ext_output

    def add(self, result: DetectedImage) -> None:
        """Print an image's time and objects."""
        print(f"{result.path}: Predicted in {1000 * result.scored.seconds:f} milli-seconds.")
        for line in formats.text_lines(result.scored, result.objects.names, self.thresh, self.ext_output):
            print(line)


class PredictionsWriter(ResultWriter):
    """Writes predictions.jpg, anew for each image."""

    def __init__(self, args: Arguments, failed: Callable[[str], object]):
        self.thresh, self.failed, self.count = args.thresh, failed, 0

    def add(self, result: DetectedImage) -> None:
        """Write an image with its boxes; the second time, note that the first is lost."""
        self.count += 1
        if self.count == 2:
            eprint("note", f"{PREDICTIONS} shows the last image only; -out_dir FOLDER writes one for each")
        if is_same_file(result.path, Path(PREDICTIONS)):
            self.failed(f"{result.path}: would be replaced by its result; use -out_dir")
        else:
            image.write(PREDICTIONS, annotated(result, self.thresh))


class UndrawnNote(ResultWriter):
    """Notes that several images are not drawn."""

    noted = False

    def add(self, result: DetectedImage) -> None:
        """Print it once."""
        if not self.noted:
            self.noted = True
            eprint("note", "of several images, none is drawn; -out_dir FOLDER draws each")


class JsonWriter(ResultWriter):
    """Darknet's JSON file."""

    def __init__(self, append: Callable[[str], object]):
        self.append = append

    def add(self, result: DetectedImage) -> None:
        """Append an image's entry."""
        self.append(formats.json_image(result.path.number, result.path, result.scored, result.objects.names))


class LabelWriter(ResultWriter):
    """Writes each image's label file next to it."""

    def __init__(self, args: Arguments, failed: Callable[[str], object]):
        self.thresh, self.failed, self.written = args.thresh, failed, UniqueNames()

    def add(self, result: DetectedImage) -> None:
        """Write an image's labels, unless they would replace those of another image."""
        path = label_path(result.path)
        if image.is_url(result.path):
            self.failed(f"{result.path}: has no folder for -save_labels; download it, or use -csv")
        elif self.written(str(path)) != str(path):
            self.failed(
                f"{result.path}: its labels would replace those of another image, {path}; rename one of the two"
            )
        else:
            self.replaced += path.exists()
            write(path, formats.label_lines(result.scored, result.objects.names, self.thresh))


# Other formats


class AnnotatedImageWriter(ResultWriter):
    """A folder with a copy of each image, with its boxes: NAME.jpg, in subfolders as they were found."""

    def __init__(self, args: Arguments, background: Background, failed: Callable[[str], object]):
        self.folder, self.thresh, self.max_det = writable_folder(args.out_dir), args.thresh, args.max_det or MAX_DET
        self.writer, self.failed = background(self.write), failed
        for word in args.positionals:
            path = Path(os.path.realpath(word))
            if path.suffix.lower() == ".jpg" and self.folder.resolve() in path.parents and path.exists():
                raise DataError(f"{word}: could be replaced by a result; choose another -out_dir")

    def add(self, result: DetectedImage) -> None:
        """Write an image in the background, unless it would replace the one that was read."""
        path = self.folder / f"{result.path.output}.jpg"
        if is_same_file(result.path, path):
            self.failed(f"{result.path}: would be replaced by its result; choose another -out_dir")
        else:
            self.replaced += path.exists()
            self.writer.put(path, result)

    def write(self, path: Path, result: DetectedImage) -> None:
        """Draw and write an image."""
        write_image(path, annotated(result._replace(scored=result.scored.most_confident(self.max_det)), self.thresh))


def is_same_file(source: ImagePath, out: Path) -> bool:
    """Return whether an output file is the image that was read."""
    return not image.is_url(source) and out.exists() and out.samefile(source)


def annotated(result: DetectedImage, thresh: float) -> image.Image:
    """Return an image with its boxes, as Darknet labels them."""
    names = result.objects.names
    return image.draw(result.image, formats.labelled_boxes(result.scored, names, thresh), names)


def write_image(path: Path, img: image.Image) -> None:
    """Write an image, and its folder if it is missing. Raises ImageError."""
    create_folder(path.parent, ImageError)
    image.write(path, img)


class ObjectWriter(ResultWriter):
    """A file of objects: CSV, or COCO's results, which measure accuracy and therefore have all objects."""

    def __init__(self, add: evaluate.AddImage, every: bool = False):
        self.write, self.every = add, every

    def add(self, result: DetectedImage) -> None:
        """Write an image's objects."""
        scored, objects = result.scored, result.objects if self.every else result.shown
        self.write(result.path, scored.width, scored.height, objects.summary(), scored.probs.shape[1])


class CropWriter(ResultWriter):
    """A folder with an image of each object: IMAGE_NUMBER_NAME.png."""

    def __init__(self, folder: Path, background: Background):
        self.folder, self.writer = folder, background(write_image)

    def add(self, result: DetectedImage) -> None:
        """Write an image's crops in the background."""
        for number, d in enumerate(result.shown, 1):
            part = crop(result.image, d.box)
            if part.size:
                name = "".join(c if c.isalnum() else "-" for c in d.label)
                path = self.folder / f"{result.path.output}_{number}_{name}.png"
                self.replaced += path.exists()
                self.writer.put(path, part)


class TablePrinter(ResultWriter):
    """Prints a table of each image's objects."""

    def add(self, result: DetectedImage) -> None:
        """Print an image's table."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("object", box=None, header_style="bold", title=escape(result.path), title_justify="left")
        for column in ("confidence", "left", "top", "width", "height"):
            table.add_column(column, justify="right")
        for d in result.shown:
            table.add_row(escape(d.label), f"{d.confidence:.0%}", *(f"{v:.0f}" for v in d.box))
        Console(highlight=False).print(table)


def uses_stdout(args: Arguments) -> bool:
    """Return whether a result file goes to standard output, which Darknet's text then must not."""
    return any(getattr(args, flag) == STDOUT for flag in TEXT_FILES)


def requested(
    args: Arguments, stack: ExitStack, threads: int, several: bool, failed: Callable[[str], object]
) -> list[ResultWriter]:
    """Return the writers that the flags request; their files appear when the stack is closed without an error.

    threads: that write images. several: more than one image at a time. failed: told of what cannot be written for one image.
    Raises DataError if a result cannot be written.
    """
    printed = [f"-{flag} -" for flag in TEXT_FILES if getattr(args, flag) == STDOUT] + ["-table"] * args.table
    if len(printed) > 1:
        raise UsageError(f"{printed[0]} and {printed[1]}: only one can be on standard output; write a file instead")

    def background(work: Callable[..., None]) -> BackgroundWriter:
        return stack.enter_context(BackgroundWriter(work, max(args.batch, 4), threads))

    files = {flag: writable(path, args.positionals) for flag in TEXT_FILES if (path := getattr(args, flag))}
    for flag, path in files.items():
        if path.suffix.lower() in SUFFIXES:
            raise UsageError(f"-{flag} {path}: is a text file, not an image; -out_dir FOLDER writes images")
    if len({os.path.realpath(path) for path in files.values()}) < len(files):
        raise UsageError(f"-{' and -'.join(files)}: would be one file; give each its own")
    writers: list[ResultWriter] = []
    if not uses_stdout(args):
        writers.append(TextPrinter(args))
    if "out" in files:  # files before images: they are closed later, and do not appear if an image cannot be written
        writers.append(JsonWriter(stack.enter_context(joined(files["out"], *formats.JSON_FILE))))
    if "csv" in files:
        file = stack.enter_context(text_file(files["csv"]))
        writers.append(ObjectWriter(stack.enter_context(evaluate.csv_file(file))))
    if "coco" in files:
        file = stack.enter_context(text_file(files["coco"]))
        writers.append(ObjectWriter(stack.enter_context(evaluate.coco_file(file)), every=True))
    if args.out_dir:
        writers.append(AnnotatedImageWriter(args, background, failed))
    elif not several:
        writers.append(PredictionsWriter(args, failed))
    if args.crops:
        writers.append(CropWriter(writable_folder(args.crops), background))
    if args.save_labels:
        writers.append(LabelWriter(args, failed))
    if args.table:
        writers.append(TablePrinter())
    if several and not any(getattr(args, flag.name) for flag in FLAGS):
        writers.append(UndrawnNote())
    return writers


TEXT_FILES = ("out", "csv", "coco")
FLAGS = (
    Flag("out_dir", str, None, "Write each image with its boxes into this folder, as NAME.jpg"),
    Flag("out", str, None, "Write all results to this JSON file; - for standard output, in place of the text"),
    Flag("csv", str, None, "Write all objects to this CSV file, with boxes in pixels; - for standard output"),
    Flag("coco", str, None, "Write all objects to this JSON file in COCO's results format; - for standard output"),
    Flag("crops", str, None, "Write an image of each object into this folder"),
    Flag("save_labels", bool, False, "Write each image's boxes to a label file next to it"),
    Flag("table", bool, False, "Print a table of each image's objects, with boxes in pixels"),
    Flag(
        "max_det",
        int,
        None,
        f"Most objects of an image; by default {MAX_DET} in -out_dir, -csv, -crops and -table, all elsewhere",
        limits=(1, 2**31),
    ),
)
