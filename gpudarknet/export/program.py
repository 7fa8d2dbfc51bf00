"""Run networks with another library's engine for CPUs: load_network(..., backend="openvino" | "onnxruntime")."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..array import Arrays
from ..backend import Backend, Executor, Program, install_command, machine, register_executor
from ..backend.threads import thread_count
from ..errors import BackendError
from ..graph import Node
from ..layers import Shape
from .model import INPUT, build_model

# What holds the threads of each program. A forked process must not destroy what it inherits: it would wait for threads that a
# fork does not copy. `Backend.program_threads` makes it compile its own.
_native: WeakKeyDictionary[object, tuple[object, ...]] = WeakKeyDictionary()


def _keep_inherited() -> None:
    for objects in _native.values():
        for one in objects:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_inherited)


def requested_threads() -> int | None:
    """Return the number of threads that the user or a quota has set; None leaves it to the engine: one per physical core."""
    count, source = thread_count()
    return None if source == "affinity" else count


class OnnxRuntimeProgram:
    """Runs layers for `batch` images of `shape` (C, H, W) with ONNX Runtime, like `plan.Program`. Needs the extra `cpu`.

    Raises CfgError for layers that have no ONNX lowering or keep state between images.
    """

    def __init__(
        self, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int], shape: Shape, batch: int
    ):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = requested_threads() or 0
        model = build_model(nodes, weights, heads, shape, batch=batch).SerializeToString()
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        _native[self] = (self.session,)
        self.engine = f"onnxruntime {onnxruntime.__version__}, fp32"

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the heads' outputs for x (N, C, H, W); the caller owns them."""
        return self.session.run(None, {INPUT: x})


class OpenVinoProgram:
    """Runs layers for `batch` images of `shape` (C, H, W) with OpenVINO, like `plan.Program`. Needs the extra `openvino`.

    precision: fp32, or bf16 where the CPU computes in it; by itself, OpenVINO takes bf16 there. Raises CfgError for layers that
    have no ONNX lowering or keep state between images.
    """

    def __init__(
        self, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int], shape: Shape, batch: int,
        precision: str = "fp32",
    ):  # fmt: skip
        openvino = import_openvino()
        options = {
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # two processes would share a core while others are idle
        }
        if (count := requested_threads()) is not None:
            options["INFERENCE_NUM_THREADS"] = count
        model = build_model(nodes, weights, heads, shape, batch=batch).SerializeToString()
        core = openvino.Core()
        try:
            with same_signal_stack():
                self.compiled = core.compile_model(core.read_model(model), "CPU", options)
                self.request = self.compiled.create_infer_request()
        except RuntimeError as e:
            raise BackendError(
                f"openvino: cannot compile the network: {' '.join(str(e).split())[:200]}; use numpy"
            ) from None
        self.lock = threading.Lock()  # a request serves one thread at a time
        self.engine = f"openvino {openvino.__version__.partition('-')[0]}, {precision}"
        _native[self] = (self.compiled, self.request)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """Return the heads' outputs for x (N, C, H, W); the caller owns them. x is not copied."""
        with self.lock:
            return list(self.request.infer({0: x}, share_inputs=True).values())


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Hide the package with which OpenVINO reports its import to Google Analytics; it is optional."""
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@cache
def import_openvino() -> Any:
    """Import OpenVINO, without its telemetry. Raises BackendError."""
    try:
        with no_telemetry():
            import openvino
    except ImportError as e:
        raise BackendError(f"openvino: does not import ({e}); {install_command('openvino')}") from None
    return openvino


@contextmanager
def same_signal_stack() -> Iterator[None]:
    """Keep the thread's stack for signals.

    OpenVINO replaces it, and unmaps its own with the program: then the next signal, such as Ctrl-C, would crash the process.
    """
    sigaltstack = getattr(ctypes.pythonapi, "sigaltstack", None)  # not on Windows
    before = ctypes.create_string_buffer(64)  # a stack_t
    if sigaltstack:
        sigaltstack(None, before)
    try:
        yield
    finally:
        if sigaltstack:
            sigaltstack(before, None)


@cache
def why_no_bf16() -> str | None:
    """Return why OpenVINO cannot compute in bf16 here; None if it can. It would compute in fp32 without saying so."""
    with same_signal_stack():
        if "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return None
    return f"this CPU ({machine.processor()}) has neither AMX nor AVX-512 BF16; use fp32"


def compile_onnxruntime(
    be: Backend, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int],
    shape: Shape, batch: int, precision: str, packed_weights: dict[Any, Any],
) -> Program:  # fmt: skip
    """Compile a network for ONNX Runtime."""
    return OnnxRuntimeProgram(nodes, weights, heads, shape, batch)


def compile_openvino(
    be: Backend, nodes: Sequence[Node], weights: Sequence[Arrays], heads: Sequence[int],
    shape: Shape, batch: int, precision: str, packed_weights: dict[Any, Any],
) -> Program:  # fmt: skip
    """Compile a network for OpenVINO."""
    return OpenVinoProgram(nodes, weights, heads, shape, batch, precision)


register_executor("onnxruntime", Executor(compile_onnxruntime, own_threads=True))
register_executor("openvino", Executor(compile_openvino, ("fp32", "bf16"), why_no_bf16=why_no_bf16, own_threads=True))
