"""`table`: a network's layers. `partial`: the first layers of a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..io import resources
from .arguments import Command, UsageError
from .inputs import weights_file


def table(args: Any) -> None:
    """Print the layer table. No weights, no memory for them."""
    from .. import cfg, graph
    from .. import summary as tables

    print(tables.table(graph.build(cfg.read(resources.bundled_cfg(args.words[0])))))


def partial(args: Any) -> None:
    """Write the first N layers of a weights file as a start for training another network."""
    from ..network import load_network

    cfg, weights, out, count = args.words
    if not count.isdecimal() or not int(count):
        raise UsageError(f"partial: N is a number of layers from 1 on, found '{count}'")
    network = load_network(resources.bundled_cfg(cfg), weights_file(weights), "numpy", upto=int(count))
    if int(count) > len(network.nodes):
        raise UsageError(f"partial: {cfg} has {len(network.nodes)} layers, not {count}")
    network.seen = 0
    network.save_weights(Path(out), int(count))
    print(f"{out}: {count} layers")


COMMANDS = (
    Command("table", ("x.cfg",), "Print a network's layers, their sizes and BFLOPS", table),
    Command(
        "partial", ("x.cfg", "x.weights", "out.weights", "N"), "Write the first N layers of a weights file", partial
    ),
)
