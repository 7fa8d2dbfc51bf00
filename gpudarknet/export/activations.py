"""Darknet's activations as ONNX operators: name -> function(graph, x) -> y, as in `ops/activation.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .graph import Graph


def where(g: Graph, x: str, above: float, yes: str, no: str) -> str:
    """Return `yes` where x > above, else `no`."""
    return g.op("Where", g.op("Greater", x, float(above)), yes, no)


def affine(g: Graph, x: str, slope: float, offset: float) -> str:
    """Return slope * x + offset."""
    return g.op("Add", g.op("Mul", x, float(slope)), float(offset))


def gelu(g: Graph, x: str) -> str:
    """0.5 x (1 + tanh(0.797885 x + 0.035677 x^3))."""
    cube = g.op("Mul", g.op("Mul", x, x), g.op("Mul", x, 0.035677))
    bent = g.op("Tanh", g.op("Add", g.op("Mul", x, 0.797885), cube))
    return g.op("Mul", g.op("Mul", x, 0.5), g.op("Add", bent, 1.0))


def hard_mish(g: Graph, x: str) -> str:
    """X above 0, x^2/2 + x above -2, else 0."""
    curve = g.op("Add", g.op("Mul", g.op("Mul", x, x), 0.5), x)
    return where(g, x, 0, x, where(g, x, -2, curve, g.op("Mul", x, 0.0)))


def plse(g: Graph, x: str) -> str:
    """0.125 x + 0.5 between -4 and 4, slope 0.01 outside."""
    low, high, middle = affine(g, x, 0.01, 0.04), affine(g, x, 0.01, 0.96), affine(g, x, 0.125, 0.5)
    return g.op("Where", g.op("Less", x, -4.0), low, where(g, x, 4, high, middle))


def stair(g: Graph, x: str) -> str:
    """floor(x/2) where floor(x) is even, else floor(x/2) + x - floor(x)."""
    m, half = g.op("Floor", x), g.op("Floor", g.op("Mul", x, 0.5))
    odd = g.op("Sub", m, g.op("Mul", half, 2.0))
    return g.op("Add", half, g.op("Mul", g.op("Sub", x, m), where(g, odd, 0.5, odd, g.op("Mul", odd, 0.0))))


def normalize_channels(g: Graph, r: str) -> str:
    """Divide by 1e-4 + the sum over channels."""
    total = g.op("ReduceSum", r, np.array([1]), keepdims=1)
    return g.op("Div", r, g.op("Add", total, 1e-4))


ACTIVATIONS: dict[str, Callable[[Graph, str], str]] = {
    "linear": lambda g, x: x,
    "logistic": lambda g, x: g.op("Sigmoid", x),
    "loggy": lambda g, x: affine(g, g.op("Sigmoid", x), 2, -1),
    "relu": lambda g, x: g.op("Relu", x),
    "relu6": lambda g, x: g.op("Clip", x, 0.0, 6.0),
    "leaky": lambda g, x: g.op("LeakyRelu", x, alpha=0.1),
    "revleaky": lambda g, x: g.op("LeakyRelu", x, alpha=0.1),
    "relie": lambda g, x: g.op("LeakyRelu", x, alpha=0.01),
    "ramp": lambda g, x: g.op("Add", g.op("Relu", x), g.op("Mul", x, 0.1)),
    "elu": lambda g, x: g.op("Elu", x, alpha=1.0),
    "selu": lambda g, x: g.op("Selu", x, alpha=1.6732, gamma=1.0507),
    "gelu": gelu,
    "tanh": lambda g, x: g.op("Tanh", x),
    "plse": plse,
    "stair": stair,
    "hardtan": lambda g, x: g.op("Clip", x, -1.0, 1.0),
    "lhtan": lambda g, x: where(g, x, 1, affine(g, x, 0.001, 0.999), g.op("LeakyRelu", x, alpha=0.001)),
    "swish": lambda g, x: g.op("Mul", x, g.op("Sigmoid", x)),
    "mish": lambda g, x: g.op("Mul", x, g.op("Tanh", g.op("Softplus", x))),
    "hard_mish": hard_mish,
    "normalize_channels": lambda g, x: normalize_channels(g, g.op("Relu", x)),
    "normalize_channels_softmax": lambda g, x: normalize_channels(g, g.op("Exp", x)),
    "normalize_channels_softmax_maxval": lambda g, x: normalize_channels(
        g, g.op("Exp", g.op("Sub", x, g.op("ReduceMax", x, axes=[1], keepdims=1)))
    ),
}
