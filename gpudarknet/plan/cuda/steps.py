"""Steps that are a launch or two on a GPU, and steps that only plans for a GPU have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..steps import Copy, MaxPool, Step, Upsample, YoloHead
from .emitter import Emitted, Emitter, Launch
from .epilogue import apply_epilogue, apply_head, apply_in_place


@dataclass(eq=False, kw_only=True)
class Blend(Step):
    """Multiply and add maps of one shape: y = a b + c d, or of three maps a b + (1 - a) c."""

    name = "blend"


@dataclass(eq=False, kw_only=True)
class Clip(Step):
    """Clip values to +-limit."""

    name = "clip"
    limit: float


@dataclass(eq=False, kw_only=True)
class Sign(Step):
    """y = 1 where x >= 0, else -1."""

    name = "sign"


def _blend(emitter: Emitter, step: Blend) -> Emitted:
    y, (a, b, c, *rest) = emitter.view(step.y), [emitter.view(m) for m in step.xs]
    d, ldd = (rest[0], rest[0].ld) if rest else (None, 0)
    n = y.pixels * y.shape[0]
    sizes = (n, y.shape[0], a.ld, b.ld, c.ld, ldd, y.ld)
    return Emitted([emitter.launch("nhwc_layers.blend", n, a, b, c, d, y, *sizes)])


def _clip(emitter: Emitter, step: Clip) -> Emitted:
    x, y = emitter.view(step.xs[0]), emitter.view(step.y)
    n = y.pixels * y.shape[0]
    return Emitted([emitter.launch("nhwc_layers.clip", n, x, y, n, y.shape[0], step.limit, x.ld, y.ld)])


def _sign(emitter: Emitter, step: Sign) -> Emitted:
    x, y = emitter.view(step.xs[0]), emitter.view(step.y)
    n = y.pixels * y.shape[0]
    return Emitted([emitter.launch("nhwc_layers.sign", n, x, y, n, y.shape[0], x.ld, y.ld)])


def _copy(emitter: Emitter, step: Copy) -> Emitted:
    x, y = emitter.view(step.xs[0]), emitter.view(step.y)
    return Emitted(apply_epilogue(emitter, step.epilogue, x, y, step=step))


def max_pool(emitter: Emitter, step: MaxPool) -> list[Launch]:
    """Return the launches of a max pool with its epilogue."""
    x, y = emitter.view(step.xs[0]), emitter.view(step.y)
    (C, H, W), (_, OH, OW), vectorized = x.shape, y.shape, emitter.can_vectorize(x, y)
    n = emitter.threads(y.pixels * C, vectorized)
    sizes = (n, C, H, W, OH, OW, step.size, *step.strides, step.padding // 2, x.ld, y.ld, vectorized)
    return [emitter.launch("nhwc.maxpool", n, x, y, *sizes), *apply_in_place(emitter, step.epilogue, y)]


def _maxpool(emitter: Emitter, step: MaxPool) -> Emitted:
    return Emitted(max_pool(emitter, step))


def _upsample(emitter: Emitter, step: Upsample) -> Emitted:
    x, y = emitter.view(step.xs[0]), emitter.view(step.y)
    vectorized = emitter.can_vectorize(x, y)
    n = emitter.threads(y.pixels * y.shape[0], vectorized)
    sizes = (n, *x.shape, step.s, step.scale, x.ld, y.ld, vectorized)
    upsample = emitter.launch("nhwc.upsample", n, x, y, *sizes)
    return Emitted([upsample, *apply_in_place(emitter, step.epilogue, y)])


def _yolo(emitter: Emitter, step: YoloHead) -> Emitted:
    x, y = emitter.view(step.xs[0]), emitter.view(step.y)
    return Emitted([apply_head(emitter, step, x, y), *apply_in_place(emitter, step.epilogue, y)])


EMITTERS: dict[type[Step], Callable[[Emitter, Any], Emitted]] = {
    Blend: _blend,
    Clip: _clip,
    Copy: _copy,
    MaxPool: _maxpool,
    Sign: _sign,
    Upsample: _upsample,
    YoloHead: _yolo,
}
