"""The report as one HTML file that needs nothing else: tables and SVG plots, light and dark, for desk, phone and print."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from . import plots, tables
from .records import Record, layers, machines, results
from .tables import Grid, number, percent, size, span

STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d9dee3; --faint: #eef1f4; --paper: #ffffff; --card: #ffffff; --law: #b42318;
  --e0: #0b62c4; --e1: #d97706; --e2: #0f8a5f; --e3: #8b3fc0; --e4: #c2255c; --e5: #57606a; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --line: #343b44; --faint: #232a32; --paper: #14181d;
  --card: #1a1f26; --law: #ff7b72; --e0: #58a6ff; --e1: #f0a53a; --e2: #3fcf8e; --e3: #c58af9; --e4: #ff7aa8; --e5: #9aa4af } }
@media print { :root { --ink: #000; --soft: #444; --line: #bbb; --faint: #eee; --paper: #fff; --card: #fff; --law: #b42318;
  --e0: #0b62c4; --e1: #b86200; --e2: #0f7a55; --e3: #7a35a8; --e4: #b01f52; --e5: #444 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 24px 20px 48px; max-width: 1180px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em } h2 { font-size: 19px; margin: 36px 0 10px }
h3 { font-size: 15px; margin: 0 0 8px } p { margin: 6px 0 } .soft, figcaption, .notes { color: var(--soft); font-size: 13px }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 }
.fact { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; background: var(--card) }
.fact b { display: block; font-size: 22px; line-height: 1.25; font-variant-numeric: tabular-nums } .fact span { color: var(--soft); font-size: 13px }
.flags { border-left: 3px solid var(--e1); padding: 4px 0 4px 12px; margin: 12px 0; font-size: 14px }
.plots { columns: 2 400px; column-gap: 16px }
figure { margin: 0 0 16px; border: 1px solid var(--line); border-radius: 8px; padding: 14px 14px 12px; background: var(--card); break-inside: avoid }
figcaption { margin-top: 8px } svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: var(--ink) }
svg .tick { fill: var(--soft) } svg .name { fill: var(--soft) } svg .label { font-weight: 600; font-size: 12px } svg .label .tick { font-weight: 400; font-size: 11px }
svg .value { font-variant-numeric: tabular-nums } .grid { stroke: var(--line); stroke-width: 1 } .grid.faint { stroke: var(--faint) }
.axis { stroke: var(--soft) } .law { stroke: var(--law); stroke-width: 1.6 } svg .law-name { fill: var(--law) }
.mishap { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 4 3 } .roof { stroke: var(--ink); stroke-width: 1.6 }
.roof.faint { stroke: var(--soft); stroke-dasharray: 4 3; stroke-width: 1.2 } .spot { fill: var(--soft); opacity: .45 }
.whisker { stroke-width: 2; opacity: .55 } .published { fill: var(--card); stroke: var(--soft); stroke-width: 1.4 }
circle.e0 { fill: var(--e0) } circle.e1 { fill: var(--e1) } circle.e2 { fill: var(--e2) } circle.e3 { fill: var(--e3) }
circle.e4 { fill: var(--e4) } circle.e5, circle.other { fill: var(--e5) }
line.e0 { stroke: var(--e0) } line.e1 { stroke: var(--e1) } line.e2 { stroke: var(--e2) } line.e3 { stroke: var(--e3) }
line.e4 { stroke: var(--e4) } line.e5, line.other { stroke: var(--e5) } .side-a { fill: var(--e0) } .side-m { fill: var(--e1) }
.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--card) }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { padding: 6px 9px; text-align: right; vertical-align: top } th { color: var(--soft); font-weight: 600; vertical-align: bottom }
tr + tr td { border-top: 1px solid var(--faint) } tr.group td { border-top: 1px solid var(--line) } thead { border-bottom: 1px solid var(--line) }
td.word, th.word { text-align: left } td.tight { white-space: nowrap } tr.failed td { color: var(--soft) }
.about td { text-align: left } .notes { margin: 8px 0 0; padding-left: 18px } .notes li { margin: 3px 0 } code { font-size: 13px }
@media (max-width: 700px) {
  body { padding: 16px 12px 32px } h1 { font-size: 22px } .facts { grid-template-columns: 1fr 1fr; gap: 8px } .fact b { font-size: 18px }
  .cards thead { display: none } .cards tr { display: block; padding: 8px 10px } .cards tr + tr { border-top: 1px solid var(--line) }
  .cards td { display: flex; justify-content: space-between; gap: 16px; border: 0 !important; padding: 2px 0; text-align: right }
  .cards td::before { content: attr(data-head); color: var(--soft); text-align: left; white-space: nowrap }
  .cards td:empty { display: none } .cards td:first-child { font-weight: 600 } figure { padding: 10px 8px }
}
@media print {
  @page { size: A4 landscape; margin: 12mm }
  body { padding: 0; max-width: none; font-size: 11px } table { font-size: 8.5px } th, td { padding: 2px 4px } td.tight { white-space: normal }
  .plots { columns: 2 } h2 { break-after: avoid } tr { break-inside: avoid } .table { overflow: visible }
}
"""


def page(records: Sequence[Record], gpus: Sequence[Record] = ()) -> str:
    """Write the whole page."""
    known = machines(records)
    device = next((m for m in known if m["kind"] == "cpu"), known[0])
    networks = list(dict.fromkeys(r["network"] for r in layers(records)))
    drawings = [plots.speeds(records), plots.rule_plot([*records, *gpus])] if results(records) else []
    drawings += [plots.roofline(records)] if results(records) else []
    drawings += [plots.layer_plot(records, network) for network in networks]
    parts = [
        f"<h1>{escape(device['device'])}: FPS and GFLOPS</h1>",
        f'<p class="soft">gpudarknet {escape(str(device.get("version", "")))}, commit {escape(str(device.get("commit") or "unknown"))}, '
        f"measured {escape(device['date'].replace('T', ' ').removesuffix('Z'))} UTC</p>",
        facts(records, device),
        doubts(device),
        '<div class="plots">' + "".join(drawings) + "</div>",
        grid(tables.estimates(records, gpus), cards=True),
        grid(tables.speed(records), cards=True),
        *(grid(tables.about(m), kind="about") for m in known),
        *(grid(tables.slowest(records, network), cards=True) for network in networks),
        "<h2>Method</h2><p>Every engine runs in a process of its own, kept to the same processors and threads; engines take turns, so "
        "that a machine that changes its speed changes it for all. One call to warm up; then the wall clock and the CPU time of each "
        "call. <code>gpudarknet bench</code> made this page; the numbers behind it are in the .jsonl file beside it.</p>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    title = f"<title>gpudarknet bench: {escape(device['device'])}</title>"
    return f'<!doctype html>\n<html lang="en"><head>{head}{title}<style>{STYLE}</style></head><body>{"".join(parts)}</body></html>\n'


def facts(records: Sequence[Record], device: Record) -> str:
    """Show the few numbers that matter most."""
    peak, gemm = device["peak_gflops"].get("fp32"), device["gemm_gflops"].get("fp32")
    shown = [(span(tuple(peak)) if peak else "–", "GFLOPS peak, worked out"), (number(gemm), "GFLOP/s gemm, measured"),
             (number(device.get("copy_gb_s")), "GB/s copied")]  # fmt: skip
    ours = [r for r in results(records) if r["engine"] in ("plan", "reference")]
    if ours:
        best = max(ours, key=lambda r: r["fps"]["median"])
        most = max(ours, key=lambda r: r["fps"]["median"] * r["gflop"])
        shown.append((f"{number(best['fps']['median'])} FPS", f"{size(best)}, {best['engine']}"))
        if gemm:
            share = most["fps"]["median"] * most["gflop"] / gemm
            shown.append((percent(share), f"of the gemm: {size(most)}, {most['engine']}"))
    cells = "".join(
        f'<div class="fact"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in shown
    )
    return f'<div class="facts">{cells}</div>'


def doubts(device: Record) -> str:
    """Show what makes the numbers less certain."""
    return "".join(f'<p class="flags">{escape(flag)}</p>' for flag in device.get("flags", []))


def grid(table: Grid, cards: bool = False, kind: str = "") -> str:
    """Write a table; with cards, a phone shows each row as a list of its cells."""
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
    return f'<h2>{escape(table.title)}</h2><div class="{classes}"><table>{head}<tbody>{"".join(body)}</tbody></table></div>{lower}'
