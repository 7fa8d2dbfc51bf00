"""[conv_lstm]: an LSTM with convolutions (src/conv_lstm_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..array import Array, ArrayBackend, Arrays
from ..ops import activation as act
from .base import Activation, ForwardContext, Shape, ShapeError
from .convolutional import Convolutional
from .recurrent import CONV_LIMITS, Call, Recurrent, StepResult, Sublayer


@dataclass(frozen=True, kw_only=True)
class ConvLstm(Recurrent, section="conv_lstm"):
    """Update an LSTM whose state is a map.   (C, H, W) -> (output, H, W)   (Shi et al. 2015, arXiv 1506.04214)

    peephole: the gates also read the cell, through vf, vi (before the step) and vo (after it). bottleneck: the gates read only
    act(wf([h, x])), activated twice as in Darknet. After the step the cell is clipped to +-state_constrain.
    """

    ignored = frozenset({"shortcut", "xnor", "bin_output"})
    limits = CONV_LIMITS

    size: int = 3
    stride: int = 1
    pad: int = 0
    padding: int = 0
    groups: int = 1
    batch_normalize: int = 0
    activation: Activation = "linear"
    lstm_activation: Activation = "tanh"
    peephole: int = 0
    bottleneck: int = 0
    state_constrain: float = 0.0  # 0: 32 * time_steps

    def sublayers(self, x: Shape) -> list[Sublayer]:
        sublayer = Convolutional(
            filters=self.output, activation=self.activation, batch_normalize=self.batch_normalize, size=self.size,
            stride=self.stride, pad=self.pad, padding=self.padding, groups=self.groups,
        )  # fmt: skip
        hidden = (self.output, *x[1:])
        sublayers: list[Sublayer] = [(f"v{gate}", sublayer, hidden) for gate in ("fio" if self.peephole else "")]
        if self.bottleneck:
            sublayers.append(("wf", sublayer, (self.output + x[0], *x[1:])))
        else:
            sublayers += [(f"w{gate}", sublayer, hidden) for gate in "figo"]
        return sublayers + [(f"u{gate}", sublayer, hidden if self.bottleneck else x) for gate in "figo"]

    def state(self, x: Shape) -> list[Shape]:
        return [(self.output, *x[1:])] * 2

    def shape(self, *inputs: Shape) -> Shape:
        hidden = (self.output, *inputs[0][1:])
        for _, layer, x in self.sublayers(inputs[0]):
            if layer.shape(x) != hidden:
                raise ShapeError("the state must keep its size; use stride=1, pad=1 and an odd size")
        return hidden

    def flops(self, *inputs: Shape) -> float:
        C, H, W = self.shape(*inputs)
        elementwise = (12 if self.peephole else 9) * C * H * W
        return elementwise + sum(layer.flops(x) for _, layer, x in self.sublayers(inputs[0]))

    def step(self, be: ArrayBackend, call: Call, x: Array, state: list[Array], ctx: ForwardContext) -> StepResult:
        xp, (h, c), cell_activation = be.xp, state, self.lstm_activation
        gate_input, bottleneck_back = x, None
        if self.bottleneck:
            squeezed, bottleneck_back = call("wf", xp.concatenate([h, x], axis=1))
            gate_input = act.apply(be, squeezed, self.activation)
        gates, saved = {}, {}

        def gate(name: str, cell: Array | None) -> Array:
            z, backs = call(f"u{name}", gate_input)
            terms = [("x", backs)]
            if not self.bottleneck:
                more, backs = call(f"w{name}", h)
                z, terms = z + more, [*terms, ("h", backs)]
            if self.peephole and cell is not None:
                more, backs = call(f"v{name}", cell)
                z, terms = z + more, [*terms, ("c", backs)]
            kind = cell_activation if name == "g" else "logistic"
            y = act.apply(be, z, kind)
            gates[name], saved[name] = y, (z, kind, terms)
            return y

        f, i, g = gate("f", c), gate("i", c), gate("g", None)
        cell = f * c + i * g
        o = gate("o", cell)
        activated_cell = act.apply(be, cell, cell_activation)
        y = o * activated_cell
        limit = self.state_constrain or 32.0 * ctx.steps
        clipped = xp.clip(cell, -limit, limit)

        def backward(dy: Array, dstate: list[Array], grad: Arrays) -> tuple[Array, list[Array]]:
            total: dict[str, Any] = {"x": 0, "h": 0, "c": 0}

            def gate_backward(name: str, d: Array, into: dict[str, Any]) -> None:
                z, kind, terms = saved[name]
                dz = act.apply_backward(be, d, z, gates[name], kind)
                for source, back in terms:
                    into[source] = into[source] + back(dz, grad)

            d = dy + dstate[0]
            from_output: dict[str, Any] = {"x": 0, "h": 0, "c": 0}
            gate_backward("o", d * activated_cell, from_output)
            dcell = (
                dstate[1] * (xp.abs(cell) <= limit)
                + act.apply_backward(be, d * o, cell, activated_cell, cell_activation)
                + from_output["c"]
            )
            total["x"], total["h"] = from_output["x"], from_output["h"]
            for name, dgate in (("f", dcell * c), ("i", dcell * g), ("g", dcell * i)):
                gate_backward(name, dgate, total)
            dx, dh = total["x"], total["h"]
            if bottleneck_back is not None:
                dhx = bottleneck_back(act.apply_backward(be, dx, squeezed, gate_input, self.activation), grad)
                dh, dx = dhx[:, : self.output], dhx[:, self.output :]
            return dx, [dh, dcell * f + total["c"]]

        return y, [y, clipped], backward
