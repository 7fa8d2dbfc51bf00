"""Recurrent layers on a GPU as steps: their gemms are convolutions, and their states go in and out like images.

One call is one time step, as in `predict`. Between calls the state is where the layer's `forward` keeps it, in w["state"]: any
program, or the reference engine, can compute the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...array import Array
from ...backend import Backend
from ...layers import Layer
from ...layers.conv_lstm import ConvLstm
from ...layers.convolutional import Convolutional
from ...layers.recurrent import Crnn, Gru, Lstm, Recurrent, Rnn
from ...ops.activation import NORMALIZERS
from ..steps import Activate, Add, Convolve, Copy, EpilogueOp, FeatureMap, LayerCall, Multiply, Plan, Step
from .canonicalize import canonical_steps, convolution_steps
from .steps import Blend, Clip


@dataclass(eq=False)
class RecurrentState:
    """A layer's state between calls. w: its arrays; state_in, state_out: the maps to fill before, and keep after."""

    w: dict[str, Any]  # an array each, but for "state"
    state_in: tuple[FeatureMap, ...]
    state_out: tuple[FeatureMap, ...]

    def arrays(self, be: Backend, N: int) -> list[Array]:
        """Return the state of N sequences as arrays (N, C, H, W): zeros if there is none for so many."""
        shapes = [(N, *m.shape) for m in self.state_in]
        kept = self.w.get("state")
        if kept is not None and [a.shape for a in kept] == shapes:
            return [be.asarray(a, np.float32) for a in kept]
        return [be.zeros(shape) for shape in shapes]

    def keep(self, arrays: list[Array]) -> None:
        """Store the state for the next call."""
        self.w["state"] = arrays


def unroll(plan: Plan, be: Backend) -> tuple[Plan, list[RecurrentState]]:
    """Return the plan with recurrent layers as steps, and their states, which are further outputs."""
    steps, states = list[Step](), list[RecurrentState]()
    for step in plan.steps:
        if isinstance(step, LayerCall) and type(step.layer) in BUILDERS and supported(step.layer):
            builder = StepBuilder(step, be)
            states.append(BUILDERS[type(step.layer)](builder, step.layer))
            steps += builder.steps
        else:
            steps.append(step)
    outputs = (*plan.outputs, *(m for state in states for m in state.state_out))
    inputs = tuple(m for state in states for m in state.state_in)
    return replace(plan, steps=steps, outputs=outputs, states=inputs), states


def supported(layer: Layer) -> bool:
    """Return whether steps can do all of its activations."""
    kinds = {getattr(layer, "activation", "linear"), getattr(layer, "lstm_activation", "linear")}
    return not kinds & set(NORMALIZERS)


class StepBuilder:
    """Builds the steps of one layer."""

    def __init__(self, step: LayerCall, be: Backend):
        self.step, self.be, self.steps = step, be, list[Step]()
        (self.x,), self.y, layer = step.xs, step.y, step.layer
        assert isinstance(layer, Recurrent)
        self.parts = {name: part for name, part, _ in layer.sublayers(self.x.shape)}
        self.states = tuple(map(FeatureMap, layer.state(self.x.shape)))

    def multiply(
        self, part: str, x: FeatureMap, epilogue: Sequence[EpilogueOp] = (), y: FeatureMap | None = None
    ) -> FeatureMap:
        """Multiply x by the weights of a part, apply the part's activation, then the epilogue."""
        layer, w = self.parts[part], {k[len(part) + 1 :]: a for k, a in self.step.w.items() if k.startswith(f"{part}.")}
        y = FeatureMap(layer.shape(x.shape)) if y is None else y
        if isinstance(layer, Convolutional):
            steps = convolution_steps(self.step, layer, w, x, y)
        else:
            steps = canonical_steps(LayerCall(layers=self.step.layers, xs=(x,), y=y, layer=layer, w=w), self.be)
        *before, last = steps
        assert isinstance(last, Convolve)
        operations = [*last.epilogue, *(a for a in epilogue if a != Activate("linear"))]
        self.steps += [*before, replace(last, part=part, epilogue=operations)]
        return y

    def add(
        self,
        kind: type[Step],
        xs: Sequence[FeatureMap],
        y: FeatureMap | None = None,
        epilogue: Sequence[EpilogueOp] = (),
        **options: Any,
    ) -> FeatureMap:
        """Add another step, on maps of the shape of the first."""
        y = FeatureMap(xs[0].shape) if y is None else y
        operations = [a for a in epilogue if a != Activate("linear")]
        self.steps.append(kind(layers=self.step.layers, xs=tuple(xs), y=y, epilogue=operations, **options))
        return y


def _rnn(builder: StepBuilder, layer: Rnn) -> RecurrentState:
    (s,) = builder.states
    a = builder.multiply("input", builder.x)
    new = builder.multiply("self", s, [Add(a), *([Add(s)] if layer.shortcut else [])])
    builder.multiply("output", new, y=builder.y)
    return RecurrentState(builder.step.w, (s,), (new,))


def _gru(builder: StepBuilder, layer: Gru) -> RecurrentState:
    (h,), logistic = builder.states, Activate("logistic")
    iz, ir, ih = (builder.multiply(f"input_{gate}", builder.x) for gate in "zrh")
    z = builder.multiply("state_z", h, [Add(iz), logistic])
    rh = builder.multiply("state_r", h, [Add(ir), logistic, Multiply(h)])
    c = builder.multiply("state_h", rh, [Add(ih), logistic])
    builder.add(Blend, (z, h, c), builder.y)
    return RecurrentState(builder.step.w, (h,), (builder.y,))


def _lstm(builder: StepBuilder, layer: Lstm | ConvLstm) -> RecurrentState:
    (h, c), seen, squash = builder.states, builder.x, "tanh"
    bottleneck = peephole = False
    if isinstance(layer, ConvLstm):
        bottleneck, peephole, squash = bool(layer.bottleneck), bool(layer.peephole), layer.lstm_activation
        if bottleneck:
            both = FeatureMap((h.shape[0] + seen.shape[0], *h.shape[1:]))
            builder.add(Copy, (h,), FeatureMap(h.shape, both))
            builder.add(Copy, (seen,), FeatureMap(seen.shape, both, h.shape[0]))
            seen = builder.multiply("wf", both, [Activate(layer.activation)])

    def gate(name: str, cell: FeatureMap | None) -> FeatureMap:
        sources = [(f"u{name}", seen), *([] if bottleneck else [(f"w{name}", h)])]
        if peephole and cell is not None:
            sources.append((f"v{name}", cell))
        *others, (part, x) = sources
        terms = [Add(builder.multiply(*other)) for other in others]
        return builder.multiply(part, x, [*terms, Activate(squash if name == "g" else "logistic")])

    f, i, g = gate("f", c), gate("i", c), gate("g", None)
    cell = builder.add(Blend, (f, c, i, g))
    o = gate("o", cell)
    builder.add(Copy, (cell,), builder.y, [Activate(squash), Multiply(o)])
    if isinstance(layer, ConvLstm):
        cell = builder.add(Clip, (cell,), limit=layer.state_constrain or 32.0)
    return RecurrentState(builder.step.w, (h, c), (builder.y, cell))


BUILDERS: dict[type[Layer], Callable[[StepBuilder, Any], RecurrentState]] = {
    ConvLstm: _lstm,
    Crnn: _rnn,
    Gru: _gru,
    Lstm: _lstm,
    Rnn: _rnn,
}
