"""Inputs of commands: files by path or bundled name, the backend, images; progress bars while they are processed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from .. import backend as backends
from ..backend import Backend
from ..data.datafile import DataFile
from ..errors import BackendError, WeightsError
from ..io import download, resources
from . import eprint
from .arguments import FRACTION, Arguments, Flag

BACKEND = Flag(
    "backend", str, "auto", "numpy, cupy, onnxruntime (extra cpu), or auto: cupy if a GPU is available, else numpy"
)
NMS = Flag(
    "nms",
    float,
    0.45,
    "NMS threshold: of two boxes of one class that overlap more, keep one; 0 keeps all",
    limits=FRACTION,
)
GPU = Flag("i", int, 0, "Index of the GPU; -1 uses the CPU")


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


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show how many images are done, if stderr is a terminal. Yields the function to call with that number and the total."""
    if not sys.stderr.isatty():
        yield lambda count, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=None)
        yield lambda count, total: bar.update(task, completed=count, total=total)


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


def image_paths(paths: Sequence[str]) -> Iterator[str]:
    """Yield image paths: the given ones or, if there are none, lines of standard input, with a prompt for each."""
    if paths:
        yield from paths
        return
    while True:
        print("Enter Image Path: ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            print()
            return
        if line.strip():
            yield line.strip("\r\n")


def spinner(text: str) -> AbstractContextManager[object]:
    """Show a spinner during a slow operation, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)
