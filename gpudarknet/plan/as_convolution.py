"""Layers that are a kind of convolution: on a GPU what is made for convolutions serves them too.

On the CPU a [connected] layer stays what it is: its weights are used where they lie, not copied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import Backend
from ..layers.batchnorm import BatchNorm
from ..layers.connected import Connected
from ..layers.upsample import Upsample
from .steps import Activate, Convolve, Plan, Reference, Step


def as_convolutions(plan: Plan, be: Backend) -> Plan:
    """Return the plan with [connected], [batchnorm] and downsampling as convolutions."""
    return replace(plan, steps=[as_convolution(step, be) for step in plan.steps])


def as_convolution(step: Step, be: Backend) -> Step:
    """Return the step as a convolution if its layer is one of these, else the step."""
    layer = step.layer if isinstance(step, Reference) else None
    if not isinstance(step, Reference):
        return step
    C = step.y.shape[0]
    if isinstance(layer, Connected):
        return _connected(step, layer, be)
    if isinstance(layer, BatchNorm):
        return _convolution(step, 1, C, {**step.w, "kernel": np.ones((C, 1, 1, 1), np.float32)})
    if isinstance(layer, Upsample):  # by a negative stride: other ones are steps
        s = -layer.stride
        w = {"kernel": np.full((C, 1, s, s), layer.scale, np.float32), "bias": np.zeros(C, np.float32)}
        return _convolution(step, s, C, w)
    return step


def _connected(step: Reference, layer: Connected, be: Backend) -> Convolve:
    """See the whole map as one patch. It is square for that; what lies beyond the map counts 0."""
    (C, H, W), K = step.xs[0].shape, step.y.shape[0]
    kernel, size = step.w["kernel"].reshape(K, C, H, W), max(H, W)
    if H != W:
        whole = np.zeros((K, C, size, size), np.float32)
        whole[:, :, :H, :W] = be.to_numpy(kernel)
        kernel = whole
    return _convolution(step, size, 1, {**step.w, "kernel": kernel}, layer.activation)


def _convolution(step: Reference, size: int, groups: int, w: dict[str, Any], activation: str = "linear") -> Convolve:
    after = [*([] if activation == "linear" else [Activate(activation)]), *step.after]
    return Convolve(
        layers=step.layers, xs=step.xs, y=step.y, after=after, w=w,
        size=size, strides=(size, size), dilation=1, pad=0, groups=groups,
    )  # fmt: skip
