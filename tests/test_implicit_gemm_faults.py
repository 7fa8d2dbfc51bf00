"""The tests of the implicit GEMM can fail: mistakes are planted into its kernels, and each is caught."""

from __future__ import annotations

from typing import NamedTuple

import host_cuda
import numpy as np
import pytest
from backends import Poisoned, backend_for, plan_backend
from fake_cublas import FakeCublas
from host_cuda import KernelError
from implicit_gemm_cases import Case, check

from gpudarknet.plan.cuda.tiles import TILES

CASE = Case(C=40, H=9, W=9, F=72)  # several tiles, a border, more steps than buffers
CHANNELS = Case(C=13, H=8, W=9, F=21)  # that end within 16 bytes, other channels follow
SPLITS = "implicit_gemm_64x64_splitk4"
SPLIT = Case(C=136, H=9, W=9, F=72)
POOLED = Case(C=16, H=8, W=12, F=24, pooled=True)
IMAGE = Case(C=3, H=14, W=10, F=72, size=7, pad=3, strides=(2, 2))  # several steps


class Fault(NamedTuple):
    """A piece of the source, what replaces it, and the convolution whose result it changes."""

    right: str
    wrong: str
    case: Case = CASE
    algorithm: str = "implicit_gemm_64x64"


FAULTS = {
    "no barrier before a buffer is multiplied": Fault(
        "__syncthreads();  // all have copied this buffer, and multiplied the one that is filled next", ""
    ),
    "no barrier before buffers become the epilogue's": Fault("__syncthreads();  // all buffers are read", ""),
    "a wait for one buffer too few": Fault("cp_async_wait<Tile::STAGES - 2>", "cp_async_wait<Tile::STAGES - 1>"),
    "no wait": Fault("cp_async_wait<Tile::STAGES - 2>();", ""),
    "a group without its copies": Fault(
        "loader.load(buffers + write);\n        cp_async_commit();", "cp_async_commit(), loader.load(buffers + write);"
    ),
    "one buffer too few": Fault(
        "constexpr int END = Tile::STAGES * Tile::BUFFER;", "constexpr int END = (Tile::STAGES - 1) * Tile::BUFFER;"
    ),
    "more shared memory than its launch asks for": Fault("BUFFER = (BM + BN) * ROW_BYTES", "BUFFER = (BM + BN + 16) * ROW_BYTES"),
    "pixels read without the swizzle": Fault(
        "return swizzle(warp_m + lane % 16, lane / 16);",
        "return (warp_m + lane % 16) * ROW_BYTES + lane / 16 * 16;",
    ),
    "filters read without the swizzle": Fault(
        "return swizzle(Tile::BM + warp_n + lane / 16 * 8 + lane % 8, lane / 8 % 2);",
        "return (Tile::BM + warp_n + lane / 16 * 8 + lane % 8) * ROW_BYTES + lane / 8 % 2 * 16;",
    ),
    "rows of pixels exchanged": Fault("swizzle(warp_m + lane % 16, lane / 16)", "swizzle(warp_m + (lane ^ 8) % 16, lane / 16)"),
    "chunks of filters exchanged": Fault("lane / 8 % 2);", "lane / 8 % 2 ^ 1);"),
    "the second half of a buffer's row twice": Fault("buffer + (a_offset ^ k)", "buffer + (a_offset ^ 32)"),
    "pixels beyond the border": Fault(
        "return (unsigned)h < (unsigned)H && (unsigned)w < (unsigned)W;", "return (unsigned)h < (unsigned)H;"
    ),
    "rows beyond the border": Fault(
        "return (unsigned)h < (unsigned)H && (unsigned)w < (unsigned)W;", "return (unsigned)w < (unsigned)W;"
    ),
    "pixels that do not exist": Fault("if (m >= M) {", "if (false) {"),
    "filters that do not exist": Fault("exists = tap && i * Tile::ROWS < filters", "exists = tap"),
    "taps that do not exist": Fault("bool tap = p < g.size;", "bool tap = true;"),
    "channels of other maps": Fault("max(min(C - c, VECTOR), 0) * (int)sizeof(T)", "16", CHANNELS),
    "a pixel too many stored": Fault("if (m * s >= M || n >= N) continue;", "if (n >= N) continue;"),
    "a filter too many stored": Fault("if (n + k < N) y[k] = v[k];", "y[k] = v[k];", CHANNELS),
    "a vector across the last filter": Fault("result.vectorized && n + VECTOR <= N", "result.vectorized", CHANNELS),
    "no barrier of warps in the epilogue": Fault("__syncwarp();\n#pragma unroll 1", "\n#pragma unroll 1"),
    "a fragment's rows exchanged": Fault("*(float2 *)(at + 8 * LD)", "*(float2 *)(at + 4 * LD)"),
    "another pixel of a pool": Fault("w = (pixel % across * s + i % 2)", "w = (pixel % across * s + i / 2)", POOLED),
    "a pool of three": Fault("for (int tap = 1; tap < s; tap++)", "for (int tap = 1; tap < s - 1; tap++)", POOLED),
    "splits that overlap": Fault(
        "end = steps * (part.split + 1) / splits", "end = steps * (part.split + 1) / splits + 1", SPLIT, SPLITS
    ),
    "the last block but one adds up the splits": Fault("== blocks - 1;", "== blocks - 2;", SPLIT, SPLITS),
    "no barrier before blocks ask which is last": Fault(
        "__syncthreads();\n    if (!last) return false;", "if (!last) return false;", SPLIT, SPLITS
    ),
    "a counter that is not cleared": Fault(
        "if (threadIdx.x == 0) *arrived = 0;", "", SPLIT, SPLITS
    ),
    "splits of another tile": Fault("+ part.tile * SIZE +", "+", SPLIT, SPLITS),
    "an image's buffer filled too early": Fault(
        "__syncthreads();  // all have multiplied the last buffer", "", IMAGE, "image_gemm"
    ),
    "an image's weights without their wait": Fault(
        "cp_async_wait<0>();\n        __syncthreads();", "__syncthreads();", IMAGE, "image_gemm"
    ),
}  # fmt: skip


def planted(fault: Fault):
    """Return a backend for plans whose kernels have a fault."""
    backend_for("host-cuda")  # skips, or fails in CI, where there is no compiler

    def edit(text: str) -> str:
        if "implicit_gemm" not in text:
            return text
        assert text.count(fault.right) == 1, f"{text.count(fault.right)} times in the kernels: {fault.right}"
        return text.replace(fault.right, fault.wrong)

    return Poisoned(
        "host-cuda", np, host_cuda.launcher(edit), FakeCublas().open, "cuda"
    )  # with its own stream and counters


@pytest.fixture(autouse=True)
def any_tile(monkeypatch):
    """Allow tiles that the convolution does not fill, and short splits."""
    monkeypatch.setattr("gpudarknet.plan.cuda.tiles.MIN_STEPS", 1)
    monkeypatch.setattr("gpudarknet.plan.cuda.tiles.MIN_COLUMNS", 0)


QUICK = (
    "no barrier before a buffer is multiplied", "a wait for one buffer too few", "one buffer too few",
    "pixels read without the swizzle", "rows of pixels exchanged", "pixels beyond the border",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_faults_are_caught(name):
    fault = FAULTS[name]
    with pytest.raises((AssertionError, KernelError)) as caught:
        check(fault.case, "fp16", fault.algorithm, planted(fault))
    assert "in the kernels" not in str(caught.value), caught.value


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
@pytest.mark.parametrize("tile", TILES)
def test_shared_memory_is_accessed_without_bank_conflicts(tile, precision):
    with host_cuda.counting() as done:
        check(CASE, precision, f"implicit_gemm_{tile}", plan_backend())
    assert done["mma"] and done["ldmatrix"] and done["cp.async"]
    assert done["ldmatrix bank conflicts"] == done["cp.async bank conflicts"] == 0


def test_images_are_multiplied_without_bank_conflicts():
    with host_cuda.counting() as done:
        check(IMAGE, "fp16", "image_gemm", plan_backend())
    assert done["ldmatrix"] and done["ldmatrix bank conflicts"] == done["cp.async bank conflicts"] == 0


@pytest.mark.parametrize("wrong", ["row * ROW_BYTES + j * 16", "row * ROW_BYTES + (j ^ (row % CHUNKS)) * 16"])
def test_another_swizzle_is_caught_by_its_bank_conflicts(wrong):
    """The results are right."""
    fault = Fault("row * ROW_BYTES + (j ^ (row / 2 % CHUNKS)) * 16", wrong)
    with host_cuda.counting() as done:
        check(fault.case, "fp16", fault.algorithm, planted(fault))
    assert done["ldmatrix bank conflicts"] >= done["ldmatrix"] * 4


@pytest.mark.parametrize(("precision", "itemsize"), [("fp16", 2), ("tf32", 4)])
def test_a_tile_reads_each_sector_once(precision, itemsize):
    """64 pixels and 64 filters of 64 channels; every store fills its sectors."""
    with host_cuda.counting() as done:
        check(Case(C=64, H=8, W=8, F=64, size=1, pad=0), precision, "implicit_gemm_64x64", plan_backend())
    kernel, sectors, runs = "implicit_gemm_64x64", 64 * 64 * itemsize // 32, 2  # `check` runs it twice
    assert done[f"cp.async sectors of {kernel}"] == 2 * sectors * runs
    assert done[f"store sectors of {kernel}"] == sectors * runs
