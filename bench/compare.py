"""Compare two runs and report changes beyond noise.

A change is listed if the medians differ by more than 3 % and the interdecile ranges (p10 to p90 of single calls) do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record, machines, results
from .tables import Grid, number, size

MIN_CHANGE = 0.03
KEY = ("network", "width", "height", "batch", "precision", "engine", "threads")


@dataclass(frozen=True)
class Change:
    """A result that both runs have: ratio of FPS, after / before; verdict "faster", "slower" or "same"."""

    before: Record
    after: Record
    ratio: float
    verdict: str


def change(before: Record, after: Record) -> Change:
    """Compare two results of one network, size and engine."""
    a, b = before["fps"], after["fps"]
    ratio = b["median"] / a["median"]
    disjoint = b["p10"] > a["p90"] or b["p90"] < a["p10"]
    if not disjoint or abs(ratio - 1) <= MIN_CHANGE:
        return Change(before, after, ratio, "same")
    return Change(before, after, ratio, "faster" if ratio > 1 else "slower")


def compare(before: Sequence[Record], after: Sequence[Record]) -> Grid:
    """Return a table of all results; its notes say what may make the comparison unfair."""
    kinds = [{m["device"]: m["kind"] for m in machines(run)} for run in (before, after)]
    olds, news = (
        {(kind.get(r["device"]), *(r.get(k) for k in KEY)): r for r in results(run)}
        for run, kind in zip((before, after), kinds, strict=True)
    )
    cells = []
    verdicts: list[str] = []
    for key, new in news.items():
        old = olds.get(key)
        name = [size(new), new["engine"], new["precision"], str(new["batch"])]
        if old is None:
            cells.append([*name, "–", number(new["fps"]["median"]), "–", "new"])
            continue
        row = change(old, new)
        verdicts.append(row.verdict)
        cells.append(
            [*name, number(old["fps"]["median"]), number(new["fps"]["median"]), f"{row.ratio:.3f}", row.verdict]
        )
    for key, old in olds.items():
        if key not in news:
            name = [size(old), old["engine"], old["precision"], str(old["batch"])]
            cells.append([*name, number(old["fps"]["median"]), "–", "–", "gone"])
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("faster", "slower", "same"))
    notes = [f"{counts}: p10–p90 overlap, or the medians differ by less than {MIN_CHANGE:.0%}"]
    if set(kinds[0]) != set(kinds[1]):
        notes.append(f"Different devices: {', '.join(sorted(kinds[0]))} before, {', '.join(sorted(kinds[1]))} after.")
    for when, run in (("before", before), ("after", after)):
        notes += [f"{when}: {flag}" for m in machines(run) for flag in m.get("flags", [])]
    heads = ("network", "engine", "precision", "batch", "FPS before", "FPS after", "ratio", "")
    return Grid("What changed", heads, cells, 3, notes)
