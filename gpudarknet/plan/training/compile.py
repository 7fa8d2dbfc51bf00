"""Compile a training step: lower layers, derive the backward, place maps and gradients in one arena."""

from __future__ import annotations

from collections.abc import Sequence

from ...array import Arrays
from ...graph import Node
from ...layers import Shape
from ...summary import flops
from ..builder import Builder
from ..fuse import fuse
from ..lower import lower as lower_inference
from ..memory import place
from ..steps import FeatureMap
from .differentiate import differentiate
from .lower import lower
from .steps import Backward, Loss, TrainingPlan


def compile_training(
    nodes: Sequence[Node], weights: Sequence[Arrays], shape: Shape, batch: int, frozen: int = 0
) -> TrainingPlan:
    """Compile a step on `batch` images of `shape` (C, H, W). frozen: this many first layers run as at inference.

    The plan refers to the weights; it does not copy them.
    """
    builder = Builder(FeatureMap(shape))
    maps = {-1: builder.input}

    def losses(part: Sequence[Node]) -> None:
        for node in part:
            if node.layer.has_loss:
                xs = maps[node.index], *([maps[node.sources[0]]] if node.layer.loss_reads_input else [])
                builder.steps.append(Loss(layers=(node.index,), xs=xs, y=maps[node.index], layer=node.layer))

    for node in nodes[:frozen]:
        builder.node, builder.w = node, weights[node.index]
        maps[node.index] = lower_inference(node.layer, builder, *(maps[source] for source in node.sources))
    read = {source for node in nodes[frozen:] for source in node.sources if source < frozen}
    read |= {index for node in nodes[:frozen] if node.layer.has_loss for index in (node.index, *node.sources)}
    builder.steps = fuse(builder.steps, [maps[index] for index in read])
    count = len(builder.steps)
    losses(nodes[:frozen])
    for node in nodes[frozen:]:
        builder.node, builder.w = node, weights[node.index]
        maps[node.index] = lower(node.layer, builder, *(maps[source] for source in node.sources))
        losses([node])
    stopped = {node.index for node in nodes if node.layer.onlyforward}
    backward = differentiate(builder.steps, count, builder.input, stopped)

    lifetimes: dict[FeatureMap, list[int]] = {builder.input: [-1]}
    for i, step in enumerate([*builder.steps, *backward]):
        for m in step.maps if isinstance(step, Backward) else (step.y, *step.reads):
            lifetimes.setdefault(m.storage, []).append(i)
    placed = place(lifetimes, batch)
    return TrainingPlan(
        batch, builder.input, *placed, flops(nodes), forward=builder.steps, backward=backward, frozen=count
    )
