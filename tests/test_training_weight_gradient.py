"""The gradient of a convolution's kernel, by every kernel for it: shapes, splits, rules; and planted faults."""

from __future__ import annotations

import re
from typing import NamedTuple

import host_cuda
import numpy as np
import pytest
from backends import Poisoned, backend_for
from host_cuda import KernelError
from weight_gradient_cases import Case, check, maps, run, suits

from gpudarknet.backend import cuda
from gpudarknet.plan.cuda.tiles import H100, DeviceProperties
from gpudarknet.plan.cuda.training.weight_gradient import FMA_TILES, TENSOR_TILES, TILES, choose

DTYPES = [np.float32, np.float16]
SHAPES = {
    "1 x 1": Case(C=72, F=136, size=1, pad=0, place="whole"),
    "3 x 3": Case(),
    "filters and channels end within 16 bytes": Case(C=13, F=21),
    "unaligned maps": Case(C=3, F=5, H=12, place="odd part"),
    "whole maps of 3 channels": Case(C=3, F=32, H=11, W=8, place="whole"),
    "stride 2": Case(N=3, H=9, W=8, strides=(2, 2)),
    "unequal strides": Case(H=9, W=8, strides=(1, 3)),
    "dilation": Case(H=9, W=11, dilation=3, pad=3),
    "5 x 5, no padding": Case(C=8, H=9, W=8, F=9, size=5, pad=0),
    "wide padding": Case(C=8, pad=2),
    "even kernel": Case(size=2, pad=0, strides=(2, 2), H=8, W=6),
    "groups": Case(C=48, F=32, groups=2, place="whole"),
    "one channel per group": Case(C=6, F=12, groups=6, place="whole"),
    "one pixel per image": Case(N=37, C=40, H=1, W=1, F=72, size=1, pad=0),
    "a column of pixels": Case(N=5, H=23, W=1),
    "few pixels": Case(N=1, H=3, W=3, C=64),
}  # fmt: skip
SPLIT = Case(N=3, C=24, H=19, W=17, F=72)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, dtype):
    for kernel in TILES:
        if suits(SHAPES[name], kernel):
            check(SHAPES[name], backend_for("host-cuda"), dtype, kernel)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", TILES)
def test_launches(kernels, kernel, dtype):
    check(SHAPES["3 x 3"], kernels, dtype, kernel, splits=3, accumulate=True)


@pytest.mark.parametrize("splits", [2, 8, 9, 30])
@pytest.mark.parametrize("kernel", TILES)
def test_splits(kernel, splits):
    for dtype, accumulate in zip(DTYPES, (False, True), strict=True):
        check(SPLIT, backend_for("host-cuda"), dtype, kernel, splits, accumulate)


@pytest.mark.parametrize(
    "kernel", ["weight_gradient.weight_gradient_64x64", "weight_gradient_fma.weight_gradient_fma_32x32"]
)
def test_more_splits_than_steps_and_three_levels(kernel):
    check(Case(N=1, F=8, C=8, size=1, pad=0), backend_for("host-cuda"), np.float32, kernel, splits=70)


def test_float32_products_are_not_rounded():
    """2^-12 of a product is lost on tensor cores, not in the other kernels."""
    case, be = Case(size=1, pad=0, place="whole"), backend_for("host-cuda")
    dz, x, dz_view, x_view = maps(case, be, np.float32)
    assert x_view.a.dtype == np.float32
    kernel = "weight_gradient_fma.weight_gradient_fma_32x32"
    got, want, size = run(case, be, np.float32, kernel)
    assert (abs(got - want) <= 2.0**-21 * size).all()


def test_splits_are_added_in_a_fixed_order():
    """Each sum of a split is rounded to float32: the result depends on the splits, and on nothing else."""
    be, kernel = backend_for("host-cuda"), "weight_gradient.weight_gradient_64x64"
    results = [run(SPLIT, be, np.float16, kernel, splits)[0] for splits in (12, 12, 13)]
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_tiles_are_those_of_the_kernels():
    text = "".join((cuda.folder() / f"{file}.cu").read_text() for file in ("weight_gradient", "weight_gradient_fma"))
    found = re.findall(r"__launch_bounds__\((\d+)(?:, \d)?\) (\w+)\(PARAMETERS\) { WEIGHT_GRADIENT\((.*)\); }", text)
    numbers = {
        kernel.partition(".")[2]: (str(tile.threads), [tile.M, tile.N, tile.warp_M, tile.warp_N, tile.stages])
        for kernel, tile in TENSOR_TILES.items()
    }
    for kernel, fma in FMA_TILES.items():
        numbers[kernel.partition(".")[2]] = str(fma.threads), [fma.M, fma.N, fma.side, fma.side]
    assert {name: (threads, [int(n) for n in sizes.split(",")]) for threads, name, sizes in found} == numbers


TURING = DeviceProperties("Tesla T4", 75, 40, 64 << 10)
CHOICES = [
    (Case(N=8, C=256, H=13, W=13, F=512), np.float16, "fp16", H100, "weight_gradient_128x128", 3),
    (Case(N=8, C=64, H=52, W=52, F=64), np.float16, "fp16", H100, "weight_gradient_64x128", 52),
    (Case(N=8, C=16, H=52, W=52, F=32), np.float16, "fp16", H100, "weight_gradient_64x64", 64),
    (Case(N=8, C=3, H=52, W=52, F=32, place="whole"), np.float16, "fp16", H100, "weight_gradient_fma_32x32", 64),
    (Case(N=8, C=256, H=13, W=13, F=512), np.float32, "fp32", H100, "weight_gradient_fma_128x128", 3),
    (Case(N=8, C=256, H=13, W=13, F=512), np.float32, "tf32", H100, "weight_gradient_128x128", 3),
    (Case(N=8, C=256, H=13, W=13, F=512), np.float32, "tf32", TURING, "weight_gradient_fma_128x128", 1),
    (Case(N=8, C=32, H=13, W=13, F=32, groups=32), np.float16, "fp16", H100, "weight_gradient_fma_32x32", 8),
]  # fmt: skip


@pytest.mark.parametrize(("case", "dtype", "precision", "device", "kernel", "splits"), CHOICES)
def test_choices(case, dtype, precision, device, kernel, splits):
    _, _, dz, x = maps(case, backend_for("numpy"), dtype)
    chosen = choose(dz, x, case.size, case.groups, device, precision)
    assert (chosen.kernel.partition(".")[2], chosen.splits) == (kernel, splits)
    assert chosen.tiles * chosen.splits <= max(2 * device.multiprocessors, chosen.tiles)


# --- planted faults ------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A piece of the source, what replaces it, and the case whose result it changes."""

    right: str
    wrong: str
    case: Case = SHAPES["3 x 3"]
    kernel: str = "weight_gradient.weight_gradient_64x64"
    splits: int = 1


FMA_CASE, FMA = SHAPES["3 x 3"], "weight_gradient_fma.weight_gradient_fma_32x32"
FAULTS = {
    "no barrier": Fault("__syncthreads();  // all have copied this buffer, and multiplied the one that is filled next", ""),
    "a wait for one buffer too few": Fault("cp_async_wait<Tile::STAGES - 2>", "cp_async_wait<Tile::STAGES - 1>"),
    "pixels beyond the border": Fault("image[i] < images && g.inside(h[i], w[i])", "image[i] < images"),
    "images beyond the last": Fault("image[i] < images && g.inside", "g.inside"),
    "dz beyond the last pixel": Fault("i * STEP_A < pixels ? a_bytes : 0", "a_bytes"),
    "rows that do not wrap": Fault("if (w[i] >= w_end)", "if (w[i] > w_end)"),
    "images that do not wrap": Fault("if (h[i] >= h_end)", "if (h[i] > h_end)"),
    "taps of another column": Fault("right = tap % g.size * g.dilation - g.pad;", "right = tap / g.size * g.dilation - g.pad;"),
    "columns beyond a tap's channels": Fault("|| c + r % 2 >= C", "", SHAPES["filters and channels end within 16 bytes"]),
    "matrices of A exchanged": Fault("across = b ? i / 2 : i % 2", "across = i / 2"),
    "matrices of B exchanged": Fault("down = b ? i % 2 : i / 2", "down = i / 2"),
    "a tile's columns of another warp": Fault("if (f >= F || tap >= taps", "if (tap >= taps"),
    "splits that overlap": Fault("(part.split + 1) / splits", "(part.split + 1) / splits + 1", SPLIT, splits=4),
    "splits of another tile": Fault("+ part.tile * SIZE +", "+", SPLIT, splits=4),
    "a result that is not added": Fault("accumulate ? *to + sums[i][j][r]", "accumulate ? sums[i][j][r]"),
    "one level of splits": Fault("step *= FAN_IN, arrived++", "step *= splits, arrived++", SPLIT, splits=9),
    "levels that share counters": Fault("step *= FAN_IN, arrived++", "step *= FAN_IN", SPLIT, splits=70),
    "the next group's leader": Fault("split & -step * FAN_IN", "split & -step * FAN_IN / 2", SPLIT, splits=9),
    "FMA: no barrier between buffers": Fault("__syncthreads();  // all have multiplied this", "//", FMA_CASE, FMA),
    "FMA: pixels that are not decoded": Fault("__syncthreads();  // the pixels of a step", "//", FMA_CASE, FMA),
    "FMA: the pixels of another step": Fault("decode(step + 2);", "decode(step + 1);", FMA_CASE, FMA),
    "FMA: pixels beyond the border": Fault("(unsigned)h < (unsigned)g.H && ", "", FMA_CASE, FMA),
    "FMA: a pixel too few": Fault("for (int k = 0; k < K; k++) {", "for (int k = 0; k < K - 1; k++) {", FMA_CASE, FMA),
    "FMA: groups alike": Fault("x += group * C +", "x +=", SHAPES["groups"], FMA),
}  # fmt: skip


def planted(fault: Fault):
    """Return a backend whose kernels have a fault."""
    backend_for("host-cuda")  # skips, or fails in CI, where there is no compiler

    def edit(text: str) -> str:
        assert text.count(fault.right) == 1, f"{text.count(fault.right)} times in the kernels: {fault.right}"
        return text.replace(fault.right, fault.wrong)

    return Poisoned("host-cuda", np, host_cuda.launcher(edit))


QUICK = (
    "no barrier",
    "pixels beyond the border",
    "rows that do not wrap",
    "matrices of A exchanged",
    "one level of splits",
)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_faults_are_caught(name):
    fault = FAULTS[name]
    with pytest.raises((AssertionError, KernelError)) as caught:
        check(fault.case, planted(fault), np.float16, fault.kernel, fault.splits, accumulate=True)
    assert "in the kernels" not in str(caught.value), caught.value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", TENSOR_TILES)
def test_shared_memory_is_accessed_without_bank_conflicts(kernel, dtype):
    with host_cuda.counting() as done:
        check(Case(C=136, F=136), backend_for("host-cuda"), dtype, kernel)
    assert done["mma"] and done["cp.async"] and done["ldmatrix"] == (0 if dtype == np.float32 else done["ldmatrix"])
    assert done["ldmatrix bank conflicts"] == done["cp.async bank conflicts"] == 0


def test_another_swizzle_is_caught_by_its_bank_conflicts():
    """The result is right."""
    fault = Fault("pixel % 8 : pixel % 4 * 2", "pixel / 8 : pixel % 4 * 2")
    with host_cuda.counting() as done:
        check(fault.case, planted(fault), np.float16, fault.kernel)
    assert done["ldmatrix bank conflicts"] >= done["ldmatrix"] * 4
