"""`plan`: how a network is compiled for one input shape, and which ways to convolve are fastest here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import backend as backends
from ..backend import Backend
from ..io import resources
from . import inputs
from .arguments import Command, Flag, UsageError


def plan(args: Any) -> None:
    """Print the plan that the backend runs: steps, what is fused into them, memory; with -tune, measure first."""
    from ..network import load_network
    from ..plan import Program, compile, cuda, tuning
    from ..plan.cuda import autotune

    if args.batch < 1:
        raise UsageError(f"plan: -batch is a number of images from 1 on, found {args.batch}")
    if args.precision not in ("fp32", "tf32", "fp16"):
        raise UsageError(f"plan: unknown precision '{args.precision}'; choose fp32, tf32 or fp16")
    size = {key: value for key in ("width", "height") if (value := getattr(args, key)) is not None}
    be, why = device(args)
    if why and args.tune:
        raise UsageError(f"plan: -tune measures, and there is no GPU: {why}")
    net = load_network(resources.bundled_cfg(args.words[0]), backend=be, batch=args.batch, **size)
    found = compile(net.nodes, net.weights, net.heads, net.net.input, args.batch)
    if be.cublas is None:
        if args.tune:
            races = ((key, min(times, key=times.__getitem__), times) for key, times in tuning.measure(found))
            remember(races, tuning.machine())
        print(Program(found, tuning.read_choices()).describe())
        return
    if why:
        print(cuda.Program(found, be, args.precision).describe())
        print(f"not run: {why}")
        return
    of = autotune.device(be, args.precision)
    if args.tune:
        remember(autotune.measure(found, be, args.precision), of)
    print(cuda.Program(found, be, args.precision, choices=tuning.read_choices(of)).describe())


def device(args: Any) -> tuple[Backend, str]:
    """Return the backend that -device or else -backend asks for, and why it cannot run if it is a GPU that is not there."""
    from ..plan.cuda import dry_run

    if args.device not in (None, "cpu", "gpu"):
        raise UsageError(f"plan: unknown device '{args.device}'; choose cpu or gpu")
    if args.device == "cpu":
        return backends.get("numpy"), ""
    if args.device == "gpu":
        why = backends.why_no_cupy()
        if why is not None:
            return dry_run.backend(), why
        args.backend = "cupy"
    return inputs.get_backend(args), ""


def remember(races: Iterable[tuple[str, str, dict[str, float]]], of: str) -> None:
    """Print races as they are run, (key, choice, seconds by way), and remember the choices for a device."""
    from ..plan import tuning

    choices = {}
    for key, choice, times in races:
        choices[key] = choice
        ways = ", ".join(f"{name} {1000 * t:.3f} ms" for name, t in sorted(times.items(), key=lambda item: item[1]))
        print(f"{key}: {ways}")
    print(f"{tuning.write_choices(choices, of)}: {len(choices)} choices for {of}")


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
            Flag("precision", str, "fp32", "On a GPU fp32, tf32 or fp16; the CPU computes in fp32"),
            Flag("tune", bool, False, "measure the ways to convolve first, and remember the fastest"),
            Flag(
                "device",
                str,
                None,
                "cpu or gpu: whose plan; without a GPU, gpu shows what it would be. Default: the backend's",
            ),
            inputs.BACKEND,
            inputs.GPU,
        ),
    ),
)
