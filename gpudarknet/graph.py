"""Connect a cfg's layers to a graph with all shapes, without allocating memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .backend import machine
from .cfg import Config
from .errors import CfgError, CfgWarning
from .layers import Layer, Shape, ShapeError

MAX_ELEMENTS = 2**31 - 1  # of an array: Darknet and the kernels use 32-bit indices


@dataclass(frozen=True)
class Node:
    """A layer in the graph: the layers it reads, and the (C, H, W) of its inputs and its output."""

    index: int
    layer: Layer
    sources: tuple[int, ...]
    inputs: tuple[Shape, ...]
    shape: Shape
    line: int


def build(config: Config) -> tuple[Node, ...]:
    """Return the layers of a cfg with their sources and shapes. Raises CfgError; allocates nothing."""
    net, nodes = config.net, list[Node]()
    place = f"{config.path}: [net]"
    if min(net.input) < 1:
        raise CfgError(
            f"{place} needs width, height and channels of at least 1 (or inputs, for a network without images)"
        )
    if int(np.prod(net.input, dtype=object)) > MAX_ELEMENTS:
        raise CfgError(
            f"{place} asks for an input of {' x '.join(map(str, net.input[::-1]))} elements; make it smaller"
        )
    for index, (layer, line) in enumerate(zip(config.layers, config.lines, strict=True)):
        place = f"{config.path}:{line}: [{layer.section}] (layer {index})"
        sources = layer.sources(index)
        for source in sources:
            if not 0 <= source < index and (source, index) != (-1, 0):
                earlier = f"layers 0 to {index - 1}" if index else "the input, as -1"
                at = config.line(index, "layers", "from")
                raise CfgError(
                    f"{config.path}:{at}: [{layer.section}] (layer {index}) reads layer {source}; it can only read earlier"
                    f" layers: {earlier}"
                )
        inputs = tuple(net.input if source < 0 else nodes[source].shape for source in sources)
        try:
            node = Node(index, layer, sources, inputs, layer.shape(*inputs), line)
            sizes = [("output", node.shape), *((name, shape) for name, shape, _ in layer.weights(*inputs))]
        except ShapeError as e:
            raise CfgError(
                f"{config.path}:{config.line(index, e.key)}: [{layer.section}] (layer {index}): {e}"
            ) from None
        for name, shape in sizes:
            if int(np.prod(shape, dtype=object)) > MAX_ELEMENTS:
                raise CfgError(f"{place}: its {name} {shape} has more than 2^31 - 1 elements; make it smaller")
        if shape_warning := layer.shape_warning(*inputs):
            warnings.warn(f"{place}: {shape_warning}", CfgWarning, stacklevel=2)
        check_shared(place, node, nodes)
        nodes.append(node)
    return tuple(nodes)


def check_shared(place: str, node: Node, nodes: list[Node]) -> None:
    """Raise CfgError if a layer uses the weights of another one that does not have them."""
    source = owner(node)
    if source == node.index and not node.layer.shared_weights(*node.inputs):
        return
    if not 0 <= source < node.index:
        raise CfgError(f"{place} cannot share the weights of layer {source}; name an earlier convolutional layer")
    needed, available = node.layer.shared_weights(*node.inputs), nodes[source].layer.weights(*nodes[source].inputs)
    if {w[:2] for w in needed} - {w[:2] for w in available}:
        raise CfgError(
            f"{place} cannot share the weights of layer {source}, which has none of the same size, filters and channels"
        )


def owner(node: Node) -> int:
    """Return the layer whose weights a layer uses."""
    return node.layer.weights_owner(node.index)


def check_memory(path: str, nodes: Sequence[Node], batch: int) -> None:
    """Raise CfgError if the weights and the largest layer's inputs and output exceed this machine's memory."""
    available = machine.memory_bytes()
    if available is None:
        return
    parameters = sum(int(np.prod(shape)) for n in nodes for _, shape, _ in n.layer.weights(*n.inputs))
    maps = max(int(np.prod(n.shape)) + sum(int(np.prod(s)) for s in n.inputs) for n in nodes)
    need = 4 * (parameters + batch * maps)
    if need > available:
        raise CfgError(
            f"{path}: needs at least {need / 2**30:.1f} GiB for weights and maps, this machine has {available / 2**30:.1f};"
            " make width, height, filters or batch smaller"
        )
