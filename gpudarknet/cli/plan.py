"""`plan`: how a network is compiled for one input shape, and which ways to convolve are fastest here."""

from __future__ import annotations

from typing import Any

from .. import shelf
from .arguments import Command, Flag, UsageError


def plan(args: Any) -> None:
    """Print the plan that the CPU runs: steps, what is fused into them, the arena, memory; with -tune, measure first."""
    from ..network import load_network
    from ..plan import Program, compile, tune

    if args.batch < 1:
        raise UsageError(f"plan: -batch is a number of images from 1 on, found {args.batch}")
    size = {key: value for key in ("width", "height") if (value := getattr(args, key)) is not None}
    net = load_network(shelf.shipped_cfg(args.words[0]), backend="numpy", batch=args.batch, **size)
    found = compile(net.nodes, net.weights, net.heads, net.net.input, args.batch)
    if args.tune:
        choices = {}
        for key, times in tune.measure(found):
            choices[key] = min(times, key=times.__getitem__)
            ways = ", ".join(f"{name} {1000 * t:.2f} ms" for name, t in sorted(times.items(), key=lambda item: item[1]))
            print(f"{key}: {ways}")
        print(f"{tune.write_choices(choices)}: {len(choices)} choices for {tune.machine()}")
    print(Program(found, tune.read_choices()).describe())


COMMANDS = (
    Command(
        "plan",
        ("x.cfg",),
        "Print a network's compiled plan: steps, what is fused, memory",
        plan,
        (
            Flag("width", int, None, "pixels; default: the cfg's"),
            Flag("height", int, None, "pixels; default: the cfg's"),
            Flag("batch", int, 1, "images at a time"),
            Flag("tune", bool, False, "measure the ways to convolve first, and remember the fastest"),
        ),
    ),
)
