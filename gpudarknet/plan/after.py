"""What follows a gemm, on the CPU: bias, activation, sums and products, while the piece is in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ops import activation
from .steps import Activate, Add, After, Map, Multiply, Sort
from .team import Team

BLOCK = 1 << 15  # numbers worked on at a time: with scratch of that size they fit a core's L2

# (worker, image, rows from, to, channels from, to, the numbers (rows, W, channels) or None for those that are there)
Finish = Callable[..., None]
Last = Callable[[np.ndarray | None], Finish]  # given the bias that is still to be added, or None
Function = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]  # (x, y, two scratch arrays of y's shape)


def leaky(x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = max(x, 0.1 x)"""
    np.multiply(x, 0.1, out=t)
    np.maximum(x, t, out=y)


def relu(x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = max(x, 0)"""
    np.maximum(x, 0, out=y)


def logistic(x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = 1 / (1 + exp(-x)); where exp overflows the result is 0, as it should be."""
    np.negative(x, out=t)
    np.exp(t, out=t)
    t += 1
    np.reciprocal(t, out=y)


def swish(x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = x / (1 + exp(-x))"""
    np.negative(x, out=t)
    np.minimum(t, 80, out=t)
    np.exp(t, out=t)
    t += 1
    np.divide(x, t, out=y)


def mish(x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = x tanh(log(1 + e)) = x n / (n + 2) with e = exp(x), n = e (e + 2)"""
    np.minimum(x, 20, out=t)
    np.exp(t, out=t)
    np.add(t, 2, out=u)
    t *= u
    np.add(t, 2, out=u)
    t /= u
    np.multiply(x, t, out=y)


FUNCTIONS: dict[str, Function] = {
    "leaky": leaky, "revleaky": leaky, "relu": relu, "logistic": logistic, "swish": swish, "mish": mish,
}  # fmt: skip


def function(kind: str) -> Function:
    """Return an activation that allocates nothing; those without a form of their own go through the op's definition."""
    forward = activation.FUNCTIONS[kind][0]
    return FUNCTIONS.get(kind) or (lambda x, y, t, u: np.copyto(y, forward(np, x)))


def finish(
    after: Sequence[After], y: np.ndarray, view: Callable[[Map], np.ndarray], team: Team, bias: np.ndarray | None = None
) -> Finish:
    """Return a function that finishes a piece of y (N, H, W, C): adds bias (C,) if there is one, then does `after`.

    The piece is made from the numbers that the function is given, which stay as they are, or from those that lie there.
    """
    work = [_action(a, view) for a in after]
    if bias is not None:
        tile = np.tile(np.asarray(bias, np.float32), (y.shape[2], 1))  # as long as a row of the map: numbers side by side
        work.insert(0, lambda x, y, t, u, n, r, c: np.add(x, tile[:, c], out=y))

    def run(worker: int, n: int, r0: int, r1: int, c0: int, c1: int, source: np.ndarray | None = None) -> None:
        c, rows = slice(c0, c1), max(1, BLOCK // (y.shape[2] * (c1 - c0)))
        if not work and source is not None:
            y[n, r0:r1, :, c] = source
        for top in range(r0, r1, rows) if work else ():
            r = slice(top, min(top + rows, r1))
            part = y[n, r, :, c]
            x = part if source is None else source[r.start - r0 : r.stop - r0]
            out, t, u = team.scratch(worker, "finish", 3, *part.shape)
            if part.flags.c_contiguous:
                out = part  # elsewhere NumPy would take a part in pieces through buffers of its own
            for act in work:
                act(x, out, t, u, n, r, c)
                x = out
            if out is not part:
                part[...] = out

    return run


def _action(a: After, view: Callable[[Map], np.ndarray]) -> Callable[..., Any]:
    """Return f(x, y, t, u, n, r, c): do `a` to x, the rows r and channels c of image n, and put the result into y."""
    if isinstance(a, Activate):
        if a.kind in activation.NORMALIZERS:
            raise ValueError(f"{a.kind} looks across channels; it is no step's last act")
        activate = function(a.kind)
        return lambda x, y, t, u, n, r, c: activate(x, y, t, u)
    other = view(a.other)
    if isinstance(a, Add):
        return lambda x, y, t, u, n, r, c: np.add(x, other[n, r, :, c], out=y)
    if isinstance(a, Multiply):
        rows, channels = other.shape[1] > 1, other.shape[3] > 1
        whole = slice(None)

        def multiply(x: np.ndarray, y: np.ndarray, t: Any, u: Any, n: int, r: slice, c: slice) -> None:
            np.multiply(x, other[n, r if rows else whole, :, c if channels else whole], out=y)

        return multiply
    assert isinstance(a, Sort)
    eps, slope = a.eps, a.slope

    def sort(x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray, n: int, r: slice, c: slice) -> None:
        q = other[n, r, :, c]
        if slope:
            np.copyto(t, np.where(x > 0, x, slope * x) * np.where(q > 0, q, slope * q))
            np.maximum(t, 0, out=t)
        else:
            np.maximum(x, 0, out=t)
            np.maximum(q, 0, out=u)
            t *= u
        t += eps
        np.sqrt(t, out=t)
        np.add(x, q, out=y)
        y += t

    return sort
