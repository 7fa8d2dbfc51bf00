"""Fused passes, compiled by Numba if it is installed: one pass over memory where NumPy needs one for each operation.

They replace NumPy calls in the recorded commands; matrix products stay with BLAS. Each loop along the channels has one or two
stores, so that LLVM can check whether arrays overlap, and vectorizes it. Maps are passed as flat memory with the distance between
pixels, because Numba must know at compile time that channels are contiguous.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..command_list import CommandList
from .pixels import ChannelTile

RUN = 1 << 9  # elements of the runs that a contiguous map with few channels is processed in

# Activations that are linear on either side of 0: the slope below it.
SLOPES = {"linear": 1.0, "leaky": 0.1, "revleaky": 0.1, "relu": 0.0, "relie": 0.01}


@cache
def available() -> bool:
    """Return whether Numba is installed."""
    return find_spec("numba") is not None


def flat(a: np.ndarray) -> np.ndarray:
    """View the memory of an array (..., channels), whose channels are contiguous, from its first to its last element."""
    last = sum((n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True))
    return np.lib.stride_tricks.as_strided(a, (last // a.itemsize + 1,), (a.itemsize,))


class Runs:
    """How to walk over matrices (pixels, channels) together: in runs, which are several pixels if all matrices are contiguous.

    sizes: all elements, those of a run, and for each matrix the distance from run to run.
    """

    def __init__(self, *matrices: np.ndarray):
        P, C = matrices[0].shape
        contiguous = all(m.flags.c_contiguous for m in matrices)
        self.repeats = max(1, min(P, RUN // C)) if contiguous else 1
        length = self.repeats * C
        self.sizes = P * C, length, *(length if contiguous else m.strides[0] // m.itemsize for m in matrices)


def statistics(commands: CommandList, z: np.ndarray, mean: np.ndarray, squares: np.ndarray) -> None:
    """Record mean and sum of squared distances to it, per channel (C,), of z (pixels, C)."""
    commands.record(kernels().statistics, flat(z), mean, squares, *Runs(z).sizes)


def normalize(
    commands: CommandList, kind: str, z: np.ndarray, y: np.ndarray, gain: ChannelTile, shift: ChannelTile
) -> None:
    """Record y = activation(gain * z + shift), both (pixels, C), for an activation of SLOPES."""
    runs = Runs(z, y)
    values: Any = gain.run(runs.repeats), shift.run(runs.repeats), np.float32(SLOPES[kind])
    commands.record(kernels().normalize, flat(z), flat(y), *values, *runs.sizes)


def gradient(
    commands: CommandList, kind: str, d: np.ndarray, z: np.ndarray, y: np.ndarray, mean: ChannelTile, sums: np.ndarray
) -> None:
    """Record d *= the activation's derivative, and sums (2, C) of d and of d * (z - mean); d, z, y (pixels, C)."""
    runs = Runs(d, z, y)
    values: Any = mean.run(runs.repeats), np.float32(SLOPES[kind]), sums
    commands.record(kernels().gradient, flat(d), flat(z), flat(y), *values, *runs.sizes)


def input_gradient(commands: CommandList, d: np.ndarray, z: np.ndarray, *coefficients: ChannelTile) -> None:
    """Record d = a * d + b * z + c for coefficients a, b, c per channel; d, z (pixels, C)."""
    runs = Runs(d, z)
    values = (tile.run(runs.repeats) for tile in coefficients)
    commands.record(kernels().input_gradient, flat(d), flat(z), *values, *runs.sizes)


@cache
def kernels() -> Any:
    """Compile and return the kernels; each compiles at its first call, or is read from Numba's cache on disk."""
    from numba import njit

    options: Any = {"nogil": True, "cache": True, "error_model": "numpy"}  # division by 0 is inf, without a branch
    jit, inline = njit(**options), njit(inline="always", **options)

    @inline
    def combine6(o, A, i, d0, d1, d2, d3, d4, d5, adds):  # type: ignore[no-untyped-def]
        """o = row i of A times six vectors, or add that to o."""
        a0, a1, a2, a3, a4, a5 = A[i, 0], A[i, 1], A[i, 2], A[i, 3], A[i, 4], A[i, 5]
        if adds:
            for k in range(o.size):
                o[k] += a0 * d0[k] + a1 * d1[k] + a2 * d2[k] + a3 * d3[k] + a4 * d4[k] + a5 * d5[k]
        else:
            for k in range(o.size):
                o[k] = a0 * d0[k] + a1 * d1[k] + a2 * d2[k] + a3 * d3[k] + a4 * d4[k] + a5 * d5[k]

    @inline
    def combine4(o, A, i, d0, d1, d2, d3):  # type: ignore[no-untyped-def]
        """o = row i of A times four vectors."""
        a0, a1, a2, a3 = A[i, 0], A[i, 1], A[i, 2], A[i, 3]
        for k in range(o.size):
            o[k] = a0 * d0[k] + a1 * d1[k] + a2 * d2[k] + a3 * d3[k]

    @jit
    def winograd_input(x, H, W, C, top, t0, t1, B, V, step, rows):  # type: ignore[no-untyped-def]
        """V, 36 times (tiles, C) `step` apart, = B' d B of tile rows t0 to t1. x: rows of an image from `top`; rows: scratch."""
        TW = (W + 3) // 4
        n, zero = W * C, np.zeros(W * C, np.float32)
        width = rows.shape[1] * C
        lines = rows.reshape(6, width)
        for i in range(6):
            lines[i, :C] = 0
            lines[i, C + n :] = 0
        for t in range(t0, t1):
            y = 4 * t - 1
            p = (y - top) * n
            d0 = x[p : p + n] if y >= 0 else zero
            d1 = x[p + n : p + 2 * n]
            d2 = x[p + 2 * n : p + 3 * n] if y + 2 < H else zero
            d3 = x[p + 3 * n : p + 4 * n] if y + 3 < H else zero
            d4 = x[p + 4 * n : p + 5 * n] if y + 4 < H else zero
            d5 = x[p + 5 * n : p + 6 * n] if y + 5 < H else zero
            for i in range(6):
                combine6(lines[i, C : C + n], B, i, d0, d1, d2, d3, d4, d5, False)
            for i in range(6):
                r = rows[i]
                for w in range(TW):
                    q, at = 4 * w, 6 * i * step + ((t - t0) * TW + w) * C
                    for j in range(6):
                        combine6(
                            V[at + j * step : at + j * step + C],
                            B,
                            j,
                            r[q],
                            r[q + 1],
                            r[q + 2],
                            r[q + 3],
                            r[q + 4],
                            r[q + 5],
                            False,
                        )

    @jit
    def winograd_output(M, step, t0, t1, A, y, ld, H, W, F, adds, rows):  # type: ignore[no-untyped-def]
        """Rows of y (an image, pixels ld apart) = A' m A of the tile rows t0 to t1, or add that; rows (6, 4 * TW, F): scratch."""
        TW = (W + 3) // 4
        lines = rows.reshape(6, rows.shape[1] * F)
        for t in range(t0, t1):
            for i in range(6):
                for w in range(TW):
                    at = 6 * i * step + ((t - t0) * TW + w) * F
                    m0, m1, m2 = M[at : at + F], M[at + step : at + step + F], M[at + 2 * step : at + 2 * step + F]
                    at += 3 * step
                    m3, m4, m5 = M[at : at + F], M[at + step : at + step + F], M[at + 2 * step : at + 2 * step + F]
                    for j in range(4):
                        combine6(rows[i, 4 * w + j], A, j, m0, m1, m2, m3, m4, m5, False)
            for j in range(min(4, H - 4 * t)):
                p = (4 * t + j) * W * ld
                if ld == F:
                    n = W * F
                    combine6(y[p : p + n], A, j, lines[0, :n], lines[1, :n], lines[2, :n], lines[3, :n], lines[4, :n],
                             lines[5, :n], adds)  # fmt: skip
                else:
                    for x in range(W):
                        a, b = x * F, x * F + F
                        combine6(y[p + x * ld : p + x * ld + F], A, j, lines[0, a:b], lines[1, a:b], lines[2, a:b],
                                 lines[3, a:b], lines[4, a:b], lines[5, a:b], adds)  # fmt: skip

    @jit
    def winograd_gradient(d, H, W, F, top, t0, t1, A, D, step, rows):  # type: ignore[no-untyped-def]
        """D, laid out as V, = A dy A' of tile rows t0 to t1; d: image rows from `top` on; rows (6, 4 TW, F): scratch."""
        TW = (W + 3) // 4
        n, zero = W * F, np.zeros(W * F, np.float32)
        lines = rows.reshape(6, rows.shape[1] * F)
        for i in range(6):
            lines[i, n:] = 0
        for t in range(t0, t1):
            y = 4 * t
            p = (y - top) * n
            d0 = d[p : p + n]
            d1 = d[p + n : p + 2 * n] if y + 1 < H else zero
            d2 = d[p + 2 * n : p + 3 * n] if y + 2 < H else zero
            d3 = d[p + 3 * n : p + 4 * n] if y + 3 < H else zero
            for i in range(6):
                combine4(lines[i, :n], A, i, d0, d1, d2, d3)
            for i in range(6):
                r = rows[i]
                for w in range(TW):
                    q, at = 4 * w, 6 * i * step + ((t - t0) * TW + w) * F
                    for j in range(6):
                        combine4(D[at + j * step : at + j * step + F], A, j, r[q], r[q + 1], r[q + 2], r[q + 3])

    @jit
    def statistics(z, mean, squares, total, length, step):  # type: ignore[no-untyped-def]
        """Mean and sum of squared distances to it, per channel, of z (pixels, C) walked in runs."""
        C, sums = mean.size, np.zeros(length, np.float32)
        pixels = np.float32(total // C)
        runs = (total + length - 1) // length
        for s in range(runs):
            n = min(length, total - s * length)
            a = z[s * step : s * step + n]
            for k in range(n):
                sums[k] += a[k]
        means = np.empty(length, np.float32)
        mean[:] = 0
        for k in range(0, length, C):
            mean += sums[k : k + C]
        mean /= pixels
        for k in range(0, length, C):
            means[k : k + C] = mean
        sums[:] = 0
        for s in range(runs):
            n = min(length, total - s * length)
            a = z[s * step : s * step + n]
            for k in range(n):
                sums[k] += (a[k] - means[k]) * (a[k] - means[k])
        squares[:] = 0
        for k in range(0, length, C):
            squares += sums[k : k + C]

    @jit
    def normalize(z, y, gain, shift, slope, total, length, z_step, y_step):  # type: ignore[no-untyped-def]
        """y = f(gain * z + shift), f(h) = h where it is positive, else slope * h."""
        for s in range((total + length - 1) // length):
            n = min(length, total - s * length)
            a, o = z[s * z_step : s * z_step + n], y[s * y_step : s * y_step + n]
            for k in range(n):
                h = gain[k] * a[k] + shift[k]
                o[k] = h if h > 0 else slope * h

    @jit
    def gradient(d, z, y, mean, slope, sums, total, length, d_step, z_step, y_step):  # type: ignore[no-untyped-def]
        """d *= f'(y); sums (2, C) = that of d and of d * (z - mean). mean: of a run."""
        C = sums.shape[1]
        first, second = np.zeros(length, np.float32), np.zeros(length, np.float32)
        for s in range((total + length - 1) // length):
            n = min(length, total - s * length)
            a, b, c = d[s * d_step : s * d_step + n], z[s * z_step : s * z_step + n], y[s * y_step : s * y_step + n]
            if slope != 1:
                for k in range(n):
                    a[k] = a[k] if c[k] > 0 else slope * a[k]
            for k in range(n):
                first[k] += a[k]
                second[k] += a[k] * (b[k] - mean[k])
        sums[:] = 0
        for k in range(0, length, C):
            sums[0] += first[k : k + C]
            sums[1] += second[k : k + C]

    @jit
    def input_gradient(d, z, scale_d, scale_z, offset, total, length, d_step, z_step):  # type: ignore[no-untyped-def]
        """d = scale_d * d + scale_z * z + offset."""
        for s in range((total + length - 1) // length):
            n = min(length, total - s * length)
            a, b = d[s * d_step : s * d_step + n], z[s * z_step : s * z_step + n]
            for k in range(n):
                a[k] = scale_d[k] * a[k] + (scale_z[k] * b[k] + offset[k])

    @jit
    def sgd(w, g, gradients, inverse_scale, rate, momentum, decay):  # type: ignore[no-untyped-def]
        """Make a step of `ops.optimizers.sgd`, after adding the gradients times inverse_scale to g."""
        for k in range(w.size):
            v = g[k] + gradients[k] * inverse_scale - decay * w[k]
            w[k] += rate * v
            g[k] = v * momentum

    @jit
    def adam(w, g, gradients, inverse_scale, m, v, rate, beta1, beta2, eps, decay, c1, c2):  # type: ignore[no-untyped-def]
        """Make a step of `ops.optimizers.adam`, after adding the gradients times inverse_scale to g. c1, c2: 1 - beta**t."""
        one = np.float32(1)
        for k in range(w.size):
            g[k] = g[k] + gradients[k] * inverse_scale - decay * w[k]
        for k in range(w.size):
            m[k] = beta1 * m[k] + (one - beta1) * g[k]
        for k in range(w.size):
            v[k] = beta2 * v[k] + (one - beta2) * g[k] * g[k]
        for k in range(w.size):
            w[k] += rate * (m[k] / c1) / (np.sqrt(v[k] / c2) + eps)
        g[:] = 0

    return SimpleNamespace(
        winograd_input=winograd_input, winograd_output=winograd_output, winograd_gradient=winograd_gradient,
        statistics=statistics, normalize=normalize, gradient=gradient, input_gradient=input_gradient, sgd=sgd, adam=adam,
    )  # fmt: skip
