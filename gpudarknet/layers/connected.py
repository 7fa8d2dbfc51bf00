"""[connected]: a fully connected layer (src/connected_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops.matmul import matmul
from .base import (
    Activation,
    Backward,
    ForwardContext,
    Layer,
    Shape,
    Weight,
    accumulate,
    ones,
    uniform,
    zeros,
)
from .blocks import activate, add_bias, batch_norm
from .limits import COUNT


@dataclass(frozen=True, kw_only=True)
class Connected(Layer, section="connected", aliases=("conn",)):
    """Multiply by a matrix, normalize or add a bias, activate.   (C, H, W) -> (output, 1, 1)

    w: bias (K,), kernel (K, C*H*W), [scale, mean, variance (K,)] with K = output. In the file batch norm comes after the
    kernel, unlike in a convolution.
    """

    cpu_delta = "kept"
    limits = COUNT.of("output")

    output: int = 1
    activation: Activation = "logistic"
    batch_normalize: int = 0

    def shape(self, *inputs: Shape) -> Shape:
        return self.output, 1, 1

    def weights(self, *inputs: Shape) -> list[Weight]:
        C, H, W = inputs[0]
        K, M = self.output, C * H * W
        arrays: list[Weight] = [("bias", (K,), zeros), ("kernel", (K, M), uniform(M))]
        if self.batch_normalize:
            arrays += [("scale", (K,), ones), ("mean", (K,), zeros), ("variance", (K,), zeros)]
        return arrays

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "connected", str(self.output), ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        flat, kernel = x.reshape(x.shape[0], -1), w["kernel"].astype(x.dtype, copy=False)
        z = matmul(be, flat, kernel.T).reshape(-1, self.output, 1, 1)
        z, z_backward = batch_norm(be, w, z, ctx) if self.batch_normalize else add_bias(be, w, z)
        y, act_backward = activate(be, z, self.activation)

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            dz = z_backward(act_backward(dy), grad).reshape(-1, self.output)
            accumulate(grad, "kernel", matmul(be, dz.T, flat))
            return (None if ctx.skip_input_grad else matmul(be, dz, kernel).reshape(x.shape),)

        return y, backward
