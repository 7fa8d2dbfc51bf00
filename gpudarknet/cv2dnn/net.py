"""OpenCV-compatible API: OpenCV 4's `Net`, for Darknet networks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import backend as backends
from .. import boxes, summary
from ..array import Array
from ..errors import BackendError, DataError
from ..graph import build
from ..layers import DetectionHead, ForwardContext
from ..layers.base import Backward
from ..layers.region import Region
from ..layers.softmax import Cost
from ..network import Network
from . import sublayers

DNN_BACKEND_DEFAULT, DNN_BACKEND_HALIDE, DNN_BACKEND_INFERENCE_ENGINE, DNN_BACKEND_OPENCV = range(4)
DNN_BACKEND_VKCOM, DNN_BACKEND_CUDA, DNN_BACKEND_WEBNN, DNN_BACKEND_TIMVX, DNN_BACKEND_CANN = range(4, 9)
DNN_TARGET_CPU, DNN_TARGET_OPENCL, DNN_TARGET_OPENCL_FP16, DNN_TARGET_MYRIAD, DNN_TARGET_VULKAN = range(5)
DNN_TARGET_FPGA, DNN_TARGET_CUDA, DNN_TARGET_CUDA_FP16, DNN_TARGET_HDDL, DNN_TARGET_NPU = range(5, 10)
DNN_TARGET_CPU_FP16 = 10

YOLO_THRESH = (
    0.2  # class probabilities up to this are 0 in a [yolo] layer's rows, independent of the script's threshold
)
REGION_THRESH = 0.001  # the same for [region], if the cfg has no `thresh`
REGION_NMS = 0.4  # threshold of the NMS that is applied to [region] rows


@dataclass(frozen=True)
class Layer:
    """The result of `Net.getLayer`: name, type and arrays of a layer."""

    name: str
    type: str
    blobs: list[np.ndarray]
    preferableTarget: int = DNN_TARGET_CPU


class Net:
    """A Darknet network with the methods of cv2.dnn.Net (OpenCV 4).

    Layers have OpenCV's names and ids (from 1, in the order of the cfg). Outputs are float32 NumPy arrays: feature maps
    (N, C, H, W); for [yolo] and [region], rows (cells * anchors, 5 + classes), or (N, ..., 5 + classes) if N > 1: center x,
    y, width, height relative to the input, objectness, class probabilities. Weighted shortcuts and shortcuts with several
    sources are computed as in Darknet; OpenCV 4 ignored the weights and all sources but the first.
    """

    def __init__(self, network: Network):
        self._network = network
        self._input: np.ndarray | None = None
        self._preferable = {"backend": DNN_BACKEND_DEFAULT, "target": DNN_TARGET_CPU}
        self._ticks = np.zeros(0)
        self._consumed = {source for node in network.nodes for source in node.sources}
        self._sublayers = [(node.index, layer) for node in network.nodes for layer in sublayers.sublayers(node)]
        self._index = {layer.name: k for k, (_, layer) in enumerate(self._sublayers)}

    # Input and output

    def setInput(self, blob: Any, name: str = "", scalefactor: float = 1.0, mean: Sequence[float] = ()) -> None:
        """Set the input of the next `forward`: a blob (N, C, H, W), float32 or uint8, minus mean, times scalefactor.

        Height and width may differ from the cfg's.
        """
        x = np.asarray(blob, np.float32)
        if x.ndim != 4 or x.shape[1] != self._network.channels:
            raise DataError(
                f"setInput: the blob has shape {x.shape}; this network expects (N, {self._network.channels}, H, W),"
                " as returned by blobFromImage"
            )
        if len(mean):
            x = x - np.asarray(mean, np.float32)[: x.shape[1]].reshape(-1, 1, 1)
        self._input = x if scalefactor == 1 else x * np.float32(scalefactor)

    def forward(self, outputName: str | Sequence[str] = "", *, outBlobNames: Sequence[str] | None = None) -> Any:
        """Run the network. Return the output of the named layer, of the last layer, or a tuple for a list of names."""
        requested = outBlobNames if outBlobNames is not None else outputName
        last, single = self._sublayers[-1][1].name, isinstance(requested, str)
        wanted: list[str] = [requested or last] if isinstance(requested, str) else list(requested) or [last]
        for name in wanted:
            if name not in self._index:
                raise DataError(f"forward: no layer '{name}'; getLayerNames() lists all")
        if self._input is None:
            raise DataError("forward: no input; call setInput(blob) first")
        results = self._run(wanted)
        return results[0] if single else tuple(results)

    def _run(self, wanted: Sequence[str]) -> list[np.ndarray]:
        assert self._input is not None
        net = self._network
        if self._input.shape[2:] != (net.height, net.width):
            net.resize(self._input.shape[3], self._input.shape[2])
        layers = [self._sublayers[self._index[name]] for name in wanted]
        start = time.perf_counter()
        if all(layer.compute is None and self._result(index) in net.heads for index, layer in layers):
            half = self._preferable["target"] == DNN_TARGET_CUDA_FP16
            outputs = dict(zip(net.heads, net.predict(self._input, precision="fp16" if half else "fp32"), strict=True))
            seconds = np.zeros(len(net.nodes))
        else:
            outputs, seconds = self._layer_by_layer(layers)
        be, results = net.backend, []
        for index, layer in layers:
            if layer.compute is None:
                results.append(self._opencv_layout(net, self._result(index), outputs[self._result(index)]))
            else:
                sources = [outputs[source] for source in net.nodes[index].sources]
                results.append(be.to_numpy(layer.compute(be, net.weights[index], sources)))
        self._ticks = self._per_sublayer(seconds, time.perf_counter() - start)
        return [np.ascontiguousarray(y) for y in results]

    def _layer_by_layer(self, layers: Sequence[tuple[int, sublayers.Sublayer]]) -> tuple[dict[int, Array], np.ndarray]:
        """Run the layers one by one; return the outputs needed for these sublayers, and each layer's seconds."""
        net = self._network
        needed = {
            source
            for index, layer in layers
            for source in ((self._result(index),) if layer.compute is None else net.nodes[index].sources)
        }
        x = net.input(self._input)
        outputs, seconds, last = {-1: x}, np.zeros(len(net.nodes)), time.perf_counter()

        def keep(index: int, y: Array, backward: Backward) -> None:
            nonlocal last
            if index in needed:
                outputs[index] = y
            seconds[index], last = time.perf_counter() - last, time.perf_counter()

        net.forward(x, ForwardContext(), keep)
        return outputs, seconds

    def _result(self, index: int) -> int:
        """Return the layer whose output is returned for a layer: for [cost] its input, as in OpenCV."""
        while index > 0 and isinstance(self._network.nodes[index].layer, Cost):
            index = self._network.nodes[index].sources[0]
        return index

    def _opencv_layout(self, net: Network, index: int, y: Array) -> np.ndarray:
        """Convert a section's output (N, C, H, W) to OpenCV's layout."""
        layer = net.nodes[index].layer
        kind = sublayers.NAMES.get(type(layer), ("", ""))[1]
        if kind == "Region":
            assert isinstance(layer, DetectionHead)
            return rows(net, layer, y)
        y = net.backend.to_numpy(y).astype(np.float32, copy=False)
        return y.reshape(y.shape[0], -1) if kind == "InnerProduct" else y

    # Layers

    def getLayerNames(self) -> tuple[str, ...]:
        """Return the names of all layers, in order."""
        return tuple(layer.name for _, layer in self._sublayers)

    def getUnconnectedOutLayers(self) -> np.ndarray:
        """Return the ids of the output layers, which no other layer reads."""
        ids = [
            k for k, (i, layer) in enumerate(self._sublayers, 1) if layer.compute is None and i not in self._consumed
        ]
        return np.array(ids, np.int32)

    def getUnconnectedOutLayersNames(self) -> tuple[str, ...]:
        """Return the names of the output layers, which no other layer reads."""
        return tuple(self._sublayers[k - 1][1].name for k in self.getUnconnectedOutLayers())

    def getLayer(self, layerId: int | str) -> Layer:
        """Return a layer by id or name."""
        k = self.getLayerId(layerId) if isinstance(layerId, str) else int(layerId)
        if k == 0:
            return Layer("_input", "", [])
        if not 1 <= k <= len(self._sublayers):
            raise DataError(f"getLayer: no layer {layerId!r}; ids range from 1 to {len(self._sublayers)}")
        index, layer = self._sublayers[k - 1]
        net = self._network
        arrays = {name: net.backend.to_numpy(a) for name, a in net.weights[index].items() if hasattr(a, "dtype")}
        blobs = sublayers.blobs(net.nodes[index].layer, layer, arrays)
        return Layer(layer.name, layer.kind, blobs, self._preferable["target"])

    def getLayerId(self, layer: str) -> int:
        """Return a layer's id; 0 for `_input`, -1 for an unknown name."""
        return 0 if layer == "_input" else self._index.get(layer, -2) + 1

    def getLayerTypes(self) -> tuple[str, ...]:
        """Return the layer types in this network."""
        return tuple(sorted({layer.kind for _, layer in self._sublayers} | {"__NetInputLayer__"}))

    def getLayersCount(self, layerType: str) -> int:
        """Return the number of layers of a type."""
        return sum(layer.kind == layerType for _, layer in self._sublayers)

    def empty(self) -> bool:
        """Return whether there are no layers; always False here."""
        return not self._sublayers

    def dump(self) -> str:
        """Return Darknet's layer table."""
        return self._network.table()

    # Cost

    def getFLOPS(self, netInputShape: Sequence[Any]) -> int:
        """Return the FLOPs for an input shape (N, C, H, W), or a list of one, as counted by Darknet.

        OpenCV adds activations and batch norms (a few per cent) and ignores the groups of grouped convolutions.
        """
        N, _, H, W = netInputShape[0] if np.ndim(netInputShape[0]) else netInputShape
        config = replace(self._network.config, net=replace(self._network.config.net, height=int(H), width=int(W)))
        return round(summary.bflops(build(config)) * 1e9) * int(N)

    def getPerfProfile(self) -> tuple[int, np.ndarray]:
        """Return the time of the last `forward`, total and per layer, in ticks of cv2.getTickFrequency().

        Times per layer are known only after a `forward` that requested an inner layer; otherwise the compiled plan fuses
        layers, and the last one gets the total. A section's time is attributed to the first of its OpenCV layers. On a GPU,
        a layer's time is its launch time; the total is exact.
        """
        import cv2

        ticks = self._ticks * cv2.getTickFrequency()
        return int(ticks.sum()), ticks

    def _per_sublayer(self, seconds: np.ndarray, total: float) -> np.ndarray:
        ticks, seen = np.zeros(len(self._sublayers)), set()
        for k, (index, _) in enumerate(self._sublayers):
            if index not in seen:
                ticks[k] = seconds[index]
                seen.add(index)
        ticks[-1] += total - ticks.sum()  # the copy from the device, and decoding
        return ticks

    # Backend and target

    def setPreferableBackend(self, backendId: int) -> None:
        """Select a backend: DNN_BACKEND_CUDA is the GPU; all others are NumPy, unless the target is CUDA."""
        self._preferable["backend"] = backendId
        self._move()

    def setPreferableTarget(self, targetId: int) -> None:
        """Select a target: DNN_TARGET_CUDA and DNN_TARGET_CUDA_FP16 are the GPU, all others the CPU.

        With FP16, the network's outputs are computed in half precision, requested inner layers in float32.
        """
        self._preferable["target"] = targetId
        self._move()

    def _move(self) -> None:
        gpu = self._preferable["backend"] == DNN_BACKEND_CUDA or self._preferable["target"] in (
            DNN_TARGET_CUDA,
            DNN_TARGET_CUDA_FP16,
        )
        net = self._network
        try:
            be = backends.get("cupy" if gpu else "numpy")
        except BackendError as e:  # OpenCV, too, warns and falls back to the CPU
            warnings.warn(f"{e}; the network stays on the CPU", RuntimeWarning, stacklevel=3)
            return
        if be.name != net.backend.name:
            arrays = [{k: net.backend.to_numpy(a) for k, a in w.items() if hasattr(a, "dtype")} for w in net.weights]
            self._network = Network(net.config, net.nodes, arrays, be, net.batch, net.seen)

    def enableFusion(self, fusion: bool) -> None:
        """No-op: results do not depend on fusion here."""

    def enableWinograd(self, useWinograd: bool) -> None:
        """No-op: the compiled plan chooses its convolution algorithms itself."""

    def setInputsNames(self, inputBlobNames: Sequence[str]) -> None:
        """No-op: a Darknet network has one input."""

    def setInputShape(self, inputName: str, shape: Sequence[int]) -> None:
        """No-op: the blob determines the shape."""


def rows(net: Network, layer: DetectionHead, y: Array) -> np.ndarray:
    """Return all boxes of a head like OpenCV's Region layer: (H*W*A, 5 + classes), or (N, ...) if N > 1."""
    be, N = net.backend, y.shape[0]
    y = be.xp.nan_to_num(y.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):  # boxes of cells without an object can have any size
        decoded = layer.decode(be, y, net.width, net.height, -1.0)  # -1: every cell and anchor, in order
    out = np.concatenate((decoded[:, 2:6], decoded[:, 1:2], decoded[:, 6:]), axis=1)
    probs = out[:, 5:]
    if isinstance(layer, Region):
        raw = be.to_numpy(y).reshape(len(out), -1)
        out[:, 4] = raw[:, layer.coords]
        probs[probs <= region_thresh(layer)] = 0
        for image in np.split(out, N):
            image[:, 5:] = boxes.nms(image[:, :4], image[:, 5:], REGION_NMS)
    else:
        probs[probs <= YOLO_THRESH] = 0
    return out if N == 1 else out.reshape(N, -1, out.shape[1])


def region_thresh(layer: Region) -> float:
    """Return the threshold of a [region]: OpenCV's default instead of Darknet's if the cfg does not set it."""
    default = Region.__dataclass_fields__["thresh"].default
    return REGION_THRESH if layer.thresh == default else layer.thresh
