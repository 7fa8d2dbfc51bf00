"""Times of single launches in the results of GPU checks: `gpudarknet plan` prints them next to its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpudarknet.errors import DataError
from gpudarknet.plan.cuda.cost_report import LaunchTime
from gpudarknet.plan.cuda.time_model import Card, card_of_device

from .gpu_report import RECORD, lines

COLUMNS = ("launch", "us", "modelled_us", "mb", "gflop")  # of a row's "launches"
IDENTITY = ("launch", "mb", "gflop")  # the columns by which a launch is recognized
RESULTS = Path(__file__).parent / "results"


def cells(launch: LaunchTime, seconds: float) -> list[Any]:
    """Return a launch as a row has it. seconds: measured."""
    moved, flops = (launch.cost.bytes_moved, launch.cost.flops) if launch.cost else (0, 0.0)
    modelled = None if launch.modelled is None else round(1e6 * launch.modelled, 2)
    return [launch.name, round(1e6 * seconds, 2), modelled, round(moved / 1e6, 6), round(flops / 1e9, 6)]


def measured(card: Card, launches: Iterable[LaunchTime], folder: Path = RESULTS) -> tuple[list[float], str] | None:
    """Return the seconds of a plan's launches in its graph as measured last on a card, and the file; None if they were not.

    A measurement is of the same plan if its launches have the same names, bytes and operations. Small runs, and runs on an
    emulated device, are ignored; so are files that cannot be read.
    """
    wanted = [_identity(dict(zip(COLUMNS, cells(launch, 0), strict=True))) for launch in launches if launch.in_graph]
    found = None
    for path in sorted(folder.glob("*.jsonl")):  # their names begin with the date
        try:
            for row in _rows(path, card):
                rows = [dict(zip(row["launch_columns"], one, strict=True)) for one in row["launches"]]
                if list(map(_identity, rows)) == wanted:
                    found = [one["us"] / 1e6 for one in rows], path.name
        except (DataError, KeyError, TypeError, ValueError):
            continue
    return found


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in IDENTITY)


def _rows(path: Path, card: Card) -> Iterable[dict[str, Any]]:
    """Yield the rows of a file with times of launches on a card."""
    on_card = False
    for _, row in lines(path):
        if row.get("record") != RECORD:
            return
        if row["case"] == "start":
            on_card = not (row.get("emulated") or row["small"]) and card_of_device(row["device"]) is card
        elif on_card and "launch_columns" in row and not row.get("failed"):
            yield row
