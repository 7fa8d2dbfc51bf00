"""What follows a gemm, on the CPU: bias, activation, sums and products, in place, while the piece is in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ops import activation
from .steps import Activate, Add, After, Map, Multiply, Sort
from .team import Team

BLOCK = 1 << 16  # numbers worked on at a time: with scratch of that size they fit a core's L2

Finish = Callable[[int, int, int, int, int, int], None]  # (worker, image, channels from, to, pixels from, to)
Last = Callable[[np.ndarray | None], Finish]  # given the bias that is still to be added, or None
InPlace = Callable[[np.ndarray, np.ndarray, np.ndarray], None]  # (y, two scratch arrays of y's shape)


def leaky(y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = max(y, 0.1 y)"""
    np.multiply(y, 0.1, out=t)
    np.maximum(y, t, out=y)


def relu(y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = max(y, 0)"""
    np.maximum(y, 0, out=y)


def logistic(y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = 1 / (1 + exp(-y)); where exp overflows the result is 0, as it should be."""
    np.negative(y, out=y)
    np.exp(y, out=y)
    y += 1
    np.reciprocal(y, out=y)


def swish(y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = y / (1 + exp(-y))"""
    np.negative(y, out=t)
    np.minimum(t, 80, out=t)
    np.exp(t, out=t)
    t += 1
    y /= t


def mish(y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = y tanh(log(1 + e)) = y n / (n + 2) with e = exp(y), n = e (e + 2)"""
    np.minimum(y, 20, out=t)
    np.exp(t, out=t)
    np.add(t, 2, out=u)
    t *= u
    np.add(t, 2, out=u)
    t /= u
    y *= t


IN_PLACE: dict[str, InPlace] = {
    "leaky": leaky, "revleaky": leaky, "relu": relu, "logistic": logistic, "swish": swish, "mish": mish,
}  # fmt: skip


def in_place(kind: str) -> InPlace:
    """Return an activation that works in place; those without a form of their own go through the op's definition."""
    forward = activation.FUNCTIONS[kind][0]
    return IN_PLACE.get(kind) or (lambda y, t, u: np.copyto(y, forward(np, y)))


def nothing(worker: int, n: int, c0: int, c1: int, p0: int, p1: int) -> None:
    """Finish a piece of which nothing is left to do."""


def finish(
    after: Sequence[After], y: np.ndarray, view: Callable[[Map], np.ndarray], team: Team, bias: np.ndarray | None = None
) -> Finish:
    """Return a function that finishes a piece of y (N, C, H, W): adds bias (C,) if there is one, then does `after`."""
    flat = _flat(y)
    work = [_action(a, view) for a in after]
    if bias is not None:
        column = np.ascontiguousarray(bias, np.float32).reshape(-1, 1)

        def add_bias(part: np.ndarray, t: Any, u: Any, n: int, c: slice, p: slice) -> None:
            part += column[c]

        work.insert(0, add_bias)
    if not work:
        return nothing

    def run(worker: int, n: int, c0: int, c1: int, p0: int, p1: int) -> None:
        rows = max(1, BLOCK // (p1 - p0))
        p = slice(p0, p1)
        for c in range(c0, c1, rows):
            cs = slice(c, min(c + rows, c1))
            part = flat[n, cs, p]
            t, u = team.scratch(worker, "finish", 2, *part.shape)
            for act in work:
                act(part, t, u, n, cs, p)

    return run


def _flat(a: np.ndarray) -> np.ndarray:
    """View (N, C, H, W), whose images may lie apart, as (N, C, H*W)."""
    N, C, H, W = a.shape
    return np.lib.stride_tricks.as_strided(a, (N, C, H * W), (a.strides[0], a.strides[1], a.itemsize))


def _action(a: After, view: Callable[[Map], np.ndarray]) -> Callable[..., None]:
    """Return f(part, t, u, n, c, p): do `a` to part, the channels c and pixels p of image n."""
    if isinstance(a, Activate):
        if a.kind in activation.NORMALIZERS:
            raise ValueError(f"{a.kind} looks across channels; it is no step's last act")
        function = in_place(a.kind)
        return lambda part, t, u, n, c, p: function(part, t, u)
    other = _flat(view(a.other))
    if isinstance(a, Add):
        return lambda part, t, u, n, c, p: np.add(part, other[n, c, p], out=part)
    if isinstance(a, Multiply):
        channels, pixels = other.shape[1] > 1, other.shape[2] > 1

        def multiply(part: np.ndarray, t: Any, u: Any, n: int, c: slice, p: slice) -> None:
            part *= other[n, c if channels else slice(0, 1), p if pixels else slice(0, 1)]

        return multiply
    assert isinstance(a, Sort)
    eps, slope = a.eps, a.slope

    def sort(part: np.ndarray, t: np.ndarray, u: np.ndarray, n: int, c: slice, p: slice) -> None:
        q = other[n, c, p]
        if slope:
            np.copyto(t, np.where(part > 0, part, slope * part) * np.where(q > 0, q, slope * q))
            np.maximum(t, 0, out=t)
        else:
            np.maximum(part, 0, out=t)
            np.maximum(q, 0, out=u)
            t *= u
        t += eps
        np.sqrt(t, out=t)
        part += q
        part += t

    return sort
