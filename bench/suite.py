"""Run the benchmark: describe the machine, then time the engines on each network, each engine in its own process.

Engines are interleaved rather than run one after the other, so that a machine that slows down affects all of them.
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

import gpudarknet
from gpudarknet import cfg, graph, load_network
from gpudarknet import summary as tables
from gpudarknet.backend import blas
from gpudarknet.backend.machine import affinity, numpy_blas
from gpudarknet.backend.threads import VARIABLE, get_num_threads
from gpudarknet.errors import DataError
from gpudarknet.io import resources

from . import gpu, machine, seeded
from .engines import BF16, ENGINES, OURS, Job
from .layers import bytes_moved
from .records import SCHEMA, Record
from .timing import MIN_CALLS, Sample, quantiles

NETWORKS = ("yolov2-tiny", "yolov3-tiny", "yolov4-tiny", "yolov2-voc", "yolov3")
ROUNDS = 5
COOLDOWN = 0.2  # seconds between measurements: thread pools spin for a while after their last task
TIMEOUT = 180.0  # seconds to open a network, or for a measurement beyond its own length
THREAD_VARIABLES = (VARIABLE, "OMP_NUM_THREADS", *blas.VARIABLES.values())
Log = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What to run. seconds: measured per result; width, height 0: the cfg's; limit 0: none.

    After `limit` seconds nothing new is started; results record what was skipped.
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
    def skip_reason(self) -> str:
        """The failure recorded for skipped results."""
        return f"skipped: the limit of {self.limit:.0f} s was reached"


@dataclass(frozen=True)
class Workload:
    """A network to run: name, files, input size and cost."""

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
        """The fields of every record about it."""
        return {k: v for k, v in asdict(self).items() if k not in ("cfg", "weights")} | {"network": self.name}


class Worker:
    """A process that runs one engine (see `worker`)."""

    def __init__(self, first: dict[str, Any], threads: int):
        limits = dict.fromkeys(THREAD_VARIABLES, str(threads))
        command = [sys.executable, "-m", "gpudarknet.bench.worker"]
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, encoding="utf-8",
            env=os.environ | limits,
        )  # fmt: skip
        # The one limit that all libraries respect. It is set before the process loads NumPy.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, sorted(affinity())[:threads])
        self.answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.ask(first)

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self.answers.put(text)
        self.answers.put("")

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request; if the worker has died, `answer` reports it."""
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def answer(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Return the answer, or {"failed": reason}."""
        try:
            text = self.answers.get(timeout=timeout)
        except queue.Empty:
            self.close()
            return {"failed": f"no answer within {timeout:.0f} s"}
        if text:
            return dict(json.loads(text))
        code = self.process.wait()
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["no message"])[-1][:200]
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


def rate(request: dict[str, Any], threads: int) -> float | None:
    """Measure the machine in a worker: {"gemm": n} or {"copy": mib}; None if that fails."""
    worker = Worker(request, threads)
    try:
        value = worker.answer().get("rate")
        return None if value is None else round(float(value), 2)
    finally:
        worker.close()


def commit() -> str | None:
    """Return the checkout's commit, with a plus if files differ from it; None outside a checkout."""
    root = Path(gpudarknet.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "gpudarknet", "kernels"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "+" * bool(dirty)


def machine_record(described: dict[str, Any]) -> Record:
    """Return a "machine" record: date, versions and the described fields."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
    return {
        "record": "machine",
        "schema": SCHEMA,
        "date": now,
        "version": gpudarknet.__version__,
        "commit": commit(),
        **described,
    }


def cpu_record(threads: int, log: Log) -> Record:
    """Describe and measure this CPU."""
    record = machine_record(machine.describe())
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    n = 2048 if threads < 8 else 4096
    log(f"machine: gemm {n} x {n}, one thread")
    one = rate({"gemm": n}, 1)
    log(f"machine: gemm {n} x {n}, {threads} threads")
    many = rate({"gemm": n}, threads) if threads > 1 else one
    log("machine: copies")
    copy = rate({"copy": 128}, threads)
    record |= {"gemm_gflops": {"fp32": many} if many else {}, "gemm_one_thread": one, "gemm_n": n, "copy_gb_s": copy}
    record |= {"blas": " ".join(numpy_blas()).strip(), "load": round(load, 2)}
    record["flags"] = machine.caveats(record, load, gemm=many)
    return {name: value for name, value in record.items() if value is not None or name == "commit"}


def gpu_record(log: Log) -> Record:
    """Describe and measure the GPU."""
    import cupy

    log("GPU: gemm and copies")
    device = cupy.cuda.Device()
    khz = device.attributes.get("ClockRate", 0)
    described = gpu.describe(cupy.cuda.runtime.getDeviceProperties(device.id), khz)
    return machine_record(described) | gpu.measure_rates() | {"flags": []}


def workload(name: str, options: Options, folder: Path) -> Workload:
    """Load a network and write seeded weights for it, unless options name some."""
    path = resources.bundled_cfg(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = load_network(path, backend="numpy", width=options.width or None, height=options.height or None)
        weights = options.weights or str(seeded.write_weights(network, folder / f"{path.stem}.weights"))
    gflop, bflops, mbyte = costs(path.stem, network.nodes)
    size = network.width, network.height
    return Workload(path.stem, str(path.resolve()), weights, *size, round(gflop, 4), round(bflops, 4), round(mbyte, 4))


def costs(name: str, nodes: Any) -> tuple[float, float, float]:
    """Return a network's GFLOP, BFLOPS and MB per image, as in "result" records. Raises DataError if there are none.

    GFLOP count the convolutions, as the rule does; a network without convolutions has Darknet's total instead.
    """
    conv = [node for node in nodes if node.layer.section == "convolutional"]
    bflops = tables.bflops(nodes)
    gflop = tables.bflops(conv) or bflops
    if not gflop:
        raise DataError(f"{name}: has no layer whose operations Darknet counts; choose another network")
    return gflop, bflops, sum(bytes_moved(n) for n in conv) / 1e6


def cost_of(name: str, width: int = 0, height: int = 0) -> tuple[str, float]:
    """Return a network's name with its input size, and GFLOP per image, without making weights. Raises DarknetError."""
    config = cfg.read(resources.bundled_cfg(name))
    net = replace(config.net, width=width or config.net.width, height=height or config.net.height)
    stem, (_, H, W) = Path(config.path).stem, net.input
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f"{stem} {W} x {H}", costs(stem, graph.build(replace(config, net=net)))[0]


def jobs(workload: Workload, options: Options, threads: int) -> Iterator[Job]:
    """Yield the jobs for one network."""
    for kind in options.kinds:
        for batch in options.batches:
            for precision in dict.fromkeys(("fp32", *options.precisions)) if kind == "cpu" else options.precisions:
                for engine in options.engines:
                    known = (*OURS, "torch") if kind == "gpu" else BF16 if precision == "bf16" else tuple(ENGINES)
                    wanted = precision != "bf16" if kind == "gpu" else precision in ("fp32", "bf16")
                    if not wanted or engine not in known:
                        continue
                    size = workload.width, workload.height, batch, precision
                    yield Job(engine, workload.cfg, workload.weights, *size, threads, kind)


def run(options: Options, log: Log = lambda text: None) -> Iterator[Record]:
    """Run the benchmark and yield its records. log(text) reports progress. Raises DarknetError."""
    described = machine.describe()
    usable = int(str(described["threads"]))
    threads = min(options.threads or get_num_threads(), usable)
    for engine in options.engines:
        if engine not in ENGINES:
            raise DataError(f"bench: no engine '{engine}'; choose from {', '.join(ENGINES)}")
    begin = time.monotonic()

    def limit_reached() -> bool:
        return 0 < options.limit < time.monotonic() - begin

    with tempfile.TemporaryDirectory() as folder:
        workloads = [workload(word, options, Path(folder)) for word in options.networks]
        devices = {"cpu": cpu_record(threads, log)}
        if "gpu" in options.kinds:
            devices["gpu"] = gpu_record(log)
        stat, throttled = machine.read_text(machine.PROC / "stat"), machine.throttle_count()
        results: list[Record] = []
        skipped: list[str] = []
        for each in workloads:
            for record in interleave(each, list(jobs(each, options, threads)), options, log, limit_reached):
                results.append(record | {"device": devices[record.pop("kind")]["device"]})
            if options.layers and limit_reached():
                skipped.append(f"{each.name}: layers {options.skip_reason}")
            elif options.layers:
                for job in jobs(each, options, threads):
                    if job.engine in OURS and (job.engine == "plan" or job.precision == "fp32"):
                        log(f"{each.name}: {job.engine}, layer by layer")
                        fields = {"network": each.name, "device": devices[job.kind]["device"]}
                        results += [fields | record for record in layers(job)]
        log("machine: gemm again")
        own = devices["cpu"]
        first, again = own["gemm_gflops"].get("fp32"), rate({"gemm": own["gemm_n"]}, threads)
        steal = machine.steal_share(stat, machine.read_text(machine.PROC / "stat"))
        own["flags"] = machine.caveats(own, own["load"], steal, machine.throttle_count() - throttled, first, again)
        own["flags"] += skipped
        if again:
            own["gemm_gflops"] = {"fp32": max(first or 0.0, again)}
    yield from devices.values()
    yield from results


def layers(job: Job) -> list[Record]:
    """Profile a network's layers in a worker; empty if that fails, which the "result" reports too."""
    worker = Worker({"layers": asdict(job)}, job.threads)
    try:
        return list(worker.answer().get("records", []))
    finally:
        worker.close()


def interleave(
    workload: Workload, jobs: list[Job], options: Options, log: Log, limit_reached: Callable[[], bool] = lambda: False,
    request: Callable[[Job], dict[str, Any]] = asdict, opening: float = TIMEOUT,
) -> Iterator[Record]:  # fmt: skip
    """Open all jobs of a network, measure them in interleaved rounds, and yield a "result" record for each.

    request: what a worker is asked to open. opening: seconds that this may take.
    """
    seconds = options.seconds
    workers: dict[Job, Worker] = {}
    samples: dict[Job, Sample] = {}
    records: dict[Job, Record] = {}
    try:
        for job in jobs:
            log(f"{workload.name}: opening {job.engine}")
            records[job] = new_result(workload, job)
            if limit_reached():
                records[job]["failed"] = options.skip_reason
                continue
            workers[job] = Worker(request(job), job.threads)
            ready = workers[job].answer(opening)
            if succeeded(ready, records[job]):
                records[job] |= {"engine_version": ready["version"], "note": ready["note"]}
                samples[job] = Sample()
        for i in range(ROUNDS):
            for job, sample in samples.items():
                spent = sum(sample.wall)
                if "failed" in records[job] or (i and spent > seconds and spent / i > seconds / ROUNDS):
                    continue
                if limit_reached() and sample.wall:
                    continue
                log(f"{workload.name}: {job.engine}, round {i + 1} of {ROUNDS}")
                time.sleep(COOLDOWN)
                workers[job].ask({"seconds": seconds / ROUNDS, "min_calls": 1})
                timed = workers[job].answer(TIMEOUT + seconds)
                if succeeded(timed, records[job]):
                    sample.add(Sample(timed["wall"], timed["cpu"]))
                    records[job] |= timed.get("fields", {})
    finally:
        for worker in workers.values():
            worker.close()
    for job, record in records.items():
        if "failed" not in record:
            record |= statistics(samples[job], job.batch)
        yield record


def succeeded(answer: dict[str, Any], record: Record) -> bool:
    """Return whether an answer is a success; else copy its failure into the record."""
    if "failed" in answer:
        record["failed"] = answer["failed"]
    return "failed" not in answer


def new_result(workload: Workload, job: Job) -> Record:
    """Return a "result" record without measurements."""
    fields = {k: v for k, v in workload.fields.items() if k != "name"}
    own = {
        "batch": job.batch,
        "precision": job.precision,
        "engine": job.engine,
        "threads": job.threads,
        "kind": job.kind,
    }
    return {"record": "result"} | fields | own


def statistics(sample: Sample, batch: int) -> Record:
    """Return a sample's quantiles as fields of a "result" record."""
    wall, cpu = ([1e3 * t for t in times] for times in (sample.wall, sample.cpu))
    fps = [1e3 * batch / t for t in wall]
    samples = {"wall_ms": quantiles(wall), "cpu_ms": quantiles(cpu), "fps": quantiles(fps)}
    fields: Record = {name: {k: round(v, 4) for k, v in asdict(s).items()} for name, s in samples.items()}
    fields["calls"] = len(wall)
    if len(wall) < MIN_CALLS:
        fields["warning"] = f"only {len(wall)} timed call{'s' * (len(wall) > 1)}: too slow for the time limit"
    return fields
