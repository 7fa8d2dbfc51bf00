"""[empty] and [contrastive], identities, and [history], which stacks time steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..array import Array, ArrayBackend, Arrays
from .base import Backward, ForwardContext, Layer, Shape
from .limits import COUNT


@dataclass(frozen=True, kw_only=True)
class Empty(Layer, section="empty", aliases=("silence",)):
    """Pass the input on.   (C, H, W) -> same"""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        return xs[0], lambda dy, grad: (dy,)


@dataclass(frozen=True, kw_only=True)
class Contrastive(Empty, section="contrastive"):
    """Pass the input on. In Darknet this is a loss on embeddings, which is not implemented here.   (C, H, W) -> same"""

    loss_missing = True
    ignored: ClassVar[frozenset[str]] = frozenset(
        "classes temperature yolo_layer cls_normalizer max_delta contrastive_neg_max".split()
    )


@dataclass(frozen=True, kw_only=True)
class History(Layer, section="history"):
    """Stack the last history_size time steps along channels, newest first.   (C, H, W) -> (C * history_size, H, W)

    Steps before the first are zero. Inference keeps the history between calls, except with time_steps=1, as in Darknet.
    """

    limits = COUNT.of("history_size")

    history_size: int = 4

    def shape(self, *inputs: Shape) -> Shape:
        C, H, W = inputs[0]
        return C * self.history_size, H, W

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        N, C, H, W = x.shape
        K, B = self.history_size, N // ctx.steps
        frames = x.reshape(ctx.steps, B, C, H, W)
        past = be.zeros((K - 1, B, C, H, W), x.dtype)
        carry = not ctx.train and ctx.steps > 1
        if carry and "past" in w and w["past"].shape == past.shape:
            past = w["past"]
        sequence = be.xp.concatenate([past, frames])  # oldest first
        if carry:
            w["past"] = sequence[ctx.steps :]
        y = be.xp.stack([sequence[K - 1 - k : K - 1 - k + ctx.steps] for k in range(K)], axis=2)

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            dsequence = be.zeros(sequence.shape, dy.dtype)
            parts = dy.reshape(ctx.steps, B, K, C, H, W)
            for k in range(K):
                dsequence[K - 1 - k : K - 1 - k + ctx.steps] += parts[:, :, k]
            return (dsequence[K - 1 :].reshape(x.shape),)

        return y.reshape(N, K * C, H, W), backward
