"""Epilogues on the CPU: bias, activation, sums and products, applied to a piece of the result while it is in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...ops import activation
from ..steps import Activate, Add, EpilogueOp, FeatureMap, Multiply, SortShortcut
from .command_list import CommandList

BLOCK = 1 << 16  # elements processed at once; with scratch of that size they fit a core's L2

# (commands, image, first row, end row, first channel, end channel, source (rows, W, channels), or None to work in place)
ApplyEpilogue = Callable[[CommandList, int, int, int, int, int, np.ndarray | None], None]
EpilogueFactory = Callable[[np.ndarray | None], ApplyEpilogue]  # called with the bias still to be added, or None
Activation = Callable[[CommandList, np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]  # x, y, two scratch arrays


def leaky(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = max(x, 0.1 x)."""
    commands.record(np.multiply, x, 0.1, out=t)
    commands.record(np.maximum, x, t, out=y)


def relu(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = max(x, 0)."""
    commands.record(np.maximum, x, 0, out=y)


def logistic(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = 1 / (1 + exp(-x)); if exp overflows, the result is 0, as it should be."""
    commands.record(np.negative, x, out=t)
    commands.record(np.exp, t, out=t)
    commands.record(np.add, t, 1, out=t)
    commands.record(np.reciprocal, t, out=y)


def swish(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = x / (1 + exp(-x))."""
    commands.record(np.negative, x, out=t)
    commands.record(np.minimum, t, 80, out=t)
    commands.record(np.exp, t, out=t)
    commands.record(np.add, t, 1, out=t)
    commands.record(np.divide, x, t, out=y)


def mish(commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray) -> None:
    """y = x tanh(log(1 + e)) = x n / (n + 2) with e = exp(x), n = e (e + 2)."""
    commands.record(np.minimum, x, 20, out=t)
    commands.record(np.exp, t, out=t)
    commands.record(np.add, t, 2, out=u)
    commands.record(np.multiply, t, u, out=t)
    commands.record(np.add, t, 2, out=u)
    commands.record(np.divide, t, u, out=t)
    commands.record(np.multiply, x, t, out=y)


ACTIVATIONS: dict[str, Activation] = {
    "leaky": leaky, "revleaky": leaky, "relu": relu, "logistic": logistic, "swish": swish, "mish": mish,
}  # fmt: skip


def activation_function(kind: str) -> Activation:
    """Return an activation that allocates nothing; kinds that are not in ACTIVATIONS use the op's reference."""
    reference = activation.FUNCTIONS[kind][0]
    return ACTIVATIONS.get(kind) or (
        lambda commands, x, y, t, u: commands.record(lambda: np.copyto(y, reference(np, x)))
    )


def bind_epilogue(
    epilogue: Sequence[EpilogueOp],
    y: np.ndarray,
    view: Callable[[FeatureMap], np.ndarray],
    bias: np.ndarray | None = None,
) -> ApplyEpilogue:
    """Return a function that records bias (C,), if given, then the epilogue on a piece of y (N, H, W, C).

    The piece is computed from `source`, which stays unchanged, or in place.
    """
    ops = [_bind_op(op, view) for op in epilogue]
    if bias is not None:
        tile = np.tile(np.asarray(bias, np.float32), (y.shape[2], 1))  # a row of the map, so that the sum is contiguous
        ops.insert(0, lambda commands, x, y, t, u, n, r, c: commands.record(np.add, x, tile[:, c], out=y))

    def apply(
        commands: CommandList, n: int, r0: int, r1: int, c0: int, c1: int, source: np.ndarray | None = None
    ) -> None:
        c, rows = slice(c0, c1), max(1, BLOCK // (y.shape[2] * (c1 - c0)))
        if not ops and source is not None:
            piece = y[n, r0:r1, :, c]
            if np.may_share_memory(piece, source):  # two slices of one map: NumPy would allocate a copy
                source, original = commands.scratch("epilogue", *piece.shape), source
                commands.record(np.copyto, source, original)
            commands.record(np.copyto, piece, source)
        for top in range(r0, r1, rows) if ops else ():
            r = slice(top, min(top + rows, r1))
            piece = y[n, r, :, c]
            x = piece if source is None else source[r.start - r0 : r.stop - r0]
            out, t, u = commands.scratch("epilogue", 3, *piece.shape)
            if piece.flags.c_contiguous:
                out = piece  # if it is strided, NumPy would go through small buffers
            for op in ops:
                op(commands, x, out, t, u, n, r, c)
                x = out
            if out is not piece:
                commands.record(np.copyto, piece, out)

    return apply


def _bind_op(op: EpilogueOp, view: Callable[[FeatureMap], np.ndarray]) -> Callable[..., None]:
    """Return f(commands, x, y, t, u, n, r, c): record y = op(x), where x is rows r and channels c of image n."""
    if isinstance(op, Activate):
        if op.kind in activation.NORMALIZERS:
            raise ValueError(f"{op.kind} reduces over channels; it cannot be part of an epilogue")
        activate = activation_function(op.kind)
        return lambda commands, x, y, t, u, n, r, c: activate(commands, x, y, t, u)
    other = view(op.other)
    if isinstance(op, Add):
        return lambda commands, x, y, t, u, n, r, c: commands.record(np.add, x, other[n, r, :, c], out=y)
    if isinstance(op, Multiply):
        rows, channels = other.shape[1] > 1, other.shape[3] > 1
        every = slice(None)
        return lambda commands, x, y, t, u, n, r, c: commands.record(
            np.multiply, x, other[n, r if rows else every, :, c if channels else every], out=y
        )
    assert isinstance(op, SortShortcut)
    eps, slope = op.eps, op.slope

    def sort_shortcut(
        commands: CommandList, x: np.ndarray, y: np.ndarray, t: np.ndarray, u: np.ndarray, n: int, r: slice, c: slice
    ) -> None:
        q = other[n, r, :, c]
        for source, positive in ((x, t), (q, u)):
            commands.record(np.maximum, source, 0, out=positive)
        commands.record(np.multiply, t, u, out=t)
        if slope:  # where both are negative, their product times slope * slope
            commands.record(lambda: np.add(t, np.minimum(x, 0) * np.minimum(q, 0) * np.float32(slope * slope), out=t))
        commands.record(np.add, t, eps, out=t)
        commands.record(np.sqrt, t, out=t)
        commands.record(np.add, x, q, out=y)
        commands.record(np.add, y, t, out=y)

    return sort_shortcut
