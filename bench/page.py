"""The report as one self-contained HTML file: plots and tables, light and dark, for desktop, phone and print."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from html import escape
from pathlib import Path

from gpudarknet.io.atomic import atomic_write

from . import plots, tables
from .records import Record, layers, machines, results
from .tables import Grid

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
NO_PLOTS = '<p>No plots: matplotlib is not installed; <code>pip install "gpudarknet[bench]"</code></p>'
METHOD = (
    "<h2>Method</h2><p>Every engine runs in a separate process with the same processors and threads; engines are "
    "interleaved, so that a change of the machine's speed affects all of them. After one warm-up call, wall-clock and CPU "
    "time of each call are measured. <code>gpudarknet bench</code> made this page from the .jsonl file next to it.</p>"
)


def write(html: Path, records: Sequence[Record], gpus: Sequence[Record]) -> None:
    """Write the page, atomically."""
    with atomic_write(html) as tmp:
        tmp.write_text(page(records, gpus), encoding="utf-8")


def page(records: Sequence[Record], gpus: Sequence[Record] = ()) -> str:
    """Return the whole page."""
    known = machines(records)
    device = next((m for m in known if m["kind"] == "cpu"), known[0])
    grids = [tables.estimates(records, gpus), tables.speed(records)]
    grids += [tables.slowest(records, group) for group in layers(records)]
    title = f"{escape(device['device'])}: FPS and GFLOPS"
    when = device["date"].replace("T", " ").removesuffix("Z")
    origin = f"gpudarknet {device.get('version', '')}, commit {device.get('commit') or 'unknown'}, measured {when} UTC"
    body = [f'<h1>{title}</h1><p class="soft">{escape(origin)}</p>', *(table(tables.describe(m)) for m in known)]
    body += [drawings(records, gpus), *map(table, grids), METHOD]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    whole = f"<head>{head}<title>{title}</title><style>{STYLE}</style></head><body>{''.join(body)}</body>"
    return f'<!doctype html>\n<html lang="en">{whole}</html>\n'


def drawings(records: Sequence[Record], gpus: Sequence[Record]) -> str:
    """Return the plots, or a note if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return NO_PLOTS
    shown = [plots.layer_plot(records, group) for group in layers(records)]
    if results(records):
        shown = [plots.speeds(records), plots.rule_plot([*records, *gpus]), plots.roofline(records), *shown]
    return f'<div class="plots">{"".join(shown)}</div>'


def table(grid: Grid) -> str:
    """Return a table with its title and notes."""

    def row(tag: str, cells: Sequence[str]) -> str:
        words = [k < grid.left or grid.heads[k] == "note" for k in range(len(cells))]
        return "".join(
            f"<{tag}{' class=word' * word}>{escape(cell)}</{tag}>" for word, cell in zip(words, cells, strict=True)
        )

    head = f"<thead><tr>{row('th', grid.heads)}</tr></thead>" if any(grid.heads) else ""
    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in grid.cells)
    notes = "".join(f"<li>{escape(note)}</li>" for note in grid.notes)
    inside = f'<div class="table"><table>{head}<tbody>{body}</tbody></table></div>'
    return f"<h2>{escape(grid.title)}</h2>{inside}" + f'<ul class="soft">{notes}</ul>' * bool(notes)
