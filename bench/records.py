"""The file format of results: JSON lines, a record a line, each with "record" as its kind. Times are seconds x 1000.

"machine", one per device, first:
    schema (1), date (UTC, ISO 8601), version, commit (or null), device, kind ("cpu", "gpu"), cores, threads,
    clock_ghz [low, high], flop_per_cycle [low, high], peak_gflops {precision: [low, high]}, peak_source,
    gemm_gflops {precision: median; on a CPU the better of before and after the run}, gemm_one_thread, gemm_n,
    copy_gb_s (read plus written), blas, memory_gib, virtual, load (of one minute, before), flags [what makes the numbers
    doubtful, in words]

"result", one per network, size, batch, precision and engine:
    device, network, width, height, gflop (of the convolutions, a picture), bflops (Darknet's Total BFLOPS, with pools and
    shortcuts), mbyte (each convolution's input, output and weights once, fp32), batch, precision, engine, engine_version,
    threads, note; and either calls, wall_ms {median, p10, p90} and cpu_ms {...} of one call, fps {...} = batch / wall clock,
    or failed (why, in words)

"layer", of one network and engine, in order:
    device, network, width, height, batch, precision, engine, index, name, gflop, mbyte, ms (median wall clock); the plan's
    steps hold several layers each, and index is the first

Unknown kinds and fields are ignored, so later versions may add some. Missing numbers are absent, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpudarknet.errors import DataError
from gpudarknet.io.atomic import atomic_write

SCHEMA = 1
NEEDED = {
    "machine": ("schema", "date", "device", "kind", "peak_gflops", "gemm_gflops"),
    "result": ("device", "network", "width", "height", "gflop", "batch", "precision", "engine"),
    "layer": ("device", "network", "engine", "index", "name", "gflop", "mbyte", "ms"),
}
Record = dict[str, Any]


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines. The file appears whole or not at all."""
    with atomic_write(path) as tmp:
        tmp.write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in records), encoding="utf-8")


def read(path: Path) -> list[Record]:
    """Read records of known kinds. Raises DataError, with the line, for what is no record or of a later schema."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}; give a file that `gpudarknet bench` wrote") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text; give a file that `gpudarknet bench` wrote") from None
    return list(parse(text, str(path)))


def parse(text: str, place: str) -> Iterator[Record]:
    """Yield the records of a text."""
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{place}:{number}: is not a JSON object; give a file that `gpudarknet bench` wrote")
        if record.get("record") not in NEEDED:
            continue
        missing = [name for name in NEEDED[record["record"]] if name not in record]
        if missing:
            raise DataError(
                f"{place}:{number}: the {record['record']} record has no '{missing[0]}'; run the benchmark again"
            )
        if record.get("schema", SCHEMA) != SCHEMA:
            raise DataError(
                f"{place}:{number}: schema {record['schema']}; this version reads {SCHEMA}, update gpudarknet"
            )
        yield record


def folder() -> Path:
    """Return where this project's own results lie."""
    return Path(__file__).parent / "results"


def of_gpus(where: Path) -> list[Record]:
    """Return the records of all GPUs in a folder of results, the latest run of each device."""
    found: dict[str, list[Record]] = {}
    for path in sorted(where.glob("*.jsonl")):
        if "gpu-check" in path.name:  # rows of another kind, see gpu_report.py
            continue
        run = read(path)
        for machine in machines(run):
            name = machine["device"]
            if machine["kind"] == "gpu" and (name not in found or machine["date"] >= found[name][0]["date"]):
                found[name] = [machine, *(r for r in run if r["device"] == name and r["record"] != "machine")]
    return [record for group in found.values() for record in group]


def machines(records: Iterable[Record]) -> list[Record]:
    """Return the "machine" records."""
    return [r for r in records if r["record"] == "machine"]


def results(records: Iterable[Record], failed: bool = False) -> list[Record]:
    """Return the "result" records with numbers, or with `failed` those that say why there are none."""
    return [r for r in records if r["record"] == "result" and ("failed" in r) == failed]


def layers(records: Iterable[Record]) -> list[list[Record]]:
    """Return the "layer" records, a list for each device, network, size and engine."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for r in records:
        if r["record"] == "layer":
            names = "device", "network", "engine", "width", "height", "batch", "precision"
            found.setdefault(tuple(r.get(name) for name in names), []).append(r)
    return list(found.values())
