"""Output files: checked for writability before anything is computed, then written atomically."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..errors import DataError
from ..io.atomic import atomic_write, check_writable, create_folder
from ..io.text import cut_name

STDOUT = "-"  # in place of a text file
FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f]' if os.name == "nt" else r"[/\x00]")


def writable(out: str, read: Iterable[str] = ()) -> Path:
    """Return an output path; "-" is standard output. Raises DataError if it cannot be written or is one of the files read."""
    if out != STDOUT:
        check_writable(out, DataError)
        if any(os.path.exists(name) and os.path.exists(out) and os.path.samefile(name, out) for name in read):
            raise DataError(f"{out}: is a file that the command reads; write the result to another one")
    return Path(out)


def writable_folder(name: str) -> Path:
    """Return an output folder, which is created. Raises DataError if no file can be written to it."""
    folder = Path(name)
    create_folder(folder, DataError)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as e:
        raise DataError(f"{name}: cannot be written to ({e.strerror}); use another folder") from None


def file_names(names: Sequence[str]) -> list[str]:
    """Return a part of a file name for each class: its name, with _ in place of characters that a file name cannot have.

    Of names that become equal, those that had to be changed, or come later, are followed by the number of their class.
    """
    clean = [cut_name(FORBIDDEN.sub("_", name)) for name in names]
    result: dict[int, str] = {}
    for k in sorted(range(len(names)), key=lambda k: clean[k] != names[k]):
        taken, name = {os.path.normcase(other) for other in result.values()}, clean[k]
        while os.path.normcase(name) in taken:
            name += f"_{k}"
        result[k] = name
    return [result[k] for k in range(len(names))]


def write(path: Path, text: str) -> None:
    """Write a text file atomically. Raises DataError."""
    with text_file(path) as file:
        file.write(text)


@contextmanager
def text_file(path: Path) -> Iterator[TextIO]:
    """Yield a text file that replaces `path` at the end of the block; standard output for "-". Raises DataError."""
    if str(path) == STDOUT:
        yield sys.stdout
        return
    with (
        atomic_write(path, DataError) as tmp,
        open(tmp, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


@contextmanager
def joined(path: Path, begin: str, separator: str, end: str) -> Iterator[Callable[[str], object]]:
    """Yield a function that appends a text to a file: `begin`, the texts with the separator between them, `end`."""
    with text_file(path) as file:
        file.write(begin)
        between = ""

        def append(text: str) -> None:
            nonlocal between
            file.write(between + text)
            between = separator

        yield append
        file.write(end)
