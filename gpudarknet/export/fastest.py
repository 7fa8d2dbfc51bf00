"""The fastest engine for a network on this CPU: load_network(..., backend="fastest").

`gpudarknet plan x.cfg -tune` measures the installed engines for a network; without a measurement a rule chooses.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .. import backend as backends
from ..array import Arrays
from ..backend import Backend, Executor, Program, machine, register_executor
from ..backend.threads import thread_count
from ..errors import BackendError, CfgError
from ..graph import Node
from ..layers import Shape
from ..network import Network
from ..plan.tuning import load_tuning
from . import program

SECONDS = 1.0  # for each engine and round
ROUNDS = 3


def engines() -> list[str]:
    """Return the backends whose engines are installed and run on this CPU; by rule, the first is the fastest."""
    return [name for name in ("openvino", "numpy", "onnxruntime") if not backends.missing_package(name)]


def compile_program(
    be: Backend, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int],
    shape: Shape, batch: int, precision: str, packed_weights: dict[Any, Any],
) -> Program:  # fmt: skip
    """Compile a network for the engine measured as its fastest, else for the backend's; for NumPy if that cannot run it.

    In bf16, only for OpenVINO.
    """
    measured = load_tuning(device_name()).get(key(nodes, shape, batch), be.name)
    ranking = ["openvino"] if precision == "bf16" else dict.fromkeys((measured, be.name, "numpy"))
    *first, last = (backends.get(name) for name in ranking if name in engines())
    arguments = nodes, weights, heads, shape, batch, precision, packed_weights
    for engine in first:
        with suppress(BackendError, CfgError):  # a layer that keeps state or has no lowering
            return engine.compile_program(*arguments)
    return last.compile_program(*arguments)


def why_no_bf16() -> str | None:
    """Return why no engine computes in bf16 here; None if OpenVINO does."""
    missing = backends.missing_package("openvino")
    return f"{missing} is not installed; {backends.install_command('openvino')}" if missing else program.why_no_bf16()


def measure(network: Network, batch: int) -> tuple[str, str, dict[str, float]]:
    """Benchmark every engine that can run a network, in turn; return its key, the fastest, the shortest seconds by engine."""
    shape = network.net.input
    x = np.random.default_rng(0).random((batch, *shape), np.float32)
    programs: dict[str, Program] = {}
    for name in engines():
        try:
            programs[name] = backends.get(name).compile_program(
                network.nodes, network.weights, network.heads, shape, batch, "fp32", {}
            )
        except (BackendError, CfgError):
            continue
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(ROUNDS):
        for name, one in programs.items():
            end = time.perf_counter() + SECONDS
            while True:
                start = time.perf_counter()
                one.run(x)
                now = time.perf_counter()
                best[name] = min(best[name], now - start)
                if now >= end:
                    break
    return key(network.nodes, shape, batch), min(best, key=best.__getitem__), best


def device_name() -> str:
    """Return the conditions under which a measurement is valid: processor, versions of the engines, number of threads."""
    versions = (f"{name} {backends.version(name)}" for name in engines())
    return ", ".join([machine.processor(), *versions, f"{thread_count()[0]} threads"])


def key(nodes: Sequence[Node], shape: Shape, batch: int) -> str:
    """Return the name under which the engine of a network is stored: its size, and a digest of what its layers compute."""
    C, H, W = shape
    facts = [
        (n.layer.section, n.sources, n.shape, [w[:2] for w in n.layer.weights(*n.inputs)], getattr(n.layer, "activation", None))
        for n in nodes
    ]  # fmt: skip
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    return f"network {digest}, {len(nodes)} layers, {W} x {H} x {C}, batch {batch}"


register_executor("fastest", Executor(compile_program, ("fp32", "bf16"), why_no_bf16=why_no_bf16, own_threads=True))
