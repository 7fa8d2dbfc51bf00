"""The layer table that Darknet prints: index, type, filters, size/stride(dilation), input, output, BFLOPS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .graph import Node
from .layers import Shape

HEADER = "   layer   filters  size/strd(dil)      input                output"


def pixels(shape: Shape) -> str:
    """Format a shape as Darknet does, width first."""
    C, H, W = shape
    return f"{W:4d} x{H:4d} x{C:4d}"


def table_row(node: Node) -> str:
    """Return one layer's line in Darknet's format; the input is a size or, if the layer names its sources, their indices."""
    kind, filters, size = node.layer.table_row(*node.inputs)
    left = f"{kind:<6}{filters}" if len(kind) < 6 else f"{kind} {filters}"
    read = " ".join(str(s) for s in node.sources) if node.layer.names_sources else pixels(node.inputs[0])
    operations = node.layer.flops(*node.inputs)
    cost = f" {operations / 1e9:5.3f} BF" if operations else ""
    return f"{node.index:4d} {left:<17}{f'{size:>9}':<12}{read:<16} -> {pixels(node.shape)}{cost}"


def flops(nodes: Sequence[Node]) -> float:
    """Return the operations of layers for one image."""
    return sum(node.layer.flops(*node.inputs) for node in nodes)


def bflops(nodes: Sequence[Node]) -> float:
    """Return the total BFLOPS for one image (Darknet's Total BFLOPS)."""
    return flops(nodes) / 1e9


def table(nodes: Sequence[Node]) -> str:
    """Return the table with Darknet's totals; avg_outputs averages layers whose input is larger than one pixel."""
    counted = [int(np.prod(n.shape)) for n in nodes if n.inputs[0][1] > 1 and n.inputs[0][2] > 1]
    lines = [HEADER, *(table_row(node) for node in nodes), f"Total BFLOPS {bflops(nodes):5.3f} "]
    if counted:
        lines.append(f"avg_outputs = {sum(counted) // len(counted)}")
    return "\n".join(lines)
