"""Detection on a GPU: two kernels at the end of the CUDA graph decode the boxes of all heads from their maps in the arena.

They write the boxes above the threshold, and their number, to a buffer of fixed capacity. It is copied to pinned memory once,
and waited for when the boxes are read, so several batches can be in flight. If there are more boxes than the buffer holds, their
number says so: a larger buffer is allocated, and the batch runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...backend.cublas import address
from ...backend.cuda import LARGEST
from ...layers import DetectionHead, Layer, Shape
from ...layers.detection import Detection
from ...layers.gaussian_yolo import GaussianYolo
from ...layers.region import Region
from ...layers.yolo import Yolo
from ..steps import FeatureMap
from .emitter import Emitter, Launch

WARP = 32
ROWS_PER_IMAGE, MIN_ROWS = 64, 256  # capacity at first
NO_ANCHORS = np.empty((0, 2), np.float32)


class HeadLayout(NamedTuple):
    """What kernels/detect.cu must know of a head. The names are those of its table."""

    A: int
    E: int
    H: int
    W: int
    skip: int
    option: int
    anchors: np.ndarray


def _yolo(layer: Yolo, shape: Shape) -> HeadLayout:
    anchors = layer.anchor_sizes()[list(layer.anchor_ids)]
    return HeadLayout(len(anchors), 5 + layer.classes, *shape[1:], 0, layer.new_coords, anchors)


def _gaussian(layer: GaussianYolo, shape: Shape) -> HeadLayout:
    anchors = layer.anchor_sizes()[list(layer.anchor_ids)]
    corner = {"center": 0, "left_top": 1, "right_bottom": -1}[layer.yolo_point]
    return HeadLayout(len(anchors), 9 + layer.classes, *shape[1:], 4, corner, anchors)


def _region(layer: Region, shape: Shape) -> HeadLayout | str:
    if layer.tree is not None or layer.map is not None or layer.classfix == -1:
        return "selects classes by tree, map or classfix"
    E = layer.coords + 1 + layer.classes
    return HeadLayout(layer.num, E, *shape[1:], layer.coords - 4, 0, layer.anchor_sizes())


def _detection(layer: Detection, shape: Shape) -> HeadLayout:
    return HeadLayout(layer.num, 0, layer.side, layer.side, 0, int(bool(layer.sqrt)), NO_ANCHORS)


HEADS: dict[type[Layer], Callable[[Any, Shape], HeadLayout | str]] = {  # in the order of the kernels' enum
    Yolo: _yolo,
    GaussianYolo: _gaussian,
    Region: _region,
    Detection: _detection,
}


@dataclass(eq=False)
class ResultBuffer:
    """Pinned memory for the rows of a batch, as kernel `decode` writes them. done: an event, when they have been copied."""

    host: np.ndarray
    address: int
    done: Any

    def __post_init__(self) -> None:
        self.counts = self.host[0].view(np.int32)

    def wait(self) -> tuple[int, np.ndarray]:
        """Wait for the copy; return the number of boxes, and the rows of those that fit."""
        if self.done is not None:
            self.done.synchronize()
        count = int(self.counts[0])
        return count, self.host[1 : 1 + count]


class DetectionStage:
    """The launches that decode all boxes, and the buffers of their results."""

    kernels = ("detect.vote", "detect.decode")

    def __init__(
        self, emitter: Emitter, layouts: Sequence[HeadLayout], maps: Sequence[FeatureMap], kinds: Sequence[int], K: int
    ):
        self.emitter, self.be, be = emitter, emitter.be, emitter.be
        offsets = [emitter.schedule.arena.offsets[m.storage] + m.channel_offset for m in maps]
        views, base, self.width = [emitter.view(m) for m in maps], min(offsets), 6 + K
        table, anchors, self.candidates = list[tuple[int, ...]](), list[np.ndarray](), 0
        for kind, layout, view, offset in zip(kinds, layouts, views, offsets, strict=True):
            A, E, H, W, skip, option, sizes = layout
            count, pixels = emitter.batch * A * H * W, view.sizes[1]
            row = (kind, self.candidates, count, offset - base, view.ld, pixels, A, E, H, W, K, skip, option)
            table.append((*row, sum(map(len, anchors))))
            anchors.append(sizes)
            self.candidates += -(-count // WARP) * WARP
        end = max(offset + view.a.size for offset, view in zip(offsets, views, strict=True))
        self.maps, self.heads = emitter.arena[base:end], be.asarray(np.array(table, np.int32))
        self.anchors = be.asarray(np.concatenate([*anchors, np.zeros((1, 2), np.float32)]))
        self.votes = be.empty((self.candidates // WARP,), np.int32)
        self.thresh_array: Any = be.zeros((1,))
        self.thresh = 0.0
        self.buffers: list[ResultBuffer] = []  # all, which must outlive what the device does
        self.free: list[ResultBuffer] = []
        self.reserve(max(MIN_ROWS, ROWS_PER_IMAGE * emitter.batch))

    def reserve(self, count: int) -> None:
        """Make room for so many boxes: allocate a buffer on the device, and the launches that write to it."""
        self.capacity = min(1 << (count - 1).bit_length(), self.candidates)
        self.rows = self.be.empty((1 + self.capacity, self.width))
        n, (_, H, W) = self.candidates, self.emitter.plan.input.shape
        common, tail = (self.maps, self.heads), (n, len(self.heads))
        vote = self.emitter.launch("detect.vote", n, *common, self.thresh_array, self.votes, *tail)
        arrays = (*common, self.anchors, self.thresh_array, self.votes, self.rows)
        decode = self.emitter.launch("detect.decode", n, *arrays, *tail, self.capacity, W, H)
        self.launches: list[Launch] = [vote, decode]

    def set_threshold(self, thresh: float, stream: Any) -> None:
        """Use this threshold from the next batch on; the graph reads it from the device."""
        if thresh != self.thresh:
            value = np.array([thresh], np.float32)
            if stream is None:
                self.thresh_array[...] = value
            else:
                self.thresh_array.set(value, stream=stream)
            self.thresh = thresh

    def download(self, stream: Any) -> ResultBuffer:
        """Start to copy the rows of the batch that the stream is computing."""
        buffer = self.free.pop() if self.free else self._new_buffer(stream)
        if len(buffer.host) != len(self.rows):
            buffer.wait()  # its last rows may never have been read
            self.buffers.remove(buffer)
            buffer = self._new_buffer(stream)
        if stream is None:
            buffer.host[...] = self.rows
        else:
            runtime = self.be.xp.cuda.runtime
            pointers = buffer.address, address(self.rows)
            runtime.memcpyAsync(*pointers, self.rows.nbytes, runtime.memcpyDeviceToHost, stream.ptr)
            stream.record(buffer.done)
        return buffer

    def _new_buffer(self, stream: Any) -> ResultBuffer:
        if stream is None:
            buffer = ResultBuffer(np.empty(self.rows.shape, np.float32), 0, None)
        else:
            cuda = self.be.xp.cuda
            memory = cuda.alloc_pinned_memory(self.rows.nbytes)
            host = np.frombuffer(memory, np.float32, self.rows.size).reshape(self.rows.shape)
            buffer = ResultBuffer(host, memory.ptr, cuda.Event(disable_timing=True))
        self.buffers.append(buffer)
        return buffer


def detection_stage(
    emitter: Emitter, layers: Sequence[Layer], maps: Sequence[FeatureMap], row_major: set[FeatureMap]
) -> DetectionStage | str:
    """Return the stage for a network's heads, whose outputs are these maps; or why their layers must decode the boxes."""
    layouts = list[HeadLayout]()
    if len(layers) != len(maps):
        return "the plan does not name its heads"
    for layer, m in zip(layers, maps, strict=True):
        layout = HEADS[type(layer)](layer, m.shape) if type(layer) in HEADS else "has no kernel"
        if isinstance(layer, Region) and m not in row_major:
            layout = "is read by another layer"
        if isinstance(layout, str):
            return f"[{layer.section}] {layout}"
        layouts.append(layout)
    classes = {layer.classes for layer in layers if isinstance(layer, DetectionHead)}
    if len(classes) != 1:
        return "the heads have different class counts"
    if emitter.schedule.arena.size > LARGEST:
        return "the arena has 2^31 elements or more"
    kinds = [list(HEADS).index(type(layer)) for layer in layers]
    return DetectionStage(emitter, layouts, maps, kinds, *classes)
