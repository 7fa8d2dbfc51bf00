"""OpenCV-compatible API: OpenCV 4's `Net`, for Darknet networks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import cv2
import numpy as np

from .. import backend as backends
from ..array import Array
from ..errors import BackendError
from ..graph import Node, build
from ..io.atomic import atomic_write
from ..layers import ForwardContext
from ..layers.base import Backward
from ..layers.softmax import Cost
from ..network import Network
from . import arguments, cost
from .arguments import REQUIRED, flag, integer, resolve, text, texts
from .constants import (
    BACKENDS,
    CUDA_TARGETS,
    DNN_BACKEND_CUDA,
    DNN_BACKEND_DEFAULT,
    DNN_BACKEND_INFERENCE_ENGINE,
    DNN_TARGET_CPU,
    DNN_TARGET_CUDA_FP16,
    TARGETS,
)
from .dump import Entry, dot, pbtxt
from .errors import ArgumentError, NetError, raises_opencv_errors
from .layer import INPUT, Layer
from .replacement import OPENCV, ReplacementMeta
from .rows import rows
from .sublayers import Sublayer, blobs, output_shape, sublayers

LAYER_FORMS = (
    {"layerId": (integer, REQUIRED)},
    {"layerName": (text, REQUIRED)},
)
PARAM_FORMS = (
    {"layer": (integer, REQUIRED), "numParam": (integer, 0)},
    {"layerName": (text, REQUIRED), "numParam": (integer, 0)},
)
SET_PARAM_FORMS = (
    {"layer": (integer, REQUIRED), "numParam": (integer, REQUIRED), "blob": (arguments.array, REQUIRED)},
    {"layerName": (text, REQUIRED), "numParam": (integer, REQUIRED), "blob": (arguments.array, REQUIRED)},
)
FORWARD_FORMS = (
    {"outputName": (text, "")},
    {"outputBlobs": (arguments.blobs, ()), "outputName": (text, "")},
    {"outBlobNames": (texts, REQUIRED), "outputBlobs": (arguments.blobs, ())},
)
SHAPES_FORMS = (
    {"netInputShapes": (arguments.shapes, REQUIRED)},
    {"netInputShape": (arguments.shape, REQUIRED)},
)
COST_FORMS = (
    *SHAPES_FORMS,
    {"layerId": (integer, REQUIRED), "netInputShapes": (arguments.shapes, REQUIRED)},
    {"layerId": (integer, REQUIRED), "netInputShape": (arguments.shape, REQUIRED)},
)


@raises_opencv_errors
class Net(metaclass=ReplacementMeta):
    """A Darknet network with the methods of cv2.dnn.Net (OpenCV 4); without arguments, an empty one.

    Layers have OpenCV's names and ids (from 1, in the order of the cfg). Outputs are float32 NumPy arrays that nothing else
    refers to: feature maps (N, C, H, W), (N, K) after a [connected]; for [yolo] and [region], rows (cells * anchors, 5 +
    classes), or (N, ..., 5 + classes) if N > 1: center x, y, width, height relative to the input, objectness, class
    probabilities. Every error is a DarknetError and a cv2.error. docs/opencv.md lists what differs from OpenCV.
    """

    def __init__(self, network: Network | None = None):
        if network is not None and not isinstance(network, Network):
            raise ArgumentError(f"Net: takes no arguments, or a Network; not {arguments.kind(network)}")
        self._loaded = network
        self._input: np.ndarray | None = None
        self._input_names: tuple[str, ...] = ("data",)
        self._input_shape: tuple[int, ...] = ()  # of setInputShape
        self._preferable = {"backend": DNN_BACKEND_DEFAULT, "target": DNN_TARGET_CPU}
        self._ticks: np.ndarray | None = None
        self._aliases: dict[int, int] = {}  # layer of registerOutput -> the layer whose output it returns
        self._registered: list[int] = []  # the outputs of registerOutput, instead of all that no layer reads
        self._region_nms = True  # False once a DetectionModel uses it
        self._layers = sublayers(network.nodes) if network else []
        self._index = {layer.name: k for k, layer in enumerate(self._layers, 1)} | {INPUT: 0}

    @property
    def _network(self) -> Network:
        if self._loaded is None:
            raise NetError("the network is empty; readNetFromDarknet(cfg, weights) reads one")
        return self._loaded

    # Input and output

    def setInput(self, blob: Any, name: str = "", scalefactor: float = 1.0, mean: Any = ()) -> None:
        """Set the input of the next `forward`: a copy of a blob (N, C, H, W), float32 or uint8, minus mean, times scalefactor.

        Height and width may differ from the cfg's. mean: up to four numbers, one per channel.
        """
        x, name = arguments.array(blob), text(name)
        factor = arguments.number(1.0 if scalefactor is None else scalefactor)
        means = np.array(arguments.scalar(mean), np.float32)
        if name and name not in self._input_names:
            raise NetError(f"setInput: no input '{name}'; this network has '{self._input_names[0]}'")
        if name and self._input_names.index(name):
            return  # another input that setInputsNames has named; no layer reads it
        if means.any() and x.ndim == 4 and x.shape[1] <= len(means):
            x -= means[: x.shape[1]].reshape(-1, 1, 1)
        self._input = x if factor == 1 else x * np.float32(factor)

    def setInputsNames(self, inputBlobNames: Sequence[str]) -> None:
        """Name the inputs for `setInput`; the first is the network's."""
        self._input_names = texts(inputBlobNames) or self._input_names

    def setInputShape(self, inputName: str, shape: Sequence[int]) -> None:
        """Set the input size (N, C, H, W) that models use until theirs is set; for `forward`, the blob determines it."""
        if text(inputName) not in self._input_names:
            raise NetError(f"setInputShape: no input '{inputName}'; this network has '{self._input_names[0]}'")
        self._input_shape = arguments.shape(shape)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network.

        forward(outputName="") returns the output of the named layer, by default of the last one.
        forward(outBlobNames, outputBlobs=None) returns a tuple with the output of each; output arrays of its shape are filled.
        forward(outputBlobs, outputName="") returns a tuple with the output of one layer.
        """
        form, values = resolve("forward", args, kwargs, *FORWARD_FORMS)
        if form < 2:
            result = self._outputs([values["outputName"]])
            return result[0] if form == 0 else tuple(result)
        results, given = self._outputs(values["outBlobNames"]), values["outputBlobs"]
        return tuple(fill(y, given[k] if k < len(given) else None) for k, y in enumerate(results))

    def forwardAndRetrieve(self, outBlobNames: Sequence[str]) -> tuple[tuple[np.ndarray], ...]:
        """Run the network; return the outputs of each of these layers, which have one."""
        return tuple((y,) for y in self._outputs(texts(outBlobNames)))

    def forwardAsync(self, outputName: str = "") -> None:
        """Raise NetError, as OpenCV does without Intel's engine; see `forward`."""
        raise NetError("forwardAsync: needs Intel's inference engine; use forward")

    def _outputs(self, names: Sequence[str]) -> list[np.ndarray]:
        net = self._network  # raises if empty
        ids = [self._id("forward", name) if name else len(self._layers) for name in names]
        if 0 in ids or not ids:
            raise NetError(
                f"forward: {'no layer is named' if not ids else f'{INPUT} has no output'}; getLayerNames() lists all"
            )
        if self._preferable["backend"] not in BACKENDS or self._preferable["target"] not in TARGETS:
            raise NetError(
                f"forward: unknown backend or target, {self._preferable}; see DNN_BACKEND_* and DNN_TARGET_*"
            )
        x = self._blob("forward")
        if x.shape[2:] != (net.height, net.width):
            net.resize(x.shape[3], x.shape[2])
        return self._run(x, [self._layers[self._aliases.get(k, k) - 1] for k in ids])

    def _blob(self, method: str) -> np.ndarray:
        """Return the input. Raises NetError if there is none, or not of the network's shape."""
        if self._input is None:
            raise NetError(f"{method}: no input; call setInput(blob) first")
        x, channels = self._input, self._network.channels
        if x.ndim != 4 or not x.size or x.shape[1] != channels:
            raise NetError(
                f"{method}: the input has shape {x.shape}; this network expects (N, {channels}, H, W), as returned by"
                " blobFromImage"
            )
        return x

    def _run(self, x: np.ndarray, layers: Sequence[Sublayer]) -> list[np.ndarray]:
        net, start = self._network, time.perf_counter()
        if all(layer.compute is None and self._result(layer.section) in net.heads for layer in layers):
            half = self._preferable["target"] == DNN_TARGET_CUDA_FP16
            outputs = dict(zip(net.heads, net.predict(x, precision="fp16" if half else "fp32"), strict=True))
            seconds = np.zeros(len(net.nodes))
        else:
            outputs, seconds = self._layer_by_layer(x, layers)
        results = [self._output(layer, outputs) for layer in layers]
        self._ticks = self._per_layer(seconds, time.perf_counter() - start)
        return results

    def _layer_by_layer(self, x: np.ndarray, layers: Sequence[Sublayer]) -> tuple[dict[int, Array], np.ndarray]:
        """Run the layers one by one; return the outputs needed for these layers, and each section's seconds."""
        net = self._network
        needed = {
            source
            for layer in layers
            for source in (
                (self._result(layer.section),) if layer.compute is None else net.nodes[layer.section].sources
            )
        }
        given = net.input(x)
        outputs, seconds, last = {-1: given}, np.zeros(len(net.nodes)), time.perf_counter()

        def keep(index: int, y: Array, backward: Backward) -> None:
            nonlocal last
            if index in needed:
                outputs[index] = y
            seconds[index], last = time.perf_counter() - last, time.perf_counter()

        net.forward(given, ForwardContext(), keep)
        return outputs, seconds

    def _output(self, layer: Sublayer, outputs: dict[int, Array]) -> np.ndarray:
        """Return a layer's output in OpenCV's layout, in memory of its own, given those of sections."""
        net, index = self._network, layer.section
        be, node = net.backend, net.nodes[index]
        if layer.compute is not None:
            y = layer.compute(be, net.weights[index], [outputs[source] for source in node.sources])
        else:
            y = outputs[self._result(index)]
        if layer.kind == "Region":
            return rows(net, index, y, self._region_nms)
        y = be.to_numpy(y)
        return np.array(y.reshape(len(y), -1) if layer.flat else y, np.float32, order="C")

    def _result(self, index: int) -> int:
        """Return the section whose output is returned for a section: for [cost] its input, as in OpenCV."""
        while index > 0 and isinstance(self._network.nodes[index].layer, Cost):
            index = self._network.nodes[index].sources[0]
        return index

    # Layers

    def empty(self) -> bool:
        """Return whether there are no layers."""
        return not self._layers

    def getLayerNames(self) -> tuple[str, ...]:
        """Return the names of all layers, in order."""
        return tuple(layer.name for layer in self._layers)

    def getUnconnectedOutLayers(self) -> np.ndarray:
        """Return the ids of the output layers, int32 (K,): those that no other layer reads, or those of registerOutput."""
        read = {source for layer in self._layers for source in layer.inputs}
        unread = [k for k in range(1, len(self._layers) + 1) if k not in read]
        return np.array(self._registered or unread or [0], np.int32)

    def getUnconnectedOutLayersNames(self) -> tuple[str, ...]:
        """Return the names of the output layers, which no other layer reads."""
        return tuple(self._layers[k - 1].name if k else INPUT for k in self.getUnconnectedOutLayers())

    def getLayer(self, *args: Any, **kwargs: Any) -> Layer:
        """Return a layer by its id or name.

        getLayer(layerId), getLayer(layerName)
        """
        _, values = resolve("getLayer", args, kwargs, *LAYER_FORMS)
        return Layer(self, self._id("getLayer", next(iter(values.values()))))

    def getLayerId(self, layer: str) -> int:
        """Return a layer's id; 0 for `_input`, -1 for an unknown name."""
        return self._index.get(text(layer), -1)

    def getLayerTypes(self) -> tuple[str, ...]:
        """Return the layer types in this network."""
        return tuple(sorted({layer.kind for layer in self._layers} | {"__NetInputLayer__"}))

    def getLayersCount(self, layerType: str) -> int:
        """Return the number of layers of a type."""
        return sum(layer.kind == text(layerType) for layer in self._layers)

    def registerOutput(self, outputName: str, layerId: int, outputPort: int) -> int:
        """Give a layer's output a name, as an Identity layer that reads it; return the id of that layer."""
        name, _ = text(outputName), integer(outputPort)
        source = self._id("registerOutput", integer(layerId))
        if not source:
            raise NetError("registerOutput: layer 0 has no output")
        if self._layers[source - 1].name != name:
            if name in self._index:
                raise NetError(f"registerOutput: '{name}' is a layer already")
            self._layers.append(
                replace(self._layers[source - 1], name=name, kind="Identity", inputs=(source,), arrays=())
            )
            self._index[name] = len(self._layers)
            self._aliases[len(self._layers)] = source
        self._registered.append(self._index[name])
        return self._index[name]

    def _id(self, method: str, layer: int | str) -> int:
        """Return the id of a layer by id or name. Raises NetError if there is none."""
        k = layer if isinstance(layer, int) else self._index.get(layer, -1)
        if not 0 <= k <= len(self._layers):
            way = "getLayerNames() lists all" if isinstance(layer, str) else f"ids range from 0 to {len(self._layers)}"
            raise NetError(f"{method}: no layer {layer!r}; {way}")
        return k

    # Weights

    def getParam(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """Return a copy of an array of a layer.

        getParam(layer, numParam=0), getParam(layerName, numParam=0)
        """
        _, values = resolve("getParam", args, kwargs, *PARAM_FORMS)
        layer, number = values.values()
        arrays = self._blobs(self._id("getParam", layer))
        if not 0 <= number < len(arrays):
            raise NetError(f"getParam: layer {layer!r} has {len(arrays)} arrays, so none with the number {number}")
        return arrays[number]

    def setParam(self, *args: Any, **kwargs: Any) -> None:
        """Replace an array of a layer by one of the same size.

        setParam(layer, numParam, blob), setParam(layerName, numParam, blob)
        """
        _, values = resolve("setParam", args, kwargs, *SET_PARAM_FORMS)
        layer, number, blob = values.values()
        k, net = self._id("setParam", layer), self._network
        sublayer = self._layers[k - 1]
        names = [name for name in sublayer.arrays if name in net.weights[sublayer.section]] if k else []
        if not 0 <= number < len(names):
            raise NetError(f"setParam: layer {layer!r} has {len(names)} arrays, so none with the number {number}")
        weights = net.weights[sublayer.section]
        if blob.size != weights[names[number]].size:
            raise NetError(
                f"setParam: the blob has shape {blob.shape}; layer {layer!r} needs {self._blobs(k)[number].shape}"
            )
        weights[names[number]] = net.backend.asarray(blob.reshape(weights[names[number]].shape))
        net.program_cache.clear()

    def _blobs(self, layer_id: int) -> tuple[np.ndarray, ...]:
        if not layer_id:
            return ()
        net, layer = self._network, self._layers[layer_id - 1]
        weights = {
            name: net.backend.to_numpy(a).copy()
            for name, a in net.weights[layer.section].items()
            if name in layer.arrays
        }
        return blobs(net.nodes[layer.section].layer, layer, weights) if layer.kind != "Identity" else ()

    # Shapes and cost

    def getLayersShapes(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, tuple[Any, ...], tuple[Any, ...]]:
        """Return the ids of all layers, and for each the shapes of its inputs and of its outputs, as int32 arrays.

        getLayersShapes(netInputShape), of (N, C, H, W), or getLayersShapes(netInputShapes), a list of one.
        """
        _, values = resolve("getLayersShapes", args, kwargs, *SHAPES_FORMS)
        shapes, _ = self._shapes("getLayersShapes", values)
        arrays = [np.array(s, np.int32) for s in shapes]
        inputs = [(arrays[0],), *(tuple(arrays[k] for k in layer.inputs) for layer in self._layers)]
        return np.arange(len(shapes), dtype=np.int32), tuple(inputs), tuple((s,) for s in arrays)

    def getFLOPS(self, *args: Any, **kwargs: Any) -> int:
        """Return the FLOPs for an input shape (N, C, H, W), of the network or of a layer.

        getFLOPS(netInputShape), getFLOPS(netInputShapes), with a list of one, getFLOPS(layerId, netInputShape or netInputShapes)

        They are counted as by OpenCV: activations and batch norms too, and convolutions without regard to their groups.
        """
        _, values = resolve("getFLOPS", args, kwargs, *COST_FORMS)
        shapes, nodes = self._shapes("getFLOPS", values)
        ids = [self._id("getFLOPS", values["layerId"])] if "layerId" in values else range(1, len(shapes))
        layers = [(k, self._layers[k - 1]) for k in ids if k]
        return sum(
            cost.flops(layer.kind, nodes[layer.section].layer, [shapes[i] for i in layer.inputs], shapes[k])
            for k, layer in layers
        )

    def getMemoryConsumption(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Return the bytes of the weights and of all outputs for an input shape (N, C, H, W).

        getMemoryConsumption(netInputShape), or with a layer: getMemoryConsumption(layerId, netInputShape or a list of one).
        """
        _, values = resolve("getMemoryConsumption", args, kwargs, *COST_FORMS[1:])
        shapes, _ = self._shapes("getMemoryConsumption", values)
        ids = [self._id("getMemoryConsumption", values["layerId"])] if "layerId" in values else range(len(shapes))
        return sum(a.nbytes for k in ids for a in self._blobs(k)), sum(4 * prod(shapes[k]) for k in ids)

    def _shapes(self, method: str, values: dict[str, Any]) -> tuple[list[tuple[int, ...]], Sequence[Node]]:
        """Return the shape of every layer's output for the input shape among a call's values, and the sections."""
        net = self._network
        given = values["netInputShapes"] if "netInputShapes" in values else [values["netInputShape"]]
        shape: tuple[int, ...] = given[0] if len(given) == 1 else ()
        if len(shape) != 4 or shape[1] != net.channels or min(shape) < 1:
            raise NetError(
                f"{method}: the input is {given}; this network expects one of shape (N, {net.channels}, H, W)"
            )
        nodes = net.nodes
        if shape[2:] != (net.height, net.width):
            nodes = build(replace(net.config, net=replace(net.config.net, height=shape[2], width=shape[3])))
        shapes = [shape, *(output_shape(nodes[layer.section], layer, shape[0]) for layer in self._layers)]
        for alias, source in self._aliases.items():
            shapes[alias] = shapes[source]
        return shapes, nodes

    def getPerfProfile(self) -> tuple[int, np.ndarray]:
        """Return the time of the last `forward`, total and per layer, in ticks of cv2.getTickFrequency().

        Times per layer are known only after a `forward` that requested an inner layer; otherwise the compiled plan fuses
        layers, and the last one gets the total. A section's time is attributed to the first of its OpenCV layers. On a GPU,
        a layer's time is its launch time; the total is exact.
        """
        if self._ticks is None:
            raise NetError("getPerfProfile: nothing is measured yet; call forward first")
        ticks = self._ticks * cv2.getTickFrequency()
        return int(ticks.sum()), ticks

    def _per_layer(self, seconds: np.ndarray, total: float) -> np.ndarray:
        ticks, seen = np.zeros(len(self._layers)), set()
        for k, layer in enumerate(self._layers):
            if layer.section not in seen:
                ticks[k] = seconds[layer.section]
                seen.add(layer.section)
        ticks[-1] += total - ticks.sum()  # the copy from the device, and decoding
        return ticks

    # Text

    def dump(self) -> str:
        """Return the layers as a Graphviz graph, for the input that is set."""
        return dot(self._entries("dump"), f"{self._network.backend.name}/{self._preferable['target']}")

    def dumpToFile(self, path: str) -> None:
        """Write `dump` to a .dot file."""
        self._write(path, self.dump())

    def dumpToPbtxt(self, path: str) -> None:
        """Write the layers to a .pbtxt file, which Netron shows."""
        self._write(path, pbtxt(self._entries("dumpToPbtxt"), self._input_names[0]))

    def _write(self, path: str, content: str) -> None:
        with atomic_write(text(path), NetError) as file:
            file.write_text(content)

    def _entries(self, method: str) -> list[Entry]:
        shapes, _ = self._shapes(method, {"netInputShape": self._blob(method).shape})
        names = [INPUT, *self.getLayerNames()]
        first = Entry(INPUT, "", shapes[0], ())
        return [first, *(
            Entry(layer.name, layer.kind, shape, tuple(names[k] for k in layer.inputs))
            for layer, shape in zip(self._layers, shapes[1:], strict=True)
        )]  # fmt: skip

    # Backend and target

    def setPreferableBackend(self, backendId: int) -> None:
        """Select a backend: DNN_BACKEND_CUDA is the GPU, DNN_BACKEND_INFERENCE_ENGINE OpenVINO.

        All others are NumPy, or what GPUDARKNET_BACKEND names. With any of them, a CUDA target is the GPU.
        """
        self._preferable["backend"] = integer(backendId)
        self._move()

    def setPreferableTarget(self, targetId: int) -> None:
        """Select a target: DNN_TARGET_CUDA and DNN_TARGET_CUDA_FP16 are the GPU, all others the CPU.

        With FP16, the network's outputs are computed in half precision, requested inner layers in float32.
        """
        self._preferable["target"] = integer(targetId)
        self._move()

    def _move(self) -> None:
        gpu = self._preferable["backend"] == DNN_BACKEND_CUDA or self._preferable["target"] in CUDA_TARGETS
        inference_engine = self._preferable["backend"] == DNN_BACKEND_INFERENCE_ENGINE
        net = self._loaded
        if net is None:
            return
        try:
            be = backends.get("cupy" if gpu else "openvino" if inference_engine else "auto")
            if not gpu and be.name == "cupy":
                be = backends.get("numpy")
        except BackendError as e:  # OpenCV, too, warns and falls back to the CPU
            warnings.warn(f"{e}; the network stays on the CPU", RuntimeWarning, stacklevel=4)
            return
        if be.name != net.backend.name:
            arrays = [{k: net.backend.to_numpy(a) for k, a in w.items() if hasattr(a, "dtype")} for w in net.weights]
            self._loaded = Network(net.config, net.nodes, arrays, be, net.batch, net.seen)

    def enableFusion(self, fusion: bool) -> None:
        """No-op: results do not depend on fusion here."""
        flag(fusion)

    def enableWinograd(self, useWinograd: bool) -> None:
        """No-op: the compiled plan chooses its convolution algorithms itself."""
        flag(useWinograd)

    def setHalideScheduler(self, scheduler: str) -> None:
        """No-op: there is no Halide."""
        text(scheduler)

    # What a Darknet network does not have

    def getInputDetails(self) -> None:
        """Raise NetError, as OpenCV does: the network is not quantized."""
        raise NetError("getInputDetails: the network is not quantized")

    def getOutputDetails(self) -> None:
        """Raise NetError, as OpenCV does: the network is not quantized."""
        raise NetError("getOutputDetails: the network is not quantized")

    def quantize(self, calibData: Any, inputsDtype: int, outputsDtype: int, perChannel: bool = True) -> None:
        """Raise NetError: there is no 8-bit engine."""
        raise NetError("quantize: there are no 8-bit networks here; DNN_TARGET_CUDA_FP16 computes in half precision")

    def connect(self, outPin: str, inpPin: str) -> None:
        """Raise NetError: the cfg connects the layers."""
        raise NetError("connect: the cfg connects the layers; edit its [route] and [shortcut] sections")

    def addLayer(self, name: str, type: str, dtype: int, params: dict[str, Any]) -> int:
        """Raise NetError: the cfg lists the layers."""
        raise NetError(f"addLayer: the cfg lists the layers; add a section for '{name}' there")

    def addLayerToPrev(self, name: str, type: str, dtype: int, params: dict[str, Any]) -> int:
        """Raise NetError: the cfg lists the layers."""
        raise NetError(f"addLayerToPrev: the cfg lists the layers; add a section for '{name}' there")

    @staticmethod
    def readFromModelOptimizer(*args: Any, **kwargs: Any) -> Any:
        """Read OpenVINO's format with OpenCV."""
        return OPENCV["Net"].readFromModelOptimizer(*args, **kwargs)


def fill(y: np.ndarray, given: Any) -> np.ndarray:
    """Return y, in the array of the caller if that has its shape and type."""
    if isinstance(given, np.ndarray) and given.shape == y.shape and given.dtype == y.dtype:
        given[...] = y
        return given
    return y
