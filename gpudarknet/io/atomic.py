"""Writing files: atomically (a reader sees the old file or the new one, never a part), in new folders, under unused names."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DarknetError


@contextmanager
def atomic_write(path: str | os.PathLike[str], error: type[DarknetError] | None = None) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`. On success rename it to `path`; on an exception remove it.

    The rename stays within one folder, so it is atomic: `path` holds the old content or the new, never a part. A link stays;
    the file that it leads to is replaced. A device or a pipe, such as /dev/stdout, is yielded itself. An OSError, of the block
    too, is raised as `error`, if given, which names `path`.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            yield path
            return
        target = Path(os.path.realpath(path))
        handle, name = tempfile.mkstemp(*tmp_name(target), dir=target.parent)
        os.close(handle)
        tmp = Path(name)
        try:
            yield tmp
            with open(tmp, "rb+") as file:
                os.fsync(file.fileno())
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(tmp, 0o666 & ~mask)  # mkstemp creates private files; the result gets the usual permissions
            os.replace(tmp, target)
        finally:
            tmp.unlink(missing_ok=True)
    except OSError as e:
        if error is None:
            raise
        raise error(f"{path}: cannot be written ({e.strerror or e}); check the folder and the disk") from None


def create_folder(path: str | os.PathLike[str], error: type[DarknetError]) -> None:
    """Create a folder and those above it, unless they exist. Raises `error`."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise error(f"{path}: cannot create this folder ({e.strerror}); choose another path") from None


@contextmanager
def unused_path(path: Path, error: type[DarknetError]) -> Iterator[Path]:
    """Yield a path without a file, `path` or with a number after its stem (dog.jpg, dog2.jpg), and reserve it.

    An empty file reserves it, so that no other process takes it; it is removed on an exception. Raises `error`.
    """

    def numbered(number: int) -> Path:
        return path if number == 1 else path.with_stem(f"{path.stem}{number}")

    def first(low: int, high: int) -> int:
        """Return a number without a file, in few steps, as a folder may have thousands."""
        while os.path.lexists(numbered(high)):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if os.path.lexists(numbered(middle)) else (low, middle)
        return high

    while True:
        unused = numbered(first(0, 1))
        try:
            unused.open("x").close()
            break
        except FileExistsError:  # another process was faster
            continue
        except OSError as e:
            raise error(f"{unused}: cannot be written ({e.strerror}); choose another folder") from None
    try:
        yield unused
    except BaseException:
        unused.unlink(missing_ok=True)
        raise


def check_writable(path: str | os.PathLike[str], error: type[DarknetError]) -> None:
    """Raise `error` unless a file can be written at `path`, before what it will contain is computed."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists() and not path.is_file():
            return  # a device, such as /dev/null
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))) as file:
            file.write(b" ")
    except OSError as e:
        raise error(f"{path}: cannot be written ({e.strerror}); use a file in an existing folder") from None


def tmp_name(path: Path) -> tuple[str, str]:
    """Return mkstemp's suffix and prefix for a temporary file that will replace `path`."""
    return path.suffix, f".{path.name}."


def remove_stale_tmp(folder: str | os.PathLike[str], names: str) -> None:
    """Remove temporary files that a killed process left in a folder, of files whose names match a regular expression.

    No other process may be writing these files.
    """
    pattern = re.compile(rf"\.(?P<name>{names})\.\w{{8}}(?P<suffix>\.\w+|)")
    for tmp in Path(folder).iterdir():
        match = pattern.fullmatch(tmp.name)
        if match and match["suffix"] == Path(match["name"]).suffix:
            tmp.unlink(missing_ok=True)
