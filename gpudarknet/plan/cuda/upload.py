"""Pictures on their way to a plan on a GPU: their bytes go up while it computes, and it makes floats of them where it needs them.

pictures = uploader(be).upload(images, sizes)     # uint8 (H, W, C) each, and the size that each is to have
program.run(pictures)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from ...backend import Backend
from ...ops import resize
from .stream import per_device
from .view import View

Size = tuple[int, int]  # width, height


@dataclass(eq=False)
class StagingBuffer:
    """Memory for the bytes of a batch: pinned on the host, and on the device; sent: it is there, read: it may be overwritten."""

    host: np.ndarray
    device: Any
    upload_done: Any
    last_read: Any


@dataclass
class ImageBatch:
    """A batch of pictures on the device. When nobody holds it any more, the next batch may have its memory.

    runs: neighbours of one shape, as bytes (n, h, w, C), and the size that each of them is to have in the network's input.
    """

    be: Backend
    runs: list[tuple[Any, Size]]
    slot: StagingBuffer | None = None
    free: list[StagingBuffer] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(pictures) for pictures, _ in self.runs)

    def __del__(self) -> None:
        if self.slot is not None:
            self.free.append(self.slot)

    def unscaled(self, W: int, H: int) -> Any:
        """Return all pictures as one array (n, H, W, C) if they have that size already, else None."""
        (pictures, size), *more = self.runs
        return pictures if not more and size == (W, H) == pictures.shape[2:0:-1] else None

    def write(self, y: View) -> None:
        """Write the network's input into a map of the plan, on the current stream."""
        (_, H, W), first = y.shape, 0
        with self.reading():
            for pictures, size in self.runs:
                part = y.a[first * H * W * y.ld :]
                resize.write(self.be, pictures, part, (W, H), size, (H * W * y.ld, 1, y.ld))
                first += len(pictures)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let what the block launches on the current stream read the pictures: when they are there, until they are replaced."""
        if self.slot is None:
            yield
            return
        stream = self.be.xp.cuda.get_current_stream()
        stream.wait_event(self.slot.upload_done)
        yield
        stream.record(self.slot.last_read)


class Uploader:
    """Sends pictures to one device, on a stream of its own. A backend without streams, as in the tests, has them at once."""

    def __init__(self, be: Backend):
        self.be, self.cuda = be, getattr(be.xp, "cuda", None)  # type: Backend, Any
        # All slots, so that those of Pictures that end in a cycle of references are not garbage like these: CuPy's events would
        # be destroyed with it, and the slot given to the next batch.
        self.slots: list[StagingBuffer] = []
        self.free: list[StagingBuffer] = []
        self.lock = threading.Lock()
        self.stream: Any = None if self.cuda is None else self.cuda.Stream(non_blocking=True)

    def upload(self, pictures: Sequence[np.ndarray], sizes: Sequence[Size]) -> ImageBatch:
        """Send pictures uint8 (H, W, C); return while they are on their way. The pictures are the caller's again."""
        total, at, runs = sum(p.size for p in pictures), 0, []
        slot = None if self.stream is None else self._slot(total)
        host = np.empty(total, np.uint8) if slot is None else slot.host[:total]
        for p in pictures:
            host[at : at + p.size].reshape(p.shape)[...] = p
            at += p.size
        device = self.be.asarray(host) if slot is None else self._copy(slot, total)
        at = 0
        for (shape, size), same in groupby(zip((p.shape for p in pictures), sizes, strict=True)):
            n = len(list(same))
            end = at + n * int(np.prod(shape))
            runs.append((device[at:end].reshape(n, *shape), size))
            at = end
        return ImageBatch(self.be, runs, slot, self.free)

    def _copy(self, slot: StagingBuffer, total: int) -> Any:
        device = slot.device[:total]
        with self.lock:
            self.stream.wait_event(slot.last_read)
            device.set(slot.host[:total], stream=self.stream)
            self.stream.record(slot.upload_done)
        return device

    def _slot(self, total: int) -> StagingBuffer:
        """Return memory that is free: one of two in turn, while batches of one size come one after another."""
        with self.lock:
            slot = self.free.pop(0) if self.free else None
        if slot is not None:
            slot.upload_done.synchronize()  # the host's memory is read
            if slot.host.size >= total:
                return slot
            slot.last_read.synchronize()  # the device's memory goes back to CuPy's pool
            self.slots.remove(slot)
        # A power of two: pictures of many sizes soon find one that is large enough.
        size = 1 << (total - 1).bit_length()
        pinned = np.frombuffer(self.cuda.alloc_pinned_memory(size), np.uint8, size)
        upload_done, last_read = (self.cuda.Event(disable_timing=True) for _ in range(2))
        with self.stream:  # in whose order CuPy's pool gives the memory again
            slot = StagingBuffer(pinned, self.be.empty((size,), np.uint8), upload_done, last_read)
        self.slots.append(slot)
        return slot


_uploaders: dict[tuple[Any, int], Uploader] = {}


def uploader(be: Backend) -> Uploader:
    """Return the uploader of the current device."""
    return per_device(be, _uploaders, Uploader)
