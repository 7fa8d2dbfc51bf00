"""The steps that only training has, the backward of a step, and the plan of a training step. Data only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ...array import Arrays
from ...layers import Layer
from ...ops import activation
from ..steps import (
    Activate,
    Convolve,
    Copy,
    FeatureMap,
    LayerCall,
    MaxPool,
    PlacedMaps,
    SortShortcut,
    Step,
    step_table,
)


@dataclass(eq=False, kw_only=True)
class BatchNorm(Step):
    """y = activation(x normalized by the statistics of the batch); also writes those, for the running averages.

    The activation is part of the step so that forward and backward need one pass less over the map.
    """

    name = "batchnorm"
    w: Arrays = field(repr=False)
    activation: str

    def note(self) -> str:
        """Return the activation."""
        return self.activation


@dataclass(eq=False, kw_only=True)
class Bias(Step):
    """y = activation(x + bias)."""

    name = "bias"
    w: Arrays = field(repr=False)
    activation: str

    def note(self) -> str:
        """Return the activation."""
        return self.activation


@dataclass(eq=False, kw_only=True)
class Loss(Step):
    """Write the delta of a layer with a loss, Darknet's negative gradient, from its output and, if the layer reads it, its input.

    xs: the output, the input. y: the gradient of the output.
    """

    name = "loss"
    layer: Layer

    def note(self) -> str:
        """Return the layer's section."""
        return f"[{self.layer.section}]"


@dataclass(eq=False, kw_only=True)
class Zero(Step):
    """Set channels of a gradient to zero that nothing writes before they are read or added to."""

    name = "zero"


@dataclass(eq=False)
class Backward:
    """The backward of a step: from dy, the gradient of its output, those of its inputs and of its weights.

    dxs: for each input the map that gets its gradient, None if nothing needs it. adds: whether it is added to what the map
    has. BatchNorm and Bias work in place: their dx is dy's memory.
    """

    step: Step
    dy: FeatureMap
    dxs: tuple[FeatureMap | None, ...]
    adds: tuple[bool, ...]

    @property
    def maps(self) -> Iterator[FeatureMap]:
        """Every map it reads or writes."""
        yield self.dy
        yield from (m for m in self.dxs if m is not None)
        yield from saved_maps(self.step)


def saved_maps(step: Step) -> tuple[FeatureMap, ...]:
    """Return the maps of the forward pass that a step's backward reads."""
    if isinstance(step, Convolve):
        return step.xs
    if isinstance(step, (BatchNorm, MaxPool)):
        return *step.xs, step.y
    if isinstance(step, Bias):
        return (*step.xs, step.y) if step.activation in activation.NEEDS_INPUT else (step.y,)
    if isinstance(step, Copy):
        needed: dict[FeatureMap, None] = {}
        for op in step.epilogue:
            if isinstance(op, SortShortcut):
                needed |= {step.xs[0]: None, op.other: None}
            elif isinstance(op, Activate):
                needed |= dict.fromkeys((*step.xs, step.y) if op.kind in activation.NEEDS_INPUT else (step.y,))
        return tuple(needed)
    return ()  # a LayerCall's backward has its own copies


@dataclass(eq=False, kw_only=True)
class TrainingPlan(PlacedMaps):
    """A training step on a part of a batch: forward and losses, then backward, for maps (part, H, W, C) in one arena.

    frozen: the first steps of `forward` that run as at inference.
    """

    forward: list[Step]
    backward: list[Backward | Zero]
    frozen: int

    def describe(self, algorithms: Mapping[Any, str] | None = None) -> str:
        """Return the plan as text: the forward steps, the backward steps, then totals."""
        algorithms = algorithms or {}
        rows = step_table(self.forward, algorithms, "", lambda step: "")
        rows += ["", f"{'layers':>11}  {'backward of':<28}{'gradient of':<22}{'C x H x W':>16}  written"]
        for s in self.backward:
            if isinstance(s, Zero):
                shape = "x".join(map(str, s.y.shape))
                rows.append(f"{'':>11}  {s.name:<28}{'':<22}{shape:>16}")
                continue
            layers = ",".join(map(str, s.step.layers))
            wants = "weights" if hasattr(s.step, "w") and s.step.w else ""
            inputs = sum(m is not None for m in s.dxs)
            goal = " ".join(filter(None, [wants, f"{inputs} input{'s' * (inputs > 1)}" if inputs else ""]))
            how = "in place" if s.dxs == (s.dy,) else "added" if any(s.adds) else ""
            shape = "x".join(map(str, s.dy.shape))
            rows.append(f"{layers:>11}  {s.step.name + ' ' + s.step.note():<28}{goal:<22}{shape:>16}  {how}".rstrip())
        fallbacks = sorted({s.layer.section for s in self.forward[self.frozen :] if isinstance(s, LayerCall)})
        maps = sum(prod(s.y.shape) for s in self.forward) * self.batch
        mib = 4 / 2**20
        return "\n".join(
            [
                *rows,
                f"{len(self.forward)} steps forward, {self.frozen} of them frozen, {len(self.backward)} backward;"
                f" fallback layers: {', '.join(fallbacks) or 'none'}",
                f"arena {self.arena_size * mib:.1f} MiB for {self.batch} images (at least {self.peak_live * mib:.1f} needed;"
                f" all outputs {maps * mib:.1f}); {self.flops / 1e9:.3f} GFLOP forward per image",
            ]
        )
