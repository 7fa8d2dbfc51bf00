"""Inputs of commands: files by path or bundled name, the backend, images; progress bars while they are processed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Protocol, TextIO

from .. import backend as backends
from ..backend import Backend
from ..data.datafile import DataFile
from ..errors import BackendError, DataError, WeightsError
from ..image_sources import base_folder, output_name, sources
from ..io import download, resources
from ..io.http import ALLOW_PRIVATE_URLS
from ..io.text import UniqueNames
from . import eprint
from .arguments import FRACTION, Arguments, Flag

BACKEND = Flag(
    "backend", str, "auto",
    "auto (cupy if a GPU is available, else numpy), cupy, numpy, openvino, onnxruntime, or fastest, of those installed",
)  # fmt: skip
PRECISION = Flag(
    "precision", str, "fp32", "fp32; on a GPU also tf32 and fp16; with openvino also bf16, if the CPU computes in it"
)
NMS = Flag(
    "nms",
    float,
    0.45,
    "NMS threshold: of two boxes of one class that overlap more, keep one; 0 keeps all",
    limits=FRACTION,
)
GPU = Flag("i", int, 0, "Index of the GPU; -1 uses the CPU")
SOURCE = "[source ...]"
SOURCES = (
    Flag("recursive", bool, False, "Also search the subfolders of folders"),
    Flag("allow_private", bool, False, "Also read URLs of this machine and its network"),
)
SOURCES_HELP = (
    "A source is an image, a folder, a pattern in quotes such as 'photos/*.jpg' (** stands for any folders), a text file (.txt)"
    " with a path or URL on each line, or an http or https URL; those in object stores too, as s3://bucket/photos."
    " Without a source, they are read from standard input, one per line"
)
MAX_COUNTED = 1_000_000  # images, before the first of them is processed


def data_file(name: str) -> DataFile:
    """Read a .data file, given by path or bundled name."""
    return DataFile.read(resources.find(name, ".data"))


def weights_file(name: str) -> Path:
    """Return the path of weights given by path, bundled name or pretrained name; the latter are downloaded on first use."""
    path = resources.find(name, ".weights")
    if path.is_file():
        return path
    if name in download.PRETRAINED:
        return download_weights(name)
    if path.suffix == ".weights" and path.stem in download.PRETRAINED:
        raise WeightsError(f"{name}: no such file; use the name {path.stem}, which downloads it on first use")
    return path


def download_weights(name: str, source: str | None = None) -> Path:
    """Return the path of pretrained weights; show progress while they are downloaded. source: a file or URL to take."""
    if not sys.stderr.isatty():
        return download.weights(name, source=source)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    text = TextColumn("{task.description}")
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{name}.weights", total=None)
        return download.weights(name, lambda done, total: bar.update(task, completed=done, total=total or None), source)


class ShowProgress(Protocol):
    """A function that shows progress."""

    def __call__(self, count: int, total: int | None, text: str = "images") -> None:
        """Show how many images are done, of how many, if that is known, and a text."""


@contextmanager
def progress_bar(shown: bool = True) -> Iterator[ShowProgress]:
    """Show how many images are done and the time left, if stderr is a terminal and unless shown=False.

    Yields the function to call with these.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda count, total, text="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # what is printed meanwhile goes through the bar's console, stderr: right only for what the terminal shows
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("images", total=None)

        def show(count: int, total: int | None, text: str = "images") -> None:
            bar.update(task, completed=count, total=total, description=text)

        yield show


def get_backend(args: Arguments) -> Backend:
    """Return the backend selected by -backend and -i, and make its GPU current."""
    if args.i < 0:
        return backends.get("numpy")
    be = backends.get(args.backend)
    asked = f"-gpus {args.gpus}" if getattr(args, "gpus", "") else f"-i {args.i}" if args.i else ""
    if asked and be.current_device() is None:
        eprint("note", f"{asked} has no effect; the CPU is used, `gpudarknet info` says why")
    if args.i and be.current_device() is not None:
        try:
            be.xp.cuda.Device(args.i).use()
        except Exception as e:
            raise BackendError(f"-i {args.i}: no such GPU ({e}); nvidia-smi lists them") from None
    return be


class ImagePath(str):
    """The path or URL of an image, as it is printed.

    number: of the image in this run, from 1. output: the name of its results without a suffix, with the subfolders in which it
    was found; no other image of the run has it.
    """

    number: int
    output: str


class Images:
    """The images that words of a command line name.

    outputs: folders of results, in which none is searched for. failed: told of a word that names no image, which is passed over.
    """

    def __init__(self, args: Arguments, outputs: Iterable[str | None], failed: Callable[[str], object]):
        self.recursive, self.failed = args.recursive, failed
        self.outputs = [Path(os.path.realpath(folder)) for folder in outputs if folder]
        self.count, self.unique = 0, UniqueNames()

    def expand(self, words: Iterable[str]) -> Iterator[ImagePath]:
        """Yield the images, one after the other."""
        for word in words:
            try:
                for path, name in self._search(word):
                    self.count += 1
                    image = ImagePath(path)
                    image.number, image.output = self.count, self.unique(name)
                    yield image
            except DataError as e:
                self.failed(str(e))

    def total(self, words: Iterable[str]) -> int | None:
        """Return the number of images, for a progress bar; None if nobody sees it or there are more than MAX_COUNTED."""
        if not sys.stderr.isatty():
            return None
        count = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for word in words:
                with suppress(DataError):
                    count += sum(1 for _ in islice(self._search(word), MAX_COUNTED + 1))
        return count if count <= MAX_COUNTED else None

    def _search(self, word: str) -> Iterator[tuple[str, str]]:
        """Yield the images that a word names, and the names of their results."""
        base = base_folder(word)
        inside: list[Path] = []  # outputs to leave out
        if isinstance(base, Path) and self.outputs:
            searched = Path(os.path.realpath(base))
            if searched in self.outputs:
                raise DataError(f"{word}: the results are written there; choose another folder for them")
            inside = [folder for folder in self.outputs if searched in folder.parents]
        for source in sources(word, recursive=self.recursive):
            path = word if source == Path(word) else str(source)
            if not (inside and any(folder in Path(os.path.realpath(path)).parents for folder in inside)):
                yield path, output_name(path, base)


def prompt(out: TextIO) -> Iterator[str]:
    """Yield the lines of standard input, with Darknet's prompt for each."""
    while True:
        print("Enter Image Path: ", end="", flush=True, file=out)
        line = sys.stdin.readline()
        if not line:
            print(file=out)
            return
        if path := line.strip("\ufeff \t\r\n"):  # a byte order mark begins what Windows pipes
            yield path


@contextmanager
def private_urls(args: Arguments) -> Iterator[None]:
    """Allow URLs of this machine and its network in the block if -allow_private is given."""
    before = os.environ.get(ALLOW_PRIVATE_URLS)
    if args.allow_private:
        os.environ[ALLOW_PRIVATE_URLS] = "1"
    try:
        yield
    finally:
        if args.allow_private:
            os.environ.pop(ALLOW_PRIVATE_URLS)
            os.environ.update({ALLOW_PRIVATE_URLS: before} if before is not None else {})


def spinner(text: str) -> AbstractContextManager[object]:
    """Show a spinner during a slow operation, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)
