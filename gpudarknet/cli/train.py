"""`detector train` and `classifier train`: train on labeled images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .. import image
from ..data import BadSamples, DataSet
from ..detector import Detection
from ..errors import DataError
from ..io import resources
from ..layers import DetectionHead
from ..network import load_network
from ..train import Trainer, datasets
from ..train.loop import Progress
from . import eprint, inputs
from .arguments import Arguments, Command, Flag
from .inputs import warn_bad_samples


def detector(args: Arguments) -> None:
    """Train a detector."""
    run(args, detects=True)


def classifier(args: Arguments) -> None:
    """Train a classifier."""
    run(args, detects=False)


def run(args: Arguments, detects: bool) -> None:
    """Load data, cfg and weights, resume from a checkpoint if available, and train."""
    file, cfg = inputs.data_file(args.positionals[0]), resources.bundled_cfg(args.positionals[1])
    weights = inputs.weights_file(args.positionals[2]) if len(args.positionals) > 2 else None
    args.i = args.gpus or args.i
    net = load_network(cfg, weights, inputs.get_backend(args), seed=args.seed)
    if isinstance(net.nodes[net.heads[-1]].layer, DetectionHead) is not detects:
        kind, other = ("a classifier", "classifier") if detects else ("a detector", "detector")
        raise DataError(f"{cfg}: is {kind}; use `gpudarknet {other} train`")
    trainer = Trainer(net, args.seed, clear=args.clear, precision="fp16" if args.fp16 else "fp32")
    extra = {} if args.clear or weights is None else trainer.resume(weights)
    bad_samples = BadSamples(Path())
    data = datasets.training_set(file, net, bad_samples)
    measure, metric = None, datasets.score_name(file, net, args.iou_thresh if detects else 0.0)
    if detects and args.map:
        measure = datasets.validation_score(file, net, bad_samples, iou_thresh=args.iou_thresh, points=args.points)
    elif not detects and args.topk:
        measure = datasets.validation_score(file, net, bad_samples)
    begin, end = trainer.iteration, net.net.max_batches
    print(f"{Path(cfg).stem}: {len(data.paths)} images, batch {trainer.batch}, iterations {begin + 1} to {end}")
    if begin >= end > 0:
        eprint(
            "warning",
            f"{weights}: is at iteration {begin} of {end}, training is complete; -clear restarts at 0",
        )
    last = Path(file.backup, f"{Path(cfg).stem}_last.weights")
    if begin == 0 and not args.clear and last.is_file():
        eprint("warning", f"{last}: will be overwritten; to resume from it, add it after the cfg")
    if args.show_imgs:
        show(data, trainer, file.read_names() if detects else ())
    try:
        with reporter(begin, end, metric) as report:
            trainer.fit(
                data, file.backup, Path(cfg).stem, measure=measure, report=report, extra=extra, workers=args.workers,
                save_last=file.savelast or 100, save_weights=file.saveweights, metric="mAP" if detects else "accuracy",
            )  # fmt: skip
    except KeyboardInterrupt:
        if trainer.iteration > begin:
            print(f"stopped after iteration {trainer.iteration} of {end}; resume from {last}")
        raise
    warn_bad_samples(bad_samples)
    print(f"{file.backup}: {Path(cfg).stem}_final.weights")


def show(data: DataSet, trainer: Trainer, names: Sequence[str]) -> None:
    """Write the augmented images of the next iteration, with their boxes, to aug_0.jpg and so on."""
    W, H = trainer.net.width, trainer.net.height
    head = trainer.net.nodes[trainer.net.heads[-1]].layer
    for number in range(trainer.batch):
        x, truth = data.sample(trainer.seed, trainer.iteration, number, (W, H))
        boxes = []
        for cx, cy, w, h, k in head.truth_boxes(truth).tolist() if isinstance(head, DetectionHead) else ():
            box = round((cx - w / 2) * W), round((cy - h / 2) * H), round(w * W), round(h * H)
            boxes.append(Detection(names[int(k)], int(k), 1.0, box, (cx, cy, w, h)))
        img = np.rint(x.transpose(1, 2, 0) * 255).astype(np.uint8)
        img = img.repeat(3, axis=2) if img.shape[2] == 1 else img
        image.write(f"aug_{number}.jpg", image.draw(img, boxes, names))
    print(f"aug_0.jpg to aug_{trainer.batch - 1}.jpg: the batch of the next iteration")


@contextmanager
def reporter(begin: int, end: int, score: str) -> Iterator[Callable[[Progress], None]]:
    """Yield a progress callback: a live progress bar on a terminal, else Darknet's line for each iteration."""
    if not sys.stderr.isatty():
        yield lambda p: print(line(p, score), flush=True)
        return
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    fixed = Column(no_wrap=True)  # on a narrow terminal, the bar shrinks
    columns = (
        progress.MofNCompleteColumn(table_column=fixed), progress.TimeRemainingColumn(table_column=fixed),
        progress.TextColumn("{task.description}", table_column=fixed), progress.BarColumn(bar_width=None),
    )  # fmt: skip
    with progress.Progress(*columns, console=Console(stderr=True, highlight=False), expand=True) as bar:
        task = bar.add_task("", total=end, completed=begin)

        def show(p: Progress) -> None:
            speed = p.images / p.iteration / p.seconds
            text = f"loss {p.loss:.4g} avg {p.average:.4g} rate {p.rate:.3g} {speed:.4g} images/s"
            bar.update(task, completed=p.iteration, description=text + (f" best {p.best:.1%}" if p.best else ""))
            for remark in remarks(p, score):
                bar.console.print(remark)

        yield show


def line(p: Progress, score: str) -> str:
    """Format an iteration as Darknet does; score: name of the metric."""
    text = (
        f" {p.iteration}: {p.loss:f}, {p.average:f} avg loss, {p.rate:f} rate, {p.seconds:f} seconds, {p.images} images,"
        f" {p.left / 3600:f} hours left"
    )
    return "\n".join([text, *remarks(p, score)])


def remarks(p: Progress, score: str) -> Iterator[str]:
    """Yield remarks on an iteration: a skipped step, a measured score."""
    if p.skipped:
        yield f" {p.iteration}: a gradient overflowed float16; step skipped, loss scale {p.scale:g}"
    if p.map is not None:
        yield f" {p.iteration}: {score} = {p.map:f}, best = {p.best:f}"


FLAGS = (
    Flag("clear", bool, False, "Start at iteration 0 with these weights, for example to fine-tune"),
    Flag("seed", int, 0, "Random seed; the same seed gives the same training"),
    Flag("workers", int, 0, "Threads that prepare images; 0 means one per core"),
    Flag("fp16", bool, False, "Mixed precision on a GPU: activations and deltas in float16, weights in float32"),
    Flag("show_imgs", bool, False, "Also write the first augmented batch, with its boxes, to aug_0.jpg and so on"),
    inputs.BACKEND,
    inputs.GPU,
    Flag("gpus", int, 0, "The same as -i; training uses one GPU"),
    Flag("mjpeg_port", int, 0, "Accepted; there is no server, the chart is written to a file"),
    Flag("dont_show", bool, False, "Accepted; no window is opened"),
)
MORE = (
    "Weights are written to the .data file's backup folder as x_last, x_1000, x_best, x_ema and x_final, with chart_x.csv and"
    " chart_x.png. To resume an interrupted run, pass x_last.weights: with the x_last.npz next to it, resuming is bit-exact."
    " Unreadable images and labels are skipped and listed in bad.list and bad_label.list"
)
COMMANDS = (
    Command(
        "detector train", ("x.data", "x.cfg", "[x.weights]"), "Train a detector", detector,
        (
            Flag("map", bool, False, "Measure mAP on the images of `valid` during training, and keep the best weights"),
            Flag("iou_thresh", float, 0.5, "-map: a box is correct if its IoU with an object is greater than this"),
            Flag("points", int, 0, "-map: recall points: 0 for the area under the curve, 11 or 101"),
            *FLAGS,
        ),
        MORE,
    ),
    Command(
        "classifier train", ("x.data", "x.cfg", "[x.weights]"), "Train a classifier", classifier,
        (
            Flag("topk", bool, False, "Measure accuracy on the images of `valid` during training, and keep the best weights"),
            *FLAGS,
        ),
        MORE,
    ),
)  # fmt: skip
