"""`plan`: how a network is compiled for one input shape, and which convolution algorithms are fastest here."""

from __future__ import annotations

from collections.abc import Iterable

from .. import backend as backends
from ..backend import Backend
from ..export import fastest
from ..io import resources
from ..network import load_network
from ..plan import compile, cpu, cuda
from ..plan.cuda import dry_run
from ..plan.tuning import load_tuning, save_tuning
from . import inputs
from .arguments import Arguments, Command, Flag, UsageError


def plan(args: Arguments) -> None:
    """Print the compiled plan: steps, fusions, memory. With -tune, benchmark the algorithms first, and on a CPU the engines."""
    if args.batch < 1:
        raise UsageError(f"plan: -batch must be at least 1, got {args.batch}")
    if args.precision not in ("fp32", "tf32", "fp16"):
        raise UsageError(f"plan: unknown precision '{args.precision}'; choose fp32, tf32 or fp16")
    size = {key: value for key in ("width", "height") if (value := getattr(args, key)) is not None}
    be, why = device(args)
    if why and args.tune:
        raise UsageError(f"plan: -tune needs the GPU: {why}")
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
    if why:
        print(cuda.Program(compiled, be, args.precision).describe())
        print(f"not run: {why}")
        return
    name = cuda.autotune.device_name(be, args.precision)
    if args.tune:
        store(cuda.autotune.measure(compiled, be, args.precision), name, "algorithms")
    print(cuda.Program(compiled, be, args.precision, choices=load_tuning(name)).describe())


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
            Flag("batch", int, 1, "Batch size"),
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
            inputs.BACKEND,
            inputs.GPU,
        ),
    ),
)
