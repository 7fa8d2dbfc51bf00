"""Compare two runs: what changed beyond noise.

A change counts where the medians differ by more than 3 % and the spreads (p10 to p90 of single calls) do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .records import Record, machines, results
from .tables import Grid, number, size

FLOOR = 0.03
KEY = ("network", "width", "height", "batch", "precision", "engine", "threads")


@dataclass(frozen=True)
class Change:
    """One row that both runs have: ratio is after / before of FPS; verdict "faster", "slower" or "same"."""

    before: Record
    after: Record
    ratio: float
    verdict: str


def change(before: Record, after: Record) -> Change:
    """Compare two results of one network, size and engine."""
    a, b = before["fps"], after["fps"]
    ratio = b["median"] / a["median"]
    apart = b["p10"] > a["p90"] or b["p90"] < a["p10"]
    if not apart or abs(ratio - 1) <= FLOOR:
        return Change(before, after, ratio, "same")
    return Change(before, after, ratio, "faster" if ratio > 1 else "slower")


def compare(before: Sequence[Record], after: Sequence[Record]) -> Grid:
    """Make a table of all rows; under it, what may make the comparison unfair."""
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
        found = change(old, new)
        verdicts.append(found.verdict)
        cells.append(
            [*name, number(old["fps"]["median"]), number(new["fps"]["median"]), f"{found.ratio:.3f}", found.verdict]
        )
    for key, old in olds.items():
        if key not in news:
            name = [size(old), old["engine"], old["precision"], str(old["batch"])]
            cells.append([*name, number(old["fps"]["median"]), "–", "–", "gone"])
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("faster", "slower", "same"))
    notes = [f"{counts}: the spreads p10–p90 overlap, or the medians differ by less than {FLOOR:.0%}"]
    if set(kinds[0]) != set(kinds[1]):
        notes.append(f"Different devices: {', '.join(sorted(kinds[0]))} before, {', '.join(sorted(kinds[1]))} after.")
    for when, run in (("before", before), ("after", after)):
        notes += [f"{when}: {flag}" for m in machines(run) for flag in m.get("flags", [])]
    heads = ("network", "engine", "precision", "batch", "FPS before", "FPS after", "ratio", "")
    return Grid("What changed", heads, cells, 3, notes)
