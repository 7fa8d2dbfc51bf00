"""The rule of thumb "about 0.01 FPS per 1 GFLOPS-SP", what it means, and where its users go wrong.

It was said of YOLOv2-VOC at 416 x 416 on a GPU: 67 FPS on a Titan X of 6604 GFLOPS (single precision, peak). That network, the
cfg called yolo-voc.2.0 today, costs 34.90 GFLOP a picture, so the rule is an efficiency: 0.01 x 34.90 = 35 % of the peak.

    FPS = 0.35 * peak GFLOPS / GFLOP of the network

It fits Darknet with cuDNN in fp32 on the GPUs of 2014 to 2018 within a tenth, and no CPU program that leaves cores or SIMD idle.
The number to put in is cores x clock x SIMD width x FMA. Lists of CPU "GFLOPS" from distributed computing (BOINC) hold the
Whetstone benchmark: scalar double precision, about thirteen times less on a desktop CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

RULE = 0.01  # FPS per GFLOPS, as it was said
RULE_GFLOP = 34.90  # of the network it was said of
EFFICIENCY = 0.35  # the same as a share of the peak, rounded as its author rounds it
YOLO_VOC = "yolo-voc"  # known to the calculator beside the networks that ship; its cfg of today is lighter
SUSPECT = 100.0  # GFLOPS: four cores with nothing better than SSE2 have 96 at 3 GHz, AVX doubles it, FMA again


@dataclass(frozen=True)
class Case:
    """A CPU that somebody looked up in a list, and what its peak is."""

    cpu: str
    listed: float
    cores: int
    ghz: float
    flop_per_cycle: int
    seen: float  # seconds a picture, yolo-voc, as reported

    @property
    def peak(self) -> float:
        """Single-precision peak in GFLOPS."""
        return self.cores * self.ghz * self.flop_per_cycle


DISCUSSION = Case("Intel Core i7-7700K", 39.76, 4, 4.2, 32, 9.2)  # 4 cores, AVX2, two FMA units: 8 x 2 x 2 = 32


def fps(peak: float, gflop: float) -> float:
    """Return the FPS that the rule promises on `peak` GFLOPS for a network of `gflop` a picture."""
    return RULE * peak * RULE_GFLOP / gflop


def fps_per_gflops(gflop: float) -> float:
    """Return the rule's FPS per GFLOPS for a network of `gflop` a picture."""
    return EFFICIENCY / gflop


def equivalent(fps: float, gflop: float) -> float:
    """Return how many single-precision GFLOPS a CPU would need for this FPS by the rule."""
    return fps * gflop / EFFICIENCY


def whetstone(gflops: float) -> Case | None:
    """Return the case of a figure that is known to be a Whetstone one."""
    return DISCUSSION if abs(gflops - DISCUSSION.listed) < 0.005 else None


def estimate(name: str, gflop: float, peak: float, source: str, seen: float | None = None) -> list[str]:
    """Work the rule out for one network and one figure, as lines of text.

    peak: GFLOPS; source: where the figure comes from; seen: seconds a picture that somebody measured.
    """
    lines = [
        f"{name}: {gflop:.2f} GFLOP a picture",
        f"peak: {peak:.2f} GFLOPS ({source})",
        f"rule: {fps_per_gflops(gflop):.4f} FPS per GFLOPS (35 % of the peak / {gflop:.2f} GFLOP)",
        f"the rule promises {promise(peak, gflop)}",
    ]
    case = whetstone(peak)
    if case and seen is None and abs(gflop - RULE_GFLOP) < 0.005:
        seen = case.seen
    if seen is not None:
        lines.append(f"seen: {seen:g} s a picture = {1 / seen:.3f} FPS = {gflop / seen:.1f} GFLOP/s, "
                     f"{gflop / seen / peak:.1%} of this peak")  # fmt: skip
    if peak < SUSPECT:
        lines.append(f"warning: {peak:g} GFLOPS looks like a Whetstone figure (scalar, double precision; BOINC's CPU list), not "
                     "a SIMD peak; take cores x GHz x FLOP per cycle, for example --cpu 4x4.2x32")  # fmt: skip
    if case:
        lines.append(f"the list has {case.listed} for the {case.cpu}; its peak is {case.cores} cores x {case.ghz} GHz x "
                     f"{case.flop_per_cycle} FLOP per cycle = {case.peak:.1f} GFLOPS, "
                     f"{case.peak / case.listed:.1f} times as much")  # fmt: skip
        lines.append(f"with that peak the rule promises {promise(case.peak, gflop)}")
        if seen is not None:
            lines.append(
                f"what was seen is {gflop / seen / case.peak:.1%} of it, not 35 %: code without SIMD; and a timer that counts "
                "CPU time (clock()) adds up all threads"
            )
    return lines


def promise(peak: float, gflop: float) -> str:
    """Write the rule's FPS and the time of one picture."""
    rate = fps(peak, gflop)
    return f"{rate:.{1 if rate >= 0.1 else 3}f} FPS, {1 / rate:.{2 if rate > 1 else 1}f} s a picture"
