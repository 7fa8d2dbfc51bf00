"""Derive the backward steps from the forward steps: which gradient is written where, and by whom first.

The gradient of a map is a map of the same shape; a part of a map has the same part of its gradient. The backward of a step runs
after those of all steps that read its output. The first to write a gradient overwrites it, later ones add to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..steps import Add, Copy, FeatureMap, Step, YoloHead
from .steps import Backward, BatchNorm, Bias, Loss, Zero


class Gradients:
    """The gradients of maps, and which channels of each have been written."""

    def __init__(self, constants: Collection[FeatureMap]):
        self.constants = set(constants)  # storage that needs no gradient
        self.maps: dict[FeatureMap, FeatureMap] = {}  # storage -> the gradient of all of it
        self.written: dict[FeatureMap, list[tuple[int, int]]] = {}  # storage of a gradient -> ranges of channels
        self.steps: list[Backward | Zero] = []

    def of(self, m: FeatureMap) -> FeatureMap:
        """Return the gradient of a map."""
        if m.storage not in self.maps:
            self.maps[m.storage] = FeatureMap(m.storage.shape)
        whole = self.maps[m.storage]
        if m.shape == whole.shape:
            return whole
        return FeatureMap(m.shape, whole, m.channel_offset)

    def share(self, m: FeatureMap, gradient: FeatureMap) -> bool:
        """Let a map have this gradient, which then is written, if it has none yet; return whether that is so."""
        if m.base is not None or m in self.maps or m in self.constants or m.shape != gradient.storage.shape:
            return False
        self.maps[m] = gradient.storage
        return True

    def missing(self, gradient: FeatureMap) -> list[tuple[int, int]]:
        """Return the ranges of channels of a gradient that nothing has written, relative to its storage."""
        first = gradient.channel_offset
        end = first + gradient.shape[0]
        gaps = []
        for a, b in sorted(self.written.get(gradient.storage, [])):
            if a > first:
                gaps.append((first, min(a, end)))
            first = max(first, b)
            if first >= end:
                break
        return gaps + ([(first, end)] if first < end else [])

    def fill(self, gradient: FeatureMap) -> None:
        """Set the channels to zero that nothing has written."""
        whole = gradient.storage
        for a, b in self.missing(gradient):
            part = whole if (a, b) == (0, whole.shape[0]) else FeatureMap((b - a, *whole.shape[1:]), whole, a)
            self.steps.append(Zero(layers=(), xs=(), y=part))
            self.written.setdefault(whole, []).append((a, b))

    def write(self, m: FeatureMap) -> tuple[FeatureMap | None, bool]:
        """Return where a step writes the gradient of its input m, and whether it adds; None if m needs none."""
        if m.storage in self.constants:
            return None, False
        gradient = self.of(m)
        first, count = gradient.channel_offset, gradient.shape[0]
        adds = self.missing(gradient) != [(first, first + count)]
        if adds:
            self.fill(gradient)
        self.written.setdefault(gradient.storage, []).append((first, first + count))
        return gradient, adds

    def reached(self, m: FeatureMap) -> bool:
        """Return whether anything has written a part of a map's gradient."""
        if m.storage not in self.maps:
            return False
        gradient = self.of(m)
        return self.missing(gradient) != [(gradient.channel_offset, gradient.channel_offset + gradient.shape[0])]


def differentiate(
    forward: Sequence[Step], frozen: int, input: FeatureMap, stopped: Collection[int]
) -> list[Backward | Zero]:
    """Return the backward steps of forward[frozen:], in order of execution, and set the gradient that each Loss writes.

    The input and the outputs of the frozen steps need no gradient. stopped: layers that have no backward.
    """
    gradients = Gradients([input.storage, *(step.y.storage for step in forward[:frozen])])
    for step in forward[frozen:]:
        if isinstance(step, Loss):
            gradient, _ = gradients.write(step.xs[0])
            step.y = gradient or FeatureMap(step.xs[0].shape)
    for step in reversed(forward[frozen:]):
        if isinstance(step, Loss) or not gradients.reached(step.y) or set(step.layers) & set(stopped):
            continue
        dy = gradients.of(step.y)
        gradients.fill(dy)
        if isinstance(step, YoloHead) and gradients.share(step.xs[0], dy):
            continue  # its delta is with respect to its input
        if isinstance(step, (BatchNorm, Bias)):
            gradients.maps[step.xs[0]] = dy
            gradients.steps.append(Backward(step, dy, (dy,), (False,)))
            continue
        inputs = step.reads
        sums = (
            isinstance(step, Copy)
            and all(isinstance(op, Add) for op in step.epilogue)
            and len({*inputs}) == len(inputs)
        )
        shared = next((x for x in inputs if sums and dy.base is None and gradients.share(x, dy)), None)
        targets = [(None, False) if x is shared else gradients.write(x) for x in inputs]
        backward = Backward(step, dy, tuple(m for m, _ in targets), tuple(adds for _, adds in targets))
        if any(m is not None for m in backward.dxs) or getattr(step, "w", None):
            gradients.steps.append(backward)
    return gradients.steps
