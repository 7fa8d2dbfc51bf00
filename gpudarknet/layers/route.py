"""[route]: concatenate outputs of earlier layers, or pass one on (src/route_layer.c)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..array import Array, ArrayBackend, Arrays
from ..ops import route
from .base import Backward, ForwardContext, Layer, Shape, ShapeError, check_same_size, resolve_index
from .limits import COUNT, Diagnostic


@dataclass(frozen=True, kw_only=True)
class Route(Layer, section="route"):
    """Concatenate channel slice group_id of `groups` of earlier outputs.   n x (Ci, H, W) -> (sum Ci // groups, H, W)"""

    names_sources = True
    ignored = frozenset({"stream", "wait_stream"})

    limits = COUNT.of("groups")

    layers: tuple[int, ...]
    groups: int = 1
    group_id: int = 0

    def diagnostics(self) -> Iterator[Diagnostic]:
        yield from super().diagnostics()
        if not 0 <= self.group_id < self.groups:
            yield Diagnostic(
                "group_id", f"group_id={self.group_id} must be between 0 and groups - 1 = {self.groups - 1}"
            )

    def sources(self, index: int) -> tuple[int, ...]:
        return tuple(resolve_index(index, layer) for layer in self.layers)

    def shape(self, *inputs: Shape) -> Shape:
        check_same_size(inputs)
        for C, _, _ in inputs:
            if C % self.groups:
                raise ShapeError(f"groups={self.groups} does not divide the {C} channels of a source", "groups")
        return sum(C for C, _, _ in inputs) // self.groups, *inputs[0][1:]

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return "route", "", f"{self.group_id}/{self.groups}" if self.groups > 1 else ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        channels = tuple(x.shape[1] for x in xs)
        y = route.concat(be, xs, self.groups, self.group_id)
        return y, lambda dy, grad: route.split(be, dy, channels, self.groups, self.group_id)
