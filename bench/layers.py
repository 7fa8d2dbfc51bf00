"""Time a network layer by layer, for the reference engine: what takes the time, and what bounds it.

A layer is bound by memory where its FLOP per byte lie below gemm rate / copy rate of the machine, by arithmetic above.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from gpudarknet import load_network
from gpudarknet.layers import Run

from . import seeded
from .records import Record

CALLS = 5


def measure(subject: Any, options: Any) -> list[Record]:
    """Run the network's layers one by one; return a "layer" record for each (without its device)."""
    from .suite import moved

    batch = options.batches[0]
    network = load_network(subject.cfg, subject.weights, "numpy", batch, subject.width, subject.height)
    x = network.input(seeded.picture(network, batch))
    times: list[list[float]] = []

    def once() -> None:
        now = [time.perf_counter()]
        network.forward(x, Run(), lambda index, y, backward: now.append(time.perf_counter()))
        times.append(list(np.diff(now)))

    once()
    begin = time.perf_counter()
    once()
    for _ in range(CALLS - 1 if time.perf_counter() - begin < 4 * options.seconds / CALLS else 1):
        once()
    medians = 1e3 * np.median(times[1:], axis=0)
    common = {"network": subject.name, "width": subject.width, "height": subject.height, "batch": batch}
    return [
        {"record": "layer", **common, "precision": "fp32", "engine": "reference", "index": node.index,
         "name": node.layer.section, "gflop": round(batch * node.layer.flops(*node.inputs) / 1e9, 6),
         "mbyte": round(batch * moved(node) / 1e6, 4), "ms": round(float(ms), 4)}
        for node, ms in zip(network.nodes, medians, strict=True)
    ]  # fmt: skip
