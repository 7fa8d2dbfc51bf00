"""What follows a gemm, on the CPU: bias, activation, sums and products, while the piece is in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...ops import activation
from ..steps import Activate, Add, EpilogueOp, FeatureMap, Multiply, Sort
from .command_list import Tape

BLOCK = 1 << 16  # numbers worked on at a time: with scratch of that size they fit a core's L2

# (tape, image, rows from, to, channels from, to, the numbers (rows, W, channels) or None for those that are there)
Finish = Callable[..., None]
Last = Callable[[np.ndarray | None], Finish]  # given the bias that is still to be added, or None
Function = Callable[[Tape, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]  # two scratch arrays of x's shape


def leaky(tape: Tape, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = max(x, 0.1 x)"""
    tape(np.multiply, x, 0.1, out=t)
    tape(np.maximum, x, t, out=y)


def relu(tape: Tape, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = max(x, 0)"""
    tape(np.maximum, x, 0, out=y)


def logistic(tape: Tape, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = 1 / (1 + exp(-x)); where exp overflows the result is 0, as it should be."""
    tape(np.negative, x, out=t)
    tape(np.exp, t, out=t)
    tape(np.add, t, 1, out=t)
    tape(np.reciprocal, t, out=y)


def swish(tape: Tape, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = x / (1 + exp(-x))"""
    tape(np.negative, x, out=t)
    tape(np.minimum, t, 80, out=t)
    tape(np.exp, t, out=t)
    tape(np.add, t, 1, out=t)
    tape(np.divide, x, t, out=y)


def mish(tape: Tape, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = x tanh(log(1 + e)) = x n / (n + 2) with e = exp(x), n = e (e + 2)"""
    tape(np.minimum, x, 20, out=t)
    tape(np.exp, t, out=t)
    tape(np.add, t, 2, out=u)
    tape(np.multiply, t, u, out=t)
    tape(np.add, t, 2, out=u)
    tape(np.divide, t, u, out=t)
    tape(np.multiply, x, t, out=y)


FUNCTIONS: dict[str, Function] = {
    "leaky": leaky, "revleaky": leaky, "relu": relu, "logistic": logistic, "swish": swish, "mish": mish,
}  # fmt: skip


def function(kind: str) -> Function:
    """Return an activation that allocates nothing; those without a form of their own go through the op's definition."""
    forward = activation.FUNCTIONS[kind][0]
    return FUNCTIONS.get(kind) or (lambda tape, x, y, t, u: tape(lambda: np.copyto(y, forward(np, x))))


def finish(
    epilogue: Sequence[EpilogueOp],
    y: np.ndarray,
    view: Callable[[FeatureMap], np.ndarray],
    bias: np.ndarray | None = None,
) -> Finish:
    """Return a function that records how a piece of y (N, H, W, C) is finished: bias (C,) if there is one, then `after`.

    The piece is made from the numbers that the function is given, which stay as they are, or from those that lie there.
    """
    work = [_action(a, view) for a in epilogue]
    if bias is not None:
        tile = np.tile(
            np.asarray(bias, np.float32), (y.shape[2], 1)
        )  # as long as a row of the map: numbers side by side
        work.insert(0, lambda tape, x, y, t, u, n, r, c: tape(np.add, x, tile[:, c], out=y))

    def record(tape: Tape, n: int, r0: int, r1: int, c0: int, c1: int, source: np.ndarray | None = None) -> None:
        c, rows = slice(c0, c1), max(1, BLOCK // (y.shape[2] * (c1 - c0)))
        if not work and source is not None:
            part = y[n, r0:r1, :, c]
            if np.may_share_memory(part, source):  # as parts of one map do: NumPy would allocate a copy
                source, apart = tape.scratch("finish", *part.shape), source
                tape(np.copyto, source, apart)
            tape(np.copyto, part, source)
        for top in range(r0, r1, rows) if work else ():
            r = slice(top, min(top + rows, r1))
            part = y[n, r, :, c]
            x = part if source is None else source[r.start - r0 : r.stop - r0]
            out, t, u = tape.scratch("finish", 3, *part.shape)
            if part.flags.c_contiguous:
                out = part  # elsewhere NumPy would take a part in pieces through buffers of its own
            for act in work:
                act(tape, x, out, t, u, n, r, c)
                x = out
            if out is not part:
                tape(np.copyto, part, out)

    return record


def _action(a: EpilogueOp, view: Callable[[FeatureMap], np.ndarray]) -> Callable[..., None]:
    """Return f(tape, x, y, t, u, n, r, c): record y = `a` of x, which are the rows r and channels c of image n."""
    if isinstance(a, Activate):
        if a.kind in activation.NORMALIZERS:
            raise ValueError(f"{a.kind} looks across channels; it is no step's last act")
        activate = function(a.kind)
        return lambda tape, x, y, t, u, n, r, c: activate(tape, x, y, t, u)
    other = view(a.other)
    if isinstance(a, Add):
        return lambda tape, x, y, t, u, n, r, c: tape(np.add, x, other[n, r, :, c], out=y)
    if isinstance(a, Multiply):
        rows, channels = other.shape[1] > 1, other.shape[3] > 1
        whole = slice(None)
        return lambda tape, x, y, t, u, n, r, c: tape(
            np.multiply, x, other[n, r if rows else whole, :, c if channels else whole], out=y
        )
    assert isinstance(a, Sort)
    eps, slope = a.eps, a.slope

    def sort(
        tape: Tape, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray, n: int, r: slice, c: slice
    ) -> None:
        q = other[n, r, :, c]
        for source, positive in ((x, t), (q, u)):
            tape(np.maximum, source, 0, out=positive)
        tape(np.multiply, t, u, out=t)
        if slope:  # what is negative on both sides counts slope * slope
            tape(lambda: np.add(t, np.minimum(x, 0) * np.minimum(q, 0) * np.float32(slope * slope), out=t))
        tape(np.add, t, eps, out=t)
        tape(np.sqrt, t, out=t)
        tape(np.add, x, q, out=y)
        tape(np.add, y, t, out=y)

    return sort
