"""The launches of a plan with their costs and times: as data, by step, and as text for the printed plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..steps import Step
from .time_model import LAUNCH, Card, Cost

TILE = re.compile(r"_\d+x\d+\w*$")  # of a kernel's name


@dataclass(frozen=True)
class LaunchTime:
    """A launch and its times in seconds. step: None for the conversion of the layout of an input or output.

    name: its kernel, or the sizes of its gemm. cost, modelled: None for a fallback layer. measured: None if unknown.
    """

    step: Step | None
    name: str
    cost: Cost | None
    in_graph: bool
    modelled: float | None
    measured: float | None = None

    @property
    def kind(self) -> str:
        """What it is, without the sizes of a gemm and of its tiles."""
        is_library = self.cost is not None and str(self.cost.gemm) == self.name
        return "gemm" if is_library else TILE.sub("", self.name.rpartition(".")[2])


@dataclass(frozen=True)
class Total:
    """Sums over launches. modelled, measured: None if that of any launch is unknown."""

    launches: int
    bytes_moved: int
    flops: float
    modelled: float | None
    measured: float | None


def total(times: Iterable[LaunchTime]) -> Total:
    """Add up launches."""
    times = list(times)
    costs = [t.cost for t in times if t.cost]
    moved, flops = sum(cost.bytes_moved for cost in costs), sum(cost.flops for cost in costs)
    return Total(
        len(times), moved, flops, _sum([t.modelled for t in times]), _sum([t.measured for t in times if t.in_graph])
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def by_step(times: Iterable[LaunchTime]) -> dict[Step | None, Total]:
    """Return the total of each step; that of None is for the layouts of input and outputs."""
    groups: dict[Step | None, list[LaunchTime]] = {}
    for t in times:
        groups.setdefault(t.step, []).append(t)
    return {step: total(group) for step, group in groups.items()}


class Columns:
    """The columns of the printed plan: launches, megabytes moved, GFLOP, microseconds modelled and, if known, measured."""

    def __init__(self, times: Sequence[LaunchTime]):
        self.totals = by_step(times)
        self.measured = any(t.measured is not None for t in times)
        self.header = f"{'launches':>9}{'MB':>9}{'GFLOP':>9}{'us':>8}" + (f"{'measured':>9}" if self.measured else "")

    def cells(self, step: Step | None) -> str:
        """Return the cells of a step."""
        t = self.totals.get(step) or total([])
        text = f"{t.launches:>9}{t.bytes_moved / 1e6:>9.2f}{t.flops / 1e9:>9.3f}{microseconds(t.modelled):>8}"
        return text + (f"{microseconds(t.measured):>9}" if self.measured else "")


def microseconds(seconds: float | None) -> str:
    """Return a time as text, "?" if it is unknown."""
    return "?" if seconds is None else f"{1e6 * seconds:.1f}"


def summary(times: Sequence[LaunchTime], card: Card, batch: int, origin: str = "") -> list[str]:
    """Return the totals of a plan as text, and the share of each kind of launch. origin: of the measured times."""
    parts, everything = [], total(times)
    for where in (True, False):
        part = total(t for t in times if t.in_graph is where)
        sizes = f"{part.bytes_moved / 1e6:,.1f} MB, {part.flops / 1e9:,.2f} GFLOP, {microseconds(part.modelled)} us"
        parts.append(f"{part.launches} launches {'in' if where else 'outside'} the graph: {sizes}")
    lines = [f"{card.name}, modelled: {'; '.join(parts)}"]
    if everything.modelled is None:
        return [*lines, "fallback layers: their launches and times are not known"]
    lines.append(
        f"in all {microseconds(everything.modelled)} us for a batch of {batch}, {batch / everything.modelled:,.0f} images/s, "
        "without the time of the host"
    )
    shares = {kind: 100 * seconds / everything.modelled for kind, seconds in seconds_by_kind(times).items()}
    listed = ", ".join(f"{kind} {share:.0f} %" for kind, share in shares.items() if share >= 0.5)
    overhead = 100 * len(times) * LAUNCH / everything.modelled
    lines.append(f"share of time: {listed}; launch latency is {overhead:.0f} % of it")
    if everything.measured is not None and origin:
        modelled = total(t for t in times if t.in_graph).modelled
        lines.append(
            f"measured one by one, {origin}: {microseconds(everything.measured)} us in the graph, "
            f"modelled {microseconds(modelled)} us"
        )
    return lines


def seconds_by_kind(times: Iterable[LaunchTime]) -> Mapping[str, float]:
    """Return the modelled time of each kind of launch, the longest first."""
    kinds: dict[str, float] = {}
    for t in times:
        kinds[t.kind] = kinds.get(t.kind, 0.0) + (t.modelled or 0.0)
    return dict(sorted(kinds.items(), key=lambda item: -item[1]))
