"""Time a network layer by layer (reference) or step by step (plan): what takes the time, and what bounds it.

A layer is bound by memory where its FLOP per byte lie below gemm rate / copy rate of the machine, by arithmetic above. On a GPU
each is waited for, which adds some microseconds to each.
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

from . import seeded
from .engines import Job, finisher
from .records import Record

CALLS, SECONDS = 7, 3.0  # so many passes, or as many as this time allows


@dataclass(frozen=True)
class Part:
    """A layer, or a step of the plan: the number of its first layer, its name, and what it does and moves for one picture."""

    index: int
    name: str
    flops: float
    bytes: int


def moved(node: Node) -> int:
    """Return the bytes that a layer moves at least, in fp32: inputs, output and weights once."""
    weights = sum(prod(shape) for _, shape, _ in node.layer.weights(*node.inputs))
    return 4 * (weights + prod(node.shape) + sum(prod(shape) for shape in node.inputs))


def reference(network: Network, x: Any, finish: Callable[[], None]) -> tuple[list[Part], Callable[[], list[float]]]:
    """Return the layers, and a function that runs all and returns the time after each, the start first."""
    parts = [Part(n.index, n.layer.section, n.layer.flops(*n.inputs), moved(n)) for n in network.nodes]

    def once() -> list[float]:
        now = [time.perf_counter()]

        def keep(index: int, y: Any, backward: Any) -> None:
            finish()
            now.append(time.perf_counter())

        network.forward(x, ForwardContext(), keep)
        return now

    return parts, once


def plan(
    network: Network, x: Any, precision: str, finish: Callable[[], None]
) -> tuple[list[Part], Callable[[], list[float]]]:
    """Return the steps of the network's plan, and a function as `reference` does; its maps keep what the last run left."""
    from gpudarknet.plan import cpu
    from gpudarknet.plan.cuda import program as cuda

    program: Any = network.program(len(x), precision)
    program.run(x)
    on_cpu = isinstance(program, cpu.Program)
    steps = program.plan.steps if on_cpu else program.steps
    with program.queue if on_cpu else program.stream_context.use():
        bound = program.stages if on_cpu else [cuda.BIND[type(step)](program, step) for step in steps]

    def once() -> list[float]:
        now = [time.perf_counter()]
        with program.queue if on_cpu else program.stream_context.use():
            for work in bound:
                if on_cpu:
                    program.queue.run(work)
                else:
                    for launch in work:
                        launch()
                finish()
                now.append(time.perf_counter())
        return now

    return [part(network, step) for step in steps], once


def part(network: Network, step: Any) -> Part:
    """Describe a step of the plan."""
    nodes = [network.nodes[index] for index in step.layers]
    weights = sum(prod(shape) for n in nodes for _, shape, _ in n.layer.weights(*n.inputs))
    numbers = weights + prod(step.y.shape) + sum(prod(m.shape) for m in step.reads)
    name = " ".join(word for word in (step.name, step.note(), *(str(a) for a in step.epilogue)) if word)
    return Part(step.layers[0], name, sum(n.layer.flops(*n.inputs) for n in nodes), 4 * numbers)


def measure(job: Job) -> list[Record]:
    """Run a network of ours part by part; return a "layer" record for each, without its device."""
    network = job.network("cupy" if job.kind == "gpu" else "numpy")
    x, finish = network.input(seeded.picture(network, job.batch)), finisher(network)
    parts, once = plan(network, x, job.precision, finish) if job.engine == "plan" else reference(network, x, finish)
    once()
    times, begin = [once()], time.perf_counter()
    while len(times) < CALLS and time.perf_counter() - begin < SECONDS:
        times.append(once())
    medians = 1e3 * np.median(np.diff(times, axis=1), axis=0)
    size, common = {"width": job.width, "height": job.height, "batch": job.batch}, {"engine": job.engine}
    return [
        {"record": "layer", **size, "precision": job.precision, **common, "index": p.index, "name": p.name,
         "gflop": round(job.batch * p.flops / 1e9, 6), "mbyte": round(job.batch * p.bytes / 1e6, 4), "ms": round(float(ms), 4)}
        for p, ms in zip(parts, medians, strict=True)
    ]  # fmt: skip
