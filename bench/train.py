"""Train small networks with this package and with PyTorch, in turns: python -m bench.train [x.cfg ...] [--batch 16]

A step is forward, loss, backward and SGD with momentum and decay, on one batch that lies in memory, from the same weights.
Our loss is the heads' own, with its search for boxes; PyTorch's is the mean square of the heads' raw maps, which is less
work, so the comparison leans to PyTorch. Each runs in processes of its own, with one thread and with all, PyTorch in both
of its memory layouts; what counts is the best of each. The last column is our images per second over PyTorch's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpudarknet import Trainer, __version__, cfg, load_network
from gpudarknet.network import Network

from . import machine, seeded, suite, torch_network
from .engines import Job, Ready, module, timed
from .timing import Sample, spread

NETWORKS = ("digits", "yolov3-tiny")
SIZE = (128, 96)  # width and height: on a CPU one trains small networks
ROUNDS = 5
TRUTHS = 5  # boxes in a picture
RATE, MOMENTUM, DECAY = 1e-4, 0.9, 5e-4
ENGINES = ("gpudarknet", "torch", "torch channels last")


def start(job: Job) -> Ready:
    """Open a job's engine for training and take a first step. Raises Unavailable."""
    ready = ours(job) if job.engine == "gpudarknet" else torch(job, job.engine.endswith("last"))
    ready.sample(0.0, 3)
    return ready


def network(job: Job) -> Network:
    """Read a network, to be trained by SGD at a constant rate."""
    config = cfg.read(job.cfg)
    net = replace(config.net, width=job.width, height=job.height, batch=job.batch, subdivisions=1, adam=0, burn_in=0,
                  policy="constant", learning_rate=RATE, momentum=MOMENTUM, decay=DECAY)  # fmt: skip
    return load_network(replace(config, net=net), job.weights, "numpy", job.batch)


def boxes(net: Network, N: int, seed: int = 3) -> np.ndarray:
    """Return truths (N, TRUTHS*6) as a [yolo] or [region] head reads them."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((N, TRUTHS, 6), np.float32)
    truth[..., :2] = rng.uniform(0.2, 0.8, (N, TRUTHS, 2))
    truth[..., 2:4] = rng.uniform(0.1, 0.4, (N, TRUTHS, 2))
    truth[..., 4] = rng.integers(getattr(net.nodes[net.heads[-1]].layer, "classes", 1), size=(N, TRUTHS))
    return truth.reshape(N, -1)


def ours(job: Job) -> Ready:
    """Open this package's trainer."""
    net = network(job)
    trainer, x, truth = (
        Trainer(net, emulate_darknet_cpu_bugs=False),
        seeded.picture(net, job.batch),
        boxes(net, job.batch),
    )
    return timed(lambda: trainer.step(x, truth), __version__)


def torch(job: Job, channels_last: bool) -> Ready:
    """Open PyTorch on the same layers."""
    pytorch: Any = module("torch", "torch")
    pytorch.set_num_threads(job.threads)
    net = network(job)
    layout = pytorch.channels_last if channels_last else pytorch.contiguous_format
    forward, parameters = torch_network.trainable(net, pytorch, layout)
    x = torch_network.tensor(pytorch, seeded.picture(net, job.batch)).contiguous(memory_format=layout)
    optimiser = pytorch.optim.SGD(parameters, lr=1e-6, momentum=MOMENTUM, weight_decay=DECAY, fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = sum(y.square().mean() for y in forward(x))
        loss.backward()
        optimiser.step()
        loss.item()

    return timed(step, pytorch.__version__)


def turns(jobs: list[Job], seconds: float) -> dict[Job, Sample | str]:
    """Let the jobs take turns, each in its process; return the time of their steps, or why there is none."""
    found: dict[Job, Sample | str] = {}
    workers = {job: suite.Worker({"train": asdict(job)}, job.threads) for job in jobs}
    try:
        for job, worker in workers.items():
            ready = worker.answer()
            found[job] = str(ready["failed"]) if "failed" in ready else Sample()
        for _ in range(ROUNDS):
            for job, sample in found.items():
                if isinstance(sample, Sample):
                    workers[job].ask({"seconds": seconds / ROUNDS, "fewest": 3})
                    timed = workers[job].answer()
                    sample.add(Sample(timed["wall"], timed["cpu"]))
    finally:
        for worker in workers.values():
            worker.close()
    return found


def compare(
    name: str, batch: int, width: int, height: int, seconds: float, tell: Callable[[str], None]
) -> float | None:
    """Time one network; tell of every job, and return our best images/s over PyTorch's best, None without PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        options = suite.Options(width=width, height=height)
        subject = suite.subject(name, options, Path(folder))
        counts = sorted({1, int(str(machine.describe()["threads"]))})
        size = subject.width, subject.height, batch, "fp32"
        jobs = [Job(e, subject.cfg, subject.weights, *size, n) for e in ENGINES for n in counts]
        best = {"gpudarknet": 0.0, "torch": 0.0}
        for job, sample in turns(jobs, seconds).items():
            head = f"{subject.name} {subject.width} x {subject.height}, batch {batch}: {job.engine}, threads: {job.threads}"
            if isinstance(sample, str):
                tell(f"{head}: {sample}")
                continue
            speed = spread([batch / t for t in sample.wall])
            tell(f"{head}: {speed.median:.0f} images/s ({speed.p10:.0f} to {speed.p90:.0f}; {len(sample.wall)} steps)")
            kind = job.engine.split()[0]
            best[kind] = max(best[kind], speed.median)
    return best["gpudarknet"] / best["torch"] if best["torch"] else None


def main(words: list[str] | None = None) -> int:
    """Compare on every network named; print what comes of it."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description="Training speed beside PyTorch's")
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="cfg files or names of shipped ones")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a step")
    parser.add_argument("--width", type=int, default=SIZE[0], help="of the input, in pixels")
    parser.add_argument("--height", type=int, default=SIZE[1], help="of the input, in pixels")
    parser.add_argument("--seconds", type=float, default=3.0, help="timed, for each engine and count of threads")
    args = parser.parse_args(words)
    for name in args.networks:
        ratio = compare(name, args.batch, args.width, args.height, args.seconds, lambda text: print(text, flush=True))
        if ratio is not None:
            print(f"{name}: ours / PyTorch = {ratio:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
