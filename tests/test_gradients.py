"""Every backward pass against directional derivatives in float64: <dy, f(x + h v) - f(x - h v)> / 2h = <dx, v> + <dw, u>.

float64 and h = 1e-6 leave an error of about 1e-9. Random values avoid kinks, and all sizes differ.
"""

from __future__ import annotations

import numpy as np
import pytest
from layer_cases import CASES, directional

from gpudarknet import cfg, load_network
from gpudarknet.backend import Backend
from gpudarknet.graph import owner
from gpudarknet.layers import SECTIONS, ForwardContext
from gpudarknet.ops import activation, shortcut
from gpudarknet.train import backward

BE = Backend("numpy", np)
H = 1e-6


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_layer(name, train):
    shapes, keys = CASES[name]
    analytic, numeric = directional(name.split()[0], shapes, train, **keys)
    softmax = keys.get("activation") == "normalize_channels_softmax_maxval"  # its backward leaves out the 1e-4 below
    assert analytic == pytest.approx(numeric, rel=3e-4 if softmax else 1e-6, abs=1e-6)


def test_every_layer_has_a_case():
    """Except layers with a loss: they pass its delta on, and have tests of their own in test_losses.py."""
    missing = {kind for kind in SECTIONS.values() if not kind.has_loss} - {SECTIONS[name.split()[0]] for name in CASES}
    files = [f"tests/test_{kind.__module__.split('.')[-1]}.py for [{kind.section}]" for kind in missing]
    assert files == [], "define CASES, as in tests/layer_cases.py"


# Darknet's derivatives that are not derivatives: kept, and held to its formulas


def test_gelu_uses_the_output_as_the_input():
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
    """Maps get exact gradients; the factors Darknet's: the diagonal of the normalization's derivative only."""
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


# Whole networks: the gradient of an output is the sum over all its readers

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
        outputs, backwards = [], []
        ctx = ForwardContext(train=True, rng=np.random.default_rng(7), steps=steps)
        net.forward(x + h * v, ctx, lambda index, y, backward_fn: (outputs.append(y), backwards.append(backward_fn)))
        return outputs[-1], backwards

    y, backwards = run(0.0)
    dy = rng.normal(size=y.shape)
    gradients = [{} for _ in arrays]
    gradients = [gradients[o] for o in owners]
    left = backward(net.nodes, backwards, {len(backwards) - 1: dy}, gradients)
    assert list(left) == [-1] and backwards == [None] * len(backwards)
    analytic = float((left[-1] * v).sum())
    analytic += sum(
        float((gradients[i][k] * u).sum()) for i, own in enumerate(us) for k, u in own.items() if owners[i] == i
    )
    numeric = float((dy * (run(H)[0] - run(-H)[0])).sum()) / (2 * H)
    assert analytic == pytest.approx(numeric, rel=1e-6)
