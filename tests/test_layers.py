"""Every section's forward against plain loops and values worked out by hand, on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import forward
from layer_cases import draw_weights

from gpudarknet.layers import SECTIONS, ForwardContext, Layer
from gpudarknet.layers.class_tree import ClassMap, Tree
from gpudarknet.layers.shortcut import normalize_weights

RNG = np.random.default_rng(20)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def layer(section: str, **keys: Any) -> Any:
    return SECTIONS[section](**keys)


def arrays(one: Layer, *xs: np.ndarray) -> dict[str, np.ndarray]:
    """Random weights for a layer and its inputs, in float32."""
    drawn = draw_weights(one, [x.shape[1:] for x in xs], RNG)  # type: ignore[misc]
    return {name: a.astype(np.float32) for name, a in drawn.items()}


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)  # float32 sums of up to 100 values near 1


def convolve(x: np.ndarray, kernel: np.ndarray, stride: tuple[int, int], D: int, P: int, groups: int) -> np.ndarray:
    """The formula of a convolution in Darknet, tap by tap; P counts zeros before dilation."""
    N, C, H, W = x.shape
    F, Cg, k, _ = kernel.shape
    OH, OW = (H + 2 * P - k) // stride[0] + 1, (W + 2 * P - k) // stride[1] + 1
    y = np.zeros((N, F, OH, OW))
    for n, f, i, j in np.ndindex(y.shape):
        for c, p, q in np.ndindex(Cg, k, k):
            h, w = i * stride[0] - P * D + p * D, j * stride[1] - P * D + q * D
            if 0 <= h < H and 0 <= w < W:
                y[n, f, i, j] += kernel[f, c, p, q] * x[n, f // (F // groups) * Cg + c, h, w]
    return y


CONVOLUTIONS = [
    dict(filters=5, size=3, pad=1),
    dict(filters=4, size=3, padding=0, stride=2),
    dict(filters=6, size=1, stride=2),
    dict(filters=6, size=1, padding=1),
    dict(filters=4, size=2, padding=1, stride_x=1, stride_y=3),
    dict(filters=4, size=5, pad=1, groups=2),
    dict(filters=8, size=3, pad=1, groups=4),
    dict(filters=3, size=3, pad=1, dilation=2),
    dict(filters=3, size=3, pad=1, dilation=3, stride=2),
    dict(filters=3, size=1, dilation=7),
]


@pytest.mark.parametrize("keys", CONVOLUTIONS, ids=str)
def test_convolutional(be: Any, keys: dict[str, Any]) -> None:
    one = layer("conv", activation="linear", **keys)
    x = normal(2, 4, 9, 7)
    w = arrays(one, x)
    P = one.size // 2 if one.pad else one.padding
    want = convolve(x, w["kernel"], one.strides, one.dilation if one.size > 1 else 1, P, one.groups)
    close(forward(be, one, w, x), want + w["bias"].reshape(-1, 1, 1))


def test_convolutional_with_batch_norm_and_activation(be: Any) -> None:
    one = layer("conv", filters=5, size=3, pad=1, batch_normalize=1, activation="leaky")
    x = normal(1, 3, 5, 4)
    w = arrays(one, x)
    assert list(w) == ["bias", "scale", "mean", "variance", "kernel"]
    v = {name: a.reshape(-1, 1, 1) for name, a in w.items() if name != "kernel"}
    z = convolve(x, w["kernel"], (1, 1), 1, 1, 1)
    z = (z - v["mean"]) / np.sqrt(v["variance"] + 1e-5) * v["scale"] + v["bias"]
    np.testing.assert_allclose(forward(be, one, w, x), np.where(z > 0, z, 0.1 * z), rtol=1e-4, atol=1e-4)


def test_batch_norm_in_training_uses_its_own_statistics_and_moves_the_rolling_ones(be: Any) -> None:
    one = layer("batchnorm")
    x = normal(3, 2, 4, 5) * 3 + 1
    w = {name: be.asarray(a) for name, a in arrays(one, x).items()}
    before = {name: be.to_numpy(a).copy() for name, a in w.items()}
    y, _ = one.forward(be, w, be.asarray(x), ctx=ForwardContext(train=True))
    mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    want = (x - mean.reshape(-1, 1, 1)) / np.sqrt(variance + 1e-5).reshape(-1, 1, 1)
    close(be.to_numpy(y), want * before["scale"].reshape(-1, 1, 1) + before["bias"].reshape(-1, 1, 1))
    close(be.to_numpy(w["mean"]), 0.99 * before["mean"] + 0.01 * mean)
    close(be.to_numpy(w["variance"]), 0.99 * before["variance"] + 0.01 * variance * 60 / 59)


@pytest.mark.parametrize("kind", [1, 2])
def test_antialiasing_blurs_with_the_stride(be: Any, kind: int) -> None:
    x = normal(1, 3, 8, 6)
    one = layer("conv", filters=2, size=3, pad=1, stride=2, antialiasing=kind, activation="linear")
    w = arrays(one, x)
    sharp = convolve(x, w["kernel"], (1, 1), 1, 1, 1) + w["bias"].reshape(-1, 1, 1)
    taps = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16 if kind == 1 else np.full((2, 2), 0.25)
    blur = np.broadcast_to(taps, (2, 1, *taps.shape))
    close(forward(be, one, w, x), convolve(sharp, blur, (2, 2), 1, 1 if kind == 1 else 0, 2))
    pool = layer("maxpool", size=2, stride=2, antialiasing=kind)
    sharp = forward(be, layer("maxpool", size=2, stride=1), {}, x)
    blur = np.broadcast_to(taps, (3, 1, *taps.shape))
    close(forward(be, pool, {}, x), convolve(sharp, blur, (2, 2), 1, 1 if kind == 1 else 0, 3))


def test_xnor_and_binary(be: Any) -> None:
    x = normal(1, 3, 5, 4)
    x[0, 0, 0, 0] = 0  # counts as +1
    keys = dict(filters=4, size=3, pad=1, activation="linear")
    one = layer("conv", xnor=1, groups=3, **keys)  # XNOR layers have no groups
    w = arrays(one, x)
    kernel = np.where(w["kernel"] > 0, 1, -1) * np.abs(w["kernel"]).mean(axis=(1, 2, 3), keepdims=True)
    bias = w["bias"].reshape(-1, 1, 1)
    close(forward(be, one, w, x), convolve(np.where(x >= 0, 1, -1), kernel, (1, 1), 1, 1, 1) + bias)
    close(forward(be, layer("conv", binary=1, **keys), w, x), convolve(x, kernel, (1, 1), 1, 1, 1) + bias)


def test_connected(be: Any) -> None:
    one = layer("connected", output=4, batch_normalize=1, activation="logistic")
    x = normal(3, 2, 3, 5)
    w = arrays(one, x)
    assert list(w) == ["bias", "kernel", "scale", "mean", "variance"]
    z = x.reshape(3, -1) @ w["kernel"].T
    z = (z - w["mean"]) / np.sqrt(w["variance"] + 1e-5) * w["scale"] + w["bias"]
    np.testing.assert_allclose(forward(be, one, w, x).reshape(3, 4), sigmoid(z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pad", [0, 1])
def test_local(be: Any, pad: int) -> None:
    one = layer("local", filters=2, size=3, stride=2, pad=pad, activation="linear")
    x = normal(2, 3, 7, 6)
    w = arrays(one, x)
    OH, OW = one.shape(x.shape[1:])[1:]
    assert (OH, OW) == ((4, 3) if pad else (3, 2))
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad + 3), (pad, pad + 3)))
    for n, f, i, j in np.ndindex(2, 2, OH, OW):
        patch = padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].ravel()
        want = w["kernel"][i * OW + j, f] @ patch + w["bias"][f, i, j]
        close(forward(be, one, w, x)[n, f, i, j], want)


POOLS = [
    dict(size=2, stride=2),
    dict(size=2, stride=1),
    dict(size=3, stride=2),
    dict(size=5, stride=1),
    dict(size=3, stride=2, padding=0),
    dict(size=3, stride_x=1, stride_y=2),
    dict(stride=3),
]


@pytest.mark.parametrize("keys", POOLS, ids=str)
def test_pools(be: Any, keys: dict[str, int]) -> None:
    x = normal(2, 3, 7, 10)
    one = layer("maxpool", **keys)
    size, total, (sy, sx) = one.window, one.pad_total, one.strides
    OH, OW = (7 + total - size) // sy + 1, (10 + total - size) // sx + 1
    most, mean = np.empty((2, 3, OH, OW)), np.empty((2, 3, OH, OW))
    for i, j in np.ndindex(OH, OW):
        top, left = i * sy - total // 2, j * sx - total // 2
        part = x[:, :, max(top, 0) : top + size, max(left, 0) : left + size]
        most[:, :, i, j], mean[:, :, i, j] = part.max(axis=(2, 3)), part.mean(axis=(2, 3))
    np.testing.assert_array_equal(forward(be, one, {}, x), most)
    close(forward(be, layer("local_avgpool", **keys), {}, x), mean)


def test_maxpool_by_hand(be: Any) -> None:
    x = np.arange(1, 10, dtype=np.float32).reshape(1, 1, 3, 3)
    y = forward(be, layer("maxpool", size=2, stride=1), {}, x)
    assert y.tolist() == [[[[5, 6, 6], [8, 9, 9], [8, 9, 9]]]]


def test_maxpool_depth(be: Any) -> None:
    x = normal(2, 7, 3, 2)
    y = forward(be, layer("maxpool", maxpool_depth=1, out_channels=3), {}, x)
    want = np.stack([x[:, g::3].max(axis=1) for g in range(3)], axis=1)
    np.testing.assert_array_equal(y, want)


def test_maxpool_zero_nonmax_keeps_only_the_maxima(be: Any) -> None:
    x = np.abs(normal(1, 2, 5, 4)) + 0.1
    y = forward(be, layer("maxpool", size=3, stride=1, maxpool_zero_nonmax=1), {}, x)
    most = forward(be, layer("maxpool", size=3, stride=1), {}, x)
    np.testing.assert_array_equal(y, np.where(x == most, x, 0))


def test_avgpool(be: Any) -> None:
    x = normal(2, 5, 3, 4)
    close(forward(be, layer("avgpool"), {}, x), x.mean(axis=(2, 3), keepdims=True))


def test_route(be: Any) -> None:
    a, b = normal(2, 4, 3, 5), normal(2, 2, 3, 5)
    np.testing.assert_array_equal(forward(be, layer("route", layers=(1, 2)), {}, a, b), np.concatenate([a, b], 1))
    y = forward(be, layer("route", layers=(1, 2), groups=2, group_id=1), {}, a, b)
    np.testing.assert_array_equal(y, np.concatenate([a[:, 2:], b[:, 1:]], 1))
    assert layer("route", layers=(-1, -3, 4)).sources(9) == (8, 6, 4)


def test_shortcut_of_several_maps_with_unequal_channels(be: Any) -> None:
    a, b, c = normal(2, 3, 2, 4), normal(2, 5, 2, 4), normal(2, 2, 2, 4)
    y = forward(be, layer("shortcut", from_=(-2, -3), activation="relu"), {}, a, b, c)
    want = a + b[:, :3]
    want[:, :2] += c
    close(y, np.maximum(want, 0))


@pytest.mark.parametrize("kind", ["per_channel", "per_feature"])
@pytest.mark.parametrize("norm", ["relu", "softmax"])
def test_weighted_shortcut(be: Any, kind: str, norm: str) -> None:
    a, b, c = normal(2, 3, 2, 4), normal(2, 3, 2, 4), normal(2, 3, 2, 4)
    one = layer("shortcut", from_=(-2, -3), weights_type=kind, weights_normalization=norm)
    w = arrays(one, a, b, c)
    assert w["weight"].shape == (3, 3 if kind == "per_channel" else 1)
    r = np.maximum(w["weight"], 0.001) if norm == "relu" else np.exp(w["weight"] - w["weight"].max(axis=0))
    v = (r / (1e-4 + r.sum(axis=0))).reshape(3, -1, 1, 1)
    close(forward(be, one, w, a, b, c), v[0] * a + v[1] * b + v[2] * c)
    close(be.to_numpy(normalize_weights(be, be.asarray(w["weight"]), norm)), v.reshape(3, -1))


SORT = [  # eps, a, b, y
    (1e-4, 2, 8, 14.0000125), (1e-4, -1, 3, 2.01), (1e-4, 0.5, 0, 0.51), (1e-3, 2, 8, 14.000125),
    (1e-3, -1, 3, 2.0316228), (1e-2, 2, 8, 14.0012498), (1e-2, -1, 3, 2.1),
]  # fmt: skip


@pytest.mark.parametrize(("eps", "a", "b", "y"), SORT)
def test_sort_shortcut_by_hand(be: Any, eps: float, a: float, b: float, y: float) -> None:
    one = layer("sort_shortcut", from_=(-3,), eps=eps)
    x = np.full((1, 1, 1, 2), a, np.float32), np.full((1, 1, 1, 2), b, np.float32)
    np.testing.assert_allclose(forward(be, one, {}, *x), y, rtol=1e-6)


def test_sort_shortcut_where_channels_differ_and_with_a_slope(be: Any) -> None:
    a, b = normal(2, 3, 4, 5), normal(2, 2, 4, 5)
    y = forward(be, layer("sort_shortcut", from_=(0,), eps=0.01, slope=0.2, activation="relu"), {}, a, b)
    want = a.copy()
    ra, rb = np.where(a > 0, a, 0.2 * a)[:, :2], np.where(b > 0, b, 0.2 * b)
    want[:, :2] += b + np.sqrt(np.maximum(ra * rb, 0) + 0.01)
    close(y, np.maximum(want, 0))


def test_products(be: Any) -> None:
    x, s, pixels = normal(2, 3, 4, 5), normal(2, 3, 1, 1), normal(2, 1, 4, 5)
    close(forward(be, layer("scale_channels", from_=0), {}, s, x), x * s)
    close(forward(be, layer("scale_channels", from_=0, scale_wh=1), {}, pixels, x), x * pixels)
    close(
        forward(be, layer("sam", from_=0, activation="relu"), {}, x, x[:, ::-1].copy()), np.maximum(x * x[:, ::-1], 0)
    )


def test_upsample_and_downsample(be: Any) -> None:
    x = normal(2, 3, 4, 6)
    close(forward(be, layer("upsample", stride=3, scale=0.5), {}, x), 0.5 * np.kron(x, np.ones((1, 1, 3, 3))))
    want = sum(x[:, :, p::2, q::2] for p in (0, 1) for q in (0, 1))
    close(forward(be, layer("upsample", stride=-2), {}, x), want)


def reorg_loops(x: np.ndarray, w: int, h: int, c: int, s: int) -> np.ndarray:
    """Darknet's index map, as it stands: out[p] = in[q]."""
    B, ic = x.shape[0], c // (s * s)
    flat, out = x.ravel(), np.empty(x.size, x.dtype)
    for b, k, j, i in np.ndindex(B, c, h, w):
        off, c2 = k // ic, k % ic
        p = i + w * (j + h * (k + c * b))
        out[p] = flat[(i * s + off % s) + w * s * ((j * s + off // s) + h * s * (c2 + ic * b))]
    return out


@pytest.mark.parametrize("shape", [(2, 4, 4, 6, 2), (1, 8, 2, 4, 2), (2, 9, 6, 9, 3)])
def test_reorg_is_darknets_map(be: Any, shape: tuple[int, ...]) -> None:
    *dims, s = shape
    x = normal(*dims)
    _, C, H, W = x.shape
    np.testing.assert_array_equal(forward(be, layer("reorg", stride=s), {}, x).ravel(), reorg_loops(x, W, H, C, s))
    large = C * s * s, H // s, W // s
    np.testing.assert_array_equal(
        forward(be, layer("reorg3d", stride=s), {}, x).ravel(), reorg_loops(x, large[2], large[1], large[0], s)
    )


def test_reorg_by_hand(be: Any) -> None:
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 2, 2)
    assert forward(be, layer("reorg", stride=2), {}, x).ravel().tolist() == [
        0,
        2,
        8,
        10,
        1,
        3,
        9,
        11,
        4,
        6,
        12,
        14,
        5,
        7,
        13,
        15,
    ]
    assert forward(be, layer("reorg3d", stride=2), {}, x).ravel().tolist() == [
        0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
    ]  # fmt: skip


@pytest.mark.parametrize("section", ["reorg", "reorg3d"])
def test_reorg_in_reverse(be: Any, section: str) -> None:
    x = normal(1, 16, 2, 3)
    y = forward(be, layer(section, stride=2, reverse=1), {}, x)
    dims = (1, 2, 2, 4, 2, 3) if section == "reorg" else (1, 2, 2, 1, 4, 6)
    np.testing.assert_array_equal(y.ravel(), x.reshape(dims).transpose(0, 3, 4, 1, 5, 2).ravel())


def test_softmax_by_groups_and_temperature(be: Any) -> None:
    x = normal(2, 6, 1, 2)
    y = forward(be, layer("softmax", groups=3, temperature=2.0), {}, x).reshape(6, 4)
    e = np.exp(x.reshape(6, 4) / 2)
    close(y, e / e.sum(axis=1, keepdims=True))


TREE = Tree(("animal", "thing", "cat", "dog", "cup"), (-1, -1, 0, 0, 1), (0, 2, 4))


def test_softmax_with_a_tree(be: Any) -> None:
    x = normal(2, 5, 1, 1)
    y = forward(be, layer("softmax", tree=TREE), {}, x).reshape(2, 5)
    e = np.exp(x.reshape(2, 5))
    close(y[:, :2], e[:, :2] / e[:, :2].sum(axis=1, keepdims=True))
    close(y[:, 2:4], e[:, 2:4] / e[:, 2:4].sum(axis=1, keepdims=True))
    close(y[:, 4], np.ones(2))


def test_normalization_builds_its_windows_as_darknet_does(be: Any) -> None:
    x = normal(2, 8, 3, 2)
    one = layer("normalization", alpha=0.3, beta=0.75, kappa=9.0, size=5)
    squares = x.astype(np.float64) ** 2
    norms = np.empty_like(squares)
    norms[:, 0] = 9 + 0.3 * squares[:, :2].sum(axis=1)
    for c in range(1, 8):
        norms[:, c] = norms[:, c - 1]
        if c + 2 < 8:
            norms[:, c] += 0.3 * squares[:, c + 2]
        if c - 3 >= 0:
            norms[:, c] -= 0.3 * squares[:, c - 3]
    close(forward(be, one, {}, x), x * norms**-0.75)


def test_identities(be: Any) -> None:
    x = normal(2, 3, 4, 5)
    for section in ("dropout", "empty", "contrastive"):
        np.testing.assert_array_equal(forward(be, layer(section), {}, x), x)
    np.testing.assert_array_equal(forward(be, layer("cost"), {}, x), np.zeros_like(x))  # there is no truth
    close(forward(be, layer("activation", activation="tanh"), {}, x), np.tanh(x))


def test_dropout_in_training_keeps_the_mean(be: Any) -> None:
    x = np.ones((4, 5, 30, 20), np.float32)
    y = forward(be, layer("dropout", probability=0.3), {}, x, ctx=ForwardContext(train=True))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    assert abs(y.mean() - 1) < 0.03  # 12,000 draws: one standard deviation is 0.006
    y = forward(
        be,
        layer("dropout", probability=0.5, dropblock=1, dropblock_size_rel=0.4),
        {},
        x,
        ctx=ForwardContext(train=True, progress=1),
    )
    holes = (y == 0).sum(axis=(2, 3))
    assert set(np.unique(holes)) == {0, 64}  # squares of 0.4 * 20
    np.testing.assert_allclose(y.mean(axis=(1, 2, 3)), 1, rtol=1e-5)


def test_crop_returns_the_center(be: Any) -> None:
    x = normal(2, 3, 7, 10)
    y = forward(be, layer("crop", crop_height=4, crop_width=6), {}, x)
    close(y, 2 * x[:, :, 1:5, 2:8] - 1)
    close(forward(be, layer("crop", crop_height=4, crop_width=6, noadjust=1), {}, x), x[:, :, 1:5, 2:8])


def test_implicit_is_the_same_for_every_image(be: Any) -> None:
    one = layer("implicit", filters=4, atoms=2)
    w = arrays(one, normal(3, 1, 1, 1))
    y = forward(be, one, w, normal(3, 1, 1, 1))
    np.testing.assert_array_equal(y, np.stack([w["weight"]] * 3))


def test_history_stacks_the_newest_first(be: Any) -> None:
    frames = normal(5, 2, 3, 4)  # 5 steps of one sequence
    y = forward(be, layer("history", history_size=3), {}, frames, ctx=ForwardContext(steps=5))
    np.testing.assert_array_equal(y[3], np.concatenate([frames[3], frames[2], frames[1]]))
    assert not y[0, 2:].any()


def sequence(be: Any, one: Layer, w: dict[str, np.ndarray], x: np.ndarray, cuts: tuple[int, ...]) -> np.ndarray:
    """Run a recurrent layer on x (T, ...) in several calls, which must not differ from one."""
    on = {name: be.asarray(a) for name, a in w.items()}
    parts = []
    for part in np.split(x, cuts):
        y, _ = one.forward(be, on, be.asarray(part), ctx=ForwardContext(steps=len(part)))
        parts.append(be.to_numpy(y))
    return np.concatenate(parts)


def affine(w: dict[str, np.ndarray], part: str, x: np.ndarray) -> np.ndarray:
    return w[f"{part}.kernel"] @ x.ravel() + w[f"{part}.bias"]


@pytest.mark.parametrize("cuts", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("keys", [dict(), dict(shortcut=1, logistic=2), dict(logistic=1)], ids=str)
def test_rnn(be: Any, keys: dict[str, int], cuts: tuple[int, ...]) -> None:
    one = layer("rnn", output=3, hidden=4, activation="tanh", **keys)
    x = normal(5, 2, 1, 3)
    w = arrays(one, x)
    inner = {0: np.tanh, 1: sigmoid, 2: lambda z: 2 * sigmoid(z) - 1}[one.logistic]
    s, want = np.zeros(4), []
    for t in range(5):
        new = np.tanh(affine(w, "input", x[t])) + inner(affine(w, "self", s))
        s = new + s if one.shortcut else new
        want.append(np.tanh(affine(w, "output", s)))
    close(sequence(be, one, w, x, cuts).reshape(5, 3), np.array(want))


@pytest.mark.parametrize("cuts", [(), (1, 4)], ids=str)
def test_gru_and_lstm(be: Any, cuts: tuple[int, ...]) -> None:
    x = normal(5, 2, 1, 3)
    gru = layer("gru", output=4)
    w = arrays(gru, x)
    h, want = np.zeros(4), []
    for t in range(5):
        z, r = (sigmoid(affine(w, f"input_{g}", x[t]) + affine(w, f"state_{g}", h)) for g in "zr")
        h = z * h + (1 - z) * sigmoid(affine(w, "input_h", x[t]) + affine(w, "state_h", r * h))
        want.append(h)
    close(sequence(be, gru, w, x, cuts).reshape(5, 4), np.array(want))

    lstm = layer("lstm", output=4)
    w = arrays(lstm, x)
    h, c, want = np.zeros(4), np.zeros(4), []
    for t in range(5):
        f, i, g, o = (affine(w, f"w{k}", h) + affine(w, f"u{k}", x[t]) for k in "figo")
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        want.append(h)
    close(sequence(be, lstm, w, x, cuts).reshape(5, 4), np.array(want))


def test_crnn(be: Any) -> None:
    one = layer("crnn", output=2, hidden=3, size=3, pad=1, activation="leaky")
    x = normal(4, 2, 5, 4)
    w = arrays(one, x)

    def part(name: str, v: np.ndarray) -> np.ndarray:
        z = convolve(v[None], w[f"{name}.kernel"], (1, 1), 1, 1, 1)[0] + w[f"{name}.bias"].reshape(-1, 1, 1)
        return np.where(z > 0, z, 0.1 * z)

    s, want = np.zeros((3, 5, 4)), []
    for t in range(4):
        s = part("input", x[t]) + part("self", s)
        want.append(part("output", s))
    np.testing.assert_allclose(
        sequence(be, one, w, x, (2,)), np.array(want), rtol=1e-3, atol=1e-4
    )  # values grow to 100


@pytest.mark.parametrize("keys", [dict(), dict(peephole=1), dict(bottleneck=1)], ids=str)
def test_conv_lstm(be: Any, keys: dict[str, int]) -> None:
    one = layer("conv_lstm", output=2, size=3, pad=1, state_constrain=0.4, **keys)
    x = normal(4, 3, 4, 5)
    w = arrays(one, x)

    def part(name: str, v: np.ndarray) -> np.ndarray:
        return convolve(v[None], w[f"{name}.kernel"], (1, 1), 1, 1, 1)[0] + w[f"{name}.bias"].reshape(-1, 1, 1)

    h, c, want = np.zeros((2, 4, 5)), np.zeros((2, 4, 5)), []
    for t in range(4):
        seen = part("wf", np.concatenate([h, x[t]])) if one.bottleneck else x[t]

        def gate(name: str, h: np.ndarray = h, seen: np.ndarray = seen) -> np.ndarray:
            return part(f"u{name}", seen) if one.bottleneck else part(f"u{name}", seen) + part(f"w{name}", h)

        f = sigmoid(gate("f") + (part("vf", c) if one.peephole else 0))
        i = sigmoid(gate("i") + (part("vi", c) if one.peephole else 0))
        c = f * c + i * np.tanh(gate("g"))
        o = sigmoid(gate("o") + (part("vo", c) if one.peephole else 0))
        h = o * np.tanh(c)
        c = np.clip(c, -0.4, 0.4)
        want.append(h)
    np.testing.assert_allclose(sequence(be, one, w, x, (1, 3)), np.array(want), rtol=1e-4, atol=1e-4)


def test_yolo_decodes_a_box(be: Any) -> None:
    one = layer("yolo", classes=2, num=3, mask=(1,), anchors=(1, 1, 116, 90, 5, 5), scale_x_y=1.05)
    x = np.full((2, 7, 13, 13), -9, np.float32)
    x[1, :, 4, 6] = (0.2, -0.1, 0.3, -0.2, 2.0, 1.0, -3.0)
    y = forward(be, one, {}, x)
    rows = one.decode(be, be.asarray(y), 416, 416, 0.25)
    want = [1, sigmoid(2.0), 0.5040251, 0.3441363, 0.3764029, 0.1771292, sigmoid(2.0) * sigmoid(1.0), 0]
    np.testing.assert_allclose(rows, [want], rtol=1e-6)


def test_yolo_may_mask_anchors_beyond_num_if_they_are_listed() -> None:
    one = layer("yolo", classes=1, num=1, mask=(2,), anchors=(1, 2, 3, 4, 5, 6))  # as published cfgs do
    assert one.shape((6, 2, 3)) == (6, 2, 3)
    assert one.anchor_sizes()[2].tolist() == [5, 6]


def test_yolo_with_new_coords(be: Any) -> None:
    one = layer("yolo", classes=1, num=1, anchors=(20, 30), scale_x_y=2.0, new_coords=1)
    x = np.zeros((1, 6, 2, 3), np.float32)
    x[0, :, 1, 2] = (0.6, 0.4, 0.5, 0.25, 0.9, 0.8)
    rows = one.decode(be, be.asarray(forward(be, one, {}, x)), 96, 64, 0.5)
    want = [0, 0.9, (2 + 2 * 0.6 - 0.5) / 3, (1 + 2 * 0.4 - 0.5) / 2, 4 * 0.25 * 20 / 96, 4 * 0.0625 * 30 / 64, 0.72]
    np.testing.assert_allclose(rows, [want], rtol=1e-6)


@pytest.mark.parametrize(("point", "shift"), [("center", 0), ("left_top", 0.5), ("right_bottom", -0.5)])
def test_gaussian_yolo(be: Any, point: str, shift: float) -> None:
    one = layer("Gaussian_yolo", classes=2, num=1, anchors=(20, 30), yolo_point=point)
    x = np.full((1, 11, 2, 3), -9, np.float32)
    raw = np.array((0.1, -1, 0.2, -2, 0.3, 0.5, -0.4, -0.5, 1.5, 2.0, -5.0), np.float32)
    x[0, :, 1, 2] = raw
    y = forward(be, one, {}, x)
    want = sigmoid(raw)
    want[[4, 6]] = raw[[4, 6]]
    np.testing.assert_allclose(y[0, :, 1, 2], want, rtol=1e-6)
    w, h = np.exp(0.3) * 20 / 96, np.exp(-0.4) * 30 / 64
    p = want[8] * want[9] * (1 - want[1:8:2].mean())
    rows = one.decode(be, be.asarray(y), 96, 64, 0.2)
    expected = [0, want[8], (2 + want[0]) / 3 + shift * w, (1 + want[2]) / 2 + shift * h, w, h, p, 0]
    np.testing.assert_allclose(rows, [expected], rtol=1e-5)


REGION = dict(classes=5, num=2, coords=4, anchors=(1.0, 2.0, 3.0, 1.5))


def region_map() -> tuple[np.ndarray, np.ndarray]:
    """A map where one box stands out, at row 1, column 2, anchor 1; and its raw numbers."""
    x = np.full((1, 20, 2, 3), -9, np.float32)
    raw = np.array((0.5, -0.5, 0.2, 0.1, 3.0, 4.0, 0.0, 0.1, 3.0, 0.2), np.float32)
    x[0, 10:, 1, 2] = raw
    return x, raw


def test_region(be: Any) -> None:
    one = layer("region", softmax=1, **REGION)
    x, raw = region_map()
    y = forward(be, one, {}, x)
    cell = y.reshape(2, 3, 2, 10)[1, 2, 1]  # memory is [cell][anchor][entry]
    e = np.exp(raw[5:])
    np.testing.assert_allclose(cell, [*raw[:4], sigmoid(raw[4]), *(e / e.sum())], rtol=1e-5)
    rows = one.decode(be, be.asarray(y), 96, 64, 0.3)
    p = sigmoid(raw[4]) * e / e.sum()
    box = [(2 + sigmoid(0.5)) / 3, (1 + sigmoid(-0.5)) / 2, np.exp(0.2) * 3 / 3, np.exp(0.1) * 1.5 / 2]
    np.testing.assert_allclose(rows, [[0, 1, *box, *np.where(p > 0.3, p, 0)]], rtol=1e-5)


def test_region_with_a_tree_gives_the_deepest_class_above_one_half(be: Any) -> None:
    one = layer("region", tree=TREE, **REGION)
    x, raw = region_map()
    y = be.asarray(forward(be, one, {}, x))
    (row,) = one.decode(be, y, 96, 64, 0.3)
    animal = sigmoid(4.0)  # against thing, at 0
    np.testing.assert_allclose(row[6:], [0, 0, 0, animal * sigmoid(3.0 - 0.1), 0], rtol=1e-5)
    assert len(one.decode(be, y, 96, 64, 0.99)) == 0  # the objectness is lower


def test_region_with_a_map_gives_the_mapped_classes(be: Any) -> None:
    one = layer("region", tree=TREE, map=ClassMap((3, 0)), **REGION)
    x, raw = region_map()
    (row,) = one.decode(be, be.asarray(forward(be, one, {}, x)), 96, 64, 0.3)
    want = [sigmoid(raw[4]) * sigmoid(2.9), sigmoid(raw[4]) * sigmoid(4.0)]
    np.testing.assert_allclose(row[6:], want, rtol=1e-5)


def test_detection(be: Any) -> None:
    one = layer("detection", classes=3, num=2, side=2, coords=4, sqrt=1, softmax=1)
    x = np.zeros((1, 2 * 2 * (3 + 2 + 8), 1, 1), np.float32)
    flat = x.reshape(-1)
    flat[3 * 3 : 3 * 3 + 3] = (3, 1, 0)  # classes of cell 3: row 1, column 1
    flat[12 + 3 * 2 + 1] = 0.9  # confidence of its second box
    flat[20 + (3 * 2 + 1) * 4 :][:4] = (0.25, 0.5, 0.6, 0.8)
    y = forward(be, one, {}, x)
    (row,) = one.decode(be, be.asarray(y), 96, 64, 0.2)
    p = 0.9 * np.exp([3.0, 1, 0]) / np.exp([3.0, 1, 0]).sum()
    np.testing.assert_allclose(row, [0, 0.9, 1.25 / 2, 1.5 / 2, 0.36, 0.64, *np.where(p > 0.2, p, 0)], rtol=1e-5)


def test_every_layer_is_tested_here_or_in_a_file_of_its_name() -> None:
    here = Path(__file__)
    text = here.read_text(encoding="utf-8")
    spellings = {cls: {name for name, c in SECTIONS.items() if c is cls} for cls in SECTIONS.values()}
    untested = {cls for cls, names in spellings.items() if not any(f'"{name}"' in text for name in names)}
    files = {here.with_name(f"test_{cls.__module__.split('.')[-1]}.py") for cls in untested}
    assert not {file.name for file in files if not file.exists()}, "write these files, as in docs/layer.md"
