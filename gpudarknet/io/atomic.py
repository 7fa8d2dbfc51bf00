"""Atomic writes: a reader sees the old file or the new one, never a part."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. On success rename it to `path`; on an exception remove it.

    The rename stays within one folder, so it is atomic: `path` holds the old content or the new, never a part.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(*tmp_name(path), dir=path.parent)
    os.close(handle)
    tmp = Path(name)
    try:
        yield tmp
        with open(tmp, "rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(tmp, 0o666 & ~mask)  # mkstemp creates private files; the result gets the usual permissions
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def tmp_name(path: Path) -> tuple[str, str]:
    """Return mkstemp's suffix and prefix for a temporary file that will replace `path`."""
    return path.suffix, f".{path.name}."


def remove_stale_tmp(path: str | os.PathLike[str]) -> None:
    """Remove temporary files for `path` that a killed process left behind. No other process may be writing `path`."""
    suffix, prefix = tmp_name(Path(path))
    pattern = re.compile(rf"{re.escape(prefix)}\w{{8}}{re.escape(suffix)}")
    for tmp in Path(path).parent.iterdir():
        if pattern.fullmatch(tmp.name):
            tmp.unlink(missing_ok=True)
