"""The whole training: batches, steps, checkpoints, charts (train_detector in src/detector.c, train_classifier).

Files in `folder`, for a cfg called base.cfg: base_last.weights every 100 iterations with base_last.npz, from which training
goes on bit for bit; base_1000.weights and so on; base_best.weights by mAP; base_ema.weights; base_final.weights;
chart_base.csv and, with matplotlib, chart_base.png. Each appears whole or not at all.
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
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import evaluate
from ..data import DataSet, Faults, Loader, Sequences, classifier_boxes, detection_boxes, input_size, read_list
from ..data.augment import ClassifierAugment, DetectionAugment
from ..data.datafile import DataFile, label_path
from ..detector import Detector
from ..errors import DataError, TrainError, TrainWarning
from ..evaluate.classification import accuracy
from ..io.atomic import remove_stale_tmp
from ..layers import DetectionHead
from ..network import Network
from . import checkpoint
from .history import History

if TYPE_CHECKING:
    from . import Trainer

SAVE_SECONDS = 600.0  # a checkpoint at least so often
DRAW_SECONDS = 20.0  # a picture of the chart at most so often
MAP_EPOCHS = 4  # epochs between two mAPs, and at least MAP_LEAST iterations
MAP_LEAST = 100
EMA_LEAST = 2000  # iterations; the average runs from their half to 1000 before their end


@dataclass(frozen=True)
class Progress:
    """Where training stands after an iteration: loss per image and its running average; times in seconds."""

    iteration: int
    iterations: int
    loss: float
    average: float
    rate: float
    seconds: float
    waited: float  # of the seconds, for data
    images: int
    width: int
    height: int
    left: float
    scale: float = 1.0  # the loss scale of the next iteration
    skipped: bool = False  # a gradient overflowed, the weights stayed
    map: float | None = None  # measured after this iteration
    best: float | None = None


def dataset(data: DataFile, net: Network, faults: Faults | None = None) -> DataSet:
    """Make a network's training data from a .data file: boxes for a detector, classes by path for a classifier."""
    paths = read_list(data.find("train"))
    heads = [net.nodes[index].layer for index in net.heads]
    last = heads[-1]
    faults = faults or Faults()
    if isinstance(last, DetectionHead):
        if not any(label_path(path).is_file() for path in paths):
            raise DataError(
                f"{data.path}: none of its {len(paths)} images of `train` has a label file; {paths[0]} needs"
                f" {label_path(paths[0])}"
            )
        if (
            data.names or data.labels
        ) and last.num_labels == last.classes:  # with a map, names may be those of either side
            data.check_names(last.classes, net.config.path)
        cfg, sequences = net.net, None
        if cfg.track:
            sequences = Sequences(cfg.time_steps, cfg.batch // cfg.subdivisions, cfg.augment_speed)
        boxes = detection_boxes(last.classes, (net.width, net.height), bool(cfg.track))
        return DataSet(paths, DetectionAugment.of(cfg, last), boxes, net.channels, faults, sequences)
    labels = data.read_labels()
    classes = int(np.prod(net.nodes[net.heads[-1]].shape))
    if len(labels) != classes:
        raise DataError(f"{data.path}: has {len(labels)} labels, but {net.config.path} tells {classes} classes apart")
    sorts = ClassifierAugment.of(net.net, classes, getattr(last, "tree", None))
    return DataSet(paths, sorts, classifier_boxes(labels), net.channels, faults)


def validation(data: DataFile, iou_thresh: float = 0.5, points: int = 0) -> Callable[[Network], float]:
    """Give the function that measures, on the images of `valid` of a .data file, mAP, or a classifier's top-1 accuracy."""
    paths, names, words = read_list(data.find("valid")), data.read_names(), data.read_labels()

    def measure(net: Network) -> float:
        if not isinstance(net.nodes[net.heads[-1]].layer, DetectionHead):
            return accuracy(net, paths, classifier_boxes(words)).first
        judged = evaluate.judge(Detector(net, names=names), paths)
        return evaluate.mean_average_precision(judged, len(names), iou_thresh, points).mean

    return measure


def state_path(weights: Path) -> Path:
    """Return the sidecar of a checkpoint's weights."""
    return weights.with_suffix(".npz")


def resume(trainer: Trainer, weights: str | Path) -> dict[str, np.ndarray]:
    """Take the state that stands beside a checkpoint's weights; return its extra, {} where there is none.

    A sidecar holds the weights too, so one that is newer than the weights file, from a run that was stopped between the two,
    is good; one that is older belongs to other weights and is left, with a TrainWarning.
    """
    path, seen = state_path(Path(weights)), trainer.net.seen
    if not path.is_file():
        if trainer.iteration:
            warnings.warn(f"{path}: is not there, so momentum begins at 0", TrainWarning, stacklevel=2)
        return {}
    if int(checkpoint.read(path).get("seen", 0)) < seen:
        warnings.warn(
            f"{path}: is older than {weights} and is not used; momentum begins at 0", TrainWarning, stacklevel=2
        )
        return {}
    return trainer.load(path)


def fit(
    trainer: Trainer, data: DataSet, folder: str | Path, base: str, *,
    measure: Callable[[Network], float] | None = None, report: Callable[[Progress], None] = lambda progress: None,
    extra: dict[str, np.ndarray] | None = None, save_last: int = 100, save_weights: int = 0, workers: int = 0,
    iterations: int | None = None, score: str = "mAP",
) -> Progress | None:  # fmt: skip
    """Train until max_batches, or for so many iterations more; write the files that the head of this module names.

    measure(network) gives the mAP that chooses base_best.weights; extra is what `resume` returned; save_weights says how often
    a numbered file is kept (0: every 1000 iterations, 10,000 in a training of more than 10,000); score is what the chart
    calls what `measure` gives. Ctrl-C ends the iteration, saves it and raises KeyboardInterrupt. Returns the last Progress.
    Raises TrainError, DataError.
    """
    net, folder = trainer.net, Path(folder)
    end = net.net.max_batches
    if end < 1:
        raise TrainError(f"{net.config.path}: [net] max_batches={end} says how many iterations to train; set it")
    if net.net.ema_alpha and end < EMA_LEAST:
        warnings.warn(
            f"{net.config.path}: ema_alpha has no effect below max_batches={EMA_LEAST}: the average is made from half of the"
            " training on, until 1000 iterations before its end",
            TrainWarning, stacklevel=3,
        )  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise TrainError(
            f"{folder}: is no folder for weights ({e.strerror}); change backup in the .data file"
        ) from None
    run = Fit(
        trainer, data, folder, base, measure, save_last, save_weights or (1000 if end <= 10000 else 10000), score
    )  # fmt: skip
    run.take(extra or {})
    stop = end if iterations is None else min(end, trainer.iteration + iterations)
    size = input_size(net.net, [node.layer for node in net.nodes], trainer.seed)
    trainer.faults = None
    first, last = trainer.iteration, None
    with Loader(data, trainer.batch, size, trainer.seed, workers) as loader, patience() as interrupted:
        try:
            while trainer.iteration < stop and not interrupted():
                last = run.step(loader, size(trainer.iteration), stop)
                report(last)
        finally:
            if trainer.iteration > first and run.whole:
                run.checkpoint(final=True)
        if interrupted():
            raise KeyboardInterrupt
    net.resize(*run.size)
    if trainer.iteration >= end:
        net.save_weights(folder / f"{base}_final.weights")
    return last


@contextmanager
def patience() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C, so that an iteration ends before training does; give what says whether it came."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt  # the second does not wait
        came.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)


class Fit:
    """One call of `fit`: what it needs from one iteration to the next."""

    def __init__(
        self, trainer: Trainer, data: DataSet, folder: Path, base: str, measure: Callable[[Network], float] | None,
        save_last: int, save_weights: int, score_name: str,
    ):  # fmt: skip
        self.score_name = score_name
        self.trainer, self.folder, self.base, self.measure = trainer, folder, base, measure
        self.save_last, self.save_weights = save_last, save_weights
        self.size = trainer.net.width, trainer.net.height
        epoch = len(data.paths) / trainer.batch
        self.map_every = max(MAP_LEAST, int(MAP_EPOCHS * epoch))
        self.average, self.best = float("nan"), -1.0
        self.whole = True  # the trainer stands between two iterations; a half one is no checkpoint
        self.pace = float("nan")  # seconds per iteration, a running average
        self.saved = self.drawn = time.monotonic()
        self.history = History.upto(folder / f"chart_{base}.csv", trainer.iteration)
        for name in (
            f"{base}_last.weights",
            f"{base}_last.npz",
            f"{base}_best.weights",
            f"chart_{base}.csv",
            f"chart_{base}.png",
        ):
            remove_stale_tmp(folder / name)

    def take(self, extra: dict[str, np.ndarray]) -> None:
        """Take over what a checkpoint says beside the trainer's state."""
        self.average, self.best = float(extra.get("average", self.average)), float(extra.get("best", self.best))

    def step(self, loader: Loader, size: tuple[int, int], stop: int) -> Progress:
        """Take one iteration, with everything that is due after it."""
        trainer, net = self.trainer, self.trainer.net
        begin = time.perf_counter()
        x, truth = loader.get(trainer.iteration)
        waited = time.perf_counter() - begin
        if size != (net.width, net.height):
            net.resize(*size)
        self.whole = False
        loss = trainer.step(x, truth) / len(x)
        self.whole = True
        seconds = time.perf_counter() - begin
        self.average = loss if np.isnan(self.average) else 0.9 * self.average + 0.1 * loss
        self.pace = seconds if np.isnan(self.pace) else 0.95 * self.pace + 0.05 * seconds
        score = self.score()
        k = trainer.iteration
        self.history.rows.append((k, loss, self.average, trainer.rate, "" if score is None else score))
        self.save(k)
        return Progress(
            k, net.net.max_batches, loss, self.average, trainer.rate, seconds, waited, net.seen, *size,
            left=self.pace * (stop - k), scale=trainer.scale.value, skipped=trainer.skipped, map=score,
            best=self.best if self.best >= 0 else None,
        )  # fmt: skip

    def score(self) -> float | None:
        """Measure mAP if it is due, and keep the best weights."""
        k, net = self.trainer.iteration, self.trainer.net
        due = (k % self.map_every == 0 and k >= net.net.burn_in) or k == net.net.max_batches
        if self.measure is None or not due:
            return None
        net.resize(*self.size)
        score = self.measure(net)
        if score > self.best:
            self.best = score
            net.save_weights(self.folder / f"{self.base}_best.weights")
        return score

    def save(self, k: int) -> None:
        """Write the files that are due after iteration k."""
        net, cfg = self.trainer.net, self.trainer.net.net
        if k % self.save_last == 0 or time.monotonic() - self.saved > SAVE_SECONDS:
            self.checkpoint()
        if k % self.save_weights == 0:
            net.save_weights(self.folder / f"{self.base}_{k}.weights")
        if cfg.ema_alpha and k == cfg.max_batches - 1000 and self.trainer.average is not None:
            net.save_weights(self.folder / f"{self.base}_ema.weights")

    def checkpoint(self, final: bool = False) -> None:
        """Write the chart, then the sidecar, which is enough to go on, then the weights.

        The chart is first: a run that goes on drops the rows of iterations that its sidecar does not know.
        """
        now = time.monotonic()
        picture = final or now - self.drawn > DRAW_SECONDS
        self.history.write(picture, self.score_name)
        weights = self.folder / f"{self.base}_last.weights"
        self.trainer.save(state_path(weights), {"average": self.average, "best": self.best})
        self.trainer.net.save_weights(weights)
        self.saved, self.drawn = now, now if picture else self.drawn
