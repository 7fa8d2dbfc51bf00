"""Columns that the report derives from records: efficiencies, the FPS that the rule predicts, and the ratio to this CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import rule_of_thumb
from .records import Record, machines, results

Range = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One row of the table "GPU FPS vs CPU GFLOPS estimates". None: unknown.

    peak, of_peak, rule, of_rule, per_gflops are ranges (low, high), as the peak is. equivalent: the
    single-precision GFLOPS that a CPU needs for this FPS by the rule; cores: the same in cores of this machine;
    times: FPS relative to our fastest CPU engine here, for the same network and size.
    """

    result: Record
    device: Record
    achieved: float
    of_gemm: float | None
    peak: Range | None
    of_peak: Range | None
    rule: Range | None
    of_rule: Range | None
    per_gflops: Range | None
    equivalent: float
    cores: float | None
    times: float | None


def peak_of(device: Record, precision: str) -> Range | None:
    """Return the device's peak GFLOPS as (low, high), each raised to the measured gemm if that was faster."""
    span = device["peak_gflops"].get(precision)
    if not span:
        return None
    gemm = device["gemm_gflops"].get(precision) or 0.0
    return max(span[0], gemm), max(span[1], gemm)


def rows(records: Sequence[Record]) -> list[Row]:
    """Return a row for every successful result; the CPU to compare with is the first one in records."""
    devices = {m["device"]: m for m in machines(records)}
    here = next((m for m in devices.values() if m["kind"] == "cpu"), None)
    best: dict[tuple[str, int, int], float] = {}
    for r in results(records):
        if here and r["device"] == here["device"] and r["engine"] in ("plan", "reference"):
            workload = r["network"], r["width"], r["height"]
            best[workload] = max(best.get(workload, 0.0), r["fps"]["median"])
    return [row(r, devices[r["device"]], here, best) for r in results(records) if r["device"] in devices]


def row(r: Record, device: Record, here: Record | None, best: dict[tuple[str, int, int], float]) -> Row:
    """Return one row."""
    fps, gflop = r["fps"]["median"], r["gflop"]
    achieved, gemm, peak = fps * gflop, device["gemm_gflops"].get(r["precision"]), peak_of(device, r["precision"])
    predicted = tuple(rule_of_thumb.fps(p, gflop) for p in peak) if peak else None
    per_core = peak_of(here, "fp32") if here else None
    equivalent, cpu = rule_of_thumb.equivalent(fps, gflop), best.get((r["network"], r["width"], r["height"]))
    return Row(
        result=r,
        device=device,
        achieved=achieved,
        of_gemm=achieved / gemm if gemm else None,
        peak=peak,
        of_peak=(achieved / peak[1], achieved / peak[0]) if peak else None,
        rule=predicted,  # type: ignore[arg-type]
        of_rule=(fps / predicted[1], fps / predicted[0]) if predicted else None,
        per_gflops=(fps / peak[1], fps / peak[0]) if peak else None,
        equivalent=equivalent,
        cores=equivalent / per_core[1] * here["cores"] if per_core and here else None,
        times=fps / cpu if cpu else None,
    )
