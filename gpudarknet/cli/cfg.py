"""`cfg`: adapt a cfg to another data set."""

from __future__ import annotations

import re

from ..adapt import AdaptedCfg, adapt_cfg
from ..data import read_list
from ..errors import DataError
from ..io.text import read_text
from ..layers import DetectionHead
from . import inputs
from .arguments import Arguments, Command, Flag, UsageError
from .outputs import STDOUT, writable, write

WIDEST = 40  # characters of a value in the table


def cfg(args: Arguments) -> None:
    """Write an adapted cfg; print its changed lines and the commands that train it."""
    (source,) = args.positionals
    changes = {
        name: getattr(args, name) for name in ("width", "height", "batch", "subdivisions", "max_batches", "freeze")
    }
    classes, images = args.classes, 0
    if args.data:
        data = inputs.data_file(args.data)
        classes = data.classes if classes is None else classes
        data.check_names(classes, f"-classes {classes}" if args.classes is not None else data.path)
        images = len(read_list(data.find("train")))
    if classes is None and not args.anchors and all(value is None for value in changes.values()):
        raise UsageError("cfg: nothing to change; set -classes N or -data x.data, for example")
    out = writable(args.out) if args.out else None
    anchors = read_anchors(args.anchors) if args.anchors else None
    adapted = adapt_cfg(source, classes=classes, images=images, anchors=anchors, out=out, **changes)
    if out:
        write(out, adapted.text)
    if args.out == STDOUT:
        return
    show(adapted, classes)
    if not out:
        print("Nothing was written; -out my.cfg writes it")
    elif adapted.pretrained:
        weights, train = adapted.pretrained, train_command(adapted)
        print("To train from pretrained weights:")
        print(f"  gpudarknet partial {weights.cfg} {weights.weights} {weights.name} {weights.count}")
        print(f"  gpudarknet {train.format(data=args.data or 'x.data', cfg=out, weights=weights.name)}")


def show(adapted: AdaptedCfg, classes: int | None) -> None:
    """Print the changed lines and a summary of the network."""
    rows = [
        (f"{adapted.config.path}:{c.line}", f"[{c.section}] {c.key}", c.old or "none", c.new or "removed")
        for c in adapted.changes
    ]
    rows = [(place, key, shorten(old), shorten(new)) for place, key, old, new in rows]
    widths = [max((len(row[k]) for row in rows), default=0) for k in range(3)]
    for place, key, old, new in rows:
        print(f"{place:<{widths[0]}}  {key:<{widths[1]}}  {old:>{widths[2]}} -> {new}")
    net, nodes = adapted.config.net, adapted.nodes
    size = " x ".join(map(str, net.input[:0:-1])) if net.width else f"{net.inputs} inputs"
    known = f", {classes} class{'es' * (classes != 1)}" if classes else ""
    print(
        f"{adapted.config.path}: {len(nodes)} layers{known}, {size}, {net.max_batches} iterations of {net.batch} images"
    )


def shorten(text: str) -> str:
    """Shorten a long list."""
    return text if len(text) <= WIDEST else text[: WIDEST - 4] + " ..."


def train_command(adapted: AdaptedCfg) -> str:
    """Return the command that trains a network, with places for its arguments."""
    if any(isinstance(node.layer, DetectionHead) for node in adapted.nodes):
        return "detector train {data} {cfg} {weights} -map"
    return "classifier train {data} {cfg} {weights} -topk"


def read_anchors(path: str) -> list[float]:
    """Read anchors as `detector calc_anchors` writes them: widths and heights in turn. Raises DataError."""
    words = re.split(r"[\s,]+", read_text(path).partition("=")[2] or read_text(path))
    try:
        anchors = [float(word) for word in words if word]
    except ValueError:
        anchors = []
    if not anchors or len(anchors) % 2 or not all(0 < value < 1e6 for value in anchors):
        raise DataError(
            f"{path}: is no list of anchors, widths and heights; `detector calc_anchors` writes one, anchors.txt"
        )
    return anchors


FLAGS = (
    Flag(
        "classes",
        int,
        None,
        "Number of classes; sets the filters before each head too, and removes keys with a value per class",
    ),
    Flag("data", str, None, "Take the number of classes and of training images from this .data file"),
    Flag("width", int, None, "Width of the input in pixels; also the height if the input is square"),
    Flag("height", int, None, "Height of the input in pixels"),
    Flag("batch", int, None, "Images per iteration; 64 if -classes or -data is given"),
    Flag("subdivisions", int, None, "Parts of a batch; by default so that a part has at most 4 images"),
    Flag("max_batches", int, None, "Iterations; max(6000, 2000 per class, images) if -classes or -data is given"),
    Flag("anchors", str, None, "Take the anchors from this file, anchors.txt of `detector calc_anchors`"),
    Flag("freeze", int, None, "Do not train the first N layers (stopbackward=1); an iteration takes less time"),
    Flag("out", str, None, "Write the cfg to this file, - for standard output; else only print what would change"),
)
MORE = (
    "Prints each changed line, and the commands that train the result from pretrained weights. The learning rate falls at 80 %"
    " and 90 % of max_batches; below 6000 iterations the warm-up (burn_in) is shortened in proportion. Other lines stay as they"
    " are, with their comments"
)
COMMANDS = (
    Command("cfg", ("x.cfg",), "Adapt a cfg to your classes, input size and length of training", cfg, FLAGS, MORE),
)
