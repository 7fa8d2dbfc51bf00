"""[dropout] (src/dropout_layer.c): identity at inference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from .base import Backward, ForwardContext, Layer, Shape
from .limits import BELOW_ONE, NOT_NEGATIVE


@dataclass(frozen=True, kw_only=True)
class Dropout(Layer, section="dropout"):
    """Zero random values in training and scale the others up.   (C, H, W) -> same

    dropblock zeroes squares instead (Ghiasi et al. 2018, arXiv 1810.12890): at most one per channel, with sides of
    dropblock_size_rel * W or dropblock_size_abs pixels. Side and probability grow over the first 85 % of the training.
    """

    cpu_delta = "shared"
    limits = NOT_NEGATIVE.of("dropblock_size_rel", "dropblock_size_abs")
    training_limits = BELOW_ONE.of("probability")

    probability: float = 0.2
    dropblock: int = 0
    dropblock_size_rel: float = 0.0
    dropblock_size_abs: float = 0.0

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "dropout", "", f"p = {self.probability:.3g}"

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        if not ctx.train:
            return x, lambda dy, grad: (dy,)
        if self.dropblock or self.dropblock_size_rel or self.dropblock_size_abs:
            mask = self.drop_blocks(x.shape, ctx)
        else:
            mask = (ctx.rng.random(x.shape, np.float32) >= self.probability) / (1 - self.probability)
        mask = be.asarray(mask, x.dtype)
        return x * mask, lambda dy, grad: (dy * mask,)

    def drop_blocks(self, shape: tuple[int, ...], ctx: ForwardContext) -> np.ndarray:
        """Return the mask (N, C, H, W) of DropBlock, each image scaled so that its mean is 1."""
        N, C, H, W = shape
        ramp = min(ctx.progress / 0.85, 1.0)
        side = max(1, int((self.dropblock_size_rel * W or self.dropblock_size_abs) * ramp))
        side = min(side, H, W)
        mask = np.ones(shape, np.float32)
        hit = ctx.rng.random((N, C)) < self.probability * ramp
        top, left = ctx.rng.integers(0, H - side + 1, (N, C)), ctx.rng.integers(0, W - side + 1, (N, C))
        for n, c in np.argwhere(hit):
            mask[n, c, top[n, c] : top[n, c] + side, left[n, c] : left[n, c] + side] = 0
        return mask / np.maximum(mask.mean(axis=(1, 2, 3), keepdims=True), 1e-6)
