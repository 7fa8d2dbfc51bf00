"""Time the layers of a training step: forward, with the loss of heads, and backward (-benchmark_layers in Darknet)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..array import Array, Arrays
from ..graph import Node
from ..layers import ForwardContext
from ..layers.base import Backward as LayerBackward
from ..network import Network
from ..plan.steps import Step
from ..plan.training.steps import Backward, Zero
from .step import TrainStep

REPETITIONS = 5  # steps, of which the median counts


class LayerTime(NamedTuple):
    """Seconds of a layer in a step, all subdivisions together."""

    layer: int
    forward: float
    backward: float


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a training step: all of it, the update of the weights, and each layer. What is left is between them."""

    seconds: float
    update: float
    layers: list[LayerTime]

    def table(self, nodes: Sequence[Node], images: int) -> list[str]:
        """Return the layers as lines, the slowest first, then the rest of a step with so many images."""
        lines = [f"{'layer':<24}{'forward ms':>12}{'backward ms':>13}{'of step':>9}"]
        for index, forward, backward in sorted(
            self.layers, key=lambda time: time.forward + time.backward, reverse=True
        ):
            share = (forward + backward) / self.seconds
            name = f"{index:>3} {nodes[index].layer.section}"
            lines.append(f"{name:<24}{1e3 * forward:>12.3f}{1e3 * backward:>13.3f}{share:>9.1%}")
        forward, backward = (sum(times) for times in list(zip(*self.layers, strict=True))[1:])
        rest = self.seconds - forward - backward - self.update
        lines.append(
            f"{'all layers':<24}{1e3 * forward:>12.3f}{1e3 * backward:>13.3f}{(forward + backward) / self.seconds:>9.1%}"
        )
        for name, seconds in (("update", self.update), ("rest", rest)):
            lines.append(f"{name:<24}{1e3 * seconds:>25.3f}{seconds / self.seconds:>9.1%}")
        lines.append(f"step of {images} images: {1e3 * self.seconds:.3f} ms, {images / self.seconds:.4g} images/s")
        return lines


def layer_times(trainer: TrainStep, x: Any, truth: Any, repetitions: int = REPETITIONS) -> list[LayerTime]:
    """Return the times of the layers of `step_times`, in order."""
    return step_times(trainer, x, truth, repetitions).layers


def step_times(trainer: TrainStep, x: Any, truth: Any, repetitions: int = REPETITIONS) -> StepTimes:
    """Return the times of the median of so many steps on a batch, after one that is not counted; they train the network.

    On a GPU, the host waits for the device after each layer. A step of a plan counts for the first layer that it computes.
    """
    timer = Timer(trainer)
    steps = [timer.step(x, truth) for _ in range(repetitions + 1)][1:]
    return sorted(steps, key=lambda step: step.seconds)[repetitions // 2]


class Timer:
    """Runs steps of a trainer with functions of its network and its own replaced by those that take their time."""

    def __init__(self, trainer: TrainStep):
        self.trainer, self.net = trainer, trainer.net
        cuda = getattr(trainer.net.backend.xp, "cuda", None)
        self.synchronize: Callable[[], object] = cuda.Device().synchronize if cuda else lambda: None
        self.forward = self.backward = np.zeros(0)  # seconds, by layer
        self.update = 0.0

    def now(self) -> float:
        """Return the time at which the device has done what it was given."""
        self.synchronize()
        return time.perf_counter()

    def step(self, x: Any, truth: Any) -> StepTimes:
        """Run a step and return its times."""
        self.forward, self.backward = np.zeros((2, len(self.net.nodes)))
        replaced: list[tuple[Any, str, Any]] = [
            (self.net, "forward", self.timed_forward),
            (self.trainer, "update", self.timed_update),
            (self.trainer.engine, "report", self.add_step),
        ]
        before = vars(self.trainer.engine).get("report")
        with self.net.on_device():
            for owner, name, function in replaced:
                vars(owner)[name] = function
            try:
                begin = self.now()
                self.trainer.step(x, truth)
                seconds = self.now() - begin
            finally:
                for owner, name, _ in replaced:
                    del vars(owner)[name]
                vars(self.trainer.engine)["report"] = before
        pairs = zip(self.forward.tolist(), self.backward.tolist(), strict=True)
        return StepTimes(seconds, self.update, [LayerTime(index, *pair) for index, pair in enumerate(pairs)])

    def add_step(self, step: Step | Backward | Zero | None, seconds: float) -> None:
        """Add the time of a step of a plan."""
        times, forward = (self.backward, step.step) if isinstance(step, Backward) else (self.forward, step)
        if forward is not None and forward.layers:
            times[forward.layers[0]] += seconds

    def timed_update(self, gradients: Array, N: int) -> None:
        """Run the trainer's `update`."""
        begin = self.now()
        type(self.trainer).update(self.trainer, gradients, N)
        self.update = self.now() - begin

    def timed_forward(self, x: Array, ctx: ForwardContext, keep: Callable[[int, Array, Any], None]) -> None:
        """Run the network's `forward`; a head's loss, which runs in `keep`, is part of it, as in Darknet."""
        before = self.now()

        def timed_keep(index: int, y: Array, backward: LayerBackward | None) -> None:
            nonlocal before
            keep(index, y, None if backward is None else self.timed_backward(index, backward))
            after = self.now()
            self.forward[index] += after - before
            before = after

        Network.forward(self.net, x, ctx, timed_keep)

    def timed_backward(self, index: int, backward: LayerBackward) -> LayerBackward:
        """Return a layer's `backward` that takes its time."""

        def timed(dy: Array, grads: Arrays) -> Any:
            begin = self.now()
            result = backward(dy, grads)
            self.backward[index] += self.now() - begin
            return result

        return timed
