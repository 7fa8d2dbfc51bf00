"""[rnn], [crnn], [gru], [lstm]: recurrent layers (src/rnn_layer.c, crnn_layer.c, gru_layer.c, lstm_layer.c).

A batch is [step][sequence]. At inference the state is kept between calls, among the weights: w["state"] is not a weight, so
it is neither saved nor loaded. The layers consist of connected or convolutional sublayers, whose arrays are prefixed with
the sublayer's name: "input.kernel". The backward pass is the derivative; Darknet also multiplies the gradient of the input
sublayer by the activation derivative of the self sublayer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..array import Array, ArrayBackend, Arrays
from ..ops import activation as act
from .base import Activation, Backward, ForwardContext, Layer, Shape, ShapeError, Weight, accumulate
from .blocks import BlockBackward
from .connected import Connected
from .convolutional import Convolutional
from .limits import COUNT, NOT_NEGATIVE

Sublayer = tuple[str, Layer, Shape]  # name, layer, shape of its input
Call = Callable[[str, Array], tuple[Array, BlockBackward]]  # a sublayer's forward, by its name
StepBackward = Callable[[Array, list[Array], Arrays], tuple[Array, list[Array]]]
CONV_LIMITS = COUNT.of("size", "stride", "groups") | NOT_NEGATIVE.of("padding")  # of convolutional sublayers
StepResult = tuple[Array, list[Array], StepBackward]


@dataclass(frozen=True, kw_only=True)
class Recurrent(Layer):
    """The base of recurrent layers: sublayers, the loop over time, and backpropagation through it."""

    limits = COUNT.of("output")
    stateful = True

    output: int = 1

    def sublayers(self, x: Shape) -> list[Sublayer]:
        """Return its sublayers in file order."""
        raise NotImplementedError

    def state(self, x: Shape) -> list[Shape]:
        """Return the shapes of the state arrays of a sequence."""
        raise NotImplementedError

    def step(self, be: ArrayBackend, call: Call, x: Array, state: list[Array], ctx: ForwardContext) -> StepResult:
        """Compute a time step: x (B, C, H, W), state -> y, new state, and backward(dy, dstate, grad) -> (dx, previous dstate)."""
        raise NotImplementedError

    def shape(self, *inputs: Shape) -> Shape:
        for _, layer, x in self.sublayers(inputs[0]):
            layer.shape(x)
        return self.output, 1, 1

    def weights(self, *inputs: Shape) -> list[Weight]:
        sublayers = self.sublayers(inputs[0])
        return [
            (f"{prefix}.{name}", shape, init)
            for prefix, layer, x in sublayers
            for name, shape, init in layer.weights(x)
        ]

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return self.section, str(self.output), ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        (x,) = xs
        T, B = ctx.steps, x.shape[0] // ctx.steps
        frames = x.reshape(T, B, *x.shape[1:])
        sublayers = {name: layer for name, layer, _ in self.sublayers(x.shape[1:])}
        arrays = {name: {k[len(name) + 1 :]: v for k, v in w.items() if k.startswith(name + ".")} for name in sublayers}
        initial = [be.zeros((B, *s), x.dtype) for s in self.state(x.shape[1:])]
        memory: dict[str, Any] = w  # its "state" is a list
        saved = memory.get("state") if not ctx.train else None
        state: list[Array] = saved if saved is not None and saved[0].shape == initial[0].shape else initial
        ys, backwards = [], []
        ctx = replace(ctx, skip_input_grad=False)  # the state's gradient is needed even where the input's is not

        def call(name: str, value: Array) -> tuple[Array, BlockBackward]:
            y, back = sublayers[name].forward(be, arrays[name], value, ctx=ctx)

            def backward(dy: Array, grad: Arrays) -> Array:
                sub_grad: Arrays = {}
                (dx,) = back(dy, sub_grad)
                assert dx is not None
                for k, v in sub_grad.items():
                    accumulate(grad, f"{name}.{k}", v)
                return dx

            return y, backward

        for t in range(T):
            y, state, step_backward = self.step(be, call, frames[t], state, ctx)
            ys.append(y)
            backwards.append(step_backward)
        if not ctx.train:
            memory["state"] = state
        y = be.xp.concatenate(ys) if T > 1 else ys[0]

        def backward(dy: Array, grad: Arrays) -> tuple[Array | None, ...]:
            dframes = dy.reshape(T, B, *dy.shape[1:])
            dstate = [be.zeros(s.shape, dy.dtype) for s in initial]
            dxs = []
            for t in reversed(range(T)):
                dx, dstate = backwards[t](dframes[t], dstate, grad)
                dxs.append(dx)
            return (be.xp.concatenate(dxs[::-1]).reshape(x.shape),)

        return y, backward


@dataclass(frozen=True, kw_only=True)
class Rnn(Recurrent, section="rnn"):
    """Update a hidden state: s = in(x) + self(s), y = out(s).   (C, H, W) -> (output, 1, 1)"""

    limits = COUNT.of("hidden")

    hidden: int = 1
    activation: Activation = "logistic"
    batch_normalize: int = 0
    shortcut: int = 0  # 1: the old state is added too
    logistic: int = 0  # 1: self uses logistic, 2: loggy

    @property
    def self_activation(self) -> Activation:
        """The activation of the self sublayer."""
        chosen: dict[int, Activation] = {1: "logistic", 2: "loggy"}
        return chosen.get(self.logistic, self.activation)

    def sublayers(self, x: Shape) -> list[Sublayer]:
        def sublayer(output: int, activation: Activation) -> Connected:
            return Connected(output=output, activation=activation, batch_normalize=self.batch_normalize)

        hidden = (self.hidden, 1, 1)
        return [
            ("input", sublayer(self.hidden, self.activation), x),
            ("self", sublayer(self.hidden, self.self_activation), hidden),
            ("output", sublayer(self.output, self.activation), hidden),
        ]

    def state(self, x: Shape) -> list[Shape]:
        return [(self.hidden, 1, 1)]

    def step(self, be: ArrayBackend, call: Call, x: Array, state: list[Array], ctx: ForwardContext) -> StepResult:
        (s,) = state
        a, a_back = call("input", x)
        b, b_back = call("self", s)
        new = a + b + s if self.shortcut else a + b
        y, y_back = call("output", new)

        def backward(dy: Array, dstate: list[Array], grad: Arrays) -> tuple[Array, list[Array]]:
            ds = y_back(dy, grad) + dstate[0]
            dprevious = b_back(ds, grad)
            return a_back(ds, grad), [dprevious + ds if self.shortcut else dprevious]

        return y, [new], backward


@dataclass(frozen=True, kw_only=True)
class Crnn(Rnn, section="crnn"):
    """Update a hidden map, like [rnn] with convolutions.   (C, H, W) -> (output, H, W)"""

    ignored: ClassVar[frozenset[str]] = frozenset({"wait_stream"})
    limits = CONV_LIMITS

    size: int = 3
    stride: int = 1
    pad: int = 0
    padding: int = 0
    groups: int = 1
    dilation: int = 1
    xnor: int = 0
    bin_output: int = 0

    def sublayers(self, x: Shape) -> list[Sublayer]:
        def sublayer(filters: int, activation: Activation) -> Convolutional:
            return Convolutional(
                filters=filters, activation=activation, batch_normalize=self.batch_normalize, size=self.size,
                stride=self.stride, pad=self.pad, padding=self.padding, groups=self.groups, dilation=self.dilation,
                xnor=self.xnor,
            )  # fmt: skip

        first = sublayer(self.hidden, self.activation)
        hidden = first.shape(x)
        return [
            ("input", first, x),
            ("self", sublayer(self.hidden, self.self_activation), hidden),
            ("output", sublayer(self.output, self.activation), hidden),
        ]

    def state(self, x: Shape) -> list[Shape]:
        return [self.sublayers(x)[1][2]]

    def shape(self, *inputs: Shape) -> Shape:
        _, hidden, out = self.sublayers(inputs[0])
        if hidden[1].shape(hidden[2]) != hidden[2]:
            raise ShapeError("the state must keep its size; use stride=1, pad=1 and an odd size")
        return out[1].shape(out[2])

    def flops(self, *inputs: Shape) -> float:
        return sum(layer.flops(x) for _, layer, x in self.sublayers(inputs[0]))


@dataclass(frozen=True, kw_only=True)
class Gru(Recurrent, section="gru"):
    """Update a GRU (gated recurrent unit): h = z*h + (1 - z)*sig(Wh x + Uh (r*h)).   (C, H, W) -> (output, 1, 1)

    The candidate's activation is logistic in Darknet, not tanh.
    """

    batch_normalize: int = 0

    def sublayers(self, x: Shape) -> list[Sublayer]:
        sublayer = Connected(output=self.output, activation="linear", batch_normalize=self.batch_normalize)
        hidden = (self.output, 1, 1)
        return [
            *((f"input_{gate}", sublayer, x) for gate in "zrh"),
            *((f"state_{gate}", sublayer, hidden) for gate in "zrh"),
        ]

    def state(self, x: Shape) -> list[Shape]:
        return [(self.output, 1, 1)]

    def step(self, be: ArrayBackend, call: Call, x: Array, state: list[Array], ctx: ForwardContext) -> StepResult:
        (h,) = state
        (iz, iz_back), (ir, ir_back), (ih, ih_back) = (call(f"input_{gate}", x) for gate in "zrh")
        (sz, sz_back), (sr, sr_back) = call("state_z", h), call("state_r", h)
        z, r = (act.activate(be, v, "logistic") for v in (iz + sz, ir + sr))
        sh, sh_back = call("state_h", r * h)
        c = act.activate(be, ih + sh, "logistic")
        new = z * h + (1 - z) * c

        def backward(dy: Array, dstate: list[Array], grad: Arrays) -> tuple[Array, list[Array]]:
            d = dy + dstate[0]
            dc = d * (1 - z) * c * (1 - c)
            drh = sh_back(dc, grad)
            dz, dr = d * (h - c) * z * (1 - z), drh * h * r * (1 - r)
            dx = ih_back(dc, grad) + iz_back(dz, grad) + ir_back(dr, grad)
            return dx, [d * z + drh * r + sz_back(dz, grad) + sr_back(dr, grad)]

        return new, [new], backward


@dataclass(frozen=True, kw_only=True)
class Lstm(Recurrent, section="lstm"):
    """Update an LSTM (long short-term memory): c = f*c + i*g, h = o*tanh(c).   (C, H, W) -> (output, 1, 1)"""

    batch_normalize: int = 0

    def sublayers(self, x: Shape) -> list[Sublayer]:
        sublayer = Connected(output=self.output, activation="linear", batch_normalize=self.batch_normalize)
        hidden = (self.output, 1, 1)
        return [*((f"w{gate}", sublayer, hidden) for gate in "figo"), *((f"u{gate}", sublayer, x) for gate in "figo")]

    def state(self, x: Shape) -> list[Shape]:
        return [(self.output, 1, 1)] * 2

    def step(self, be: ArrayBackend, call: Call, x: Array, state: list[Array], ctx: ForwardContext) -> StepResult:
        h, c = state
        return lstm_step(be, call, x, h, c, "tanh")


def lstm_step(be: ArrayBackend, call: Call, x: Array, h: Array, c: Array, cell_activation: str) -> StepResult:
    """Compute a step of an LSTM with sublayers wf wi wg wo (of h) and uf ui ug uo (of x)."""
    gates, backs = {}, {}
    for gate in "figo":
        (a, a_back), (b, b_back) = call(f"w{gate}", h), call(f"u{gate}", x)
        z = a + b
        gates[gate] = act.apply(be, z, cell_activation if gate == "g" else "logistic")
        backs[gate] = (a_back, b_back, z)
    f, i, g, o = (gates[k] for k in "figo")
    cell = f * c + i * g
    activated_cell = act.apply(be, cell, cell_activation)
    y = o * activated_cell

    def backward(dy: Array, dstate: list[Array], grad: Arrays) -> tuple[Array, list[Array]]:
        d = dy + dstate[0]
        dcell = dstate[1] + act.apply_backward(be, d * o, cell, activated_cell, cell_activation)
        dgates = {"f": dcell * c, "i": dcell * g, "g": dcell * i, "o": d * activated_cell}
        dx: Any = 0
        dh: Any = 0
        for gate in "figo":
            a_back, b_back, z = backs[gate]
            kind = cell_activation if gate == "g" else "logistic"
            dz = act.apply_backward(be, dgates[gate], z, gates[gate], kind)
            dh, dx = dh + a_back(dz, grad), dx + b_back(dz, grad)
        return dx, [dh, dcell * f]

    return y, [y, cell], backward
