"""Canonicalize layers that are a kind of convolution, or end in one, so that a GPU runs them by its convolution algorithms.

On the CPU a [connected] layer remains a matrix product: its weights are used in place, not copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...array import Arrays
from ...backend import Backend
from ...layers.batchnorm import BatchNorm
from ...layers.blocks import BLUR_KERNELS
from ...layers.connected import Connected
from ...layers.convolutional import Convolutional
from ...layers.maxpool import MaxPool
from ...layers.upsample import Upsample
from ...ops.activation import NORMALIZERS
from .. import steps
from ..steps import Activate, Convolve, EpilogueOp, FeatureMap, LayerCall, Plan, Step, YoloHead
from .steps import Sign


def canonicalize(plan: Plan, be: Backend) -> Plan:
    """Return the plan with [connected], [batchnorm], downsampling, XNOR and the blur of antialiasing as convolutions.

    YOLO heads are fused.
    """
    steps = [new for step in plan.steps for new in canonical_steps(step, be)]
    return replace(plan, steps=fuse_heads(steps, plan.outputs))


def fuse_heads(steps: Sequence[Step], outputs: Sequence[FeatureMap]) -> list[Step]:
    """Fuse YOLO heads into the convolutions that only they read."""
    read = [m.storage for m in (*outputs, *(m for step in steps for m in step.reads))]
    writers = {step.y: step for step in steps if isinstance(step, Convolve) and not step.pooled}
    fused: dict[Step, Convolve | None] = {}
    for head in steps:
        if isinstance(head, YoloHead) and (conv := writers.get(head.xs[0])) and read.count(conv.y) == 1:
            fused[conv] = replace(conv, y=head.y, layers=conv.layers + head.layers, head=head)
            fused[head] = None
    return [new for step in steps if (new := fused.get(step, step)) is not None]


def canonical_steps(step: Step, be: Backend) -> list[Step]:
    """Return the steps that replace one: itself, if its layer is none of these."""
    if not isinstance(step, LayerCall):
        return [step]
    layer, C = step.layer, step.y.shape[0]
    if isinstance(layer, Connected):
        return [_connected(step, layer, be)]
    if isinstance(layer, BatchNorm):
        return [_depthwise(step, 1, (1, 1), 0, {**step.w, "kernel": np.ones((C, 1, 1, 1), np.float32)})]
    if isinstance(layer, Upsample):  # with a negative stride: others are steps
        s = -layer.stride
        return [_depthwise(step, s, (s, s), 0, constant_weights(np.full((s, s), layer.scale), C))]
    if isinstance(layer, Convolutional) and layer.activation not in NORMALIZERS:
        if not layer.antialiasing:
            return convolution_steps(step, layer, step.w, step.xs[0], step.y)
        unblurred = FeatureMap((C, *layer.conv_output_size(step.xs[0].shape)))
        convolution = convolution_steps(step, layer, step.w, step.xs[0], unblurred)
        return [*convolution, _blur(step, unblurred, layer.antialiasing, layer.strides)]
    if isinstance(layer, MaxPool) and layer.antialiasing and not (layer.maxpool_depth or layer.maxpool_zero_nonmax):
        unblurred = FeatureMap(layer.pooled_shape(step.xs[0].shape, layer.pool_strides))
        pool = steps.MaxPool(
            layers=step.layers,
            xs=step.xs,
            y=unblurred,
            size=layer.window,
            strides=layer.pool_strides,
            padding=layer.pad_total,
        )
        return [pool, _blur(step, unblurred, layer.antialiasing, layer.strides)]
    return [step]


def convolution_steps(step: Step, layer: Convolutional, w: Arrays, x: FeatureMap, y: FeatureMap) -> list[Step]:
    """Return the convolution of x with w and its activation; XNOR layers convolve the signs of x."""
    D, before = layer.effective_dilation, list[Step]()
    if layer.xnor:
        signs = FeatureMap(x.shape)
        before.append(Sign(layers=step.layers, xs=(x,), y=signs))
        x = signs
    convolution = Convolve(
        layers=step.layers, xs=(x,), y=y, epilogue=activation_ops(layer.activation), w=w, binary=bool(layer.xnor or layer.binary),
        size=layer.size, strides=layer.conv_strides, dilation=D, pad=layer.pad_before * D, groups=layer.effective_groups,
    )  # fmt: skip
    return [*before, convolution]


def activation_ops(kind: str) -> list[EpilogueOp]:
    """Return an activation as the operations of an epilogue."""
    return [] if kind == "linear" else [Activate(kind)]


def constant_weights(kernel: np.ndarray, C: int) -> Arrays:
    """Return the weights of a convolution of C channels, each with the same kernel (s, s)."""
    same = np.broadcast_to(kernel.astype(np.float32), (C, 1, *kernel.shape))
    return {"kernel": same, "bias": np.zeros(C, np.float32)}


def _connected(step: LayerCall, layer: Connected, be: Backend) -> Convolve:
    """Return a matrix product as a convolution with one output pixel, its kernel zero-padded to a square."""
    (C, H, W), K = step.xs[0].shape, step.y.shape[0]
    kernel, size = step.w["kernel"].reshape(K, C, H, W), max(H, W)
    if H != W:
        square = np.zeros((K, C, size, size), np.float32)
        square[:, :, :H, :W] = be.to_numpy(kernel)
        kernel = square
    return Convolve(
        layers=step.layers, xs=step.xs, y=step.y, epilogue=[*activation_ops(layer.activation), *step.epilogue],
        w={**step.w, "kernel": kernel}, size=size, strides=(1, 1), dilation=1, pad=0, groups=1,
    )  # fmt: skip


def _depthwise(
    step: Step,
    size: int,
    strides: tuple[int, int],
    pad: int,
    w: Arrays,
    x: FeatureMap | None = None,
    part: str = "",
) -> Convolve:
    """Return a depthwise convolution."""
    xs = step.xs if x is None else (x,)
    return Convolve(
        layers=step.layers, xs=xs, y=step.y, epilogue=list(step.epilogue), w=w, part=part,
        size=size, strides=strides, dilation=1, pad=pad, groups=step.y.shape[0],
    )  # fmt: skip


def _blur(step: Step, unblurred: FeatureMap, kind: int, strides: tuple[int, int]) -> Convolve:
    """Return the blur of antialiasing: kind 1 is 3 x 3, 2 is 2 x 2 (layers/blocks.py)."""
    kernel = BLUR_KERNELS[kind == 2]
    size = len(kernel)
    return _depthwise(step, size, strides, size // 3, constant_weights(kernel, step.y.shape[0]), unblurred, "blur")
