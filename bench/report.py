"""Write a report: records as JSON lines, and the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpudarknet.io.atomic import atomic_write

from . import page, records
from .records import Record


def write(results: Sequence[Record], lines: Path, html: Path, gpus: Sequence[Record]) -> None:
    """Write both files, each atomically."""
    records.write(lines, results)
    write_page(results, html, gpus)


def write_page(results: Sequence[Record], html: Path, gpus: Sequence[Record]) -> None:
    """Write the page only."""
    with atomic_write(html) as tmp:
        tmp.write_text(page.page(results, gpus), encoding="utf-8")
