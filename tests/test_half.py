"""Training with float16 maps: every layer keeps float16 in memory and computes in float32; the loss scale; skipped steps."""

from __future__ import annotations

import numpy as np
import pytest
from test_gradients import CASES, JOINS, RECURRENT, arrays

from gpudarknet.layers import SECTIONS, Run

LAYERS = {name: ((shape,), keys) for name, (shape, keys) in CASES.items()} | JOINS
LAYERS["crnn"] = (((3, 4, 5),), dict(output=5, hidden=4, pad=1, activation="tanh"))  # no kink to be rounded across
LAYERS["connected softmax"] = (((3, 4, 5),), dict(output=6, activation="normalize_channels"))
LAYERS["convolutional xnor"] = (((5, 7, 6),), dict(filters=4, size=3, pad=1, xnor=1, batch_normalize=1))
LAYERS["shortcut weighted"] = (
    ((3, 4, 5), (3, 4, 5)), dict(from_=(0,), weights_type="per_channel", weights_normalization="relu"),
)  # fmt: skip


def there_and_back(be, name, dtype, train):
    """Run a layer both ways on maps of a type; return y, the dxs and the weights' gradients as NumPy arrays."""
    shapes, keys = LAYERS[name]
    rng = np.random.default_rng(3)
    layer, steps = SECTIONS[name.split()[0]](**keys), 3 if name.split()[0] in RECURRENT else 1
    # numbers that float16 holds exactly, so that both types choose the same maxima and signs
    xs = [rng.normal(0, 1, (5 * steps, *shape)).astype(np.float16).astype(dtype) for shape in shapes]
    w = {key: be.asarray(a, np.float32) for key, a in arrays(layer, shapes, rng).items()}
    chance = Run(train=train, rng=np.random.default_rng(7), steps=steps, progress=0.9)
    y, backward = layer.forward(be, w, *(be.asarray(x) for x in xs), run=chance)
    dy = np.random.default_rng(5).normal(0, 1, y.shape).astype(np.float16).astype(dtype)
    grad = {}
    dxs = backward(be.asarray(dy), grad)
    maps = [be.to_numpy(a) for a in (y, *dxs) if a is not None]
    return maps, {key: be.to_numpy(a) for key, a in grad.items()}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(be, name, train):
    """Within 2 % of each array's length: a few roundings of 11 bits, more of them through three steps of time."""
    maps, grad = there_and_back(be, name, np.float16, train)
    wanted, wanted_grad = there_and_back(be, name, np.float32, train)
    assert {a.dtype.name for a in maps} == {"float16"} and {a.dtype.name for a in grad.values()} <= {"float32"}
    assert grad.keys() == wanted_grad.keys()
    for got, want in [*zip(maps, wanted, strict=True), *((grad[k], wanted_grad[k]) for k in grad)]:
        assert np.linalg.norm(got.astype(np.float32) - want) <= 0.02 * np.linalg.norm(want)
