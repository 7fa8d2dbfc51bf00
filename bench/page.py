"""The report as one self-contained HTML file: tables and SVG plots, light and dark, for desktop, phone and print."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from . import plots, tables
from .records import Record, layers, machines, results
from .tables import Grid, number, percent, size, span

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def page(records: Sequence[Record], gpus: Sequence[Record] = ()) -> str:
    """Return the whole page."""
    known = machines(records)
    device = next((m for m in known if m["kind"] == "cpu"), known[0])
    drawings = [plots.speeds(records), plots.rule_plot([*records, *gpus])] if results(records) else []
    drawings += [plots.roofline(records)] if results(records) else []
    parts = [
        f"<h1>{escape(device['device'])}: FPS and GFLOPS</h1>",
        f'<p class="soft">{escape(origin(device))}</p>',
        facts(records, device),
        caveats(device),
        '<div class="plots">' + "".join(drawings) + "</div>",
        grid(tables.estimates(records, gpus), cards=True),
        grid(tables.speed(records), cards=True),
        *(grid(tables.describe(m), kind="about") for m in known),
        *(
            f'<div class="layers">{plots.layer_plot(records, g)}{grid(tables.slowest(records, g))}</div>'
            for g in layers(records)
        ),
        "<h2>Method</h2><p>Every engine runs in a separate process with the same processors and threads; engines are "
        "interleaved, so that a change of the machine's speed affects all of them. After one warm-up call, wall-clock and CPU "
        "time of each call are measured. <code>gpudarknet bench</code> made this page from the .jsonl file next to it.</p>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>gpudarknet bench: {escape(device['device'])}</title>"
    whole = f"<head>{head}{title}<style>{STYLE}</style></head><body>{''.join(parts)}</body>"
    return f'<!doctype html>\n<html lang="en">{whole}</html>\n'


def origin(device: Record) -> str:
    """Return the version that was measured, and when."""
    when = device["date"].replace("T", " ").removesuffix("Z")
    return f"gpudarknet {device.get('version', '')}, commit {device.get('commit') or 'unknown'}, measured {when} UTC"


def facts(records: Sequence[Record], device: Record) -> str:
    """Return the key figures."""
    peak, gemm = device["peak_gflops"].get("fp32"), device["gemm_gflops"].get("fp32")
    shown = [(span(tuple(peak)) if peak else "–", "GFLOPS peak, derived"), (number(gemm), "GFLOP/s gemm, measured"),
             (number(device.get("copy_gb_s")), "GB/s copied")]  # fmt: skip
    ours = [r for r in results(records) if r["engine"] in ("plan", "reference")]
    if ours:
        best = max(ours, key=lambda r: r["fps"]["median"])
        most = max(ours, key=lambda r: r["fps"]["median"] * r["gflop"])
        shown.append((f"{number(best['fps']['median'])} FPS", f"{size(best)}, {best['engine']}"))
        if gemm:
            efficiency = most["fps"]["median"] * most["gflop"] / gemm
            shown.append((percent(efficiency), f"of gemm: {size(most)}, {most['engine']}"))
    cells = "".join(
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in shown
    )
    return f'<div class="facts">{cells}</div>'


def caveats(device: Record) -> str:
    """Return what makes the measurements less reliable."""
    return "".join(f'<p class="flags">{escape(flag)}</p>' for flag in device.get("flags", []))


def grid(table: Grid, cards: bool = False, kind: str = "") -> str:
    """Return a table; with cards, a phone shows each row as a list of its cells."""
    last = len(table.heads) - 1

    def word(k: int, cell: str = "") -> str:
        kinds = ["word"] * (k < table.left or table.heads[k] == "note") + ["tight"] * (0 < len(cell) < 24)
        return f' class="{" ".join(kinds)}"' if kinds else ""

    heads = "".join(f"<th{word(k)}>{escape(head)}</th>" for k, head in enumerate(table.heads))
    body, before = [], ""
    for cells in table.cells:
        group = " group" if cells[0] != before else ""
        failed = " failed" if table.heads[last] == "note" and not cells[last - 1] else ""
        before = cells[0]
        row = "".join(
            f'<td{word(k, cell)} data-head="{escape(table.heads[k])}">{escape(cell)}</td>'
            for k, cell in enumerate(cells)
        )
        body.append(f'<tr class="{(group + failed).strip()}">{row}</tr>')
    head = f"<thead><tr>{heads}</tr></thead>" if any(table.heads) else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    lower = f'<ul class="notes">{notes}</ul>' if notes and kind != "about" else ""
    classes = " ".join(c for c in ("table", "cards" if cards else "", kind) if c)
    inside = f"<table>{head}<tbody>{''.join(body)}</tbody></table>"
    return f'<h2>{escape(table.title)}</h2><div class="{classes}">{inside}</div>{lower}'
