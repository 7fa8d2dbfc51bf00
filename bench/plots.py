"""The report's plots, as SVG without a library. Colors are classes and variables of the page's style sheet.

A plot is 440 units wide: readable on a phone, and two fit side by side on a desktop screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from . import published, rule_of_thumb
from .columns import peak_of, rows
from .records import Record, layers, machines, results
from .tables import bound, engine, group_title, number, size

WIDTH = 440
ENGINES = ("plan", "reference", "opencv", "onnxruntime", "torch", "darknet")  # the order of the page's colors


def colour(engine: str) -> str:
    """Return the CSS class of an engine's colour."""
    return f"e{ENGINES.index(engine)}" if engine in ENGINES else "other"


def text(x: float, y: float, label: str, kind: str = "", anchor: str = "start") -> str:
    """Return a text at a position."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(label)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def dot(x: float, y: float, kind: str, title: str, r: float = 4) -> str:
    """Return a dot with a tooltip."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" class="{kind}"><title>{escape(title)}</title></circle>'


def box(x: float, y: float, w: float, h: float, kind: str, title: str = "") -> str:
    """Return a bar with a tooltip."""
    tooltip = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" class="{kind}">{tooltip}</rect>'


def figure(title: str, caption: str, height: float, parts: Sequence[str]) -> str:
    """Return a figure with title, drawing and caption."""
    drawing = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><h3>{escape(title)}</h3>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis that maps low..high to pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return the powers of ten in range, with 2s and 5s if there are only a few."""
        tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(tens) <= 3 else (1,)
        ticks = [m * 10.0**e for e in tens for m in steps]
        return [t for t in ticks if self.low * 0.999 <= t <= self.high * 1.001]


def axis(values: Sequence[float], start: float, end: float, margin: float = 1.3) -> LogAxis:
    """Return an axis for all values, with a margin."""
    low, high = min(values) / margin, max(values) * margin
    if high / low < 4:
        low, high = low / 2, high * 2
    return LogAxis(low, high, start, end)


def plain(value: float) -> str:
    """Format a tick: 0.01, 5, 2000 as 2k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def frame(x: LogAxis, y: LogAxis, xname: str, yname: str) -> list[str]:
    """Return grid, ticks and names of two axes."""
    parts = []
    for t in x.ticks():
        parts += [line(x(t), y.start, x(t), y.end, "grid"), text(x(t), y.start + 14, plain(t), "tick", "middle")]
    for t in y.ticks():
        parts += [line(x.start, y(t), x.end, y(t), "grid"), text(x.start - 5, y(t) + 4, plain(t), "tick", "end")]
    return [*parts, text(x.end, y.start + 30, xname, "name", "end"), text(4, y.end - 12, yname, "name")]


def legend(engines: Sequence[str], y: float) -> list[str]:
    """Return the legend of colors, in one line."""
    parts, x = [], 10.0
    for name in engines:
        parts += [dot(x, y - 4, colour(name), name), text(x + 8, y, name, "tick")]
        x += 20 + 6.4 * len(name)
    return parts


def engines_in(records: Sequence[Record]) -> list[str]:
    """Return the engines with results, in the order of colors."""
    have = {r["engine"] for r in results(records)}
    return [e for e in ENGINES if e in have] + sorted(have - set(ENGINES))


def speeds(records: Sequence[Record]) -> str:
    """Plot FPS by network and engine."""
    ordered = sorted(results(records), key=lambda r: (r["gflop"], r["network"], -r["fps"]["median"]))
    x = axis([r["fps"][k] for r in ordered for k in ("p10", "p90")], 130, WIDTH - 46)
    devices = {m["device"]: m for m in machines(records)}
    parts: list[str] = []
    y, last = 6.0, ""
    for r in ordered:
        if size(r) != last:
            last, y = size(r), y + 24
            cost = f'<tspan class="tick" dx="7">{number(r["gflop"])} GFLOP</tspan>'
            parts.append(f'<text x="4" y="{y - 4:.1f}" class="label">{escape(last)}{cost}</text>')
            parts.append(line(4, y, WIDTH - 4, y, "grid"))
        y += 17
        fps, kind = r["fps"], colour(r["engine"])
        batch = f" ×{r['batch']}" * (r["batch"] > 1) + f" {r['precision']}" * (r["precision"] != "fp32")
        title = f"{last} {r['engine']}{batch}: {number(fps['median'])} FPS, p10–p90 {number(fps['p10'])}–{number(fps['p90'])}"
        parts.append(text(14, y, engine(r, devices) + batch, "tick"))
        parts.append(line(x(fps["p10"]), y - 4, x(fps["p90"]), y - 4, f"whisker {kind}"))
        parts.append(dot(x(fps["median"]), y - 4, kind, title))
        parts.append(text(max(x(fps["p90"]), x(fps["median"]) + 4) + 6, y, number(fps["median"]), "value"))
    bottom = y + 12
    grid = [line(x(t), 14, x(t), bottom, "grid faint") for t in x.ticks()]
    ticks = [text(x(t), bottom + 12, plain(t), "tick", "middle") for t in x.ticks()]
    name = text(WIDTH - 4, bottom + 27, "FPS, logarithmic", "name", "end")
    caption = "Median images per second; the line spans p10 to p90 of single calls. Higher is better."
    return figure("FPS by network and engine", caption, bottom + 34, [*grid, *parts, *ticks, name])


def rule_plot(records: Sequence[Record]) -> str:
    """Plot FPS against peak GFLOPS, with every network scaled to the rule's 34.90 GFLOP, and the rule as a line."""
    own = [row for row in rows(records) if row.peak]
    points = [(row.peak[1], row.achieved / rule_of_thumb.RULE_GFLOP) for row in own if row.peak]
    others = [(p.peak, p.fps * p.gflop / rule_of_thumb.RULE_GFLOP) for p in published.POINTS]
    listed = (rule_of_thumb.DISCUSSION.listed, 1 / rule_of_thumb.DISCUSSION.seen)
    every = [*points, *others, listed]
    x, y = axis([p[0] for p in every], 42, WIDTH - 12), axis([p[1] for p in every], 320, 26, 1.6)
    parts = frame(
        x, y, "peak of the device, GFLOPS in single precision", "FPS × GFLOP / 34.90: as if all were yolo-voc"
    )
    low, high = max(x.low, y.low / rule_of_thumb.RULE), min(x.high, y.high / rule_of_thumb.RULE)
    parts.append(line(x(low), y(low * rule_of_thumb.RULE), x(high), y(high * rule_of_thumb.RULE), "law"))
    mid = math.exp(math.log(low) + 0.62 * (math.log(high) - math.log(low)))
    angle = math.degrees(math.atan2(y(high * rule_of_thumb.RULE) - y(low * rule_of_thumb.RULE), x(high) - x(low)))
    at = f"{x(mid):.1f} {y(mid * rule_of_thumb.RULE) + 14:.1f}"
    parts.append(f'<text transform="translate({at}) rotate({angle:.1f})" class="law-name" text-anchor="middle">'
                 "0.01 FPS per GFLOPS</text>")  # fmt: skip
    right = (rule_of_thumb.DISCUSSION.peak, listed[1])
    parts += [line(x(listed[0]), y(listed[1]), x(right[0]), y(right[1]), "mistake"),
              dot(x(listed[0]), y(listed[1]), "published", f"{rule_of_thumb.DISCUSSION.cpu} by BOINC's list: {listed[0]} GFLOPS"),
              text(x(listed[0]) - 4, y(listed[1]) - 9, "i7-7700K as listed", "tick")]  # fmt: skip
    parts += published_points(x, y)
    for row, point in zip(own, points, strict=True):
        title = f"{row.device['device']}, {size(row.result)} {row.result['engine']}: {number(row.result['fps']['median'])} FPS"
        parts.append(dot(x(point[0]), y(point[1]), colour(row.result["engine"]), title))
    parts += legend(engines_in(records), 370)
    parts += [dot(WIDTH - 70, 366, "published", "published"), text(WIDTH - 62, 370, "published", "tick")]
    caption = (
        "On the line, a device reaches what the rule predicts: 35 % of its peak. Rings are published results. The dashed line "
        "is a known mistake: 39.76 GFLOPS from a list of Whetstone figures for a CPU whose peak is 537.6."
    )
    return figure("FPS against GFLOPS, and the rule", caption, 378, parts)


def published_points(x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """Return the published results, with the device's name at its best one."""
    parts, seen = [], set()
    for p in sorted(published.POINTS, key=lambda p: -p.fps * p.gflop):
        at = x(p.peak), y(p.fps * p.gflop / rule_of_thumb.RULE_GFLOP)
        parts.append(dot(*at, "published", f"{p.device}, {p.engine}: {p.fps:.3g} FPS; {p.source}"))
        if p.device not in seen:
            right = p.device == "i7-7700K"
            parts.append(
                text(
                    at[0] + (7 if right else -7),
                    at[1] + (4 if right or p.fps < 100 else -1),
                    p.device,
                    "tick",
                    "start" if right else "end",
                )
            )
        seen.add(p.device)
    return parts


def roofline(records: Sequence[Record]) -> str:
    """Plot the roofline: GFLOP/s against FLOP per byte, bounded by this CPU's gemm and copy rates."""
    device = next(
        (m for m in machines(records) if m["kind"] == "cpu" and m.get("copy_gb_s") and m["gemm_gflops"]), None
    )
    if device is None:
        return ""
    gemm, copy = device["gemm_gflops"]["fp32"], device["copy_gb_s"]
    nets = [row for row in rows(records) if row.device is device and row.result.get("mbyte")]
    every = [r for group in layers(records) for r in group if r["device"] == device["device"]]
    mine = [r for r in every if r["engine"] == "reference" and r["gflop"] and r["mbyte"] and r["ms"]]
    spots = [(1e3 * r["gflop"] / r["mbyte"], 1e3 * r["gflop"] / r["ms"]) for r in mine]
    dots = [(1e3 * row.result["gflop"] / row.result["mbyte"], row.achieved) for row in nets]
    peak = peak_of(device, "fp32")
    top = peak[1] if peak else gemm
    x = axis([p[0] for p in [*spots, *dots]] + [gemm / copy], 42, WIDTH - 12)
    lowest = [max(p[1], gemm / 300) for p in spots] + [p[1] for p in dots]
    y = axis([*lowest, gemm, top], 320, 26)
    parts = frame(x, y, "FLOP per byte moved", "GFLOP/s")
    parts += [f'<circle cx="{x(p[0]):.1f}" cy="{y(p[1]):.1f}" r="2.2" class="spot"/>' for p in spots if p[1] >= y.low]
    start = max(x.low, y.low / copy)
    ridge = gemm / copy
    parts.append(line(x(start), y(start * copy), x(ridge), y(gemm), "roof"))
    parts.append(line(x(ridge), y(gemm), x.end, y(gemm), "roof"))
    parts.append(text(x.end, y(gemm) - 5, f"gemm measured {number(gemm)}", "tick", "end"))
    if peak and top > 1.03 * gemm:
        parts.append(line(x(ridge), y(top), x.end, y(top), "roof faint"))
        parts.append(text(x.end, y(top) - 5, f"peak {number(top)}", "tick", "end"))
    parts.append(text(x(start) + 6, y(start * copy) + 4, f"copy {number(copy)} GB/s", "tick"))
    for row, p in zip(nets, dots, strict=True):
        title = f"{size(row.result)} {row.result['engine']}: {number(p[1])} GFLOP/s at {number(p[0])} FLOP per byte"
        parts.append(dot(x(p[0]), y(p[1]), colour(row.result["engine"]), title))
    parts += legend(engines_in(records), 370)
    caption = (
        "Large dots: whole networks, bytes of their convolutions. Small dots: single layers of the reference engine. Left of the "
        "ridge point layers are memory-bound, right of it compute-bound; a layer whose maps stay in caches may exceed the slope."
    )
    return figure(f"Roofline of {device['device']}", caption, 378, parts)


def layer_plot(records: Sequence[Record], mine: Sequence[Record]) -> str:
    """Plot the time of every layer of a group from `records.layers`."""
    devices = {m["device"]: m for m in machines(records)}
    most = max(r["ms"] for r in mine)
    left, bottom, top = 40.0, 180.0, 30.0
    step = (WIDTH - left - 8) / len(mine)
    scale = (bottom - top) / most
    parts = []
    for part in (0.5, 1.0):
        y = bottom - part * most * scale
        parts += [line(left, y, WIDTH - 8, y, "grid"), text(left - 5, y + 4, number(part * most), "tick", "end")]
    for k, r in enumerate(mine):
        side = bound(r, devices[r["device"]]) if r["device"] in devices else "–"
        rate = 1e3 * r["gflop"] / r["ms"] if r["ms"] else 0
        title = f"layer {r['index']} {r['name']}: {number(r['ms'])} ms, {number(rate)} GFLOP/s"
        h, kind = r["ms"] * scale, "side-a" if side == "compute" else "side-m"
        parts.append(box(left + k * step, bottom - h, max(step - 0.8, 0.8), h, kind, title))
    for k in range(0, len(mine), max(1, round(len(mine) / 8 / 5) * 5 or 1)):
        parts.append(text(left + (k + 0.5) * step, bottom + 13, str(mine[k]["index"]), "tick", "middle"))
    parts += [line(left, bottom, WIDTH - 8, bottom, "axis"), text(4, 16, "ms", "name")]
    parts += [text(WIDTH - 8, bottom + 28, "layer", "name", "end")]
    parts += [box(190, 8, 9, 9, "side-a"), text(203, 16, "compute-bound", "tick")]
    parts += [box(322, 8, 9, 9, "side-m"), text(335, 16, "memory-bound", "tick")]
    total = sum(r["ms"] for r in mine)
    return figure(group_title(mine), f"{number(total)} ms in total; the table lists the slowest.", bottom + 34, parts)
