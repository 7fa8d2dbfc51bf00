"""Write files so that a reader never sees half of one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success rename it over `path`, on any error remove it.

    The rename happens inside one folder, so it is atomic: `path` holds the old content or the new, never a part.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(*parts(path), dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(beside, 0o666 & ~mask)  # mkstemp makes files private; a result is an ordinary file
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def parts(path: Path) -> tuple[str, str]:
    """Return how the name of a temporary file for `path` ends, and how it begins: mkstemp's suffix and prefix."""
    return path.suffix, f".{path.name}."


def sweep(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files beside `path` that a killed process has left. Nobody else may be writing it."""
    suffix, prefix = parts(Path(path))
    name = re.compile(rf"{re.escape(prefix)}\w{{8}}{re.escape(suffix)}")
    for beside in Path(path).parent.iterdir():
        if name.fullmatch(beside.name):
            beside.unlink(missing_ok=True)
