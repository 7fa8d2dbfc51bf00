"""Make a plan's steps, fuse what follows a step into it, and place all maps in one arena."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from ..graph import Node
from ..layers import Layer, Shape
from . import memory
from .steps import (
    ALIGNMENT,
    Activate,
    Add,
    Convolve,
    Copy,
    EpilogueOp,
    FeatureMap,
    LayerCall,
    MaxPool,
    Multiply,
    Sort,
    Step,
    Upsample,
    YoloHead,
)


class Builder:
    """What a layer's `lower` speaks to: each method adds a step, or none, and returns the map that holds the result."""

    def __init__(self, input: FeatureMap) -> None:
        self.input = input
        self.steps: list[Step] = []
        self.node: Node
        self.w: dict[str, Any]

    def _step(
        self,
        kind: type[Step],
        xs: tuple[FeatureMap, ...],
        shape: Shape,
        epilogue: Sequence[EpilogueOp] = (),
        **more: Any,
    ) -> FeatureMap:
        y = FeatureMap(shape)
        kept = [a for a in epilogue if not (isinstance(a, Activate) and a.kind == "linear")]
        self.steps.append(kind(layers=(self.node.index,), xs=xs, y=y, epilogue=kept, **more))
        return y

    def convolve(
        self, x: FeatureMap, size: int, strides: tuple[int, int], dilation: int, pad: int, groups: int, activation: str
    ) -> FeatureMap:
        """Convolve x with the layer's arrays, batch norm included, and activate."""
        geometry = {"size": size, "strides": strides, "dilation": dilation, "pad": pad, "groups": groups}
        return self._step(Convolve, (x,), self.node.shape, [Activate(activation)], w=self.w, **geometry)

    def maxpool(self, x: FeatureMap, size: int, strides: tuple[int, int], padding: int) -> FeatureMap:
        """Take maxima of windows."""
        return self._step(MaxPool, (x,), self.node.shape, size=size, strides=strides, padding=padding)

    def upsample(self, x: FeatureMap, s: int, scale: float) -> FeatureMap:
        """Repeat every pixel s x s times, times scale."""
        return self._step(Upsample, (x,), self.node.shape, s=s, scale=scale)

    def yolo(self, x: FeatureMap, A: int, scale_x_y: float, new_coords: int) -> FeatureMap:
        """Activate a [yolo] map."""
        return self._step(YoloHead, (x,), self.node.shape, A=A, scale_x_y=scale_x_y, new_coords=new_coords)

    def activate(self, x: FeatureMap, activation: str) -> FeatureMap:
        """Activate x."""
        return self._step(Copy, (x,), x.shape, [Activate(activation)])

    def add(self, a: FeatureMap, others: Sequence[FeatureMap], activation: str) -> FeatureMap:
        """Add maps of one shape, and activate."""
        return self._step(Copy, (a,), a.shape, [*map(Add, others), Activate(activation)])

    def sort(self, a: FeatureMap, b: FeatureMap, eps: float, slope: float, activation: str) -> FeatureMap:
        """Add two maps of one shape and their SORT term, and activate."""
        return self._step(Copy, (a,), a.shape, [Sort(b, eps, slope), Activate(activation)])

    def multiply(self, a: FeatureMap, b: FeatureMap, activation: str) -> FeatureMap:
        """Multiply a by b, which has a's shape or (C, 1, 1) or (1, H, W), and activate."""
        return self._step(Copy, (a,), a.shape, [Multiply(b), Activate(activation)])

    def channels(self, x: FeatureMap, start: int, count: int) -> FeatureMap:
        """Return some channels of x, without a step."""
        return x if count == x.shape[0] else FeatureMap((count, *x.shape[1:]), x, start)

    def concat(self, xs: Sequence[FeatureMap]) -> FeatureMap:
        """Join maps along their channels. A map with memory of its own moves in; only a part, or a map that has moved
        elsewhere, is copied."""
        if len(xs) == 1:
            return xs[0]
        y = FeatureMap((sum(x.shape[0] for x in xs), *xs[0].shape[1:]))
        start = 0
        for x in xs:
            if x.base is None and x is not self.input:
                x.base, x.base_offset = y, start
            else:
                part = FeatureMap(x.shape, y, start)
                self.steps.append(Copy(layers=(self.node.index,), xs=(x,), y=part))
            start += x.shape[0]
        return y

    def reference(self, layer: Layer, *xs: FeatureMap) -> FeatureMap:
        """Run a layer's own `forward`."""
        return self._step(LayerCall, xs, self.node.shape, layer=layer, w=self.w)


def fuse(steps: Sequence[Step], outputs: Sequence[FeatureMap]) -> list[Step]:
    """Let a step do what the only reader of its map does: add, multiply, activate. Returns the remaining steps.

    A reader that combines two maps joins the later of their writers, so that the other map is there in time.
    """
    done: list[Step] = []
    readers: dict[FeatureMap, int] = {}
    for m in [*outputs, *(m for s in steps for m in s.reads)]:
        for part in m.bases():
            readers[part] = readers.get(part, 0) + 1
    written: dict[FeatureMap, int] = {}  # a root map -> the last step that wrote into it
    for step in steps:
        if (pooling := poolable(step, done, readers)) is not None:
            pooling.pooled, pooling.y, pooling.layers = True, step.y, pooling.layers + step.layers
            written[step.y.storage] = done.index(pooling)
            continue
        late: list[tuple[Step, list[EpilogueOp]]] = []
        for x, epilogue in _orders(step):
            writer = next((i for i, s in enumerate(done) if s.y is x), None)
            others = [a.other for a in epilogue if not isinstance(a, Activate)]
            if (
                writer is not None
                and isinstance(done[writer], Convolve)
                and not getattr(done[writer], "pooled", False)
                and x.base is None
                and readers[x] == 1
                and all(written.get(other.storage, -1) < writer for other in others)
            ):
                late.append((done[writer], epilogue))
        if late:
            producer, epilogue = late[0]
            producer.epilogue += epilogue
            producer.y, producer.layers = step.y, producer.layers + step.layers
            written[step.y.storage] = done.index(producer)
        else:
            done.append(step)
            written[step.y.storage] = len(done) - 1
    return done


RISING = frozenset(
    {"leaky", "revleaky", "relu", "relu6", "relie", "ramp", "logistic", "loggy", "tanh", "hardtan", "elu", "selu"}
)


def poolable(step: Step, done: Sequence[Step], readers: dict[FeatureMap, int]) -> Convolve | None:
    """Return the convolution that can pool its own map in place of this step: 2 x 2 blocks of an even map, no other
    reader, and nothing between them but an activation that never falls."""
    if not isinstance(step, MaxPool) or (step.size, step.strides, step.padding // 2) != (2, (2, 2), 0):
        return None
    (x,) = step.xs
    writer = next((s for s in done if s.y is x), None)
    if not isinstance(writer, Convolve) or writer.pooled or writer.size == 1 or writer.groups > 1:
        return None
    rising = all(isinstance(a, Activate) and a.kind in RISING for a in writer.epilogue)
    even = (2 * step.y.shape[1], 2 * step.y.shape[2]) == x.shape[1:]
    return writer if rising and even and readers[x] == 1 and x.base is None else None


def _orders(step: Step) -> list[tuple[FeatureMap, list[EpilogueOp]]]:
    """Return the ways to see a copy as one map and what is done to it: sums and SORT do not mind which map comes first."""
    if not isinstance(step, Copy) or not step.epilogue:
        return []
    (x,), (first, *rest) = step.xs, step.epilogue
    orders = [(x, list(step.epilogue))]
    if isinstance(first, Add):
        orders.append((first.other, [Add(x), *rest]))
    elif isinstance(first, Sort):
        orders.append((first.other, [Sort(x, first.eps, first.slope), *rest]))
    elif isinstance(first, Multiply) and first.other.shape == x.shape:
        orders.append((first.other, [Multiply(x), *rest]))
    return orders


def layout(
    steps: Sequence[Step],
    start: FeatureMap,
    outputs: Sequence[FeatureMap],
    batch: int,
    numbers_of: Callable[[FeatureMap], int] | None = None,
) -> tuple[dict[FeatureMap, int], int, int]:
    """Place every root map: it lives from the first step that writes a part of it to the last that reads one.

    numbers_of: how many numbers an image of a map takes, if more than it has.
    """
    lives: dict[FeatureMap, list[int]] = {start: [-1, -1]}
    for i, step in enumerate(steps):
        for m in (step.y, *step.reads):
            lives.setdefault(m.storage, [i, i])[1] = i
    for m in outputs:
        lives[m.storage][1] = len(steps)
    roots = list(lives)
    sizes = [batch * (numbers_of(m) if numbers_of else prod(m.shape)) for m in roots]
    spans = [(first, last) for first, last in lives.values()]
    offsets, numbers = memory.allocate(sizes, spans, ALIGNMENT)
    return dict(zip(roots, offsets, strict=True)), numbers, memory.peak_live(sizes, spans, ALIGNMENT)
