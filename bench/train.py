"""Train small networks with this package and with PyTorch, interleaved.

    python -m bench.train [x.cfg ...] [--batch 16]

A step is forward, loss, backward and SGD with momentum and weight decay, on one batch in memory, from the same weights.
Our loss is the heads' own, including box matching; PyTorch's is the mean square of the heads' raw outputs, which is less
work, so the comparison favors PyTorch. Each runs in separate processes, with one thread and with all, PyTorch in both memory
layouts; the best of each is compared. The last line is the ratio of images per second, ours / PyTorch's.
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
from gpudarknet.backend.threads import get_num_threads
from gpudarknet.network import Network

from . import seeded, suite, torch_network
from .engines import Job, Session, import_framework, session_of
from .timing import Sample, quantiles

NETWORKS = ("digits", "yolov3-tiny")
SIZE = (128, 96)  # width and height: small, as is usual on a CPU
ROUNDS = 5
TRUTHS = 5  # boxes per image
RATE, MOMENTUM, DECAY = 1e-4, 0.9, 5e-4
ENGINES = ("gpudarknet", "torch", "torch channels last")


def start(job: Job) -> Session:
    """Open a job's engine for training and run warm-up steps. Raises Unavailable."""
    session = ours(job) if job.engine == "gpudarknet" else torch(job, job.engine.endswith("last"))
    session.sample(0.0, 3)
    return session


def network(job: Job) -> Network:
    """Load a network, configured for SGD at a constant learning rate."""
    config = cfg.read(job.cfg)
    net = replace(config.net, width=job.width, height=job.height, batch=job.batch, subdivisions=1, adam=0, burn_in=0,
                  policy="constant", learning_rate=RATE, momentum=MOMENTUM, decay=DECAY)  # fmt: skip
    return load_network(replace(config, net=net), job.weights, "numpy", job.batch)


def boxes(net: Network, N: int, seed: int = 3) -> np.ndarray:
    """Return random ground truth (N, TRUTHS*6) as a [yolo] or [region] head reads it."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((N, TRUTHS, 6), np.float32)
    truth[..., :2] = rng.uniform(0.2, 0.8, (N, TRUTHS, 2))
    truth[..., 2:4] = rng.uniform(0.1, 0.4, (N, TRUTHS, 2))
    truth[..., 4] = rng.integers(getattr(net.nodes[net.heads[-1]].layer, "classes", 1), size=(N, TRUTHS))
    return truth.reshape(N, -1)


def ours(job: Job) -> Session:
    """Open this package's trainer."""
    net = network(job)
    trainer, x, truth = (
        Trainer(net),
        seeded.network_input(net, job.batch),
        boxes(net, job.batch),
    )
    return session_of(lambda: trainer.step(x, truth), __version__)


def torch(job: Job, channels_last: bool) -> Session:
    """Open PyTorch on the same layers."""
    pytorch: Any = import_framework("torch", "torch")
    pytorch.set_num_threads(job.threads)
    net = network(job)
    layout = pytorch.channels_last if channels_last else pytorch.contiguous_format
    forward, parameters = torch_network.trainable(net, pytorch, layout)
    x = torch_network.tensor(pytorch, seeded.network_input(net, job.batch)).contiguous(memory_format=layout)
    optimizer = pytorch.optim.SGD(parameters, lr=1e-6, momentum=MOMENTUM, weight_decay=DECAY, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = sum(y.square().mean() for y in forward(x))
        loss.backward()
        optimizer.step()
        loss.item()

    return session_of(step, pytorch.__version__)


def interleave(jobs: list[Job], seconds: float) -> dict[Job, Sample | str]:
    """Run the jobs in ROUNDS interleaved rounds, each in its process; return their step times, or the failure."""
    samples: dict[Job, Sample | str] = {}
    workers = {job: suite.Worker({"train": asdict(job)}, job.threads) for job in jobs}
    try:
        for job, worker in workers.items():
            answer = worker.answer()
            samples[job] = str(answer["failed"]) if "failed" in answer else Sample()
        for _ in range(ROUNDS):
            for job, sample in samples.items():
                if isinstance(sample, Sample):
                    workers[job].ask({"seconds": seconds / ROUNDS, "min_calls": 3})
                    timed = workers[job].answer()
                    sample.add(Sample(timed["wall"], timed["cpu"]))
    finally:
        for worker in workers.values():
            worker.close()
    return samples


def compare(name: str, batch: int, width: int, height: int, seconds: float, log: Callable[[str], None]) -> float | None:
    """Time one network and log every job; return our best images/s over PyTorch's best, None without PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        options = suite.Options(width=width, height=height)
        workload = suite.workload(name, options, Path(folder))
        counts = sorted({1, get_num_threads()})
        size = workload.width, workload.height, batch, "fp32"
        jobs = [Job(e, workload.cfg, workload.weights, *size, n) for e in ENGINES for n in counts]
        best = {"gpudarknet": 0.0, "torch": 0.0}
        for job, sample in interleave(jobs, seconds).items():
            head = f"{workload.name} {workload.width} x {workload.height}, batch {batch}: {job.engine}, threads: {job.threads}"
            if isinstance(sample, str):
                log(f"{head}: {sample}")
                continue
            speed = quantiles([batch / t for t in sample.wall])
            log(f"{head}: {speed.median:.0f} images/s ({speed.p10:.0f} to {speed.p90:.0f}; {len(sample.wall)} steps)")
            kind = job.engine.split()[0]
            best[kind] = max(best[kind], speed.median)
    return best["gpudarknet"] / best["torch"] if best["torch"] else None


def main(argv: list[str] | None = None) -> int:
    """Compare on every network named and print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description="Training speed compared with PyTorch")
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="cfg files or names of bundled ones")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--width", type=int, default=SIZE[0], help="of the input, in pixels")
    parser.add_argument("--height", type=int, default=SIZE[1], help="of the input, in pixels")
    parser.add_argument("--seconds", type=float, default=3.0, help="measured for each engine and thread count")
    args = parser.parse_args(argv)
    for name in args.networks:
        ratio = compare(name, args.batch, args.width, args.height, args.seconds, lambda text: print(text, flush=True))
        if ratio is not None:
            print(f"{name}: ours / PyTorch = {ratio:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
