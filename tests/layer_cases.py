"""Cases of layers, which test_gradients.py, test_half.py and test_cupy.py run forward and backward.

A layer in a new file gpudarknet/layers/NAME.py brings its own cases: a dict CASES in tests/test_NAME.py, as here.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
from backends import NUMPY

from gpudarknet import layers
from gpudarknet.layers import SECTIONS, ForwardContext, Layer, Shape
from gpudarknet.layers.empty import History
from gpudarknet.layers.recurrent import Recurrent
from gpudarknet.ops import activation

EXACT = [kind for kind in activation.NAMES if kind not in ("gelu", "selu", "stair")]  # whose derivative is one

DARKNET_SECTIONS = frozenset(
    (
        "convolutional conv connected conn maxpool max local_avgpool local_avg avgpool avg softmax soft normalization lrn"
        " dropout batchnorm activation route shortcut scale_channels sam upsample reorg reorg3d crop cost local detection"
        " region yolo Gaussian_yolo rnn gru lstm crnn conv_lstm history implicit contrastive empty silence"
    ).split()
)

# section, and what is special -> shapes of the inputs, keys
CASES: dict[str, tuple[list[Shape], dict[str, Any]]] = {
    "convolutional": ([(5, 7, 6)], dict(filters=4, size=3, pad=1, activation="leaky")),
    "convolutional bn": ([(5, 7, 6)], dict(filters=4, size=3, pad=1, batch_normalize=1, activation="mish")),
    "convolutional groups": ([(6, 7, 5)], dict(filters=8, size=3, stride=2, pad=1, groups=2, activation="swish")),
    "convolutional dilation": ([(3, 9, 8)], dict(filters=4, size=3, pad=1, dilation=2, activation="linear")),
    "convolutional unequal strides": ([(3, 9, 8)], dict(filters=4, size=3, padding=1, stride_x=2, stride_y=3)),
    "convolutional even size": ([(3, 9, 8)], dict(filters=4, size=2, stride=2, padding=1, activation="linear")),
    "convolutional 1x1": ([(3, 4, 5)], dict(filters=7, activation="relu")),
    "convolutional blur 3": ([(3, 9, 8)], dict(filters=4, size=3, stride=2, pad=1, antialiasing=1)),
    "convolutional blur 2": ([(3, 9, 8)], dict(filters=4, size=3, stride=2, pad=1, antialiasing=2)),
    "convolutional softmax": ([(3, 4, 5)], dict(filters=7, activation="normalize_channels_softmax_maxval")),
    "connected": ([(3, 4, 5)], dict(output=6, activation="tanh")),
    "connected bn": ([(3, 4, 5)], dict(output=6, batch_normalize=1, activation="logistic")),
    "batchnorm": ([(3, 4, 5)], {}),
    "local": ([(3, 7, 6)], dict(filters=4, size=3, stride=2, pad=1)),
    "local unpadded": ([(3, 7, 6)], dict(filters=4, size=3, stride=2, activation="leaky")),
    "maxpool 2": ([(3, 7, 6)], dict(size=2, stride=2)),
    "maxpool stride 1": ([(3, 7, 6)], dict(size=2, stride=1)),
    "maxpool 3": ([(3, 9, 6)], dict(size=3, stride_x=2, stride_y=1)),
    "maxpool 5 in 2": ([(3, 9, 6)], dict(size=5, stride=2)),
    "maxpool depth": ([(7, 4, 5)], dict(maxpool_depth=1, out_channels=3)),
    "maxpool blur": ([(3, 9, 6)], dict(size=2, stride=2, antialiasing=1)),
    "maxpool nonmax": ([(3, 9, 6)], dict(size=3, stride=1, maxpool_zero_nonmax=1)),
    "local_avgpool": ([(3, 9, 6)], dict(size=3, stride=2)),
    "avgpool": ([(3, 4, 5)], {}),
    "dropout": ([(3, 4, 5)], dict(probability=0.4)),
    "dropout blocks": ([(9, 8, 7)], dict(probability=0.5, dropblock_size_abs=4)),
    "crop": ([(3, 9, 8)], dict(crop_height=5, crop_width=4, flip=1)),
    "crop noadjust": ([(3, 9, 8)], dict(crop_height=5, crop_width=4, noadjust=1)),
    "upsample": ([(3, 4, 5)], dict(stride=3, scale=0.5)),
    "upsample down": ([(3, 7, 5)], dict(stride=-2, scale=2)),
    "reorg": ([(8, 6, 4)], dict(stride=2)),
    "reorg reverse": ([(8, 3, 5)], dict(stride=2, reverse=1)),
    "reorg3d": ([(3, 6, 4)], dict(stride=2)),
    "reorg3d reverse": ([(16, 3, 5)], dict(stride=2, reverse=1)),
    "normalization": ([(7, 3, 4)], dict(alpha=0.3, beta=0.75, size=5, kappa=40)),
    "empty": ([(3, 4, 5)], {}),
    "contrastive": ([(3, 4, 5)], {}),
    "implicit": ([(3, 4, 5)], dict(filters=6, atoms=2)),
    "rnn": ([(3, 2, 1)], dict(output=5, hidden=4, activation="tanh", shortcut=1)),
    "rnn bn": ([(3, 2, 1)], dict(output=5, hidden=4, activation="logistic", batch_normalize=1, logistic=2)),
    "crnn": ([(3, 4, 5)], dict(output=5, hidden=4, pad=1, activation="leaky")),
    "gru": ([(3, 2, 1)], dict(output=5)),
    "lstm": ([(3, 2, 1)], dict(output=5)),
    "conv_lstm": ([(3, 4, 5)], dict(output=4, pad=1)),
    "conv_lstm peephole": ([(3, 4, 5)], dict(output=4, pad=1, peephole=1, state_constrain=1.5)),
    "conv_lstm bottleneck": ([(3, 4, 5)], dict(output=4, pad=1, bottleneck=1, activation="leaky")),
    "history": ([(3, 4, 5)], dict(history_size=3)),
    "route": ([(3, 4, 5), (2, 4, 5)], dict(layers=(0, 1))),
    "route groups": ([(4, 4, 5), (6, 4, 5)], dict(layers=(0, 1), groups=2, group_id=1)),
    "shortcut": ([(3, 4, 5), (3, 4, 5)], dict(from_=(0,), activation="leaky")),
    "shortcut three": ([(3, 4, 5), (2, 4, 5), (5, 4, 5)], dict(from_=(0, 1), activation="swish")),
    "sort_shortcut": ([(3, 4, 5), (3, 4, 5)], dict(from_=(0,), eps=0.01)),
    "sort_shortcut slope": ([(3, 4, 5), (3, 4, 5)], dict(from_=(0,), eps=0.01, slope=0.1, activation="mish")),
    "sort_shortcut fewer": ([(3, 4, 5), (2, 4, 5)], dict(from_=(0,), eps=0.01, activation="leaky")),
    "sort_shortcut more": ([(3, 4, 5), (4, 4, 5)], dict(from_=(0,), eps=0.01)),
    "sam": ([(3, 4, 5), (3, 4, 5)], dict(from_=0, activation="logistic")),
    "scale_channels": ([(3, 1, 1), (3, 4, 5)], dict(from_=0, activation="leaky")),
    "scale_channels pixels": ([(1, 4, 5), (3, 4, 5)], dict(from_=0, scale_wh=1)),
}  # fmt: skip
CASES |= {f"activation {kind}": ([(3, 4, 5)], dict(activation=kind)) for kind in EXACT}
for _module in iter_modules(layers.__path__):
    if (Path(__file__).parent / f"test_{_module.name}.py").is_file():
        CASES |= import_module(f"test_{_module.name}").CASES


def has_state(layer: Layer) -> bool:
    """Return whether a layer computes over time steps."""
    return isinstance(layer, (Recurrent, History))


def draw_weights(layer: Layer, inputs: Sequence[Shape], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw weights in float64; variances and scales are positive."""
    weights = {}
    for name, shape, _ in layer.weights(*inputs):
        a = rng.normal(0, 1, shape)
        weights[name] = np.abs(a) + 0.5 if name.endswith(("variance", "scale")) else a
    return weights


def directional(section, inputs, train=True, batch=3, seed=0, frozen=(), **keys):
    """Return (analytic, numeric) derivatives of a layer along one random direction of its inputs and weights."""
    rng = np.random.default_rng(seed)
    layer = SECTIONS[section](**keys)
    steps = 3 if has_state(layer) else 1
    xs = [rng.normal(0, 1, (batch * steps, *shape)) for shape in inputs]
    w = draw_weights(layer, inputs, rng)
    vs = [rng.normal(0, 1, x.shape) for x in xs]
    us = {name: rng.normal(0, 1, a.shape) for name, a in w.items() if not name.endswith(("mean", "variance"))}
    us = {name: u for name, u in us.items() if name not in frozen}

    def run(h):
        moved = {name: a + h * us.get(name, 0) for name, a in w.items()}
        ctx = ForwardContext(train=train, rng=np.random.default_rng(7), steps=steps, progress=0.9)
        return layer.forward(NUMPY, moved, *(x + h * v for x, v in zip(xs, vs, strict=True)), ctx=ctx)

    y, backward = run(0.0)
    dy, grad = rng.normal(0, 1, y.shape), {}
    assert y.shape == (batch * steps, *layer.shape(*inputs))
    dxs, h = backward(dy, grad), 1e-6
    analytic = sum(float((dx * v).sum()) for dx, v in zip(dxs, vs, strict=True) if dx is not None)
    analytic += sum(float((grad[name] * u).sum()) for name, u in us.items())
    numeric = float((dy * (run(h)[0] - run(-h)[0])).sum()) / (2 * h)
    return analytic, numeric
