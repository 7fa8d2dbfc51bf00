"""The file format of results: JSON lines, one record per line, whose kind is in "record". Times are in milliseconds.

"machine", one per device, first:
    schema (1), date (UTC, ISO 8601), version, commit (or null), device, kind ("cpu", "gpu"), cores, threads,
    clock_ghz [low, high], flop_per_cycle [low, high], peak_gflops {precision: [low, high]}, peak_source,
    gemm_gflops {precision: median; on a CPU the better of before and after the run}, gemm_one_thread, gemm_n,
    copy_gb_s (read plus written), blas, memory_gib, virtual, load (one-minute average before the run), flags [caveats of the
    measurements, as sentences]

"result", one per network, size, batch, precision and engine:
    device, network, width, height, gflop (of the convolutions, per image), bflops (Darknet's Total BFLOPS, with pools and
    shortcuts), mbyte (each convolution's input, output and weights once, fp32), batch, precision, engine, engine_version,
    threads, note; and either calls, wall_ms {median, p10, p90} and cpu_ms {...} of one call, fps {...} = batch / wall-clock time
    and warning (if there are too few calls), or failed (the reason)

"layer", for each layer of a network and engine, in order:
    device, network, width, height, batch, precision, engine, index, name, gflop, mbyte, ms (median wall-clock time); a step
    of the plan holds several layers, and index is the first of them

"train", of `python -m bench.train`, which alone knows it, one per network, size, batch, engine and number of threads:
    as "result", of training steps; and memory_mb, memory_mb_per_image (what a step adds to the memory of the process)

Unknown kinds and fields are ignored, so later versions may add some. Unknown values are absent, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpudarknet.errors import DataError
from gpudarknet.io.atomic import atomic_write
from gpudarknet.io.text import read_text

SCHEMA = 1
REQUIRED = {
    "machine": ("schema", "date", "device", "kind", "peak_gflops", "gemm_gflops"),
    "result": ("device", "network", "width", "height", "gflop", "batch", "precision", "engine"),
    "layer": ("device", "network", "engine", "index", "name", "gflop", "mbyte", "ms"),
}
Record = dict[str, Any]


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, atomically."""
    with atomic_write(path) as tmp:
        tmp.write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in records), encoding="utf-8")


def read(path: Path) -> list[Record]:
    """Read records of known kinds. Raises DataError, with the line, for invalid records and later schemas."""
    return list(parse(read_text(path), str(path)))


def parse(text: str, source: str) -> Iterator[Record]:
    """Yield the records in a text."""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{source}:{number}: is not a JSON object; pass a file written by `gpudarknet bench`")
        if record.get("record") not in REQUIRED:
            continue
        missing = [name for name in REQUIRED[record["record"]] if name not in record]
        if missing:
            raise DataError(
                f"{source}:{number}: the {record['record']} record has no '{missing[0]}'; run the benchmark again"
            )
        if record.get("schema", SCHEMA) != SCHEMA:
            raise DataError(
                f"{source}:{number}: schema {record['schema']}; this version reads {SCHEMA}, update gpudarknet"
            )
        yield record


def folder() -> Path:
    """Return the folder of this project's own results."""
    return Path(__file__).parent / "results"


def gpu_records(folder: Path) -> list[Record]:
    """Return the records of all GPUs in a folder of results: the latest run of each device."""
    latest: dict[str, list[Record]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        if "gpu-check" in path.name:  # other records, see gpu_report.py
            continue
        run = read(path)
        for machine in machines(run):
            name = machine["device"]
            if machine["kind"] == "gpu" and (name not in latest or machine["date"] >= latest[name][0]["date"]):
                latest[name] = [machine, *(r for r in run if r["device"] == name and r["record"] != "machine")]
    return [record for group in latest.values() for record in group]


def machines(records: Iterable[Record]) -> list[Record]:
    """Return the "machine" records."""
    return [r for r in records if r["record"] == "machine"]


def results(records: Iterable[Record], failed: bool = False) -> list[Record]:
    """Return the successful "result" records, or with `failed` the failed ones."""
    return [r for r in records if r["record"] == "result" and ("failed" in r) == failed]


def layers(records: Iterable[Record]) -> list[list[Record]]:
    """Return the "layer" records, one list per device, network, size and engine."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        if r["record"] == "layer":
            names = "device", "network", "engine", "width", "height", "batch", "precision"
            groups.setdefault(tuple(r.get(name) for name in names), []).append(r)
    return list(groups.values())
