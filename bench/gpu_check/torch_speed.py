"""Time PyTorch in channels_last on the same networks and weights: as a CUDA graph, eagerly, and with torch.compile.

PyTorch itself is not checked: if it does not import or fails, the case is skipped with the reason.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from gpudarknet.backend import Backend

from .. import seeded, torch_network
from .case import Case, Context, Row, Skipped
from .networks import seeded_network, with_weights
from .speed import MAX_REPLAYS, Workload, image_rate, time_budget, workloads


def torch_module(context: Context) -> Any:
    """Import PyTorch. Raises Skipped if it does not import or sees no GPU."""
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as e:
        raise Skipped(f"torch does not import: {e}") from None
    except Exception as e:  # a wheel for another CUDA raises OSError
        raise Skipped(f"torch does not import: {e}") from e
    if context.backend == "cupy" and not torch.cuda.is_available():
        raise Skipped("torch sees no GPU")
    return torch


@lru_cache(maxsize=1)
def channels_last_forward(context: Context, network: str, size: int, precision: str) -> Callable[[Any], list[Any]]:
    """Return a network in PyTorch, in channels_last; the latest one is cached."""
    torch = torch_module(context)
    device = "cuda" if context.backend == "cupy" else "cpu"
    dtype = torch.float16 if precision == "fp16" else torch.float32
    network_on_cpu = with_weights(seeded_network(network, context, size), Backend("numpy", np, executor="cpu"))
    return torch_network.build(network_on_cpu, torch, device, dtype, torch.channels_last)


def measure(context: Context, workload: Workload, kind: str) -> Row:
    """Time PyTorch: kind is torch-graph, torch-eager or torch-compile."""
    torch = torch_module(context)
    if context.backend != "cupy" and (workload.precision != "fp32" or kind == "torch-graph"):
        raise Skipped(f"{kind} in {workload.precision} needs a GPU")
    try:
        return time_torch(context, workload, kind, torch)
    except Exception as e:
        raise Skipped(f"{kind}: {type(e).__name__}: {(str(e).splitlines() or [''])[0]}") from e


def time_torch(context: Context, workload: Workload, kind: str, torch: Any) -> Row:
    """Time PyTorch."""
    cuda = context.backend == "cupy"
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = workload.precision == "tf32"
    forward = channels_last_forward(context, workload.network, workload.size, workload.precision)
    network = seeded_network(workload.network, context, workload.size)
    x = torch_network.tensor(torch, seeded.network_input(network, workload.batch))
    x = x.to("cuda" if cuda else "cpu", torch.float16 if workload.precision == "fp16" else torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    wait = torch.cuda.synchronize if cuda else lambda: None
    with torch.inference_mode():
        if kind == "torch-graph":
            call = captured(torch, forward, x)
        elif kind == "torch-compile":
            compiled = torch.compile(forward, dynamic=False)
            call = lambda: compiled(x)  # noqa: E731
        else:
            call = lambda: forward(x)  # noqa: E731
        row: Row = {**workload.fields(), "engine": kind, "torch": torch.__version__}
        row |= image_rate(call, wait, workload.batch, context)
        if kind == "torch-graph":
            elapsed = device_seconds(torch, call, context)
            row |= {"graph_ms": round(1e3 * elapsed, 4), "graph_images_s": round(workload.batch / elapsed, 1)}
    return row


def captured(torch: Any, forward: Callable[[Any], Any], x: Any) -> Callable[[], object]:
    """Capture forward(x) as a CUDA graph, after warm-ups on a side stream as PyTorch's documentation requires."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = forward(x)

    def replay() -> object:
        graph.replay()
        return outputs

    return replay


def device_seconds(torch: Any, call: Callable[[], object], context: Context) -> float:
    """Return the minimum device seconds of a call over several rounds, as a plan's own timing does."""
    seconds, rounds = time_budget(context)

    def once(calls: int) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(calls):
            call()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3 / calls

    calls = max(1, min(MAX_REPLAYS, int(seconds / rounds / max(once(1), 1e-6))))
    return min(once(calls) for _ in range(rounds))


def compiled(context: Context) -> Iterable[Case]:
    """List the workloads for torch.compile."""
    for s in workloads(context, "yolov4-tiny", (416,), ("fp16",), (1, 64)):
        yield Case(f"yolov4-tiny/{s}/torch-compile", partial(measure, context, s, "torch-compile"))
