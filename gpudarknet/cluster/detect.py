"""`detect`: the driver of a job, which hands shards to workers, and hands them out again when a worker dies."""

from __future__ import annotations

import hashlib
import logging
import math
import operator
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import DarknetError, DataError, ImageError
from ..image_sources import existing_path, is_download
from ..io.http import ALLOW_PRIVATE_URLS
from .job import SUCCESS, Model, Summary, read_json, write_manifest, write_success
from .parts import Counts, Parts
from .rows import FORMS, Options, Row, error_row
from .runtime import LOGS, Runtime, WorkerDiedError, connect, cores, import_ray
from .shards import Shard, split
from .store import Store, open_store
from .worker import AnyModel, Settings, ShardWorker

IN_FLIGHT = 2  # calls of a worker: the next is there when one is done
PATIENCE = 30.0  # seconds without a worker until that is reported, and between looks for machines that have joined
MAX_NAMED = 10  # images that kill workers, without a result in between, until the cause must be another
GPU_BACKENDS = ("auto", "cupy", "fastest")
log = logging.getLogger("gpudarknet")
Report = Callable[[Summary], object]


def detect(
    source: Any,
    out: str | os.PathLike[str],
    cfg: str | Path,
    weights: str | Path | None,
    names: str | Path | Sequence[str] | None = None,
    *,
    form: str = "jsonl",
    thresh: float = 0.25,
    nms: float = 0.45,
    max_det: int | None = 300,
    tiles: bool = False,
    letterbox: bool = False,
    precision: str = "fp32",
    backend: str = "auto",
    recursive: bool = False,
    shard: int = 256,
    batch: int = 8,
    workers: int | None = None,
    gpus_per_worker: float = 1,
    threads: int = 1,
    retries: int = 3,
    on_error: str = "record",
    address: str | None = None,
    report: Report | None = None,
) -> Summary:
    """Detect objects in any number of images, on workers of Ray; write a row per image into files in the folder `out`.

    Run again after an interruption, it resumes: what has a file is not computed again, with any number of workers. Each image has
    one row, whatever dies meanwhile. An image that kills its worker `retries` times has a row that says so.

    source: as in `gpudarknet.sources`, tar archives, Parquet files: see `shards.split`. form: "jsonl", "parquet" or "labels"
    (JSON lines, and label files in the folder `labels`). thresh, nms, max_det, letterbox, precision, backend: as in
    `Detector`, on each worker; tiles: see `tiles.detect_boxes`. recursive: also search subfolders. shard: images per file;
    batch: per forward pass. workers: by default one for each `gpus_per_worker` GPUs or, without GPUs, as many as use all
    cores with `threads` each, and more when machines join a cluster; a number waits for machines. retries: deaths of workers
    in a shard, or in an image alone, until it is given up. on_error: "record" writes a row for an unreadable image, "raise"
    ends the job. address: of Ray: "local" starts it on this machine, "auto" is the cluster that this machine belongs to,
    HOST:PORT another one's head; None is what this process is connected to, else "local". report: called with the Summary so
    far after each shard. Raises DataError if `out` is another job's or another process writes there, BackendError if Ray
    cannot be used, and errors of `Detector`.
    """
    import_ray()
    shard, batch, threads, retries = (
        checked_count(name, value)
        for name, value in (("shard", shard), ("batch", batch), ("threads", threads), ("retries", retries))
    )
    workers = None if workers is None else checked_count("workers", workers)
    if not (hasattr(gpus_per_worker, "__float__") and 0 <= gpus_per_worker < math.inf):
        raise DataError(f"gpus_per_worker {gpus_per_worker}: must be a number of GPUs, as 1 or 0.5")
    if form not in FORMS:
        raise DataError(f"form {form!r}: choose one of {', '.join(FORMS)}")
    FORMS[form].check()
    if on_error not in ("record", "raise"):
        raise DataError(f"on_error {on_error!r}: choose record or raise")
    options = Options(thresh, nms, max_det, tiles, letterbox, precision).check()
    model = Model.load(cfg, weights, names, options, backend)
    manifest = {
        "gpudarknet": __version__, "source": described(source), "recursive": bool(recursive), **model.files,
        "options": options._asdict(), "form": form, "shard": shard,
    }  # fmt: skip
    shards = split(source, shard, recursive=recursive, labels=form == "labels")
    store = open_store(out)
    with store.locked():
        write_manifest(store, manifest)
        begin = time.perf_counter()
        if (success := read_json(store, SUCCESS)) is not None:
            return check_complete(store, success, shards)
        offered = (workers or 0) * threads
        memory = 2 * sum(a.nbytes for own in model.network.weights for a in own.values() if hasattr(a, "nbytes"))
        with connect(address, cpus=offered, memory=memory) as runtime:
            has_gpus = runtime.gpus > 0 or (runtime.may_grow and backend == "cupy")
            gpus = float(gpus_per_worker) if backend in GPU_BACKENDS and has_gpus else 0
            if workers is None or not runtime.may_grow:
                runtime.check_room(threads, gpus)
            settings = Settings(threads, batch, on_error == "raise", os.environ.get(ALLOW_PRIVATE_URLS) == "1")
            driver = Driver(runtime, model, Parts(store, form), settings, workers, gpus, retries, report)
            digest = driver.run(shards)
        summary = replace(driver.summary, seconds=time.perf_counter() - begin)
        write_success(store, summary, digest)
        return summary


def checked_count(name: str, value: Any) -> int:
    """Return an option as Python's own integer. Raises DataError if it is not an integer of at least 1."""
    count = operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool | np.bool_) else 0
    if not 1 <= count <= sys.maxsize:
        raise DataError(f"{name} {value!r}: must be an integer of at least 1")
    return count


def described(source: Any) -> Any:
    """Return a source as the manifest has it: `photos/`, which a shell completes, is `photos`."""
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return name if not name or is_download(name) else str(existing_path(name))
    if isinstance(source, list | tuple) and len(source) <= 100:
        return [described(one) for one in source]
    return "an iterable"


def check_complete(store: Store, success: dict[str, Any], shards: Iterator[Shard]) -> Summary:
    """Return the summary of a complete job. Raises DataError if the source has changed since."""
    digest, count = hashlib.sha256(), 0
    for shard in shards:
        digest.update(shard.key(()).encode())
        count += 1
    try:
        counts = {key: int(success[key]) for key in ("images", "objects", "errors", "shards")}
        is_same = digest.hexdigest() == success["sha256"]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{store.name}/{SUCCESS}: was changed; remove this file, and run the job again") from None
    if not is_same:
        raise DataError(
            f"{store.name}: is complete, but the source has changed since ({success['shards']} shards then, {count} now);"
            " choose another folder, or list only the new images"
        )
    return Summary(**counts, resumed=count, out=store.name)


@dataclass
class Task:
    """A call of a method of `ShardWorker`: "run" for a whole shard, "names" of its images, "rows" of some of them.

    start, stop: of "rows", which images. deaths: workers that died in it. repeated: it was handed out before, so that its
    file may be of this run.
    """

    method: str
    number: int
    shard: Shard
    start: int = 0
    stop: int = 0
    deaths: int = 0
    repeated: bool = False

    def call(self, worker: Any) -> Any:
        """Start it on a worker; return Ray's reference to the result."""
        if self.method == "run":
            return worker.run.remote(self.number, self.shard)
        if self.method == "names":
            return worker.names.remote(self.shard)
        return worker.rows.remote(self.shard, self.start, self.stop)


@dataclass
class Pieces:
    """A shard that kills workers and is computed in pieces. names: of its images; rows: of each piece, by first image."""

    names: list[str]
    rows: dict[int, list[Row]] = field(default_factory=dict)

    def joined(self) -> list[Row] | None:
        """Return the rows of all images, in order; None if some are missing."""
        rows = [row for start in sorted(self.rows) for row in self.rows[start]]
        return rows if len(rows) == len(self.names) else None


class Driver:
    """Hands tasks to workers until all shards have their files.

    workers: how many; None: as many as fit, and more when machines join.

    A dead worker is replaced, and its tasks are handed out again. A shard in which `retries` workers died is cut in halves, and
    so are these, until the image that kills workers is alone; after `retries` deaths of its own, it gets a row with an error.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: AnyModel,
        parts: Parts,
        settings: Settings,
        workers: int | None,
        gpus: float = 0,
        retries: int = 3,
        report: Report | None = None,
    ):
        self.runtime, self.parts, self.settings = runtime, parts, settings
        self.workers, self.gpus, self.retries, self.report = workers, gpus, retries, report
        self.count = workers or runtime.room(settings.threads, gpus)  # of workers that should run
        self.model = runtime.ray.put(model)
        self.summary = Summary(out=parts.store.name)
        self.tasks: Iterator[Task] = iter(())
        self.queue = deque[Task]()  # the next tasks, those that are handed out again first
        self.pieces = dict[int, Pieces]()  # by the number of the shard
        self.starting = dict[Any, Any]()  # workers that load, by Ray's reference to that call
        self.calls = dict[Any, deque[tuple[Any, Task]]]()  # of each loaded worker, in order
        self.failed_starts = self.named = 0  # in a row: workers that died while they loaded, images that killed workers
        self.begin = self.counted = time.perf_counter()  # counted: when machines were last looked at
        self.is_patient = True

    def run(self, shards: Iterator[Shard]) -> str:
        """Run all shards; return the hash of them as listed. Raises DataError if the folder has more of them."""
        digest = hashlib.sha256()

        def listed() -> Iterator[Task]:
            for number, shard in enumerate(shards):
                digest.update(shard.key(()).encode())
                yield Task("run", number, shard)

        self.tasks = listed()
        try:
            while self.hand_out():
                self.wait()
        finally:
            for worker in (*self.calls, *self.starting.values()):
                self.runtime.stop(worker)
        self.check_end()
        return digest.hexdigest()

    def check_end(self) -> None:
        """Raise DataError if an earlier run wrote shards after the last one: the source had more images."""
        end = self.summary.shards
        for name in map(self.parts.name, range(end, end + IN_FLIGHT * self.count)):  # they are not written in order
            if self.parts.store.read(name) is not None:
                raise DataError(
                    f"{self.parts.store.name}/{name}: its images are not in the source now; choose another folder, or"
                    " remove this file and those after it"
                )

    def hand_out(self) -> bool:
        """Give tasks to loaded workers, those without any first, and start workers for others; return whether any is left."""
        for depth in range(IN_FLIGHT):
            for worker, calls in self.calls.items():
                if len(calls) <= depth and self.has_queued(1):
                    task = self.queue.popleft()
                    calls.append((task.call(worker), task))
        if self.workers is None and time.perf_counter() - self.counted > PATIENCE:
            self.counted = time.perf_counter()
            self.count = max(self.count, self.runtime.room(self.settings.threads, self.gpus))
        while len(self.calls) + len(self.starting) < self.count and self.has_queued(len(self.starting) + 1):
            arguments = self.model, self.parts, self.settings
            worker = self.runtime.start(ShardWorker, *arguments, threads=self.settings.threads, gpus=self.gpus)
            self.starting[worker.load.remote()] = worker
        return bool(self.queue) or any(self.calls.values())

    def has_queued(self, count: int) -> bool:
        """Return whether so many tasks are queued, after listing further shards."""
        self.queue.extend(islice(self.tasks, max(0, count - len(self.queue))))
        return len(self.queue) >= count

    def wait(self) -> None:
        """Wait for calls to end, and take their results."""
        self.parts.store.check()
        ray = self.runtime.ray
        running = {calls[0][0]: worker for worker, calls in self.calls.items() if calls}
        ready, others = ray.wait([*self.starting, *running], num_returns=1, timeout=PATIENCE)
        if others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        if not ready and not self.calls and self.is_patient:
            self.is_patient = False
            log.warning(
                "no worker has started for %g s: no machine has its %s, or others use them (`ray status`); waiting",
                PATIENCE, cores(self.settings.threads, self.gpus),
            )  # fmt: skip
        for reference in ready:
            if reference in self.starting:
                self.take_worker(reference)
            else:
                self.take_result(running[reference])

    def take_worker(self, reference: Any) -> None:
        """Take a worker that has loaded its detector. Raises DarknetError if none does, and its errors."""
        worker = self.starting.pop(reference)
        try:
            version = self.runtime.result(reference)
        except WorkerDiedError as e:
            self.bury(worker)
            self.failed_starts += 1
            if self.failed_starts >= self.count + self.retries - 1:
                raise DarknetError(
                    f"workers: {self.failed_starts} died while they loaded the detector, and none has loaded it ({e}); see Ray's"
                    f" logs in {LOGS}"
                ) from None
            log.warning("a worker died while it loaded the detector (%s); another one is started", e)
            return
        self.calls[worker] = deque()
        self.failed_starts = 0
        if version != __version__:
            raise DataError(
                f"workers: have gpudarknet {version}, this process has {__version__}; install the same on all machines"
            )

    def take_result(self, worker: Any) -> None:
        """Take the result of a worker's first call; if the worker is dead, hand out its tasks again."""
        reference, task = self.calls[worker][0]
        try:
            result = self.runtime.result(reference)
        except WorkerDiedError as e:
            for _, other in reversed(self.calls.pop(worker)):
                other.repeated = True
                if other is not task:
                    self.queue.appendleft(other)
            self.bury(worker)
            log.warning("a worker died while it processed shard %d (%s); another one is started", task.number, e)
            self.retry(task)
            return
        self.calls[worker].popleft()
        if task.method == "names":
            self.pieces[task.number] = Pieces(result)
            self.cut(replace(task, stop=len(result)))
            return
        self.named = 0
        if task.method == "rows":
            self.take_rows(task, result)
        else:
            self.count_shard(result._replace(resumed=result.resumed and not task.repeated))

    def bury(self, worker: Any) -> None:
        """Count a death."""
        self.runtime.stop(worker)  # if it can only not be reached
        self.summary = replace(self.summary, deaths=self.summary.deaths + 1)

    def retry(self, task: Task) -> None:
        """Hand a task out again in which a worker died, in pieces if it killed too many."""
        task.deaths += 1
        is_piece = task.method == "rows" and task.stop - task.start > 1
        if task.deaths < self.retries and not is_piece:
            self.queue.appendleft(task)
        elif task.method == "run":
            self.queue.appendleft(Task("names", task.number, task.shard))
        elif task.method == "names":
            self.pieces[task.number] = Pieces([str(task.shard)])
            self.give_up(task)
        else:
            self.cut(task)

    def cut(self, task: Task) -> None:
        """Cut images in halves; one alone is given up."""
        start, stop = task.start, task.stop
        if stop - start == 1:
            self.give_up(task)
            return
        middle = (start + stop) // 2
        for a, b in ((middle, stop), (start, middle)):
            self.queue.appendleft(Task("rows", task.number, task.shard, a, b))

    def give_up(self, task: Task) -> None:
        """Give an image that kills workers a row that says so. Raises ImageError if errors are not recorded, or after many."""
        name = self.pieces[task.number].names[task.start]
        died = "1 worker died while it" if self.retries == 1 else f"{self.retries} workers died while they"
        error = f"{name}: {died} processed it; check the image, and Ray's logs in {LOGS}"
        self.named += 1
        if self.settings.strict:
            raise ImageError(error)
        if self.named > MAX_NAMED:
            raise ImageError(f"{error}; {MAX_NAMED} others before it, and none was processed in between")
        log.warning("%s", error)
        self.take_rows(task, [error_row(name, error)])

    def take_rows(self, task: Task, rows: list[Row]) -> None:
        """Take the rows of a piece; write the shard's file if it was the last."""
        pieces = self.pieces[task.number]
        pieces.rows[task.start] = rows
        if (joined := pieces.joined()) is not None:
            del self.pieces[task.number]
            self.parts.write(task.number, task.shard, joined)
            self.count_shard(Counts.of(joined))

    def count_shard(self, counts: Counts) -> None:
        """Add a shard to the summary, and report it."""
        s = self.summary
        self.summary = replace(
            s, images=s.images + counts.images, objects=s.objects + counts.objects, errors=s.errors + counts.errors,
            shards=s.shards + 1, resumed=s.resumed + counts.resumed, seconds=time.perf_counter() - self.begin,
        )  # fmt: skip
        if self.report:
            self.report(self.summary)
