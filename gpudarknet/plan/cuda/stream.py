"""Where plans run on a GPU: a CUDA stream of our own with a cuBLAS handle, and work that is recorded once and replayed."""

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

Work = Callable[[], None]
T = TypeVar("T")


class StreamContext:
    """One stream of one device, on which plans take turns. A backend without streams, as in the tests, computes at once.

    What plans keep on the device is allocated in `use()`, too: CuPy's pool then gives it again, when it is freed, only to what
    comes later on this stream.
    """

    def __init__(self, be: Backend):
        assert be.cublas is not None
        self.be, self.device = be, be.current_device()
        self.cuda: Any = getattr(be.xp, "cuda", None)
        self.lock = threading.RLock()
        self.stream: Any = None
        self._retired: deque[Any] = deque()  # graphs that nobody will launch any more
        self._finishing: list[tuple[Any, list[Any]]] = []  # an event, and graphs that may be at work until then
        if self.cuda is not None:
            # A non-blocking one: others can be captured only without the null stream's waiting.
            self.stream = self.cuda.Stream(non_blocking=True)
            self.ready, self.done = (self.cuda.Event(disable_timing=True) for _ in range(2))
        try:
            with self.stream or nullcontext():
                self.workspace = be.empty((WORKSPACE,), "uint8")
        except MemoryError as e:  # CuPy's is one
            raise OutOfMemoryError(
                f"cuBLAS: no room for its workspace on the device: {e.__cause__ or e}; free some of its memory"
            ) from None
        self.handle = be.cublas(self.stream.ptr if self.stream else 0, (address(self.workspace), WORKSPACE))

    @contextmanager
    def use(self) -> Iterator[None]:
        """Run the block's work on this stream: after what the caller's stream was given, before what it is given next.

        Its device is the current one in the block, whichever the thread has.
        """
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

    def retire(self, graph: Any) -> None:
        """Have a graph destroyed when it is no longer at work. From any thread, without touching the stream, which another
        thread may be capturing."""
        self._retired.append(graph)

    def _destroy_retired(self) -> None:
        self._finishing = [(event, graphs) for event, graphs in self._finishing if not event.done]
        if self._retired:
            graphs = [self._retired.popleft() for _ in range(len(self._retired))]
            self._finishing.append((self.stream.record(self.cuda.Event(disable_timing=True)), graphs))

    def time(self, work: Work, at_least: float, rounds: int, most: int) -> float:
        """Return the least seconds that work takes on this stream over some rounds, in each of which it is queued often enough
        to take `at_least` seconds, but not more than `most` times."""
        with self.use():
            once = max(self._time(work, 1), 1e-6)
            calls = max(1, min(most, int(at_least / once)))
            return min(self._time(work, calls) for _ in range(rounds))

    def _time(self, work: Work, calls: int) -> float:
        if self.cuda is None:
            start = time.perf_counter()
            for _ in range(calls):
                work()
            return (time.perf_counter() - start) / calls
        before, after = self.cuda.Event(), self.cuda.Event()
        before.record(self.stream)
        for _ in range(calls):
            work()
        after.record(self.stream)
        after.synchronize()
        return float(self.cuda.get_elapsed_time(before, after)) / 1e3 / calls

    def capture(self, work: Work) -> Any:
        """Record work as a CUDA graph, after two runs that load every kernel: loading is not allowed while recording.

        What other threads do meanwhile, such as waiting for the whole device, can spoil a capture; so it is tried twice.
        """
        work()
        work()
        try:
            return self._capture(work)
        except Exception:
            return self._capture(work)

    def _capture(self, work: Work) -> Any:
        self.stream.begin_capture()
        try:
            work()
        except BaseException:
            with suppress(Exception):  # CUDA says again that the capture is spoilt
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


def per_device(be: Backend, kept: dict[tuple[Any, int], T], make: Callable[[Backend], T]) -> T:
    """Return what is kept for the current device, made where there is nothing yet."""
    key = (be.cublas, be.current_device() or 0)
    with _lock:
        if key not in kept:
            kept[key] = make(be)
        return kept[key]
