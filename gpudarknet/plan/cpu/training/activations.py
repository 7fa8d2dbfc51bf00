"""Activations and their gradients on pieces in cache, without allocation for the usual kinds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ....ops import activation
from ..command_list import CommandList
from ..epilogue import activation_function

HUGE = np.float32(3e38)  # times a positive float32 that is not subnormal: above 1

# (commands, x, y, t, u): t = f'(x), with u as scratch, from the input x or the output y
Derivative = Callable[[CommandList, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def needs_input(kind: str) -> bool:
    """Return whether the gradient needs the activation's input."""
    return kind in activation.NEEDS_INPUT


def apply_activation(
    commands: CommandList, kind: str, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray
) -> None:
    """Record y = f(x); t and u are scratch."""
    if kind != "linear":
        activation_function(kind)(commands, x, y, t, u)
    elif x is not y:
        commands.record(np.copyto, y, x)


def step_function(low: float) -> Derivative:
    """Return the derivative that is 1 where y is positive, else `low`. A comparison and a selection would take longer."""

    def derivative(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
        commands.record(np.multiply, y, HUGE, out=t)
        commands.record(np.maximum, t, np.float32(low), out=t)
        commands.record(np.minimum, t, np.float32(1), out=t)

    return derivative


def logistic(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """t = (1 - y) y."""
    commands.record(np.subtract, np.float32(1), y, out=t)
    commands.record(np.multiply, t, y, out=t)


def swish(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """t = y + sigmoid(x) (1 - y)."""
    commands.record(np.negative, x, out=t)
    commands.record(np.minimum, t, np.float32(80), out=t)
    commands.record(np.exp, t, out=t)
    commands.record(np.add, t, np.float32(1), out=t)
    commands.record(np.subtract, np.float32(1), y, out=u)
    commands.record(np.divide, u, t, out=t)
    commands.record(np.add, t, y, out=t)


def mish(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """t = r + x (1 - r^2) e / (1 + e), with e = exp(x) and r = tanh(log(1 + e)) = n / (n + 2), n = e (e + 2).

    As 1 - r^2 = 4 (n + 1) / (n + 2)^2 and n + 1 = (1 + e)^2, t = (n + 4 x e (1 + e) / (n + 2)) / (n + 2). x is overwritten.
    """
    commands.record(np.minimum, x, np.float32(20), out=u)
    commands.record(np.exp, u, out=u)  # e
    commands.record(np.multiply, x, u, out=x)  # x e
    commands.record(np.add, u, np.float32(1), out=t)
    commands.record(np.multiply, x, t, out=x)  # x e (1 + e)
    commands.record(np.multiply, x, np.float32(4), out=x)
    commands.record(np.add, t, np.float32(1), out=t)
    commands.record(np.multiply, u, t, out=u)  # n
    commands.record(np.add, u, np.float32(2), out=t)  # n + 2
    commands.record(np.divide, x, t, out=x)
    commands.record(np.add, x, u, out=x)
    commands.record(np.divide, x, t, out=t)


DERIVATIVES: dict[str, Derivative] = {
    "leaky": step_function(0.1), "revleaky": step_function(0.1), "relie": step_function(0.01), "relu": step_function(0.0),
    "logistic": logistic, "swish": swish, "mish": mish,
}  # fmt: skip


def apply_gradient(
    commands: CommandList, kind: str, dy: np.ndarray, x: np.ndarray, y: np.ndarray, dx: np.ndarray, t: np.ndarray,
    u: np.ndarray,
) -> None:  # fmt: skip
    """Record dx = dy f'(x, y). x is only read by kinds that need it, and may be overwritten; t and u are scratch."""
    if kind == "linear":
        if dx is not dy:
            commands.record(np.copyto, dx, dy)
        return
    derivative = DERIVATIVES.get(kind)
    if derivative is None:
        reference = activation.FUNCTIONS[kind][1]
        commands.record(lambda: np.copyto(t, reference(np, x, y)))
    else:
        derivative(commands, x, y, t, u)
    commands.record(np.multiply, dy, t, out=dx)
