"""`bench`: measure this machine. `bench estimate`: apply the rule. `bench compare`, `bench report`: use earlier results."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from .arguments import Arguments, Command, Flag, UsageError

OUT = "gpudarknet-bench.jsonl"


def suite_module(name: str) -> Any:
    """Import a module of the suite, which is next to the package in a checkout and inside it in a wheel."""
    return importlib.import_module(f"gpudarknet.bench.{name}")


def bench(args: Arguments) -> None:
    """Run the benchmark, print its tables, write records and page."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    suite = suite_module("suite")
    options = parse_options(args, suite.Options())
    lines = Path(args.out)
    if not lines.parent.is_dir():
        raise UsageError(f"bench: -out {lines}: no folder {lines.parent}; create it first")
    columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("networks and weights", total=None)
        results = list(suite.run(options, lambda text: progress.update(task, description=text)))
    print_report(results, lines, Path(args.page) if args.page else lines.with_suffix(".html"))


def parse_options(args: Arguments, default: Any) -> Any:
    """Convert flags to the suite's options. Raises UsageError."""
    from dataclasses import replace

    for name in ("width", "height", "threads", "limit"):
        if getattr(args, name) < 0:
            raise UsageError(f"bench: -{name} must not be negative")
    if not 0 < args.seconds <= 3600:
        raise UsageError(f"bench: -seconds must be above 0 and at most 3600, not {args.seconds:g}")
    if args.weights and len(args.positionals) != 1:
        raise UsageError("bench: -weights needs exactly one network; name it")
    batches = [int(word) if word.isdecimal() else 0 for word in args.batch.split(",")]
    if min(batches) < 1:
        raise UsageError(f"bench: -batch must be a list of batch sizes, for example 1,8; not '{args.batch}'")
    precisions = split_list(args.precision, ("fp32", "tf32", "fp16", "bf16"), "precision")
    engines = split_list(args.engines, default.engines, "engines")
    return replace(
        default, networks=tuple(args.positionals) or default.networks, batches=tuple(batches), kinds=kinds(args.device),
        engines=engines, precisions=precisions, width=args.width, height=args.height, seconds=args.seconds,
        limit=args.limit, threads=args.threads, weights=args.weights, layers=args.layers,
    )  # fmt: skip


def split_list(text: str, known: tuple[str, ...], flag: str) -> tuple[str, ...]:
    """Split a comma-separated list. Raises UsageError for unknown items."""
    items = tuple(word for word in text.split(",") if word) or known
    for word in items:
        if word not in known:
            raise UsageError(f"bench: -{flag}: no '{word}'; choose from {', '.join(known)}")
    return items


def kinds(word: str) -> tuple[str, ...]:
    """Return the devices to measure: always the CPU, since GPUs are compared with it."""
    from .. import backend

    if word not in ("auto", "cpu", "gpu"):
        raise UsageError(f"bench: -device: no '{word}'; choose from auto, cpu, gpu")
    if word == "gpu":
        backend.get("cupy")
    return ("cpu",) if word == "cpu" or backend.why_no_cupy() is not None else ("cpu", "gpu")


def print_report(results: list[Any], lines: Path, html: Path) -> None:
    """Print the tables and write records and page."""
    records, tables = suite_module("records"), suite_module("tables")
    gpus = records.gpu_records(records.folder())
    for machine in records.machines(results):
        print_grid(tables.describe(machine))
    print_grid(tables.speed(results))
    print_grid(tables.estimates(results, gpus))
    for group in records.layers(results):
        print_grid(tables.slowest(results, group, 10))
    records.write(lines, results)
    for line in tables.advice(results):
        print(line)
    suite_module("page").write(html, results, gpus)
    print(f"{lines}: {len(results)} records\n{html}: the report")


def print_grid(grid: Any) -> None:
    """Print a table and its notes."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    table = Table(
        title=grid.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(grid.heads),
        padding=(0, 1),
    )
    for k, head in enumerate(grid.heads):
        word = k < grid.left or head in ("note", "")
        table.add_column(escape(head), justify="left" if word else "right", overflow="fold")
    for cells in grid.cells:
        table.add_row(*map(escape, cells))
    console.print(table)
    for note in grid.notes:
        console.print(f"  {escape(note)}", style="dim")
    console.print()


def estimate(args: Arguments) -> None:
    """Apply the rule to a network: for a GFLOPS figure, for a CPU's data, or for this machine."""
    rule = suite_module("rule_of_thumb")
    word = args.positionals[0] if args.positionals else rule.YOLO_VOC
    if word == rule.YOLO_VOC:
        name, gflop = f"{word} 416 x 416", rule.RULE_GFLOP
        if args.width or args.height:
            raise UsageError(
                f"bench estimate: {word} is known at 416 x 416 only; use yolov2-voc with -width and -height"
            )
    else:
        name, gflop = suite_module("suite").cost_of(word, args.width, args.height)
    if args.seen < 0:
        raise UsageError("bench estimate: -seen must be seconds per image")
    for peak, source in peaks(args):
        print("\n".join(rule.estimate(name, gflop, peak, source, args.seen or None)))


def peaks(args: Arguments) -> list[tuple[float, str]]:
    """Return the peaks in GFLOPS to use and their sources. Raises UsageError."""
    if args.gflops and args.cpu:
        raise UsageError("bench estimate: -gflops and -cpu exclude each other; pass one")
    if args.cpu:
        match = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)x(\d+)", args.cpu)
        if not match or not float(match[1]) * float(match[2]) * float(match[3]):
            raise UsageError(
                f"bench estimate: -cpu must be CORESxGHZxFLOP-PER-CYCLE, for example 4x4.2x32; not '{args.cpu}'"
            )
        return [
            (
                float(match[1]) * float(match[2]) * float(match[3]),
                f"{match[1]} cores x {match[2]} GHz x {match[3]} FLOP per cycle",
            )
        ]
    if args.gflops:
        if args.gflops < 0:
            raise UsageError("bench estimate: -gflops must be above 0")
        return [(args.gflops, "as given")]
    described = suite_module("machine").describe()
    span = described["peak_gflops"].get("fp32")
    if not span:
        raise UsageError(
            "bench estimate: this machine does not report its clock and SIMD width; pass -gflops N or -cpu 4x4.2x32"
        )
    return [(peak, f"this machine, {described['device']}: {described['peak_source']}") for peak in dict.fromkeys(span)]


def compare(args: Arguments) -> None:
    """Print the changes between two runs."""
    records = suite_module("records")
    before, after = (records.read(Path(word)) for word in args.positionals)
    print_grid(suite_module("compare").compare(before, after))


def report(args: Arguments) -> None:
    """Print the tables of an earlier run and rewrite its page; for GPU checks, write README.md's table."""
    paths = [Path(word) for word in args.positionals]
    gpu_report = suite_module("gpu_report")
    if any(map(gpu_report.is_result, paths)):
        report_gpu(
            paths, Path(args.readme) if args.readme else suite_module("records").folder().parent.parent / "README.md"
        )
        return
    lines, *more = paths
    if more:
        raise UsageError(f"bench report: unexpected {more[0]}; pass one file written by `gpudarknet bench`")
    records, tables = suite_module("records"), suite_module("tables")
    results = records.read(lines)
    if not records.machines(results):
        raise UsageError(f"bench report: {lines} has no machine record; pass a file written by `gpudarknet bench`")
    html = Path(args.page) if args.page else lines.with_suffix(".html")
    gpus = records.gpu_records(records.folder())
    for grid in (tables.speed(results), tables.estimates(results, gpus)):
        print_grid(grid)
    suite_module("page").write(html, results, gpus)
    print(f"{html}: the report")


def report_gpu(paths: list[Path], readme: Path) -> None:
    """Print the tables of GPU checks and write them into a README."""
    gpu_report = suite_module("gpu_report")
    devices = gpu_report.read(paths)
    for grid in gpu_report.grids(devices):
        print_grid(grid)
    gpu_report.write(readme, devices)
    print(f"{readme}: wrote the GPU table from {', '.join(map(str, paths))}")


SIZE = (
    Flag("width", int, 0, "Input width in pixels, instead of the cfg's"),
    Flag("height", int, 0, "Input height in pixels, instead of the cfg's"),
)
COMMANDS = (
    Command(
        "bench", ("[x.cfg ...]",), "Measure this machine: FPS, gemm, memory; compare with the rule of 0.01 FPS per GFLOPS", bench,
        (
            Flag("engines", str, "", "A list of plan,reference,openvino-backend,openvino,opencv,onnxruntime,torch,darknet"),
            Flag("device", str, "auto", "cpu, gpu (the CPU is measured too), or auto: the GPU if available"),
            Flag("batch", str, "1", "Batch sizes, a list: 1,8,64"),
            Flag("precision", str, "fp32", "A list: on a GPU of fp32,tf32,fp16; on a CPU also bf16, in OpenVINO"),
            *SIZE,
            Flag("seconds", float, 5.0, "Seconds to measure each engine and network"),
            Flag("limit", float, 0.0, "Start nothing new after this many seconds; skipped results are marked"),
            Flag("threads", int, 0, "Threads for each engine; default: as gpudarknet info prints, at most all cores"),
            Flag("weights", str, "", "Weights of the network; default: random, from a seed"),
            Flag("layers", bool, False, "Also time every layer"),
            Flag("out", str, OUT, "File for the records"),
            Flag("page", str, "", "File for the page; default: next to the records, .html"),
        ),
        more="Networks are cfg files or names of bundled ones; by default, five from yolov2-tiny to yolov3 are run. Frameworks "
        "that are not installed are listed as such; nothing is downloaded.",
    ),
    Command(
        "bench estimate", ("[x.cfg]",), "Estimate FPS from GFLOPS by the rule: 35 % of the peak", estimate,
        (
            Flag("gflops", float, 0.0, "Single-precision peak; default: this machine's"),
            Flag("cpu", str, "", "The peak as CORESxGHZxFLOP-PER-CYCLE: 4x4.2x32"),
            Flag("seen", float, 0.0, "Measured seconds per image, to compare with"),
            *SIZE,
        ),
        more="FLOP per cycle and core: SSE2 8, AVX 16, AVX2 with FMA 32, AVX-512 32 to 64, NEON 8 to 32.",
    ),
    Command("bench compare", ("before.jsonl", "after.jsonl"), "Show changes beyond noise between two runs", compare),
    Command(
        "bench report", ("x.jsonl", "[more.jsonl ...]"), "Print the tables of an earlier run and rewrite its page", report,
        (
            Flag("page", str, "", "File for the page; default: next to the records, .html"),
            Flag("readme", str, "", "README whose GPU table is written; default: the checkout's"),
        ),
        more="For files written by `make gpu-check`, it prints the table of GPUs and writes it into README.md between two "
        "comments; emulated and failed runs are refused.",
    ),
)  # fmt: skip
