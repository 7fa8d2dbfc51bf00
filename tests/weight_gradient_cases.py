"""Gradients of convolutions' kernels: what kernels/weight_gradient*.cu should compute, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nhwc_maps import Maps

from gpudarknet.plan.cuda.training.convolution import Window
from gpudarknet.plan.cuda.training.weight_gradient import (
    TENSOR_TILES,
    TILES,
    WeightGradient,
    columns,
    weight_gradient,
)
from gpudarknet.plan.cuda.view import View
from gpudarknet.plan.cuda.weights import round_to_tf32


@dataclass(frozen=True)
class Case:
    """A convolution of x (N, C, H, W) to F filters. place: where in wider maps x and dz are (nhwc_maps)."""

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
    def window(self) -> Window:
        return Window(self.size, self.strides, self.dilation, self.pad)

    @property
    def output_size(self) -> tuple[int, int]:
        reach = (self.size - 1) * self.dilation + 1
        (sy, sx), pad = self.strides, 2 * self.pad
        return (self.H + pad - reach) // sy + 1, (self.W + pad - reach) // sx + 1


def maps(case: Case, be, dtype) -> tuple[Maps, Maps, View, View]:
    """Return dz and x, whose numbers TF32 can hold, and views of them."""
    rng = np.random.default_rng(5)
    OH, OW = case.output_size
    dz = Maps(be, case.N * OH * OW, case.F, case.place, dtype, rng)
    x = Maps(be, case.N * case.H * case.W, case.C, case.place, dtype, rng)
    for m in (dz, x):
        host = be.to_numpy(m.whole).copy()
        host[m.part] = round_to_tf32(host[m.part].astype(np.float16).astype(np.float32))
        m.whole[...] = be.asarray(host)
        m.values = host[m.part].astype(np.float64)
    views = (
        View(m.a, (m.C, *size), m.ld, len(m.values), m.start) for m, size in ((dz, (OH, OW)), (x, (case.H, case.W)))
    )
    return dz, x, *views


def expected(case: Case, dz: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return dw (F, C/groups, size, size) in float64, and the sums of magnitudes, to which errors are compared."""
    (OH, OW), (sy, sx), C, F = case.output_size, case.strides, case.C // case.groups, case.F // case.groups
    dz, x = dz.reshape(case.N, OH, OW, case.F), x.reshape(case.N, case.H, case.W, case.C)
    margin = case.pad + sy * OH + sx * OW
    padded = np.pad(x, ((0, 0), (case.pad, margin), (case.pad, margin), (0, 0)))
    dw, size = (np.zeros((case.F, C, case.size, case.size)) for _ in range(2))
    for g in range(case.groups):
        d = dz[..., g * F : (g + 1) * F]
        for p in range(case.size):
            for q in range(case.size):
                h, w = p * case.dilation, q * case.dilation
                window = padded[:, h : h + sy * OH : sy, w : w + sx * OW : sx, g * C : (g + 1) * C]
                dw[g * F : (g + 1) * F, :, p, q] = np.einsum("nhwf,nhwc->fc", d, window)
                size[g * F : (g + 1) * F, :, p, q] = np.einsum("nhwf,nhwc->fc", abs(d), abs(window))
    return dw, size


def run(
    case: Case, be, dtype, kernel: str, splits: int = 1, accumulate: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a kernel, twice, which must not change the result; return it, what is expected, and magnitudes."""
    dz, x, dz_view, x_view = maps(case, be, dtype)
    N = columns(kernel, x_view, case.size, case.groups)
    chosen = WeightGradient(kernel, splits, TILES[kernel].count(case.F // case.groups, N) * case.groups)
    before = (
        np.random.default_rng(6).normal(0, 1, (case.F, case.C // case.groups, case.size, case.size)).astype(np.float32)
    )
    partial, counters = be.empty((chosen.partial,)), be.zeros((chosen.counters,), np.int32)
    results = []
    for _ in range(2):
        dw = be.asarray(before.copy()) if accumulate else be.empty(before.shape)
        call = weight_gradient(chosen, dz_view, x_view, dw, case.window, case.groups, partial, counters, accumulate)
        call.run(be.launch)
        results.append(be.to_numpy(dw))
        assert not be.to_numpy(counters).any(), "a counter is not cleared"
    assert np.array_equal(*results, equal_nan=True), "two runs differ"
    dw, size = expected(case, dz.values, x.values)
    return results[0], dw + before * accumulate, size


def check(case: Case, be, dtype, kernel: str, splits: int = 1, accumulate: bool = False) -> None:
    """Compare with float64: float32 sums of that many products, which are exact on tensor cores."""
    got, want, size = run(case, be, dtype, kernel, splits, accumulate)
    wrong = ~(abs(got - want) <= 2.0**-19 * (size + 1))
    assert not wrong.any(), (
        f"{kernel}: {wrong.sum()} of {wrong.size} differ, the first at (f, c, p, q) = {np.argwhere(wrong)[0]}"
    )


def suits(case: Case, kernel: str) -> bool:
    """Return whether a kernel supports a case for both storage types."""
    aligned = case.place != "odd part" and (case.place == "even part" or case.C % 8 == case.F % 8 == 0)
    return kernel not in TENSOR_TILES or (
        aligned and (case.groups == 1 or case.C // case.groups % 8 == case.F // case.groups % 8 == 0)
    )
