"""Adapt a cfg to another data set: classes, input size, anchors, length of the training. All other lines stay as they are."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import cfg, graph
from .cfg import Config, Net, Reporter
from .errors import CfgError, CfgWarning, DarknetError
from .graph import Node
from .io import download, resources
from .io.text import read_text
from .layers import SECTIONS, DetectionHead, Layer

MIN_ITERATIONS, ITERATIONS_PER_CLASS = 6000, 2000  # max_batches, by Darknet's advice
DECAY_STEPS = 0.8, 0.9  # of max_batches: where the learning rate falls to a tenth, by Darknet's advice
BATCH, MINI_BATCH = 64, 4  # as in Darknet's advice, batch=64 and subdivisions=16
CLASS_KEYS = frozenset({"counters_per_class", "map", "tree"})  # keys of heads whose values have one entry per class
CHANNEL_KEYS = ("filters", "output")  # keys that set the channels of a layer's output
STRIDE = 32  # of a detector whose heads have no map, YOLO v1
TRIAL_SIZE = 512  # pixels; a multiple of the strides of all networks


@dataclass(frozen=True)
class Change:
    """A changed line of a cfg: its number in the new text, section, key, old and new value (None: there is none)."""

    line: int
    section: str
    key: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class PretrainedLayers:
    """Weights for the first `count` layers of a network: `cfg` and `weights` are arguments of the command `partial`."""

    cfg: str
    weights: str
    count: int

    @property
    def name(self) -> str:
        """The usual name of a file with these layers, such as yolov4-tiny.conv.29."""
        return f"{Path(self.cfg).stem}.conv.{self.count}"


@dataclass(frozen=True)
class AdaptedCfg:
    """An adapted cfg: its text, the changes, the parsed text, its layers; pretrained weights that fit, None if classes stay."""

    text: str
    changes: tuple[Change, ...]
    config: Config
    nodes: tuple[Node, ...]
    pretrained: PretrainedLayers | None


def adapt_cfg(
    path: str | Path,
    *,
    classes: int | None = None,
    width: int | None = None,
    height: int | None = None,
    batch: int | None = None,
    subdivisions: int | None = None,
    max_batches: int | None = None,
    images: int = 0,
    anchors: Sequence[float] | None = None,
    freeze: int | None = None,
    out: str | Path | None = None,
) -> AdaptedCfg:
    """Adapt a cfg, given by path or bundled name, to another data set. What is None stays as it is; nothing is written.

    classes: sets `classes` of every head and the channels of the layers that feed them, and removes `counters_per_class`,
    `map` and `tree`; a detector gets Darknet's advice for what is None: batch 64, mini-batches of 4 images, and max_batches
    max(6000, 2000 * classes, images), where images is the number of training images. width, height: pixels; one of them
    sets both if the input is square. max_batches: the learning rate falls at 80 % and 90 % of it; below 6000 the warm-up is
    shortened in proportion. anchors: widths and heights, as `detector calc_anchors` computes them. freeze: do not train so
    many first layers (`stopbackward`). out: the path in messages about the result.

    Raises CfgError, also if the result is not a valid network.
    """
    numbers = {"classes": classes, "batch": batch, "subdivisions": subdivisions, "max_batches": max_batches}
    numbers["freeze"] = freeze
    for key, number in numbers.items():
        if number is not None and number < 1:
            raise CfgError(f"{path}: {key}={number} must be at least 1")
    file = resources.bundled_cfg(path)
    original, feeders = read_exact(file), set[int]()
    editor = Editor(original, str(file))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CfgWarning)
        if classes is not None:
            set_classes(editor, classes)
            feeders = set_channels(editor, classes)
        config = editor.parse()
        if width is not None or height is not None:
            set_size(editor, config, width, height)
        advised = classes if any(isinstance(layer, DetectionHead) for layer in config.layers) else None
        set_batch(editor, config, advised, batch, subdivisions)
        set_schedule(editor, config.net, advised, max_batches, images)
        if anchors is not None:
            set_anchors(editor, editor.parse(), anchors)
        if freeze is not None:
            set_freeze(editor, config, freeze)
    text, changes = editor.render()
    config = cfg.parse(text, str(out or file))
    nodes = graph.build(config)
    if classes is not None:
        check_classifier(config.path, nodes, classes)
    return AdaptedCfg(text, changes, config, nodes, pretrained_layers(path, nodes[: min(feeders, default=0)]))


def read_exact(path: Path) -> str:
    """Read a cfg; written as UTF-8 with `surrogateescape`, the text has the file's bytes, without a byte order mark."""
    text = read_text(path, CfgError)
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff") if "\ufffd" in text else text
    except OSError as e:
        raise CfgError(f"{path}: cannot be read ({e.strerror}); check the path") from None


class Editor:
    """A cfg's text, and new values of its keys. Sections are counted from 0, which is [net]; None removes a key."""

    def __init__(self, text: str, path: str):
        self.path, self.lines = path, text.split("\n")
        self.sections = cfg.sections(text, path, Reporter(path, False))
        self.values: dict[tuple[int, str], str | None] = {}

    def set(self, section: int, key: str, value: object) -> None:
        """Set a key of a section."""
        self.values[section, key] = str(value)

    def remove(self, section: int, key: str) -> None:
        """Remove a key from a section."""
        self.values[section, key] = None

    def parse(self) -> Config:
        """Parse the edited text."""
        return cfg.parse(self.render()[0], self.path)

    def render(self) -> tuple[str, tuple[Change, ...]]:
        """Return the edited text and its changed lines. Of duplicate keys, the first is edited: it counts."""
        options = {o.line: (index, s.name, o) for index, s in enumerate(self.sections) for o in s.options}
        ends = {max([s.line, *(o.line for o in s.options)]): (index, s.name) for index, s in enumerate(self.sections)}
        text: list[str] = []
        changes: list[Change] = []
        pending = dict(self.values)
        for number, line in enumerate(self.lines, 1):
            if number in options:
                index, section, option = options[number]
                old, new = option.value.split("#")[0], self.values.get((index, option.key), "")
                if new is None:
                    changes.append(Change(len(text) + 1, section, option.key, old, None))
                elif pending.pop((index, option.key), None) and re.sub(r"\s", "", new) != old:
                    changes.append(Change(len(text) + 1, section, option.key, old, new))
                    line = replace_value(line, new)
                if new is not None:
                    text.append(line)
            else:
                text.append(line)
            if number in ends:
                index, section = ends[number]
                for (k, key), value in pending.items():
                    if k == index and value is not None:
                        text.append(f"{key}={value}" + "\r" * line.endswith("\r"))
                        changes.append(Change(len(text), section, key, None, value))
        return "\n".join(text), tuple(changes)


def replace_value(line: str, value: str) -> str:
    """Replace the value of a line `key = value # comment`; keep its spaces and its comment."""
    key, _, rest = line.partition("=")
    _, before, after = re.split(r"^(\s*)[^#]*?(?=\s*(?:#|$))", rest, maxsplit=1)
    return f"{key}={before}{value}{after}"


# Classes


def set_classes(editor: Editor, classes: int) -> None:
    """Set the classes of every head, and remove the keys that have a value per class. Raises CfgError without a head."""
    heads = [(k, s) for k, s in enumerate(editor.sections) if is_head(SECTIONS.get(s.name, Layer))]
    if not heads:
        raise CfgError(
            f"{editor.path}: no [yolo], [Gaussian_yolo], [region], [detection] or [softmax], so there are no classes"
        )
    for index, section in heads:
        if issubclass(SECTIONS[section.name], DetectionHead):
            editor.set(index, "classes", classes)
        for key in CLASS_KEYS.intersection(option.key for option in section.options):
            editor.remove(index, key)


def is_head(kind: type[Layer]) -> bool:
    """Return whether the output of a kind of layer has classes."""
    return issubclass(kind, DetectionHead) or kind is SECTIONS["softmax"]


def set_channels(editor: Editor, classes: int) -> set[int]:
    """Set the channels of the layers that feed heads; return the indices of those layers."""
    config, feeders = editor.parse(), set[int]()
    for head, layer in enumerate(config.layers):
        if is_head(type(layer)):
            channels = (
                layer.input_channels if isinstance(layer, DetectionHead) else classes * getattr(layer, "groups", 1)
            )
            for index, key in feeding_layers(config, head):
                editor.set(index + 1, key, channels)
                feeders.add(index)
    return feeders


def feeding_layers(config: Config, head: int) -> Iterator[tuple[int, str]]:
    """Yield the layers that determine the channels of a head's input, each with its key for them. Raises CfgError."""

    def place(index: int) -> str:
        return f"{config.path}:{config.lines[index]}: [{config.layers[index].section}] (layer {index})"

    waiting = list(config.layers[head].sources(head))
    while waiting:
        index = waiting.pop()
        if not 0 <= index < head:
            raise CfgError(
                f"{place(head)} needs a [convolutional] or [connected] layer before it, whose filters can be set"
            )
        layer = config.layers[index]
        sources = layer.sources(index)
        key = next((key for key in CHANNEL_KEYS if hasattr(layer, key)), None)
        if key is not None:
            yield index, key
        elif layer.section == "route" and (len(sources) > 1 or getattr(layer, "groups", 1) > 1):
            raise CfgError(
                f"{place(index)} joins or splits channels, so the filters for layer {head}, a head, are ambiguous;"
                " put a [convolutional] layer with size=1 between them"
            )
        else:
            waiting += sources


def check_classifier(path: str, nodes: Sequence[Node], classes: int) -> None:
    """Raise CfgError if a [softmax] does not have one input per class."""
    for node in nodes:
        inputs = int(np.prod(node.inputs[0]))
        if type(node.layer) is SECTIONS["softmax"] and inputs != classes * getattr(node.layer, "groups", 1):
            raise CfgError(
                f"{path}:{node.line}: [softmax] (layer {node.index}) has {inputs} inputs, a map and not classes"
            )


# Size and anchors


def set_size(editor: Editor, config: Config, width: int | None, height: int | None) -> None:
    """Set the input's size. Raises CfgError unless it is a multiple of the network's stride."""
    net = config.net
    if min(net.width, net.height) < 1:
        raise CfgError(f"{config.path}: [net] has no width and height, so its input is not an image")
    stride = network_stride(config)
    for key, size in (("width", width), ("height", height)):
        if size is None:
            continue
        if size < 1 or size % stride:
            nearest = sorted({max(size // stride, 1) * stride, max(size // stride + 1, 1) * stride})
            raise CfgError(
                f"{config.path}: {key}={size} must be a multiple of {stride}, the network's stride;"
                f" use {' or '.join(map(str, nearest))}"
            )
    square = net.width == net.height
    editor.set(0, "width", width or (height if square else net.width))
    editor.set(0, "height", height or (width if square else net.height))


def network_stride(config: Config) -> int:
    """Return the width in pixels of a cell of the coarsest head; 1 for a classifier."""
    if not any(isinstance(layer, DetectionHead) for layer in config.layers):
        return 1
    nodes = graph.build(replace(config, net=replace(config.net, width=TRIAL_SIZE, height=TRIAL_SIZE)))
    widths = [node.shape[2] for node in nodes if isinstance(node.layer, DetectionHead)]
    return max(TRIAL_SIZE // width if width > 1 else STRIDE for width in widths)


def set_anchors(editor: Editor, config: Config, anchors: Sequence[float]) -> None:
    """Set the anchors of every head that has them. Raises CfgError if their number or unit is another."""
    heads = {k: len(layer.anchor_sizes()) for k, layer in enumerate(config.layers) if hasattr(layer, "anchor_sizes")}
    if not heads:
        raise CfgError(f"{config.path}: has no head with anchors")
    text = "  ".join(f"{w:g},{h:g}," for w, h in zip(anchors[::2], anchors[1::2], strict=False)).rstrip(",")
    for index, count in heads.items():
        layer = config.layers[index]
        if len(anchors) != 2 * count:
            raise CfgError(
                f"{config.path}:{config.lines[index]}: [{layer.section}] has {count} anchors, not {len(anchors) / 2:g};"
                f" use `detector calc_anchors -num_of_clusters {count}`"
            )
        cells = config.net.width // network_stride(config)
        if layer.section == "region" and max(anchors) > cells:
            raise CfgError(
                f"{config.path}:{config.lines[index]}: anchors of [region] are in cells; use `detector calc_anchors"
                f" -width {cells} -height {config.net.height // network_stride(config)}`"
            )
        editor.set(index + 1, "anchors", text)


# Training


def set_batch(editor: Editor, config: Config, classes: int | None, batch: int | None, subdivisions: int | None) -> None:
    """Set batch and subdivisions; with `classes`, to Darknet's advice unless given. Raises CfgError if they do not fit."""
    if classes is None and batch is None and subdivisions is None:
        return
    if batch is None:
        batch = config.net.batch if classes is None else BATCH
    if subdivisions is None and batch == config.net.batch and batch <= MINI_BATCH * config.net.subdivisions:
        subdivisions = config.net.subdivisions
    if subdivisions is None:
        subdivisions = next(n for n in range(1, batch + 1) if batch % n == 0 and batch // n <= MINI_BATCH)
    if batch % subdivisions:
        raise CfgError(f"{config.path}: subdivisions={subdivisions} must divide batch={batch}")
    editor.set(0, "batch", batch)
    editor.set(0, "subdivisions", subdivisions)


def set_schedule(editor: Editor, net: Net, classes: int | None, max_batches: int | None, images: int) -> None:
    """Set max_batches, and the iterations of the learning rate's policy; with `classes`, to Darknet's advice unless given."""
    if classes is not None and max_batches is None:
        max_batches = max(MIN_ITERATIONS, ITERATIONS_PER_CLASS * classes, images)
    if max_batches is None:
        return
    editor.set(0, "max_batches", max_batches)
    shrink = min(1.0, max_batches / min(MIN_ITERATIONS, net.max_batches or MIN_ITERATIONS))
    if net.burn_in > 0:
        editor.set(0, "burn_in", max(1, round(net.burn_in * shrink)))
    if net.policy == "steps":
        steps, scales = list(net.steps or ()), list(net.scales or ())
        if len(steps) < 2 or len(steps) != len(scales):
            steps, scales = [0, 0], [0.1, 0.1]
            editor.set(0, "scales", ".1,.1")
        decay = [round(max_batches * fraction) for fraction in DECAY_STEPS]
        to_last = decay[-1] / steps[-1] if steps[-1] > 0 else 1.0
        # before the last two: steps that raise the rate are a warm-up, those that lower it keep their place in the training
        first = [
            round(s * (shrink if k > 1 else to_last)) if s > 0 else s
            for s, k in zip(steps[:-2], scales[:-2], strict=True)
        ]
        editor.set(0, "steps", ",".join(map(str, first + decay)))


def set_freeze(editor: Editor, config: Config, count: int) -> None:
    """Stop the backward pass after the first `count` layers. Raises CfgError if that leaves nothing to train."""
    first_head = next(k for k, layer in enumerate(config.layers) if is_head(type(layer)) or k == len(config.layers) - 1)
    if count >= first_head:
        raise CfgError(f"{config.path}: freeze={count} leaves nothing to train before layer {first_head}")
    editor.set(count, "stopbackward", 1)  # section 0 is [net]


# Pretrained weights


def pretrained_layers(path: str | Path, nodes: Sequence[Node]) -> PretrainedLayers | None:
    """Return pretrained weights for the most of these layers, the first of a network: published ones, else the cfg's own.

    Of a published network, no more than the layers that Darknet's documentation takes from it.
    """
    best = None
    for name, pretrained in download.PRETRAINED.items():
        count = min(equal_layers(nodes, resources.bundled_cfg(name)), pretrained.backbone or len(nodes))
        own = name == Path(path).stem
        if 2 * count > len(nodes) and (best is None or (count, own) > (best.count, best.cfg == Path(path).stem)):
            best = PretrainedLayers(name, name, count)
    if best is None and (count := equal_layers(nodes, file := resources.bundled_cfg(path))):
        known = file.with_suffix(".weights").is_file()
        bundled = file != Path(path)
        weights = (Path(path).stem if bundled else str(file.with_suffix(".weights"))) if known else "x.weights"
        best = PretrainedLayers(str(path), weights, count)
    return best


def equal_layers(nodes: Sequence[Node], path: Path) -> int:
    """Return how many of these layers are the first ones of a cfg: they have the same weights and compute the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CfgWarning)
        try:
            others = graph.build(cfg.read(path))
        except DarknetError:  # its heads may not fit the layers before them until they are adapted
            return 0
    pairs = zip(nodes, others, strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if signature(a) != signature(b)), min(len(nodes), len(others)))


def signature(node: Node) -> tuple[object, ...]:
    """Return what weights depend on: the kind of layer, what it reads, its channels, weights and activation."""
    weights = [weight[:2] for weight in node.layer.weights(*node.inputs)]
    return node.layer.section, node.sources, node.shape[0], weights, getattr(node.layer, "activation", None)
