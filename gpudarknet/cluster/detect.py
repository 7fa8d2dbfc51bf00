"""`detect`: the driver of a job, which hands shards to workers, and hands them out again when a worker dies."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DarknetError, DataError
from .job import SUCCESS, Model, Summary, read_json, write_manifest, write_success
from .parts import Counts, Parts
from .rows import FORMS, Options, Row, error_row
from .runtime import LOGS, Runtime, connect, import_ray
from .shards import Shard, split
from .store import Store, open_store
from .worker import AnyModel, Settings, ShardWorker

IN_FLIGHT = 2  # calls of a worker: the next is there when one is done
PATIENCE = 30.0  # seconds without a worker until that is reported
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

    source: as in `gpudarknet.sources`. form: "jsonl", "parquet" or "labels" (label files beside JSON lines). thresh, nms,
    max_det, letterbox, precision, backend: as in `Detector`, on each worker; tiles: see `tiles.detect_boxes`. recursive: also
    search subfolders. shard: images per file; batch: per forward pass. workers: by default one for each `gpus_per_worker`
    GPUs or, without GPUs, as many as use all cores with `threads` each. on_error: "record" writes a row for an unreadable
    image, "raise" ends the job. address: see `runtime.connect`. report: called with the Summary so far after each shard.
    Raises DataError if `out` is another job's or another process writes there, BackendError if Ray cannot be used, and
    errors of `Detector`.
    """
    import_ray()
    for name, value in (("shard", shard), ("batch", batch), ("threads", threads), ("retries", retries)):
        check_count(name, value)
    if workers is not None:
        check_count("workers", workers)
    if form not in FORMS:
        raise DataError(f"form {form!r}: choose one of {', '.join(FORMS)}")
    FORMS[form].check()
    if on_error not in ("record", "raise"):
        raise DataError(f"on_error {on_error!r}: choose record or raise")
    options = Options(thresh, nms, max_det, tiles, letterbox, precision)
    model = Model.load(cfg, weights, names, options, backend)
    manifest = {
        "gpudarknet": __version__, "source": described(source), "recursive": recursive, **model.files,
        "options": options._asdict(), "form": form, "shard": shard,
    }  # fmt: skip
    store = open_store(out)
    with store.locked():
        write_manifest(store, manifest)
        shards = split(source, shard, recursive=recursive)
        begin = time.perf_counter()
        if (success := read_json(store, SUCCESS)) is not None:
            return check_complete(store, success, shards)
        offered = (workers or 0) * threads
        memory = 2 * sum(a.nbytes for own in model.network.weights for a in own.values() if hasattr(a, "nbytes"))
        with connect(address, cpus=offered, memory=memory) as runtime:
            gpus = gpus_per_worker if backend in ("auto", "cupy") and runtime.gpus else 0
            runtime.check_fits(threads, gpus)
            count = workers or max(1, int(runtime.gpus / gpus if gpus else runtime.cpus / threads))
            settings = Settings(threads, batch, on_error == "raise")
            driver = Driver(runtime, model, Parts(store, form), settings, count, gpus, retries, report)
            digest = driver.run(shards)
        summary = replace(driver.summary, seconds=time.perf_counter() - begin)
        write_success(store, summary, digest)
        return summary


def check_count(name: str, value: object) -> None:
    """Raise DataError if an option is not an integer of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise DataError(f"{name} {value}: must be an integer of at least 1")


def described(source: Any) -> Any:
    """Return a source as the manifest has it."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return (
        [os.fspath(one) for one in source] if isinstance(source, list | tuple) and len(source) <= 100 else "an iterable"
    )


def check_complete(store: Store, success: dict[str, Any], shards: Iterator[Shard]) -> Summary:
    """Return the summary of a complete job. Raises DataError if the source has changed since."""
    digest, count = hashlib.sha256(), 0
    for shard in shards:
        digest.update(shard.key(()).encode())
        count += 1
    if digest.hexdigest() != success["sha256"]:
        raise DataError(
            f"{store.name}: is complete, but the source has changed since ({success['shards']} shards then, {count} now);"
            " choose another folder, or list only the new images"
        )
    counts = {key: success[key] for key in ("images", "objects", "errors", "shards")}
    return Summary(**counts, resumed=count, out=store.name)


@dataclass
class Task:
    """Images start to stop - 1 of a shard (None: all of it), and how often they killed their worker."""

    number: int
    shard: Shard
    start: int = 0
    stop: int | None = None
    deaths: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it is all of a shard, whose file the worker writes."""
        return self.stop is None


@dataclass
class Pieces:
    """The rows of a shard that kills workers and is computed piece by piece: by first image; missing: images without a row."""

    missing: int
    rows: dict[int, list[Row]] = field(default_factory=dict)


class Driver:
    """Hands tasks to `count` workers until all shards have their files.

    A dead worker is replaced. Its tasks are handed out again; the one that it was computing counts a death. A shard with
    `retries` deaths is cut in halves, and so are these, until the image is alone that kills its worker.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: AnyModel,
        parts: Parts,
        settings: Settings,
        count: int,
        gpus: float = 0,
        retries: int = 3,
        report: Report | None = None,
    ):
        self.runtime, self.parts, self.settings = runtime, parts, settings
        self.count, self.gpus, self.retries, self.report = count, gpus, retries, report
        self.model = runtime.ray.put(model)
        self.summary = Summary(out=parts.store.name)
        self.again = deque[Task]()  # to be handed out before further shards
        self.pieces = dict[int, Pieces]()  # by the number of the shard
        self.calls = dict[
            Any, deque[tuple[Any, Task | None]]
        ]()  # of each worker, in order; a task is None in its first call
        self.deaths_in_a_row = 0
        self.begin = time.perf_counter()

    def run(self, shards: Iterator[Shard]) -> str:
        """Run all shards; return the hash of them as listed."""
        digest = hashlib.sha256()

        def listed() -> Iterator[Task]:
            for number, shard in enumerate(shards):
                digest.update(shard.key(()).encode())
                yield Task(number, shard)

        tasks = listed()
        try:
            while self.hand_out(tasks):
                self.wait()
        finally:
            for worker in self.calls:
                self.runtime.stop(worker)
        return digest.hexdigest()

    def hand_out(self, tasks: Iterator[Task]) -> bool:
        """Give each worker its next calls, those that have the fewest first; return whether any call is in flight."""
        for _ in range(IN_FLIGHT):
            for worker in [*self.calls, *[None] * (self.count - len(self.calls))]:
                if worker is not None and len(self.calls[worker]) >= IN_FLIGHT:
                    continue
                task = self.again.popleft() if self.again else next(tasks, None)
                if task is None:
                    return any(self.calls.values())
                worker = worker or self.start_worker()
                self.calls[worker].append((self.call(worker, task), task))
        return True

    def start_worker(self) -> Any:
        """Start a worker; its first call returns when its detector is loaded."""
        arguments = self.model, self.parts, self.settings
        worker = self.runtime.start(ShardWorker, *arguments, threads=self.settings.threads, gpus=self.gpus)
        self.calls[worker] = deque([(worker.ready.remote(), None)])
        return worker

    def call(self, worker: Any, task: Task) -> Any:
        """Start a task on a worker; return Ray's reference to the result."""
        if task.is_whole:
            return worker.run.remote(task.number, task.shard)
        return worker.rows.remote(task.shard, task.start, task.stop)

    def wait(self) -> None:
        """Wait for calls to end, and take their results."""
        references = {reference: worker for worker, calls in self.calls.items() for reference, _ in calls}
        ready, _ = self.runtime.ray.wait(list(references), num_returns=1, timeout=PATIENCE)
        for worker in dict.fromkeys(references[reference] for reference in ready):
            self.collect(worker)

    def collect(self, worker: Any) -> None:
        """Take the results of a worker's calls that have ended, in order."""
        calls = self.calls[worker]
        while calls and self.runtime.ray.wait([calls[0][0]], timeout=0)[0]:
            reference, task = calls[0]
            try:
                result = self.runtime.ray.get(reference)
            except Exception as e:
                if self.runtime.is_death(e):
                    self.bury(worker, e)
                    return
                raise self.runtime.cause(e) from None
            calls.popleft()
            self.deaths_in_a_row = 0
            if task is not None:
                self.finish(task, result)
            elif result != __version__:
                raise DataError(
                    f"workers: have gpudarknet {result}, this process has {__version__}; install the same on all machines"
                )

    def finish(self, task: Task, result: Any) -> None:
        """Take a task's result: counts of a whole shard, or rows of a piece."""
        if task.is_whole:
            self.count_shard(result)
            return
        pieces = self.pieces[task.number]
        pieces.rows[task.start] = result
        pieces.missing -= (task.stop or 0) - task.start
        if not pieces.missing:
            del self.pieces[task.number]
            rows = [row for start in sorted(pieces.rows) for row in pieces.rows[start]]
            self.parts.write(task.number, task.shard, rows)
            self.count_shard(Counts.of(rows))

    def count_shard(self, counts: Counts) -> None:
        """Add a shard to the summary, and report it."""
        s = self.summary
        self.summary = replace(
            s, images=s.images + counts.images, objects=s.objects + counts.objects, errors=s.errors + counts.errors,
            shards=s.shards + 1, resumed=s.resumed + counts.resumed, seconds=time.perf_counter() - self.begin,
        )  # fmt: skip
        if self.report:
            self.report(self.summary)

    def bury(self, worker: Any, error: Exception) -> None:
        """Hand out a dead worker's tasks again. Raises DarknetError if workers die whatever they do."""
        (_, suspect), *others = self.calls.pop(worker)
        self.summary = replace(self.summary, deaths=self.summary.deaths + 1)
        self.deaths_in_a_row += 1
        reason = str(error).strip().split("\n")[0]
        if self.deaths_in_a_row > 3 * self.retries * self.count:
            raise DarknetError(
                f"workers: {self.deaths_in_a_row} died, one after the other, and none returned a result ({reason}); see Ray's"
                f" logs in {LOGS}"
            )
        self.again.extendleft(task for _, task in reversed(others) if task)
        if suspect is None:
            log.warning("a worker died while it loaded the detector; another one is started")
            return
        suspect.deaths += 1
        log.warning("a worker died while it processed shard %d; it is done again", suspect.number)
        if suspect.deaths < self.retries and (suspect.is_whole or suspect.stop == suspect.start + 1):
            self.again.appendleft(suspect)
        else:
            self.cut(suspect)

    def cut(self, task: Task) -> None:
        """Cut a task that kills workers in halves; an image alone gets a row with an error."""
        if task.is_whole:
            size = sum(1 for _ in task.shard.items())
            self.pieces[task.number] = Pieces(missing=size)
            task = replace(task, stop=size)
        start, stop = task.start, task.stop or 0
        if stop - start == 1:
            item = next(islice(task.shard.items(), start, stop))
            self.finish(
                task,
                [
                    error_row(
                        item, f"{item}: killed the worker that processed it, {self.retries} times; check the image"
                    )
                ],
            )
            return
        middle = (start + stop) // 2
        for a, b in ((middle, stop), (start, middle)):
            self.again.appendleft(Task(task.number, task.shard, a, b))
