"""`detector train` and `classifier train`: learn from labelled images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..io import resources
from . import inputs, tell
from .arguments import Command, Flag
from .inputs import tell_faults

if TYPE_CHECKING:
    from ..data import DataSet
    from ..train import Trainer
    from ..train.loop import Progress


def detector(args: Any) -> None:
    """Train a detector."""
    run(args, detects=True)


def classifier(args: Any) -> None:
    """Train a classifier."""
    run(args, detects=False)


def run(args: Any, detects: bool) -> None:
    """Read data, cfg and weights, go on from a checkpoint where there is one, and train."""
    from ..data import Faults
    from ..layers import DetectionHead
    from ..network import load_network
    from ..train import Trainer, loop

    file, cfg = inputs.data_file(args.words[0]), resources.bundled_cfg(args.words[1])
    weights = inputs.weights_file(args.words[2]) if len(args.words) > 2 else None
    args.i = args.gpus or args.i
    net = load_network(cfg, weights, inputs.get_backend(args), seed=args.seed)
    if isinstance(net.nodes[net.heads[-1]].layer, DetectionHead) is not detects:
        kind, other = ("a classifier", "classifier") if detects else ("a detector", "detector")
        raise DataError(f"{cfg}: is {kind}; use `gpudarknet {other} train`")
    trainer = Trainer(
        net, args.seed, clear=args.clear, emulate_darknet_cpu_bugs=False, precision="fp16" if args.fp16 else "fp32"
    )
    extra = {} if args.clear or weights is None else loop.resume(trainer, weights)
    faults = Faults(Path())
    data = loop.dataset(file, net, faults)
    measure, said = None, f"mean average precision (mAP@{args.iou_thresh:.2f})" if detects else "top-1 accuracy"
    if detects and args.map:
        measure = loop.validation(file, args.iou_thresh, args.points)
    elif not detects and args.topk:
        measure = loop.validation(file)
    begin, end = trainer.iteration, net.net.max_batches
    print(f"{Path(cfg).stem}: {len(data.paths)} images, batch {trainer.batch}, iterations {begin + 1} to {end}")
    if begin >= end > 0:
        tell(
            "warning", f"{weights}: is at iteration {begin} of {end}, nothing is left to do; -clear begins at 0 with it"
        )
    last = Path(file.backup, f"{Path(cfg).stem}_last.weights")
    if begin == 0 and not args.clear and last.is_file():
        tell("warning", f"{last}: will be overwritten; to go on from it, give it after the cfg")
    if args.show_imgs:
        show(data, trainer, file.read_names() if detects else ())
    try:
        with reporter(begin, end, said) as report:
            trainer.fit(
                data, file.backup, Path(cfg).stem, measure=measure, report=report, extra=extra, workers=args.workers,
                save_last=file.savelast or 100, save_weights=file.saveweights, score="mAP" if detects else "accuracy",
            )  # fmt: skip
    except KeyboardInterrupt:
        if trainer.iteration > begin:
            print(f"stopped after iteration {trainer.iteration} of {end}; {last} goes on from there")
        raise
    tell_faults(faults)
    print(f"{file.backup}: {Path(cfg).stem}_final.weights")


def show(data: DataSet, trainer: Trainer, names: Sequence[str]) -> None:
    """Write the images of the next iteration as they will be trained on, with their boxes, to aug_0.jpg and so on."""
    import numpy as np

    from .. import image
    from ..detector import Detection

    W, H = trainer.net.width, trainer.net.height
    for number in range(trainer.batch):
        x, truth = data.sample(trainer.seed, trainer.iteration, number, (W, H))
        marks = []
        for cx, cy, w, h, k, *_ in truth.reshape(-1, 6).tolist() if names else ():
            if w:
                box = round((cx - w / 2) * W), round((cy - h / 2) * H), round(w * W), round(h * H)
                marks.append(Detection(names[int(k)], int(k), 1.0, box, (cx, cy, w, h)))
        picture = np.rint(x.transpose(1, 2, 0) * 255).astype(np.uint8)
        picture = picture.repeat(3, axis=2) if picture.shape[2] == 1 else picture
        image.write(f"aug_{number}.jpg", image.draw(picture, marks, names))
    print(f"aug_0.jpg to aug_{trainer.batch - 1}.jpg: what the next iteration sees")


@contextmanager
def reporter(begin: int, end: int, score: str) -> Iterator[Callable[[Progress], None]]:
    """Give what shows the progress: one live line where a person looks on, else Darknet's line for each iteration."""
    if not sys.stderr.isatty():
        yield lambda p: print(line(p, score), flush=True)
        return
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    fixed = Column(no_wrap=True)  # on a narrow screen it is the bar that shrinks
    columns = (
        progress.MofNCompleteColumn(table_column=fixed), progress.TimeRemainingColumn(table_column=fixed),
        progress.TextColumn("{task.description}", table_column=fixed), progress.BarColumn(bar_width=None),
    )  # fmt: skip
    with progress.Progress(*columns, console=Console(stderr=True, highlight=False), expand=True) as bar:
        task = bar.add_task("", total=end, completed=begin)

        def show(p: Progress) -> None:
            speed = p.images / p.iteration / p.seconds
            said = f"loss {p.loss:.4g} avg {p.average:.4g} rate {p.rate:.3g} {speed:.4g} images/s"
            bar.update(task, completed=p.iteration, description=said + (f" best {p.best:.1%}" if p.best else ""))
            for more in remarks(p, score):
                bar.console.print(more)

        yield show


def line(p: Progress, score: str) -> str:
    """Write an iteration as Darknet does; score: what was measured."""
    said = (
        f" {p.iteration}: {p.loss:f}, {p.average:f} avg loss, {p.rate:f} rate, {p.seconds:f} seconds, {p.images} images,"
        f" {p.left / 3600:f} hours left"
    )
    return "\n".join([said, *remarks(p, score)])


def remarks(p: Progress, score: str) -> Iterator[str]:
    """Yield what else there is to say of an iteration: a skipped step, what was measured."""
    if p.skipped:
        yield f" {p.iteration}: a gradient was too large for float16; the step is skipped, loss scale {p.scale:g}"
    if p.map is not None:
        yield f" {p.iteration}: {score} = {p.map:f}, best = {p.best:f}"


FLAGS = (
    Flag("clear", bool, False, "Begin at iteration 0 with these weights, as when fine-tuning"),
    Flag("seed", int, 0, "Where chance begins; the same seed gives the same training"),
    Flag("workers", int, 0, "Threads that prepare images; 0 means one for each core"),
    Flag("fp16", bool, False, "Keep maps and deltas as float16, for a GPU; weights stay float32"),
    Flag("show_imgs", bool, False, "Also write the first batch, as augmented, with its boxes to aug_0.jpg and so on"),
    inputs.BACKEND,
    inputs.GPU,
    Flag("gpus", int, 0, "The same as -i; training uses one GPU"),
    Flag("mjpeg_port", int, 0, "Accepted; there is no server, the chart is a file"),
    Flag("dont_show", bool, False, "Accepted; no window is opened"),
)
MORE = (
    "Weights go to the .data file's backup folder as x_last, x_1000, x_best, x_ema and x_final, with chart_x.csv and"
    " chart_x.png. To go on after an interruption give x_last.weights: x_last.npz beside it continues to the last bit."
    " Images and labels that cannot be read are listed in bad.list and bad_label.list and passed over"
)
COMMANDS = (
    Command(
        "detector train", ("x.data", "x.cfg", "[x.weights]"), "Train a detector", detector,
        (
            Flag("map", bool, False, "Measure mAP on the images of `valid` on the way, and keep the best weights"),
            Flag("iou_thresh", float, 0.5, "-map: a box is right if it overlaps its object by more than this"),
            Flag("points", int, 0, "-map: recall points: 0 for the area under the curve, 11 or 101"),
            *FLAGS,
        ),
        MORE,
    ),
    Command(
        "classifier train", ("x.data", "x.cfg", "[x.weights]"), "Train a classifier", classifier,
        (
            Flag("topk", bool, False, "Measure accuracy on the images of `valid` on the way, and keep the best weights"),
            *FLAGS,
        ),
        MORE,
    ),
)  # fmt: skip
