"""Describe a GPU as `machine` describes a CPU: peaks from its properties, measured gemm and copy rates, by precision.

CuPy is imported inside the functions that run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .timing import measure, quantiles

# Multiply-adds per cycle and SM, dense, with float32 accumulation: CUDA cores, TF32 and fp16 tensor cores, by compute capability
# (low, high): if two chips of one capability differ, desktop cards have the low value.
Units = tuple[int, int]
UNITS: dict[tuple[int, int], dict[str, Units]] = {
    (6, 0): {"fp32": (64, 64)},
    (6, 1): {"fp32": (128, 128)},
    (7, 0): {"fp32": (64, 64), "fp16": (512, 512)},
    (7, 5): {"fp32": (64, 64), "fp16": (256, 512)},
    (8, 0): {"fp32": (64, 64), "tf32": (512, 512), "fp16": (1024, 1024)},
    (8, 6): {"fp32": (128, 128), "tf32": (128, 256), "fp16": (256, 512)},
    (8, 9): {"fp32": (128, 128), "tf32": (128, 256), "fp16": (256, 512)},
    (9, 0): {"fp32": (128, 128), "tf32": (1024, 1024), "fp16": (2048, 2048)},
}


def peaks(properties: Mapping[str, Any], khz: int) -> dict[str, list[float]]:
    """Return the peak in GFLOPS for each precision as [low, high]: SMs x highest clock x multiply-adds x 2.

    properties: what `cupy.cuda.runtime.getDeviceProperties` returns; khz: the clock, which CUDA 13 removed from
    them. Unknown architectures and clocks have no peak.
    """
    units = UNITS.get((properties["major"], properties["minor"]), {}) if khz else {}
    per_unit = properties["multiProcessorCount"] * khz / 1e6 * 2
    return {kind: [round(per_unit * n, 1) for n in span] for kind, span in units.items()}


def describe(properties: Mapping[str, Any], khz: int) -> dict[str, object]:
    """Return the fields of a "machine" record that need no measurement."""
    name, peak_gflops = properties["name"], peaks(properties, khz)
    return {
        "device": name.decode() if isinstance(name, bytes) else name,
        "kind": "gpu",
        "cores": properties["multiProcessorCount"],
        "clock_ghz": [round(khz / 1e6, 3)] * 2,
        "peak_gflops": peak_gflops,
        "peak_source": "SMs x highest clock x units"
        if peak_gflops
        else "unknown: this architecture is not in the table, or its clock is not reported",
        "memory_gib": round(properties["totalGlobalMem"] / 2**30, 1),
    }


def measure_rates(n: int = 8192, mib: int = 1024, seconds: float = 1.0) -> dict[str, object]:
    """Measure this device: n x n gemm in fp32 and fp16 in GFLOP/s, copy rate in GB/s (read plus written)."""
    import cupy

    synchronize = cupy.cuda.Device().synchronize

    def rate(call: Any, work: float) -> float:
        def synchronized() -> None:
            call()
            synchronize()

        measure(synchronized, min_calls=3)
        return round(work / quantiles(measure(synchronized, seconds, 10).wall).median / 1e9, 1)

    gemm = {}
    for kind, dtype in (("fp32", "float32"), ("fp16", "float16")):
        a, b = (cupy.random.default_rng(1).random((n, n), dtype="float32").astype(dtype) for _ in "ab")
        out = cupy.empty_like(a)
        gemm[kind] = rate(lambda a=a, b=b, out=out: cupy.matmul(a, b, out=out), 2 * n**3)
        del a, b, out
    x = cupy.ones(mib << 18, "float32")
    y = cupy.empty_like(x)
    copy = rate(lambda x=x, y=y: cupy.copyto(y, x), 2 * x.nbytes)
    del x, y
    cupy.get_default_memory_pool().free_all_blocks()  # the networks run in other processes and need the memory
    return {"gemm_gflops": gemm, "copy_gb_s": copy}
