"""Gradients of depthwise convolutions, against loops over taps in float64; and planted faults."""

from __future__ import annotations

from typing import NamedTuple

import host_cuda
import numpy as np
import pytest
from backends import Poisoned, backend_for
from host_cuda import KernelError
from nhwc_maps import PLACES, Maps

from gpudarknet.plan.cuda.training import depthwise, pack_weights
from gpudarknet.plan.cuda.training.convolution import Window
from gpudarknet.plan.cuda.view import View

DTYPES = [np.float32, np.float16]
CASES = {  # N, H, W, C and the window
    "3 x 3": ((2, 7, 9, 8), Window(3, pad=1)),
    "stride 2": ((3, 9, 8, 16), Window(3, (2, 2), pad=1)),
    "unequal strides, dilation": ((2, 13, 11, 8), Window(3, (1, 2), 2, 2)),
    "5 x 5, no padding": ((2, 9, 7, 3), Window(5)),
    "several parts and chunks": ((3, 21, 19, 272), Window(2)),
    "33 channels": ((1, 4, 5, 33), Window(3, pad=1)),
}


def taps(x, window, OH, OW):
    """Yield p, q and the pixels (N, OH, OW, C) of padded x that the tap reads, which are a view."""
    (sy, sx), margin = (
        window.strides,
        window.pad + window.strides[0] * OH + window.strides[1] * OW + window.size * window.dilation,
    )
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    for p in range(window.size):
        for q in range(window.size):
            h, w = (margin - window.pad + k * window.dilation for k in (p, q))
            yield p, q, padded[:, h : h + sy * OH : sy, w : w + sx * OW : sx], padded, margin


def check(case, be, place, dtype, accumulate):
    (N, H, W, C), window = case
    reach = (window.size - 1) * window.dilation + 1
    OH, OW = ((n + 2 * window.pad - reach) // s + 1 for n, s in zip((H, W), window.strides, strict=True))
    rng = np.random.default_rng(1)
    dz, x, dx = (Maps(be, N * a * b, C, place, dtype, rng) for a, b in ((OH, OW), (H, W), (H, W)))
    dz_view, x_view, dx_view = (
        View(m.a, (C, a, b), m.ld, N * a * b, m.start) for m, (a, b) in ((dz, (OH, OW)), (x, (H, W)), (dx, (H, W)))
    )
    kernel = rng.normal(0, 1, (C, 1, window.size, window.size)).astype(np.float16).astype(np.float32)
    before = rng.normal(0, 1, kernel.shape).astype(np.float32)
    values, deltas = x.values.reshape(N, H, W, C), dz.values.reshape(N, OH, OW, C)

    dw = be.asarray(before.copy()) if accumulate else be.empty(before.shape)
    partial, arrived = be.empty(depthwise.partial_shape(dz_view, x_view, window)), be.zeros((9,), np.int32)
    call = depthwise.depthwise_weight_gradient(dz_view, x_view, dw, window, partial, arrived, accumulate)
    call.run(be.launch)
    assert not be.to_numpy(arrived).any()
    want, size = np.zeros(kernel.shape), np.zeros(kernel.shape)
    for p, q, tap, _, _ in taps(values, window, OH, OW):
        want[:, 0, p, q], size[:, 0, p, q] = (deltas * tap).sum((0, 1, 2)), abs(deltas * tap).sum((0, 1, 2))
    assert (abs(be.to_numpy(dw) - (want + before * accumulate)) <= 2.0**-19 * (size + 1)).all()

    packing = pack_weights.pack_depthwise(0, 0, C, window.size)
    packed, (rows, blocks) = be.empty((packing.size,), dtype), pack_weights.descriptors([packing])
    flat = be.asarray(kernel.reshape(-1))
    pack_weights.pack_weights(flat, packed, be.asarray(rows), blocks, "fp32").run(be.launch)
    call = depthwise.depthwise_data_gradient(dz_view, packed, dx_view, window, accumulate)
    call.run(be.launch)
    want, size = np.zeros((N, H, W, C)), np.zeros((N, H, W, C))
    for total, weight in ((want, kernel), (size, abs(kernel))):
        d = deltas if total is want else abs(deltas)
        for p, q, tap, padded, margin in taps(np.zeros((N, H, W, C)), window, OH, OW):
            tap += d * weight[:, 0, p, q]
            total[...] = padded[:, margin : margin + H, margin : margin + W]
    want = want.reshape(-1, C) + dx.values * accumulate
    rounding = 2.0**-11 if dtype == np.float16 else 2.0**-22
    assert (abs(dx.result() - want) <= 1.01 * rounding * abs(want) + 2.0**-19 * (size.reshape(-1, C) + 1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_gradients(kernels, name, dtype):
    for place, accumulate in zip(PLACES, (False, True, True), strict=True):
        check(CASES[name], kernels, place, dtype, accumulate)


class Fault(NamedTuple):
    """A piece of the source, and what replaces it."""

    right: str
    wrong: str


FAULTS = {
    "pixels beyond the border": Fault("(unsigned)down >= (unsigned)H || ", ""),
    "parts of the first tap": Fault("partial + (part * taps + tap) * C", "partial + (part * taps) * C"),
    "a result that is not added": Fault("accumulate ? *to + sums[k]", "accumulate ? sums[k]"),
    "rows between strides": Fault("down % sy || ", ""),
    "columns exchanged": Fault("weights + (p * size + q) * C", "weights + (q * size + p) * C"),
    "windows beyond the last": Fault("right / sx >= OW", "right / sx > OW"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_caught(name):
    fault = FAULTS[name]
    backend_for("host-cuda")  # skips, or fails in CI, where there is no compiler

    def edit(text: str) -> str:
        if "depthwise_data_gradient" not in text:
            return text
        assert text.count(fault.right) == 1, f"{text.count(fault.right)} times in the kernels: {fault.right}"
        return text.replace(fault.right, fault.wrong)

    with pytest.raises((AssertionError, KernelError)) as caught:
        check(CASES["stride 2"], Poisoned("host-cuda", np, host_cuda.launcher(edit)), "whole", np.float32, True)
    assert "in the kernels" not in str(caught.value), caught.value
