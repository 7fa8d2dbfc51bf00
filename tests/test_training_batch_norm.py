"""Batch norm, bias and activation in training on NHWC maps, against loops over channels in float64; and planted faults."""

from __future__ import annotations

from typing import NamedTuple

import host_cuda
import numpy as np
import pytest
from backends import Poisoned, backend_for
from host_cuda import KernelError
from nhwc_maps import PLACES, Maps, close

from gpudarknet.ops import activation
from gpudarknet.plan.cuda.training import batch_norm
from gpudarknet.plan.cuda.training.channel_sums import ChannelSums
from gpudarknet.plan.cuda.view import View

SHAPES = {  # N, H, W, C
    "one element": (1, 1, 1, 1), "few": (2, 5, 7, 3), "33 channels": (1, 2, 3, 33), "vectors": (3, 13, 6, 8),
    "several parts": (2, 31, 37, 16), "several chunks": (2, 9, 8, 272), "chunks of one channel": (3, 4, 5, 45),
}  # fmt: skip
DTYPES = [np.float32, np.float16]


def view(maps: Maps, H: int, W: int) -> View:
    return View(maps.a, (maps.C, H, W), maps.ld, len(maps.values), maps.start)


class Layer:
    """The maps, weights and workspaces of a layer."""

    def __init__(self, be, shape, place, dtype, seed=0):
        N, self.H, self.W, self.C = shape
        self.be, self.pixels, self.place, self.dtype = be, shape[0] * self.H * self.W, place, dtype
        self.rng = rng = np.random.default_rng(seed)
        self.z, self.dy, self.y = (self.map(rng) for _ in range(3))
        drawn = {name: rng.normal(0, 1, self.C) for name in ("scale", "bias", "mean", "dscale", "dbias")}
        drawn["variance"] = rng.uniform(0.5, 2, self.C)
        self.w = {name: a.astype(np.float32) for name, a in drawn.items()}
        self.on = {name: be.asarray(a.copy()) for name, a in self.w.items()}
        self.saved = be.empty((6, self.C))
        self.arrived = be.zeros((9,), np.int32)

    def map(self, rng=None):
        return Maps(self.be, self.pixels, self.C, self.place, self.dtype, rng)

    def view(self, maps):
        return view(maps, self.H, self.W)

    def partial(self, *maps, kind="linear"):
        return self.be.empty(ChannelSums.of(*map(self.view, maps), kind=kind).partial_shape)

    def run(self, *calls):
        for call in calls:
            call.run(self.be.launch)
        assert not self.be.to_numpy(self.arrived).any()

    def statistics(self):
        on, partial = self.on, self.partial(self.z)
        self.run(batch_norm.batch_statistics(
            self.view(self.z), on["scale"], on["bias"], on["mean"], on["variance"], self.saved, partial, self.arrived
        ))  # fmt: skip

    def host(self, name):
        return self.be.to_numpy(self.on[name])

    def normalized(self):
        """In float64: mean, variance, normalized z, and what is activated."""
        z = self.z.values
        mean, variance = z.mean(0), z.var(0)
        normalized = (z - mean) / np.sqrt(variance + 1e-5)
        return mean, variance, normalized, normalized * self.w["scale"] + self.w["bias"]


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


def check_statistics(layer):
    layer.statistics()
    mean, variance, _, _ = layer.normalized()
    saved, gain = layer.be.to_numpy(layer.saved), layer.w["scale"] / np.sqrt(variance + 1e-5)
    for row, want in enumerate((mean, 1 / np.sqrt(variance + 1e-5), gain, layer.w["bias"] - mean * gain)):
        np.testing.assert_allclose(saved[row], want, rtol=2e-5, atol=2e-5)
    unbiased = variance * (layer.pixels / max(layer.pixels - 1, 1))
    for name, new in (("mean", mean), ("variance", unbiased)):
        np.testing.assert_allclose(layer.host(name), 0.99 * layer.w[name] + 0.01 * new, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(kernels, shape, place, dtype):
    check_statistics(Layer(kernels, shape, place, dtype))


def test_statistics_far_from_zero_do_not_cancel():
    layer = Layer(backend_for("host-cuda"), SHAPES["several parts"], "whole", np.float32)
    values = 1000 + layer.rng.normal(0, 1, layer.z.values.shape)
    layer.z.whole[...] = values
    layer.z.values = layer.z.whole.astype(np.float64)
    layer.statistics()
    np.testing.assert_allclose(layer.saved[1], 1 / np.sqrt(layer.z.values.var(0) + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("kind", activation.NAMES)
def test_forward(kernels, kind):
    for place, dtype in zip(PLACES, (*DTYPES, np.float16), strict=True):
        layer = Layer(kernels, SHAPES["vectors"], place, dtype)
        layer.statistics()
        for gain, shift in ((layer.saved[2], layer.saved[3]), (None, layer.on["bias"]), (None, None)):
            y, z = layer.map(), layer.z.values
            layer.run(batch_norm.affine_activation(layer.view(layer.z), gain, shift, layer.view(y), kind))
            x = layer.normalized()[3] if gain is not None else z + layer.w["bias"] if shift is not None else z
            if kind != "stair" or gain is None:  # it jumps where rounding decides
                close(y.result(), activation.FUNCTIONS[kind][0](np, x), dtype)


def gradients(layer, kind, x):
    """dx = dy * derivative, in float64."""
    return layer.dy.values * activation.FUNCTIONS[kind][1](np, x, activation.FUNCTIONS[kind][0](np, x))


def check_batch_norm_gradient(layer, kind, accumulate=True, in_place=True):
    layer.statistics()
    on, dz = layer.on, layer.dy if in_place else layer.map()
    _, variance, normalized, x = layer.normalized()
    dx = gradients(layer, kind, x)
    views = [layer.view(m) for m in (layer.dy, layer.z, dz)]
    partial = layer.partial(layer.dy, layer.z, dz, kind=kind)
    layer.run(*batch_norm.batch_norm_gradient(
        *views, layer.saved, on["dscale"], on["dbias"], partial, layer.arrived, kind, accumulate
    ))  # fmt: skip
    magnitude = np.sqrt(layer.pixels) * 3 * (1e-3 if layer.dtype == np.float16 else 1e-5)  # of rounded summands
    for name, sums in (("dbias", dx.sum(0)), ("dscale", (dx * normalized).sum(0))):
        want = sums + (layer.w[name] if accumulate else 0)
        np.testing.assert_allclose(layer.host(name), want, rtol=1e-4, atol=magnitude)
    want = layer.w["scale"] / np.sqrt(variance + 1e-5) * (dx - dx.mean(0) - normalized * (dx * normalized).mean(0))
    tolerance = 2e-2 if layer.dtype == np.float16 else 1e-4  # dx is rounded before it is centered
    np.testing.assert_allclose(dz.result(), want, rtol=0, atol=tolerance * max(1, abs(want).max() / 4))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_gradient(kernels, shape, place, dtype):
    check_batch_norm_gradient(Layer(kernels, shape, place, dtype), "leaky", in_place=place != "whole")


@pytest.mark.parametrize("kind", sorted(set(activation.NAMES) - {"stair"}))
def test_batch_norm_gradient_of_every_activation(kernels, kind):
    check_batch_norm_gradient(Layer(kernels, SHAPES["vectors"], "even part", np.float32), kind, accumulate=False)


def check_bias_gradient(layer, kind, given, accumulate):
    on, x = layer.on, layer.z.values + layer.w["bias"]
    y = activation.FUNCTIONS[kind][0](np, x)
    layer.y.whole[layer.y.part] = y  # on the host: its maps are arrays of NumPy
    maps = {"z": layer.z, "y": layer.y}
    z, stored = (layer.view(maps[name]) if name in given else None for name in "zy")
    rounded = layer.y.whole[layer.y.part].astype(np.float64) if "y" in given else y
    want = layer.dy.values * activation.FUNCTIONS[kind][1](np, x, rounded)
    partial = layer.partial(*(maps[name] for name in given), layer.dy, kind=kind)
    dy = layer.view(layer.dy)
    layer.run(batch_norm.bias_gradient(
        dy, z, stored, on["bias"], dy, on["dbias"], partial, layer.arrived, kind, accumulate
    ))  # fmt: skip
    close(layer.dy.result(), want, layer.dtype)
    magnitude = np.sqrt(layer.pixels) * 3 * (1e-3 if layer.dtype == np.float16 else 1e-5)
    sums = want.sum(0) + (layer.w["dbias"] if accumulate else 0)
    np.testing.assert_allclose(layer.host("dbias"), sums, rtol=1e-4, atol=magnitude)


@pytest.mark.parametrize("kind", sorted(set(activation.NAMES) - {"stair"}))
def test_bias_gradient(kind):
    for place, dtype in zip(PLACES, (*DTYPES, np.float16), strict=True):
        for given in ("z", "zy") if kind in activation.NEEDS_INPUT else ("z", "y", "zy"):
            check_bias_gradient(
                Layer(backend_for("host-cuda"), SHAPES["vectors"], place, dtype), kind, given, place == "whole"
            )


@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_gradient_of_shapes(shape, dtype):
    check_bias_gradient(Layer(backend_for("host-cuda"), shape, "even part", dtype), "leaky", "y", True)
    check_bias_gradient(Layer(backend_for("host-cuda"), shape, "odd part", dtype), "linear", "", False)


# --- planted faults ------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """A piece of the source, and what replaces it."""

    right: str
    wrong: str


FAULTS = {
    "biased rolling variance": Fault("squares[k] / max(M - 1, 1)", "squares[k] / M"),
    "another rate": Fault("0.99f * rolling_mean[c] + 0.01f", "0.9f * rolling_mean[c] + 0.1f"),
    "parts of the first chunk": Fault("return (part * 2 + k) * C + c;", "return (part * 2 + k) * C + c % (lanes * V);"),
    "parts weighted alike": Fault("min(rows * DEPTH, M - part * rows * DEPTH)", "rows * DEPTH"),
    "no distance between parts": Fault(" + distance * distance * own.pixels(part)", ""),
    "the last block but one combines": Fault("== blocks - 1;", "== blocks - 2;"),
    "a counter that is not cleared": Fault("if (threadIdx.x == 0) *arrived = 0;", ""),
    "no barrier between sums": Fault("__syncthreads();  // before the next call writes other sums", ""),
    "sums of one warp": Fault("warp < BLOCK / 32; warp++", "warp < 1; warp++"),
    "sums of other lanes": Fault("bit = lanes; bit < 32", "bit = 2 * lanes; bit < 32"),
    "variance about zero": Fault("(v[i][k] - mean[k]) * (v[i][k] - mean[k])", "v[i][k] * v[i][k]"),
    "pixels beyond the map": Fault("return c < C && m < M;", "return c < C;"),
}  # fmt: skip
GRADIENT_FAULTS = {
    "gradient without the mean": Fault("d[k] - mean_dx[k] - (v", "d[k] - (v"),
    "gradient without the product": Fault("* invstd[k] * mean_product[k]", "* invstd[k] * 0.0f"),
    "an overwritten gradient": Fault("accumulate ? dbias[c] + sums[k]", "accumulate ? sums[k]"),
    "products of z that is not centered": Fault("d[k] * (z[k] - mean[k])", "d[k] * z[k]"),
    "derivative at z": Fault("if (z) affine<V>(gain, shift, c, x);", ""),
}


def planted(fault):
    """Return a backend whose kernels have a fault."""
    backend_for("host-cuda")  # skips, or fails in CI, where there is no compiler

    def edit(text):
        assert text.count(fault.right) == 1, f"{text.count(fault.right)} times in the kernels: {fault.right}"
        return text.replace(fault.right, fault.wrong)

    return Poisoned("host-cuda", np, host_cuda.launcher(edit))


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_statistics_are_caught(name):
    with pytest.raises((AssertionError, KernelError)) as caught:
        check_statistics(Layer(planted(FAULTS[name]), SHAPES["several parts"], "whole", np.float32))
        check_statistics(Layer(planted(FAULTS[name]), SHAPES["several chunks"], "whole", np.float16))
    assert "in the kernels" not in str(caught.value), caught.value


@pytest.mark.parametrize("name", GRADIENT_FAULTS)
def test_faults_of_the_gradients_are_caught(name):
    with pytest.raises((AssertionError, KernelError)) as caught:
        check_batch_norm_gradient(
            Layer(planted(GRADIENT_FAULTS[name]), SHAPES["several parts"], "whole", np.float32), "leaky"
        )
    assert "in the kernels" not in str(caught.value), caught.value
