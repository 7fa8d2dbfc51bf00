"""[local]: a convolution with a different kernel at every position (src/local_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import im2col
from ..ops.matmul import matmul
from .base import (
    Activation,
    Backward,
    ForwardContext,
    Layer,
    Shape,
    Weight,
    accumulate,
    conv_output_length,
    reduce_sum,
    uniform,
    zeros,
)
from .blocks import activate
from .limits import COUNT, NOT_NEGATIVE


@dataclass(frozen=True, kw_only=True)
class Local(Layer, section="local"):
    """Convolve without sharing weights, add a bias, activate.   (C, H, W) -> (F, OH, OW)

    w: bias (F, OH, OW), kernel (OH*OW, F, C*size*size). `pad` counts zeros on each side, 0 or 1.
    """

    cpu_delta = "kept"
    limits = COUNT.of("filters", "size", "stride") | NOT_NEGATIVE.of("pad")

    filters: int = 1
    size: int = 1
    stride: int = 1
    pad: int = 0
    activation: Activation = "logistic"

    def shape(self, *inputs: Shape) -> Shape:
        padding = self.size - 1 if self.pad else 0  # with pad Darknet counts (H - 1) // stride + 1
        OH, OW = (conv_output_length(n, self.size, self.stride, padding) for n in inputs[0][1:])
        return self.filters, OH, OW

    def weights(self, *inputs: Shape) -> list[Weight]:
        F, OH, OW = self.shape(*inputs)
        K = inputs[0][0] * self.size**2
        return [("bias", (F, OH, OW), zeros), ("kernel", (OH * OW, F, K), uniform(K))]

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "local", str(self.filters), f"{self.size} x {self.size}/ {self.stride}"

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        xp, kernel, stride = be.xp, w["kernel"].astype(x.dtype, copy=False), (self.stride, self.stride)
        N, C, H, W = x.shape
        F, OH, OW = self.shape((C, H, W))
        K, L = C * self.size**2, OH * OW
        col = im2col.im2col(be, x, self.size, stride, 1, self.pad, OH, OW).reshape(N, K, L)
        z = xp.ascontiguousarray(matmul(be, kernel, col.transpose(2, 1, 0)).transpose(2, 1, 0))  # from (L, F, N)
        z = z.reshape(N, F, OH, OW)
        z += w["bias"]
        y, back = activate(be, z, self.activation)

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            dz = back(dy)
            accumulate(grad, "bias", reduce_sum(dz, axis=0))
            columns = dz.reshape(N, F, L).transpose(2, 1, 0)  # (L, F, N)
            accumulate(grad, "kernel", matmul(be, columns, col.transpose(2, 0, 1)))
            dcol = matmul(be, kernel.transpose(0, 2, 1), columns).transpose(2, 1, 0)
            dcol = xp.ascontiguousarray(dcol).reshape(N, C, self.size, self.size, OH, OW)
            return (im2col.col2im(be, dcol, H, W, stride, 1, self.pad),)

        return y, backward
