"""Detection on Ray, on this machine: start-up, speed against one process, the cost of a shard, deaths, memory of the driver.

    python -m bench.cluster [start] [speed] [shards] [deaths] [memory] [--network yolov4-tiny] [--images 96] [--rounds 3]
        [--paths 100000] [--size 256 4096]

Prints a table in Markdown. Each measurement is a process of its own; what is compared alternates. Images per second are those of
the steady state: the slope of images against time, from when all workers have delivered. Photographs are those of `bench.folder`,
weights the pretrained ones. A stub detector, which reads nothing and finds nothing, shows what shards cost: --paths images, in
shards of --size, with names that a generator makes.

    python -m bench.cluster memory --paths 10000000
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import gpudarknet
from gpudarknet.backend.threads import get_num_threads
from gpudarknet.cluster.detect import IN_FLIGHT, Driver
from gpudarknet.cluster.job import Model, Summary
from gpudarknet.cluster.parts import Counts, Parts
from gpudarknet.cluster.rows import Options
from gpudarknet.cluster.runtime import ENVIRONMENT, Runtime, connect, limit_threads
from gpudarknet.cluster.shards import Shard, split
from gpudarknet.cluster.store import LocalStore
from gpudarknet.cluster.worker import AnyModel, Settings, ShardWorker
from gpudarknet.detections import Detections
from gpudarknet.io import download, resources

from .folder import write_photos
from .machine import describe

BATCH = 8
SHARD = 16  # images, where photographs are processed
IMAGE = np.zeros((480, 640, 3), np.uint8)
KINDS = ("start", "speed", "shards", "deaths", "memory")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
Answer = dict[str, Any]
Line = tuple[str, str]  # of the table: what, and how much


class StubDetector:
    """A detector that reads no image and finds no object."""

    def run_images(self, items: Iterator[Any], *_: object, **__: object) -> Iterator[tuple[Any, np.ndarray, None]]:
        """Yield an image for each item."""
        return ((item, IMAGE, None) for item in items)

    def to_detections(self, *_: object) -> Detections:
        """Return no objects."""
        return Detections()


@dataclass(frozen=True)
class StubModel:
    """What makes a `StubDetector` on a worker."""

    options: Options = field(default_factory=Options)

    def detector(self) -> Any:
        """Return the detector."""
        return StubDetector()


@dataclass(frozen=True)
class RecordedModel:
    """A model that records in a folder when each worker has loaded it, in files named by the time and the worker's process."""

    model: AnyModel
    folder: str

    @property
    def options(self) -> Options:
        """Those of the model."""
        return self.model.options

    def detector(self) -> Any:
        """Return the model's detector."""
        detector = self.model.detector()
        Path(self.folder, f"{time.time_ns()}-{os.getpid()}").touch()
        return detector

    def loads(self) -> list[tuple[float, int]]:
        """Return when workers have loaded the detector, in seconds since 1970, and their processes, in order."""
        found = sorted(name.split("-") for name in os.listdir(self.folder))
        return [(int(nanoseconds) / 1e9, int(pid)) for nanoseconds, pid in found]


class Empty:
    """An actor whose calls do nothing."""

    def run(self, number: int, shard: Shard | None) -> Counts:
        """Return counts, as a shard's call does."""
        return Counts(0, 0, 0)


class Progress:
    """The progress of a job: its images against time, from report number `settle` to that of all `images`."""

    def __init__(self, images: int, settle: int = 1):
        self.total, self.settle, self.reports = images, settle, 0
        self.seconds, self.images, self.cpu = list[float](), list[int](), list[dict[str, float]]()

    def __call__(self, summary: Summary) -> None:
        """Take the summary so far."""
        self.add(summary.images)

    def add(self, images: int) -> None:
        """Note that so many images are done."""
        self.reports += 1
        if self.reports >= self.settle:
            self.seconds.append(time.perf_counter())
            self.images.append(images)
        if self.reports == self.settle or images == self.total:
            self.cpu.append(cpu_by_kind())

    @property
    def rate(self) -> float:
        """Images per second in the steady state."""
        return float(np.polyfit(self.seconds, self.images, 1)[0])

    @property
    def cpu_ms(self) -> dict[str, float]:
        """CPU time per image in the steady state, in ms, of each kind of process."""
        first, last = self.cpu
        return {kind: 1000 * (last[kind] - first[kind]) / (self.images[-1] - self.images[0]) for kind in last}


# Processes


def descendants() -> Iterator[tuple[int, str]]:
    """Yield this process's descendants on Linux: process number and /proc/N/stat, without the name."""
    parents, stats = dict[int, int](), dict[int, str]()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            stat = Path("/proc", entry, "stat").read_text().rpartition(")")[2]
        except OSError:
            continue
        stats[int(entry)], parents[int(entry)] = stat, int(stat.split()[1])
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return ((pid, stats[pid]) for pid in own - {os.getpid()})


def cpu_by_kind() -> dict[str, float]:
    """Return the CPU seconds so far of this process ("driver"), of workers, and of Ray's own processes."""
    used = {"driver": time.process_time(), "workers": 0.0, "ray": 0.0}
    for pid, stat in descendants():
        try:
            name = Path("/proc", str(pid), "cmdline").read_text()
        except OSError:
            continue
        used["workers" if name.startswith("ray::") else "ray"] += sum(map(int, stat.split()[11:13])) / TICKS
    return used


def resident() -> tuple[float, float]:
    """Return the memory of this process on Linux in MB: now, and at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return sizes["VmRSS"], sizes["VmHWM"]


def measured(kind: str, blas_threads: int = 1, /, **arguments: Any) -> Answer:
    """Run a function `measure_...` in a process of its own; return its answer and the whole process's seconds."""
    code = "from gpudarknet.bench.cluster import answer; answer()"
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(blas_threads)}
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps([kind, arguments]), capture_output=True, text=True,
                          env=environment, check=False)  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{kind} {arguments}\n{done.stderr}")
    result = {"process": time.perf_counter() - begin, **json.loads(done.stdout.splitlines()[-1])}
    shown = {key: round(value, 3) for key, value in result.items() if isinstance(value, float)}
    print(f"{kind} {arguments}: {shown}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return result


def answer() -> None:
    """Take a request from stdin, run its function, print the answer."""
    kind, arguments = json.load(sys.stdin)
    print(json.dumps(globals()[f"measure_{kind}"](**arguments)))


# Measurements, each in a process of its own


def load(network: str) -> Model:
    """Return a network with its trained weights, on NumPy."""
    cfg = resources.bundled_cfg(network)
    bundled = cfg.with_suffix(".weights")
    return Model.load(cfg, bundled if bundled.exists() else download.weights(network), None, Options(), "numpy")


def measure_start(network: str, photos: str) -> Answer:
    """Start Ray and one worker, take one result, stop Ray: the seconds of each."""
    model = load(network)
    times = [time.perf_counter()]
    import ray

    times.append(time.perf_counter())
    with tempfile.TemporaryDirectory() as out, LocalStore(out).locked():
        with connect() as runtime:
            times.append(time.perf_counter())
            worker = runtime.start(ShardWorker, ray.put(model), Parts(LocalStore(out), "jsonl"), Settings(), threads=1)
            ray.get(worker.load.remote())
            times.append(time.perf_counter())
            ray.get(worker.run.remote(0, next(split(photos, BATCH))))
            times.append(time.perf_counter())
        times.append(time.perf_counter())
    names = ("import", "init", "ready", "first", "shutdown")
    return dict(zip(names, np.diff(times).tolist(), strict=True))


def measure_plain(network: str, photos: str, images: int, threads: int) -> Answer:
    """Detect in one process, without Ray."""
    limit_threads(threads)
    detector, progress = load(network).detector(), Progress(images)
    with tempfile.TemporaryFile("w") as file:
        for count, objects in enumerate(detector.detect_stream(gpudarknet.sources(photos), batch=BATCH), 1):
            file.write(json.dumps(objects.summary()) + "\n")
            if count % BATCH == 0 or count == images:
                progress.add(count)
    return {"rate": progress.rate, "cpu": progress.cpu_ms}


def measure_job(network: str, photos: str, images: int, workers: int) -> Answer:
    """Detect on workers of one thread each."""
    model = load(network)
    (cfg, weights), progress = (model.files[name]["path"] for name in ("cfg", "weights")), Progress(images, workers)
    with tempfile.TemporaryDirectory() as out:
        gpudarknet.cluster.detect(photos, Path(out, "found"), cfg, weights, workers=workers, shard=SHARD, batch=BATCH,
                                  backend="numpy", report=progress)  # fmt: skip
    return {"rate": progress.rate, "cpu": progress.cpu_ms}


def run_job(
    runtime: Runtime, model: AnyModel, shards: Iterator[Shard], out: str, workers: int = 1, report: Any = None
) -> Summary:
    """Run shards through a driver, into a folder."""
    store = LocalStore(out)
    with store.locked():
        driver = Driver(runtime, model, Parts(store, "jsonl"), Settings(batch=BATCH), workers, report=report)
        driver.run(shards)
    return driver.summary


def measure_deaths(network: str, photos: str, rounds: int) -> Answer:
    """Run jobs on one worker, undisturbed and with one death in mid-shard, alternating: seconds of each, and of a restart."""
    undisturbed, disturbed, restarts, repeated = list[float](), list[float](), list[float](), list[float]()
    with connect() as runtime:
        for disturb in [False, True] * rounds:
            with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as loads:
                model = RecordedModel(load(network), loads)
                kills, reports = list[float](), list[float]()

                def report(
                    summary: Summary,
                    disturb: bool = disturb,
                    model: RecordedModel = model,
                    kills: list[float] = kills,
                    reports: list[float] = reports,
                ) -> None:
                    reports.append(time.perf_counter())
                    if disturb and summary.shards == 2:  # the worker has begun the next
                        time.sleep((reports[1] - reports[0]) / 2)
                        os.kill(model.loads()[-1][1], signal.SIGKILL)
                        kills.append(time.time())

                begin = time.perf_counter()
                summary = run_job(runtime, model, islice(split(photos, SHARD), 4), out, report=report)
                (disturbed if disturb else undisturbed).append(time.perf_counter() - begin)
                if summary.deaths != disturb:
                    raise SystemExit(f"deaths: {summary.deaths} workers died; run the benchmark again")
                if disturb:
                    restarts.append(model.loads()[-1][0] - kills[0])
                    repeated.append((reports[1] - reports[0]) / 2)
    return {
        "undisturbed": median(undisturbed), "disturbed": median(disturbed), "restart": median(restarts),
        "repeated": median(repeated),
    }  # fmt: skip


def names(count: int) -> Iterator[str]:
    """Yield paths of images that need not exist."""
    return (f"/data/images/{number // 1000:06}/{number:012}.jpg" for number in range(count))


def ms_each(call: Any, count: int) -> float:
    """Return the ms of a call, the median of `count`. The argument of a call is its number."""
    times = [time.perf_counter()]
    for number in range(count):
        call(number)
        times.append(time.perf_counter())
    return 1000 * float(np.median(np.diff(times)))


def calls_ms(runtime: Runtime, argument: Shard | None, count: int) -> float:
    """Return the ms of a call of Ray, with `IN_FLIGHT` at a time as in a job."""
    worker = runtime.start(Empty, threads=1)
    pending, times = [worker.run.remote(0, argument) for _ in range(IN_FLIGHT)], list[float]()
    for number in range(count):
        ready, pending = runtime.ray.wait(pending)
        runtime.ray.get(ready)
        times.append(time.perf_counter())
        pending.append(worker.run.remote(number, argument))
    runtime.stop(worker)
    return 1000 * (times[-1] - times[10]) / (count - 11)


def measure_shards(size: int, count: int, workers: int) -> Answer:
    """Run shards with the stub: ms per shard, CPU ms of each kind of process, and what its steps take by themselves."""
    progress = Progress(size * count, 10 * workers)
    with tempfile.TemporaryDirectory() as out, connect() as runtime:
        run_job(runtime, StubModel(), split(names(size * count), size), out, workers, progress)
        listed = split(names(size * 101), size)
        shard = next(listed)
        parts = Parts(LocalStore(out), "jsonl")
        worker = ShardWorker(StubModel(), parts, Settings())
        worker.load()
        rows = worker.rows(shard)
        data = b"".join(json.dumps(row).encode() for row in rows)
        with LocalStore(out).locked():
            steps = {
                "list": ms_each(lambda _: next(listed), 100),
                "hash": ms_each(lambda _: shard.key(()), 100),
                "pickle": ms_each(lambda _: pickle.loads(pickle.dumps(shard)), 100),
                "rows": ms_each(lambda _: worker.rows(shard), 20),
                "file": ms_each(lambda number: parts.write(number, shard, rows), 20),
                "disk": ms_each(lambda number: parts.store.write(f"{number}", data), 20),
                "call": calls_ms(runtime, None, count),
                "call with names": calls_ms(runtime, shard, count),
            }
    return {"ms": 1000 * size / progress.rate, **steps, "cpu": {k: v * size for k, v in progress.cpu_ms.items()}}


def measure_memory(paths: int, size: int, workers: int, out: str) -> Answer:
    """Run a job with the stub: its seconds, and the driver's memory in MB at a fifth, at the end, and at most."""
    samples = list[tuple[float, float]]()
    fifth, shards = -(-paths // size) // 5, -(-paths // size)

    def report(summary: Summary) -> None:
        if summary.shards % max(fifth // 10, 1) == 0 or summary.shards in (fifth, shards):
            samples.append((summary.images / paths, resident()[0]))

    with connect() as runtime:
        begin = time.perf_counter()
        summary = run_job(runtime, StubModel(), split(names(paths), size), out, workers, report)
        seconds = time.perf_counter() - begin
    at_fifth = next(memory for share, memory in samples if share >= 0.2)
    files = [entry.stat() for entry in os.scandir(out)]
    return {
        "seconds": seconds, "fifth": at_fifth, "end": samples[-1][1], "peak": resident()[1], "resumed": summary.resumed,
        "samples": samples, "files": len(files), "mb": sum(s.st_size for s in files) / 1e6,
        "disk": sum(s.st_blocks for s in files) * 512 / 1e6,
    }  # fmt: skip


# The table


def lines_start(network: str, photos: str, rounds: int) -> list[Line]:
    """Return the lines about starting and stopping."""
    times = [measured("start", network=network, photos=photos) for _ in range(rounds)]
    value = {key: median(one[key] for one in times) for key in times[0]}
    texts = {
        "import": "`import ray`", "init": "`ray.init`", "ready": "a worker, until its detector is loaded",
        "first": f"its first result ({BATCH} images)", "shutdown": "`ray.shutdown`",
    }  # fmt: skip
    return [(f"start: {text}", f"{value[key]:.1f} s") for key, text in texts.items()]


def lines_speed(network: str, photos: str, images: int, rounds: int) -> list[Line]:
    """Return the lines about speed."""
    counts = sorted({1, get_num_threads()})
    runs: dict[tuple[str, int], list[Answer]] = {}
    for _ in range(rounds):
        for count in counts:
            plain = measured("plain", count, network=network, photos=photos, images=images, threads=count)
            job = measured("job", network=network, photos=photos, images=images, workers=count)
            runs.setdefault(("plain", count), []).append(plain)
            runs.setdefault(("job", count), []).append(job)

    def rates(kind: str, count: int) -> list[float]:
        return [run["rate"] for run in runs[kind, count]]

    def ratio(a: tuple[str, int], b: tuple[str, int]) -> float:
        return median(x / y for x, y in zip(rates(*a), rates(*b), strict=True))

    def cpu(kind: str, count: int, whose: Sequence[str]) -> float:
        return median(sum(run["cpu"][name] for name in whose) for run in runs[kind, count])

    lines = []
    for count in counts:
        lines += [
            (f"one process, threads: {count}", f"{median(rates('plain', count)):.2f} images/s,"
             f" {cpu('plain', count, ['driver']):.0f} ms of CPU time per image"),
            (f"workers of one thread: {count}", f"{median(rates('job', count)):.2f} images/s,"
             f" {cpu('job', count, ['workers']):.0f} ms of CPU time per image, {cpu('job', count, ['driver', 'ray']):.1f} of the"
             " driver and Ray's processes"),
            (f"efficiency: workers / one process, {count}", f"{ratio(('job', count), ('plain', count)):.2f}"),
        ]  # fmt: skip
        whole = [median(images / run["process"] for run in runs[kind, count]) for kind in ("plain", "job")]
        lines.append((f"the same, with start and end, {images} images", f"{whole[1]:.2f} / {whole[0]:.2f} images/s"))
    most = counts[-1]
    if most > 1:
        for kind, text in (("job", "workers"), ("plain", "one process")):
            own = ratio((kind, most), (kind, 1)) / most
            lines.append((f"rate({most}) / ({most} rate(1)): {text}", f"{own:.2f}"))
    return lines


def lines_shards(sizes: Sequence[int], workers: int) -> list[Line]:
    """Return the lines about the cost of a shard."""
    lines = []
    for size in sizes:
        a = measured("shards", size=size, count=max(50, 50_000 // size), workers=workers)
        lines += [
            (f"a shard of {size}, stub, workers: {workers}", f"{a['ms']:.1f} ms; CPU time: driver {a['cpu']['driver']:.1f},"
             f" workers {a['cpu']['workers']:.1f}, Ray {a['cpu']['ray']:.1f}"),
            ("its steps in the driver", f"list {a['list']:.2f} ms, hash {a['hash']:.2f}, names through pickle {a['pickle']:.2f}"),
            ("its steps in a worker", f"rows {a['rows']:.2f} ms, file {a['file']:.2f} (of it writing with fsync"
             f" {a['disk']:.2f})"),
            ("Ray's call", f"{a['call']:.2f} ms, with the names {a['call with names']:.2f}"),
        ]  # fmt: skip
    return lines


def lines_deaths(network: str, photos: str, rounds: int) -> list[Line]:
    """Return the line about a worker's death."""
    a = measured("deaths", network=network, photos=photos, rounds=rounds)
    lost = a["disturbed"] - a["undisturbed"]
    text = f"{lost:.1f} s: {a['restart']:.1f} until another has loaded, {a['repeated']:.1f} of half a shard of {SHARD} again"
    return [("lost by a worker's death", text)]


def lines_memory(paths: int, sizes: Sequence[int], workers: int) -> list[Line]:
    """Return the lines about jobs of many images."""
    lines = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as out:
            new, again = (measured("memory", paths=paths, size=size, workers=workers, out=out) for _ in range(2))
        head = f"{paths:,} paths, shards of {size}"
        lines += [
            (head, f"{new['seconds']:.1f} s, {paths / new['seconds']:,.0f} images/s; {new['files']:,} files,"
             f" {new['mb']:.1f} MB ({new['disk']:.1f} on the disk)"),
            (f"{head}, all there", f"{again['seconds']:.1f} s, {paths / again['seconds']:,.0f} images/s"),
            (f"{head}: the driver's memory", f"{new['fifth']:.0f} MB at 20 %, {new['end']:.0f} at the end, {new['peak']:.0f} at"
             f" most; all there {again['fifth']:.0f}, {again['end']:.0f}, {again['peak']:.0f}"),
        ]  # fmt: skip
    return lines


def machine_line() -> str:
    """Return this machine and the versions, as a sentence."""
    import ray

    machine = describe()
    return (
        f"{machine['device']}, {machine['threads']} hardware threads, load {os.getloadavg()[0]:.1f} before; Python"
        f" {sys.version.split()[0]}, NumPy {np.__version__}, Ray {ray.__version__}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"of measurements, by default all: {', '.join(KINDS)}")
    parser.add_argument("--network", default="yolov4-tiny")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--paths", type=int, default=100_000)
    parser.add_argument("--size", type=int, nargs="+", default=[256, 4096])
    args = parser.parse_args(argv)
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"{', '.join(unknown)}: choose of {', '.join(KINDS)}")
    text, lines = machine_line(), list[Line]()
    with tempfile.TemporaryDirectory() as photos:
        if set(args.kinds or KINDS) & {"start", "speed", "deaths"}:
            write_photos(Path(photos), args.images)
        values = {
            "network": args.network, "photos": photos, "images": args.images, "rounds": args.rounds, "paths": args.paths,
            "sizes": args.size, "workers": get_num_threads(),
        }  # fmt: skip
        for kind in args.kinds or KINDS:
            function = globals()[f"lines_{kind}"]
            lines += function(**{name: values[name] for name in inspect.signature(function).parameters})
    print(f"{text}\n\n| {args.network}, {args.images} photographs | |\n|---|---|")
    for what, how_much in lines:
        print(f"| {what} | {how_much} |")


if __name__ == "__main__":
    main()
