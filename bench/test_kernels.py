"""Benchmark each op at the sizes of real networks: its NumPy/CuPy reference and, on a GPU, its CUDA kernel.

    python -m pytest bench/test_kernels.py                               # everything
    python -m pytest bench/test_kernels.py -k "shortcut or reorg" --benchmark-columns=median,ops

The last table has GB/s (arrays read and written once), also relative to a copy on the same device. Ops that are not in CASES
run on the inputs of their tests, at the size of a feature map in the middle of YOLOv3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpudarknet import backend
from gpudarknet.backend import Backend
from gpudarknet.ops.base import OPS

from .timing import measure, quantiles

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))
import op_cases

MIDDLE = (1, 256, 26, 26)


def maps(*shape: int) -> np.ndarray:
    """Return a feature map (N, C, H, W) of normal values."""
    return np.random.default_rng(3).standard_normal(shape, np.float32)


@dataclass(frozen=True)
class Case:
    """An op and the layer that its size comes from; `args` makes its arguments."""

    op: str
    where: str
    args: Callable[[], tuple[Any, ...]]

    def __str__(self) -> str:
        return f"{self.op}-{self.where}"


CASES = [
    Case("im2col.im2col", "yolov3 3x3 26x26", lambda: (maps(1, 256, 26, 26), 3, (1, 1), 1, 1, 26, 26)),
    Case("im2col.im2col", "yolov3 first layer", lambda: (maps(1, 3, 416, 416), 3, (1, 1), 1, 1, 416, 416)),
    Case("activation.activate", "leaky yolov3 layer 0", lambda: (maps(1, 32, 416, 416), "leaky")),
    Case("activation.activate", "mish yolov4 layer 0", lambda: (maps(1, 32, 416, 416), "mish")),
    Case("activation.activate", "swish yolov7", lambda: (maps(1, 64, 160, 160), "swish")),
    Case("norm.batch_norm", "yolov3 layer 1", lambda: (maps(1, 64, 208, 208), *(np.full(64, 0.5, np.float32) for _ in "mvsb"))),
    Case("pool.maxpool", "yolov3-tiny layer 1", lambda: (maps(1, 16, 416, 416), 2, (2, 2), 1, 208, 208)),
    Case("pool.maxpool", "yolov4 spatial pyramid 13", lambda: (maps(1, 512, 13, 13), 13, (1, 1), 12, 13, 13)),
    Case("pool.avgpool", "resnet50", lambda: (maps(1, 2048, 8, 8),)),
    Case("reorg.space_to_depth", "yolov2 passthrough", lambda: (maps(1, 16, 52, 52), 2)),
    Case("route.concat", "yolov3 layer 86", lambda: ([maps(1, 256, 26, 26), maps(1, 512, 26, 26)], 1, 0)),
    Case("shortcut.shortcut", "yolov3 layer 8", lambda: ([maps(1, 128, 104, 104), maps(1, 128, 104, 104)], None)),
    Case("shortcut.sort_shortcut", "yolov3-sort layer 8", lambda: (maps(1, 128, 104, 104), maps(1, 128, 104, 104), 1e-4, 0.0)),
    Case("shortcut.sort_shortcut_backward", "yolov3-sort layer 8", lambda: (*(maps(1, 128, 104, 104) for _ in "yab"), 1e-4, 0.0)),
    Case("upsample.upsample", "yolov3 layer 85", lambda: (maps(1, 256, 13, 13), 2, 1.0)),
    Case("yolo.yolo_activate", "yolov3 layer 106", lambda: (maps(1, 255, 52, 52), 3, 1.0, 0)),
    Case("yolo.region_activate", "yolov2-voc head", lambda: (maps(1, 125, 13, 13), 5, 4)),
]  # fmt: skip


def remaining_ops() -> Iterator[Case]:
    """Yield a case for every op that has a kernel and is not in CASES."""
    named = {case.op for case in CASES}
    for case in op_cases.CASES:
        if case.op.name not in named and case.op.cuda is not None:
            named.add(case.op.name)
            yield Case(case.op.name, "26x26", partial(case_arguments, case.make, case.variant))


def case_arguments(make: Callable[..., tuple[Any, ...]], variant: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a test's arguments at size MIDDLE, with float32 arrays."""
    args = make(np.random.default_rng(3), *MIDDLE, *variant)
    return op_cases.each(args, lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a)


def variants() -> list[tuple[str, Backend]]:
    """Return the variants available here: the reference on NumPy, and on a GPU the reference and the kernel."""
    available = [("reference, CPU", Backend("numpy", np))]
    if backend.why_no_cupy() is None:
        gpu = backend.get("cupy")
        available += [("reference, GPU", Backend("cupy", gpu.xp)), ("kernel, GPU", gpu)]
    return available


VARIANTS = dict(variants())


def synchronize(be: Backend) -> None:
    """Wait for the device."""
    if be.name == "cupy":
        be.xp.cuda.Device().synchronize()


@cache
def copy_rate(name: str) -> float:
    """Return GB/s of a 64 MiB copy on a backend, read plus written."""
    be = VARIANTS[name]
    a = be.xp.ones(1 << 24, np.float32)
    b = be.xp.empty_like(a)

    def copy() -> None:
        be.xp.copyto(b, a)
        synchronize(be)

    measure(copy, min_calls=2)
    return 2 * a.nbytes / quantiles(measure(copy, 0.2, 5).wall).median / 1e9


def size(*values: Any) -> int:
    """Return the bytes of all arrays in nested tuples and lists."""
    return sum(a.nbytes if hasattr(a, "nbytes") else size(*a) if isinstance(a, (tuple, list)) else 0 for a in values)


@pytest.mark.benchmark(max_time=0.2, min_rounds=5, warmup=True, warmup_iterations=2)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", [*CASES, *remaining_ops()], ids=str)
def test_kernel(case: Case, variant: str, benchmark: Any) -> None:
    """Time an op."""
    be, op = VARIANTS[variant], OPS[case.op]
    args = op_cases.each(case.args(), be.asarray)
    result = op(be, *args)

    def call() -> None:
        op(be, *args)
        synchronize(be)

    benchmark.group = str(case)
    benchmark(call)
    seconds = benchmark.stats.stats.median if benchmark.stats else float("inf")  # None with --benchmark-disable
    rate = (size(*args) + size(result)) / seconds / 1e9
    benchmark.extra_info |= {"GB/s": round(rate, 2), "of a copy": round(rate / copy_rate(variant), 3)}
