"""The machine code of kernels that use tensor cores: what their main loops consist of, and how many blocks run at a time."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import sass
from sass import Kernel

from gpudarknet.plan.cuda.tiles import TILES
from gpudarknet.plan.cuda.training.data_gradient import PHASE_TILES
from gpudarknet.plan.cuda.training.weight_gradient import TENSOR_TILES

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E R2, desc[UR4][R2.64] ;
.L_x_2:
        /*0020*/                   LDSM.16.M88.4 R76, [R113+UR5] ;
        /*0030*/              @!P0 BRA `(.L_x_3) ;
        /*0040*/                   HMMA.16816.F32 R100, R76.reuse, R72, R12 ;
.L_x_3:
        /*0050*/               @P1 BRA `(.L_x_2) ;
        /*0060*/               @P2 BRA `(.L_x_1) ;
.L_x_4:
        /*0070*/                   BRA `(.L_x_4);
"""


def test_the_main_loop_is_the_innermost_that_multiplies():
    assert sass.main_loop(CODE) == Counter({"LDSM": 1, "HMMA": 1, "BRA": 2})
    assert sass.main_loop(CODE.replace("HMMA", "FFMA")) == Counter()


@pytest.mark.parametrize(
    ("registers", "static", "architecture", "threads", "dynamic", "blocks"),
    [
        (32, 0, 80, 256, 0, 8),  # threads
        (32, 0, 75, 256, 0, 4),
        (32, 0, 80, 32, 0, 32),  # blocks
        (128, 0, 80, 256, 0, 2),  # registers
        (129, 0, 80, 256, 0, 1),  # ... which a warp gets 256 at a time
        (254, 0, 90, 128, 0, 2),
        (32, 1024, 80, 128, 80 << 10, 2),  # shared memory: 2 x 82 KiB
        (32, 1025, 80, 128, 80 << 10, 1),
        (32, 0, 75, 128, 32 << 10, 2),  # none is reserved
    ],
)
def test_blocks_of_a_multiprocessor(registers, static, architecture, threads, dynamic, blocks):
    assert Kernel(Counter(), registers, 0, static).blocks(architecture, threads, dynamic) == blocks


@pytest.mark.parametrize(
    ("T", "architecture"),
    [
        ("half_t", 90),
        *(pytest.param(T, a, marks=pytest.mark.slow) for T in ("float", "half_t") for a in (80, 90, 120)),
    ],
)
def test_main_loops_of_the_implicit_gemm(T, architecture):
    if missing := sass.why_not():
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    kernels = sass.kernels("implicit_gemm", T, architecture)
    for name, tile in TILES.items():
        kernel = kernels[f"implicit_gemm_{name}"]
        step = tile.warp_M * tile.warp_N * 64  # bytes of K in a buffer's row; an mma reads 32 of 16 rows and 8 columns
        assert kernel.loop["HMMA"] == step // (16 * 8 * 32), name
        assert kernel.loop["LDSM"] == 64 // 32 * (tile.warp_M + tile.warp_N) // 16, name
        assert kernel.loop["LDGSTS"] == (tile.M + tile.N) * 4 // tile.threads, name
        assert kernel.loop["BAR"] == 1 and kernel.loop["LDL"] == kernel.loop["STL"] == kernel.local == 0, name
        assert kernel.blocks(architecture, tile.threads, tile.shared_bytes) >= (1 if name == "256x128" else 2), name


@pytest.mark.parametrize(
    ("T", "architecture"),
    [
        ("half_t", 90),
        *(pytest.param(T, a, marks=pytest.mark.slow) for T in ("float", "half_t") for a in (80, 90, 120)),
    ],
)
@pytest.mark.parametrize("tiles", [TENSOR_TILES, PHASE_TILES], ids=["weight_gradient", "data_gradient"])
def test_main_loops_of_gradients(tiles, T, architecture):
    if missing := sass.why_not():
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    for name, tile in tiles.items():
        file, _, kernel_name = name.partition(".")
        kernel = sass.kernels(file, T, architecture)[kernel_name]
        assert kernel.loop["HMMA"] == tile.warp_M * tile.warp_N * 64 // (16 * 8 * 32), name
        if (file, T) != ("weight_gradient", "float"):  # ldmatrix transposes elements of 16 bits only
            assert kernel.loop["LDSM"] == 64 // 32 * (tile.warp_M + tile.warp_N) // 16, name
        assert kernel.loop["LDGSTS"] == (tile.M + tile.N) * 4 // tile.threads, name
        assert kernel.loop["BAR"] == 1 and kernel.loop["LDL"] == kernel.loop["STL"] == kernel.local == 0, name
        assert kernel.blocks(architecture, tile.threads, tile.shared_bytes) >= (1 if architecture == 120 else 2), name
