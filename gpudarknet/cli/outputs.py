"""Output files: checked for writability before anything is computed, then written atomically."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..io.atomic import atomic_write


def writable(out: str) -> Path:
    """Return an output path. Raises DataError if it cannot be written."""
    path = Path(out)
    if path.is_dir() or not path.parent.is_dir():
        raise DataError(f"{out}: cannot be written; use a file in an existing folder")
    return path


def write(path: Path, text: str) -> None:
    """Write a text file atomically. Raises DataError."""
    try:
        with atomic_write(path) as tmp:
            tmp.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as e:
        raise DataError(f"{path}: cannot be written ({e.strerror}); check the folder and the disk") from None
