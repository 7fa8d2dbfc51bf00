"""Read the rows of GPU checks and write README.md's table: what `gpudarknet bench report` does with such files.

The table is between two comments in README.md and never edited by hand; tests/test_gpu_report.py compares it with the results
committed in bench/results/.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpudarknet.errors import DataError
from gpudarknet.io.atomic import atomic_write
from gpudarknet.io.text import read_text

from .tables import Grid, number

Row = dict[str, Any]

RECORD = "gpu-check"  # the kind of its records
BEGIN = "<!-- GPU results: written by `gpudarknet bench report`, not by hand -->"
END = "<!-- end of the GPU results -->"
NONE = """\
**No GPU results have been committed yet.** So far the kernels are compiled for sm_75 to sm_120, and every CUDA test
runs with the real CuPy on an [emulated GPU](docs/cuda-emulator.md).
"""
HEADS = (
    "network",
    "input",
    "precision",
    "batch",
    "graph",
    "implicit GEMM",
    "PyTorch graph",
    "ours / PyTorch",
    "predict",
    "predict latency, ms",
)
RERUN = "run `make gpu-check` again"


@dataclass
class Run:
    """A part of the check on one device: its start row, and the last row of each case."""

    part: str
    head: Row
    path: str
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        """Whether it ended before its last case."""
        end = self.rows.get("end")
        return end is None or end["interrupted"]


@dataclass
class Device:
    """A device's runs by part, all of one commit."""

    name: str
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def head(self) -> Row:
        """The start row of its latest run."""
        return max((run.head for run in self.runs.values()), key=lambda head: head["date"])

    @property
    def rows(self) -> dict[str, Row]:
        """The rows of all its runs, by case."""
        return {case: row for run in self.runs.values() for case, row in run.rows.items()}


def is_result(path: Path) -> bool:
    """Return whether a file contains rows of a GPU check."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.loads(file.readline()).get("record") == RECORD
    except (OSError, ValueError, AttributeError):
        return False


def read(paths: Sequence[Path]) -> list[Device]:
    """Read results; a later row of a case replaces an earlier one. Raises DataError for results that must not be published."""
    devices: dict[str, Device] = {}
    for path in paths:
        for run in runs(path):
            device = devices.setdefault(run.head["device"], Device(run.head["device"]))
            known = device.runs.get(run.part)
            if known is not None and run.head["only"] and run.head["commit"] == known.head["commit"]:
                known.rows |= run.rows  # some cases, rerun
            else:
                device.runs[run.part] = run
    for device in devices.values():
        check(device)
    return list(devices.values())


def runs(path: Path) -> Iterator[Run]:
    """Yield a file's runs in order. Raises DataError."""
    run: Run | None = None
    for line, row in lines(path):
        if row.get("record") != RECORD or "case" not in row:
            raise DataError(f"{path}:{line}: not a row of a GPU check; pass files written by `make gpu-check`")
        if row["case"] == "start":
            if run is not None:
                yield run
            run = Run(row["part"], row, str(path))
        elif run is None:
            raise DataError(f"{path}:{line}: comes before the start row; {RERUN}")
        else:
            run.rows[row["case"]] = row
        if row.get("emulated"):
            raise DataError(f"{path}:{line}: measured on an emulated device; {RERUN} on a GPU")
    if run is None:
        raise DataError(f"{path}: has no rows; {RERUN}")
    yield run


def lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield a file's rows; a partial last one, of an interrupted run, is ignored. Raises DataError."""
    text = read_text(path)
    numbered = text.splitlines()
    for count, line in enumerate(numbered, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if count == len(numbered) and not text.endswith("\n"):
                return
            raise DataError(f"{path}:{count}: not JSON; {RERUN}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{count}: not a JSON object; {RERUN}")
        yield count, row


def check(device: Device) -> None:
    """Raise DataError if a device's results must not be published."""
    commits = {run.head["commit"] for run in device.runs.values()}
    if len(commits) > 1:
        names = ", ".join(sorted(commit[:12] for commit in commits))
        raise DataError(f"{device.name}: results of several commits ({names}); pass those of one")
    for run in device.runs.values():
        if run.head["backend"] != "cupy":
            raise DataError(f"{run.path}: measured on backend {run.head['backend']}; {RERUN} on a GPU")
        if run.head["small"]:
            raise DataError(f"{run.path}: measured with --small; {RERUN} without it")
        for case, row in run.rows.items():
            if row.get("failed"):
                raise DataError(f"{run.path}: {case} failed: {row['failed'][0]}; fix it, then {RERUN}")


def table_rows(device: Device) -> list[list[str]]:
    """Return the table's rows, one for each network, size, precision and batch size."""
    timings: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in device.rows.values():
        if row.get("engine") in ("ours", "implicit-gemm", "torch-graph") and "images_s" in row:
            key = tuple(row[name] for name in ("network", "size", "precision", "batch"))
            timings.setdefault(key, {})[row["engine"]] = row
    order = {name: i for i, name in enumerate(dict.fromkeys(key[0] for key in timings))}
    cells = []
    for key in sorted(timings, key=lambda k: (order[k[0]], k[1], k[2], k[3])):
        ours, torch = timings[key].get("ours", {}), timings[key].get("torch-graph", {})
        own, other = ours.get("graph_images_s"), torch.get("graph_images_s")
        implicit = timings[key].get("implicit-gemm", {}).get("graph_images_s")
        network, size, precision, batch = key
        cells.append([
            network, f"{size} x {size}", precision, str(batch), number(own), number(implicit), number(other),
            number(own / other if own and other else None), number(ours.get("images_s")), number(ours.get("latency_ms")),
        ])  # fmt: skip
    return cells


def caption(device: Device) -> str:
    """Return what was measured, where and when, and what is missing."""
    head, rows = device.head, device.rows
    torch = next((row["torch"] for row in rows.values() if row.get("engine") == "torch-graph" and "torch" in row), None)
    files = ", ".join(f"`{Path(run.path).name}`" for run in device.runs.values())
    dirty = ", with uncommitted changes" if any(run.head["dirty"] for run in device.runs.values()) else ""
    incomplete = [f"part {run.part}" for run in device.runs.values() if run.interrupted]
    sentences = [
        f"{device.name}, driver {head['driver']}, commit {head['commit'][:12]}{dirty}, {head['date'][:10]}: images per second,",
        "input and outputs in device memory. graph: replay of the captured graph alone"
        + (f", compared with PyTorch {torch} in channels_last" if torch else "; PyTorch was not installed"),
        "(`predict`: median of rounds; graphs: minimum of rounds). implicit GEMM: the graph of the plan that prefers it.",
        "predict: including host time.",
        f"From {files} in `bench/results/`.",
    ]
    if incomplete:
        sentences.append(f"The run of {' and '.join(incomplete)} is incomplete.")
    return " ".join(sentences)


def grids(devices: Iterable[Device]) -> list[Grid]:
    """Return the tables for a terminal."""
    return [Grid(f"GPU: {device.name}", HEADS, table_rows(device), 3, [caption(device)]) for device in devices]


def block(devices: Sequence[Device]) -> str:
    """Return the text between the two comments of README.md."""
    if not devices:
        return NONE
    blocks = []
    for device in devices:
        table = [HEADS, ["---"] * len(HEADS), *table_rows(device)]
        blocks.append(caption(device) + "\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in table))
    return "\n".join(blocks)


def write(readme: Path, devices: Sequence[Device]) -> None:
    """Write the block into a README. Raises DataError if its comments are missing."""
    write_block(readme, BEGIN, END, block(devices))


def write_block(path: Path, begin_line: str, end_line: str, text: str) -> None:
    """Replace what is between two lines of a file. Raises DataError if they are missing."""
    try:
        old = path.read_text(encoding="utf-8")
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; pass the README of a checkout with -readme") from None
    before, begin, rest = old.partition(begin_line + "\n")
    _, end, after = rest.partition(end_line)
    if not begin or not end:
        raise DataError(
            f"{path}: has no line '{begin_line}' followed by '{end_line}'; add them where the table belongs"
        )
    with atomic_write(path) as tmp:
        tmp.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
