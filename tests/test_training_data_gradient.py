"""The gradient of a convolution's input, with weights that pack_weights.cu packs; and planted faults."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import host_cuda
import numpy as np
import pytest
from backends import Poisoned, backend_for
from host_cuda import KernelError
from nhwc_maps import Maps

from gpudarknet.backend import cuda
from gpudarknet.plan.cuda.tiles import H100, TILES
from gpudarknet.plan.cuda.training import data_gradient, pack_weights
from gpudarknet.plan.cuda.training.convolution import Window, product
from gpudarknet.plan.cuda.view import View
from gpudarknet.plan.cuda.weights import round_to_tf32

DTYPES = [np.float32, np.float16]


@dataclass(frozen=True)
class Case:
    """A convolution of x (N, C, H, W) to F filters; place: where in wider maps dx and dz are (nhwc_maps)."""

    N: int = 2
    C: int = 16
    H: int = 7
    W: int = 9
    F: int = 24
    size: int = 3
    strides: tuple[int, int] = (1, 1)
    dilation: int = 1
    pad: int = 1
    groups: int = 1
    place: str = "even part"

    @property
    def output_size(self) -> tuple[int, int]:
        reach = (self.size - 1) * self.dilation + 1
        (sy, sx), pad = self.strides, 2 * self.pad
        return (self.H + pad - reach) // sy + 1, (self.W + pad - reach) // sx + 1


SHAPES = {
    "1 x 1": Case(C=72, F=40, size=1, pad=0, place="whole"),
    "3 x 3": Case(),
    "channels and filters end within 16 bytes": Case(C=13, F=21),
    "dilation": Case(H=9, W=11, dilation=3, pad=3),
    "5 x 5, no padding": Case(C=8, H=9, W=8, F=16, size=5, pad=0),
    "wide padding": Case(C=8, pad=2),
    "padding beyond the kernel": Case(C=8, size=1, pad=1),
    "groups": Case(C=32, F=48, groups=2, place="whole"),
    "one pixel": Case(N=3, C=8, H=1, W=1, size=1, pad=0),
}
STRIDED = {
    "3 x 3": Case(N=3, H=9, W=8, strides=(2, 2)),
    "1 x 1": Case(H=9, W=8, size=1, pad=0, strides=(2, 2)),
    "unequal": Case(H=9, W=8, strides=(1, 3)),
    "7 x 7": Case(C=8, H=14, W=11, size=7, pad=3, strides=(2, 2)),
    "2 x 2": Case(size=2, pad=0, strides=(2, 2), H=8, W=6),
    "rows that no window reaches": Case(size=2, pad=0, strides=(3, 4), H=9, W=11),
    "dilation 2": Case(H=11, W=12, dilation=2, pad=2, strides=(2, 2)),
    "dilation 3": Case(H=11, W=12, dilation=3, pad=3, strides=(2, 4)),
    "channels and filters end within 16 bytes": Case(C=13, F=21, strides=(2, 2)),
    "groups": Case(C=32, F=48, groups=2, place="whole", strides=(2, 2)),
    "several tiles": Case(N=2, C=136, H=20, W=18, F=16, strides=(2, 2)),
    "no stride": Case(C=24, F=40),
    "one pixel": Case(N=3, C=8, H=1, W=1, strides=(2, 2)),
}  # fmt: skip

UNALIGNED = {
    "odd parts": Case(C=5, F=7, place="odd part"),
    "odd parts, stride 2": Case(C=13, F=21, H=9, W=8, strides=(2, 2), place="odd part"),
    "depthwise": Case(C=6, F=6, groups=6, strides=(2, 2), place="whole"),
    "groups of 3 and 5": Case(C=6, F=10, groups=2, place="whole"),
}


def expected(case: Case, dz: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """dx (N, H, W, C) in float64: each dz is added, times a tap, where its window read."""
    (OH, OW), (sy, sx), C, F = case.output_size, case.strides, case.C // case.groups, case.F // case.groups
    dz = dz.reshape(case.N, OH, OW, case.F)
    margin = case.pad + sy * OH + sx * OW + case.size * case.dilation
    dx = np.zeros((case.N, case.H + 2 * margin, case.W + 2 * margin, case.C))
    for g in range(case.groups):
        for p in range(case.size):
            for q in range(case.size):
                h, w = margin - case.pad + p * case.dilation, margin - case.pad + q * case.dilation
                part = np.einsum("nhwf,fc->nhwc", dz[..., g * F : (g + 1) * F], kernel[g * F : (g + 1) * F, :, p, q])
                dx[:, h : h + sy * OH : sy, w : w + sx * OW : sx, g * C : (g + 1) * C] += part
    return dx[:, margin : margin + case.H, margin : margin + case.W]


def check(case: Case, be, dtype, name: str, splits: int = 1, accumulate: bool = False) -> None:
    """Run the kernel of a tile, or of that name for strides, on packed weights; compare with float64."""
    rng = np.random.default_rng(2)
    OH, OW = case.output_size
    drawn = rng.normal(0, 0.2, (case.F, case.C // case.groups, case.size, case.size))
    kernel = round_to_tf32(drawn.astype(np.float16).astype(np.float32))
    by_phases = name in data_gradient.TILES
    packing = pack_weights.pack_gradient(0, 0, case.F, case.C, case.size, case.groups, rotated=not by_phases)
    packings, blocks = pack_weights.descriptors([packing])
    packed = be.empty((packing.size,), dtype)
    flat = be.asarray(kernel.reshape(-1))
    pack_weights.pack_weights(flat, packed, be.asarray(packings), blocks, "tf32").run(be.launch)

    dz = Maps(be, case.N * OH * OW, case.F, case.place, dtype, rng)
    dx = Maps(be, case.N * case.H * case.W, case.C, case.place, dtype, rng if accumulate else None)
    dz.whole[...] = be.asarray(round_to_tf32(be.to_numpy(dz.whole).astype(np.float16).astype(np.float32)).astype(dtype))
    values = be.to_numpy(dz.whole)[dz.part].astype(np.float64)
    maps = (
        View(m.a, (m.C, *size), m.ld, len(m.values), m.start) for m, size in ((dz, (OH, OW)), (dx, (case.H, case.W)))
    )
    window = Window(case.size, case.strides, case.dilation, case.pad)
    dz_view, dx_view = maps
    supported = data_gradient.supports_tensor_cores(dz_view, dx_view, case.groups, accumulate)
    assert supported or name in data_gradient.FMA_TILES
    if by_phases:
        call = data_gradient.data_gradient_by_phases(name, dz_view, packed, dx_view, window, case.groups, accumulate)
    else:
        tile = TILES[name]
        tiles = product(dz_view, dx_view, data_gradient.rotated(window), case.groups).tiles(tile)
        partial, counters = be.empty((splits * tiles * tile.M * tile.N,)), be.zeros((tiles,), np.int32)
        call = data_gradient.data_gradient(
            dz_view, packed, dx_view, window, case.groups, tile, splits, partial, counters, accumulate
        )
    call.run(be.launch)
    want = expected(case, values, kernel.astype(np.float64)).reshape(-1, case.C) + (dx.values if accumulate else 0)
    size = expected(case, abs(values), abs(kernel.astype(np.float64))).reshape(-1, case.C)
    rounding = 2.0**-11 if dtype == np.float16 else 2.0**-22
    wrong = ~(abs(dx.result() - want) <= 1.01 * rounding * abs(want) + 2.0**-18 * (size + 1))
    assert not wrong.any(), f"{name}: {wrong.sum()} of {wrong.size} differ, the first at {np.argwhere(wrong)[0]}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_without_strides_it_is_a_convolution(name, dtype):
    for tile in ("128x32", "64x64"):
        if TILES[tile].ragged or SHAPES[name].F // SHAPES[name].groups % 8 == 0:
            for accumulate in (False, True):
                check(SHAPES[name], backend_for("host-cuda"), dtype, tile, accumulate=accumulate)


def test_splits():
    check(Case(C=72, F=136), backend_for("host-cuda"), np.float16, "64x64", splits=4, accumulate=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STRIDED)
def test_strides(name, dtype):
    for k, kernel in enumerate(data_gradient.TILES):
        check(STRIDED[name], backend_for("host-cuda"), dtype, kernel, accumulate=k % 2 == 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", UNALIGNED)
def test_maps_that_are_not_aligned(name, dtype):
    for k, kernel in enumerate(data_gradient.FMA_TILES):
        check(UNALIGNED[name], backend_for("host-cuda"), dtype, kernel, accumulate=k == 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_launches(kernels, dtype):
    check(SHAPES["3 x 3"], kernels, dtype, "64x64", accumulate=True)
    check(STRIDED["3 x 3"], kernels, dtype, "data_gradient.data_gradient_128x64", accumulate=True)
    check(STRIDED["3 x 3"], kernels, dtype, "data_gradient_fma.data_gradient_fma_64x64", accumulate=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_kernels_are_packed_in_one_launch(kernels, dtype):
    rng = np.random.default_rng(4)
    layers = [(24, 16, 3, 1), (21, 13, 3, 1), (32, 16, 1, 2), (8, 72, 5, 1), (6, 6, 3, 6)]  # F, C, size, groups
    weights = [rng.normal(0, 1, (F, C // groups, size, size)).astype(np.float32) for F, C, size, groups in layers]
    packings, source, target, want = [], 3, 8, []  # other weights are between them
    for w, (F, C, size, groups) in zip(weights, layers, strict=True):
        forward = pack_weights.pack_forward(source, target, F, C, size, groups)
        target += forward.size + 8
        packings += [forward, pack_weights.pack_gradient(source, target, F, C, size, groups, True)]
        target += packings[-1].size + 8
        rows = w.reshape(groups, F // groups, C // groups, size * size)
        want += [rows.transpose(0, 1, 3, 2).reshape(F, size * size, -1),
                 rows[..., ::-1].transpose(0, 2, 3, 1).reshape(C, size * size, -1)]  # fmt: skip
        source += w.size + 3
    flat = np.full(source, 1e4, np.float32)
    for w, packing in zip(weights, packings[::2], strict=True):
        flat[packing.source : packing.source + w.size] = w.reshape(-1)
    packed, (rows, blocks) = kernels.asarray(np.full(target, 7, dtype)), pack_weights.descriptors(packings)
    call = pack_weights.pack_weights(kernels.asarray(flat), packed, kernels.asarray(rows), blocks, "fp16")
    call.run(kernels.launch)
    got = kernels.to_numpy(packed).copy()
    for packing, array in zip(packings, want, strict=True):
        own = np.s_[packing.target : packing.target + packing.size]
        padded = np.zeros((packing.rows, packing.taps, packing.padded), dtype)
        padded[..., : packing.inner] = array
        np.testing.assert_array_equal(got[own].reshape(padded.shape), padded)
        got[own] = 7
    assert (got == 7).all(), "it writes between them"


def test_tiles_are_those_of_the_kernels():
    text = (cuda.folder() / "data_gradient.cu").read_text()
    found = re.findall(r"__launch_bounds__\((\d+)(?:, \d)?\) (\w+)\(PARAMETERS\) { DATA_GRADIENT\((.*)\); }", text)
    assert {f"data_gradient.{name}": (int(threads), sizes) for threads, name, sizes in found} == {
        name: (tile.threads, f"{tile.M}, {tile.N}, {tile.warp_M}, {tile.warp_N}, {tile.stages}")
        for name, tile in data_gradient.PHASE_TILES.items()
    }
    text = (cuda.folder() / "data_gradient_fma.cu").read_text()
    found = re.findall(r"__launch_bounds__\((\d+)(?:, \d)?\) (\w+)\(PARAMETERS\) { DATA_GRADIENT\((.*)\); }", text)
    assert {f"data_gradient_fma.{name}": (int(threads), sizes) for threads, name, sizes in found} == {
        name: (fma.threads, f"{fma.M}, {fma.N}, {fma.side}, {fma.side}")
        for name, fma in data_gradient.FMA_TILES.items()
    }


@pytest.mark.parametrize(
    ("C", "H", "tensor_cores", "name"),
    [
        (256, 104, True, "128x128"),
        (64, 104, True, "128x64"),
        (256, 13, True, "64x64"),
        (256, 104, False, "fma_128x128"),
    ],
)
def test_choices(C, H, tensor_cores, name):
    dx = View(np.empty(8, np.float16), (C, H, H), C, 8 * H * H, 0)
    assert data_gradient.choose_by_phases(dx, 1, H100, tensor_cores).endswith(f"data_gradient_{name}")


# --- planted faults ------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A piece of the source, what replaces it, and the case whose result it changes."""

    right: str
    wrong: str
    case: Case = STRIDED["3 x 3"]
    kernel: str = "data_gradient.data_gradient_64x64"


FMA = "data_gradient_fma.data_gradient_fma_64x64"
FAULTS = {
    "no barrier": Fault("__syncthreads();  // all have copied this buffer, and multiplied", "//"),
    "phases from another row": Fault("(phase + stride - pad % stride) % stride", "phase"),
    "a phase's taps from another": Fault("p * dilation % stride == phase", "p % stride == phase", STRIDED["dilation 3"]),
    "neighboring taps": Fault("a.apart = a.step * dilation / stride", "a.apart = dilation", STRIDED["dilation 2"]),
    "rows beyond the border": Fault("(unsigned)(h[i] - dh) < (unsigned)OH && ", "", STRIDED["several tiles"]),
    "columns exchanged": Fault("first + q * across.step;", "first + p * across.step;"),
    "phases that follow each other": Fault("across.start + m % across.count * sx", "across.start + m % across.count"),
    "tiles of the first phase": Fault("tile -= tiles;", ""),
    "filters of the next tap": Fault("if (++q == across.taps)", "if (++q > across.taps)"),
    "groups alike": Fault("+ part.group * F;", ";", STRIDED["groups"]),
    "a result that is not added": Fault("accumulate ? ADD : NONE", "NONE"),
    "FMA: no barrier": Fault("__syncthreads();  // all have multiplied this", "//", kernel=FMA),
    "FMA: taps of the next row": Fault("if (++q == across.taps) q = 0, p++;", "if (++q == across.taps) p++;", kernel=FMA),
    "FMA: filters beyond the last": Fault("exists = f < F &&", "exists =", UNALIGNED["groups of 3 and 5"], FMA),
    "FMA: channels of the next row": Fault("if (n < N) to[n]", "to[n]", UNALIGNED["odd parts"], FMA),
    "weights of another row": Fault("i * Tile::ROWS < channels", "true", STRIDED["channels and filters end within 16 bytes"]),
}  # fmt: skip
QUICK = ("no barrier", "rows beyond the border", "tiles of the first phase")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_faults_are_caught(name):
    fault = FAULTS[name]
    backend_for("host-cuda")  # skips, or fails in CI, where there is no compiler

    def edit(text: str) -> str:
        if "data_gradient" not in text:
            return text
        assert text.count(fault.right) == 1, f"{text.count(fault.right)} times in the kernels: {fault.right}"
        return text.replace(fault.right, fault.wrong)

    planted = Poisoned("host-cuda", np, host_cuda.launcher(edit))
    with pytest.raises((AssertionError, KernelError)) as caught:
        check(fault.case, planted, np.float16, fault.kernel, accumulate=True)
    assert "in the kernels" not in str(caught.value), caught.value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", data_gradient.PHASE_TILES)
def test_shared_memory_is_accessed_without_bank_conflicts(kernel, dtype):
    with host_cuda.counting() as done:
        check(STRIDED["several tiles"], backend_for("host-cuda"), dtype, kernel)
    assert done["mma"] and done["ldmatrix"] and done["cp.async"]
    assert done["ldmatrix bank conflicts"] == done["cp.async bank conflicts"] == 0
