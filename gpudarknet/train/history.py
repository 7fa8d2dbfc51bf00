"""The curve of a training, as a CSV file and a picture: loss, learning rate, and what was measured on the way."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..io.atomic import atomic_write


@dataclass
class History:
    """The curve: rows (iteration, loss, average, rate, map or "")."""

    path: Path
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    HEAD = ("iteration", "loss", "average", "rate", "map")

    @classmethod
    def upto(cls, path: Path, iteration: int) -> History:
        """Read what an interrupted run has written, up to an iteration."""
        rows: list[tuple[Any, ...]] = []
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [tuple(row) for row in csv.reader(file)][1:]
        whole = [row for row in rows if len(row) == len(cls.HEAD) and row[0].isdecimal()]
        return cls(path, [row for row in whole if int(row[0]) <= iteration])

    def write(self, picture: bool, score: str) -> None:
        """Write the CSV file and, where matplotlib is installed, the picture beside it; score: what was measured."""
        with atomic_write(self.path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.HEAD)
            writer.writerows(self.rows)
        if picture:
            draw_chart(self.path.with_suffix(".png"), self.rows, score)


def draw_chart(path: Path, rows: list[tuple[Any, ...]], score: str = "mAP") -> None:
    """Draw the loss, and what was measured, over the iterations; do nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot(xlabel="iteration")
    axes.set_ylabel("average loss", color="tab:blue")
    found = np.array([[float(row[0]), float(row[2])] for row in rows]).reshape(-1, 2)
    said = path.stem.removeprefix("chart_")
    if len(found):
        said += f": iteration {found[-1, 0]:.0f}, average loss {found[-1, 1]:.4g}"
    axes.plot(found[:, 0], found[:, 1], color="tab:blue", linewidth=1)
    if len(found):
        top = np.percentile(found[:, 1], 95) * 1.2
        axes.set_ylim(0, top if top > 0 else 1)
    axes.grid(alpha=0.3)
    scores = [(float(row[0]), 100 * float(row[4])) for row in rows if row[4] != ""]
    if scores:
        right = axes.twinx()
        right.set_ylabel(f"{score}, %", color="tab:red")
        right.set_ylim(0, 100)
        right.plot(*zip(*scores, strict=True), color="tab:red", marker=".")
        said += f", {score} {scores[-1][1]:.1f} %, best {max(value for _, value in scores):.1f} %"
    axes.set_title(said, fontsize=10)
    with atomic_write(path) as tmp:
        figure.savefig(tmp, dpi=100)
