"""Time training steps in fp32 and fp16, and PyTorch's on the same layers, with automatic mixed precision in fp16."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gpudarknet import Trainer
from gpudarknet import backend as backends
from gpudarknet.network import Network

from .. import seeded, torch_network
from ..train import DECAY, MOMENTUM, RATE, boxes
from .case import Case, Context, Row, Skipped
from .networks import config, without_weights
from .speed import synchronizer
from .torch_speed import torch_module

NETWORK, SIZE, BATCH = "yolov4-tiny", 416, 16
SECONDS, MIN_CALLS = 1.5, 3


def steps(context: Context) -> Iterable[Case]:
    """List both frameworks in both precisions, ours first."""
    for engine, run in (("ours", ours), ("torch", torch)):
        for precision in ("fp32", "fp16"):
            yield Case(f"{NETWORK}/{precision}/{engine}", partial(run, context, precision))


def network(context: Context, backend: str) -> Network:
    """Return a network configured for SGD at a constant learning rate."""
    size, batch = (64, 2) if context.small else (SIZE, BATCH)
    base = config(NETWORK, context.small)
    net = replace(base.net, width=size, height=size, batch=batch, subdivisions=1, adam=0, burn_in=0, policy="constant",
                  learning_rate=RATE, momentum=MOMENTUM, decay=DECAY)  # fmt: skip
    network = without_weights(replace(base, net=net), backends.get(backend))
    seeded.fill(network)
    return network


def rate(context: Context, step: Callable[[], object], batch: int) -> Row:
    """Return the images per second and milliseconds of a step."""
    wait = synchronizer(context)
    times: list[float] = []
    for _ in range(2):
        step()
    start = time.perf_counter()
    while len(times) < MIN_CALLS or time.perf_counter() - start < (0 if context.small else SECONDS):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - begin)
    median = statistics.median(times)
    return {"steps": len(times), "step_ms": round(1e3 * median, 3), "images_s": round(batch / median, 1)}


def ours(context: Context, precision: Any) -> Row:
    """Time this package's trainer on a constant batch; its loss must be finite."""
    if precision == "fp16" and context.backend == "numpy":
        raise Skipped("NumPy only emulates fp16")
    net = network(context, context.backend)
    trainer, batch = Trainer(net, precision=precision), net.net.batch
    x, truth, costs = net.backend.asarray(seeded.network_input(net, batch)), boxes(net, batch), list[float]()
    row = rate(context, lambda: costs.append(trainer.step(x, truth)), batch)
    if context.backend == "cupy":
        row["pool_bytes"] = net.backend.xp.get_default_memory_pool().total_bytes()
    failed = [] if np.isfinite(costs).all() else ["the loss is not finite"]
    return {
        "network": NETWORK,
        "precision": precision,
        "batch": batch,
        "costs": [costs[0], costs[-1]],
        **row,
        "failed": failed,
    }


def torch(context: Context, precision: str) -> Row:
    """Time PyTorch's SGD in channels_last; its loss, the mean square of the heads' outputs, is less work than ours."""
    module = torch_module(context)
    if precision == "fp16" and context.backend == "numpy":
        raise Skipped("automatic mixed precision in fp16 needs a GPU")
    try:
        return torch_step(context, precision, module)
    except Exception as e:
        raise Skipped(f"torch: {type(e).__name__}: {(str(e).splitlines() or [''])[0]}") from e


def torch_step(context: Context, precision: str, module: Any) -> Row:
    """Time PyTorch."""
    cuda = context.backend == "cupy"
    device, half = "cuda" if cuda else "cpu", precision == "fp16"
    module.backends.cuda.matmul.allow_tf32 = module.backends.cudnn.allow_tf32 = False
    module.backends.cudnn.benchmark = True
    net = network(context, "numpy")
    forward, parameters = torch_network.trainable(net, module, module.channels_last, device)
    x = torch_network.tensor(module, seeded.network_input(net, net.net.batch)).to(device)
    x = x.contiguous(memory_format=module.channels_last)
    optimizer = module.optim.SGD(parameters, lr=1e-6, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    scaler = module.amp.GradScaler(device, enabled=half)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with module.autocast(device, module.float16) if half else nullcontext():
            loss = sum(y.float().square().mean() for y in forward(x))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        loss.item()

    row = rate(context, step, net.net.batch)
    return {"network": NETWORK, "precision": precision, "batch": net.net.batch, "torch": module.__version__, **row}
