"""Describe the machine: its single-precision peak derived from /proc, measured gemm and copy rates, and caveats.

    peak = cores available to this process x clock x FLOP per cycle        (SIMD width x 2 for FMA x FMA units)

Virtual machines hide cores and clocks, so the peak is a range. Measured rates are recorded next to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gpudarknet.backend.machine import affinity, cpu_quota, memory_bytes, processor

from .timing import measure, quantiles

Range = tuple[float, float]
MAX_DRIFT = 1.15  # ratio of gemm rates before and after a run
PROC, SYS = Path("/proc"), Path("/sys")

# Single-precision FLOP per cycle and core, by CPU flags
SIMD: tuple[tuple[frozenset[str], Range], ...] = (
    (frozenset({"avx512f"}), (32, 64)),  # one or two 512-bit FMA units
    (frozenset({"avx2", "fma"}), (32, 32)),
    (frozenset({"avx"}), (16, 16)),
    (frozenset({"sse2"}), (8, 8)),
    (frozenset({"sve"}), (16, 32)),
    (frozenset({"asimd"}), (8, 32)),
)
# ... and by family and model where the flags do not decide. Intel servers have two 512-bit units, laptops one (as fast as AVX2's
# two 256-bit units); Zen 1 has half of AVX2's width, Zen 4 needs two cycles for 512 bits, Zen 5 servers one.
TWO_UNITS = {85, 106, 108, 143, 207, 173, 174}  # Skylake-SP to Granite Rapids
ARM = {0xD03: 8, 0xD08: 8, 0xD0B: 16, 0xD0C: 16, 0xD40: 32, 0xD49: 16, 0xD4F: 32}  # A53 A72 A76 N1 V1 N2 V2


def read_text(path: Path) -> str:
    """Return a file's text, or "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processors(text: str) -> list[dict[str, str]]:
    """Parse /proc/cpuinfo into one dict per logical processor."""
    blocks = [dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", block, re.MULTILINE)) for block in text.split("\n\n")]
    return [block for block in blocks if "processor" in block]


def usable_cores(cpus: list[dict[str, str]], affinity: set[int], quota: float | None) -> tuple[int, int]:
    """Return (physical cores, hardware threads) available to this process, given its affinity and its cgroup's quota."""
    mine = [cpu for cpu in cpus if int(cpu["processor"]) in affinity] or cpus
    threads = len(mine) or len(affinity)
    ids = {(cpu.get("physical id", "0"), cpu.get("core id", cpu["processor"])) for cpu in mine}
    cores = len(ids) or threads
    if quota is not None:
        cores, threads = (max(1, min(n, int(quota))) for n in (cores, threads))
    return cores, threads


def flop_per_cycle(cpu: Mapping[str, str]) -> Range | None:
    """Return single-precision FLOP per cycle and core as a range; None if the flags do not tell."""
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    by_flags = next((span for needed, span in SIMD if needed <= flags), None)
    vendor, family, model = cpu.get("vendor_id", ""), int(cpu.get("cpu family", 0)), int(cpu.get("model", -1))
    if vendor == "AuthenticAMD" and by_flags:
        if family == 23 and model < 0x31:
            return 16, 16
        return by_flags if family >= 26 else (min(by_flags[0], 32), min(by_flags[1], 32))
    if vendor == "GenuineIntel" and by_flags and "avx512f" in flags:
        return (64, 64) if model in TWO_UNITS else (32, 32) if model > 120 else by_flags
    part = ARM.get(int(cpu.get("CPU part", "0"), 16))
    return (part, part) if part else by_flags


def clock(cpus: list[dict[str, str]], sys: Path = SYS) -> Range | None:
    """Return the lowest and highest clock in GHz that the machine reports: base, current and maximum."""
    clocks = [float(cpu["cpu MHz"]) / 1e3 for cpu in cpus if "cpu MHz" in cpu]
    for name in ("base_frequency", "cpuinfo_max_freq"):
        kilohertz = read_text(sys / "devices/system/cpu/cpu0/cpufreq" / name).strip()
        clocks += [int(kilohertz) / 1e6] if kilohertz.isdecimal() else []
    clocks += [float(ghz) for cpu in cpus[:1] for ghz in re.findall(r"@ ([\d.]+)GHz", cpu.get("model name", ""))]
    return (round(min(clocks), 3), round(max(clocks), 3)) if clocks else None


def steal_share(before: str, after: str) -> float:
    """Return the share of steal time between two readings of /proc/stat."""
    a, b = ([int(n) for n in text.split("\n")[0].split()[1:9]] or [0] * 8 for text in (before, after))
    total = sum(b) - sum(a)
    return (b[7] - a[7]) / total if total > 0 and len(a) == 8 else 0.0


def throttle_count(sys: Path = SYS) -> int:
    """Return how many thermal throttling events the cores have had since boot."""
    counts = [
        read_text(path).strip() for path in sys.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    ]
    return sum(int(count) for count in counts if count.isdecimal())


def describe() -> dict[str, object]:
    """Return the fields of this CPU's "machine" record that need no measurement (see `records`)."""
    cpus = processors(read_text(PROC / "cpuinfo"))
    cores, threads = usable_cores(cpus, affinity(), cpu_quota())
    first = cpus[0] if cpus else {}
    cycle, ghz = flop_per_cycle(first), clock(cpus)
    peak = [round(cores * c * g, 1) for c, g in zip(cycle, ghz, strict=True)] if cycle and ghz else None
    return {
        "device": processor(),
        "kind": "cpu",
        "cores": cores,
        "threads": threads,
        "clock_ghz": ghz,
        "flop_per_cycle": cycle,
        "peak_gflops": {"fp32": peak} if peak else {},
        "peak_source": "cores x clock x FLOP per cycle"
        if peak
        else "unknown: this system does not report SIMD flags and clock",
        "virtual": "hypervisor" in first.get("flags", "").split(),
        "memory_gib": round((memory_bytes() or 0) / 2**30, 1),
    }


def caveats(
    machine: Mapping[str, object],
    load: float,
    steal: float = 0.0,
    throttled: int = 0,
    gemm: float | None = None,
    again: float | None = None,
) -> list[str]:
    """Return what makes this machine's measurements less reliable.

    load: one-minute average before the run; steal: share of time; throttled: events during the run; gemm and again:
    GFLOP/s before and after the run.
    """
    lines = []
    if machine.get("virtual"):
        lines.append("virtual machine: cores may be hardware threads, and the reported clock is not the actual one")
    if load > 0.25 * int(str(machine.get("threads", 1))):
        lines.append(f"busy: load {load:.2f} on {machine.get('threads')} hardware threads before the run")
    if steal > 0.01:
        lines.append(f"{steal:.0%} steal time: other guests used the same host")
    if throttled:
        lines.append(f"thermal throttling: {throttled} events during the run")
    peak = machine.get("peak_gflops")
    if gemm and again and not 1 / MAX_DRIFT < again / gemm < MAX_DRIFT:
        lines.append(f"unstable: gemm reached {gemm:.0f} GFLOP/s before the run and {again:.0f} after it")
    best = max(gemm or 0.0, again or 0.0)
    if isinstance(peak, dict) and peak.get("fp32") and best > peak["fp32"][1]:
        lines.append(f"gemm reached {best:.0f} GFLOP/s, more than the derived peak: the actual clock is higher")
    return lines


def gemm(n: int, seconds: float = 2.0, min_calls: int = 5) -> float:
    """Multiply two n x n float32 matrices on the CPU; return the median GFLOP/s after three warm-up calls."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in "ab")
    out = np.empty_like(a)
    measure(lambda: np.dot(a, b, out=out), min_calls=3)
    return 2 * n**3 / quantiles(measure(lambda: np.dot(a, b, out=out), seconds, min_calls).wall).median / 1e9


def copy_rate(mib: int = 128, seconds: float = 1.0) -> float:
    """Copy an array larger than the caches; return the median GB/s, bytes read plus bytes written."""
    a = np.ones(mib << 18, np.float32)
    b = np.empty_like(a)
    measure(lambda: np.copyto(b, a), min_calls=2)
    return 2 * a.nbytes / quantiles(measure(lambda: np.copyto(b, a), seconds, 5).wall).median / 1e9
