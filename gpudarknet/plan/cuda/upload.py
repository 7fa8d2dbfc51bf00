"""Image batches for plans on a GPU: their bytes are uploaded while it computes, and converted to floats on the device.

batch = uploader(be).upload(images, sizes)     # uint8 (H, W, C) each, and the size to scale each one to
program.run(batch)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Any

import numpy as np

from ...array import Array
from ...backend import Backend
from ...ops import resize
from .stream import per_device
from .view import View

Size = tuple[int, int]  # width, height


@dataclass(eq=False)
class StagingBuffer:
    """Memory for the bytes of a batch: pinned on the host, at an address, and on the device, with events."""

    host: np.ndarray
    address: int
    device: Any  # an array of CuPy
    upload_done: Any  # the device memory holds the batch
    last_read: Any  # it may be overwritten


@dataclass
class ImageBatch:
    """A batch of images on the device. When the last reference is dropped, its staging buffer is free for another batch.

    runs: consecutive images of one shape, as bytes (n, h, w, C), and their size in the network's input. release: called with
    the buffer then.
    """

    be: Backend
    runs: list[tuple[Array, Size]]
    buffer: StagingBuffer | None = None
    release: Callable[[StagingBuffer], object] | None = None

    def __len__(self) -> int:
        return sum(len(images) for images, _ in self.runs)

    def __del__(self) -> None:
        if self.buffer is not None and self.release is not None:
            self.release(self.buffer)

    def unscaled(self, W: int, H: int) -> Array | None:
        """Return all images as one array (n, H, W, C) if they have that size already, else None."""
        (images, size), *more = self.runs
        return images if not more and size == (W, H) == images.shape[2:0:-1] else None

    def write(self, y: View) -> None:
        """Write the network's input into a map of the plan, on the current stream."""
        assert self.be.launch is not None
        (_, H, W), first = y.shape, 0
        with self.reading():
            for images, size in self.runs:
                part = y.a[first * H * W * y.ld :]
                resize.write(self.be.launch, images, part, (W, H), size, (H * W * y.ld, 1, y.ld))
                first += len(images)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make the block's launches on the current stream wait for the upload, and the next upload wait for them."""
        if self.buffer is None:
            yield
            return
        stream = self.be.xp.cuda.get_current_stream()
        stream.wait_event(self.buffer.upload_done)
        yield
        stream.record(self.buffer.last_read)


class Uploader:
    """Uploads images to one device, on its own stream. A backend without streams, as in the tests, copies synchronously."""

    def __init__(self, be: Backend):
        self.be, self.cuda = be, getattr(be.xp, "cuda", None)  # type: Backend, Any
        # Keeps all buffers alive: if an ImageBatch is collected in a reference cycle, its buffer must not be garbage too, or
        # CuPy's events would be destroyed, and the buffer given to the next batch.
        self.buffers: list[StagingBuffer] = []
        self.free: list[StagingBuffer] = []
        self.lock = threading.Lock()
        self.stream: Any = None if self.cuda is None else self.cuda.Stream(non_blocking=True)

    def upload(self, images: Sequence[np.ndarray], sizes: Sequence[Size]) -> ImageBatch:
        """Start to upload images uint8 (H, W, C), and return. The caller may overwrite them at once."""
        total, at, runs = sum(image.size for image in images), 0, []
        buffer = None if self.stream is None else self._free_buffer(total)
        host = np.empty(total, np.uint8) if buffer is None else buffer.host[:total]
        for image in images:
            host[at : at + image.size].reshape(image.shape)[...] = image
            at += image.size
        device = self.be.asarray(host) if buffer is None else self._copy(buffer, total)
        at = 0
        for (shape, size), same in groupby(zip((image.shape for image in images), sizes, strict=True)):
            n = len(list(same))
            end = at + n * prod(shape)
            runs.append((device[at:end].reshape(n, *shape), size))
            at = end
        return ImageBatch(self.be, runs, buffer, self.free.append)

    def _copy(self, buffer: StagingBuffer, total: int) -> Array:
        device = buffer.device[:total]
        with self.lock:
            self.stream.wait_event(buffer.last_read)
            runtime, pointers = self.cuda.runtime, (buffer.device.data.ptr, buffer.address)
            runtime.memcpyAsync(*pointers, total, runtime.memcpyHostToDevice, self.stream.ptr)
            self.stream.record(buffer.upload_done)
        return device

    def _free_buffer(self, total: int) -> StagingBuffer:
        """Return a free buffer: two alternate while batches of the same size arrive."""
        with self.lock:
            buffer = self.free.pop(0) if self.free else None
        if buffer is not None:
            if not buffer.upload_done.done:  # the copy has not read the host memory yet
                buffer.upload_done.synchronize()
            if buffer.host.size >= total:
                return buffer
            buffer.last_read.synchronize()  # the device memory returns to CuPy's pool
            self.buffers.remove(buffer)
        # A power of two: with images of many sizes, a buffer is soon large enough for all.
        size = 1 << (total - 1).bit_length()
        memory = self.cuda.alloc_pinned_memory(size)
        pinned = np.frombuffer(memory, np.uint8, size), memory.ptr
        upload_done, last_read = (self.cuda.Event(disable_timing=True) for _ in range(2))
        with self.stream:  # CuPy's pool reuses memory in the order of this stream
            buffer = StagingBuffer(*pinned, self.be.empty((size,), np.uint8), upload_done, last_read)
        self.buffers.append(buffer)
        return buffer


_uploaders: dict[tuple[Any, int], Uploader] = {}


def uploader(be: Backend) -> Uploader:
    """Return the uploader of the current device."""
    return per_device(be, _uploaders, Uploader)
