"""The report's tables as text, the same for terminal and page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpudarknet.backend import install_command

from .columns import Range, Row, rows
from .records import Record, machines, results

NO_GPU = (
    "There are no GPU results in bench/results/ yet, so this table has no GPU rows. "
    "On a machine with a GPU, `gpudarknet bench --device gpu --out FILE.jsonl` writes them."
)
CAVEATS = (
    "Rule: 0.01 FPS per GFLOPS of peak for a network of 34.90 GFLOP, which is 35 % of the peak; measured with cuDNN in "
    "fp32 on a GPU of 2015. Tensor cores (tf32, fp16) have another efficiency.",
    "CPU-GFLOPS: single-precision peak that a CPU needs for this FPS by the rule; = cores: the same in cores of this machine.",
)


@dataclass(frozen=True)
class Grid:
    """A table: title, column heads, rows of cells, and notes. The first `left` columns are text, the others numbers."""

    title: str
    heads: tuple[str, ...]
    cells: list[list[str]]
    left: int
    notes: list[str] = field(default_factory=list)


def number(value: float | None) -> str:
    """Format with three significant digits and thousands separators; a dash if unknown."""
    if value is None:
        return "–"
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def percent(value: float | None) -> str:
    """Format a fraction as a percentage."""
    return "–" if value is None else f"{100 * value:.{0 if value >= 0.1 else 1}f} %"


def span(value: Range | None, form: object = number) -> str:
    """Format a range, or one number if both ends look the same."""
    if value is None:
        return "–"
    low, high = (form(v) for v in value)  # type: ignore[operator]
    return low if low == high else f"{low.removesuffix(' %')}–{high}"


def size(r: Record) -> str:
    """Return the network's name with its input size."""
    return f"{r['network']} {r['width']}" + (f"×{r['height']}" if r["height"] != r["width"] else "")


def engine(r: Record, devices: Mapping[str, Record]) -> str:
    """Return a result's engine, marked if it runs on a GPU."""
    return r["engine"] + " (GPU)" * (devices.get(r["device"], {}).get("kind") == "gpu")


def describe(m: Record) -> Grid:
    """Return a device's description: what it is, its peak, its measured rates."""
    cells = [[m["device"], m["kind"].upper()]]
    if m["kind"] == "cpu":
        cells.append(["cores", f"{m['cores']} ({m['threads']} hardware threads usable)"])
    if m.get("clock_ghz"):
        cells.append(["clock", span(tuple(m["clock_ghz"])) + " GHz"])
    for precision, peak in m["peak_gflops"].items():
        cells.append([f"peak {precision}", f"{span(tuple(peak))} GFLOPS ({m.get('peak_source', '')})"])
    if not m["peak_gflops"]:
        cells.append(["peak", m.get("peak_source", "unknown")])
    if m.get("gemm_one_thread"):
        cells.append([f"gemm, n = {m['gemm_n']}, one thread", f"{number(m['gemm_one_thread'])} GFLOP/s measured"])
    for precision, gemm in m["gemm_gflops"].items():
        cells.append([f"gemm {precision}, all", f"{number(gemm)} GFLOP/s measured"])
    if m.get("copy_gb_s"):
        cells.append(["memory copy", f"{number(m['copy_gb_s'])} GB/s, read plus written"])
    cells += [["BLAS", m["blas"]]] if m.get("blas") else []
    cells.append(["run", f"{m['date']}, gpudarknet {m.get('version', '?')}, commit {m.get('commit') or 'unknown'}"])
    return Grid("Machine", ("", ""), cells, 2, list(m.get("flags", [])))


NOISE = 1.03  # smaller ratios of FPS are none
BACKENDS = {"plan": "numpy", "openvino-backend": "openvino", "onnxruntime": "onnxruntime"}  # engine -> its backend


def advice(records: Sequence[Record]) -> list[str]:
    """Say, for each network, which backend was the fastest on the CPU and how to get it."""
    devices = machines(records)
    cpu = {r["device"] for r in devices if r["kind"] == "cpu"}
    lines, missing = list[str](), set[str]()
    groups: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    for r in (*results(records), *results(records, failed=True)):
        if r["device"] in cpu and (backend := BACKENDS.get(r["engine"])):
            if "failed" in r:
                missing |= {backend} if "not installed" in r["failed"] else set()
            else:
                group = groups.setdefault((size(r), r["batch"]), {})
                group[backend, r["precision"]] = r["fps"]["median"]
    for (name, batch), fps in groups.items():
        baseline = fps.get(("numpy", "fp32"))
        for precision in ("fp32", "bf16"):
            own = {key: value for key, value in fps.items() if key[1] == precision}
            best = max(own, key=own.__getitem__, default=("numpy", "fp32"))
            if baseline and own.get(best, 0) > NOISE * baseline:
                flags = f"-backend {best[0]}" + (" -precision bf16" if precision == "bf16" else "")
                rounded = ", with rounded results" if precision == "bf16" else ""
                lines.append(f"{name}, batch {batch}: {own[best] / baseline:.2f} times numpy's FPS{rounded}: {flags}")
    if lines:
        lines.append(
            "-backend fastest takes the fastest engine in fp32; `gpudarknet plan x.cfg -tune` measures it for a network"
        )
    return lines + [f"{name} was not measured: {install_command(name)}" for name in sorted(missing)]


def speed(records: Sequence[Record]) -> Grid:
    """List every result: FPS, wall-clock and CPU time of a call, and failures."""
    heads = (
        "network",
        "engine",
        "precision",
        "GFLOP",
        "batch",
        "FPS",
        "p10–p90",
        "wall ms",
        "CPU ms",
        "CPU/wall",
        "calls",
        "note",
    )
    cells, devices = [], {m["device"]: m for m in machines(records)}
    for r in sorted(
        results(records) + results(records, failed=True), key=lambda r: (r["gflop"], r["network"], "failed" in r)
    ):
        first = [size(r), engine(r, devices), r["precision"], number(r["gflop"]), str(r["batch"])]
        if "failed" in r:
            cells.append([*first, "–", "", "", "", "", "", r["failed"]])
            continue
        fps, wall, cpu = r["fps"], r["wall_ms"]["median"], r["cpu_ms"]["median"]
        note = "; ".join(
            text for text in (r.get("engine_version", ""), r.get("note", ""), r.get("warning", "")) if text
        )
        cells.append([
            *first, number(fps["median"]), span((fps["p10"], fps["p90"])), number(wall), number(cpu),
            f"{cpu / wall:.2f}" if wall else "–", str(r["calls"]), note,
        ])  # fmt: skip
    notes = [
        "A call is one batch, from input in memory to outputs in memory. Medians; p10–p90: 10th and 90th percentile of calls."
    ]
    notes.append("CPU ms is the sum over all threads, wall ms the elapsed time.")
    return Grid("Speed", heads, cells, 3, notes)


def estimates(records: Sequence[Record], gpus: Sequence[Record] = ()) -> Grid:
    """Compare FPS with the rule's prediction. `gpus`: records of other machines, shown with their date."""
    heads = (
        "device", "network", "engine", "precision", "batch", "FPS", "GFLOP/s", "peak GFLOPS", "of peak", "of gemm", "rule FPS",
        "÷ rule", "FPS per GFLOPS", "CPU-GFLOPS", "= cores", "× this CPU",
    )  # fmt: skip
    own = {m["device"] for m in machines(records)}
    others = [r for r in gpus if r["device"] not in own]
    shown = rows([*records, *others])
    shown.sort(
        key=lambda row: (row.device["kind"], row.result["gflop"], row.result["network"], -row.result["fps"]["median"])
    )
    cells = [line(row) for row in shown]
    notes = list(CAVEATS)
    for m in machines(others):
        notes.append(
            f"{m['device']}: not this machine; measured {m['date'][:10]}, commit {m.get('commit') or 'unknown'}."
        )
    if not any(row.device["kind"] == "gpu" for row in shown):
        notes.insert(0, NO_GPU)
    return Grid("GPU FPS vs CPU GFLOPS estimates", heads, cells, 4, notes)


def line(row: Row) -> list[str]:
    """Return one row of `estimates`."""
    r = row.result
    return [
        row.device["device"], size(r), r["engine"], r["precision"], str(r["batch"]), number(r["fps"]["median"]),
        number(row.achieved), span(row.peak), span(row.of_peak, percent), percent(row.of_gemm), span(row.rule), span(row.of_rule),
        span(row.per_gflops, four_digits), number(row.equivalent), number(row.cores), number(row.times),
    ]  # fmt: skip


def four_digits(value: float) -> str:
    """Format FPS per GFLOPS, to be compared with 0.01."""
    return f"{value:.4f}"


def bound(r: Record, device: Record) -> str:
    """Return what bounds a layer on this device: "compute" or "memory", a dash if unknown."""
    gemm, copy = device["gemm_gflops"].get("fp32"), device.get("copy_gb_s")
    if not gemm or not copy or not r["mbyte"]:
        return "–"
    return "compute" if 1e3 * r["gflop"] / r["mbyte"] > gemm / copy else "memory"


def group_title(mine: Sequence[Record]) -> str:
    """Return the title of a group of "layer" records."""
    r = mine[0]
    more = f", batch {r['batch']}" * (r["batch"] > 1) + f", {r['precision']}" * (r["precision"] != "fp32")
    return f"{'Steps' if r['engine'] == 'plan' else 'Layers'} of {size(r)}, {r['engine']}{more}"


def slowest(records: Sequence[Record], mine: Sequence[Record], most: int = 8) -> Grid:
    """List the slowest layers of a group from `records.layers`."""
    devices = {m["device"]: m for m in machines(records)}
    total = sum(r["ms"] for r in mine) or 1.0
    cells = []
    for r in sorted(mine, key=lambda r: -r["ms"])[:most]:
        rate = 1e3 * r["gflop"] / r["ms"] if r["ms"] else None
        flops = number(rate) if r["gflop"] else "–"
        side = bound(r, devices[r["device"]]) if r["device"] in devices else "–"
        cells.append([str(r["index"]), r["name"], side, number(r["ms"]), percent(r["ms"] / total), number(r["gflop"]), flops,
                      number(r["mbyte"] / r["ms"]) if r["ms"] else "–"])  # fmt: skip
    heads = ("layer", "kind", "bound by", "ms", "share", "GFLOP", "GFLOP/s", "GB/s")
    shown = f"{min(most, len(mine))} of {len(mine)}; total {number(total)} ms"
    return Grid(group_title(mine), heads, cells, 3, [shown])
