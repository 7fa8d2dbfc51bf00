"""The engines of a training step: what computes the gradients of a part of a batch.

Both write one vector of gradients (`Parameters`). The reference runs the layers' own forward and backward and defines the result;
the plan is the network compiled for one input size (plan/training).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..array import Array, Arrays
from ..graph import Node, owner
from ..layers import ForwardContext, Layer
from ..layers.base import Backward as LayerBackward
from ..layers.blocks import update_running_statistics
from ..network import Network
from ..plan.cpu.program import allocate_arena
from ..plan.cpu.training import Part, TrainingProgram
from ..plan.steps import Step
from ..plan.training import compile_training
from ..plan.training.steps import Backward, Zero
from .darknet_cpu_bugs import DarknetCpuBugs
from .parameters import Parameters

CAPACITY = 16  # programs: input sizes of a training with random sizes

ComputeDelta = Callable[[Layer, Array | None, Array], Array]  # (layer, input or None, output) -> delta of the output


class Engine(Protocol):
    """Computes the gradients of a part of a batch; `name` is that of the option `engine`.

    gradients: the vector that `run` overwrites; views: the same, as for each layer name -> array.
    """

    name: str
    gradients: Array
    views: list[Arrays]

    def run(self, x: Array, ctx: ForwardContext, delta: ComputeDelta) -> None:
        """Compute the gradients for x (N, C, H, W); `delta` is called for each layer with a loss, in order."""


class ReferenceEngine:
    """Runs layer by layer."""

    name = "reference"

    def __init__(self, net: Network, parameters: Parameters, cpu_bugs: DarknetCpuBugs | None = None):
        self.net, self.cpu_bugs = net, cpu_bugs
        self.gradients, self.views = parameters.zeros()

    def run(self, x: Array, ctx: ForwardContext, delta: ComputeDelta) -> None:
        """Compute the gradients as `Engine.run` says."""
        net = self.net
        loss_inputs = {source for node in net.nodes if node.layer.loss_reads_input for source in node.sources}
        inputs: dict[int, Array] = {-1: x}
        backwards: list[LayerBackward | None] = []
        deltas: dict[int, Array] = {}

        def on_output(index: int, y: Array, backward: LayerBackward) -> None:
            node = net.nodes[index]
            backwards.append(self.cpu_bugs.wrap(node, y, backward) if self.cpu_bugs else backward)
            if index in loss_inputs:
                inputs[index] = y
            if node.layer.has_loss:
                deltas[index] = delta(
                    node.layer, inputs.get(node.sources[0]) if node.layer.loss_reads_input else None, y
                )

        grads: list[Arrays] = []
        for node in net.nodes:
            grads.append(grads[owner(node)] if owner(node) != node.index else {})
        net.forward(x, ctx, on_output)
        deltas |= self.cpu_bugs.kept_deltas if self.cpu_bugs else {}
        backward(net.nodes, backwards, deltas, grads, ctx.frozen)
        self.gradients[...] = 0
        for node in net.nodes:
            if owner(node) == node.index:
                for name, g in grads[node.index].items():
                    self.views[node.index][name][...] = g


class PlanEngine:
    """Runs a program for each input size, number of images and number of frozen layers; they share one arena."""

    name = "plan"

    def __init__(self, net: Network, parameters: Parameters):
        self.net = net
        self.gradients, self.views = parameters.zeros()
        self.programs: dict[tuple[Any, ...], TrainingProgram] = {}
        self.arena = np.zeros(0, np.float32)
        self.last: TrainingProgram | None = None
        # gets the seconds of each step
        self.report: Callable[[Step | Backward | Zero | None, float], None] | None = None

    def program(self, batch: int, frozen: int) -> TrainingProgram:
        """Return the program for this many images and frozen layers and the network's present input size."""
        net = self.net
        key = net.net.input, batch, frozen
        program = self.programs.pop(key, None)
        if program is None:
            plan = compile_training(net.nodes, net.weights, net.net.input, batch, frozen)
            if plan.arena_size > self.arena.size:
                self.programs.clear()  # they use the smaller one
                self.arena = allocate_arena(plan)
            program = TrainingProgram(plan, self.views, self.arena)
        self.programs[key] = program  # the most recently used is last
        while len(self.programs) > CAPACITY:
            del self.programs[next(iter(self.programs))]
        return program

    def run(self, x: Array, ctx: ForwardContext, delta: ComputeDelta) -> None:
        """Compute the gradients as `Engine.run` says, and update the running statistics of batch norm."""
        program = self.program(len(x), ctx.frozen)
        if program is not self.last:
            self.gradients[...] = 0  # of weights that this program does not train
            self.last = program
        program.report = self.report
        program.run(x, Part(ctx, delta))
        for layer, (mean, variance) in program.statistics.items():
            _, H, W = self.net.nodes[layer].shape
            update_running_statistics(self.net.weights[layer], mean, variance, len(x) * H * W)


def backward(
    nodes: Sequence[Node],
    backwards: list[LayerBackward | None],
    deltas: dict[int, Array],
    grads: list[Arrays],
    first: int = 0,
) -> dict[int, Array]:
    """Propagate deltas (layer -> delta of its output) back to layer `first`, adding into grads[layer][name].

    A layer with several readers gets the sum of their deltas. Entries of `backwards` are dropped once used. Returns the
    remaining deltas: that of the input, as -1, and of layers before `first`.
    """
    for node in reversed(nodes[first:]):
        run, dy = backwards[node.index], deltas.pop(node.index, None)
        backwards[node.index] = None
        if dy is None or run is None or node.layer.onlyforward:
            continue
        for source, dx in zip(node.sources, run(dy, grads[node.index]), strict=True):
            if dx is not None:
                deltas[source] = dx if source not in deltas else deltas[source] + dx
    return deltas
