"""Profile a network layer by layer (reference) or step by step (plan): the time of each, and what bounds it.

A layer is memory-bound if its FLOP per byte are below the machine's gemm rate / copy rate, compute-bound above. On a GPU each
layer is synchronized, which adds some microseconds to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gpudarknet.graph import Node
from gpudarknet.layers import ForwardContext
from gpudarknet.network import Network
from gpudarknet.summary import flops

from . import seeded
from .engines import Job, synchronizer
from .records import Record

CALLS, SECONDS = 7, 3.0  # at most this many passes, within this time


@dataclass(frozen=True)
class LayerCost:
    """A layer, or a step of the plan: index of its first layer, name, and FLOP and bytes per image."""

    index: int
    name: str
    flops: float
    bytes: int


def bytes_moved(node: Node) -> int:
    """Return the fewest bytes that a layer must move in fp32: inputs, output and weights once."""
    weights = sum(prod(shape) for _, shape, _ in node.layer.weights(*node.inputs))
    return 4 * (weights + prod(node.shape) + sum(prod(shape) for shape in node.inputs))


def reference(
    network: Network, x: Any, synchronize: Callable[[], None]
) -> tuple[list[LayerCost], Callable[[], list[float]]]:
    """Return the layers' costs, and a function that runs all layers and returns timestamps: the start, then after each."""
    costs = [LayerCost(n.index, n.layer.section, n.layer.flops(*n.inputs), bytes_moved(n)) for n in network.nodes]

    def run_once() -> list[float]:
        timestamps = [time.perf_counter()]

        def stamp(index: int, y: Any, backward: Any) -> None:
            synchronize()
            timestamps.append(time.perf_counter())

        network.forward(x, ForwardContext(), stamp)
        return timestamps

    return costs, run_once


def plan(
    network: Network, x: Any, precision: str, synchronize: Callable[[], None]
) -> tuple[list[LayerCost], Callable[[], list[float]]]:
    """Return the costs of the plan's steps, and a function as `reference` does. Feature maps keep the previous run's values."""
    from gpudarknet.plan import cpu

    program: Any = network.program(len(x), precision)
    program.run(x)
    on_cpu = isinstance(program, cpu.Program)
    steps = program.plan.steps if on_cpu else program.schedule.steps
    with program.queue if on_cpu else program.stream_context.use():
        bound = program.stages if on_cpu else [[launch.run for launch in program.emit(step).launches] for step in steps]

    def run_once() -> list[float]:
        timestamps = [time.perf_counter()]
        with program.queue if on_cpu else program.stream_context.use():
            for work in bound:
                if on_cpu:
                    program.queue.run(work)
                else:
                    for launch in work:
                        launch()
                synchronize()
                timestamps.append(time.perf_counter())
        return timestamps

    return [step_cost(network, step) for step in steps], run_once


def step_cost(network: Network, step: Any) -> LayerCost:
    """Return the cost of a step of the plan."""
    nodes = [network.nodes[index] for index in step.layers]
    weights = sum(prod(shape) for n in nodes for _, shape, _ in n.layer.weights(*n.inputs))
    elements = weights + prod(step.y.shape) + sum(prod(m.shape) for m in step.reads)
    name = " ".join(word for word in (step.name, step.note(), *(str(a) for a in step.epilogue)) if word)
    return LayerCost(step.layers[0], name, flops(nodes), 4 * elements)


def measure(job: Job) -> list[Record]:
    """Profile one of our engines; return a "layer" record for each layer or step, without the device."""
    network = job.network("cupy" if job.kind == "gpu" else "numpy")
    x, synchronize = network.input(seeded.network_input(network, job.batch)), synchronizer(network)
    costs, run_once = (
        plan(network, x, job.precision, synchronize) if job.engine == "plan" else reference(network, x, synchronize)
    )
    run_once()
    times, begin = [run_once()], time.perf_counter()
    while len(times) < CALLS and time.perf_counter() - begin < SECONDS:
        times.append(run_once())
    medians = 1e3 * np.median(np.diff(times, axis=1), axis=0)
    size, common = {"width": job.width, "height": job.height, "batch": job.batch}, {"engine": job.engine}
    return [
        {"record": "layer", **size, "precision": job.precision, **common, "index": p.index, "name": p.name,
         "gflop": round(job.batch * p.flops / 1e9, 6), "mbyte": round(job.batch * p.bytes / 1e6, 4), "ms": round(float(ms), 4)}
        for p, ms in zip(costs, medians, strict=True)
    ]  # fmt: skip
