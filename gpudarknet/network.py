"""A network: a graph of layers with shapes, weights and a backend. The reference engine is a loop over its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from . import backend as backends
from . import cfg, summary
from .array import Array, Arrays
from .backend import Backend, PendingRows, Program
from .errors import CfgError, DataError
from .graph import Node, build, check_memory, owner
from .layers import DetectionHead, ForwardContext
from .layers.base import Backward
from .plan import ImageBatch, ProgramCache
from .weights import init_weights
from .weights import read as read_weights
from .weights import write as write_weights

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
PRECISIONS = get_args(Precision)
Keep = Callable[[int, Array, Backward], None]  # keep(index, output, backward), called after each layer


class Network:
    """A network on one backend.

    net: the [net] section. nodes: the layers with sources and shapes. weights: for each layer, name -> array of the backend.
    heads: the layers whose outputs `predict` returns. seen: number of images it was trained on. device: the GPU that was
    current when the network was created; the network stays on it. engine: what computed the last `predict`, as text:
    "openvino 2026.4.1, bf16".

    It can be pickled and deep-copied: a pickle holds the weights as NumPy arrays, the state of recurrent layers and the backend's
    name (see `backend.restore`), not the programs, which are compiled anew. A deep copy shares nothing that changes.
    """

    def __init__(
        self,
        config: cfg.Config,
        nodes: tuple[Node, ...],
        arrays: Sequence[Arrays],
        be: Backend,
        batch: int = 1,
        seen: int = 0,
    ):
        self.config, self.net, self.backend, self.batch, self.seen = config, config.net, be, batch, seen
        self.nodes, self.device = nodes, be.current_device()
        self.program_cache = ProgramCache()
        self.engine = ""
        self._set_weights(arrays)
        heads = [n.index for n in self.nodes if n.layer.head]
        self.heads = tuple(heads or [max((n.index for n in self.nodes if n.layer.has_output), default=0)])
        self.last_use = [max([n.index] + [m.index for m in self.nodes if n.index in m.sources]) for n in self.nodes]

    def _set_weights(self, arrays: Sequence[Mapping[str, Any]]) -> None:
        """Convert each layer's arrays to the backend's; a layer that shares weights gets those of their owner."""
        be = self.backend
        self.weights: list[Arrays] = [{name: convert(a, be.asarray) for name, a in own.items()} for own in arrays]
        be.synchronize()  # so that any stream may use them
        for node in self.nodes:
            self.weights[node.index] = self.weights[owner(node)]

    def _numpy_weights(self) -> list[Arrays]:
        """Return each layer's weights as NumPy arrays, once if layers share them."""
        with self.on_device():
            own = [own if owner(node) == node.index else {} for node, own in zip(self.nodes, self.weights, strict=True)]
            return [{name: convert(a, self.backend.to_numpy) for name, a in layer.items()} for layer in own]

    def to(self, backend: str | Backend) -> Network:
        """Return this network on another backend, and its current GPU; on the same backend, the weights are shared.

        Raises BackendError.
        """
        be = backends.get(backend)
        return Network(self.config, self.nodes, self._numpy_weights(), be, self.batch, self.seen)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"weights": self._numpy_weights(), "program_cache": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self.program_cache = ProgramCache()
        self.device = self.backend.available_device(self.device)
        with self.on_device():
            self._set_weights([{name: convert(a, writeable) for name, a in own.items()} for own in state["weights"]])

    @property
    def channels(self) -> int:
        """Channels of an input image."""
        return self.net.input[0]

    @property
    def height(self) -> int:
        """Height of an input image in pixels."""
        return self.net.input[1]

    @property
    def width(self) -> int:
        """Width of an input image in pixels."""
        return self.net.input[2]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Make this network's GPU the current one and raise OutOfMemoryError if its memory is full; on NumPy do nothing."""
        with self.backend.use_device(self.device), self.backend.guard():
            yield

    def resize(self, width: int, height: int) -> None:
        """Change the input size, in pixels. Raises CfgError if the layers or the weights do not allow it."""
        config = replace(self.config, net=replace(self.net, width=width, height=height))
        nodes = build(config)
        for old, new in zip(self.nodes, nodes, strict=True):
            if [w[:2] for w in old.layer.weights(*old.inputs)] != [w[:2] for w in new.layer.weights(*new.inputs)]:
                raise CfgError(
                    f"{config.path}:{new.line}: [{new.layer.section}] (layer {new.index}) has weights for one input size;"
                    f" it cannot take {width} x {height}"
                )
        self.config, self.net, self.nodes = config, config.net, nodes
        self.program_cache.clear()

    def input(self, x: Any) -> Array:
        """Convert x (N, C, H, W) to float32 on this backend. Raises DataError if its shape is not the network's."""
        with self.on_device():
            return self._input(x)

    def _input(self, x: Any) -> Array:
        x = self.backend.asarray(x, np.float32)
        if x.ndim != 4 or x.shape[1:] != self.net.input or x.shape[0] < 1:
            raise DataError(
                f"input has shape {tuple(x.shape)}; {self.config.path} expects (N, C, H, W) = "
                f"(N, {', '.join(map(str, self.net.input))})"
            )
        return x

    def forward(self, x: Array, ctx: ForwardContext, keep: Keep) -> None:
        """Run every layer on x; call keep(index, output, backward) after each. Outputs are dropped after their last use.

        If x is float16, all maps are float16 except those of layers with a loss.
        """
        if ctx.train:
            self.program_cache.clear()  # the weights are about to change
        with self.on_device():
            self._forward(x, ctx, keep)

    def _forward(self, x: Array, ctx: ForwardContext, keep: Keep) -> None:
        outputs: dict[int, Array] = {-1: x}
        for node in self.nodes:
            xs = [outputs[source] for source in node.sources]
            # Losses need float32: in float16 a probability below 6e-8 is 0, and its logarithm infinite.
            if x.dtype == np.float16:
                xs = [a.astype(np.float32 if node.layer.has_loss else np.float16, copy=False) for a in xs]
            layer_ctx = ctx
            if ctx.skip_input_grad or node.index < ctx.frozen:
                skip_input_grad = ctx.skip_input_grad and all(source < ctx.frozen for source in node.sources)
                layer_ctx = replace(ctx, train=ctx.train and node.index >= ctx.frozen, skip_input_grad=skip_input_grad)
            with np.errstate(all="ignore"):  # inf and NaN propagate as on a GPU; training checks for them
                y, backward = node.layer.forward(self.backend, self.weights[node.index], *xs, ctx=layer_ctx)
            outputs[node.index] = y
            keep(node.index, y, backward)
            for source in {node.index, *node.sources}:
                if source >= 0 and self.last_use[source] <= node.index:
                    del outputs[source]

    def predict(
        self,
        x: Any,
        engine: Literal["plan", "reference"] = "plan",
        precision: Precision = "fp32",
    ) -> list[Array]:
        """Run the network on x (N, C, H, W), values 0 to 1; return the outputs of its heads, as arrays of the backend.

        A network without detection heads has one output: its last layer other than [cost]. The caller owns the arrays; those of
        the reference engine may share memory with x. engine: the compiled plan, or the reference, layer by layer, which defines
        the correct result. precision, for plans on a GPU: fp32; tf32, which rounds factors to 10-bit mantissas; fp16, also in
        memory, with sums in fp32. OpenVINO also has bf16, on CPUs with AMX or AVX-512 BF16; elsewhere it raises BackendError.
        Results are float32; a CPU computes in fp32 if tf32 or fp16 is asked for. x on the GPU is not copied; a plan there also
        accepts an ImageBatch. Call `program_cache.clear()` after changing weights by hand. Raises DataError, BackendError.
        """
        if engine not in ("plan", "reference"):
            raise DataError(f"predict: unknown engine '{engine}'; choose plan or reference")
        self.check_precision(precision)
        if engine == "plan" and self.backend.executor is not None:
            with self.on_device():
                x, program = self._planned(x, precision)
                self.engine = program.engine
                return program.run(x)
        x = self.input(x)
        self.engine = f"{self.backend.name}, layer by layer"
        outputs: dict[int, Array] = {}

        def keep(index: int, y: Array, backward: Backward) -> None:
            if index in self.heads:
                outputs[index] = y

        self.forward(x, ForwardContext(), keep)
        return [outputs[index] for index in self.heads]

    def detect(self, x: Any, thresh: float, precision: Precision = "fp32") -> PendingRows:
        """Start to detect the objects in x, as `predict` takes it; return what `decode` would, to be read later.

        On a GPU the plan decodes the boxes, and nothing waits for it until they are read. x must not change before that. Raises
        DataError, BackendError.
        """
        self.check_precision(precision)
        if self.backend.executor is not None:
            with self.on_device():
                x, program = self._planned(x, precision)
                detect: Callable[[Any, float], PendingRows | None] | None = getattr(program, "detect", None)
                if detect is not None and (rows := detect(x, thresh)) is not None:
                    self.engine = program.engine
                    return rows
        return DecodedLater(self, self.predict(x, precision=precision), thresh)

    def check_precision(self, precision: str) -> None:
        """Raise DataError if there is no such precision, BackendError if it is bf16 and cannot be computed here."""
        if precision not in PRECISIONS:
            raise DataError(f"predict: unknown precision '{precision}'; choose one of {', '.join(PRECISIONS)}")
        if self.backend.executor is not None:
            self.backend.supported_precision(precision)

    def program(self, batch: int = 1, precision: str = "fp32") -> Program:
        """Return the program that `predict` runs for a batch: the network compiled for its input shape by the backend's executor.

        Its `engine` says what computes it: "openvino 2026.4.1, fp32". Raises BackendError; CfgError if ONNX Runtime or OpenVINO
        cannot run a layer.
        """
        with self.on_device():
            return self._program(batch, precision)

    def _planned(self, x: Any, precision: str) -> tuple[Any, Program]:
        """Return x as a program takes it, and the program for it."""
        x = x if isinstance(x, ImageBatch) else self._input(x)
        return x, self._program(len(x), precision)

    def _program(self, batch: int, precision: str) -> Program:
        be, shape = self.backend, self.net.input
        precision = be.supported_precision(precision)
        try:
            return self.program_cache.get(
                (shape, batch, precision, be.program_threads()),
                lambda packed_weights: be.compile_program(
                    self.nodes, self.weights, self.heads, shape, batch, precision, packed_weights
                ),
            )
        except CfgError as e:  # of the conversion to ONNX
            raise CfgError(f"{self.config.path}: {be.name}: {e}; use backend='numpy'") from None

    def trace(self, x: Any) -> list[np.ndarray]:
        """Run the network on x (N, C, H, W); return every layer's output as float32 (N, C, H, W) in NumPy."""
        outputs: list[np.ndarray] = []
        be = self.backend
        self.forward(self.input(x), ForwardContext(), lambda index, y, backward: outputs.append(be.to_numpy(y).copy()))
        return outputs

    def decode(self, outputs: Sequence[Array], thresh: float) -> np.ndarray:
        """Decode the heads' outputs, as `predict` returns them, to boxes: rows (K, 6 + classes), heads in network order.

        A row is: image index, objectness, box center x, y, width, height relative to the network input, and the probability of
        each class. Raises DataError for a network without detection heads.
        """
        heads = [layer for index in self.heads if isinstance(layer := self.nodes[index].layer, DetectionHead)]
        if len(heads) < len(self.heads):
            raise DataError(
                f"{self.config.path}: has no [yolo], [Gaussian_yolo], [region] or [detection] layer, so no boxes; use predict"
            )
        with self.on_device():
            rows = [
                head.decode(self.backend, y, self.width, self.height, thresh)
                for head, y in zip(heads, outputs, strict=True)
            ]
        return np.concatenate(rows)

    def table(self) -> str:
        """Return the layer table as Darknet prints it: type, filters, size/stride, input, output, BFLOPS, and totals."""
        return summary.table(self.nodes)

    def load_weights(self, path: str | Path, seed: int = 0) -> None:
        """Read weights and the image count from a file; layers that it lacks get initial values. Raises WeightsError."""
        arrays, self.seen = read_weights(path, self.nodes, np.random.default_rng(seed))
        with self.on_device():
            for node in self.nodes:
                if owner(node) == node.index:
                    for name, a in arrays[node.index].items():
                        self.weights[node.index][name][...] = self.backend.asarray(a)  # a trainer may have views of it
            self.backend.synchronize()  # so that any stream may use them
        self.program_cache.clear()

    def save_weights(self, path: str | Path, upto: int | None = None) -> None:
        """Write the weights of the first `upto` layers (default all), atomically."""
        arrays = [{k: self.backend.to_numpy(a) for k, a in own.items() if hasattr(a, "dtype")} for own in self.weights]
        write_weights(path, self.nodes, arrays, self.seen, upto)


class DecodedLater(NamedTuple):
    """Heads' outputs whose boxes are decoded when they are read."""

    network: Network
    outputs: Sequence[Array]
    thresh: float

    def read(self) -> np.ndarray:
        """Return rows as `Network.decode` does."""
        return self.network.decode(self.outputs, self.thresh)


def convert(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to an array, or to each array of a recurrent layer's state."""
    return [function(a) for a in value] if isinstance(value, list) else function(value)


def writeable(a: np.ndarray) -> np.ndarray:
    """Return an array that may be written, which those of an unpickler's own buffers, such as joblib's files, may not be."""
    return a if a.flags.writeable else a.copy()


def load_network(
    cfg_path: str | Path | cfg.Config,
    weights_path: str | Path | None = None,
    backend: str | Backend = "auto",
    batch: int = 1,
    width: int | None = None,
    height: int | None = None,
    strict: bool = False,
    upto: int | None = None,
    seed: int = 0,
) -> Network:
    """Load a cfg and, if given, its weights; without weights, initialize them as Darknet does, from `seed`.

    width and height (pixels) override those of [net]. `strict` makes every unknown key an error. `upto` reads the weights of
    the first layers only. Raises CfgError, WeightsError, BackendError.
    """
    be = backends.get(backend)
    config = cfg_path if isinstance(cfg_path, cfg.Config) else cfg.read(cfg_path, strict)
    if width is not None or height is not None:
        net = replace(config.net, width=width or config.net.width, height=height or config.net.height)
        config = replace(config, net=net)
    nodes = build(config)
    check_memory(config.path, nodes, batch)
    rng = np.random.default_rng(seed)
    if weights_path is None:
        return Network(config, nodes, init_weights(nodes, rng), be, batch)
    arrays, seen = read_weights(weights_path, nodes, rng, upto)
    return Network(config, nodes, arrays, be, batch, seen)
