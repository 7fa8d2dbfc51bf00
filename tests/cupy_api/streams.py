"""Streams and graphs with CuPy's names: work is done at once, or recorded while a stream is captured and done at launch.

As in CUDA, nothing but kernels and cuBLAS may be asked for while a stream is captured: no memory, no copy to the host, no
waiting. Array functions are refused too, because what they record would not be done again here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

Work = Callable[[], None]
capturing: list[Work] | None = None


class CaptureError(RuntimeError):
    """cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing."""


def do(work: Work) -> None:
    """Do work of the device, or record it."""
    work() if capturing is None else capturing.append(work)


def refuse(what: str) -> None:
    """Raise CaptureError while a stream is captured."""
    if capturing is not None:
        raise CaptureError(f"{what}: operation not permitted when stream is capturing")


class Event:
    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False):
        self.timed, self.at = not disable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        refuse("Event.record on another stream")
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        refuse("Event.synchronize")


class Stream:
    current: list[Stream] = []  # noqa: RUF012

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: int | None = None):
        self.ptr = 0 if null else 0x57
        self.recording = False

    def __enter__(self) -> Stream:
        Stream.current.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        Stream.current.pop()

    def record(self, event: Event | None = None) -> Event:
        refuse("Stream.record")
        return event or Event()

    def wait_event(self, event: Event) -> None:
        refuse("Stream.wait_event")

    def synchronize(self) -> None:
        refuse("Stream.synchronize")

    def begin_capture(self, mode: int | None = None) -> None:
        global capturing
        refuse("Stream.begin_capture")
        if not self.ptr:
            raise CaptureError("the default stream cannot be captured")
        capturing, self.recording = [], True

    def end_capture(self) -> Graph:
        global capturing
        if capturing is None or not self.recording:
            raise CaptureError("end_capture without begin_capture")
        work, capturing, self.recording = capturing, None, False
        return Graph(work)


class Graph:
    def __init__(self, work: list[Work]):
        self._work, self._uploaded = work, False

    def upload(self, stream: Stream | None = None) -> None:
        self._uploaded = True

    def launch(self, stream: Stream | None = None) -> None:
        for work in self._work:
            do(work)


class Device:
    id = 0

    def __init__(self, device: int | None = None):
        assert device in (None, 0)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def synchronize(self) -> None:
        refuse("Device.synchronize")


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return milliseconds."""
    if not (start_event.timed and end_event.timed):
        raise RuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
    return 1e3 * (end_event.at - start_event.at)


NULL = Stream(null=True)
FREE = 1 << 34  # bytes

# What stands for cupy.cuda.
cuda = SimpleNamespace(
    alloc_pinned_memory=bytearray, Device=Device, Event=Event, Graph=Graph, Stream=Stream,
    get_current_stream=lambda: (Stream.current or [NULL])[-1], get_elapsed_time=get_elapsed_time,
    runtime=SimpleNamespace(memGetInfo=lambda: (FREE, 2 * FREE), getDeviceProperties=lambda device: {"name": b"a GPU"}),
)  # fmt: skip
pool = SimpleNamespace(free_bytes=lambda: 0)
