"""`detector train` and `classifier train`: train on labeled images."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from .. import evaluate, image
from ..data import BadSamples, DataSet, warned
from ..data.datafile import DataFile
from ..detector import Detection
from ..errors import DataError
from ..io import resources
from ..layers import DetectionHead
from ..network import load_network
from ..train import Trainer, TrainingFolder, datasets, layer_times
from ..train.step import MAX_SEED
from . import eprint, inputs
from .arguments import FRACTION, NOT_NEGATIVE, Arguments, Command, Flag, UsageError
from .training_display import display


def detector(args: Arguments) -> None:
    """Train a detector."""
    run(args, detects=True)


def classifier(args: Arguments) -> None:
    """Train a classifier."""
    run(args, detects=False)


def run(args: Arguments, detects: bool) -> None:
    """Load data, cfg and weights, resume from a checkpoint if available, and train."""
    file, cfg = inputs.data_file(args.positionals[0]), resources.bundled_cfg(args.positionals[1])
    weights = inputs.weights_file(args.positionals[2]) if "".join(args.positionals[2:]) else None
    args.i = gpu_index(args.gpus, args.i)
    resumes = weights is not None and not args.clear
    net = load_network(cfg, None if resumes else weights, inputs.get_backend(args), seed=args.seed or 0)
    if isinstance(net.nodes[net.heads[-1]].layer, DetectionHead) is not detects:
        kind, other = ("a classifier", "classifier") if detects else ("a detector", "detector")
        raise DataError(f"{cfg}: is {kind}; use `gpudarknet {other} train`")
    with TrainingFolder(file.backup, Path(cfg).stem) as folder:
        trainer = Trainer(net, args.seed, precision="fp16" if args.fp16 else "fp32")
        if weights is not None and resumes:
            trainer.resume(weights)
        with warned(BadSamples(folder.path)) as bad_samples:
            fit(args, file, trainer, folder, bad_samples)
    print(folder.weights("final"))


def gpu_index(gpus: str, i: int) -> int:
    """Return the index of the GPU that -gpus names, else that of -i. Raises UsageError."""
    listed = [word.strip() for word in gpus.split(",") if word.strip()]
    if len(listed) > 1:
        raise UsageError(f"-gpus {gpus}: training uses one GPU; choose it with -gpus {listed[0]}")
    try:
        return int(listed[0]) if listed else i
    except ValueError:
        raise UsageError(f"-gpus needs the index of a GPU, got '{gpus[:40]}'") from None


def fit(args: Arguments, file: DataFile, trainer: Trainer, folder: TrainingFolder, bad_samples: BadSamples) -> None:
    """Load the data, train, and print what happens."""
    net, begin, end = trainer.net, trainer.iteration, trainer.net.net.max_batches
    detects = isinstance(net.nodes[net.heads[-1]].layer, DetectionHead)
    names = file.read_names() if detects and (args.map or args.show_imgs) else ()
    score = metric = evaluate.score_name(file, net, args.iou_thresh if detects else 0.5)
    options = {}
    if detects:
        metric = f"mAP@{args.iou_thresh:.2f}" + (f", {args.points} points" if args.points else "")
        options = {"iou_thresh": args.iou_thresh, "points": args.points, "conf_thresh": args.thresh}
    data = datasets.training_set(file, net, bad_samples)
    with display(begin, end, score, names) as shown:
        measure = None
        if args.map if detects else args.topk:
            measure = evaluate.validation_score(
                file, net, bad_samples, done=shown.validating, report=shown.measured, **options
            )
        iterations = f"iterations {begin + 1} to {end}" if begin < end else f"iteration {begin} of {end}"
        print(f"{folder.base}: {len(data.paths)} images, batch {trainer.batch}, {iterations}")
        warn_about_position(args, begin, end, folder.weights("last"))
        if args.benchmark_layers:
            benchmark_layers(data, trainer)
        if args.show_imgs:
            show(data, trainer, names, folder.path)
        try:
            trainer.fit(
                data, folder, measure=measure, report=shown.iteration, workers=args.workers, metric=metric,
                save_last=file.savelast, save_weights=file.saveweights, score_epochs=args.mAP_epochs, chart=args.chart,
            )  # fmt: skip
            shown.summary()
        except (KeyboardInterrupt, SystemExit, BrokenPipeError) as e:
            if folder.weights("last").is_file():
                text = f"stopped after iteration {trainer.iteration} of {end}; resume from {folder.weights('last')}"
                if isinstance(e, BrokenPipeError):
                    eprint("note", f"standard output was closed; {text}")
                else:
                    shown.summary()
                    print(text)
            raise


def warn_about_position(args: Arguments, begin: int, end: int, last: Path) -> None:
    """Warn if there is nothing left to train, or if a checkpoint will be overwritten."""
    if begin >= end > 0:
        message = f"{args.positionals[2]}: is at iteration {begin} of {end}, training is complete; -clear restarts at 0"
        eprint("warning", message)
    if begin == 0 and not args.clear and last.is_file():
        eprint("warning", f"{last}: will be overwritten; to resume from it, add it after the cfg")


def benchmark_layers(data: DataSet, trainer: Trainer) -> None:
    """Print the times of the layers in a step on the next batch, of a copy of the network."""
    net = trainer.net
    samples = [data.sample(trainer.seed, trainer.iteration, n, (net.width, net.height)) for n in range(trainer.batch)]
    x, truth = (np.stack(arrays) for arrays in zip(*samples, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the trainer of the training has said the same
        precision: Literal["fp16", "fp32"] = "fp16" if trainer.dtype == np.float16 else "fp32"
        copied = Trainer(copy.deepcopy(net), trainer.seed, clear=False, precision=precision)
    for line in layer_times.step_times(copied, x, truth).table(net.nodes, len(x)):
        print(line)


def show(data: DataSet, trainer: Trainer, names: Sequence[str], folder: Path) -> None:
    """Write the augmented images of the next iteration, with their boxes, to aug_0.jpg and so on in a folder."""
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
        image.write(folder / f"aug_{number}.jpg", image.draw(img, boxes, names))
    print(f"{folder / 'aug_0.jpg'} to aug_{trainer.batch - 1}.jpg: the batch of the next iteration")


FLAGS = (
    Flag("clear", bool, False, "Start at iteration 0 with these weights, for example to fine-tune"),
    Flag(
        "seed",
        int,
        None,
        "Random seed; the same seed gives the same training. Default: 0 or, resuming, the checkpoint's",
        limits=(0, MAX_SEED),
    ),
    Flag(
        "workers",
        int,
        0,
        "Processes that prepare images (threads if not on Linux); 0 means one per core",
        limits=NOT_NEGATIVE,
    ),
    Flag("fp16", bool, False, "Mixed precision on a GPU: activations and deltas in float16, weights in float32"),
    Flag(
        "show_imgs",
        bool,
        False,
        "Also write the first augmented batch, with its boxes, as aug_0.jpg and so on",
    ),
    Flag(
        "benchmark_layers",
        bool,
        False,
        "First print the times of a step's layers, slowest first",
    ),
    inputs.BACKEND,
    inputs.GPU,
    Flag("gpus", str, "", "The same as -i; training uses one GPU"),
    Flag(
        "chart",
        str,
        None,
        "Write the chart to this file instead of chart_x.png in the backup folder, and its .csv next to it",
    ),
)
MORE = (
    "Weights are written to the .data file's backup folder as x_last, x_1000, x_best, x_ema and x_final, with chart_x.csv and"
    " chart_x.png. To resume an interrupted run, pass x_last.weights: with the x_last.npz next to it, resuming is bit-exact."
    " Ctrl-C, SIGTERM and SIGHUP write a checkpoint. Unreadable images and labels are skipped and listed there in bad.list and"
    " bad_label.list"
)
COMMANDS = (
    Command(
        "detector train", ("x.data", "x.cfg", "[x.weights]"), "Train a detector", detector,
        (
            Flag("map", bool, False, "Measure mAP on the images of `valid` during training, and keep the best weights"),
            Flag("iou_thresh", float, 0.5, "-map: a box is correct if its IoU with an object is greater", limits=FRACTION),
            Flag("points", int, 0, "-map: recall points: 0 for the area under the curve, 11 or 101"),
            Flag("thresh", float, 0.25, "-map: count true and false positives above this confidence", limits=FRACTION),
            Flag("mAP_epochs", int, 4, "-map: epochs between validations, which are at least 100 iterations apart"),
            *FLAGS,
        ),
        MORE,
    ),
    Command(
        "classifier train", ("x.data", "x.cfg", "[x.weights]"), "Train a classifier", classifier,
        (
            Flag("topk", bool, False, "Measure accuracy on the images of `valid` during training, and keep the best weights"),
            Flag("mAP_epochs", int, 2, "-topk: epochs between validations, which are at least 100 iterations apart"),
            *FLAGS,
        ),
        MORE,
    ),
)  # fmt: skip
