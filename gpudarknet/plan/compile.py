"""Compile a network into a plan: lower layers to steps, fuse steps, plan memory."""

from __future__ import annotations

from collections.abc import Sequence

from ..array import Arrays
from ..graph import Node
from ..layers import Shape
from ..summary import flops
from .builder import Builder
from .fuse import fuse
from .lower import lower
from .memory import plan_memory
from .steps import FeatureMap, Plan


def compile(nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int], shape: Shape, batch: int) -> Plan:
    """Compile layers for `batch` images of `shape` (C, H, W). heads: the layers whose maps are the outputs.

    The plan refers to the weights; it does not copy them.
    """
    builder = Builder(FeatureMap(shape))
    maps = {-1: builder.input}
    for node in nodes:
        builder.node, builder.w = node, weights[node.index]
        maps[node.index] = lower(node.layer, builder, *(maps[source] for source in node.sources))
    outputs = tuple(maps[index] for index in heads) if nodes else (builder.input,)
    steps = fuse(builder.steps, outputs)
    placed = plan_memory(steps, builder.input, outputs, batch)
    layers = tuple(nodes[index].layer for index in heads) if nodes else ()
    return Plan(batch, builder.input, *placed, flops(nodes), outputs=outputs, steps=steps, heads=layers)
