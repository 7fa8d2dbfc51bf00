"""Patches of an image as the columns of a matrix, so that a convolution is one gemm (src/im2col.c, src/col2im.c)."""

from __future__ import annotations

from collections.abc import Iterator

from ..array import Array, ArrayBackend, KernelBackend
from .base import op


def _taps(
    size: int, stride: tuple[int, int], dilation: int, OH: int, OW: int
) -> Iterator[tuple[int, int, slice, slice]]:
    """Yield (p, q, rows, columns): the slices of a padded image that tap (p, q) of the kernel reads."""
    sy, sx = stride
    for p in range(size):
        for q in range(size):
            y, x = p * dilation, q * dilation
            yield p, q, slice(y, y + (OH - 1) * sy + 1, sy), slice(x, x + (OW - 1) * sx + 1, sx)


def _padded(
    size: int, stride: tuple[int, int], dilation: int, pad: int, H: int, W: int, OH: int, OW: int
) -> tuple[int, int]:
    """Return (HP, WP): the size of the image with `pad` zeros before it and as many after it as the last tap needs."""
    reach = (size - 1) * dilation + 1
    return max(pad + H, (OH - 1) * stride[0] + reach), max(pad + W, (OW - 1) * stride[1] + reach)


@op
def im2col(
    be: ArrayBackend, x: Array, size: int, stride: tuple[int, int], dilation: int, pad: int, OH: int, OW: int
) -> Array:
    """Copy patches into columns: x (N, C, H, W) -> col (N, C, size, size, OH, OW).

    col[n, c, p, q, i, j] = x[n, c, i*stride[0] - pad + p*dilation, j*stride[1] - pad + q*dilation], 0 outside. `stride` is
    (vertical, horizontal); `pad` counts zeros before the first row and column.
    """
    N, C, H, W = x.shape
    if size == 1 and stride == (1, 1) and pad == 0:
        return x.reshape(N, C, 1, 1, H, W)
    HP, WP = _padded(size, stride, dilation, pad, H, W, OH, OW)
    padded = be.zeros((N, C, HP, WP), x.dtype)
    padded[:, :, pad : pad + H, pad : pad + W] = x
    col = be.empty((N, C, size, size, OH, OW), x.dtype)
    for p, q, rows, columns in _taps(size, stride, dilation, OH, OW):
        col[:, :, p, q] = padded[:, :, rows, columns]
    return col


@im2col.kernel
def im2col_cuda(
    be: KernelBackend, x: Array, size: int, stride: tuple[int, int], dilation: int, pad: int, OH: int, OW: int
) -> Array:
    N, C, H, W = x.shape
    if size == 1 and stride == (1, 1) and pad == 0:
        return x.reshape(N, C, 1, 1, H, W)
    col = be.empty((N, C, size, size, OH, OW), x.dtype)
    n = N * C * OH * OW
    be.launch("im2col.im2col", n, x, col, n, H, W, OH, OW, size, *stride, dilation, pad)
    return col


@op
def col2im(be: ArrayBackend, col: Array, H: int, W: int, stride: tuple[int, int], dilation: int, pad: int) -> Array:
    """Add patches to the pixels that `im2col` read: col (N, C, size, size, OH, OW) -> x (N, C, H, W)."""
    N, C, size, _, OH, OW = col.shape
    if size == 1 and stride == (1, 1) and pad == 0:
        return col.reshape(N, C, H, W)
    HP, WP = _padded(size, stride, dilation, pad, H, W, OH, OW)
    padded = be.zeros((N, C, HP, WP), col.dtype)
    for p, q, rows, columns in _taps(size, stride, dilation, OH, OW):
        padded[:, :, rows, columns] += col[:, :, p, q]
    return be.xp.ascontiguousarray(padded[:, :, pad : pad + H, pad : pad + W])


@col2im.kernel
def col2im_cuda(
    be: KernelBackend, col: Array, H: int, W: int, stride: tuple[int, int], dilation: int, pad: int
) -> Array:
    N, C, size, _, OH, OW = col.shape
    if size == 1 and stride == (1, 1) and pad == 0:
        return col.reshape(N, C, H, W)
    x = be.empty((N, C, H, W), col.dtype)
    be.launch("im2col.col2im", x.size, col, x, x.size, H, W, OH, OW, size, *stride, dilation, pad)
    return x
