"""The plots of the report, as SVG without a library. Colours are classes and variables of the page's style sheet.

A plot is 440 units wide, so that its letters can be read on a phone and two stand side by side on a desk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from . import published, rule_of_thumb
from .columns import peak_of, rows
from .records import Record, layers, machines, results
from .tables import bound, engine, layers_of, number, size

WIDTH = 440
ENGINES = ("plan", "reference", "opencv", "onnxruntime", "torch", "darknet")  # the order of the page's colours


def colour(engine: str) -> str:
    """Return the class of an engine's colour."""
    return f"e{ENGINES.index(engine)}" if engine in ENGINES else "other"


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Write words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def rule_line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Draw a line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def dot(x: float, y: float, kind: str, title: str, r: float = 4) -> str:
    """Draw a dot that tells its numbers when pointed at."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" class="{kind}"><title>{escape(title)}</title></circle>'


def box(x: float, y: float, w: float, h: float, kind: str, title: str = "") -> str:
    """Draw a bar that tells its numbers when pointed at."""
    said = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" class="{kind}">{said}</rect>'


def figure(title: str, caption: str, height: float, parts: Sequence[str]) -> str:
    """Put a drawing into a figure with title and caption."""
    drawing = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><h3>{escape(title)}</h3>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


@dataclass(frozen=True)
class Log:
    """A logarithmic axis: values low..high on pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return the powers of ten within, with 2s and 5s where there are few of them."""
        tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if len(tens) <= 3 else (1,)
        found = [m * 10.0**e for e in tens for m in steps]
        return [t for t in found if self.low * 0.999 <= t <= self.high * 1.001]


def axis(values: Sequence[float], start: float, end: float, room: float = 1.3) -> Log:
    """Make an axis that holds all values, with some room."""
    low, high = min(values) / room, max(values) * room
    if high / low < 4:
        low, high = low / 2, high * 2
    return Log(low, high, start, end)


def plain(value: float) -> str:
    """Write a tick: 0.01, 5, 2000 as 2k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def frame(x: Log, y: Log, xname: str, yname: str) -> list[str]:
    """Draw grid, ticks and names of two axes."""
    parts = []
    for t in x.ticks():
        parts += [rule_line(x(t), y.start, x(t), y.end, "grid"), text(x(t), y.start + 14, plain(t), "tick", "middle")]
    for t in y.ticks():
        parts += [rule_line(x.start, y(t), x.end, y(t), "grid"), text(x.start - 5, y(t) + 4, plain(t), "tick", "end")]
    return [*parts, text(x.end, y.start + 30, xname, "name", "end"), text(4, y.end - 12, yname, "name")]


def legend(engines: Sequence[str], y: float) -> list[str]:
    """Name the colours in one line."""
    parts, x = [], 10.0
    for name in engines:
        parts += [dot(x, y - 4, colour(name), name), text(x + 8, y, name, "tick")]
        x += 20 + 6.4 * len(name)
    return parts


def shown(records: Sequence[Record]) -> list[str]:
    """Return the engines that have numbers, in the order of colours."""
    have = {r["engine"] for r in results(records)}
    return [e for e in ENGINES if e in have] + sorted(have - set(ENGINES))


def speeds(records: Sequence[Record]) -> str:
    """Plot FPS by network and engine."""
    found = sorted(results(records), key=lambda r: (r["gflop"], r["network"], -r["fps"]["median"]))
    x = axis([r["fps"][k] for r in found for k in ("p10", "p90")], 130, WIDTH - 46)
    devices = {m["device"]: m for m in machines(records)}
    parts: list[str] = []
    y, last = 6.0, ""
    for r in found:
        if size(r) != last:
            last, y = size(r), y + 24
            cost = f'<tspan class="tick" dx="7">{number(r["gflop"])} GFLOP</tspan>'
            parts.append(f'<text x="4" y="{y - 4:.1f}" class="label">{escape(last)}{cost}</text>')
            parts.append(rule_line(4, y, WIDTH - 4, y, "grid"))
        y += 17
        fps, kind = r["fps"], colour(r["engine"])
        batch = f" ×{r['batch']}" * (r["batch"] > 1) + f" {r['precision']}" * (r["precision"] != "fp32")
        title = f"{last} {r['engine']}{batch}: {number(fps['median'])} FPS, p10–p90 {number(fps['p10'])}–{number(fps['p90'])}"
        parts.append(text(14, y, engine(r, devices) + batch, "tick"))
        parts.append(rule_line(x(fps["p10"]), y - 4, x(fps["p90"]), y - 4, f"whisker {kind}"))
        parts.append(dot(x(fps["median"]), y - 4, kind, title))
        parts.append(text(max(x(fps["p90"]), x(fps["median"]) + 4) + 6, y, number(fps["median"]), "value"))
    bottom = y + 12
    grid = [rule_line(x(t), 14, x(t), bottom, "grid faint") for t in x.ticks()]
    ticks = [text(x(t), bottom + 12, plain(t), "tick", "middle") for t in x.ticks()]
    name = text(WIDTH - 4, bottom + 27, "FPS, logarithmic", "name", "end")
    caption = "Median of pictures a second; the line spans p10 to p90 of single calls. More is better."
    return figure("FPS by network and engine", caption, bottom + 34, [*grid, *parts, *ticks, name])


def rule_plot(records: Sequence[Record]) -> str:
    """Plot FPS against peak GFLOPS, every network brought to the rule's 34.90 GFLOP, with the rule's line."""
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
    parts.append(rule_line(x(low), y(low * rule_of_thumb.RULE), x(high), y(high * rule_of_thumb.RULE), "law"))
    mid = math.exp(math.log(low) + 0.62 * (math.log(high) - math.log(low)))
    angle = math.degrees(math.atan2(y(high * rule_of_thumb.RULE) - y(low * rule_of_thumb.RULE), x(high) - x(low)))
    at = f"{x(mid):.1f} {y(mid * rule_of_thumb.RULE) + 14:.1f}"
    parts.append(f'<text transform="translate({at}) rotate({angle:.1f})" class="law-name" text-anchor="middle">'
                 "0.01 FPS per GFLOPS</text>")  # fmt: skip
    right = (rule_of_thumb.DISCUSSION.peak, listed[1])
    parts += [rule_line(x(listed[0]), y(listed[1]), x(right[0]), y(right[1]), "mishap"),
              dot(x(listed[0]), y(listed[1]), "published", f"{rule_of_thumb.DISCUSSION.cpu} by BOINC's list: {listed[0]} GFLOPS"),
              text(x(listed[0]) - 4, y(listed[1]) - 9, "i7-7700K as listed", "tick")]  # fmt: skip
    parts += published_points(x, y)
    for row, point in zip(own, points, strict=True):
        title = f"{row.device['device']}, {size(row.result)} {row.result['engine']}: {number(row.result['fps']['median'])} FPS"
        parts.append(dot(x(point[0]), y(point[1]), colour(row.result["engine"]), title))
    parts += legend(shown(records), 370)
    parts += [dot(WIDTH - 70, 366, "published", "published"), text(WIDTH - 62, 370, "published", "tick")]
    caption = (
        "On the line, a device does what the rule promises: 35 % of its peak. Rings are published results. The dashed line is "
        "the discussion's mishap: 39.76 GFLOPS from a list of Whetstone figures for a CPU whose peak is 537.6."
    )
    return figure("FPS against GFLOPS, and the rule", caption, 378, parts)


def published_points(x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """Draw the published results; a name at each device's best one."""
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
    """Plot GFLOP/s against FLOP per byte, under the roof of this CPU's gemm and copies."""
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
    floor = [max(p[1], gemm / 300) for p in spots] + [p[1] for p in dots]
    y = axis([*floor, gemm, top], 320, 26)
    parts = frame(x, y, "FLOP per byte moved", "GFLOP/s")
    parts += [f'<circle cx="{x(p[0]):.1f}" cy="{y(p[1]):.1f}" r="2.2" class="spot"/>' for p in spots if p[1] >= y.low]
    start = max(x.low, y.low / copy)
    ridge = gemm / copy
    parts.append(rule_line(x(start), y(start * copy), x(ridge), y(gemm), "roof"))
    parts.append(rule_line(x(ridge), y(gemm), x.end, y(gemm), "roof"))
    parts.append(text(x.end, y(gemm) - 5, f"gemm measured {number(gemm)}", "tick", "end"))
    if peak and top > 1.03 * gemm:
        parts.append(rule_line(x(ridge), y(top), x.end, y(top), "roof faint"))
        parts.append(text(x.end, y(top) - 5, f"peak {number(top)}", "tick", "end"))
    parts.append(text(x(start) + 6, y(start * copy) + 4, f"copy {number(copy)} GB/s", "tick"))
    for row, p in zip(nets, dots, strict=True):
        title = f"{size(row.result)} {row.result['engine']}: {number(p[1])} GFLOP/s at {number(p[0])} FLOP per byte"
        parts.append(dot(x(p[0]), y(p[1]), colour(row.result["engine"]), title))
    parts += legend(shown(records), 370)
    caption = (
        "Large dots: whole networks, bytes of their convolutions. Small dots: single layers of the reference engine. Left of the "
        "ridge memory is the bound, right of it arithmetic; a layer whose maps stay in caches may stand above the slope."
    )
    return figure(f"Roofline of {device['device']}", caption, 378, parts)


def layer_plot(records: Sequence[Record], mine: Sequence[Record]) -> str:
    """Plot the time of every layer of one group that `records.layers` returns."""
    devices = {m["device"]: m for m in machines(records)}
    most = max(r["ms"] for r in mine)
    left, bottom, top = 40.0, 180.0, 30.0
    step = (WIDTH - left - 8) / len(mine)
    scale = (bottom - top) / most
    parts = []
    for part in (0.5, 1.0):
        y = bottom - part * most * scale
        parts += [rule_line(left, y, WIDTH - 8, y, "grid"), text(left - 5, y + 4, number(part * most), "tick", "end")]
    for k, r in enumerate(mine):
        side = bound(r, devices[r["device"]]) if r["device"] in devices else "–"
        rate = 1e3 * r["gflop"] / r["ms"] if r["ms"] else 0
        title = f"layer {r['index']} {r['name']}: {number(r['ms'])} ms, {number(rate)} GFLOP/s"
        h, kind = r["ms"] * scale, "side-a" if side == "arithmetic" else "side-m"
        parts.append(box(left + k * step, bottom - h, max(step - 0.8, 0.8), h, kind, title))
    for k in range(0, len(mine), max(1, round(len(mine) / 8 / 5) * 5 or 1)):
        parts.append(text(left + (k + 0.5) * step, bottom + 13, str(mine[k]["index"]), "tick", "middle"))
    parts += [rule_line(left, bottom, WIDTH - 8, bottom, "axis"), text(4, 16, "ms", "name")]
    parts += [text(WIDTH - 8, bottom + 28, "layer", "name", "end")]
    parts += [box(190, 8, 9, 9, "side-a"), text(203, 16, "bound by arithmetic", "tick")]
    parts += [box(322, 8, 9, 9, "side-m"), text(335, 16, "by memory", "tick")]
    total = sum(r["ms"] for r in mine)
    return figure(
        layers_of(mine), f"{number(total)} ms in all; the slowest are in the table with it.", bottom + 34, parts
    )
