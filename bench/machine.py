"""Describe the machine: a peak in single precision worked out from /proc, what its gemm and copies really reach, and doubts.

    peak = cores this process may use x clock x FLOP per cycle        (SIMD width x 2 for FMA x FMA units)

Nothing of it is certain, a virtual machine hides cores and clocks, so the peak is a range. What is measured stands beside it.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .timing import measure, spread

Range = tuple[float, float]
STEADY = 1.15  # gemm before and after a run, as a ratio
PROC, SYS = Path("/proc"), Path("/sys")

# FLOP per cycle and core in single precision, by what the CPU's flags promise
SIMD: tuple[tuple[frozenset[str], Range], ...] = (
    (frozenset({"avx512f"}), (32, 64)),  # one or two 512-bit FMA units
    (frozenset({"avx2", "fma"}), (32, 32)),
    (frozenset({"avx"}), (16, 16)),
    (frozenset({"sse2"}), (8, 8)),
    (frozenset({"sve"}), (16, 32)),
    (frozenset({"asimd"}), (8, 32)),
)
# ... and by family and model where the flags leave it open. Intel's servers have two 512-bit units, its laptops one (AVX2's
# two 256-bit units do as much); Zen 1 has half of AVX2's width, Zen 4 takes two cycles for 512 bits, Zen 5 servers one.
TWO_UNITS = {85, 106, 108, 143, 207, 173, 174}  # Skylake-SP to Granite Rapids
ARM = {0xD03: 8, 0xD08: 8, 0xD0B: 16, 0xD0C: 16, 0xD40: 32, 0xD49: 16, 0xD4F: 32}  # A53 A72 A76 N1 V1 N2 V2


def read(path: Path) -> str:
    """Return a file's text, or nothing where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processors(text: str) -> list[dict[str, str]]:
    """Read /proc/cpuinfo: one record a logical processor."""
    blocks = [dict(re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", block, re.MULTILINE)) for block in text.split("\n\n")]
    return [block for block in blocks if "processor" in block]


def usable_cores(cpus: list[dict[str, str]], affinity: set[int], quota: float | None) -> tuple[int, int]:
    """Return (physical cores, hardware threads) that this process may use: by affinity, and by the quota of its cgroup."""
    mine = [cpu for cpu in cpus if int(cpu["processor"]) in affinity] or cpus
    threads = len(mine) or len(affinity)
    places = {(cpu.get("physical id", "0"), cpu.get("core id", cpu["processor"])) for cpu in mine}
    cores = len(places) or threads
    if quota is not None:
        cores, threads = (max(1, min(n, int(quota))) for n in (cores, threads))
    return cores, threads


def quota(text: str) -> float | None:
    """Read cgroup's cpu.max, "microseconds period" or "max period": processors this group may use, None if not limited."""
    words = text.split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdecimal() else None


def flop_per_cycle(cpu: Mapping[str, str]) -> Range | None:
    """Return single-precision FLOP per cycle and core, as a range; None if the flags say nothing."""
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    found = next((span for needed, span in SIMD if needed <= flags), None)
    vendor, family, model = cpu.get("vendor_id", ""), int(cpu.get("cpu family", 0)), int(cpu.get("model", -1))
    if vendor == "AuthenticAMD" and found:
        if family == 23 and model < 0x31:
            return 16, 16
        return found if family >= 26 else (min(found[0], 32), min(found[1], 32))
    if vendor == "GenuineIntel" and found and "avx512f" in flags:
        return (64, 64) if model in TWO_UNITS else (32, 32) if model > 120 else found
    part = ARM.get(int(cpu.get("CPU part", "0"), 16))
    return (part, part) if part else found


def clock(cpus: list[dict[str, str]], sys: Path = SYS) -> Range | None:
    """Return the slowest and fastest clock in GHz that the machine admits to: base, present and highest."""
    found = [float(cpu["cpu MHz"]) / 1e3 for cpu in cpus if "cpu MHz" in cpu]
    for name in ("base_frequency", "cpuinfo_max_freq"):
        kilohertz = read(sys / "devices/system/cpu/cpu0/cpufreq" / name).strip()
        found += [int(kilohertz) / 1e6] if kilohertz.isdecimal() else []
    found += [float(ghz) for cpu in cpus[:1] for ghz in re.findall(r"@ ([\d.]+)GHz", cpu.get("model name", ""))]
    return (round(min(found), 3), round(max(found), 3)) if found else None


def stolen(before: str, after: str) -> float:
    """Return the share of time that the hypervisor gave to others, between two readings of /proc/stat."""
    a, b = ([int(n) for n in text.split("\n")[0].split()[1:9]] or [0] * 8 for text in (before, after))
    total = sum(b) - sum(a)
    return (b[7] - a[7]) / total if total > 0 and len(a) == 8 else 0.0


def throttles(sys: Path = SYS) -> int:
    """Return how often a core has slowed down for heat since the machine started."""
    counts = [read(path).strip() for path in sys.glob("devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")]
    return sum(int(count) for count in counts if count.isdecimal())


def affinity() -> set[int]:
    """Return the processors that this process may run on."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def describe() -> dict[str, object]:
    """Describe this CPU as the fields of a "machine" record that need no measurement (see `records`)."""
    cpus = processors(read(PROC / "cpuinfo"))
    cores, threads = usable_cores(cpus, affinity(), quota(read(SYS / "fs/cgroup/cpu.max")))
    first = cpus[0] if cpus else {}
    name = first.get("model name") or platform.processor() or platform.machine()
    cycle, ghz = flop_per_cycle(first), clock(cpus)
    peak = [round(cores * c * g, 1) for c, g in zip(cycle, ghz, strict=True)] if cycle and ghz else None
    return {
        "device": " ".join(name.split()),
        "kind": "cpu",
        "cores": cores,
        "threads": threads,
        "clock_ghz": ghz,
        "flop_per_cycle": cycle,
        "peak_gflops": {"fp32": peak} if peak else {},
        "peak_source": "cores x clock x FLOP per cycle"
        if peak
        else "unknown: neither SIMD flags nor clock are shown here",
        "virtual": "hypervisor" in first.get("flags", "").split(),
        "memory_gib": round(memory() / 2**30, 1),
    }


def memory() -> int:
    """Return bytes of memory, 0 where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def doubts(
    machine: Mapping[str, object],
    load: float,
    steal: float = 0.0,
    throttled: int = 0,
    gemm: float | None = None,
    again: float | None = None,
) -> list[str]:
    """Say what makes this machine's numbers less certain.

    load: of one minute, before the run; steal: share of time; throttled: events during the run; gemm and again:
    GFLOP/s before and after the run.
    """
    found = []
    if machine.get("virtual"):
        found.append("virtual machine: cores may be hardware threads, and the clock shown is not the clock run")
    if load > 0.25 * int(str(machine.get("threads", 1))):
        found.append(
            f"busy: {load:.2f} processes were running on {machine.get('threads')} hardware threads before the run"
        )
    if steal > 0.01:
        found.append(f"{steal:.0%} of the time went to other guests of the same host (steal)")
    if throttled:
        found.append(f"throttled: cores slowed down for heat {throttled} times during the run")
    peak = machine.get("peak_gflops")
    if gemm and again and not 1 / STEADY < again / gemm < STEADY:
        found.append(f"its speed changed: gemm reached {gemm:.0f} GFLOP/s before the run and {again:.0f} after it")
    best = max(gemm or 0.0, again or 0.0)
    if isinstance(peak, dict) and peak.get("fp32") and best > peak["fp32"][1]:
        found.append(
            f"gemm reached {best:.0f} GFLOP/s, more than the peak that was worked out: the true clock is higher"
        )
    return found


def gemm(n: int, seconds: float = 2.0, fewest: int = 5) -> float:
    """Multiply two float32 matrices n x n on the CPU; return the median GFLOP/s after three warm-ups."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in "ab")
    out = np.empty_like(a)
    measure(lambda: np.dot(a, b, out=out), fewest=3)
    return 2 * n**3 / spread(measure(lambda: np.dot(a, b, out=out), seconds, fewest).wall).median / 1e9


def copy_rate(mib: int = 128, seconds: float = 1.0) -> float:
    """Copy an array too large for caches; return the median GB/s, bytes read plus bytes written."""
    a = np.ones(mib << 18, np.float32)
    b = np.empty_like(a)
    measure(lambda: np.copyto(b, a), fewest=2)
    return 2 * a.nbytes / spread(measure(lambda: np.copyto(b, a), seconds, 5).wall).median / 1e9
