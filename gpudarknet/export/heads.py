"""Detection heads: `lower` returns the outputs of `Network.predict`, `decode_boxes` converts them to boxes and scores."""

from __future__ import annotations

from functools import singledispatch
from itertools import pairwise

import numpy as np

from ..array import Arrays
from ..errors import CfgError
from ..graph import Node
from ..layers import Layer
from ..layers.anchors import AnchorHead
from ..layers.detection import Detection
from ..layers.gaussian_yolo import GaussianYolo
from ..layers.region import Region
from ..layers.yolo import Yolo
from .graph import Graph
from .lower import lower, softmax

Decoded = tuple[str, str, int, int]  # names of boxes (N, K, 4) and scores (N, K, classes), K, classes


def apply_sigmoids(g: Graph, v: str, parts: str, axis: int) -> list[str]:
    """Split v along an axis into runs of equal letters of `parts`; apply a sigmoid to those of "s"."""
    bounds = [0, *(i for i in range(1, len(parts)) if parts[i] != parts[i - 1]), len(parts)]
    values = []
    for a, b in pairwise(bounds):
        part = g.slice(v, axis, a, b)
        values.append(g.op("Sigmoid", part) if parts[a] == "s" else part)
    return values


def apply_scale_x_y(g: Graph, xy: str, scale: float) -> str:
    """Apply scale_x_y."""
    return xy if scale == 1 else g.op("Sub", g.op("Mul", xy, float(scale)), 0.5 * (scale - 1))


@lower.register
def _yolo(layer: Yolo, g: Graph, w: Arrays, node: Node, x: str) -> str:
    C, H, W = node.shape
    A = len(layer.anchor_ids)
    E = C // A
    v = g.reshape(x, A, E, H * W)
    if layer.new_coords:
        xy, rest = g.slice(v, 2, 0, 2), [g.slice(v, 2, 2, E)]
    else:
        xy, *rest = apply_sigmoids(g, v, "ssrr" + "s" * (E - 4), 2)
    return g.reshape(g.concat([apply_scale_x_y(g, xy, layer.scale_x_y), *rest], 2), C, H, W)


@lower.register
def _gaussian(layer: GaussianYolo, g: Graph, w: Arrays, node: Node, x: str) -> str:
    C, H, W = node.shape
    A = len(layer.anchor_ids)
    E = C // A
    v = g.reshape(x, A, E, H * W)
    four, *rest = apply_sigmoids(g, v, "ssss" + "rsr" + "s" * (E - 7), 2)
    if layer.scale_x_y != 1:  # x and y are at 0 and 2, their uncertainties at 1 and 3
        factor = np.array([layer.scale_x_y, 1, layer.scale_x_y, 1]).reshape(1, 1, 4, 1)
        four = g.op("Sub", g.op("Mul", four, factor), 0.5 * (factor - 1))
    return g.reshape(g.concat([four, *rest], 2), C, H, W)


@lower.register
def _region(layer: Region, g: Graph, w: Arrays, node: Node, x: str) -> str:
    C, H, W = node.shape
    E, at = C // layer.num, layer.coords
    cells = g.op("Transpose", g.reshape(x, C, H * W), perm=[0, 2, 1])
    rows = g.reshape(cells, H * W * layer.num, E)
    coords, objectness, classes = g.slice(rows, 2, 0, at), g.slice(rows, 2, at, at + 1), g.slice(rows, 2, at + 1, E)
    if layer.tree is not None or layer.softmax:
        classes = softmax(g, classes, layer.tree.starts if layer.tree else (0,), layer.classes)
    return g.reshape(g.concat([coords, g.op("Sigmoid", objectness), classes], 2), C, H, W)


@lower.register
def _detection(layer: Detection, g: Graph, w: Arrays, node: Node, x: str) -> str:
    if not layer.softmax:
        return x
    cells, total = layer.side**2, int(np.prod(node.shape))
    flat = g.op("Flatten", x)
    classes = g.reshape(g.slice(flat, 1, 0, cells * layer.classes), cells, layer.classes)
    classes = g.reshape(g.op("Softmax", classes, axis=-1), cells * layer.classes)
    return g.reshape(g.concat([classes, g.slice(flat, 1, cells * layer.classes, total)], 1), *node.shape)


@singledispatch
def decode_boxes(layer: Layer, g: Graph, node: Node, net_w: int, net_h: int, y: str) -> Decoded:
    """Decode a head's output y: center x, y, width, height relative to the input, and objectness * class probability."""
    raise CfgError(
        f"line {node.line}: [{layer.section}] (layer {node.index}) outputs no boxes; export it without -boxes"
    )


def cell_grid(H: int, W: int, A: int) -> np.ndarray:
    """Return the column and row of each cell, repeated A times: (1, H*W*A, 2)."""
    i, j = np.mgrid[:H, :W].reshape(2, -1).repeat(A, axis=1)
    return np.stack([j, i], axis=1).astype(np.float64)[None]


def scale_boxes(g: Graph, xy: str, size: str, cells: np.ndarray, per: tuple[int, int], anchors: np.ndarray) -> str:
    """Return boxes (N, K, 4) with centers (xy + cell) / per and sizes size * anchor."""
    center = g.op("Mul", g.op("Add", xy, cells), 1 / np.array(per, float))
    return g.concat([center, g.op("Mul", size, anchors)], 2)


def rows_by_cell(g: Graph, layer: AnchorHead, node: Node, y: str) -> str:
    """Rearrange a yolo map into rows (N, H*W*A, E), cell by cell."""
    C, H, W = node.shape
    A = len(layer.anchor_ids)
    v = g.op("Transpose", g.reshape(y, A, C // A, H * W), perm=[0, 3, 1, 2])
    return g.reshape(v, H * W * A, C // A)


@decode_boxes.register
def _yolo_boxes(layer: Yolo, g: Graph, node: Node, net_w: int, net_h: int, y: str) -> Decoded:
    C, H, W = node.shape
    A = len(layer.anchor_ids)
    rows, E = rows_by_cell(g, layer, node, y), C // A
    anchors = np.tile(layer.anchor_sizes()[list(layer.anchor_ids)] / [net_w, net_h], (H * W, 1))[None]
    raw = g.slice(rows, 2, 2, 4)
    size = g.op("Mul", g.op("Mul", raw, raw), 4.0) if layer.new_coords else g.op("Exp", raw)
    boxes = scale_boxes(g, g.slice(rows, 2, 0, 2), size, cell_grid(H, W, A), (W, H), anchors)
    scores = g.op("Mul", g.slice(rows, 2, 4, 5), g.slice(rows, 2, 5, E))
    return boxes, scores, H * W * A, layer.classes


@decode_boxes.register
def _gaussian_boxes(layer: GaussianYolo, g: Graph, node: Node, net_w: int, net_h: int, y: str) -> Decoded:
    C, H, W = node.shape
    A = len(layer.anchor_ids)
    rows, E = rows_by_cell(g, layer, node, y), C // A
    anchors = np.tile(layer.anchor_sizes()[list(layer.anchor_ids)] / [net_w, net_h], (H * W, 1))[None]
    size = g.op("Exp", g.slice(rows, 2, 4, 8, 2))
    boxes = scale_boxes(g, g.slice(rows, 2, 0, 4, 2), size, cell_grid(H, W, A), (W, H), anchors)
    shift = {"center": 0.0, "left_top": 0.5, "right_bottom": -0.5}[layer.yolo_point]
    if shift:
        sizes = g.slice(boxes, 2, 2, 4)
        boxes = g.concat([g.op("Add", g.slice(boxes, 2, 0, 2), g.op("Mul", sizes, shift)), sizes], 2)
    certainty = g.op("Sub", 1.0, g.op("ReduceMean", g.slice(rows, 2, 1, 8, 2), axes=[2], keepdims=1))
    scores = g.op("Mul", g.op("Mul", g.slice(rows, 2, 8, 9), certainty), g.slice(rows, 2, 9, E))
    return boxes, scores, H * W * A, layer.classes


@decode_boxes.register
def _region_boxes(layer: Region, g: Graph, node: Node, net_w: int, net_h: int, y: str) -> Decoded:
    if layer.tree is not None or layer.map is not None:
        raise CfgError(f"line {node.line}: [region] with a tree or a map has no class scores; export it without -boxes")
    C, H, W = node.shape
    A, at = layer.num, layer.coords
    rows = g.reshape(y, H * W * A, C // A)
    anchors = np.tile(layer.anchor_sizes() / [W, H], (H * W, 1))[None]
    xy = g.op("Sigmoid", g.slice(rows, 2, 0, 2))
    boxes = scale_boxes(g, xy, g.op("Exp", g.slice(rows, 2, 2, 4)), cell_grid(H, W, A), (W, H), anchors)
    scores = g.op("Mul", g.slice(rows, 2, at, at + 1), g.slice(rows, 2, at + 1, C // A))
    return boxes, scores, H * W * A, layer.classes


@decode_boxes.register
def _detection_boxes(layer: Detection, g: Graph, node: Node, net_w: int, net_h: int, y: str) -> Decoded:
    S, B, K = layer.side, layer.num, layer.classes
    flat, cells = g.op("Flatten", y), S * S
    classes = g.reshape(g.slice(flat, 1, 0, cells * K), cells, 1, K)
    sure = g.reshape(g.slice(flat, 1, cells * K, cells * (K + B)), cells, B, 1)
    coords = g.reshape(g.slice(flat, 1, cells * (K + B), cells * (K + 5 * B)), cells * B, 4)
    size = g.slice(coords, 2, 2, 4)
    size = g.op("Mul", size, size) if layer.sqrt else size
    boxes = scale_boxes(g, g.slice(coords, 2, 0, 2), size, cell_grid(S, S, B), (S, S), np.ones((1, 1, 2)))
    return boxes, g.reshape(g.op("Mul", sure, classes), cells * B, K), cells * B, K
