"""[convolutional]: patches times kernel in one gemm, batch norm or bias, activation (src/convolutional_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ops import convolution
from .base import (
    Activation,
    ForwardContext,
    Layer,
    Shape,
    ShapeError,
    Weight,
    absolute,
    accumulate,
    ones,
    uniform,
    windows,
    zeros,
)
from .blocks import activated, biased, blurred, blurred_shape, normalised


@dataclass(frozen=True, kw_only=True)
class Convolutional(Layer, section="convolutional", aliases=("conv",)):
    """Convolve (cross-correlate), normalise or add a bias, activate.   (C, H, W) -> (F, OH, OW)

    w: bias (F,), [scale, mean, variance (F,)], kernel (F, C/groups, size, size). Source: src/convolutional_layer.c; the
    XNOR form follows its CUDA build (Rastegari et al. 2016, arXiv 1603.05279).
    """

    ignored = frozenset(
        "cbn grad_centr angle stream wait_stream bin_output dot sway rotate stretch stretch_sway".split()
    )
    uses_adam = True
    unsupported = frozenset({"coordconv", "assisted_excitation", "reverse"})

    filters: int = 1
    size: int = 1
    stride: int = 1
    stride_x: int = -1  # below 1: stride
    stride_y: int = -1
    pad: int = 0  # nonzero: padding = size // 2
    padding: int = 0
    groups: int = 1
    dilation: int = 1
    activation: Activation = "logistic"
    batch_normalize: int = 0
    binary: int = 0
    xnor: int = 0
    antialiasing: int = 0
    share_index: int | None = None
    flipped: int = 0

    @property
    def strides(self) -> tuple[int, int]:
        """The strides (vertical, horizontal) of the layer as a whole."""
        return (
            self.stride_y if self.stride_y > 0 else self.stride,
            self.stride_x if self.stride_x > 0 else self.stride,
        )

    @property
    def inner(self) -> tuple[int, int]:
        """The strides of the convolution itself: with antialiasing the blur after it takes the stride."""
        return (1, 1) if self.antialiasing else self.strides

    @property
    def border(self) -> int:
        """Zeros before the first row and column, counted before dilation."""
        return self.size // 2 if self.pad else self.padding

    @property
    def spread(self) -> int:
        """The dilation; a kernel of one tap has none."""
        return self.dilation if self.size > 1 else 1

    @property
    def parts(self) -> int:
        """The groups; XNOR layers have none."""
        return 1 if self.xnor else self.groups

    def host(self, x: Shape) -> tuple[int, int]:
        """Return (OH, OW) of the convolution, before any blur."""
        _, H, W = x
        return tuple(windows(n, self.size, s, 2 * self.border) for n, s in zip((H, W), self.inner, strict=True))  # type: ignore[return-value]

    def shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        if min(self.filters, self.size, self.stride, self.groups, self.dilation) < 1 or self.border < 0:
            raise ShapeError("filters, size, stride, groups and dilation must be at least 1, padding at least 0")
        if x[0] % self.parts or self.filters % self.parts:
            raise ShapeError(f"groups={self.parts} does not divide {x[0]} input channels and {self.filters} filters")
        OH, OW = self.host(x)
        for n, out, s in zip(x[1:], (OH, OW), self.inner, strict=True):
            if (n + 2 * self.border * self.spread - (self.size - 1) * self.spread - 1) // s + 1 != out:
                raise ShapeError(
                    f"dilation={self.dilation} with size={self.size}, padding={self.border} overruns; use pad=1, odd size"
                )
        if self.antialiasing:
            OH, OW = blurred_shape((OH, OW), self.antialiasing, self.strides)
        return self.filters, OH, OW

    def weights(self, *inputs: Shape) -> list[Weight]:
        return [] if self.share_index is not None else self.all_weights(*inputs)

    def shared_weights(self, *inputs: Shape) -> list[Weight]:
        return [] if self.share_index is None else self.all_weights(*inputs)

    def weights_owner(self, index: int) -> int:
        return index if self.share_index is None else absolute(index, self.share_index)

    def unpack(self, name: str, flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if name == "kernel" and self.flipped:  # stored as [taps][filters]
            return np.ascontiguousarray(flat.reshape(-1, shape[0]).T).reshape(shape)
        return flat.reshape(shape)

    def all_weights(self, *inputs: Shape) -> list[Weight]:
        """Return the arrays that `forward` uses, whether they are its own or shared."""
        F, C = self.filters, inputs[0][0] // self.parts
        found: list[Weight] = [("bias", (F,), zeros)]
        if self.batch_normalize:
            found += [("scale", (F,), ones), ("mean", (F,), zeros), ("variance", (F,), zeros)]
        return [*found, ("kernel", (F, C, self.size, self.size), uniform(self.size * self.size * C))]

    def flops(self, *inputs: Shape) -> float:
        OH, OW = self.host(inputs[0])
        count = 2.0 * self.filters * (inputs[0][0] // self.parts) * self.size**2 * OH * OW
        return count / 32 if self.xnor else count

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        kind = "convX" if self.xnor else "convS" if self.share_index is not None else "conv"
        filters = f"{self.filters:5d}" + (f"/{self.parts:4d}" if self.parts > 1 else "")
        (sy, sx), size = self.strides, self.size
        if sx != sy:
            return kind, filters, f"{size:2d}x{size:2d}/{sx:2d}x{sy:2d}"
        return kind, filters, f"{size:2d} x{size:2d}/{sx:2d}" + (f"({self.spread})" if self.spread > 1 else "")

    def forward(self, be: Any, w: dict[str, Any], *xs: Any, ctx: ForwardContext) -> tuple[Any, Any]:
        (x,) = xs
        xp = be.xp
        OH, OW = self.host(x.shape[1:])
        kernel, x_read = w["kernel"], x
        if self.binary or self.xnor:
            kernel = binarised(xp, kernel)
        if self.xnor:
            x_read = xp.where(x >= 0, 1, -1).astype(x.dtype)
        kernel = kernel.astype(x.dtype, copy=False)
        geometry = (self.parts, self.inner, self.spread, self.border * self.spread)
        z = convolution.convolve(be, x_read, kernel, *geometry, OH, OW)
        z, normalised_backward = normalised(be, w, z, ctx) if self.batch_normalize else biased(be, w, z)
        y, activated_backward = activated(be, z, self.activation)
        if self.antialiasing:
            y, blur_backward = blurred(be, y, self.antialiasing, self.strides)

        def backward(dy: Any, grad: dict[str, Any]) -> tuple[Any, ...]:
            if self.antialiasing:
                dy = blur_backward(dy)
            dz = normalised_backward(activated_backward(dy), grad)
            dx, dkernel = convolution.convolve_backward(be, dz, x_read, kernel, *geometry, int(ctx.skip_input_grad))
            accumulate(grad, "kernel", dkernel)
            return (dx * ((x > -1) & (x < 1)) if self.xnor and dx is not None else dx,)

        return y, backward


def binarised(xp: Any, kernel: Any) -> Any:
    """Return the signs of a kernel (F, C, size, size), times the mean size of each filter's numbers."""
    return xp.where(kernel > 0, 1, -1) * xp.abs(kernel).mean(axis=(1, 2, 3), keepdims=True)


def folded(w: dict[str, np.ndarray], binary: bool = False) -> dict[str, np.ndarray]:
    """Return bias (F,) and kernel (F, ...) that do what w does at inference, batch norm included; computed in double."""
    if binary:
        w = {**w, "kernel": binarised(np, w["kernel"]).astype(np.float32)}
    if "scale" not in w:
        return {"bias": w["bias"], "kernel": w["kernel"]}
    gain = w["scale"].astype(np.float64) / np.sqrt(w["variance"].astype(np.float64) + 1e-5)
    bias = w["bias"] - w["mean"] * gain
    kernel = w["kernel"] * gain.reshape(-1, 1, 1, 1)
    return {"bias": bias.astype(np.float32), "kernel": kernel.astype(np.float32)}
