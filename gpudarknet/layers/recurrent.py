"""[rnn], [crnn], [gru], [lstm]: sequences (src/rnn_layer.c, crnn_layer.c, gru_layer.c, lstm_layer.c).

A batch is time steps of sequences, [step][sequence]. At inference the state is carried over from call to call, and lives
with the weights: w["state"] is no weight, so it is neither saved nor loaded. Each is built of connected or convolutional
layers, whose arrays have the part's name in front: "input.kernel". The way back is the derivative; Darknet's multiplies what
goes to the input part by the slope of the self part too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..ops import activation as act
from .base import Activation, ForwardContext, Layer, Shape, ShapeError, Weight, accumulate
from .connected import Connected
from .convolutional import Convolutional

Part = tuple[str, Layer, Shape]  # name, layer, shape of its input
Call = Callable[[str, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Recurrent(Layer):
    """What recurrent layers share: parts that are layers, a loop over time, a way back through it."""

    output: int = 1

    def sublayers(self, x: Shape) -> list[Part]:
        """Return its sub-layers in file order."""
        raise NotImplementedError

    def state(self, x: Shape) -> list[Shape]:
        """Return the shapes of what it remembers for each sequence."""
        raise NotImplementedError

    def step(
        self, be: Any, call: Call, x: Any, state: list[Any], ctx: ForwardContext
    ) -> tuple[Any, list[Any], Callable[..., Any]]:
        """Take one time step: x (B, C, H, W), state -> y, new state, and back(dy, dstate) -> (dx, dstate before)."""
        raise NotImplementedError

    def shape(self, *inputs: Shape) -> Shape:
        if self.output < 1:
            raise ShapeError("output must be at least 1")
        for _, layer, x in self.sublayers(inputs[0]):
            layer.shape(x)
        return self.output, 1, 1

    def weights(self, *inputs: Shape) -> list[Weight]:
        parts = self.sublayers(inputs[0])
        return [(f"{part}.{name}", *rest) for part, layer, x in parts for name, *rest in layer.weights(x)]  # type: ignore[misc]

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        return self.section, str(self.output), ""

    def forward(self, be: Any, w: dict[str, Any], *xs: Any, ctx: ForwardContext) -> tuple[Any, Any]:
        (x,) = xs
        T, B = ctx.steps, x.shape[0] // ctx.steps
        frames = x.reshape(T, B, *x.shape[1:])
        parts = {name: layer for name, layer, _ in self.sublayers(x.shape[1:])}
        arrays = {name: {k[len(name) + 1 :]: v for k, v in w.items() if k.startswith(name + ".")} for name in parts}
        fresh = [be.zeros((B, *s), x.dtype) for s in self.state(x.shape[1:])]
        kept = w.get("state") if not ctx.train else None
        state = kept if kept is not None and kept[0].shape == fresh[0].shape else fresh
        ys, ways = [], []
        ctx = replace(ctx, skip_input_grad=False)  # the state's gradient is needed even where the input's is not

        def call(name: str, value: Any) -> Any:
            y, back = parts[name].forward(be, arrays[name], value, ctx=ctx)

            def backward(dy: Any, grad: dict[str, Any]) -> Any:
                inner: dict[str, Any] = {}
                (dx,) = back(dy, inner)
                for k, v in inner.items():
                    accumulate(grad, f"{name}.{k}", v)
                return dx

            return y, backward

        for t in range(T):
            y, state, way = self.step(be, call, frames[t], state, ctx)
            ys.append(y)
            ways.append(way)
        if not ctx.train:
            w["state"] = state
        y = be.xp.concatenate(ys) if T > 1 else ys[0]

        def backward(dy: Any, grad: dict[str, Any]) -> tuple[Any, ...]:
            dframes = dy.reshape(T, B, *dy.shape[1:])
            dstate = [be.zeros(s.shape, dy.dtype) for s in fresh]
            dxs = []
            for t in reversed(range(T)):
                dx, dstate = ways[t](dframes[t], dstate, grad)
                dxs.append(dx)
            return (be.xp.concatenate(dxs[::-1]).reshape(x.shape),)

        return y, backward


@dataclass(frozen=True, kw_only=True)
class Rnn(Recurrent, section="rnn"):
    """Remember a hidden layer: s = in(x) + self(s), y = out(s).   (C, H, W) -> (output, 1, 1)"""

    hidden: int = 1
    activation: Activation = "logistic"
    batch_normalize: int = 0
    shortcut: int = 0  # 1: the old state is added too
    logistic: int = 0  # 1: self uses logistic, 2: loggy

    @property
    def self_activation(self) -> Activation:
        """The activation of the self part."""
        return {1: "logistic", 2: "loggy"}.get(self.logistic, self.activation)  # type: ignore[return-value]

    def sublayers(self, x: Shape) -> list[Part]:
        def part(output: int, activation: Activation) -> Connected:
            return Connected(output=output, activation=activation, batch_normalize=self.batch_normalize)

        hidden = (self.hidden, 1, 1)
        return [
            ("input", part(self.hidden, self.activation), x),
            ("self", part(self.hidden, self.self_activation), hidden),
            ("output", part(self.output, self.activation), hidden),
        ]

    def state(self, x: Shape) -> list[Shape]:
        return [(self.hidden, 1, 1)]

    def step(
        self, be: Any, call: Call, x: Any, state: list[Any], ctx: ForwardContext
    ) -> tuple[Any, list[Any], Callable[..., Any]]:
        (s,) = state
        a, a_back = call("input", x)
        b, b_back = call("self", s)
        new = a + b + s if self.shortcut else a + b
        y, y_back = call("output", new)

        def way(dy: Any, dstate: list[Any], grad: dict[str, Any]) -> tuple[Any, list[Any]]:
            ds = y_back(dy, grad) + dstate[0]
            before = b_back(ds, grad)
            return a_back(ds, grad), [before + ds if self.shortcut else before]

        return y, [new], way


@dataclass(frozen=True, kw_only=True)
class Crnn(Rnn, section="crnn"):
    """Remember a hidden map, as [rnn] does, with convolutions.   (C, H, W) -> (output, H, W)"""

    ignored: ClassVar[frozenset[str]] = frozenset({"wait_stream"})

    size: int = 3
    stride: int = 1
    pad: int = 0
    padding: int = 0
    groups: int = 1
    dilation: int = 1
    xnor: int = 0
    bin_output: int = 0

    def sublayers(self, x: Shape) -> list[Part]:
        def part(filters: int, activation: Activation) -> Convolutional:
            return Convolutional(
                filters=filters, activation=activation, batch_normalize=self.batch_normalize, size=self.size,
                stride=self.stride, pad=self.pad, padding=self.padding, groups=self.groups, dilation=self.dilation,
                xnor=self.xnor,
            )  # fmt: skip

        first = part(self.hidden, self.activation)
        hidden = first.shape(x)
        return [
            ("input", first, x),
            ("self", part(self.hidden, self.self_activation), hidden),
            ("output", part(self.output, self.activation), hidden),
        ]

    def state(self, x: Shape) -> list[Shape]:
        return [self.sublayers(x)[1][2]]

    def shape(self, *inputs: Shape) -> Shape:
        _, inner, out = self.sublayers(inputs[0])
        if inner[1].shape(inner[2]) != inner[2]:
            raise ShapeError("its state must keep its size; use stride=1, pad=1 and an odd size")
        return out[1].shape(out[2])

    def flops(self, *inputs: Shape) -> float:
        return sum(layer.flops(x) for _, layer, x in self.sublayers(inputs[0]))


@dataclass(frozen=True, kw_only=True)
class Gru(Recurrent, section="gru"):
    """Remember in a gated recurrent unit: h = z*h + (1 - z)*sig(Wh x + Uh (r*h)).   (C, H, W) -> (output, 1, 1)

    The candidate's activation is logistic in Darknet, not tanh.
    """

    batch_normalize: int = 0

    def sublayers(self, x: Shape) -> list[Part]:
        part = Connected(output=self.output, activation="linear", batch_normalize=self.batch_normalize)
        hidden = (self.output, 1, 1)
        return [
            *((f"input_{gate}", part, x) for gate in "zrh"),
            *((f"state_{gate}", part, hidden) for gate in "zrh"),
        ]

    def state(self, x: Shape) -> list[Shape]:
        return [(self.output, 1, 1)]

    def step(
        self, be: Any, call: Call, x: Any, state: list[Any], ctx: ForwardContext
    ) -> tuple[Any, list[Any], Callable[..., Any]]:
        (h,) = state
        (iz, iz_back), (ir, ir_back), (ih, ih_back) = (call(f"input_{gate}", x) for gate in "zrh")
        (sz, sz_back), (sr, sr_back) = call("state_z", h), call("state_r", h)
        z, r = (act.activate(be, v, "logistic") for v in (iz + sz, ir + sr))
        sh, sh_back = call("state_h", r * h)
        c = act.activate(be, ih + sh, "logistic")
        new = z * h + (1 - z) * c

        def way(dy: Any, dstate: list[Any], grad: dict[str, Any]) -> tuple[Any, list[Any]]:
            d = dy + dstate[0]
            dc = d * (1 - z) * c * (1 - c)
            drh = sh_back(dc, grad)
            dz, dr = d * (h - c) * z * (1 - z), drh * h * r * (1 - r)
            dx = ih_back(dc, grad) + iz_back(dz, grad) + ir_back(dr, grad)
            return dx, [d * z + drh * r + sz_back(dz, grad) + sr_back(dr, grad)]

        return new, [new], way


@dataclass(frozen=True, kw_only=True)
class Lstm(Recurrent, section="lstm"):
    """Remember in a long short-term memory: c = f*c + i*g, h = o*tanh(c).   (C, H, W) -> (output, 1, 1)"""

    batch_normalize: int = 0

    def sublayers(self, x: Shape) -> list[Part]:
        part = Connected(output=self.output, activation="linear", batch_normalize=self.batch_normalize)
        hidden = (self.output, 1, 1)
        return [*((f"w{gate}", part, hidden) for gate in "figo"), *((f"u{gate}", part, x) for gate in "figo")]

    def state(self, x: Shape) -> list[Shape]:
        return [(self.output, 1, 1)] * 2

    def step(
        self, be: Any, call: Call, x: Any, state: list[Any], ctx: ForwardContext
    ) -> tuple[Any, list[Any], Callable[..., Any]]:
        h, c = state
        return lstm_step(be, call, x, h, c, "tanh")


def lstm_step(be: Any, call: Call, x: Any, h: Any, c: Any, squash: str) -> tuple[Any, list[Any], Callable[..., Any]]:
    """Take one step of an LSTM whose parts are wf wi wg wo (of h) and uf ui ug uo (of x)."""
    gates, backs = {}, {}
    for gate in "figo":
        (a, a_back), (b, b_back) = call(f"w{gate}", h), call(f"u{gate}", x)
        z = a + b
        gates[gate] = act.apply(be, z, squash if gate == "g" else "logistic")
        backs[gate] = (a_back, b_back, z)
    f, i, g, o = (gates[k] for k in "figo")
    cell = f * c + i * g
    squashed = act.apply(be, cell, squash)
    y = o * squashed

    def way(dy: Any, dstate: list[Any], grad: dict[str, Any]) -> tuple[Any, list[Any]]:
        d = dy + dstate[0]
        dcell = dstate[1] + act.apply_backward(be, d * o, cell, squashed, squash)
        dgates = {"f": dcell * c, "i": dcell * g, "g": dcell * i, "o": d * squashed}
        dx = dh = 0
        for gate in "figo":
            a_back, b_back, z = backs[gate]
            kind = squash if gate == "g" else "logistic"
            dz = act.apply_backward(be, dgates[gate], z, gates[gate], kind)
            dh, dx = dh + a_back(dz, grad), dx + b_back(dz, grad)
        return dx, [dh, dcell * f]

    return y, [y, cell], way
