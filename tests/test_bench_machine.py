"""The machine model: cores, clock and SIMD width from /proc of known machines, and caveats of measurements."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from gpudarknet.bench import gpu, machine

CPU = """\
processor\t: {n}
vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: {name}
cpu MHz\t\t: {mhz}
physical id\t: 0
core id\t\t: {core}
flags\t\t: fpu sse2 {flags}
"""


def cpuinfo(threads, per_core=1, **values):
    values = {
        "vendor": "GenuineIntel",
        "family": 6,
        "model": 158,
        "name": "A CPU @ 4.20GHz",
        "mhz": 3900.0,
        "flags": "avx avx2 fma",
    } | values
    return machine.processors("\n".join(CPU.format(n=n, core=n // per_core, **values) for n in range(threads)))


def test_cores_are_counted_once_regardless_of_hardware_threads():
    cpus = cpuinfo(8, per_core=2)
    assert machine.usable_cores(cpus, set(range(8)), None) == (4, 8)
    assert machine.usable_cores(cpus, {0, 1, 2}, None) == (2, 3)  # one core, and one hardware thread of another
    assert machine.usable_cores(cpus, set(range(8)), 3.5) == (3, 3)  # the cgroup's quota
    assert machine.usable_cores(cpus, set(range(8)), 0.5) == (1, 1)
    assert machine.usable_cores([], {0, 1}, None) == (2, 2)  # no /proc


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({}, (32, 32)),  # i7-7700K: AVX2 with FMA
        ({"flags": "avx"}, (16, 16)),
        ({"flags": ""}, (8, 8)),
        ({"flags": "avx avx2 fma avx512f", "model": 106}, (64, 64)),  # Ice Lake server
        ({"flags": "avx avx2 fma avx512f", "model": 140}, (32, 32)),  # Tiger Lake
        ({"flags": "avx avx2 fma avx512f", "model": 87}, (32, 64)),  # not in the table: a range
        ({"vendor": "AuthenticAMD", "family": 23, "model": 1}, (16, 16)),  # Zen 1
        ({"vendor": "AuthenticAMD", "family": 23, "model": 49}, (32, 32)),  # Zen 2
        ({"vendor": "AuthenticAMD", "family": 25, "model": 17, "flags": "avx avx2 fma avx512f"}, (32, 32)),  # Zen 4
        ({"vendor": "AuthenticAMD", "family": 26, "model": 2, "flags": "avx avx2 fma avx512f"}, (32, 64)),  # Zen 5
    ],
)
def test_flop_per_cycle(values, want):
    assert machine.flop_per_cycle(cpuinfo(1, **values)[0]) == want


@pytest.mark.parametrize(
    ("part", "want"), [("0xd08", (8, 8)), ("0xd0c", (16, 16)), ("0xd40", (32, 32)), ("0x123", (8, 32))]
)
def test_flop_per_cycle_of_arm(part, want):
    assert machine.flop_per_cycle({"processor": "0", "Features": "fp asimd", "CPU part": part}) == want


def test_the_clock_range_is_from_current_to_maximum(tmp_path):
    assert machine.clock(cpuinfo(2), tmp_path) == (3.9, 4.2)
    folder = tmp_path / "devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    (folder / "cpuinfo_max_freq").write_text("4500000\n")
    assert machine.clock(cpuinfo(2), tmp_path) == (3.9, 4.5)
    assert machine.clock([], tmp_path / "none") is None


def test_steal_is_the_share_between_two_readings():
    assert machine.steal_share("cpu 100 0 0 100 0 0 0 10 0 0\n", "cpu 150 0 0 130 0 0 0 30 0 0\n") == pytest.approx(0.2)
    assert machine.steal_share("", "") == 0


def test_caveats_are_virtual_busy_steal_throttling_and_a_low_peak():
    own = {"virtual": True, "threads": 2, "peak_gflops": {"fp32": [100.0, 120.0]}}
    assert machine.caveats(own, 0.4) == [
        "virtual machine: cores may be hardware threads, and the reported clock is not the actual one"
    ]
    assert machine.caveats(own | {"virtual": False}, 1.5, 0.03, 7, 130.0) == [
        "busy: load 1.50 on 2 hardware threads before the run",
        "3% steal time: other guests used the same host",
        "thermal throttling: 7 events during the run",
        "gemm reached 130 GFLOP/s, more than the derived peak: the actual clock is higher",
    ]


def test_an_unstable_speed_is_a_caveat():
    own = {"threads": 2, "peak_gflops": {"fp32": [100.0, 120.0]}}
    assert machine.caveats(own, 0.0, gemm=80.0, again=85.0) == []
    assert machine.caveats(own, 0.0, gemm=80.0, again=40.0) == [
        "unstable: gemm reached 80 GFLOP/s before the run and 40 after it"
    ]


def test_this_machine_is_described():
    cpu = machine.describe()
    assert cpu["device"] and cpu["kind"] == "cpu"
    assert 1 <= cpu["cores"] <= cpu["threads"]
    assert machine.gemm(64, seconds=0, min_calls=1) > 0
    assert machine.copy_rate(1, seconds=0) > 0


def test_a_gpu_is_measured_with_cupy(monkeypatch):
    synchronized = []
    device = SimpleNamespace(synchronize=lambda: synchronized.append(True))
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    fake = SimpleNamespace(
        **{name: getattr(np, name) for name in ("random", "empty_like", "ones", "matmul", "copyto")},
        cuda=SimpleNamespace(Device=lambda: device), get_default_memory_pool=lambda: pool,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cupy", fake)
    measured = gpu.measure_rates(n=32, mib=1, seconds=0)
    assert set(measured["gemm_gflops"]) == {"fp32", "fp16"}
    assert measured["copy_gb_s"] > 0
    assert len(synchronized) == 3 * (3 + 10)  # every call is synchronized


def test_gpu_peaks_match_the_data_sheet():
    h100 = {
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "name": b"NVIDIA H100 80GB HBM3",
        "totalGlobalMem": 80 << 30,
    }
    described = gpu.describe(h100, 1_980_000)
    assert described["peak_gflops"]["fp32"] == pytest.approx([66_900] * 2, rel=1e-3)
    assert gpu.peaks(h100, 1_830_000)["fp16"] == pytest.approx([990_000] * 2, rel=3e-3)  # the clock of its fp16 figure
    assert gpu.describe(h100 | {"major": 99}, 1_980_000)["peak_source"].startswith("unknown")
