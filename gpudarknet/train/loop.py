"""The training loop: batches, steps, checkpoints, charts (train_detector in src/detector.c, train_classifier).

Files written to `folder` for base.cfg: base_last.weights every 100 iterations, with base_last.npz to resume bit-exactly;
base_1000.weights and so on; base_best.weights by score; base_ema.weights; base_final.weights; chart_base.csv and, with
matplotlib, chart_base.png. All writes are atomic.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data import DataSet, Loader, input_size
from ..errors import DarknetError, TrainWarning
from ..network import Network
from . import checkpoint, lr_schedule
from .batches import Batches
from .folder import TrainingFolder
from .history import History, writable
from .signals import StopSignals
from .step import TrainStep

SAVE_SECONDS = 600.0  # at most this long between checkpoints
DRAW_SECONDS = 20.0  # at least this long between two charts
MIN_SCORE_INTERVAL = 100  # iterations between validations
MIN_EMA_ITERATIONS = 2000  # the average starts at half of max_batches and ends 1000 iterations before the end


@dataclass(frozen=True)
class Throughput:
    """What the iterations of a run took until now, without validations and checkpoints. waited: seconds, for data."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, images: int, seconds: float, waited: float) -> Throughput:
        """Return it with another iteration."""
        return Throughput(self.images + images, self.seconds + seconds, self.waited + waited)


@dataclass(frozen=True)
class Progress:
    """The state of training after an iteration: loss per image and its running average; times in seconds."""

    iteration: int
    iterations: int
    loss: float
    average: float
    rate: float
    seconds: float
    waited: float  # part of `seconds` spent waiting for data
    images: int  # since iteration 0
    batch: int
    width: int
    height: int
    left: float
    scale: float = 1.0  # the loss scale of the next iteration
    skipped: bool = False  # a gradient overflowed, the weights were not updated
    map: float | None = None  # the validation score, if it was due after this iteration
    best: float | None = None
    waiting: float = 0.0  # share of the time spent waiting for data, a running average that leaves out the first batch
    run: Throughput = Throughput()


class TrainingRun:
    """One training run from the current iteration on: its options, and the state it keeps between iterations.

    measure(network) returns the score that selects base_best.weights, or None if it measured nothing; metric is its name in
    the chart. As in Darknet, it runs score_epochs epochs after the last one, but at least 100 iterations after it, not before
    burn_in, and at the end. save_last, save_weights: iterations between checkpoints (0: 100) and between numbered weights (0:
    1000, or 10,000 if max_batches is above 10,000). workers, processes: as for `data.Loader`. chart: an image to write
    instead of chart_base.png, with its CSV file next to it. Raises TrainError.
    """

    def __init__(
        self, trainer: TrainStep, data: DataSet, folder: TrainingFolder, *,
        measure: Callable[[Network], float | None] | None = None, report: Callable[[Progress], None] = lambda progress: None,
        save_last: int = 0, save_weights: int = 0, workers: int = 0, processes: bool | None = None,
        metric: str = "mAP", score_epochs: int = 4, chart: str | Path | None = None,
    ):  # fmt: skip
        net, extra = trainer.net, trainer.extra
        self.end = lr_schedule.length(net.config)
        for doubt in lr_schedule.doubts(net.config):
            warnings.warn(doubt, TrainWarning, stacklevel=3)
        if net.net.ema_alpha and self.end < MIN_EMA_ITERATIONS:
            warnings.warn(
                f"{net.config.path}: ema_alpha has no effect if max_batches is below {MIN_EMA_ITERATIONS}: the average runs"
                " from half of the training to 1000 iterations before its end",
                TrainWarning, stacklevel=3,
            )  # fmt: skip
        self.trainer, self.data, self.folder, self.measure, self.report = trainer, data, folder, measure, report
        self.metric, self.save_last = metric, save_last or 100
        self.workers, self.processes = workers, processes
        self.save_weights = save_weights or (1000 if self.end <= 10000 else 10000)
        self.size = net.width, net.height
        epoch = len(data.paths) / trainer.batch
        self.score_interval = max(MIN_SCORE_INTERVAL, int(score_epochs * epoch))
        self.history = History(writable(chart) if chart else folder.chart, self.end, metric, net.net.max_chart_loss)
        self.history.read(trainer.iteration)
        if not self.history.drawable:
            warnings.warn(
                f"{self.history.chart}: is not drawn, because matplotlib is not installed; {self.history.path.name} has the"
                ' curve; pip install "gpudarknet[train]" adds the chart',
                TrainWarning, stacklevel=3,
            )  # fmt: skip
        self.average = float(extra.get("average", self.history.average(trainer.iteration)))
        self.best = float(extra.get("best", self.history.best)) if folder.weights("best").is_file() else -math.inf
        self.validated = int(extra.get("validated", trainer.iteration))  # the iteration of the last validation
        measured = str(extra.get("metric", metric))
        if measured != metric and measure is not None:
            warnings.warn(
                f"{folder.state}: has the best {measured}, the run measures {metric}; its best starts anew",
                TrainWarning, stacklevel=3,
            )  # fmt: skip
            self.best, self.validated = -math.inf, trainer.iteration
        self.resumable = True  # False while a step is half done, whose state must not be saved
        self.seconds_per_iteration = float("nan")  # a running average
        self.waited_per_iteration = 0.0  # the part of it spent waiting for data
        self.throughput = Throughput()
        self.last_saved = self.last_drawn = time.monotonic()

    def run(self, iterations: int | None = None) -> Progress | None:
        """Train until max_batches, or for a number of iterations; return the last Progress.

        The first Ctrl-C, SIGTERM or SIGHUP lets the iteration end, abandons a validation, saves, and raises KeyboardInterrupt
        or SystemExit. An abandoned validation is the first thing that a resumed run does. Raises TrainError, DataError.
        """
        trainer, net = self.trainer, self.trainer.net
        stop = self.end if iterations is None else min(self.end, trainer.iteration + iterations)
        size = input_size(net.net, [node.layer for node in net.nodes], trainer.seed)
        first, last, missed = trainer.iteration, None, self.is_due(trainer.iteration)
        error: BaseException | None = None
        self.signals = StopSignals()
        loader = Loader(self.data, trainer.batch, size, trainer.seed, self.workers, processes=self.processes)
        with (
            Batches(loader, net) as batches,
            self.signals.deferred(),
        ):
            try:
                if missed:
                    self.history.set_score(first, self.validate())
                while trainer.iteration < stop and self.signals.received is None:
                    last = self.iterate(batches, size(trainer.iteration), stop)
                    self.report(last)
            except BaseException as e:
                error = e
                raise
            finally:
                net.resize(*self.size)
                if (trainer.iteration > first or missed) and self.resumable:
                    with suppress(DarknetError) if isinstance(error, DarknetError) else nullcontext():
                        self.checkpoint(final=True)  # a full disk is reported by the first file that does not fit
        if trainer.iteration >= self.end:
            net.save_weights(self.folder.weights("final"))
        return last

    def iterate(self, batches: Batches, size: tuple[int, int], stop: int) -> Progress:
        """Run one iteration and everything that is due after it."""
        trainer, net = self.trainer, self.trainer.net
        begin = time.perf_counter()
        with batches.get(trainer.iteration) as (x, truth):
            waited = time.perf_counter() - begin
            if size != (net.width, net.height):
                net.resize(*size)
            self.resumable = False
            loss = trainer.step(x, truth) / len(x)
            self.resumable = True
        seconds = time.perf_counter() - begin
        mean = self.seconds_per_iteration
        self.average = loss if np.isnan(self.average) else 0.9 * self.average + 0.1 * loss
        self.seconds_per_iteration = seconds if np.isnan(mean) else 0.95 * mean + 0.05 * seconds
        self.waited_per_iteration = 0.0 if np.isnan(mean) else 0.95 * self.waited_per_iteration + 0.05 * waited
        self.throughput = self.throughput.add(len(x), seconds, waited)
        score = self.validate()
        k = trainer.iteration
        self.history.rows.append((k, loss, self.average, trainer.rate, "" if score is None else score))
        self.save(k)
        return Progress(
            k, net.net.max_batches, loss, self.average, trainer.rate, seconds, waited, net.seen, len(x), *size,
            left=self.seconds_per_iteration * (stop - k), scale=trainer.loss_scale.value, skipped=trainer.skipped, map=score,
            best=self.best if math.isfinite(self.best) else None,
            waiting=self.waited_per_iteration / self.seconds_per_iteration, run=self.throughput,
        )  # fmt: skip

    def is_due(self, k: int) -> bool:
        """Return whether a validation is due after iteration k (train_detector in src/detector.c)."""
        if self.measure is None or k <= self.validated:
            return False
        return k == self.end or k >= max(self.validated + self.score_interval, self.trainer.net.net.burn_in)

    def validate(self) -> float | None:
        """Compute the validation score if it is due, and save the best weights."""
        k, net, measure = self.trainer.iteration, self.trainer.net, self.measure
        if measure is None or not self.is_due(k):
            return None
        net.resize(*self.size)
        score = self.signals.abandonable(lambda: measure(net))
        if score is not None and score >= self.best:
            net.save_weights(self.folder.weights("best"))
            self.best = score
        if score is not None or self.signals.received is None:
            self.validated = k
        return score

    def save(self, k: int) -> None:
        """Write the files that are due after iteration k, the checkpoint last: a resumed run does not repeat the iteration."""
        net, cfg = self.trainer.net, self.trainer.net.net
        if k % self.save_weights == 0:
            net.save_weights(self.folder.weights(k))
        if cfg.ema_alpha and k == cfg.max_batches - 1000 and self.trainer.ema_weights is not None:
            net.save_weights(self.folder.weights("ema"))
        if k % self.save_last == 0 or time.monotonic() - self.last_saved > SAVE_SECONDS:
            self.checkpoint()

    def checkpoint(self, final: bool = False) -> None:
        """Write the curve, then a checkpoint: a resumed run drops rows after its iteration; at times also the chart."""
        now = time.monotonic()
        chart = final or now - self.last_drawn > DRAW_SECONDS
        self.history.write()
        trainer, weights = self.trainer, self.folder.weights("last")
        trainer.extra = {"average": self.average, "best": self.best}
        if self.measure is not None:
            trainer.extra |= {"validated": self.validated, "metric": self.metric}
        checkpoint.save(weights, trainer.state_dict(), trainer.extra, trainer.net.save_weights)
        self.last_saved = now
        if chart:
            self.history.draw()
            self.last_drawn = now
