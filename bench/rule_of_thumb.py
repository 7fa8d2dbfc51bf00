"""The rule of thumb "about 0.01 FPS per 1 GFLOPS-SP": what it means, and how it is misused.

It was stated for YOLOv2-VOC at 416 x 416 on a GPU: 67 FPS on a Titan X with 6604 GFLOPS (single-precision peak). That network,
today's yolo-voc.2.0 cfg, costs 34.90 GFLOP per image, so the rule is an efficiency: 0.01 x 34.90 = 35 % of the peak.

    FPS = 0.35 * peak GFLOPS / GFLOP of the network

It fits Darknet with cuDNN in fp32 on GPUs of 2014 to 2018 within 10 %, but no CPU program that leaves cores or SIMD idle.
The peak to use is cores x clock x SIMD width x FMA. Lists of CPU "GFLOPS" from distributed computing (BOINC) contain results of
the Whetstone benchmark: scalar double precision, about thirteen times less on a desktop CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

RULE = 0.01  # FPS per GFLOPS, as stated
RULE_GFLOP = 34.90  # of the network it was stated for
EFFICIENCY = 0.35  # the same as a fraction of the peak, rounded as its author did
YOLO_VOC = "yolo-voc"  # known to the calculator in addition to the bundled networks; its current cfg is cheaper
SUSPECT = 100.0  # GFLOPS: four cores with only SSE2 have 96 at 3 GHz; AVX doubles it, and so does FMA


@dataclass(frozen=True)
class ListedCPU:
    """A CPU as listed by BOINC, and its actual peak."""

    cpu: str
    listed: float
    cores: int
    ghz: float
    flop_per_cycle: int
    seen: float  # seconds per image of yolo-voc, as reported

    @property
    def peak(self) -> float:
        """Single-precision peak in GFLOPS."""
        return self.cores * self.ghz * self.flop_per_cycle


DISCUSSION = ListedCPU("Intel Core i7-7700K", 39.76, 4, 4.2, 32, 9.2)  # 4 cores, AVX2, two FMA units: 8 x 2 x 2 = 32


def fps(peak: float, gflop: float) -> float:
    """Return the FPS that the rule predicts for `peak` GFLOPS and a network of `gflop` per image."""
    return RULE * peak * RULE_GFLOP / gflop


def fps_per_gflops(gflop: float) -> float:
    """Return the rule's FPS per GFLOPS for a network of `gflop` per image."""
    return EFFICIENCY / gflop


def equivalent(fps: float, gflop: float) -> float:
    """Return the single-precision GFLOPS that a CPU needs for this FPS by the rule."""
    return fps * gflop / EFFICIENCY


def whetstone(gflops: float) -> ListedCPU | None:
    """Return the listed CPU if a figure is a known Whetstone result."""
    return DISCUSSION if abs(gflops - DISCUSSION.listed) < 0.005 else None


def estimate(name: str, gflop: float, peak: float, source: str, seen: float | None = None) -> list[str]:
    """Apply the rule to one network and one peak; return lines of text.

    peak: GFLOPS; source: where it comes from; seen: measured seconds per image.
    """
    lines = [
        f"{name}: {gflop:.2f} GFLOP per image",
        f"peak: {peak:.2f} GFLOPS ({source})",
        f"rule: {fps_per_gflops(gflop):.4f} FPS per GFLOPS (35 % of the peak / {gflop:.2f} GFLOP)",
        f"the rule predicts {predict(peak, gflop)}",
    ]
    listed = whetstone(peak)
    if listed and seen is None and abs(gflop - RULE_GFLOP) < 0.005:
        seen = listed.seen
    if seen is not None:
        lines.append(f"measured: {seen:g} s per image = {1 / seen:.3f} FPS = {gflop / seen:.1f} GFLOP/s, "
                     f"{gflop / seen / peak:.1%} of this peak")  # fmt: skip
    if peak < SUSPECT:
        lines.append(f"warning: {peak:g} GFLOPS looks like a Whetstone figure (scalar, double precision; BOINC's CPU list), not "
                     "a SIMD peak; use cores x GHz x FLOP per cycle, for example --cpu 4x4.2x32")  # fmt: skip
    if listed:
        lines.append(f"the list has {listed.listed} for the {listed.cpu}; its peak is {listed.cores} cores x {listed.ghz} GHz x "
                     f"{listed.flop_per_cycle} FLOP per cycle = {listed.peak:.1f} GFLOPS, "
                     f"{listed.peak / listed.listed:.1f} times as much")  # fmt: skip
        lines.append(f"with that peak the rule predicts {predict(listed.peak, gflop)}")
        if seen is not None:
            lines.append(
                f"the measurement is {gflop / seen / listed.peak:.1%} of it, not 35 %: code without SIMD, or a timer that counts "
                "the CPU time of all threads (clock())"
            )
    return lines


def predict(peak: float, gflop: float) -> str:
    """Format the rule's FPS and seconds per image."""
    rate = fps(peak, gflop)
    return f"{rate:.{1 if rate >= 0.1 else 3}f} FPS, {1 / rate:.{2 if rate > 1 else 1}f} s per image"
