"""Convolution and its gradients, as products of a kernel with a map that is shifted (src/convolutional_layer.c).

On the CPU the work is cut into pieces that stay in cache, which the cores share.

The padded map is first parted into its phases, one for each place in a stride: then whatever the stride, a tap of the kernel
meets a run of consecutive numbers of one phase, S for each row of the output, of which OW count. So the matrix that a tap
multiplies is a phase itself, read from another place on: neither patches nor their gradients are copied row by row. The
S - OW numbers between rows go through the products and are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import gcd, prod
from typing import Any

import numpy as np

from ..backend.threads import Task, split_range
from .base import op
from .im2col import col2im_cuda, im2col_cuda
from .matmul import matmul

LARGE = 1 << 20  # numbers of a task's products: 4 MB; a smaller task waits for the interpreter's lock too often
WIDE = 768  # pixels that a product should have, where there are as many
TASKS = 4  # at least, where there are as many images, so that all cores have some
PARTS = 1 << 22  # numbers of the kernel's gradients that wait to be added up: 16 MB
THIN = 16  # below so many channels, or in groups, all taps make one matrix, of patches
SMALL = 10**6  # multiplications of a product that OpenBLAS, with AVX-512, does without copying the matrices first


class Taps:
    """The taps that meet one phase: rows p and columns q of the kernel (slices), high x wide of them.

    phase: its place in the stride (vertical, horizontal). The first tap meets the phase from `start` on, the one below it
    `down` numbers later, the one to its right `right` numbers later.
    """

    def __init__(self, phase: tuple[int, int], size: int, stride: tuple[int, int], dilation: int, S: int):
        def along(place: int, s: int) -> tuple[slice, int, int, int]:
            apart = s // gcd(dilation, s)
            first = next(p for p in range(size) if p * dilation % s == place)
            return slice(first, None, apart), -(-(size - first) // apart), first * dilation // s, apart * dilation // s

        self.p, self.high, top, down = along(phase[0], stride[0])
        self.q, self.wide, left, self.right = along(phase[1], stride[1])
        self.phase, self.start, self.down = phase, top * S + left, down * S


class Geometry:
    """How the taps of a convolution meet the phases of the padded map.

    size, stride (vertical, horizontal), dilation, pad: as in `im2col.im2col`. thin: one matrix for all taps. A phase has
    `more` rows beyond those of the output, and S columns.
    """

    def __init__(self, size: int, stride: tuple[int, int], dilation: int, pad: int, OH: int, OW: int, thin: bool):
        self.size, self.stride, self.pad, self.OH, self.OW, self.thin = size, stride, pad, OH, OW, thin
        reach = (size - 1) * dilation
        self.more, self.S = reach // stride[0], OW + reach // stride[1]
        self.margin = self.more * self.S + reach // stride[1]  # from the first run's begin to the last one's
        places = [sorted({p * dilation % s for p in range(size)}) for s in stride]
        self.taps = [Taps((a, b), size, stride, dilation, self.S) for a in places[0] for b in places[1]]

    def part(self, be: Any, x: Any, first: int, rows: int) -> Any:
        """Part x (N, C, H, W), padded, into phases for rows of the output from `first` on.

        Returns (N, number, C, rows + more, S) in one line, and after it S zeros into which the last run reaches.
        """
        N, C, H, W = x.shape
        shape = (N, len(self.taps), C, rows + self.more, self.S)
        line = be.zeros((prod(shape) + self.S,), x.dtype)
        phases = line[: -self.S].reshape(shape)
        for k, taps in enumerate(self.taps):
            there, here = self.overlap(taps, H, W, first, rows)
            phases[:, k][there] = x[here]
        return line

    def join(self, phases: Any, x: Any) -> None:
        """Put back into x (N, C, H, W) what `part` took from it for all rows; leave what no tap meets."""
        for k, taps in enumerate(self.taps):
            there, here = self.overlap(taps, x.shape[2], x.shape[3], 0, self.OH)
            x[here] = phases[:, k][there]

    def overlap(self, taps: Taps, H: int, W: int, first: int, rows: int) -> tuple[Any, Any]:
        """Return what a phase and the map have in common: (index of the phase, index of the map)."""
        r, y = common(taps.phase[0] - self.pad + first * self.stride[0], self.stride[0], rows + self.more, H)
        c, x = common(taps.phase[1] - self.pad, self.stride[1], self.S, W)
        return (slice(None), slice(None), r, c), (slice(None), slice(None), y, x)

    def matrices(self, be: Any, line: Any, N: int, C: int, first: int, rows: int) -> Iterator[tuple[Any, Any, Any]]:
        """Yield (p, q, what these taps multiply (N, high, wide, C, L)) for rows of the output from `first` on, L = rows * S.

        line is what `part` made of N images. Thin: once, with the patches (N, 1, 1, C*size*size, L).
        """
        L, every = rows * self.S, slice(None)
        length = (line.size - self.S) // (N * len(self.taps) * C)  # of a phase
        patches = be.empty((N, C, self.size, self.size, L), line.dtype) if self.thin else None
        for k, t in enumerate(self.taps):
            apart = len(self.taps) * C * length, t.down, t.right, length, 1
            met = be.strided(line, k * C * length + first * self.S + t.start, (N, t.high, t.wide, C, L), apart)
            if patches is None:
                yield t.p, t.q, met
            else:
                patches[:, :, t.p, t.q] = met.transpose(0, 3, 1, 2, 4)
        if patches is not None:
            yield every, every, patches.reshape(N, 1, 1, -1, L)

    def send(self, be: Any, matrix: Any, dz: Any) -> Any:
        """Multiply matrix (groups, C/groups*size*size, F/groups) by dz (N, groups, F/groups, L), and add up what meets.

        Returns phases (N, number, C, rows + more, S). The rows of matrix are by tap, then channel; thin the other way.
        """
        (N, groups, _, L), taps, M = dz.shape, self.size**2, matrix.shape[1]
        C, length = groups * M // taps, self.margin + L
        products = be.empty((N * C * taps * length + self.margin,), dz.dtype)  # zeros before each run, and after all
        lines = products[: N * C * taps * length].reshape(N, groups, M, length)
        lines[..., : self.margin], products[N * C * taps * length :] = 0, 0
        multiply(be, matrix, dz, lines[..., self.margin :])
        by_tap, by_channel = (length, taps * length) if self.thin else (C * length, length)
        phases = be.empty((N, len(self.taps), C, L // self.S + self.more, self.S), dz.dtype)
        for k, t in enumerate(self.taps):
            p, q = t.p.indices(self.size), t.q.indices(self.size)
            begin = self.margin - t.start + (p[0] * self.size + q[0]) * by_tap
            apart = (C * taps * length, p[2] * self.size * by_tap - t.down, q[2] * by_tap - t.right, by_channel, 1)
            shape = N, t.high, t.wide, C, L + self.more * self.S
            phases[:, k] = be.strided(products, begin, shape, apart).sum(axis=(1, 2)).reshape(phases[:, k].shape)
        return phases


geometry = lru_cache(256)(Geometry)


def common(origin: int, stride: int, count: int, pixels: int) -> tuple[slice, slice]:
    """Return which of `count` places origin, origin + stride, ... are pixels 0 to pixels - 1, and which pixels they are."""
    begin = max(0, -(origin // stride))
    end = max(begin, min(count, -((origin - pixels) // stride)))
    return slice(begin, end), slice(begin * stride + origin, max(0, end * stride + origin), stride)


def multiply(be: Any, a: Any, b: Any, out: Any) -> None:
    """out (..., M, L) = a (..., M, K) @ b (..., K, L), in blocks of rows that are small enough, where there are such."""
    M, K = a.shape[-2:]
    fit = (n for n in (1, 2, 3, 4, 6, 8, 9, 12) if M % n == 0 and M // n * K * b.shape[-1] <= SMALL and M // n >= 16)
    blocks = next(fit, 1)
    if blocks > 1:
        a, out = (v.reshape(*v.shape[:-2], blocks, M // blocks, v.shape[-1]) for v in (a, out))
        b = b[..., None, :, :]
    be.xp.matmul(a, b, out=out)


@op
def convolve(
    be: Any, x: Any, kernel: Any, groups: int, stride: tuple[int, int], dilation: int, pad: int, OH: int, OW: int
) -> Any:
    """Convolve (cross-correlate) x (N, C, H, W) with kernel (F, C/groups, size, size) -> (N, F, OH, OW).

    `stride` is (vertical, horizontal); `pad` counts zeros before the first row and column.
    """
    (N, C), (F, each, size, _) = x.shape[:2], kernel.shape
    thin = groups > 1 or each < THIN
    way = geometry(size, stride, dilation, pad, OH, OW, thin)
    filters, taps, S = F // groups, 1 if thin else size, way.S
    if thin:
        w = kernel.reshape(groups, 1, 1, filters, each * size * size)
    else:
        w = be.xp.ascontiguousarray(kernel.transpose(2, 3, 0, 1)).reshape(1, size, size, F, C)
    z = be.empty((N, F, OH, OW), x.dtype)
    row = max(C * size * size if thin else 0, F * taps * taps) * S  # numbers that a row of the output makes on the way

    def task(n0: int, n1: int, r0: int, r1: int) -> Task:
        n, rows = n1 - n0, r1 - r0

        def run() -> None:
            line = way.part(be, x[n0:n1], r0, rows)
            products = be.empty((n, groups, taps, taps, filters, rows * S), x.dtype)
            for p, q, met in way.matrices(be, line, n, C, 0, rows):
                met = met.reshape(n, groups, *met.shape[1:3], -1, rows * S) if groups > 1 else met[:, None]
                multiply(be, w[:, p, q], met, products[:, :, p, q])
            total = products.sum(axis=(2, 3)) if taps > 1 else products
            z[n0:n1, :, r0:r1] = total.reshape(n, F, rows, S)[..., :OW]

        return run

    images = split_range(N, min(LARGE // (row * OH), -(-N // TASKS)))
    bands = split_range(OH, max(LARGE // row, -(-WIDE // S)))
    be.run_parallel([task(*n, *r) for n in images for r in bands])
    return z


@convolve.kernel
def convolve_cuda(
    be: Any, x: Any, kernel: Any, groups: int, stride: tuple[int, int], dilation: int, pad: int, OH: int, OW: int
) -> Any:
    (N, _), (F, _, size, _) = x.shape[:2], kernel.shape
    col = im2col_cuda(be, x, size, stride, dilation, pad, OH, OW).reshape(N, groups, -1, OH * OW)
    return matmul(be, kernel.reshape(groups, F // groups, -1), col).reshape(N, F, OH, OW)


@op(sums=(1,))
def convolve_backward(
    be: Any,
    dz: Any,
    x: Any,
    kernel: Any,
    groups: int,
    stride: tuple[int, int],
    dilation: int,
    pad: int,
    skip_input_grad: int,
) -> tuple[Any, Any]:
    """Return dx (N, C, H, W), with leaf None, and dkernel (F, C/groups, size, size) of `convolve`, for dz (N, F, OH, OW)."""
    (N, C), (F, each, size, _), (OH, OW) = x.shape[:2], kernel.shape, dz.shape[2:]
    thin = groups > 1 or each < THIN
    way = geometry(size, stride, dilation, pad, OH, OW, thin)
    filters, taps, S = F // groups, 1 if thin else size, way.S
    order = (0, 2, 3, 4, 1) if thin else (0, 3, 4, 2, 1)  # rows by channel and tap, or by tap and channel
    w = be.xp.ascontiguousarray(kernel.reshape(groups, filters, each, size, size).transpose(*order))
    row = C * size * size * S
    bands = split_range(OH, max(LARGE // row, -(-WIDE // S)))
    high = bands[-1][1] - bands[-1][0]
    few = max(1, min(LARGE // (row * OH), -(-N // TASKS)))
    images = split_range(N, max(few, -(-N * kernel.size // PARTS)))
    most = max(THIN, LARGE // (size * size * S * high))
    blocks = [(0, C)] if thin else split_range(C, most)
    dx = None if skip_input_grad else be.zeros(x.shape, dz.dtype)
    sums = be.zeros((len(images), groups, taps, taps, each * size * size if thin else C, filters), dz.dtype)

    def task(k: int, n0: int, n1: int, c0: int, c1: int) -> Task:
        part = sums[k] if thin else sums[k, :, :, :, c0:c1]
        matrix = w.reshape(groups, -1, filters) if thin else w[:, :, :, c0:c1].reshape(1, -1, F)

        def band(line: Any, images: slice, r0: int, r1: int) -> Any:
            """Add to the gradient of the kernel; return what goes back to the phases."""
            n, L = images.stop - images.start, (r1 - r0) * S
            spread = be.empty((n, F, r1 - r0, S), dz.dtype)
            spread[..., :OW], spread[..., OW:] = dz[images, :, r0:r1], 0
            turned = be.xp.ascontiguousarray(spread.reshape(n, F, L).transpose(0, 2, 1))  # as BLAS likes it
            turned = turned.reshape(n, L, groups, filters).transpose(0, 2, 1, 3)[:, :, None, None]
            for p, q, met in way.matrices(be, line, n, c1 - c0, r0, r1 - r0):
                met = met.reshape(n, groups, *met.shape[1:3], -1, L) if groups > 1 else met[:, None]
                products = be.empty((*met.shape[:-1], filters), dz.dtype)
                multiply(be, met, turned, products)
                part[:, p, q] += products.sum(axis=0)
            return None if skip_input_grad else way.send(be, matrix, spread.reshape(n, groups, filters, L))

        def run() -> None:
            for n in range(n0, n1, few):
                images = slice(n, min(n + few, n1))
                line = way.part(be, x[images, c0:c1], 0, OH)
                sent = [band(line, images, *rows) for rows in bands]
                if dx is None:
                    continue
                phases = sent[0]
                if len(bands) > 1:
                    phases = be.zeros((*phases.shape[:3], OH + way.more, S), dz.dtype)
                    for (r0, _), some in zip(bands, sent, strict=True):
                        phases[..., r0 : r0 + some.shape[3], :] += some
                way.join(phases, dx[images, c0:c1])

        return run

    be.run_parallel([task(k, *n, *c) for k, n in enumerate(images) for c in blocks])
    total = sums.sum(axis=0)
    total = total.reshape(groups, each, size, size, filters) if thin else total.transpose(0, 3, 1, 2, 4)
    return dx, be.xp.ascontiguousarray(total.transpose(0, 4, 1, 2, 3)).reshape(kernel.shape)


@convolve_backward.kernel
def convolve_backward_cuda(
    be: Any,
    dz: Any,
    x: Any,
    kernel: Any,
    groups: int,
    stride: tuple[int, int],
    dilation: int,
    pad: int,
    skip_input_grad: int,
) -> tuple[Any, Any]:
    (N, C, H, W), (F, _, size, _), (OH, OW) = x.shape, kernel.shape, dz.shape[2:]
    flat, dz = kernel.reshape(groups, F // groups, -1), dz.reshape(N, groups, F // groups, OH * OW)
    col = im2col_cuda(be, x, size, stride, dilation, pad, OH, OW).reshape(N, groups, -1, OH * OW)
    dkernel = matmul(be, dz, col.transpose(0, 1, 3, 2)).sum(axis=0, dtype=np.float32).reshape(kernel.shape)
    if skip_input_grad:
        return None, dkernel
    dcol = matmul(be, flat.transpose(0, 2, 1), dz).reshape(N, C, size, size, OH, OW)
    return col2im_cuda(be, dcol, H, W, stride, dilation, pad), dkernel
