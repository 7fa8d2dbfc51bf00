"""Train networks with this package and with PyTorch, interleaved.

    python -m bench.train [x.cfg ...] [--batch 16] [--size 128x96] [--out bench/results/train.jsonl]

A step is forward, loss, backward and SGD with momentum and weight decay, on one batch in memory, from the same weights.
Our loss is the heads' own, including box matching; PyTorch's is the mean square of the heads' raw outputs, which is less
work, so the comparison favors PyTorch. Ours runs as compiled and with the reference engine; PyTorch eager and with
`torch.compile` (which needs a C++ compiler), each in both memory layouts. All run in processes of their own, with one thread
and with all. For each number of threads, a line says the ratio of images per second, our best / PyTorch's best.

Memory is the most that a step adds to the resident memory of the process (its peak while steps are timed, minus that
before the first step, when network, optimizer and batch are in memory): feature maps, gradients, workspaces, what the allocator
keeps, and what a compiler leaves behind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpudarknet import Trainer, __version__, cfg, load_network
from gpudarknet.backend.threads import get_num_threads
from gpudarknet.network import Network

from . import machine, memory, records, seeded, suite, torch_network
from .engines import Job, Session, Unavailable, import_framework, last_line
from .records import Record
from .timing import measure

NETWORKS = ("digits", "yolov3-tiny", "yolov4-tiny")
SIZES = ((128, 96),)  # width and height: small, as is usual on a CPU
OURS = ("gpudarknet", "gpudarknet reference")
TORCH = ("torch", "torch channels last", "torch compile", "torch compile channels last")
COMPILE_TIMEOUT = 900.0  # seconds to open an engine
TRUTHS = 5  # boxes per image
RATE, MOMENTUM, DECAY = 1e-4, 0.9, 5e-4


def start(job: Job) -> Session:
    """Open a job's engine for training and run warm-up steps. Raises Unavailable."""
    step, version = (torch if job.engine.startswith("torch") else ours)(job)
    before = memory.resident()
    try:
        measure(step, min_calls=3)
    except Exception as e:
        if "compile" not in job.engine:
            raise
        raise Unavailable(f"torch.compile: {last_line(e)}") from None
    memory.reset_peak()

    def fields() -> Record:
        """Return what steps add to the memory of the process, in MB, if the system tells."""
        added = memory.peak() - before
        return (
            {"memory_mb": round(added / 1e6, 1), "memory_mb_per_image": round(added / 1e6 / job.batch, 2)}
            if before
            else {}
        )

    return Session(lambda seconds, min_calls: measure(step, seconds, min_calls), version, fields=fields)


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


def ours(job: Job) -> tuple[Callable[[], object], str]:
    """Return this package's step and version."""
    net = network(job)
    engine: Literal["plan", "reference"] = "reference" if job.engine.endswith("reference") else "plan"
    trainer, x, truth = Trainer(net, engine=engine), seeded.network_input(net, job.batch), boxes(net, job.batch)
    return lambda: trainer.step(x, truth), __version__


def torch(job: Job) -> tuple[Callable[[], object], str]:
    """Return PyTorch's step on the same layers, and its version."""
    pytorch: Any = import_framework("torch", "torch")
    pytorch.set_num_threads(job.threads)
    net = network(job)
    layout = pytorch.channels_last if "channels last" in job.engine else pytorch.contiguous_format
    forward, parameters = torch_network.trainable(net, pytorch, layout)
    x = torch_network.tensor(pytorch, seeded.network_input(net, job.batch)).contiguous(memory_format=layout)
    optimizer = pytorch.optim.SGD(parameters, lr=1e-6, momentum=MOMENTUM, weight_decay=DECAY, fused=True)

    def loss_of(x: Any) -> Any:
        return sum(y.square().mean() for y in forward(x))

    if "compile" in job.engine:
        loss_of = pytorch.compile(loss_of)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(x)
        loss.backward()
        optimizer.step()
        loss.item()

    return step, pytorch.__version__


def run(
    name: str, size: tuple[int, int], batch: int, seconds: float, counts: list[int], log: suite.Log
) -> Iterator[Record]:
    """Time one network of one size with these thread counts; yield a "train" record per engine and count."""
    with tempfile.TemporaryDirectory() as folder:
        options = suite.Options(width=size[0], height=size[1], seconds=seconds)
        workload = suite.workload(name, options, Path(folder))
        jobs = [
            Job(engine, workload.cfg, workload.weights, *size, batch, threads=n)
            for n in counts
            for engine in OURS + TORCH
        ]
        for record in suite.interleave(workload, jobs, options, log, request=request, opening=COMPILE_TIMEOUT):
            yield record | {"record": "train", "device": machine.describe()["device"]}


def request(job: Job) -> Record:
    """Return what a worker is asked to open."""
    return {"train": asdict(job)}


def line(record: Record) -> str:
    """Return a record as a line of text."""
    head = f"{title(record)}: {record['engine']}, threads: {record['threads']}"
    if "failed" in record:
        return f"{head}: {record['failed']}"
    speed = record["fps"]
    memory = (
        f"; {record['memory_mb']:.0f} MB, {record['memory_mb_per_image']:.1f} per image"
        if "memory_mb" in record
        else ""
    )
    return f"{head}: {speed['median']:.0f} images/s ({speed['p10']:.0f} to {speed['p90']:.0f}; {record['calls']} steps){memory}"


def title(record: Record) -> str:
    """Return how lines name a network."""
    return f"{record['network']} {record['width']} x {record['height']}, batch {record['batch']}"


def ratio(results: list[Record], threads: int) -> str | None:
    """Return the line that compares the best of both with this number of threads; None if one of them has no result."""
    best = []
    for engines in (OURS, TORCH):
        mine = [r for r in results if r["threads"] == threads and r["engine"] in engines and "fps" in r]
        if not mine:
            return None
        best.append(max(mine, key=lambda r: float(r["fps"]["median"])))
    speeds = [r["fps"]["median"] for r in best]
    names = " / ".join(f"{r['engine']} {speed:.0f}" for r, speed in zip(best, speeds, strict=True))
    return f"{title(best[0])}, threads: {threads}: ours / PyTorch = {speeds[0] / speeds[1]:.2f} ({names} images/s)"


def progress(text: str) -> None:
    """Show what is being done."""
    print(text, file=sys.stderr, flush=True)


def size_of(text: str) -> tuple[int, int]:
    """Parse a size, WIDTHxHEIGHT."""
    width, height = map(int, text.split("x"))
    return width, height


def main(argv: list[str] | None = None) -> int:
    """Compare on every network named, print the results and write them."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description="Training speed compared with PyTorch")
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="cfg files or names of bundled ones")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument(
        "--size", nargs="+", type=size_of, default=SIZES, help="of the input, in pixels, such as 416x416"
    )
    parser.add_argument(
        "--threads", nargs="+", type=int, default=sorted({1, get_num_threads()}), help="numbers of threads"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="measured for each engine and thread count")
    parser.add_argument("--out", type=Path, help="write the records, one JSON line each, to this file")
    args = parser.parse_args(argv)
    done: list[Record] = []
    for name in args.networks:
        for size in args.size:
            results = []
            for record in run(name, size, args.batch, args.seconds, args.threads, progress):
                results.append(record)
                print(line(record), flush=True)
            for threads in args.threads:
                if text := ratio(results, threads):
                    print(text, flush=True)
            done += results
            if args.out:
                records.write(args.out, done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
