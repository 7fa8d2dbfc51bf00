"""`bench`: measure this machine. `bench estimate`: the rule as a calculator. `bench compare`, `bench report`: earlier results."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from .arguments import Command, Flag, UsageError

OUT = "gpudarknet-bench.jsonl"


def part(name: str) -> Any:
    """Import a part of the suite, which stands beside the package in a checkout and inside it in a wheel."""
    return importlib.import_module(f"gpudarknet.bench.{name}")


def bench(args: Any) -> None:
    """Run the benchmark, print its tables, write records and page."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    suite = part("suite")
    options = chosen(args, suite.Options())
    lines = Path(args.out)
    if not lines.parent.is_dir():
        raise UsageError(f"bench: -out {lines}: there is no folder {lines.parent}; make it first")
    columns = SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("networks and weights", total=None)
        found = list(suite.run(options, lambda text: progress.update(task, description=text)))
    show_report(found, lines, Path(args.page) if args.page else lines.with_suffix(".html"))


def chosen(args: Any, default: Any) -> Any:
    """Turn flags into the suite's options. Raises UsageError."""
    from dataclasses import replace

    for name in ("width", "height", "threads", "limit"):
        if getattr(args, name) < 0:
            raise UsageError(f"bench: -{name} cannot be negative")
    if not 0 < args.seconds <= 3600:
        raise UsageError(f"bench: -seconds is a time from 0 to 3600, found {args.seconds:g}")
    if args.weights and len(args.positionals) != 1:
        raise UsageError("bench: -weights belongs to one network; name it")
    batches = [int(word) if word.isdecimal() else 0 for word in args.batch.split(",")]
    if min(batches) < 1:
        raise UsageError(f"bench: -batch is a list of numbers from 1 on, for example 1,8; found '{args.batch}'")
    precisions = words(args.precision, ("fp32", "tf32", "fp16"), "precision")
    engines = words(args.engines, default.engines, "engines")
    return replace(
        default, networks=tuple(args.positionals) or default.networks, batches=tuple(batches), kinds=kinds(args.device),
        engines=engines, precisions=precisions, width=args.width, height=args.height, seconds=args.seconds,
        limit=args.limit, threads=args.threads, weights=args.weights, layers=args.layers,
    )  # fmt: skip


def words(text: str, known: tuple[str, ...], flag: str) -> tuple[str, ...]:
    """Split a list at commas. Raises UsageError for a word that is not known."""
    found = tuple(word for word in text.split(",") if word) or known
    for word in found:
        if word not in known:
            raise UsageError(f"bench: -{flag}: no '{word}'; choose from {', '.join(known)}")
    return found


def kinds(word: str) -> tuple[str, ...]:
    """Return the devices to measure: the CPU always, since GPUs are compared with it."""
    from .. import backend

    if word not in ("auto", "cpu", "gpu"):
        raise UsageError(f"bench: -device: no '{word}'; choose from auto, cpu, gpu")
    if word == "gpu":
        backend.get("cupy")
    return ("cpu",) if word == "cpu" or backend.why_no_cupy() is not None else ("cpu", "gpu")


def show_report(found: list[Any], lines: Path, html: Path) -> None:
    """Print the tables and write both files."""
    records, tables, report = part("records"), part("tables"), part("report")
    gpus = records.of_gpus(records.folder())
    for machine in records.machines(found):
        show(tables.about(machine))
    show(tables.speed(found))
    show(tables.estimates(found, gpus))
    for group in records.layers(found):
        show(tables.slowest(found, group, 10))
    report.write(found, lines, html, gpus)
    print(f"{lines}: {len(found)} records\n{html}: the report")


def show(grid: Any) -> None:
    """Print a table and the lines under it."""
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


def estimate(args: Any) -> None:
    """Work the rule out for a network: for a GFLOPS figure, for a CPU's data, or for this machine."""
    rule = part("rule_of_thumb")
    word = args.positionals[0] if args.positionals else rule.YOLO_VOC
    if word == rule.YOLO_VOC:
        name, gflop = f"{word} 416 x 416", rule.RULE_GFLOP
        if args.width or args.height:
            raise UsageError(f"bench estimate: {word} is known at 416 x 416 only; yolov2-voc takes -width and -height")
    else:
        name, gflop = part("suite").cost_of(word, args.width, args.height)
    if args.seen < 0:
        raise UsageError("bench estimate: -seen is a time in seconds a picture")
    for peak, source in peaks(args):
        print("\n".join(rule.estimate(name, gflop, peak, source, args.seen or None)))


def peaks(args: Any) -> list[tuple[float, str]]:
    """Return the figures to work with and where they come from. Raises UsageError."""
    if args.gflops and args.cpu:
        raise UsageError("bench estimate: -gflops and -cpu say the same thing twice; give one")
    if args.cpu:
        found = re.fullmatch(r"(\d+)x(\d+(?:\.\d+)?)x(\d+)", args.cpu)
        if not found or not float(found[1]) * float(found[2]) * float(found[3]):
            raise UsageError(
                f"bench estimate: -cpu is CORESxGHZxFLOP-PER-CYCLE, for example 4x4.2x32; found '{args.cpu}'"
            )
        return [
            (
                float(found[1]) * float(found[2]) * float(found[3]),
                f"{found[1]} cores x {found[2]} GHz x {found[3]} FLOP per cycle",
            )
        ]
    if args.gflops:
        if args.gflops < 0:
            raise UsageError("bench estimate: -gflops is a number above 0")
        return [(args.gflops, "as given")]
    described = part("machine").describe()
    span = described["peak_gflops"].get("fp32")
    if not span:
        raise UsageError(
            "bench estimate: this machine does not show its clock and SIMD width; give -gflops N or -cpu 4x4.2x32"
        )
    return [(peak, f"this machine, {described['device']}: {described['peak_source']}") for peak in dict.fromkeys(span)]


def compare(args: Any) -> None:
    """Show what changed between two runs."""
    records = part("records")
    before, after = (records.read(Path(word)) for word in args.positionals)
    show(part("compare").compare(before, after))


def report(args: Any) -> None:
    """Print the tables of an earlier run and write its page again; of GPU checks, write README.md's table."""
    paths = [Path(word) for word in args.positionals]
    gpu_report = part("gpu_report")
    if any(map(gpu_report.is_result, paths)):
        report_gpu(paths, Path(args.readme) if args.readme else part("records").folder().parent.parent / "README.md")
        return
    lines, *more = paths
    if more:
        raise UsageError(f"bench report: {more[0]} is too much: of files that `gpudarknet bench` wrote, it takes one")
    records, tables = part("records"), part("tables")
    found = records.read(lines)
    if not records.machines(found):
        raise UsageError(f"bench report: {lines} has no machine record; give a file that `gpudarknet bench` wrote")
    html = Path(args.page) if args.page else lines.with_suffix(".html")
    gpus = records.of_gpus(records.folder())
    for grid in (tables.speed(found), tables.estimates(found, gpus)):
        show(grid)
    part("report").write_page(found, html, gpus)
    print(f"{html}: the report")


def report_gpu(paths: list[Path], readme: Path) -> None:
    """Print the tables of GPU checks, and write them into a README."""
    gpu_report = part("gpu_report")
    devices = gpu_report.read(paths)
    for grid in gpu_report.grids(devices):
        show(grid)
    gpu_report.write(readme, devices)
    print(f"{readme}: its table of GPUs is that of {', '.join(map(str, paths))}")


SIZE = (
    Flag("width", int, 0, "Width of the input in pixels instead of the cfg's"),
    Flag("height", int, 0, "Height of the input in pixels instead of the cfg's"),
)
COMMANDS = (
    Command(
        "bench", ("[x.cfg ...]",), "Measure this machine: FPS, gemm, memory; compare with the rule of 0.01 FPS per GFLOPS", bench,
        (
            Flag("engines", str, "", "A list of plan,reference,opencv,onnxruntime,torch,darknet; default all"),
            Flag("device", str, "auto", "cpu, gpu (the CPU is measured too), or auto: the GPU if there is one"),
            Flag("batch", str, "1", "Pictures at a time, a list: 1,8,64"),
            Flag("precision", str, "fp32", "On a GPU, a list of fp32,tf32,fp16; the CPU computes in fp32"),
            *SIZE,
            Flag("seconds", float, 5.0, "Time for each engine and network"),
            Flag("limit", float, 0.0, "Begin nothing new after so many seconds; what is left out says so"),
            Flag("threads", int, 0, "Processors for each engine; default all that this process may use"),
            Flag("weights", str, "", "Weights of the one network named; default random ones from a seed"),
            Flag("layers", bool, False, "Time every layer too"),
            Flag("out", str, OUT, "Where the records go"),
            Flag("page", str, "", "Where the page goes; default beside the records, .html"),
        ),
        more="Networks are cfg files or names of shipped ones; without any, five from yolov2-tiny to yolov3 are run. A peer that "
        "is not installed becomes a line that says so; nothing is downloaded.",
    ),
    Command(
        "bench estimate", ("[x.cfg]",), "Work out FPS from GFLOPS by the rule: 35 % of the peak", estimate,
        (
            Flag("gflops", float, 0.0, "Peak in single precision; default this machine's"),
            Flag("cpu", str, "", "The peak as CORESxGHZxFLOP-PER-CYCLE: 4x4.2x32"),
            Flag("seen", float, 0.0, "Seconds a picture that somebody measured"),
            *SIZE,
        ),
        more="FLOP per cycle and core: SSE2 8, AVX 16, AVX2 with FMA 32, AVX-512 32 to 64, NEON 8 to 32.",
    ),
    Command("bench compare", ("before.jsonl", "after.jsonl"), "Show what changed beyond noise between two runs", compare),
    Command(
        "bench report", ("x.jsonl", "[more.jsonl ...]"), "Print the tables of an earlier run and write its page again", report,
        (
            Flag("page", str, "", "Where the page goes; default beside the records, .html"),
            Flag("readme", str, "", "The README whose GPU table is written; default that of the checkout"),
        ),
        more="Of the files that `make gpu-check` wrote, it prints the table of GPUs and writes it into README.md, between two "
        "comments; what is emulated or has failed is refused.",
    ),
)  # fmt: skip
