"""What several commands are given: files by path or name, a backend, images by argument or one a line on standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backend as backends
from ..backend import Backend
from ..data.datafile import DataFile
from ..errors import BackendError, WeightsError
from ..io import download, resources
from . import tell
from .arguments import Flag

if TYPE_CHECKING:
    from ..data import Faults

BACKEND = Flag(
    "backend", str, "auto", "numpy, cupy, onnxruntime (extra cpu), or auto: cupy where there is a GPU, else numpy"
)
GPU = Flag("i", int, 0, "Number of the GPU; -1 means none")


def data_file(word: str) -> DataFile:
    """Read a .data file, by path or shipped name."""
    return DataFile.read(resources.find(word, ".data"))


def weights_file(word: str) -> Path:
    """Return the weights that a user means: a path, a shipped name, or a published one, which is fetched on first use."""
    path = resources.find(word, ".weights")
    if path.is_file():
        return path
    if word in download.PRETRAINED:
        return fetched(word)
    if path.suffix == ".weights" and path.stem in download.PRETRAINED:
        raise WeightsError(f"{word}: is not there; `gpudarknet weights {path.stem}` fetches it, then write {path.stem}")
    return path


def fetched(name: str) -> Path:
    """Return the path of published weights; show progress while they are fetched."""
    if not sys.stderr.isatty():
        return download.weights(name)
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{name}.weights", total=None)
        return download.weights(name, lambda done, total: bar.update(task, completed=done, total=total or None))


def tell_faults(faults: Faults) -> None:
    """Say how many images and labels could not be used, and where they are listed."""
    for found, what, file in (
        (faults.images, "image cannot be read", "bad.list"), (faults.labels, "label is wrong or missing", "bad_label.list")
    ):  # fmt: skip
        if found:
            many = what.replace("image", "images").replace("label is", "labels are")
            tell("warning", f"{len(found)} {what if len(found) == 1 else many}; {file} says which and why")


@contextmanager
def counting(total: int) -> Iterator[Callable[[int], None]]:
    """Show how many images are done, where a person looks on."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=total)
        yield lambda count: bar.update(task, completed=count)


def get_backend(args: Any) -> Backend:
    """Return the backend that -backend and -i ask for, with its GPU made the current one."""
    if args.i < 0:
        return backends.get("numpy")
    be = backends.get(args.backend)
    if be.name == "cupy" and args.i:
        try:
            be.xp.cuda.Device(args.i).use()
        except Exception as e:
            raise BackendError(f"-i {args.i}: no such GPU ({e}); nvidia-smi lists them") from None
    return be


def images(words: Sequence[str]) -> Iterator[str]:
    """Yield paths of images: the words, or where there are none, the lines of standard input, each asked for."""
    if words:
        yield from words
        return
    while True:
        print("Enter Image Path: ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            print()
            return
        if line.strip():
            yield line.strip("\r\n")


def waiting(text: str) -> AbstractContextManager[Any]:
    """Show that something takes long, where a person looks on."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)
