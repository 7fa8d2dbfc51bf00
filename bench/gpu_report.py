"""Read the rows of a GPU check, and write README.md's table of them: what `gpudarknet bench report` does with such files.

The table stands between two comments in README.md and is never written by hand. tests/test_gpu_report.py holds it to what the
results that are committed in bench/results/ make of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpudarknet.errors import DataError
from gpudarknet.io.atomic import atomic_write

from .tables import Grid, number

Row = dict[str, Any]

RECORD = "gpu-check"  # the kind of its records
BEGIN = "<!-- GPU results: written by `gpudarknet bench report`, not by hand -->"
END = "<!-- end of the GPU results -->"
NONE = """\
**No run on a GPU has been committed yet, so no figure of one is given here.** So far the kernels are compiled for sm_75 to
sm_120, and every test of CUDA runs with the real CuPy on an [emulated GPU](docs/cuda-emulator.md).
"""
HEADS = (
    "network",
    "input",
    "precision",
    "batch",
    "graph",
    "PyTorch's graph",
    "ours / PyTorch's",
    "predict",
    "one predict, ms",
)
AGAIN = "run `make gpu-check` again"


@dataclass
class Run:
    """A part of the check on one device: the row with which it began, and the last row of each case."""

    part: str
    head: Row
    path: str
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def cut_short(self) -> bool:
        """Whether it was ended before its cases were done."""
        end = self.rows.get("end")
        return end is None or end["interrupted"]


@dataclass
class Device:
    """What is known of a device: its runs by part, all of one commit."""

    name: str
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def head(self) -> Row:
        """The row with which its latest run began."""
        return max((run.head for run in self.runs.values()), key=lambda head: head["date"])

    @property
    def rows(self) -> dict[str, Row]:
        """The rows of all its runs by case."""
        return {case: row for run in self.runs.values() for case, row in run.rows.items()}


def is_result(path: Path) -> bool:
    """Say whether a file holds the rows of a GPU check."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.loads(file.readline()).get("record") == RECORD
    except (OSError, ValueError, AttributeError):
        return False


def committed(folder: Path) -> list[Path]:
    """Return the results of GPU checks in a folder."""
    return [path for path in sorted(folder.glob("*.jsonl")) if is_result(path)]


def read(paths: Sequence[Path]) -> list[Device]:
    """Read results; a later row of a case replaces an earlier one. Raises DataError for what may not be shown."""
    found: dict[str, Device] = {}
    for path in paths:
        for run in runs(path):
            device = found.setdefault(run.head["device"], Device(run.head["device"]))
            known = device.runs.get(run.part)
            if known is not None and run.head["only"] and run.head["commit"] == known.head["commit"]:
                known.rows |= run.rows  # some rows, run again
            else:
                device.runs[run.part] = run
    for device in found.values():
        check(device)
    return list(found.values())


def runs(path: Path) -> Iterator[Run]:
    """Yield the runs that a file holds, in order. Raises DataError."""
    run: Run | None = None
    for line, row in lines(path):
        if row.get("record") != RECORD or "case" not in row:
            raise DataError(f"{path}:{line}: is no row of a GPU check; give files that `make gpu-check` wrote")
        if row["case"] == "start":
            if run is not None:
                yield run
            run = Run(row["part"], row, str(path))
        elif run is None:
            raise DataError(f"{path}:{line}: comes before the row that says what the device is; {AGAIN}")
        else:
            run.rows[row["case"]] = row
        if row.get("emulated"):
            raise DataError(f"{path}:{line}: is of an emulated device, whose times say nothing; {AGAIN} on a GPU")
    if run is None:
        raise DataError(f"{path}: has no rows; {AGAIN}")
    yield run


def lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file; the last may be half of one, if the machine was taken away. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; give files that `make gpu-check` wrote") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text; give files that `make gpu-check` wrote") from None
    every = text.splitlines()
    for count, line in enumerate(every, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if count == len(every) and not text.endswith("\n"):
                return
            raise DataError(f"{path}:{count}: is not JSON; {AGAIN}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{count}: is not a JSON object; {AGAIN}")
        yield count, row


def check(device: Device) -> None:
    """Raise DataError for a device's results that may not be shown."""
    commits = {run.head["commit"] for run in device.runs.values()}
    if len(commits) > 1:
        names = ", ".join(sorted(commit[:12] for commit in commits))
        raise DataError(f"{device.name}: results of several commits ({names}); give those of one")
    for run in device.runs.values():
        if run.head["backend"] != "cupy":
            raise DataError(f"{run.path}: is of backend {run.head['backend']}, not of a GPU; {AGAIN} on one")
        if run.head["small"]:
            raise DataError(f"{run.path}: is of a small run, whose times say nothing; {AGAIN} without --small")
        for case, row in run.rows.items():
            if row.get("failed"):
                raise DataError(f"{run.path}: {case} failed: {row['failed'][0]}; mend it, then {AGAIN}")


def speeds(device: Device) -> list[list[str]]:
    """Return the table's cells: a row for each network, size, precision and batch that was timed."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in device.rows.values():
        if row.get("engine") in ("ours", "torch-graph") and "images_s" in row:
            key = tuple(row[name] for name in ("network", "size", "precision", "batch"))
            found.setdefault(key, {})[row["engine"]] = row
    order = {name: i for i, name in enumerate(dict.fromkeys(key[0] for key in found))}
    cells = []
    for key in sorted(found, key=lambda k: (order[k[0]], k[1], k[2], k[3])):
        ours, torch = found[key].get("ours", {}), found[key].get("torch-graph", {})
        mine, theirs = ours.get("graph_images_s"), torch.get("graph_images_s")
        network, size, precision, batch = key
        cells.append([
            network, f"{size} x {size}", precision, str(batch), number(mine), number(theirs),
            number(mine / theirs if mine and theirs else None), number(ours.get("images_s")), number(ours.get("latency_ms")),
        ])  # fmt: skip
    return cells


def about(device: Device) -> str:
    """Say what was measured, where and when, and what is missing."""
    head, rows = device.head, device.rows
    torch = next((row["torch"] for row in rows.values() if row.get("engine") == "torch-graph" and "torch" in row), None)
    files = ", ".join(f"`{Path(run.path).name}`" for run in device.runs.values())
    changed = (
        ", with changes that are not committed" if any(run.head["changed"] for run in device.runs.values()) else ""
    )
    short = [f"part {run.part}" for run in device.runs.values() if run.cut_short]
    words = [
        f"{device.name}, driver {head['driver']}, commit {head['commit'][:12]}{changed}, {head['date'][:10]}: images a second,",
        "input and outputs on the device. Graph: the replay of the captured graph alone"
        + (f", beside that of PyTorch {torch} in channels_last" if torch else "; PyTorch was not there"),
        "(median of rounds of calls for `predict`, least of rounds for graphs); predict: with all that the host does for it.",
        f"From {files} in `bench/results/`.",
    ]
    if short:
        words.append(f"The run of {' and '.join(short)} was cut short.")
    return " ".join(words)


def grids(devices: Iterable[Device]) -> list[Grid]:
    """Return the tables for a terminal."""
    return [Grid(f"GPU: {device.name}", HEADS, speeds(device), 3, [about(device)]) for device in devices]


def block(devices: Sequence[Device]) -> str:
    """Return what stands in README.md between its two comments."""
    if not devices:
        return NONE
    parts = []
    for device in devices:
        table = [HEADS, ["---"] * len(HEADS), *speeds(device)]
        parts.append(about(device) + "\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in table))
    return "\n".join(parts)


def write(readme: Path, devices: Sequence[Device]) -> None:
    """Put the block into a README. Raises DataError where its comments are missing."""
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as e:
        raise DataError(f"{readme}: {e.strerror}; name the README of a checkout with -readme") from None
    before, begin, rest = text.partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{readme}: has no line '{BEGIN}' with '{END}' behind it; put them where the table is to stand")
    with atomic_write(readme) as tmp:
        tmp.write_text(f"{before}{begin}\n{block(devices)}\n{end}{after}", encoding="utf-8")
