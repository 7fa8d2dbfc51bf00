"""Facts about this machine and this process's share of it: cores, memory, processor, NumPy's BLAS. Nothing is measured."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

CGROUPS = Path("/sys/fs/cgroup")
# Instructions for fast matrix products -> their flags in /proc/cpuinfo, on x86 and Arm.
FEATURES = {
    "AMX BF16": {"amx_bf16"},
    "AMX INT8": {"amx_int8"},
    "AVX-512 BF16": {"avx512_bf16"},
    "AVX-512 VNNI": {"avx512_vnni"},
    "AVX-512": {"avx512f"},
    "AVX-VNNI": {"avx_vnni"},
    "AVX2": {"avx2"},
    "AVX": {"avx"},
    "SVE": {"sve"},
    "BF16": {"bf16"},
    "Neon": {"asimd", "neon"},
}


def affinity() -> set[int]:
    """Return the logical processors that this process may run on."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu_quota(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return how many processors the quotas of this process's cgroup and of its ancestors allow; None if unlimited.

    Containers set quotas. cgroup v2 stores them in cpu.max, v1 in cpu.cfs_quota_us and cpu.cfs_period_us.
    """
    quotas = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = cgroups / controllers
        folder = top / path.lstrip("/")  # in a container it may not exist: its own cgroup is mounted as the top one
        while folder.is_relative_to(top):
            words = _read(folder / "cpu.max").split() or [
                *_read(folder / "cpu.cfs_quota_us").split(),
                *_read(folder / "cpu.cfs_period_us").split(),
            ]
            if len(words) == 2 and words[0].isdecimal():  # not "max", not -1
                quotas.append(int(words[0]) / int(words[1]))
            folder = folder.parent
    return min(quotas, default=None)


def available_cores() -> tuple[int, str]:
    """Return how many logical processors this process may keep busy, and which limit decides: "affinity" or "cgroup quota"."""
    cores, quota = len(affinity()), cpu_quota()
    return (cores, "affinity") if quota is None or quota >= cores else (max(1, int(quota)), "cgroup quota")


def memory_bytes() -> int | None:
    """Return the bytes of physical memory; None if unknown."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


@cache
def processor() -> str:
    """Return the processor's name."""
    match = re.search(r"^model name\s*:\s*(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return " ".join((match[1] if match else platform.processor() or platform.machine()).split())


@cache
def cpu_features() -> list[str]:
    """Return which of `FEATURES` the processor has, fastest first; empty where the system does not list them in /proc/cpuinfo."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return [name for name, known in FEATURES.items() if flags & known]


@cache
def numpy_blas() -> tuple[str, str]:
    """Return the name and version of the BLAS that NumPy was built with, as far as NumPy knows them.

    A distribution's NumPy may load another library in its place; `backend/blas.py` finds it.
    """
    config: Any = np.show_config(mode="dicts")
    found = config.get("Build Dependencies", {}).get("blas", {}) if isinstance(config, dict) else {}
    return (str(found["name"]), str(found.get("version", ""))) if found.get("found") else ("none", "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def gpus() -> list[str]:
    """Return the names of the NVIDIA GPUs, from the driver itself, so that CuPy is not needed."""
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
            return []
    except (OSError, AttributeError):  # no driver, or another library of that name
        return []
    names = []
    for k in range(count.value):
        failed = driver.cuDeviceGet(ctypes.byref(device), k) or driver.cuDeviceGetName(name, len(name), device)
        names.append("NVIDIA GPU" if failed else name.value.decode(errors="replace"))
    return names
