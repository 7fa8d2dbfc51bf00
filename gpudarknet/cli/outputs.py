"""Output files: checked for writability before anything is computed, then written atomically."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..io.atomic import atomic_write, check_writable

MAX_NAME = 200  # bytes of a class name in a file name, of the 255 that file systems allow
FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f]' if os.name == "nt" else r"[/\x00]")


def writable(out: str) -> Path:
    """Return an output path. Raises DataError if it cannot be written."""
    check_writable(out, DataError)
    return Path(out)


def writable_folder(name: str) -> Path:
    """Return an output folder, which is created. Raises DataError if no file can be written to it."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as e:
        raise DataError(f"{name}: cannot be written to ({e.strerror}); use another folder") from None


def file_names(names: Sequence[str]) -> list[str]:
    """Return a part of a file name for each class: its name, with _ in place of characters that a file name cannot have.

    Of names that become equal, those that had to be changed, or come later, are followed by the number of their class.
    """
    clean = [
        FORBIDDEN.sub("_", name).encode(errors="surrogateescape")[:MAX_NAME].decode(errors="ignore") for name in names
    ]
    result: dict[int, str] = {}
    for k in sorted(range(len(names)), key=lambda k: clean[k] != names[k]):
        taken, name = {os.path.normcase(other) for other in result.values()}, clean[k]
        while os.path.normcase(name) in taken:
            name += f"_{k}"
        result[k] = name
    return [result[k] for k in range(len(names))]


def write(path: Path, text: str) -> None:
    """Write a text file atomically. Raises DataError."""
    with atomic_write(path, DataError) as tmp:
        tmp.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
