"""Write a report: records as JSON lines and the page beside them; and the records of GPUs that go into the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpudarknet.io.atomic import atomic_write

from . import page, records
from .records import Record


def write(found: Sequence[Record], lines: Path, html: Path, gpus: Sequence[Record]) -> None:
    """Write both files; each appears whole or not at all."""
    records.write(lines, found)
    write_page(found, html, gpus)


def write_page(found: Sequence[Record], html: Path, gpus: Sequence[Record]) -> None:
    """Write the page alone."""
    with atomic_write(html) as tmp:
        tmp.write_text(page.page(found, gpus), encoding="utf-8")
