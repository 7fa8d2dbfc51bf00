"""`classifier predict` and `classify`: say what an image shows; `classifier valid`: how often that is right."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import image
from ..data.datafile import DataFile, read_names
from ..detector import labels
from ..errors import DataError, ImageError
from ..io import resources
from ..layers import DetectionHead
from ..layers.class_tree import Tree
from ..network import Network, load_network
from . import fail, inputs
from .arguments import Command, Flag, UsageError
from .inputs import counting

IMAGENET = Path("cfg/imagenet1k.data")  # where Darknet's `classify` looks


def predict(args: Any) -> int:
    """Classify with the names of a .data file; -t, else its key `top`, says how many classes to print."""
    data, cfg, weights, *images = args.words
    file = inputs.data_file(data)
    return run(args, cfg, weights, file.names_path(), args.t or file.top, images)


def classify(args: Any) -> int:
    """Classify with the names of cfg/imagenet1k.data, or with numbers where that file is not there."""
    cfg, weights, *images = args.words
    names = DataFile.read(IMAGENET).names_path() if IMAGENET.is_file() else None
    return run(args, cfg, weights, names, args.t or 5, images)


def run(args: Any, cfg: str, weights: str, names: Path | None, top: int, images: Sequence[str]) -> int:
    """Classify each image and print its `top` classes. An image that cannot be read is passed over."""
    if top < 1:
        raise UsageError(f"-t and the key top count classes from 1 on, found {top}")
    listed = read_names(names) if names else None
    file = inputs.weights_file(weights)
    with inputs.waiting(f"Loading {weights}"):
        network = load_network(resources.bundled_cfg(cfg), file, inputs.get_backend(args))
    last = network.nodes[network.heads[-1]]
    if isinstance(last.layer, DetectionHead):
        raise DataError(f"{network.config.path}: finds boxes, it does not classify; use `gpudarknet detector test`")
    known = labels(listed, int(np.prod(last.shape)), str(names), network.config.path)
    tree = getattr(last.layer, "tree", None)
    code = 0
    for path in inputs.images(images):
        try:
            picture = image.read(path, network.channels)
        except ImageError as e:
            code = fail(str(e))
            continue
        for line in lines(probabilities(network, picture, path, tree), known, top, tree):
            print(line)
    return code


def probabilities(network: Network, picture: image.Image, path: str, tree: Tree | None) -> np.ndarray:
    """Return the probability of each class (classes,), and print how long the network took."""
    x = image.classifier_input(picture, network.width, network.height)[None]
    begin = time.perf_counter()
    p = network.backend.to_numpy(network.predict(x)[-1]).reshape(-1)
    print(f"{path}: Predicted in {1000 * (time.perf_counter() - begin):f} milli-seconds.")
    return tree.hierarchy(p) if tree else p


def lines(p: np.ndarray, names: Sequence[str], top: int, tree: Tree | None) -> Iterator[str]:
    """Yield the lines of the most probable classes; of equals, the earlier class comes first."""
    for i in np.argsort(-p, kind="stable")[:top].tolist():
        if tree is None:
            yield f"{names[i]}: {p[i]:f}"
        else:
            parent = tree.parents[i]
            yield f"{i}, {names[i]}: {p[i]:f}, parent: {names[parent] if parent >= 0 else 'Root'} "


def valid(args: Any) -> None:
    """Print how many of the images of `valid` are classified rightly; an image's path tells its class."""
    from ..data import Faults, classifier_boxes, read_list
    from ..evaluate.classification import accuracy

    data, cfg, weights = args.words
    file, faults = inputs.data_file(data), Faults(Path())
    network = load_network(resources.bundled_cfg(cfg), inputs.weights_file(weights), inputs.get_backend(args))
    if isinstance(network.nodes[network.heads[-1]].layer, DetectionHead):
        raise DataError(f"{network.config.path}: finds boxes, it does not classify; use `gpudarknet detector map`")
    known, paths = file.read_labels(), read_list(file.find("valid"))
    with counting(len(paths)) as done:
        found = accuracy(network, paths, classifier_boxes(known), args.t or file.top, faults, done)
    print(f"{found.images} images, top 1: {found.first:f}, top {found.top}: {found.among:f}")
    inputs.tell_faults(faults)


FLAGS = (Flag("t", int, 0, "How many classes"), inputs.BACKEND, inputs.GPU)
MORE = "Prints the most probable classes. Without an image, paths are read from standard input, one a line"
COMMANDS = (
    Command(
        "classifier predict", ("x.data", "x.cfg", "x.weights", "[image ...]"),
        "Say what images show", predict, FLAGS, f"{MORE}. -t 0, the default, means the .data file's key top, else 1",
    ),
    Command(
        "classifier valid", ("x.data", "x.cfg", "x.weights"), "Measure accuracy on the images of `valid`", valid, FLAGS,
        "An image's class is the label that its path contains. It counts as right where that class is the most probable one, and"
        " where it is among the -t most probable; -t 0, the default, means the .data file's key top, else 1",
    ),
    Command(
        "classify", ("x.cfg", "x.weights", "[image ...]"), "Say what images show, of ImageNet's 1000 classes", classify, FLAGS,
        f"{MORE}. -t 0, the default, means 5. Names come from {IMAGENET} where that is",
    ),
)  # fmt: skip
