"""Every way back against directional derivatives in float64: <dy, f(x + h v) - f(x - h v)> / 2h = <dx, v> + <dw, u>.

float64 and h = 1e-6 leave an error of about 1e-9; random numbers keep away from kinks, and every size differs.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpudarknet import cfg, load_network
from gpudarknet.backend import Backend
from gpudarknet.graph import owner
from gpudarknet.layers import SECTIONS, ForwardContext
from gpudarknet.ops import activation, shortcut
from gpudarknet.train import backward

BE = Backend("numpy", np)
H = 1e-6


def arrays(layer, inputs, rng):
    """Draw weights in float64; variances and scales are positive."""
    drawn = {}
    for name, shape, _ in layer.weights(*inputs):
        a = rng.normal(0, 1, shape)
        drawn[name] = np.abs(a) + 0.5 if name.endswith(("variance", "scale")) else a
    return drawn


def directional(section, inputs, train=True, steps=1, batch=3, seed=0, frozen=(), **keys):
    """Return (analytic, numeric) derivatives of a layer along one random direction of its inputs and weights."""
    rng = np.random.default_rng(seed)
    layer = SECTIONS[section](**keys)
    xs = [rng.normal(0, 1, (batch * steps, *shape)) for shape in inputs]
    w = arrays(layer, inputs, rng)
    vs = [rng.normal(0, 1, x.shape) for x in xs]
    us = {name: rng.normal(0, 1, a.shape) for name, a in w.items() if not name.endswith(("mean", "variance"))}
    us = {name: u for name, u in us.items() if name not in frozen}

    def run(h):
        moved = {name: a + h * us.get(name, 0) for name, a in w.items()}
        chance = ForwardContext(train=train, rng=np.random.default_rng(7), steps=steps, progress=0.9)
        return layer.forward(BE, moved, *(x + h * v for x, v in zip(xs, vs, strict=True)), ctx=chance)

    y, backward = run(0.0)
    dy, grad = rng.normal(0, 1, y.shape), {}
    assert y.shape == (batch * steps, *layer.shape(*inputs))
    dxs = backward(dy, grad)
    analytic = sum(float((dx * v).sum()) for dx, v in zip(dxs, vs, strict=True) if dx is not None)
    analytic += sum(float((grad[name] * u).sum()) for name, u in us.items())
    numeric = float((dy * (run(H)[0] - run(-H)[0])).sum()) / (2 * H)
    return analytic, numeric


EXACT = [kind for kind in activation.NAMES if kind not in ("gelu", "selu", "stair")]
CASES = {
    "convolutional": ((5, 7, 6), dict(filters=4, size=3, pad=1, activation="leaky")),
    "convolutional bn": ((5, 7, 6), dict(filters=4, size=3, pad=1, batch_normalize=1, activation="mish")),
    "convolutional groups": ((6, 7, 5), dict(filters=8, size=3, stride=2, pad=1, groups=2, activation="swish")),
    "convolutional dilation": ((3, 9, 8), dict(filters=4, size=3, pad=1, dilation=2, activation="linear")),
    "convolutional unequal strides": ((3, 9, 8), dict(filters=4, size=3, padding=1, stride_x=2, stride_y=3)),
    "convolutional even size": ((3, 9, 8), dict(filters=4, size=2, stride=2, padding=1, activation="linear")),
    "convolutional 1x1": ((3, 4, 5), dict(filters=7, activation="relu")),
    "convolutional blur 3": ((3, 9, 8), dict(filters=4, size=3, stride=2, pad=1, antialiasing=1)),
    "convolutional blur 2": ((3, 9, 8), dict(filters=4, size=3, stride=2, pad=1, antialiasing=2)),
    "convolutional softmax": ((3, 4, 5), dict(filters=7, activation="normalize_channels_softmax_maxval")),
    "connected": ((3, 4, 5), dict(output=6, activation="tanh")),
    "connected bn": ((3, 4, 5), dict(output=6, batch_normalize=1, activation="logistic")),
    "batchnorm": ((3, 4, 5), {}),
    "local": ((3, 7, 6), dict(filters=4, size=3, stride=2, pad=1)),
    "local unpadded": ((3, 7, 6), dict(filters=4, size=3, stride=2, activation="leaky")),
    "maxpool 2": ((3, 7, 6), dict(size=2, stride=2)),
    "maxpool stride 1": ((3, 7, 6), dict(size=2, stride=1)),
    "maxpool 3": ((3, 9, 6), dict(size=3, stride_x=2, stride_y=1)),
    "maxpool 5 in 2": ((3, 9, 6), dict(size=5, stride=2)),
    "maxpool depth": ((7, 4, 5), dict(maxpool_depth=1, out_channels=3)),
    "maxpool blur": ((3, 9, 6), dict(size=2, stride=2, antialiasing=1)),
    "maxpool nonmax": ((3, 9, 6), dict(size=3, stride=1, maxpool_zero_nonmax=1)),
    "local_avgpool": ((3, 9, 6), dict(size=3, stride=2)),
    "avgpool": ((3, 4, 5), {}),
    "dropout": ((3, 4, 5), dict(probability=0.4)),
    "dropout blocks": ((9, 8, 7), dict(probability=0.5, dropblock_size_abs=4)),
    "crop": ((3, 9, 8), dict(crop_height=5, crop_width=4, flip=1)),
    "crop noadjust": ((3, 9, 8), dict(crop_height=5, crop_width=4, noadjust=1)),
    "upsample": ((3, 4, 5), dict(stride=3, scale=0.5)),
    "upsample down": ((3, 7, 5), dict(stride=-2, scale=2)),
    "reorg": ((8, 6, 4), dict(stride=2)),
    "reorg reverse": ((8, 3, 5), dict(stride=2, reverse=1)),
    "reorg3d": ((3, 6, 4), dict(stride=2)),
    "reorg3d reverse": ((16, 3, 5), dict(stride=2, reverse=1)),
    "normalization": ((7, 3, 4), dict(alpha=0.3, beta=0.75, size=5, kappa=40)),
    "empty": ((3, 4, 5), {}),
    "implicit": ((3, 4, 5), dict(filters=6, atoms=2)),
    "rnn": ((3, 2, 1), dict(output=5, hidden=4, activation="tanh", shortcut=1)),
    "rnn bn": ((3, 2, 1), dict(output=5, hidden=4, activation="logistic", batch_normalize=1, logistic=2)),
    "crnn": ((3, 4, 5), dict(output=5, hidden=4, pad=1, activation="leaky")),
    "gru": ((3, 2, 1), dict(output=5)),
    "lstm": ((3, 2, 1), dict(output=5)),
    "conv_lstm": ((3, 4, 5), dict(output=4, pad=1)),
    "conv_lstm peephole": ((3, 4, 5), dict(output=4, pad=1, peephole=1, state_constrain=1.5)),
    "conv_lstm bottleneck": ((3, 4, 5), dict(output=4, pad=1, bottleneck=1, activation="leaky")),
    "history": ((3, 4, 5), dict(history_size=3)),
}  # fmt: skip
JOINS = {
    "route": (((3, 4, 5), (2, 4, 5)), dict(layers=(0, 1))),
    "route groups": (((4, 4, 5), (6, 4, 5)), dict(layers=(0, 1), groups=2, group_id=1)),
    "shortcut": (((3, 4, 5), (3, 4, 5)), dict(from_=(0,), activation="leaky")),
    "shortcut three": (((3, 4, 5), (2, 4, 5), (5, 4, 5)), dict(from_=(0, 1), activation="swish")),
    "sort_shortcut": (((3, 4, 5), (3, 4, 5)), dict(from_=(0,), eps=0.01)),
    "sort_shortcut slope": (((3, 4, 5), (3, 4, 5)), dict(from_=(0,), eps=0.01, slope=0.1, activation="mish")),
    "sort_shortcut fewer": (((3, 4, 5), (2, 4, 5)), dict(from_=(0,), eps=0.01, activation="leaky")),
    "sort_shortcut more": (((3, 4, 5), (4, 4, 5)), dict(from_=(0,), eps=0.01)),
    "sam": (((3, 4, 5), (3, 4, 5)), dict(from_=0, activation="logistic")),
    "scale_channels": (((3, 1, 1), (3, 4, 5)), dict(from_=0, activation="leaky")),
    "scale_channels pixels": (((1, 4, 5), (3, 4, 5)), dict(from_=0, scale_wh=1)),
}  # fmt: skip
RECURRENT = ("rnn", "crnn", "gru", "lstm", "conv_lstm", "history")


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_layer(name, train):
    section, (shape, keys) = name.split()[0], CASES[name]
    steps = 3 if section in RECURRENT else 1
    analytic, numeric = directional(section, (shape,), train, steps, **keys)
    softmax = keys.get("activation") == "normalize_channels_softmax_maxval"  # its backward leaves out the 1e-4 below
    assert analytic == pytest.approx(numeric, rel=3e-4 if softmax else 1e-6, abs=1e-6)


@pytest.mark.parametrize("name", JOINS)
def test_layer_that_joins(name):
    shapes, keys = JOINS[name]
    analytic, numeric = directional(name.split()[0], shapes, **keys)
    assert analytic == pytest.approx(numeric, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", EXACT)
def test_activation(kind):
    analytic, numeric = directional("activation", ((3, 4, 5),), activation=kind)
    assert analytic == pytest.approx(numeric, rel=1e-6, abs=1e-7)


def test_every_layer_with_numbers_is_checked():
    """A new section needs a case; what is left out passes deltas unchanged, or is a detection head with its own tests."""
    checked = {name.split()[0] for name in (*CASES, *JOINS)} | {"activation"}
    unchanged = {"softmax", "cost", "yolo", "Gaussian_yolo", "region", "detection", "contrastive"}
    assert {kind.section for kind in SECTIONS.values()} == checked | unchanged


# Darknet's derivatives that are not derivatives: kept, and held to its formulas


def test_gelu_takes_the_output_for_the_input():
    x = np.linspace(-3, 3, 13).reshape(1, 1, 1, 13)
    y = activation.activate(BE, x, "gelu")
    u = 0.0356774 * y**3 + 0.797885 * y
    formula = 0.5 * np.tanh(u) + (0.0535161 * y**3 + 0.398942 * y) / np.cosh(u) ** 2 + 0.5
    np.testing.assert_allclose(activation.activate_backward(BE, np.ones_like(x), x, y, "gelu"), formula, rtol=1e-12)


def test_selu_adds_the_product_of_its_constants():
    x = np.array([[-2.0, -0.5, 0.5, 2.0]])
    y = activation.activate(BE, x, "selu")
    formula = np.where(y >= 0, 1.0507, y + 1.0507 * 1.6732)
    np.testing.assert_allclose(activation.activate_backward(BE, np.ones_like(x), x, y, "selu"), formula, rtol=1e-12)


def test_normalize_channels_multiplies_by_its_output():
    rng = np.random.default_rng(3)
    x, dy = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 4, 5))
    y = activation.normalize_channels(BE, x, 0)
    np.testing.assert_allclose(activation.normalize_channels_backward(BE, dy, y, 0), np.where(y > 0, dy * y, 0))


@pytest.mark.parametrize("kind", ["binary", "xnor"])
def test_binary_kernels_pass_their_gradient_to_the_real_ones(kind):
    """The gradient is that of the binarised kernel, handed to the real one: the straight-through estimate."""
    rng = np.random.default_rng(5)
    layer = SECTIONS["convolutional"](filters=4, size=3, pad=1, activation="linear", **{kind: 1})
    w = {"bias": np.zeros(4), "kernel": rng.normal(size=(4, 3, 3, 3))}
    signs = np.sign(w["kernel"]) * np.abs(w["kernel"]).mean(axis=(1, 2, 3), keepdims=True)
    x = rng.normal(size=(2, 3, 5, 6))
    read = np.where(x >= 0, 1.0, -1.0) if kind == "xnor" else x
    plain = SECTIONS["convolutional"](filters=4, size=3, pad=1, activation="linear")
    y, back = layer.forward(BE, w, x, ctx=ForwardContext(train=True))
    wanted, plain_back = plain.forward(BE, {"bias": w["bias"], "kernel": signs}, read, ctx=ForwardContext(train=True))
    np.testing.assert_allclose(y, wanted, rtol=1e-12)
    dy, grad, plain_grad = rng.normal(size=y.shape), {}, {}
    (dx,), (plain_dx,) = back(dy, grad), plain_back(dy, plain_grad)
    np.testing.assert_allclose(grad["kernel"], plain_grad["kernel"], rtol=1e-12)
    np.testing.assert_allclose(dx, plain_dx * (np.abs(x) < 1) if kind == "xnor" else plain_dx, rtol=1e-12)


@pytest.mark.parametrize("normalization", ["relu", "softmax"])
@pytest.mark.parametrize("kind", ["per_layer", "per_channel"])
def test_weighted_shortcut(kind, normalization):
    """Maps get exact gradients; the factors Darknet's: the diagonal of the normalisation's derivative only."""
    shapes, keys = ((3, 4, 5), (3, 4, 5), (2, 4, 5)), dict(weights_type=kind, weights_normalization=normalization)
    analytic, numeric = directional("shortcut", shapes, frozen=("weight",), from_=(0, 1), **keys)
    assert analytic == pytest.approx(numeric, rel=1e-6)
    rng = np.random.default_rng(1)
    layer = SECTIONS["shortcut"](from_=(0, 1), **keys)
    xs = [rng.normal(size=(2, *s)) for s in shapes]
    w = {"weight": rng.uniform(0.5, 1.5, (3, 3 if kind == "per_channel" else 1))}
    y, back = layer.forward(BE, w, *xs, ctx=ForwardContext(train=True))
    dy, grad = rng.normal(size=y.shape), {}
    back(dy, grad)
    r = np.exp(w["weight"] - w["weight"].max(axis=0)) if normalization == "softmax" else w["weight"]
    v = r / (1e-4 + r.sum(axis=0))
    factor = v * (1 - v) if normalization == "softmax" else v
    for t, x in enumerate(xs):
        C = x.shape[1]
        sums = np.zeros(3)
        sums[:C] = (dy[:, :C] * x).sum(axis=(0, 2, 3))
        wanted = factor[t] * (sums if kind == "per_channel" else sums.sum())
        np.testing.assert_allclose(grad["weight"][t], wanted, rtol=1e-9)


# SORT-shortcut: y = a + b + sqrt(R(a) R(b) + eps)

TABLE = [  # eps, a, b, y, dy/da, dy/db
    (1e-4, 2, 8, 14.0000125, 1.9999969, 1.2499992),
    (1e-4, -1, 3, 2.01, 1, 1),
    (1e-4, 0.5, 0, 0.51, 1, 1),
    (1e-3, 2, 8, 14.000125, 1.9999688, 1.2499922),
    (1e-3, -1, 3, 2.0316228, 1, 1),
    (1e-2, 2, 8, 14.0012498, 1.9996876, 1.2499219),
    (1e-2, -1, 3, 2.1, 1, 1),
]


def sort(a, b, eps, slope=0.0):
    """Return y, dy/da, dy/db for numbers."""
    one = np.ones((1, 1, 1, 1))
    y = shortcut.sort_shortcut(BE, a * one, b * one, eps, slope)
    return (float(v.squeeze()) for v in (y, *shortcut.sort_shortcut_backward(BE, one, a * one, b * one, eps, slope)))


@pytest.mark.parametrize("row", TABLE)
def test_sort_values(row):
    eps, a, b, *wanted = row
    np.testing.assert_allclose(list(sort(a, b, eps)), wanted, atol=1e-7)


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("eps", [1e-4, 1e-2])
def test_sort_against_central_differences(eps, slope):
    for a in (-2.0, -0.3, 0.4, 3.0):
        for b in (-1.0, -0.2, 0.7, 2.0):
            _, da, db = sort(a, b, eps, slope)
            up, down = next(sort(a + H, b, eps, slope)), next(sort(a - H, b, eps, slope))
            assert da == pytest.approx((up - down) / (2 * H), rel=1e-7)
            up, down = next(sort(a, b + H, eps, slope)), next(sort(a, b - H, eps, slope))
            assert db == pytest.approx((up - down) / (2 * H), rel=1e-7)


def test_sort_at_zero():
    """At a = 0 the second-order term has no gradient; just above it jumps to b / (2 sqrt(eps)), which eps bounds."""
    for eps, slope in ((1e-4, 50.0), (1e-3, 15.811388), (1e-2, 5.0)):
        assert list(sort(0.0, 1.0, eps))[1:] == [1.0, 1.0]
        _, da, _ = sort(1e-12, 1.0, eps)
        assert da == pytest.approx(1 + slope, rel=1e-6)


def test_sort_is_symmetric():
    rng = np.random.default_rng(2)
    a, b, dy = rng.normal(size=(3, 2, 3, 4, 5))
    y, swapped = shortcut.sort_shortcut(BE, a, b, 0.01, 0.0), shortcut.sort_shortcut(BE, b, a, 0.01, 0.0)
    np.testing.assert_allclose(y, swapped, rtol=1e-12)
    da, db = shortcut.sort_shortcut_backward(BE, dy, a, b, 0.01, 0.0)
    np.testing.assert_allclose((db, da), shortcut.sort_shortcut_backward(BE, dy, b, a, 0.01, 0.0), rtol=1e-12)


# Whole networks: an output that several layers read gets the sum of what they send back

CONV = "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=swish\n"
NETWORKS = {
    "shortcuts and routes": CONV + CONV + "[shortcut]\nfrom=-2\nactivation=leaky\n" + CONV
    + "[shortcut]\nfrom=-3,0\n[route]\nlayers=0,-1,2,0\n" + CONV,
    "sort": CONV + CONV + "[sort_shortcut]\nfrom=-2\neps=0.01\n" + CONV
    + "[sort_shortcut]\nfrom=-2\n[maxpool]\nsize=2\nstride=2\n",
    "squeeze": CONV + "batch_normalize=1\n[avgpool]\n[convolutional]\nfilters=4\nactivation=logistic\n[scale_channels]\nfrom=0\n"
    "[sam]\nfrom=0\n[route]\nlayers=-1,0\n" + CONV,
    "pyramid": CONV + "[maxpool]\nsize=2\nstride=2\n" + CONV + "batch_normalize=1\n[upsample]\nstride=2\n[route]\nlayers=-1,0\n"
    + CONV + "[reorg]\nstride=2\n[route]\nlayers=-1\ngroups=2\ngroup_id=1\n[dropout]\nprobability=0.3\n",
    "shared weights": CONV + CONV + CONV + "share_index=1\n[shortcut]\nfrom=0\n" + CONV + "share_index=1\n",
    "sequences": "[crnn]\noutput=3\nhidden=4\npad=1\nactivation=leaky\n[history]\nhistory_size=2\n[conv_lstm]\noutput=4\npad=1\n",
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    steps = 3 if name == "sequences" else 1
    text = f"[net]\nwidth=8\nheight=6\nchannels=3\ntime_steps={steps}\n" + NETWORKS[name]
    net = load_network(cfg.parse(text), backend="numpy")
    rng = np.random.default_rng(4)
    owners = [owner(node) for node in net.nodes]
    arrays = [{k: rng.normal(0, 0.5, a.shape) for k, a in own.items()} for own in net.weights]
    for own in arrays:
        own |= {k: np.abs(a) + 0.5 for k, a in own.items() if k in ("scale", "variance")}
    x, v = rng.normal(size=(2, 2 * steps, *net.net.input))
    us = [{k: rng.normal(size=a.shape) for k, a in own.items() if k not in ("mean", "variance")} for own in arrays]

    def run(h):
        net.weights = [{k: a + h * us[o].get(k, 0) for k, a in arrays[o].items()} for o in owners]
        outputs, ways = [], []
        chance = ForwardContext(train=True, rng=np.random.default_rng(7), steps=steps)
        net.forward(x + h * v, chance, lambda index, y, way: (outputs.append(y), ways.append(way)))
        return outputs[-1], ways

    y, ways = run(0.0)
    dy = rng.normal(size=y.shape)
    gradients = [{} for _ in arrays]
    gradients = [gradients[o] for o in owners]
    left = backward(net.nodes, ways, {len(ways) - 1: dy}, gradients)
    assert list(left) == [-1] and ways == [None] * len(ways)
    analytic = float((left[-1] * v).sum())
    analytic += sum(
        float((gradients[i][k] * u).sum()) for i, own in enumerate(us) for k, u in own.items() if owners[i] == i
    )
    numeric = float((dy * (run(H)[0] - run(-H)[0])).sum()) / (2 * H)
    assert analytic == pytest.approx(numeric, rel=1e-6)
