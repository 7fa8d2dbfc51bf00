"""Recurrent layers on a GPU as steps: their parts are convolutions, and what they remember comes in and goes out like images.

One call is one time step, as `predict` takes it. Between calls the state lies where a layer's `forward` keeps it, in
w["state"], so that it does not matter which program, or the reference engine, takes the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...backend import Backend
from ...layers import Layer
from ...layers.conv_lstm import ConvLstm
from ...layers.convolutional import Convolutional
from ...layers.recurrent import Crnn, Gru, Lstm, Recurrent, Rnn
from ...ops.activation import NORMALIZERS
from ..steps import Activate, Add, Convolve, Copy, EpilogueOp, FeatureMap, LayerCall, Multiply, Plan, Step
from .canonicalize import convolved, rewritten
from .elementwise import Blend, Clip


@dataclass(eq=False)
class Memory:
    """What a layer carries from call to call: w is its arrays, before and after are the maps to fill and to keep."""

    w: dict[str, Any]
    before: tuple[FeatureMap, ...]
    after: tuple[FeatureMap, ...]

    def arrays(self, be: Backend, N: int) -> list[Any]:
        """Return the state for N sequences as arrays (N, C, H, W): zeros where there is none for so many."""
        shapes = [(N, *m.shape) for m in self.before]
        kept = self.w.get("state")
        if kept is not None and [a.shape for a in kept] == shapes:
            return [be.asarray(a, np.float32) for a in kept]
        return [be.zeros(shape) for shape in shapes]


def unrolled(plan: Plan, be: Backend) -> tuple[Plan, list[Memory]]:
    """Return the plan with recurrent layers as steps, and what it remembers: more outputs, after its own."""
    steps, memories = list[Step](), list[Memory]()
    for step in plan.steps:
        if isinstance(step, LayerCall) and type(step.layer) in WRITERS and ordinary(step.layer):
            sheet = Sheet(step, be)
            memories.append(WRITERS[type(step.layer)](sheet, step.layer))
            steps += sheet.steps
        else:
            steps.append(step)
    outputs = (*plan.outputs, *(m for memory in memories for m in memory.after))
    return replace(
        plan, steps=steps, outputs=outputs, states=tuple(m for each in memories for m in each.before)
    ), memories


def ordinary(layer: Layer) -> bool:
    """Say whether steps can do all of its activations."""
    kinds = {getattr(layer, "activation", "linear"), getattr(layer, "lstm_activation", "linear")}
    return not kinds & set(NORMALIZERS)


class Sheet:
    """The steps of one layer, as they are written down."""

    def __init__(self, step: LayerCall, be: Backend):
        self.step, self.be, self.steps = step, be, list[Step]()
        (self.x,), self.y, layer = step.xs, step.y, step.layer
        assert isinstance(layer, Recurrent)
        self.parts = {name: part for name, part, _ in layer.sublayers(self.x.shape)}
        self.states = tuple(map(FeatureMap, layer.state(self.x.shape)))

    def product(
        self, part: str, x: FeatureMap, epilogue: Sequence[EpilogueOp] = (), y: FeatureMap | None = None
    ) -> FeatureMap:
        """Multiply x by the weights of a part, activate as it says, then apply the epilogue."""
        layer, w = self.parts[part], {k[len(part) + 1 :]: a for k, a in self.step.w.items() if k.startswith(f"{part}.")}
        y = FeatureMap(layer.shape(x.shape)) if y is None else y
        if isinstance(layer, Convolutional):
            more = convolved(self.step, layer, w, x, y)
        else:
            more = rewritten(LayerCall(layers=self.step.layers, xs=(x,), y=y, layer=layer, w=w), self.be)
        convolution = more[-1]
        assert isinstance(convolution, Convolve)
        convolution.part = part
        convolution.epilogue += [a for a in epilogue if a != Activate("linear")]
        self.steps += more
        return y

    def add(
        self,
        kind: type[Step],
        xs: Sequence[FeatureMap],
        y: FeatureMap | None = None,
        epilogue: Sequence[EpilogueOp] = (),
        **more: Any,
    ) -> FeatureMap:
        """Write down another step, on maps of the shape of the first."""
        y = FeatureMap(xs[0].shape) if y is None else y
        kept = [a for a in epilogue if a != Activate("linear")]
        self.steps.append(kind(layers=self.step.layers, xs=tuple(xs), y=y, epilogue=kept, **more))
        return y


def _rnn(sheet: Sheet, layer: Rnn) -> Memory:
    (s,) = sheet.states
    a = sheet.product("input", sheet.x)
    new = sheet.product("self", s, [Add(a), *([Add(s)] if layer.shortcut else [])])
    sheet.product("output", new, y=sheet.y)
    return Memory(sheet.step.w, (s,), (new,))


def _gru(sheet: Sheet, layer: Gru) -> Memory:
    (h,), logistic = sheet.states, Activate("logistic")
    iz, ir, ih = (sheet.product(f"input_{gate}", sheet.x) for gate in "zrh")
    z = sheet.product("state_z", h, [Add(iz), logistic])
    rh = sheet.product("state_r", h, [Add(ir), logistic, Multiply(h)])
    c = sheet.product("state_h", rh, [Add(ih), logistic])
    sheet.add(Blend, (z, h, c), sheet.y)
    return Memory(sheet.step.w, (h,), (sheet.y,))


def _lstm(sheet: Sheet, layer: Lstm | ConvLstm) -> Memory:
    (h, c), seen, squash = sheet.states, sheet.x, "tanh"
    bottleneck = peephole = False
    if isinstance(layer, ConvLstm):
        bottleneck, peephole, squash = bool(layer.bottleneck), bool(layer.peephole), layer.lstm_activation
        if bottleneck:
            both = FeatureMap((h.shape[0] + seen.shape[0], *h.shape[1:]))
            sheet.add(Copy, (h,), FeatureMap(h.shape, both))
            sheet.add(Copy, (seen,), FeatureMap(seen.shape, both, h.shape[0]))
            seen = sheet.product("wf", both, [Activate(layer.activation)])

    def gate(name: str, cell: FeatureMap | None) -> FeatureMap:
        sources = [(f"u{name}", seen), *([] if bottleneck else [(f"w{name}", h)])]
        if peephole and cell is not None:
            sources.append((f"v{name}", cell))
        *others, (part, x) = sources
        terms = [Add(sheet.product(*other)) for other in others]
        return sheet.product(part, x, [*terms, Activate(squash if name == "g" else "logistic")])

    f, i, g = gate("f", c), gate("i", c), gate("g", None)
    cell = sheet.add(Blend, (f, c, i, g))
    o = gate("o", cell)
    sheet.add(Copy, (cell,), sheet.y, [Activate(squash), Multiply(o)])
    if isinstance(layer, ConvLstm):
        cell = sheet.add(Clip, (cell,), limit=layer.state_constrain or 32.0)
    return Memory(sheet.step.w, (h, c), (sheet.y, cell))


WRITERS: dict[type[Layer], Callable[[Sheet, Any], Memory]] = {
    ConvLstm: _lstm,
    Crnn: _rnn,
    Gru: _gru,
    Lstm: _lstm,
    Rnn: _rnn,
}
