"""`classifier predict` and `classify`: classify images; `classifier valid`: measure accuracy."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import inference
from ..data import BadSamples, warned
from ..data.datafile import DataFile, read_names
from ..detector import labels
from ..errors import DataError, ImageError
from ..evaluate import classifier_measure
from ..io import resources
from ..layers import DetectionHead
from ..layers.class_tree import Tree
from ..network import load_network
from . import fail, inputs
from .arguments import Arguments, Command, Flag, UsageError
from .inputs import progress_bar

IMAGENET = Path("cfg/imagenet1k.data")  # the file that Darknet's `classify` reads


def predict(args: Arguments) -> int:
    """Classify with the names of a .data file; print -t classes, by default its key `top`."""
    data, cfg, weights, *words = args.positionals
    file = inputs.data_file(data)
    return run(args, cfg, weights, file.names_path(), args.t or file.top, words)


def classify(args: Arguments) -> int:
    """Classify with the names of cfg/imagenet1k.data or, if that file does not exist, with class indices."""
    cfg, weights, *words = args.positionals
    names = DataFile.read(IMAGENET).names_path() if IMAGENET.is_file() else None
    return run(args, cfg, weights, names, args.t or 5, words)


def run(args: Arguments, cfg: str, weights: str, names: Path | None, top: int, words: Sequence[str]) -> int:
    """Classify each image and print its `top` classes. Unreadable images are skipped."""
    checked_top(top)
    label_list = read_names(names) if names else None
    file = inputs.weights_file(weights)
    with inputs.spinner(f"Loading {weights}"):
        network = load_network(resources.bundled_cfg(cfg), file, inputs.get_backend(args))
    network.check_precision(args.precision)
    last = network.nodes[network.heads[-1]]
    if isinstance(last.layer, DetectionHead):
        raise DataError(f"{network.config.path}: is a detector, not a classifier; use `gpudarknet detector test`")
    class_labels = labels(label_list, int(np.prod(last.shape)), str(names), network.config.path)
    tree = getattr(last.layer, "tree", None)
    errors: list[int] = []
    images = inputs.Images(args, [], lambda message: errors.append(fail(message)))
    with inputs.private_urls(args):
        for path in images.expand(words or inputs.prompt(sys.stdout)):
            try:
                probs, seconds = inference.classify(network, path, args.precision)
            except ImageError as e:
                errors.append(fail(str(e)))
                continue
            print(f"{path}: Predicted in {1000 * seconds:f} milli-seconds.")
            for line in lines(probs, class_labels, top, tree):
                print(line)
    return max(errors, default=0)


def lines(p: np.ndarray, names: Sequence[str], top: int, tree: Tree | None) -> Iterator[str]:
    """Yield the lines of the most probable classes; ties in class order."""
    for i in np.argsort(-p, kind="stable")[:top].tolist():
        if tree is None:
            yield f"{names[i]}: {p[i]:f}"
        else:
            parent = tree.parents[i]
            yield f"{i}, {names[i]}: {p[i]:f}, parent: {names[parent] if parent >= 0 else 'Root'} "


def valid(args: Arguments) -> None:
    """Print the accuracy on the images of `valid`; an image's class is the label in its path."""
    data, cfg, weights = args.positionals
    file, bad_samples = inputs.data_file(data), BadSamples(Path())
    top = checked_top(args.t or file.top)
    network = load_network(resources.bundled_cfg(cfg), inputs.weights_file(weights), inputs.get_backend(args))
    if isinstance(network.nodes[network.heads[-1]].layer, DetectionHead):
        raise DataError(f"{network.config.path}: is a detector, not a classifier; use `gpudarknet detector map`")
    with progress_bar() as done:
        measure = classifier_measure(file, network, bad_samples, top, done, args.precision)
        with warned(bad_samples):
            result = measure(network)
            print(f"{result.images} images, top 1: {result.top1:f}, top {result.top}: {result.top_k:f}")
            if result.unlabeled:
                print(f"{result.unlabeled} of them have no label in their path and count as wrong")
            if result.inner:
                print(f"{result.inner} of them have a class that is not a leaf of the tree and count as wrong")


def checked_top(top: int) -> int:
    """Return the number of classes to count. Raises UsageError if it is below 1."""
    if top < 1:
        raise UsageError(f"-t and the key top must be at least 1, got {top}")
    return top


FLAGS = (Flag("t", int, 0, "Number of classes"), inputs.BACKEND, inputs.PRECISION, inputs.GPU)
SOURCE_FLAGS = (*FLAGS, *inputs.SOURCES)
MORE = f"Prints the most probable classes. {inputs.SOURCES_HELP}"
COMMANDS = (
    Command(
        "classifier predict", ("x.data", "x.cfg", "x.weights", inputs.SOURCE),
        "Classify images", predict, SOURCE_FLAGS, f"{MORE}. -t 0, the default, means the .data file's key top, else 1",
    ),
    Command(
        "classifier valid", ("x.data", "x.cfg", "x.weights"), "Measure accuracy on the images of `valid`", valid, FLAGS,
        "An image's class is the first label that its path contains; an image without one counts as wrong. With a tree, only"
        " leaves are predicted: those that the .data file's key leaves lists, else the classes without children. Prints top-1"
        " accuracy and top-t accuracy; -t 0, the default, means the .data file's key top, else 1",
    ),
    Command(
        "classify", ("x.cfg", "x.weights", inputs.SOURCE), "Classify images into ImageNet's 1000 classes", classify,
        SOURCE_FLAGS, f"{MORE}. -t 0, the default, means 5. Names come from {IMAGENET} if it exists",
    ),
)  # fmt: skip
