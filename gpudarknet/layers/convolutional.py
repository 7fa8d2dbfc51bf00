"""[convolutional]: convolution, batch norm or bias, activation (src/convolutional_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..ops import convolution
from .base import (
    Activation,
    Backward,
    ForwardContext,
    Layer,
    Shape,
    ShapeError,
    Weight,
    accumulate,
    conv_output_length,
    ones,
    resolve_index,
    uniform,
    zeros,
)
from .blocks import activate, add_bias, batch_norm, blur_pool, blur_pool_shape
from .limits import COUNT, NOT_NEGATIVE


@dataclass(frozen=True, kw_only=True)
class Convolutional(Layer, section="convolutional", aliases=("conv",)):
    """Convolve (cross-correlate), normalize or add a bias, activate.   (C, H, W) -> (F, OH, OW)

    w: bias (F,), [scale, mean, variance (F,)], kernel (F, C/groups, size, size). Source: src/convolutional_layer.c; the
    XNOR form follows its CUDA build (Rastegari et al. 2016, arXiv 1603.05279).
    """

    ignored = frozenset(
        "cbn grad_centr angle stream wait_stream bin_output dot sway rotate stretch stretch_sway".split()
    )
    uses_adam = True
    cpu_delta = "overwrites_input"
    unsupported = frozenset({"coordconv", "assisted_excitation", "reverse"})
    limits = COUNT.of("filters", "size", "stride", "groups", "dilation") | NOT_NEGATIVE.of("padding")

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
        """The strides (vertical, horizontal) of the whole layer."""
        return (
            self.stride_y if self.stride_y > 0 else self.stride,
            self.stride_x if self.stride_x > 0 else self.stride,
        )

    @property
    def conv_strides(self) -> tuple[int, int]:
        """The strides of the convolution itself. With antialiasing, the blur that follows it applies the layer's strides."""
        return (1, 1) if self.antialiasing else self.strides

    @property
    def pad_before(self) -> int:
        """Zeros before the first row and column, in taps: dilation multiplies them."""
        return self.size // 2 if self.pad else self.padding

    @property
    def effective_dilation(self) -> int:
        """The dilation; a 1 x 1 kernel has none."""
        return self.dilation if self.size > 1 else 1

    @property
    def effective_groups(self) -> int:
        """The groups; XNOR layers have none."""
        return 1 if self.xnor else self.groups

    def conv_output_size(self, x: Shape) -> tuple[int, int]:
        """Return (OH, OW) of the convolution, before any blur."""
        (_, H, W), (sy, sx), padding = x, self.conv_strides, 2 * self.pad_before
        return conv_output_length(H, self.size, sy, padding), conv_output_length(W, self.size, sx, padding)

    def shape(self, *inputs: Shape) -> Shape:
        (x,) = inputs
        groups, P, D = self.effective_groups, self.pad_before, self.effective_dilation
        if x[0] % groups or self.filters % groups:
            raise ShapeError(
                f"groups={groups} does not divide {x[0]} input channels and {self.filters} filters", "groups"
            )
        OH, OW = self.conv_output_size(x)
        for n, out, s in zip(x[1:], (OH, OW), self.conv_strides, strict=True):
            if (n + 2 * P * D - (self.size - 1) * D - 1) // s + 1 != out:
                raise ShapeError(
                    f"dilation={self.dilation} with size={self.size}, padding={P} overruns; use pad=1, odd size"
                )
        if self.antialiasing:
            OH, OW = blur_pool_shape((OH, OW), self.antialiasing, self.strides)
        return self.filters, OH, OW

    def weights(self, *inputs: Shape) -> list[Weight]:
        return [] if self.share_index is not None else self.all_weights(*inputs)

    def shared_weights(self, *inputs: Shape) -> list[Weight]:
        return [] if self.share_index is None else self.all_weights(*inputs)

    def weights_owner(self, index: int) -> int:
        return index if self.share_index is None else resolve_index(index, self.share_index)

    def all_weights(self, *inputs: Shape) -> list[Weight]:
        """Return the arrays that `forward` uses, its own or shared."""
        F, C = self.filters, inputs[0][0] // self.effective_groups
        arrays: list[Weight] = [("bias", (F,), zeros)]
        if self.batch_normalize:
            arrays += [("scale", (F,), ones), ("mean", (F,), zeros), ("variance", (F,), zeros)]
        return [*arrays, ("kernel", (F, C, self.size, self.size), uniform(self.size * self.size * C))]

    def unpack(self, name: str, flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if name == "kernel" and self.flipped:  # stored as [taps][filters]
            return np.ascontiguousarray(flat.reshape(-1, shape[0]).T).reshape(shape)
        return flat.reshape(shape)

    def flops(self, *inputs: Shape) -> float:
        OH, OW = self.conv_output_size(inputs[0])
        count = 2.0 * self.filters * (inputs[0][0] // self.effective_groups) * self.size**2 * OH * OW
        return count / 32 if self.xnor else count

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        kind = "convX" if self.xnor else "convS" if self.share_index is not None else "conv"
        groups, D, (sy, sx), size = self.effective_groups, self.effective_dilation, self.strides, self.size
        filters = f"{self.filters:5d}" + (f"/{groups:4d}" if groups > 1 else "")
        if sx != sy:
            return kind, filters, f"{size:2d}x{size:2d}/{sx:2d}x{sy:2d}"
        return kind, filters, f"{size:2d} x{size:2d}/{sx:2d}" + (f"({D})" if D > 1 else "")

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        xp = be.xp
        OH, OW = self.conv_output_size(x.shape[1:])
        kernel, conv_input = w["kernel"], x
        if self.binary or self.xnor:
            kernel = binarize(xp, kernel)
        if self.xnor:
            conv_input = xp.where(x >= 0, 1, -1).astype(x.dtype)
        kernel = kernel.astype(x.dtype, copy=False)
        D = self.effective_dilation
        geometry = (self.effective_groups, self.conv_strides, D, self.pad_before * D)
        z = convolution.convolve(be, conv_input, kernel, *geometry, OH, OW)
        z, z_backward = batch_norm(be, w, z, ctx) if self.batch_normalize else add_bias(be, w, z)
        y, act_backward = activate(be, z, self.activation)
        if self.antialiasing:
            y, blur_backward = blur_pool(be, y, self.antialiasing, self.strides)

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            if self.antialiasing:
                dy = blur_backward(dy)
            dz = z_backward(act_backward(dy), grad)
            dx, dkernel = convolution.convolve_backward(be, dz, conv_input, kernel, *geometry, int(ctx.skip_input_grad))
            accumulate(grad, "kernel", dkernel)
            return (dx * ((x > -1) & (x < 1)) if self.xnor and dx is not None else dx,)

        return y, backward


def binarize(xp: ModuleType, kernel: Array) -> Array:
    """Return the signs of a kernel (F, C, size, size), times the mean magnitude of each filter."""
    return xp.where(kernel > 0, 1, -1) * xp.abs(kernel).mean(axis=(1, 2, 3), keepdims=True)


def fold_batch_norm(w: dict[str, np.ndarray], binary: bool = False) -> dict[str, np.ndarray]:
    """Return the bias (F,) and kernel (F, ...) that compute what w does at inference; folded in float64."""
    if binary:
        w = {**w, "kernel": binarize(np, w["kernel"]).astype(np.float32)}
    if "scale" not in w:
        return {"bias": w["bias"], "kernel": w["kernel"]}
    gain = w["scale"].astype(np.float64) / np.sqrt(w["variance"].astype(np.float64) + 1e-5)
    bias = w["bias"] - w["mean"] * gain
    kernel = w["kernel"] * gain.reshape(-1, 1, 1, 1)
    return {"bias": bias.astype(np.float32), "kernel": kernel.astype(np.float32)}
