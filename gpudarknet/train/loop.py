"""The training loop: batches, steps, checkpoints, charts (train_detector in src/detector.c, train_classifier).

Files written to `folder` for base.cfg: base_last.weights every 100 iterations, with base_last.npz to resume bit-exactly;
base_1000.weights and so on; base_best.weights by score; base_ema.weights; base_final.weights; chart_base.csv and, with
matplotlib, chart_base.png. All writes are atomic.
"""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data import DataSet, Loader, input_size
from ..errors import TrainError, TrainWarning
from ..io.atomic import remove_stale_tmp
from ..network import Network
from . import checkpoint
from .history import History
from .step import TrainStep

SAVE_SECONDS = 600.0  # at most this long between checkpoints
DRAW_SECONDS = 20.0  # at least this long between two charts
SCORE_EPOCHS = 4  # epochs between validations, but at least MIN_SCORE_INTERVAL iterations
MIN_SCORE_INTERVAL = 100
MIN_EMA_ITERATIONS = 2000  # the average starts at half of max_batches and ends 1000 iterations before the end


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
    images: int
    width: int
    height: int
    left: float
    scale: float = 1.0  # the loss scale of the next iteration
    skipped: bool = False  # a gradient overflowed, the weights were not updated
    map: float | None = None  # the validation score, if it was due after this iteration
    best: float | None = None


class TrainingRun:
    """One training run from the current iteration on: its options, and the state it keeps between iterations.

    measure(network) returns the score that selects base_best.weights, or None if it measured nothing; metric is its name in
    the chart. extra: the extra arrays of the checkpoint that is resumed. save_last, save_weights: iterations between
    checkpoints and between numbered weights (0: 1000, or 10,000 if max_batches is above 10,000). Raises TrainError.
    """

    def __init__(
        self, trainer: TrainStep, data: DataSet, folder: str | Path, base: str, *,
        measure: Callable[[Network], float | None] | None = None, report: Callable[[Progress], None] = lambda progress: None,
        extra: dict[str, np.ndarray] | None = None, save_last: int = 100, save_weights: int = 0, workers: int = 0,
        metric: str = "mAP",
    ):  # fmt: skip
        net, self.folder, extra = trainer.net, Path(folder), extra or {}
        self.end = net.net.max_batches
        if self.end < 1:
            raise TrainError(
                f"{net.config.path}: [net] max_batches={self.end}; set it to the number of iterations to train"
            )
        if net.net.ema_alpha and self.end < MIN_EMA_ITERATIONS:
            warnings.warn(
                f"{net.config.path}: ema_alpha has no effect if max_batches is below {MIN_EMA_ITERATIONS}: the average runs"
                " from half of the training to 1000 iterations before its end",
                TrainWarning, stacklevel=3,
            )  # fmt: skip
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise TrainError(
                f"{self.folder}: cannot be used as the weights folder ({e.strerror}); change backup in the .data file"
            ) from None
        self.trainer, self.data, self.base, self.measure, self.report = trainer, data, base, measure, report
        self.metric, self.workers, self.save_last = metric, workers, save_last
        self.save_weights = save_weights or (1000 if self.end <= 10000 else 10000)
        self.size = net.width, net.height
        epoch = len(data.paths) / trainer.batch
        self.score_interval = max(MIN_SCORE_INTERVAL, int(SCORE_EPOCHS * epoch))
        self.average, self.best = float(extra.get("average", "nan")), float(extra.get("best", -1.0))
        self.resumable = True  # False while a step is half done, whose state must not be saved
        self.seconds_per_iteration = float("nan")  # a running average
        self.last_saved = self.last_drawn = time.monotonic()
        self.history = History.resume(self.folder / f"chart_{base}.csv", trainer.iteration)
        names = (
            f"{base}_last.weights",
            f"{base}_last.npz",
            f"{base}_best.weights",
            f"chart_{base}.csv",
            f"chart_{base}.png",
        )
        for name in names:
            remove_stale_tmp(self.folder / name)

    def run(self, iterations: int | None = None) -> Progress | None:
        """Train until max_batches, or for a number of iterations; return the last Progress.

        The first Ctrl-C lets the iteration end, saves, and raises KeyboardInterrupt. Raises TrainError, DataError.
        """
        trainer, net = self.trainer, self.trainer.net
        stop = self.end if iterations is None else min(self.end, trainer.iteration + iterations)
        size = input_size(net.net, [node.layer for node in net.nodes], trainer.seed)
        first, last = trainer.iteration, None
        with (
            Loader(self.data, trainer.batch, size, trainer.seed, self.workers) as loader,
            deferred_sigint() as interrupted,
        ):
            try:
                while trainer.iteration < stop and not interrupted():
                    last = self.iterate(loader, size(trainer.iteration), stop)
                    self.report(last)
            finally:
                if trainer.iteration > first and self.resumable:
                    self.checkpoint(final=True)
            if interrupted():
                raise KeyboardInterrupt
        net.resize(*self.size)
        if trainer.iteration >= self.end:
            net.save_weights(self.folder / f"{self.base}_final.weights")
        return last

    def iterate(self, loader: Loader, size: tuple[int, int], stop: int) -> Progress:
        """Run one iteration and everything that is due after it."""
        trainer, net = self.trainer, self.trainer.net
        begin = time.perf_counter()
        x, truth = loader.get(trainer.iteration)
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
        score = self.validate()
        k = trainer.iteration
        self.history.rows.append((k, loss, self.average, trainer.rate, "" if score is None else score))
        self.save(k)
        return Progress(
            k, net.net.max_batches, loss, self.average, trainer.rate, seconds, waited, net.seen, *size,
            left=self.seconds_per_iteration * (stop - k), scale=trainer.loss_scale.value, skipped=trainer.skipped, map=score,
            best=self.best if self.best >= 0 else None,
        )  # fmt: skip

    def validate(self) -> float | None:
        """Compute the validation score if it is due, and save the best weights."""
        k, net = self.trainer.iteration, self.trainer.net
        due = (k % self.score_interval == 0 and k >= net.net.burn_in) or k == net.net.max_batches
        if self.measure is None or not due:
            return None
        net.resize(*self.size)
        score = self.measure(net)
        if score is not None and score > self.best:
            self.best = score
            net.save_weights(self.folder / f"{self.base}_best.weights")
        return score

    def save(self, k: int) -> None:
        """Write the files that are due after iteration k."""
        net, cfg = self.trainer.net, self.trainer.net.net
        if k % self.save_last == 0 or time.monotonic() - self.last_saved > SAVE_SECONDS:
            self.checkpoint()
        if k % self.save_weights == 0:
            net.save_weights(self.folder / f"{self.base}_{k}.weights")
        if cfg.ema_alpha and k == cfg.max_batches - 1000 and self.trainer.ema_weights is not None:
            net.save_weights(self.folder / f"{self.base}_ema.weights")

    def checkpoint(self, final: bool = False) -> None:
        """Write the chart, then the training state, which suffices to resume, then the weights.

        The chart comes first: a resumed run drops its rows after the iteration of the state.
        """
        now = time.monotonic()
        chart = final or now - self.last_drawn > DRAW_SECONDS
        self.history.write(chart, self.metric)
        weights = self.folder / f"{self.base}_last.weights"
        extra = {"average": self.average, "best": self.best}
        checkpoint.write(checkpoint.state_path(weights), self.trainer.state_dict(), extra)
        self.trainer.net.save_weights(weights)
        self.last_saved, self.last_drawn = now, now if chart else self.last_drawn


@contextmanager
def deferred_sigint() -> Iterator[Callable[[], bool]]:
    """Defer the first Ctrl-C, so that the iteration can end; yield a function that returns whether it was pressed."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handler(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt  # the second is not deferred
        received.append(number)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, previous)
