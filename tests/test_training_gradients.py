"""Gradients of pooling, upsampling, sums and activations of NHWC maps, against loops in float64; and planted faults."""

from __future__ import annotations

from typing import NamedTuple

import host_cuda
import numpy as np
import pytest
from backends import NUMPY, Poisoned, backend_for
from host_cuda import KernelError
from nhwc_maps import PLACES, Maps, close

from gpudarknet.ops import activation, shortcut
from gpudarknet.plan.cuda.training import batch_norm, gradients
from gpudarknet.plan.cuda.view import View

POOLS = [(2, (2, 2), 1), (3, (2, 2), 2), (3, (1, 1), 2), (2, (1, 1), 1), (5, (2, 3), 4), (2, (2, 2), 0), (1, (2, 1), 0)]


def maps(be, N, H, W, C, place, dtype, seed=None):
    """Return a map and its view."""
    m = Maps(be, N * H * W, C, place, dtype, None if seed is None else np.random.default_rng(seed))
    return m, View(m.a, (C, H, W), m.ld, N * H * W, m.start)


def accumulated(m, want, accumulate):
    return want + (m.values if accumulate else 0)


@pytest.mark.parametrize("accumulate", [False, True])
def test_copy(kernels, shape, place, dtype, accumulate):
    (dy, dy_view), (dx, dx_view) = (maps(kernels, *shape, place, dtype, seed) for seed in (1, 2))
    gradients.copy_gradient(dy_view, dx_view, accumulate, 0.5).run(kernels.launch)
    close(dx.result(), accumulated(dx, 0.5 * dy.values, accumulate), dtype)


def check_maxpool(be, shape, place, dtype, size, strides, padding, accumulate):
    N, H, W, C = shape
    OH, OW = ((n + padding - size) // s + 1 for n, s in zip((H, W), strides, strict=True))
    if min(OH, OW) < 1:
        pytest.skip("no window")
    x, x_view = maps(be, N, H, W, C, place, dtype, 1)  # rounded values: equal ones are common
    whole = be.to_numpy(x.whole).copy()
    whole[x.part] = np.round(whole[x.part].astype(np.float32))
    x.whole[...] = be.asarray(whole)
    x.values = whole[x.part].astype(np.float64)
    dy, dy_view = maps(be, N, OH, OW, C, place, dtype, 2)
    dx, dx_view = maps(be, N, H, W, C, place, dtype, 3)
    values, want = x.values.reshape(N, H, W, C), np.zeros((N, H, W, C))
    maxima, deltas = np.zeros((N, OH, OW, C)), dy.values.reshape(N, OH, OW, C)
    for n, i, j, c in np.ndindex(N, OH, OW, C):
        best, where = -np.inf, None
        for h in range(i * strides[0] - padding // 2, i * strides[0] - padding // 2 + size):
            for w in range(j * strides[1] - padding // 2, j * strides[1] - padding // 2 + size):
                if 0 <= h < H and 0 <= w < W and values[n, h, w, c] > best:
                    best, where = values[n, h, w, c], (n, h, w, c)
        maxima[n, i, j, c] = best
        want[where] += deltas[n, i, j, c]
    y, y_view = maps(be, N, OH, OW, C, place, dtype)
    whole = be.to_numpy(y.whole).copy()
    whole[y.part] = maxima.reshape(-1, C)
    y.whole[...] = be.asarray(whole)
    gradients.maxpool_gradient(dy_view, x_view, y_view, dx_view, size, strides, padding, accumulate).run(be.launch)
    close(dx.result(), accumulated(dx, want.reshape(-1, C), accumulate), dtype)


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_maxpool(kernels, shape, dtype, pool):
    for place, accumulate in zip(PLACES, (False, True, True), strict=True):
        check_maxpool(kernels, shape, place, dtype, *pool, accumulate)


@pytest.mark.parametrize(("s", "scale"), [(2, 1.0), (3, 0.5)])
def test_upsample(kernels, shape, place, dtype, s, scale):
    N, H, W, C = shape
    dy, dy_view = maps(kernels, N, H * s, W * s, C, place, dtype, 1)
    for accumulate in (False, True):
        dx, dx_view = maps(kernels, *shape, place, dtype, 2)
        gradients.upsample_gradient(dy_view, dx_view, s, scale, accumulate).run(kernels.launch)
        sums = scale * dy.values.reshape(N, H, s, W, s, C).sum((2, 4)).reshape(-1, C)
        close(dx.result(), accumulated(dx, sums, accumulate), dtype)


def test_avgpool(kernels, shape, place, dtype):
    N, H, W, C = shape
    dy, dy_view = maps(kernels, N, 1, 1, C, place, dtype, 1)
    for accumulate in (False, True):
        dx, dx_view = maps(kernels, *shape, place, dtype, 2)
        gradients.avgpool_gradient(dy_view, dx_view, accumulate).run(kernels.launch)
        close(dx.result(), accumulated(dx, dy.values.repeat(H * W, 0) / (H * W), accumulate), dtype)


@pytest.mark.parametrize(("eps", "slope"), [(1e-3, 0.1), (1.0, 0.0)])
def test_sort_shortcut(kernels, shape, place, dtype, eps, slope):
    for accumulate in ((False, False), (True, False), (False, True)):
        (dy, dy_view), (a, a_view), (b, b_view), (da, da_view), (db, db_view) = (
            maps(kernels, *shape, place, dtype, seed) for seed in range(5)
        )
        in_place = not any(accumulate)  # da is dy
        call = gradients.sort_shortcut_gradient(
            dy_view, a_view, b_view, dy_view if in_place else da_view, db_view, eps, slope, accumulate
        )
        call.run(kernels.launch)
        want = shortcut.sort_shortcut_backward.reference(NUMPY, dy.values, a.values, b.values, eps, slope)
        for got, sums, add in zip((dy if in_place else da, db), want, accumulate, strict=True):
            np.testing.assert_allclose(
                got.result(),
                accumulated(got, sums, add),
                rtol=2e-3 if dtype == np.float16 else 2e-5,
                atol=1e-2 if dtype == np.float16 else 1e-4,
            )


@pytest.mark.parametrize("kind", sorted(set(activation.NAMES) - {"stair"}))
def test_activation(kind, dtype):
    be = backend_for("host-cuda")
    for place in PLACES:
        (z, z_view), (dy, dy_view), (dz, dz_view) = (maps(be, 2, 5, 7, 8, place, dtype, seed) for seed in range(3))
        y, y_view = maps(be, 2, 5, 7, 8, place, dtype)
        y.whole[y.part] = activation.FUNCTIONS[kind][0](np, z.values)
        stored = y.whole[y.part].astype(np.float64)
        for given in ("z", "zy") if kind in activation.NEEDS_INPUT else ("z", "y", "zy"):
            out = stored if "y" in given else activation.FUNCTIONS[kind][0](np, z.values)
            call = batch_norm.activation_gradient(
                dy_view, z_view if "z" in given else None, y_view if "y" in given else None, dz_view, kind
            )
            call.run(be.launch)
            close(dz.result(), dy.values * activation.FUNCTIONS[kind][1](np, z.values, out), dtype)


class Fault(NamedTuple):
    """A piece of the source, and what replaces it."""

    right: str
    wrong: str


FAULTS = {
    "every maximum": Fault("first[k] &= other[k] != best[k]", "first[k] &= true"),
    "the last maximum": Fault("q < (p == h ? w : w1)", "q < w"),
    "windows that begin in the map": Fault("max(ow * sx - pad_before, 0)", "max(ow * sx, 0)"),
    "a window too few": Fault("ow <= min((w + pad_before) / sx", "ow < min((w + pad_before) / sx"),
    "a gradient that is not added": Fault("v[k] += sum[k]", "v[k] += 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_caught(name):
    fault = FAULTS[name]
    backend_for("host-cuda")  # skips, or fails in CI, where there is no compiler

    def edit(text: str) -> str:
        assert text.count(fault.right) == 1, f"{text.count(fault.right)} times in the kernels: {fault.right}"
        return text.replace(fault.right, fault.wrong)

    planted = Poisoned("host-cuda", np, host_cuda.launcher(edit))
    with pytest.raises((AssertionError, KernelError)) as caught:
        check_maxpool(planted, (2, 7, 6, 8), "whole", np.float32, 3, (2, 2), 2, True)
        check_maxpool(planted, (2, 7, 6, 8), "whole", np.float32, 3, (1, 1), 2, True)
    assert "in the kernels" not in str(caught.value), caught.value
