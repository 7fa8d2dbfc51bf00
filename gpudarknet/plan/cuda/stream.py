"""The CUDA stream that plans run on, with its cuBLAS handle; capturing, timing and destroying CUDA graphs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

from ...backend import Backend
from ...backend.cublas import WORKSPACE, address
from ...errors import OutOfMemoryError
from .tiles import H100, MAX_SPLIT_TILES, DeviceProperties

T = TypeVar("T")


class StreamContext:
    """The stream of one device that all plans share. A backend without streams, as in the tests, computes synchronously.

    Plans also allocate their device memory inside `use()`: once freed, CuPy's pool reuses it only for later work of this stream.
    """

    def __init__(self, be: Backend):
        assert be.cublas is not None
        self.be, self.device = be, be.current_device()
        self.cuda: Any = getattr(be.xp, "cuda", None)
        self.lock = threading.RLock()
        self.stream: Any = None
        self._retired: deque[Any] = deque()  # graphs that will not be launched again, pinned memory
        self._finishing: list[tuple[Any, list[Any]]] = []  # an event, and what may be in use until then
        if self.cuda is not None:
            # Non-blocking: others synchronize with the null stream, which is not allowed during capture.
            self.stream = self.cuda.Stream(non_blocking=True)
            self.ready, self.done = (self.cuda.Event(disable_timing=True) for _ in range(2))
        try:
            with self.stream or nullcontext():
                self.workspace = be.empty((WORKSPACE,), "uint8")
                self.split_counters = be.xp.zeros((MAX_SPLIT_TILES,), "int32")
        except MemoryError as e:  # CuPy's is one
            raise OutOfMemoryError(
                f"cuBLAS: no memory for its workspace on the device: {e.__cause__ or e}; free some device memory"
            ) from None
        self.properties = self._properties()
        self.handle = be.cublas(self.stream.ptr if self.stream else 0, (address(self.workspace), WORKSPACE))

    def _properties(self) -> DeviceProperties:
        if self.cuda is None:
            return H100
        found = self.cuda.runtime.getDeviceProperties(self.device)
        capability = 10 * found["major"] + found["minor"]
        return DeviceProperties(
            found["name"].decode(), capability, found["multiProcessorCount"], found["sharedMemPerBlockOptin"]
        )

    @contextmanager
    def use(self) -> Iterator[None]:
        """Run the block on this stream and device, ordered after the earlier and before the later work of the caller's stream."""
        with self.lock, self.be.use_device(self.device):
            if self.cuda is None:
                yield
                return
            caller = self.cuda.get_current_stream()
            caller.record(self.ready)
            self.stream.wait_event(self.ready)
            try:
                with self.stream:
                    self._destroy_retired()
                    yield
            finally:
                self.stream.record(self.done)
                caller.wait_event(self.done)

    def retire(self, resource: Any) -> None:
        """Drop a graph, or memory that work of this stream uses, once the work so far has finished.

        May be called from any thread: it does not touch the stream, which another thread may be capturing.
        """
        if self.stream is not None and resource is not None:
            self._retired.append(resource)

    def _destroy_retired(self) -> None:
        self._finishing = [(event, resources) for event, resources in self._finishing if not event.done]
        if self._retired:
            resources = [self._retired.popleft() for _ in range(len(self._retired))]
            self._finishing.append((self.stream.record(self.cuda.Event(disable_timing=True)), resources))

    def time(self, run: Callable[[], None], min_seconds: float, rounds: int, max_calls: int) -> float:
        """Return the shortest time in seconds of a call on this stream.

        Each of the rounds repeats the call for `min_seconds`, but not more than `max_calls` times.
        """
        with self.use():
            once = max(self._time(run, 1), 1e-6)
            calls = max(1, min(max_calls, int(min_seconds / once)))
            return min(self._time(run, calls) for _ in range(rounds))

    def _time(self, run: Callable[[], None], calls: int) -> float:
        if self.cuda is None:
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - begin) / calls
        start, end = self.cuda.Event(), self.cuda.Event()
        start.record(self.stream)
        for _ in range(calls):
            run()
        end.record(self.stream)
        end.synchronize()
        return float(self.cuda.get_elapsed_time(start, end)) / 1e3 / calls

    def capture(self, run: Callable[[], None]) -> Any:
        """Capture the launches of run() as a CUDA graph, after two warm-ups that load every kernel: a capture cannot load any.

        Other threads can invalidate a capture, for example by waiting for the whole device; so a failed one is retried once.
        """
        run()
        run()
        try:
            return self._capture(run)
        except Exception:
            return self._capture(run)

    def _capture(self, run: Callable[[], None]) -> Any:
        self.stream.begin_capture()
        try:
            run()
        except BaseException:
            with suppress(Exception):  # CUDA reports again that the capture is invalid
                self.stream.end_capture()
            raise
        graph = self.stream.end_capture()
        graph.upload(self.stream)
        return graph


_contexts: dict[tuple[Any, int], StreamContext] = {}
_lock = threading.Lock()


def stream_context(be: Backend) -> StreamContext:
    """Return the stream context of the current device."""
    return per_device(be, _contexts, StreamContext)


def per_device(be: Backend, instances: dict[tuple[Any, int], T], make: Callable[[Backend], T]) -> T:
    """Return the instance of the current device, made on the first call."""
    key = (be.cublas, be.current_device() or 0)
    with _lock:
        if key not in instances:
            instances[key] = make(be)
        return instances[key]
