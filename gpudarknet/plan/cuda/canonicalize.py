"""Layers that are a kind of convolution, or end in one: on a GPU what is made for convolutions serves them too.

On the CPU a [connected] layer stays what it is: its weights are used where they lie, not copied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...backend import Backend
from ...layers.batchnorm import BatchNorm
from ...layers.blocks import BLUR_KERNELS
from ...layers.connected import Connected
from ...layers.convolutional import Convolutional
from ...layers.maxpool import MaxPool
from ...layers.upsample import Upsample
from ...ops.activation import NORMALIZERS
from .. import steps
from ..steps import Activate, Convolve, EpilogueOp, FeatureMap, LayerCall, Plan, Step
from .elementwise import Sign


def as_convolutions(plan: Plan, be: Backend) -> Plan:
    """Return the plan with [connected], [batchnorm], downsampling, XNOR and the blur of antialiasing as convolutions."""
    return replace(plan, steps=[more for step in plan.steps for more in rewritten(step, be)])


def rewritten(step: Step, be: Backend) -> list[Step]:
    """Return the steps that take the place of one: itself, if its layer is none of these."""
    if not isinstance(step, LayerCall):
        return [step]
    layer, C = step.layer, step.y.shape[0]
    if isinstance(layer, Connected):
        return [_connected(step, layer, be)]
    if isinstance(layer, BatchNorm):
        return [_channelwise(step, 1, (1, 1), 0, {**step.w, "kernel": np.ones((C, 1, 1, 1), np.float32)})]
    if isinstance(layer, Upsample):  # by a negative stride: other ones are steps
        s = -layer.stride
        return [_channelwise(step, s, (s, s), 0, fixed(np.full((s, s), layer.scale), C))]
    if isinstance(layer, Convolutional) and layer.activation not in NORMALIZERS:
        if not layer.antialiasing:
            return convolved(step, layer, step.w, step.xs[0], step.y)
        sharp = FeatureMap((C, *layer.conv_output_size(step.xs[0].shape)))
        convolution = convolved(step, layer, step.w, step.xs[0], sharp)
        return [*convolution, _blurred(step, sharp, layer.antialiasing, layer.strides)]
    if isinstance(layer, MaxPool) and layer.antialiasing and not (layer.maxpool_depth or layer.maxpool_zero_nonmax):
        sharp = FeatureMap(layer.pooled_shape(step.xs[0].shape, layer.pool_strides))
        pool = steps.MaxPool(
            layers=step.layers,
            xs=step.xs,
            y=sharp,
            size=layer.window,
            strides=layer.pool_strides,
            padding=layer.pad_total,
        )
        return [pool, _blurred(step, sharp, layer.antialiasing, layer.strides)]
    return [step]


def convolved(step: Step, layer: Convolutional, w: dict[str, Any], x: FeatureMap, y: FeatureMap) -> list[Step]:
    """Return the convolution of x with w and its activation, and what comes before: XNOR layers see signs alone."""
    D, found = layer.effective_dilation, list[Step]()
    if layer.xnor:
        found.append(Sign(layers=step.layers, xs=(x,), y=FeatureMap(x.shape)))
        x = found[0].y
    convolution = Convolve(
        layers=step.layers, xs=(x,), y=y, epilogue=activated(layer.activation), w=w, binary=bool(layer.xnor or layer.binary),
        size=layer.size, strides=layer.conv_strides, dilation=D, pad=layer.pad_before * D, groups=layer.effective_groups,
    )  # fmt: skip
    return [*found, convolution]


def activated(kind: str) -> list[EpilogueOp]:
    """Return what activates a step's result."""
    return [] if kind == "linear" else [Activate(kind)]


def fixed(kernel: np.ndarray, C: int) -> dict[str, Any]:
    """Return the weights of a convolution of C channels, each with the same kernel (s, s)."""
    same = np.broadcast_to(kernel.astype(np.float32), (C, 1, *kernel.shape))
    return {"kernel": same, "bias": np.zeros(C, np.float32)}


def _connected(step: LayerCall, layer: Connected, be: Backend) -> Convolve:
    """See the whole map as one patch. It is square for that; what lies beyond the map counts 0."""
    (C, H, W), K = step.xs[0].shape, step.y.shape[0]
    kernel, size = step.w["kernel"].reshape(K, C, H, W), max(H, W)
    if H != W:
        whole = np.zeros((K, C, size, size), np.float32)
        whole[:, :, :H, :W] = be.to_numpy(kernel)
        kernel = whole
    return Convolve(
        layers=step.layers, xs=step.xs, y=step.y, epilogue=[*activated(layer.activation), *step.epilogue],
        w={**step.w, "kernel": kernel}, size=size, strides=(1, 1), dilation=1, pad=0, groups=1,
    )  # fmt: skip


def _channelwise(
    step: Step,
    size: int,
    strides: tuple[int, int],
    pad: int,
    w: dict[str, Any],
    x: FeatureMap | None = None,
    part: str = "",
) -> Convolve:
    """Return the convolution of each channel with a kernel of its own."""
    xs = step.xs if x is None else (x,)
    return Convolve(
        layers=step.layers, xs=xs, y=step.y, epilogue=list(step.epilogue), w=w, part=part,
        size=size, strides=strides, dilation=1, pad=pad, groups=step.y.shape[0],
    )  # fmt: skip


def _blurred(step: Step, sharp: FeatureMap, kind: int, strides: tuple[int, int]) -> Convolve:
    """Return the blur of a map by antialiasing: 1 is 3 x 3, 2 is 2 x 2 (layers/blocks.py)."""
    kernel = BLUR_KERNELS[kind == 2]
    size = len(kernel)
    return _channelwise(step, size, strides, size // 3, fixed(kernel, step.y.shape[0]), sharp, "blur")
