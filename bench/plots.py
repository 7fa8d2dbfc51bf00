"""The report's plots: drawn with matplotlib, returned as SVG in HTML figures. The page's style sheet colors their text."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import Any

from . import published
from .columns import peak_of, rows
from .records import Record, layers, machines, results
from .rule_of_thumb import DISCUSSION, RULE, RULE_GFLOP
from .tables import bound, engine, group_title, number, size

WIDTH = 4.6  # inches: readable on a phone, and two fit side by side on a desktop screen
COLORS = {"plan": "tab:blue", "reference": "tab:orange", "opencv": "tab:green", "onnxruntime": "tab:purple",
          "openvino-backend": "tab:cyan", "openvino": "tab:olive", "torch": "tab:pink", "darknet": "tab:gray"}  # fmt: skip
BOUNDS = {"compute": "tab:blue", "memory": "tab:orange", "–": "tab:gray"}
NOTE = dict(xytext=(-4, 3), textcoords="offset points", ha="right")
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8, "svg.fonttype": "none", "lines.markersize": 4, "axes.edgecolor": "gray",
    "axes.spines.right": False, "axes.spines.top": False, "xtick.color": "gray", "ytick.color": "gray",
    "axes.grid": True, "grid.color": "gray", "grid.alpha": 0.25, "legend.frameon": False,
}  # fmt: skip


def figure(title: str, caption: str, draw: Callable[[Any], None], height: float = 4.0) -> str:
    """Return an HTML figure of what `draw` draws on matplotlib's axes. The same records give the same text.

    The salt makes the ids of clip paths and markers unique within the page; groups have the same ids in every drawing.
    """
    import matplotlib
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        fig = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(fig.subplots())
        if fig.axes[0].get_legend_handles_labels()[0]:
            fig.legend(loc="outside lower left", ncols=3)
        fig.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawing = re.sub(r'<g id="[\w.]+_\d+">', "<g>", file.getvalue().partition("<svg")[2])
    return (
        f'<figure><h3>{escape(title)}</h3><svg role="img" aria-label="{escape(title)}"{drawing}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def logarithmic(axis: Any, name: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}label": name})
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axis.set_minor_formatter("")


def scatter(axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Draw points (engine, x, y), each engine in its color."""
    for name in dict.fromkeys([*COLORS, *(point[0] for point in points)]):
        mine = [point[1:] for point in points if point[0] == name]
        if mine:
            axes.plot(*zip(*mine, strict=True), "o", color=COLORS.get(name, "gray"), label=name)


def speeds(records: Sequence[Record]) -> str:
    """Plot FPS by network and engine."""
    ordered = sorted(results(records), key=lambda r: (r["gflop"], r["network"], -r["fps"]["median"]))
    devices = {m["device"]: m for m in machines(records)}
    lines: list[str | Record] = []  # a heading for each network and its results, from top to bottom
    for name, group in groupby(ordered, size):
        first, *others = group
        lines += [f"{name}, {number(first['gflop'])} GFLOP", first, *others]

    def draw(axes: Any) -> None:
        labels: dict[int, str] = {}
        for y, r in enumerate(lines):
            if isinstance(r, str):
                axes.text(0.01, y, r, weight="bold", va="center", transform=axes.get_yaxis_transform())
                continue
            low, fps, high = (r["fps"][name] for name in ("p10", "median", "p90"))
            axes.errorbar(fps, y, xerr=[[fps - low], [high - fps]], fmt="o", color=COLORS.get(r["engine"], "gray"))
            axes.annotate(number(fps), (max(fps, high), y), xytext=(5, 0), textcoords="offset points", va="center")
            labels[y] = engine(r, devices) + f" ×{r['batch']}" * (r["batch"] > 1)
            labels[y] += f" {r['precision']}" * (r["precision"] != "fp32")
        axes.set_yticks(list(labels), list(labels.values()))
        axes.set_ylim(len(lines), -1)
        axes.margins(x=0.15)
        axes.grid(False, axis="y")
        logarithmic(axes.xaxis, "FPS")

    caption = "Median images per second; the line spans p10 to p90 of single calls. Higher is better."
    return figure("FPS by network and engine", caption, draw, 0.7 + 0.16 * len(lines))


def rule_plot(records: Sequence[Record]) -> str:
    """Plot FPS against peak GFLOPS, with every network scaled to the rule's 34.90 GFLOP, and the rule as a line."""
    own = [(row.result["engine"], row.peak[1], row.achieved / RULE_GFLOP) for row in rows(records) if row.peak]
    others = [(p.device, p.peak, p.fps * p.gflop / RULE_GFLOP) for p in published.POINTS]
    best = {name: max(y for device, _, y in others if device == name) for name, _, _ in others}

    def draw(axes: Any) -> None:
        peaks = [DISCUSSION.listed, *(x for _, x, _ in (*own, *others))]
        ends = min(peaks), max(peaks)
        axes.plot(ends, [RULE * x for x in ends], color="tab:red", label="0.01 FPS per GFLOPS")
        axes.plot([DISCUSSION.listed, DISCUSSION.peak], [1 / DISCUSSION.seen] * 2, "--", color="gray")
        axes.annotate("as listed", (DISCUSSION.listed, 1 / DISCUSSION.seen), xytext=(0, 5), textcoords="offset points")
        axes.plot([x for _, x, _ in others], [y for *_, y in others], "o", mfc="none", color="gray", label="published")
        for name, x, y in others:
            if y == best[name]:
                axes.annotate(name, (x, y), **NOTE)
        scatter(axes, own)
        logarithmic(axes.xaxis, "peak of the device, GFLOPS in single precision")
        logarithmic(axes.yaxis, "FPS × GFLOP / 34.90: as if all were yolo-voc")

    caption = (
        "On the line, a device reaches what the rule predicts: 35 % of its peak. The dashed line is a known mistake: 39.76 "
        "GFLOPS from a list of Whetstone figures for a CPU whose peak is 537.6. Published: "
        + "; ".join(f"{p.device}, {p.engine} ({p.source})" for p in published.POINTS)
    )
    return figure("FPS against GFLOPS, and the rule", caption, draw)


def roofline(records: Sequence[Record]) -> str:
    """Plot the roofline: GFLOP/s against FLOP per byte, bounded by this CPU's gemm and copy rates."""
    measured = (m for m in machines(records) if m["kind"] == "cpu" and m.get("copy_gb_s") and m["gemm_gflops"])
    device = next(measured, None)
    if device is None:
        return ""
    gemm, copy, peak = device["gemm_gflops"]["fp32"], device["copy_gb_s"], peak_of(device, "fp32")
    nets = [row for row in rows(records) if row.device is device and row.result.get("mbyte")]
    mine = [
        r for group in layers(records) for r in group if r["device"] == device["device"] and r["engine"] == "reference"
    ]
    spots = [
        (1e3 * r["gflop"] / r["mbyte"], 1e3 * r["gflop"] / r["ms"])
        for r in mine
        if r["gflop"] and r["mbyte"] and r["ms"]
    ]
    dots = [(row.result["engine"], 1e3 * row.result["gflop"] / row.result["mbyte"], row.achieved) for row in nets]

    def draw(axes: Any) -> None:
        ridge, xs = gemm / copy, [x for x, _ in spots] + [x for _, x, _ in dots]
        low, high = min([ridge / 10, *xs]), max([ridge * 10, *xs])
        axes.plot([low, ridge, high], [low * copy, gemm, gemm], color="gray")
        axes.annotate(f"gemm measured {number(gemm)}", (ridge, gemm), **NOTE)
        axes.annotate(f"copy {number(copy)} GB/s", (math.sqrt(low * ridge), math.sqrt(low * ridge) * copy), **NOTE)
        if peak and peak[1] > 1.03 * gemm:
            axes.plot([ridge, high], [peak[1]] * 2, "--", color="gray")
            axes.annotate(f"peak {number(peak[1])}", (ridge, peak[1]), **NOTE)
        axes.plot([x for x, _ in spots], [y for _, y in spots], ".", color="gray", alpha=0.6, ms=3, label="layers")
        scatter(axes, dots)
        logarithmic(axes.xaxis, "FLOP per byte moved")
        logarithmic(axes.yaxis, "GFLOP/s")

    caption = (
        "Large dots: whole networks, bytes of their convolutions. Small dots: single layers of the reference engine. Left of the "
        "ridge point layers are memory-bound, right of it compute-bound; a layer whose maps stay in caches may exceed the slope."
    )
    return figure(f"Roofline of {device['device']}", caption, draw)


def layer_plot(records: Sequence[Record], mine: Sequence[Record]) -> str:
    """Plot the time of every layer of a group from `records.layers`."""
    devices = {m["device"]: m for m in machines(records)}
    sides = [bound(r, devices[r["device"]]) if r["device"] in devices else "–" for r in mine]

    def draw(axes: Any) -> None:
        for side, color in BOUNDS.items():
            at = [k for k, one in enumerate(sides) if one == side]
            label = "unknown" if side == "–" else f"{side}-bound"
            if at:
                axes.bar(at, [mine[k]["ms"] for k in at], 0.9, color=color, label=label)
        ticks = range(0, len(mine), len(mine) // 10 or 1)
        axes.set_xticks(ticks, [str(mine[k]["index"]) for k in ticks])
        axes.set(xlabel="layer", ylabel="ms")
        axes.grid(False, axis="x")

    total = sum(r["ms"] for r in mine)
    return figure(group_title(mine), f"{number(total)} ms in total; the table lists the slowest.", draw, 2.4)
