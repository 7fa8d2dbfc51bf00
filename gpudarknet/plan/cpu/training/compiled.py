"""The loops that Numba compiles, at the first call of each, or reads from its cache on disk; `fused` says when they run.

Each loop along the channels has one or two stores, so that LLVM can check whether arrays overlap, and vectorizes it. Maps are
flat memory with the distance between pixels, because Numba must know at compile time that channels are contiguous.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numba import njit

from ....ops.norm import EPS

OPTIONS: Any = {"nogil": True, "cache": True, "error_model": "numpy"}  # division by 0 is inf, without a branch
inline = njit(inline="always", **OPTIONS)
u64 = np.uint64  # of an unsigned index, Numba does not ask whether it counts from the end


def jit(function):
    """Compile a function; if the cache cannot be written, as on a full disk, only later processes take longer."""
    compiled: Any = njit(**OPTIONS)(function)
    save = compiled._cache.save_overload

    def try_to_save(*args):
        with suppress(OSError):
            save(*args)

    compiled._cache.save_overload = try_to_save
    return compiled


@inline
def combine6(o, A, i, d0, d1, d2, d3, d4, d5, adds):
    """o = row i of A times six vectors, or add that to o."""
    a0, a1, a2, a3, a4, a5 = A[i, 0], A[i, 1], A[i, 2], A[i, 3], A[i, 4], A[i, 5]
    if adds:
        for k in range(o.size):
            o[k] += a0 * d0[k] + a1 * d1[k] + a2 * d2[k] + a3 * d3[k] + a4 * d4[k] + a5 * d5[k]
    else:
        for k in range(o.size):
            o[k] = a0 * d0[k] + a1 * d1[k] + a2 * d2[k] + a3 * d3[k] + a4 * d4[k] + a5 * d5[k]


@inline
def combine4(o, A, i, d0, d1, d2, d3):
    """o = row i of A times four vectors."""
    a0, a1, a2, a3 = A[i, 0], A[i, 1], A[i, 2], A[i, 3]
    for k in range(o.size):
        o[k] = a0 * d0[k] + a1 * d1[k] + a2 * d2[k] + a3 * d3[k]


@inline
def add(o, first, a, start, n):
    """o[first : first + n] += a[start : start + n]."""
    i, j = u64(first), u64(start)
    for k in range(u64(n)):
        o[i + k] += a[j + k]


@inline
def copy(o, first, a, start, n):
    """o[first : first + n] = a[start : start + n]."""
    i, j = u64(first), u64(start)
    for k in range(u64(n)):
        o[i + k] = a[j + k]


@inline
def clear(o, first, n):
    """o[first : first + n] = 0."""
    i = u64(first)
    for k in range(u64(n)):
        o[i + k] = 0


@jit
def patches(x, ld, H, W, C, OH, OW, size, sy, sx, dilation, pad, first, end, col):
    """Write the patches (pixels, size * size * C) of output rows `first` to `end`, counted through all images, to col."""
    K, row = size * size * C, size * C
    for r in range(first, end):
        n, oy = r // OH, r % OH
        for p in range(size):
            y = oy * sy - pad + p * dilation
            for ox in range(OW):
                at = ((r - first) * OW + ox) * K + p * row
                left = ox * sx - pad
                if y < 0 or y >= H:
                    clear(col, at, row)
                elif ld == C and dilation == 1 and left >= 0 and left + size <= W:
                    copy(col, at, x, ((n * H + y) * W + left) * C, row)
                else:
                    for q in range(size):
                        w = left + q * dilation
                        if 0 <= w < W:
                            copy(col, at + q * C, x, ((n * H + y) * W + w) * ld, C)
                        else:
                            clear(col, at + q * C, C)


@jit
def planar_patches(x, ld, H, W, C, OH, OW, size, sy, sx, dilation, pad, first, end, col):
    """Write the same to col (size * size * C, pixels), for few channels."""
    for p in range(size):
        for q in range(size):
            shift = q * dilation - pad
            a = min(OW, max(0, (-shift + sx - 1) // sx))
            b = max(a, min(OW, (W - 1 - shift) // sx + 1))
            for c in range(C):
                plane = col[(p * size + q) * C + c]
                for r in range(first, end):
                    n, y = r // OH, (r % OH) * sy - pad + p * dilation
                    o = plane[(r - first) * OW : (r - first + 1) * OW]
                    if y < 0 or y >= H:
                        clear(o, 0, OW)
                        continue
                    clear(o, 0, a)
                    clear(o, b, OW - b)
                    source = ((n * H + y) * W + a * sx + shift) * ld + c
                    line, inner, by = x[source:], o[a:b], sx * ld
                    for k in range(inner.size):
                        inner[k] = line[k * by]


@jit
def add_patches(col, step, tap_step, C, dx, ld, H, W, OH, OW, size, sy, sx, dilation, pad, N, r0, r1):
    """Add to dx of N images what output rows r0 to r1 contribute; products of pixels are `step` apart, of taps `tap_step`."""
    for n in range(N):
        for r in range(r0, r1):
            for ox in range(OW):
                at = ((n * (r1 - r0) + r - r0) * OW + ox) * step
                for p in range(size):
                    y = r * sy - pad + p * dilation
                    if y < 0 or y >= H:
                        continue
                    for q in range(size):
                        w = ox * sx - pad + q * dilation
                        if 0 <= w < W:
                            add(dx, ((n * H + y) * W + w) * ld, col, at + (p * size + q) * tap_step, C)


@jit
def winograd_input(x, ld, H, W, C, t0, t1, B, V, step, rows):
    """V, 36 times (tiles, C) `step` apart, = B' d B of the tile rows t0 to t1, counted through all images. rows: scratch."""
    TH, TW = (H + 3) // 4, (W + 3) // 4
    runs, run = (1, W * C) if ld == C else (W, C)
    zero, line = np.zeros(run, np.float32), W * ld
    lines = rows.reshape(6, rows.shape[1] * C)
    for i in range(6):
        lines[i, :C] = 0
        lines[i, C + W * C :] = 0
    for t in range(t0, t1):
        n, y = t // TH, 4 * (t % TH) - 1
        for k in range(runs):
            p, o = (n * H + y) * line + k * ld, C + k * run
            d0 = x[p : p + run] if y >= 0 else zero
            d1 = x[p + line : p + line + run]
            d2 = x[p + 2 * line : p + 2 * line + run] if y + 2 < H else zero
            d3 = x[p + 3 * line : p + 3 * line + run] if y + 3 < H else zero
            d4 = x[p + 4 * line : p + 4 * line + run] if y + 4 < H else zero
            d5 = x[p + 5 * line : p + 5 * line + run] if y + 5 < H else zero
            for i in range(6):
                combine6(lines[i, o : o + run], B, i, d0, d1, d2, d3, d4, d5, False)
        for i in range(6):
            r = rows[i]
            for w in range(TW):
                q, at = 4 * w, 6 * i * step + ((t - t0) * TW + w) * C
                for j in range(6):
                    o = at + j * step
                    combine6(V[o : o + C], B, j, r[q], r[q + 1], r[q + 2], r[q + 3], r[q + 4], r[q + 5], False)


@jit
def winograd_output(M, step, t0, t1, A, y, ld, H, W, F, adds, rows):
    """Write, or add, A' m A of the tile rows t0 to t1, counted through all images, to the rows of y. rows: scratch."""
    TH, TW = (H + 3) // 4, (W + 3) // 4
    lines = rows.reshape(6, rows.shape[1] * F)
    runs, run = (1, W * F) if ld == F else (W, F)
    for t in range(t0, t1):
        for i in range(6):
            for w in range(TW):
                at = 6 * i * step + ((t - t0) * TW + w) * F
                m0, m1, m2 = M[at : at + F], M[at + step : at + step + F], M[at + 2 * step : at + 2 * step + F]
                at += 3 * step
                m3, m4, m5 = M[at : at + F], M[at + step : at + step + F], M[at + 2 * step : at + 2 * step + F]
                for j in range(4):
                    combine6(rows[i, 4 * w + j], A, j, m0, m1, m2, m3, m4, m5, False)
        n, top = t // TH, 4 * (t % TH)
        for j in range(min(4, H - top)):
            for k in range(runs):
                p, a = ((n * H + top + j) * W + k) * ld, k * run
                b = a + run
                combine6(y[p : p + run], A, j, lines[0, a:b], lines[1, a:b], lines[2, a:b], lines[3, a:b],
                         lines[4, a:b], lines[5, a:b], adds)  # fmt: skip


@jit
def winograd_gradient(d, ld, H, W, F, t0, t1, A, D, step, rows):
    """D, laid out as V, = A dy A' of the tile rows t0 to t1, counted through all images. rows: scratch."""
    TH, TW = (H + 3) // 4, (W + 3) // 4
    runs, run = (1, W * F) if ld == F else (W, F)
    zero, line = np.zeros(run, np.float32), W * ld
    lines = rows.reshape(6, rows.shape[1] * F)
    for i in range(6):
        lines[i, W * F :] = 0
    for t in range(t0, t1):
        n, y = t // TH, 4 * (t % TH)
        for k in range(runs):
            p, o = (n * H + y) * line + k * ld, k * run
            d0 = d[p : p + run]
            d1 = d[p + line : p + line + run] if y + 1 < H else zero
            d2 = d[p + 2 * line : p + 2 * line + run] if y + 2 < H else zero
            d3 = d[p + 3 * line : p + 3 * line + run] if y + 3 < H else zero
            for i in range(6):
                combine4(lines[i, o : o + run], A, i, d0, d1, d2, d3)
        for i in range(6):
            r = rows[i]
            for w in range(TW):
                q, at = 4 * w, 6 * i * step + ((t - t0) * TW + w) * F
                for j in range(6):
                    combine4(D[at + j * step : at + j * step + F], A, j, r[q], r[q + 1], r[q + 2], r[q + 3])


@jit
def statistics(z, pixels, piece, first, end, length, means, squares):
    """Mean and sum of squared distances to it, per channel, of the pieces `first` to `end` of z (pixels, C), contiguous."""
    C = means.shape[1]
    run_means = np.empty(length, np.float32)
    for p in range(first, end):
        total = (min(pixels, (p + 1) * piece) - p * piece) * C
        part, runs = z[p * piece * C : p * piece * C + total], (total + length - 1) // length
        sums, mean = np.zeros(length, np.float32), means[p]
        for s in range(runs):
            n = min(length, total - s * length)
            a = part[s * length : s * length + n]
            for k in range(n):
                sums[k] += a[k]
        mean[:] = 0
        for k in range(0, length, C):
            mean += sums[k : k + C]
        mean /= np.float32(total // C)
        for k in range(0, length, C):
            run_means[k : k + C] = mean
        sums[:] = 0
        for s in range(runs):
            n = min(length, total - s * length)
            a = part[s * length : s * length + n]
            for k in range(n):
                sums[k] += (a[k] - run_means[k]) * (a[k] - run_means[k])
        squares[p] = 0
        for k in range(0, length, C):
            squares[p] += sums[k : k + C]


@jit
def combine_statistics(sizes, means, squares, pixels, scale, bias, batch, invstd, gain, gains, shifts, mean_tile):
    """Combine the statistics of pieces to `batch` (2, C): mean, variance; derive invstd, gain and the tiles (repeats, C)."""
    pieces, C = means.shape
    mean, variance = batch[0], batch[1]
    mean[:] = 0
    for p in range(pieces):
        for c in range(C):
            mean[c] += sizes[p] * means[p, c]
    mean /= np.float32(pixels)
    variance[:] = 0
    for p in range(pieces):
        for c in range(C):
            variance[c] += squares[p, c] + sizes[p] * (means[p, c] - mean[c]) ** 2
    variance /= np.float32(pixels)
    for c in range(C):
        invstd[c] = np.float32(1) / np.sqrt(variance[c] + np.float32(EPS))
        gain[c] = scale[c] * invstd[c]
    for r in range(gains.shape[0]):
        for c in range(C):
            gains[r, c], mean_tile[r, c] = gain[c], mean[c]
            shifts[r, c] = bias[c] - mean[c] * gain[c]


@jit
def batch_norm_coefficients(parts, pixels, mean, invstd, gain, dbias, dscale, scale_d, scale_z, offset):
    """Sum the parts (pieces, 2, C) to dbias and dscale; derive the tiles of dz = scale_d * d + scale_z * z + offset."""
    pieces, _, C = parts.shape
    m = np.float32(pixels)
    dbias[:] = 0
    dscale[:] = 0
    for p in range(pieces):
        for c in range(C):
            dbias[c] += parts[p, 0, c]
            dscale[c] += parts[p, 1, c]
    for c in range(C):
        dscale[c] *= invstd[c]
    for r in range(offset.shape[0]):
        for c in range(C):
            slope = -gain[c] * invstd[c] * dscale[c] / m
            scale_d[r, c], scale_z[r, c] = gain[c], slope
            offset[r, c] = -gain[c] * dbias[c] / m - slope * mean[c]


@jit
def normalize(z, y, gain, shift, slope, first, end, C, length, z_step, y_step):
    """y = f(gain * z + shift) for a range of pixels; f(h) = h where it is positive, else slope * h."""
    repeats = length // C
    for s in range(first, end, repeats):
        n = min(length, (end - s) * C)
        a, o = z[s * z_step : s * z_step + n], y[s * y_step : s * y_step + n]
        for k in range(n):
            h = gain[k] * a[k] + shift[k]
            o[k] = h if h > 0 else slope * h


@jit
def gradient(d, z, y, mean, slope, sums, pixels, piece, first, end, length, d_step, z_step, y_step):
    """d *= f'(y), for the pieces `first` to `end`; sums (pieces, 2, C): of d and of d * (z - mean). mean: of a run."""
    C = sums.shape[2]
    repeats = length // C
    for p in range(first, end):
        one, two = np.zeros(length, np.float32), np.zeros(length, np.float32)
        stop = min(pixels, (p + 1) * piece)
        for s in range(p * piece, stop, repeats):
            n = min(length, (stop - s) * C)
            a, b, c = d[s * d_step : s * d_step + n], z[s * z_step : s * z_step + n], y[s * y_step : s * y_step + n]
            if slope != 1:
                for k in range(n):
                    a[k] = a[k] if c[k] > 0 else slope * a[k]
            for k in range(n):
                one[k] += a[k]
                two[k] += a[k] * (b[k] - mean[k])
        sums[p] = 0
        for k in range(0, length, C):
            sums[p, 0] += one[k : k + C]
            sums[p, 1] += two[k : k + C]


@jit
def input_gradient(d, z, scale_d, scale_z, offset, first, end, C, length, d_step, z_step):
    """d = scale_d * d + scale_z * z + offset for a range of pixels."""
    repeats = length // C
    for s in range(first, end, repeats):
        n = min(length, (end - s) * C)
        a, b = d[s * d_step : s * d_step + n], z[s * z_step : s * z_step + n]
        for k in range(n):
            a[k] = scale_d[k] * a[k] + (scale_z[k] * b[k] + offset[k])


@jit
def maxpool_gradient(x, x_ld, dy, dy_ld, dx, dx_ld, H, W, OH, OW, size, sy, sx, pad, C, first, end, adds):
    """Add dy of the images `first` to `end` to the first maximum of each window, row by row; without `adds`, to 0."""
    best, index = np.empty(C, np.float32), np.empty(C, np.int32)
    for n in range(first, end):
        if not adds:
            for k in range(H * W):
                at = (n * H * W + k) * dx_ld
                dx[at : at + C] = 0
        for oy in range(OH):
            for ox in range(OW):
                top, left = oy * sy - pad, ox * sx - pad
                p0, p1 = max(0, -top), min(size, H - top)
                q0, q1 = max(0, -left), min(size, W - left)
                best[:] = -np.inf
                index[:] = -1
                for p in range(p0, p1):
                    for q in range(q0, q1):
                        at, tap = ((n * H + top + p) * W + left + q) * x_ld, np.int32(p * size + q)
                        v = x[at : at + C]
                        for k in range(C):
                            if v[k] > best[k]:
                                best[k], index[k] = v[k], tap
                at = ((n * OH + oy) * OW + ox) * dy_ld
                d = dy[at : at + C]
                for p in range(p0, p1):
                    for q in range(q0, q1):
                        at, tap = ((n * H + top + p) * W + left + q) * dx_ld, np.int32(p * size + q)
                        o = dx[at : at + C]
                        for k in range(C):
                            o[k] += d[k] if index[k] == tap else np.float32(0)


@jit
def sort_gradient(
    d, a, b, da, db, eps, first, end, C, length, d_step, a_step, b_step, da_step, db_step, adds_a, adds_b
):
    """Write, or add, the gradients of a SORT shortcut with slope 0, for a range of pixels."""
    repeats, zero = length // C, np.float32(0)
    for s in range(first, end, repeats):
        n = min(length, (end - s) * C)
        g, p, q = d[s * d_step : s * d_step + n], a[s * a_step : s * a_step + n], b[s * b_step : s * b_step + n]
        o = da[s * da_step : s * da_step + n]
        for k in range(n):
            u, v = max(p[k], zero), max(q[k], zero)
            w = u * v
            h = g[k] + (g[k] * v / (2 * np.sqrt(w + eps)) if w > 0 else zero)
            o[k] = o[k] + h if adds_a else h
        o = db[s * db_step : s * db_step + n]
        for k in range(n):
            u, v = max(p[k], zero), max(q[k], zero)
            w = u * v
            h = g[k] + (g[k] * u / (2 * np.sqrt(w + eps)) if w > 0 else zero)
            o[k] = o[k] + h if adds_b else h


@jit
def sgd(w, g, gradients, inverse_scale, rate, momentum, decay):
    """Make a step of `ops.optimizers.sgd`, after adding the gradients times inverse_scale to g."""
    for k in range(w.size):
        v = g[k] + gradients[k] * inverse_scale - decay * w[k]
        w[k] += rate * v
        g[k] = v * momentum


@jit
def adam(w, g, gradients, inverse_scale, m, v, rate, beta1, beta2, eps, decay, c1, c2):
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
