"""Run the benchmark: describe the machine, then for each network let the engines take turns, each in its own process.

Turns, not one engine after the other: a machine that slows down after a minute slows down all of them.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import gpudarknet
from gpudarknet import cfg, graph, load_network
from gpudarknet import summary as tables
from gpudarknet.errors import DataError
from gpudarknet.io import resources

from . import gpu, machine, seeded
from .engines import ENGINES, OURS, Job
from .layers import moved
from .records import SCHEMA, Record
from .timing import FEWEST, Sample, spread

NETWORKS = ("yolov2-tiny", "yolov3-tiny", "yolov4-tiny", "yolov2-voc", "yolov3")
ROUNDS = 5
REST = 0.2  # seconds between turns: thread pools spin for a while after their last task
PATIENCE = 180.0  # seconds to open a network, or for a turn beyond its own length
POOLS = ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to run. seconds: timed, for each row; width and height 0: the cfg's own; limit 0: none.

    After `limit` seconds nothing new is begun; what was left out says so.
    """

    networks: tuple[str, ...] = NETWORKS
    engines: tuple[str, ...] = tuple(ENGINES)
    batches: tuple[int, ...] = (1,)
    precisions: tuple[str, ...] = ("fp32",)
    kinds: tuple[str, ...] = ("cpu",)
    width: int = 0
    height: int = 0
    seconds: float = 5.0
    threads: int = 0
    weights: str = ""
    layers: bool = False
    limit: float = 0.0

    @property
    def late(self) -> str:
        """What a row says that was left out for want of time."""
        return f"left out: the limit of {self.limit:.0f} s was reached"


@dataclass(frozen=True)
class Subject:
    """A network to run: its name, files, size and cost."""

    name: str
    cfg: str
    weights: str
    width: int
    height: int
    gflop: float
    bflops: float
    mbyte: float

    @property
    def fields(self) -> dict[str, Any]:
        """What every record about it says."""
        return {k: v for k, v in asdict(self).items() if k not in ("cfg", "weights")} | {"network": self.name}


class Worker:
    """A process that runs one engine (see `worker`)."""

    def __init__(self, first: dict[str, Any], threads: int):
        limits = {f"{pool}_NUM_THREADS": str(threads) for pool in POOLS} | {"VECLIB_MAXIMUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "gpudarknet.bench.worker"]
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, encoding="utf-8",
            env=os.environ | limits,
        )  # fmt: skip
        # The one limit that every library obeys. It comes early: the process has not loaded NumPy yet.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, sorted(machine.affinity())[:threads])
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.ask(first)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.answers.put(text)
        self.answers.put("")

    def ask(self, question: dict[str, Any]) -> None:
        """Send a question; a worker that is gone shows in `answer`."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()

    def answer(self, patience: float = PATIENCE) -> dict[str, Any]:
        """Return the answer, or {"failed": why}."""
        try:
            text = self.answers.get(timeout=patience)
        except queue.Empty:
            self.close()
            return {"failed": f"no answer within {patience:.0f} s"}
        if text:
            return dict(json.loads(text))
        code = self.process.wait()
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["without a word"])[-1][:200]
        return {"failed": f"its process ended with code {code}: {last}"}

    def close(self) -> None:
        """End the process."""
        for stream in (self.process.stdin, self.errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def rate(question: dict[str, Any], threads: int) -> float | None:
    """Measure the machine in a worker: {"gemm": n} or {"copy": mib}; None if that fails."""
    worker = Worker(question, threads)
    try:
        found = worker.answer().get("rate")
        return None if found is None else round(float(found), 2)
    finally:
        worker.close()


def commit() -> str | None:
    """Return the commit of the checkout this runs in, with a plus where files differ from it; None outside one."""
    place = Path(gpudarknet.__file__).parent.parent
    if not (place / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(place)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "gpudarknet", "kernels"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "+" * bool(dirty)


def stamp(described: dict[str, Any]) -> Record:
    """Begin a "machine" record."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
    return {
        "record": "machine",
        "schema": SCHEMA,
        "date": now,
        "version": gpudarknet.__version__,
        "commit": commit(),
        **described,
    }


def cpu_record(threads: int, tell: Tell) -> Record:
    """Describe and measure this CPU."""
    record = stamp(machine.describe())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    n = 2048 if threads < 8 else 4096
    tell(f"machine: matrix product {n} x {n}, one thread")
    one = rate({"gemm": n}, 1)
    tell(f"machine: matrix product {n} x {n}, {threads} threads")
    many = rate({"gemm": n}, threads) if threads > 1 else one
    tell("machine: copies")
    copy = rate({"copy": 128}, threads)
    info: Any = np.show_config(mode="dicts")
    blas = info.get("Build Dependencies", {}).get("blas", {}) if isinstance(info, dict) else {}
    record |= {"gemm_gflops": {"fp32": many} if many else {}, "gemm_one_thread": one, "gemm_n": n, "copy_gb_s": copy}
    record |= {"blas": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(), "load": round(load, 2)}
    record["flags"] = machine.doubts(record, load, gemm=many)
    return {name: value for name, value in record.items() if value is not None or name == "commit"}


def gpu_record(tell: Tell) -> Record:
    """Describe and measure the GPU."""
    import cupy

    tell("GPU: matrix products and copies")
    device = cupy.cuda.Device()
    khz = device.attributes.get("ClockRate", 0)
    described = gpu.describe(cupy.cuda.runtime.getDeviceProperties(device.id), khz)
    return stamp(described) | gpu.measured() | {"flags": []}


def subject(word: str, options: Options, folder: Path) -> Subject:
    """Read a network and write seeded weights for it, unless the user gives some."""
    path = resources.bundled_cfg(word)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = load_network(path, backend="numpy", width=options.width or None, height=options.height or None)
        weights = options.weights or str(seeded.write(network, folder / f"{path.stem}.weights"))
    gflop, bflops, mbyte = costs(path.stem, network.nodes)
    size = network.width, network.height
    return Subject(path.stem, str(path.resolve()), weights, *size, round(gflop, 4), round(bflops, 4), round(mbyte, 4))


def costs(name: str, nodes: Any) -> tuple[float, float, float]:
    """Return a network's GFLOP, BFLOPS and MB a picture, as "result" records have them. Raises DataError where there are none.

    GFLOP are those of the convolutions, which the rule counts; a network without any has Darknet's total instead.
    """
    conv = [node for node in nodes if node.layer.section == "convolutional"]
    bflops = tables.bflops(nodes)
    gflop = sum(n.layer.flops(*n.inputs) for n in conv) / 1e9 or bflops
    if not gflop:
        raise DataError(f"{name}: has no layer whose operations Darknet counts; take another network")
    return gflop, bflops, sum(moved(n) for n in conv) / 1e6


def cost_of(word: str, width: int = 0, height: int = 0) -> tuple[str, float]:
    """Return a network's name with its size, and GFLOP a picture; weights are not made. Raises DarknetError."""
    config = cfg.read(resources.bundled_cfg(word))
    net = replace(config.net, width=width or config.net.width, height=height or config.net.height)
    name, (_, H, W) = Path(config.path).stem, net.input
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f"{name} {W} x {H}", costs(name, graph.build(replace(config, net=net)))[0]


def jobs(subject: Subject, options: Options, threads: int) -> Iterator[Job]:
    """Yield what to run for one network."""
    for kind in options.kinds:
        for batch in options.batches:
            for precision in options.precisions if kind == "gpu" else ("fp32",):
                for engine in options.engines:
                    if kind == "gpu" and engine not in (*OURS, "torch"):
                        continue
                    size = subject.width, subject.height, batch, precision
                    yield Job(engine, subject.cfg, subject.weights, *size, threads, kind)


def run(options: Options, tell: Tell = lambda text: None) -> Iterator[Record]:
    """Run everything; yield records as they are known. tell(text) hears what happens now. Raises DarknetError."""
    described = machine.describe()
    usable = int(str(described["threads"]))
    threads = min(options.threads or usable, usable)
    for engine in options.engines:
        if engine not in ENGINES:
            raise DataError(f"bench: no engine '{engine}'; it knows {', '.join(ENGINES)}")
    begin = time.monotonic()

    def over() -> bool:
        return 0 < options.limit < time.monotonic() - begin

    with tempfile.TemporaryDirectory() as folder:
        subjects = [subject(word, options, Path(folder)) for word in options.networks]
        about = {"cpu": cpu_record(threads, tell)}
        if "gpu" in options.kinds:
            about["gpu"] = gpu_record(tell)
        stat, throttled = machine.read(machine.PROC / "stat"), machine.throttles()
        found: list[Record] = []
        left_out: list[str] = []
        for each in subjects:
            for record in turns(each, list(jobs(each, options, threads)), options, tell, over):
                found.append(record | {"device": about[record.pop("kind")]["device"]})
            if options.layers and over():
                left_out.append(f"{each.name}: its layers are {options.late}")
            elif options.layers:
                for job in jobs(each, options, threads):
                    if job.engine in OURS and (job.engine == "plan" or job.precision == "fp32"):
                        tell(f"{each.name}: {job.engine}, layer by layer")
                        known = {"network": each.name, "device": about[job.kind]["device"]}
                        found += [known | record for record in layers(job)]
        tell("machine: matrix product once more")
        own = about["cpu"]
        first, again = own["gemm_gflops"].get("fp32"), rate({"gemm": own["gemm_n"]}, threads)
        steal = machine.stolen(stat, machine.read(machine.PROC / "stat"))
        own["flags"] = machine.doubts(own, own["load"], steal, machine.throttles() - throttled, first, again)
        own["flags"] += left_out
        if again:
            own["gemm_gflops"] = {"fp32": max(first or 0.0, again)}
    yield from about.values()
    yield from found


def layers(job: Job) -> list[Record]:
    """Time a network's layers in a worker; none if that fails, which its "result" says too."""
    worker = Worker({"layers": asdict(job)}, job.threads)
    try:
        return list(worker.answer().get("records", []))
    finally:
        worker.close()


def turns(
    subject: Subject, jobs: list[Job], options: Options, tell: Tell, over: Callable[[], bool] = lambda: False
) -> Iterator[Record]:
    """Open all jobs of a network, let them take turns, and yield a "result" record for each. over() ends the turns."""
    seconds = options.seconds
    workers: dict[Job, Worker] = {}
    samples: dict[Job, Sample] = {}
    records: dict[Job, Record] = {}
    try:
        for job in jobs:
            tell(f"{subject.name}: opening {job.engine}")
            records[job] = blank(subject, job)
            if over():
                records[job]["failed"] = options.late
                continue
            workers[job] = Worker(asdict(job), job.threads)
            ready = workers[job].answer()
            if take(ready, records[job]):
                records[job] |= {"engine_version": ready["version"], "note": ready["note"]}
                samples[job] = Sample()
        for turn in range(ROUNDS):
            for job, sample in samples.items():
                spent = sum(sample.wall)
                if "failed" in records[job] or (turn and spent > seconds and spent / turn > seconds / ROUNDS):
                    continue
                if over() and sample.wall:
                    continue
                tell(f"{subject.name}: {job.engine}, turn {turn + 1} of {ROUNDS}")
                time.sleep(REST)
                workers[job].ask({"seconds": seconds / ROUNDS, "fewest": 1})
                timed = workers[job].answer(PATIENCE + seconds)
                if take(timed, records[job]):
                    sample.add(Sample(timed["wall"], timed["cpu"]))
    finally:
        for worker in workers.values():
            worker.close()
    for job, record in records.items():
        if "failed" not in record:
            record |= numbers(samples[job], job.batch)
        yield record


def take(answer: dict[str, Any], record: Record) -> bool:
    """Say whether an answer is good; write its failure into the record."""
    if "failed" in answer:
        record["failed"] = answer["failed"]
    return "failed" not in answer


def blank(subject: Subject, job: Job) -> Record:
    """Begin a "result" record."""
    fields = {k: v for k, v in subject.fields.items() if k != "name"}
    own = {
        "batch": job.batch,
        "precision": job.precision,
        "engine": job.engine,
        "threads": job.threads,
        "kind": job.kind,
    }
    return {"record": "result"} | fields | own


def numbers(sample: Sample, batch: int) -> Record:
    """Return a sample's medians and spread, as fields of a "result" record."""
    wall, cpu = ([1e3 * t for t in times] for times in (sample.wall, sample.cpu))
    fps = [1e3 * batch / t for t in wall]
    spreads = {"wall_ms": spread(wall), "cpu_ms": spread(cpu), "fps": spread(fps)}
    found: Record = {name: {k: round(v, 4) for k, v in asdict(s).items()} for name, s in spreads.items()}
    found["calls"] = len(wall)
    if len(wall) < FEWEST:
        found["few"] = f"{len(wall)} timed call{'s' * (len(wall) > 1)} only: slow for the time allowed"
    return found
