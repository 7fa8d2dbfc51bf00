"""`table`: print a network's layers. `partial`: extract the first layers of a weights file."""

from __future__ import annotations

from pathlib import Path

from .. import cfg, graph, summary
from ..io import resources
from ..network import load_network
from .arguments import Arguments, Command, UsageError
from .inputs import weights_file


def table(args: Arguments) -> None:
    """Print the layer table, without allocating weights."""
    print(summary.table(graph.build(cfg.read(resources.bundled_cfg(args.positionals[0])))))


def partial(args: Arguments) -> None:
    """Write the first N layers of a weights file, as pretrained weights for another network."""
    cfg_path, weights, out, count = args.positionals
    if not count.isdecimal() or not int(count):
        raise UsageError(f"partial: N must be a number of layers, 1 or more, got '{count}'")
    network = load_network(resources.bundled_cfg(cfg_path), weights_file(weights), "numpy", upto=int(count))
    if int(count) > len(network.nodes):
        raise UsageError(f"partial: {cfg_path} has {len(network.nodes)} layers, not {count}")
    network.seen = 0
    network.save_weights(Path(out), int(count))
    print(f"{out}: {count} layers")


COMMANDS = (
    Command("table", ("x.cfg",), "Print a network's layers, their sizes and BFLOPS", table),
    Command(
        "partial", ("x.cfg", "x.weights", "out.weights", "N"), "Write the first N layers of a weights file", partial
    ),
)
