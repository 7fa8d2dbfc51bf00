"""`plan`: how a network is compiled for one input shape, and which convolution algorithms are fastest here."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .. import backend as backends
from ..backend import Backend
from ..errors import DataError
from ..export import fastest
from ..io import resources
from ..network import load_network
from ..plan import compile, cpu, cuda
from ..plan.cuda import dry_run
from ..plan.cuda.time_model import Card, card_of_device, find_card
from ..plan.tuning import load_tuning, save_tuning
from ..train import Trainer
from ..train.engines import PlanEngine
from . import inputs
from .arguments import Arguments, Command, Flag, UsageError
from .bench import suite_module

DEFAULT_CARD = "H100"  # without a GPU, or if it is not in the table


def plan(args: Arguments) -> None:
    """Print the compiled plan: steps, fusions, memory. With -tune, benchmark the algorithms first, and on a CPU the engines."""
    if args.batch is not None and args.batch < 1:
        raise UsageError(f"plan: -batch must be at least 1, got {args.batch}")
    if args.precision not in ("fp32", "tf32", "fp16"):
        raise UsageError(f"plan: unknown precision '{args.precision}'; choose fp32, tf32 or fp16")
    size = {key: value for key in ("width", "height") if (value := getattr(args, key)) is not None}
    be, why = device(args)
    for flag in ("tune", "time"):
        if why and getattr(args, flag):
            raise UsageError(f"plan: -{flag} needs the GPU: {why}")
    if be.executor != "cuda" and (args.time or args.card is not None):
        raise UsageError(f"plan: -{'time' if args.time else 'card'} is for a GPU; add -device gpu")
    if args.train:
        if be.executor == "cuda" or args.tune:
            raise UsageError("plan: -train shows the plan of a CPU; omit -device gpu and -tune")
        print(training_plan(args, size))
        return
    args.batch = args.batch or 1
    card = choose_card(args.card, None if why or be.executor != "cuda" else be)
    net = load_network(resources.bundled_cfg(args.positionals[0]), backend=be, batch=args.batch, **size)
    compiled = compile(net.nodes, net.weights, net.heads, net.net.input, args.batch)
    if be.executor != "cuda":
        name = cpu.autotune.device_name()
        if args.tune:
            results = ((key, min(t, key=t.__getitem__), t) for key, t in cpu.autotune.measure(compiled))
            store(results, name, "algorithms")
            store([fastest.measure(net, args.batch)], fastest.device_name(), "networks")
        print(cpu.Program(compiled, load_tuning(name)).describe())
        return
    autotune = cuda.autotune
    name = autotune.conditions(card.device, args.precision) if why else autotune.device_name(be, args.precision)
    if args.tune:
        store(autotune.measure(compiled, be, args.precision), name, "algorithms")
    print(describe(cuda.Program(compiled, be, args.precision, choices=load_tuning(name)), card, args.time))
    if why:
        print(f"not run: {why}")


def training_plan(args: Arguments, size: dict[str, int]) -> str:
    """Return the plan of a training step on one subdivision of the cfg's batch, or on -batch images."""
    net = load_network(resources.bundled_cfg(args.positionals[0]), backend="numpy", batch=1, **size)  # type: ignore[arg-type]
    trainer = Trainer(net, tune_malloc=False)
    assert isinstance(trainer.engine, PlanEngine)
    batch = args.batch or max(1, trainer.batch // net.net.subdivisions)
    return trainer.engine.program(batch, trainer.first_trained).describe()


def choose_card(name: str | None, be: Backend | None) -> Card:
    """Return the card that -card names, else the GPU of a backend if it is in the table, else DEFAULT_CARD."""
    if name is None:
        return (card_of_device(cuda.autotune.gpu_name(be)) if be else None) or find_card(DEFAULT_CARD)
    try:
        return find_card(name)
    except DataError as e:
        raise UsageError(f"plan: -card: {e}") from None


def describe(program: cuda.Program, card: Card, time: bool) -> str:
    """Return a program as text, with times measured here, else those of this card in the committed results if available."""
    if time:
        x = np.random.default_rng(0).random((program.plan.batch, *program.plan.input.shape), np.float32)
        program.run(program.be.asarray(x))
        return program.describe(card, program.time_launches(), f"on {cuda.autotune.gpu_name(program.be)}")
    measured = suite_module("launch_rows").measured(card, program.launch_times(card))
    return program.describe(card) if measured is None else program.describe(card, measured[0], f"in {measured[1]}")


def device(args: Arguments) -> tuple[Backend, str]:
    """Return the backend selected by -device or -backend, and why it cannot run if it needs a GPU that is missing."""
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


def store(results: Iterable[tuple[str, str, dict[str, float]]], device: str, what: str) -> None:
    """Print measurements as they are made, (key, fastest, seconds by name), and store the fastest in the tuning file."""
    names = {}
    for key, names[key], times in results:
        listed = ", ".join(f"{name} {1000 * t:.3f} ms" for name, t in sorted(times.items(), key=lambda item: item[1]))
        print(f"{key}: {listed}")
    print(f"{save_tuning(device, names)}: {len(names)} {what} for {device}")


COMMANDS = (
    Command(
        "plan",
        ("x.cfg",),
        "Print a network's compiled plan: steps, fusions, memory",
        plan,
        (
            Flag("width", int, None, "Width of the input in pixels; default: the cfg's"),
            Flag("height", int, None, "Height of the input in pixels; default: the cfg's"),
            Flag("batch", int, None, "Batch size; default: 1, with -train a subdivision of the cfg's batch"),
            Flag("train", bool, False, "The plan of a training step on the CPU: forward, losses, backward"),
            Flag("precision", str, "fp32", "On a GPU fp32, tf32 or fp16; the CPU computes in fp32"),
            Flag(
                "tune",
                bool,
                False,
                "First benchmark the algorithms of convolutions, on a CPU also the engines; store the fastest",
            ),
            Flag(
                "device",
                str,
                None,
                "cpu or gpu; gpu without a GPU shows the plan as it would be. Default: the backend's",
            ),
            Flag(
                "card",
                str,
                None,
                "The GPU whose time is modelled, such as H100, A100, 4090, T4; default: this machine's if known, else H100",
            ),
            Flag("time", bool, False, "On a GPU, time each launch and print it next to the model"),
            inputs.BACKEND,
            inputs.GPU,
        ),
    ),
)
