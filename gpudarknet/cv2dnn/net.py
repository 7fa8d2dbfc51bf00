"""OpenCV 4's `Net`, for Darknet networks."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import backend as backends
from .. import boxes, summary
from ..errors import BackendError, DataError
from ..graph import build
from ..layers import ForwardContext
from ..layers.region import Region
from ..layers.softmax import Cost
from ..network import Network
from . import names

DNN_BACKEND_DEFAULT, DNN_BACKEND_HALIDE, DNN_BACKEND_INFERENCE_ENGINE, DNN_BACKEND_OPENCV = range(4)
DNN_BACKEND_VKCOM, DNN_BACKEND_CUDA, DNN_BACKEND_WEBNN, DNN_BACKEND_TIMVX, DNN_BACKEND_CANN = range(4, 9)
DNN_TARGET_CPU, DNN_TARGET_OPENCL, DNN_TARGET_OPENCL_FP16, DNN_TARGET_MYRIAD, DNN_TARGET_VULKAN = range(5)
DNN_TARGET_FPGA, DNN_TARGET_CUDA, DNN_TARGET_CUDA_FP16, DNN_TARGET_HDDL, DNN_TARGET_NPU = range(5, 10)
DNN_TARGET_CPU_FP16 = 10

YOLO_THRESH = 0.2  # class probabilities below it are 0 in a [yolo] layer's rows, whatever the script's threshold
REGION_THRESH = 0.001  # the same for [region], where the cfg has no `thresh`
REGION_NMS = 0.4  # [region] rows have been through non-maximum suppression


@dataclass(frozen=True)
class Layer:
    """What `Net.getLayer` gives: a name, a type, and the layer's arrays."""

    name: str
    type: str
    blobs: list[np.ndarray]
    preferableTarget: int = DNN_TARGET_CPU


class Net:
    """A Darknet network with the methods of cv2.dnn.Net (OpenCV 4).

    Layers have OpenCV's names and numbers (from 1 on, in the order of the cfg). Outputs are float32 NumPy arrays: maps
    (N, C, H, W); of [yolo] and [region], rows (cells * anchors, 5 + classes), or (N, ..., 5 + classes) of a batch of several:
    centre x, y, width, height relative to the input, objectness, and class probabilities. Weighted shortcuts and shortcuts
    with several sources are computed as Darknet does; OpenCV 4 ignored the weights and all sources but the first.
    """

    def __init__(self, network: Network):
        self._network = network
        self._input: np.ndarray | None = None
        self._wish = {"backend": DNN_BACKEND_DEFAULT, "target": DNN_TARGET_CPU}
        self._ticks = np.zeros(0)
        self._read = {source for node in network.nodes for source in node.sources}
        self._parts = [(node.index, part) for node in network.nodes for part in names.parts(node)]
        self._places = {part.name: k for k, (_, part) in enumerate(self._parts)}

    # Input and output

    def setInput(self, blob: Any, name: str = "", scalefactor: float = 1.0, mean: Sequence[float] = ()) -> None:
        """Take a blob (N, C, H, W), float32 or uint8, for the next `forward`; each channel less its mean, times scalefactor.

        Height and width may differ from those of the cfg.
        """
        x = np.asarray(blob, np.float32)
        if x.ndim != 4 or x.shape[1] != self._network.channels:
            raise DataError(
                f"setInput: the blob has shape {x.shape}; this network takes (N, {self._network.channels}, H, W),"
                " as blobFromImage makes it"
            )
        if len(mean):
            x = x - np.asarray(mean, np.float32)[: x.shape[1]].reshape(-1, 1, 1)
        self._input = x if scalefactor == 1 else x * np.float32(scalefactor)

    def forward(self, outputName: Any = "", *, outBlobNames: Sequence[str] | None = None) -> Any:
        """Run the network. A name gives that layer's output, none the last layer's, a list of names a tuple of outputs."""
        asked = outBlobNames if outBlobNames is not None else outputName
        last, single = self._parts[-1][1].name, isinstance(asked, str)
        wanted: list[str] = [asked or last] if isinstance(asked, str) else list(asked) or [last]
        for name in wanted:
            if name not in self._places:
                raise DataError(f"forward: there is no layer '{name}'; getLayerNames() lists them")
        if self._input is None:
            raise DataError("forward: there is no input yet; call setInput(blob) first")
        found = self._run(wanted)
        return found[0] if single else tuple(found)

    def _run(self, wanted: Sequence[str]) -> list[np.ndarray]:
        assert self._input is not None
        net = self._network
        if self._input.shape[2:] != (net.height, net.width):
            net.resize(self._input.shape[3], self._input.shape[2])
        places = [self._parts[self._places[name]] for name in wanted]
        began = time.perf_counter()
        if all(part.compute is None and self._result(index) in net.heads for index, part in places):
            half = self._wish["target"] == DNN_TARGET_CUDA_FP16
            outputs = dict(zip(net.heads, net.predict(self._input, precision="fp16" if half else "fp32"), strict=True))
            spent = np.zeros(len(net.nodes))
        else:
            outputs, spent = self._layer_by_layer(places)
        be, found = net.backend, []
        for index, part in places:
            if part.compute is None:
                found.append(self._arranged(net, self._result(index), outputs[self._result(index)]))
            else:
                sources = [outputs[source] for source in net.nodes[index].sources]
                found.append(be.to_numpy(part.compute(be, net.weights[index], sources)))
        self._ticks = self._per_part(spent, time.perf_counter() - began)
        return [np.ascontiguousarray(y) for y in found]

    def _layer_by_layer(self, places: Sequence[tuple[int, names.Part]]) -> tuple[dict[int, Any], np.ndarray]:
        """Run the layers one by one; return the outputs that these parts are, or are computed from, and each layer's seconds."""
        net = self._network
        needed = {
            source
            for index, part in places
            for source in ((self._result(index),) if part.compute is None else net.nodes[index].sources)
        }
        x = net.input(self._input)
        outputs, spent, last = {-1: x}, np.zeros(len(net.nodes)), time.perf_counter()

        def keep(index: int, y: Any, backward: Any) -> None:
            nonlocal last
            if index in needed:
                outputs[index] = y
            spent[index], last = time.perf_counter() - last, time.perf_counter()

        net.forward(x, ForwardContext(), keep)
        return outputs, spent

    def _result(self, index: int) -> int:
        """Return the layer whose output a layer shows: [cost] shows its input, as OpenCV has it."""
        while index > 0 and isinstance(self._network.nodes[index].layer, Cost):
            index = self._network.nodes[index].sources[0]
        return index

    def _arranged(self, net: Network, index: int, y: Any) -> np.ndarray:
        """Give a section's output (N, C, H, W) the form that OpenCV gives it."""
        layer = net.nodes[index].layer
        kind = names.WORDS.get(type(layer), ("", ""))[1]
        if kind == "Region":
            return rows(net, layer, y)
        y = net.backend.to_numpy(y).astype(np.float32, copy=False)
        return y.reshape(y.shape[0], -1) if kind == "InnerProduct" else y

    # Layers

    def getLayerNames(self) -> tuple[str, ...]:
        """Return the names of all layers, in order."""
        return tuple(part.name for _, part in self._parts)

    def getUnconnectedOutLayers(self) -> np.ndarray:
        """Return the numbers of the layers that no other reads: the outputs."""
        ends = [k for k, (i, part) in enumerate(self._parts, 1) if part.compute is None and i not in self._read]
        return np.array(ends, np.int32)

    def getUnconnectedOutLayersNames(self) -> tuple[str, ...]:
        """Return the names of the layers that no other reads: the outputs."""
        return tuple(self._parts[k - 1][1].name for k in self.getUnconnectedOutLayers())

    def getLayer(self, layerId: Any) -> Layer:
        """Return a layer by its number or its name."""
        k = self.getLayerId(layerId) if isinstance(layerId, str) else int(layerId)
        if k == 0:
            return Layer("_input", "", [])
        if not 1 <= k <= len(self._parts):
            raise DataError(f"getLayer: there is no layer {layerId!r}; numbers go from 1 to {len(self._parts)}")
        index, part = self._parts[k - 1]
        net = self._network
        arrays = {name: net.backend.to_numpy(a) for name, a in net.weights[index].items() if hasattr(a, "dtype")}
        blobs = names.blobs(net.nodes[index].layer, part, arrays)
        return Layer(part.name, part.kind, blobs, self._wish["target"])

    def getLayerId(self, layer: str) -> int:
        """Return a layer's number; 0 for `_input`, -1 for a name that there is not."""
        return 0 if layer == "_input" else self._places.get(layer, -2) + 1

    def getLayerTypes(self) -> tuple[str, ...]:
        """Return the types of layer that occur."""
        return tuple(sorted({part.kind for _, part in self._parts} | {"__NetInputLayer__"}))

    def getLayersCount(self, layerType: str) -> int:
        """Return how many layers are of a type."""
        return sum(part.kind == layerType for _, part in self._parts)

    def empty(self) -> bool:
        """Say whether there are no layers; never so here."""
        return not self._parts

    def dump(self) -> str:
        """Return the layer table, as Darknet prints it."""
        return self._network.table()

    # Cost

    def getFLOPS(self, netInputShape: Sequence[Any]) -> int:
        """Return the operations for an input shape (N, C, H, W), or a list of one, as Darknet counts them.

        OpenCV adds activations and batch norms, a few per cent, and counts a grouped convolution as if it had one group.
        """
        N, _, H, W = netInputShape[0] if np.ndim(netInputShape[0]) else netInputShape
        config = replace(self._network.config, net=replace(self._network.config.net, height=int(H), width=int(W)))
        return round(summary.bflops(build(config)) * 1e9) * int(N)

    def getPerfProfile(self) -> tuple[int, np.ndarray]:
        """Return the time of the last `forward`: in all, and per layer, in ticks of cv2.getTickFrequency().

        Layers are told apart only after a `forward` that asked for an inner layer, because the compiled plan that gives the
        outputs fuses them; else all stands at the last. A section's time stands at the first of OpenCV's layers for it. On a
        GPU a layer's time is that of its launch; the total is true.
        """
        import cv2

        ticks = self._ticks * cv2.getTickFrequency()
        return int(ticks.sum()), ticks

    def _per_part(self, spent: np.ndarray, total: float) -> np.ndarray:
        ticks, seen = np.zeros(len(self._parts)), set()
        for k, (index, _) in enumerate(self._parts):
            if index not in seen:
                ticks[k] = spent[index]
                seen.add(index)
        ticks[-1] += total - ticks.sum()  # the copy from the device, and decoding
        return ticks

    # Where it runs

    def setPreferableBackend(self, backendId: int) -> None:
        """Choose a backend: DNN_BACKEND_CUDA is the GPU, all others are NumPy unless the target is CUDA."""
        self._wish["backend"] = backendId
        self._move()

    def setPreferableTarget(self, targetId: int) -> None:
        """Choose a target: DNN_TARGET_CUDA and DNN_TARGET_CUDA_FP16 are the GPU, all others the CPU.

        With FP16 the network's outputs are computed in half precision, inner layers, where asked for, in float32.
        """
        self._wish["target"] = targetId
        self._move()

    def _move(self) -> None:
        gpu = self._wish["backend"] == DNN_BACKEND_CUDA or self._wish["target"] in (
            DNN_TARGET_CUDA,
            DNN_TARGET_CUDA_FP16,
        )
        net = self._network
        try:
            be = backends.get("cupy" if gpu else "numpy")
        except BackendError as e:  # OpenCV, too, goes on with the CPU and says so
            warnings.warn(f"{e}; the network stays on the CPU", RuntimeWarning, stacklevel=3)
            return
        if be.name != net.backend.name:
            arrays = [{k: net.backend.to_numpy(a) for k, a in w.items() if hasattr(a, "dtype")} for w in net.weights]
            self._network = Network(net.config, net.nodes, arrays, be, net.batch, net.seen)

    def enableFusion(self, fusion: bool) -> None:
        """Change nothing: results do not depend on fusion here."""

    def enableWinograd(self, useWinograd: bool) -> None:
        """Change nothing: there is no Winograd convolution here."""

    def setInputsNames(self, inputBlobNames: Sequence[str]) -> None:
        """Change nothing: a Darknet network has one input."""

    def setInputShape(self, inputName: str, shape: Sequence[int]) -> None:
        """Change nothing: the shape is that of the blob."""


def rows(net: Network, layer: Any, y: Any) -> np.ndarray:
    """Return a head's boxes as OpenCV's Region layer does, all of them: (H*W*A, 5 + classes), a batch of several (N, ...)."""
    be, N = net.backend, y.shape[0]
    y = be.xp.nan_to_num(y.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):  # cells without an object may hold any size
        found = layer.detections(be, y, net.width, net.height, -1.0)  # -1: every cell and anchor, in order
    found = np.concatenate((found[:, 2:6], found[:, 1:2], found[:, 6:]), axis=1)
    probs = found[:, 5:]
    if isinstance(layer, Region):
        entries = be.to_numpy(y).reshape(len(found), -1)
        found[:, 4] = entries[:, layer.coords]
        probs[probs <= region_thresh(layer)] = 0
        for image in np.split(found, N):
            image[:, 5:] = boxes.nms(image[:, :4], image[:, 5:], REGION_NMS)
    else:
        probs[probs <= YOLO_THRESH] = 0
    return found if N == 1 else found.reshape(N, -1, found.shape[1])


def region_thresh(layer: Region) -> float:
    """Return the threshold of a [region]; Darknet's default stands for a cfg without the key, where OpenCV has its own."""
    default = Region.__dataclass_fields__["thresh"].default
    return REGION_THRESH if layer.thresh == default else layer.thresh
