"""The emulated CUDA behaves like CUDA, including its errors, as the tests that run on it assume."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # freeing after an error
STORE = 'extern "C" __global__ void store(float *p, int i, float v) { p[i] = v; }'


@pytest.fixture
def cupy(emulator):
    import cupy

    return cupy


@pytest.fixture
def store(cupy):
    """Return store(array or address, i, v), which launches p[i] = v."""
    kernel = cupy.RawKernel(STORE, "store")
    return lambda p, i, v: kernel((1,), (1,), (p, np.int32(i), np.float32(v)))


def error_of(emulator, action):
    """Run an action and its work; return CUDA's error message."""
    action()
    return emulator.reset()


# --- CuPy computes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "work",
    [
        lambda xp: xp.arange(6, dtype=np.float32).reshape(2, 3) * 2.5 + 1,
        lambda xp: xp.arange(60, dtype=np.float32).reshape(3, 20).sum(axis=1),
        lambda xp: xp.arange(60, dtype=np.float32).reshape(3, 20).max(axis=0, keepdims=True),
        lambda xp: xp.arange(7, dtype=np.float32).astype(np.float16) / np.float16(3),
        lambda xp: xp.where(xp.arange(6) > 3, 1.0, xp.exp(-xp.arange(6.0))),
        lambda xp: xp.concatenate([xp.arange(3), xp.nonzero(xp.arange(6) % 2)[0]])[::-1],
        lambda xp: xp.ascontiguousarray(xp.arange(24).reshape(2, 3, 4).transpose(2, 0, 1)),
        lambda xp: xp.matmul(xp.arange(24.0, dtype=np.float32).reshape(2, 3, 4), xp.ones((4, 5), np.float32)),
        lambda xp: xp.arange(6, dtype=np.float16).reshape(2, 3) @ xp.ones((3, 2), np.float16),
    ],
)
def test_arrays_equal_numpys(cupy, work):
    got, want = cupy.asnumpy(work(cupy)), work(np)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_compiler_messages_are_shown(cupy):
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"wrong.* was not declared"):
        cupy.RawKernel('extern "C" __global__ void f(float *p) { *p = wrong; }', "f").compile()


def test_gpu_machine_code_is_refused(cupy):
    with pytest.raises(NotImplementedError) as e:
        cupy.sort(cupy.arange(3))
    assert str(e.value).startswith("thrust.sort is not emulated: CuPy's sort, argsort")


def test_child_processes_are_emulated_too(cupy):
    code = "import cupy; print(int(cupy.arange(4).sum()), cupy.cuda.runtime.getDeviceProperties(0)['name'].decode())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "6 CUDA emulator (no GPU)\n"


def test_a_program_can_run_on_it(emulator):
    command = [sys.executable, str(Path(emulator.__file__).parent), "-c", "import cupy; print(cupy.ones(3).sum())"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "3.0\n"


# --- counters and injected errors ------------------------------------------------------------------------------


def test_counters(cupy, emulator, store):
    x = np.arange(8, dtype=np.float32)
    store(cupy.asarray(x), 0, 1)
    with emulator.counting() as done:
        a = cupy.asarray(x)
        store(a, 0, 1)
        store(a, 1, 1)
        cupy.matmul(cupy.ones((2, 2), np.float32), cupy.ones((2, 2), np.float32))
        a.get()
        cupy.cuda.Device().synchronize()
    assert (done["bytes host to device"], done["bytes device to host"]) == (32, 32)
    assert (done["launches of store"], done["gemms"], done["gemms fp32"]) == (2, 1, 1)
    assert done["waits"] >= 2 and done["captures"] == 0


def test_the_nth_call_fails(cupy, emulator):
    with emulator.failing("cudaMemcpyAsync", nth=2, status=1):
        a = cupy.asarray(np.arange(3))
        with pytest.raises(
            cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidValue: cudaMemcpyAsync: injected"
        ):
            a.get()
    assert a.get().tolist() == [0, 1, 2]
    with pytest.raises(AssertionError), emulator.failing("cudaMemcpyAsync", nth=2):
        a.get()


def test_memory_is_limited(cupy, emulator):
    with emulator.configured(memory=1 << 26):
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(1 << 27, np.uint8)
        free, total = cupy.cuda.runtime.memGetInfo()
        assert total == 1 << 26 and free <= total


# --- memory --------------------------------------------------------------------------------------------------------------


def test_an_access_past_the_end_is_caught(cupy, emulator, store):
    with emulator.guarded_allocations():
        a = cupy.zeros(1024, np.float32)
        assert error_of(emulator, lambda: store(a, 1023, 1)) is None
        assert error_of(emulator, lambda: store(a, 1024, 1)).startswith("store: thread 0 of block 0 touches 0x")
        small = cupy.zeros(3, np.float32)
        assert error_of(emulator, lambda: store(small, 3, 1)) == "a write past the end of 12 bytes of memory"


def test_addresses_are_checked(cupy, emulator, store):
    host = np.zeros(4, np.float32)
    address = np.uintp(host.ctypes.data)
    assert error_of(emulator, lambda: store(address, 0, 1)) == "store: argument 0 is host memory, or was freed"
    a = cupy.zeros(4, np.float32)
    address = np.uintp(a.data.ptr)
    assert error_of(emulator, lambda: store(address, 0, 1)) is None
    del a
    assert error_of(emulator, lambda: store(address, 0, 1)) == "store: argument 0 was returned to the pool"


def test_new_and_freed_memory_is_nan(cupy, emulator):
    a = cupy.ones(100, np.float32)
    view = cupy.ndarray(100, np.float32, cupy.cuda.MemoryPointer(cupy.cuda.UnownedMemory(a.data.ptr, 400, None), 0))
    del a
    assert emulator.reset() is None
    b = cupy.empty(100, np.float32)
    assert b.data.ptr == view.data.ptr and bool(cupy.isnan(b).all())


def test_a_kernels_error_is_sticky(cupy, emulator, store):
    store(np.uintp(8), 0, 1)
    for _ in range(2):
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorIllegalAddress: store: argument 0"):
            cupy.cuda.Device().synchronize()
    assert emulator.reset() is not None
    cupy.cuda.Device().synchronize()


def test_copies_check_kinds_and_bounds(cupy, emulator):
    a, host = cupy.zeros(4, np.float32), np.zeros(4, np.float32)
    runtime = cupy.cuda.runtime
    for source, size, kind, why in (
        (host.ctypes.data, 16, runtime.memcpyDeviceToDevice, "a copy of kind 3 between memory of kind 1"),
        (a.data.ptr, 1 << 40, runtime.memcpyDeviceToDevice, "extends past the end of its memory"),
    ):
        with pytest.raises(runtime.CUDARuntimeError, match=why):
            runtime.memcpyAsync(a.data.ptr, source, size, kind, 0)


# --- streams and events --------------------------------------------------------------------------------------------------


def test_streams_run_as_late_as_possible(cupy, emulator, store):
    one, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    a = cupy.zeros(4, np.float32)
    cupy.cuda.Device().synchronize()
    with one:
        store(a, 0, 7)
    with other:
        assert a.get()[0] == 0  # nothing waits for `one`
    other.wait_event(one.record())
    with other:
        assert a.get()[0] == 7
    with emulator.configured(schedule=emulator.SCHEDULES["eager"]):
        with one:
            store(a, 0, 8)
        with other:
            assert a.get()[0] == 8


def test_the_default_stream_waits_for_blocking_ones(cupy, store):
    for stream, waits in ((cupy.cuda.Stream(), True), (cupy.cuda.Stream(non_blocking=True), False)):
        a = cupy.zeros(4, np.float32)
        cupy.cuda.Device().synchronize()
        with stream:
            store(a, 0, 7)
        assert (a.get()[0] == 7) == waits


def test_pinned_memory_is_read_late_and_pageable_at_once(cupy):
    stream = cupy.cuda.Stream(non_blocking=True)
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(16), np.float32, 4)
    for host, want in ((pinned, 2), (np.empty(4, np.float32), 1)):
        a = cupy.zeros(4, np.float32)
        cupy.cuda.Device().synchronize()
        host[:] = 1
        a.set(host, stream=stream)
        host[:] = 2
        stream.synchronize()
        assert a.get().tolist() == [want] * 4


# --- captures ------------------------------------------------------------------------------------------------------------


def test_a_graph_replays_what_was_captured(cupy, store):
    stream, a = cupy.cuda.Stream(non_blocking=True), cupy.zeros(4, np.float32)
    cupy.cuda.Device().synchronize()
    with stream:
        store(a, 3, 0)  # a kernel is loaded on its first launch
        stream.begin_capture()
        store(a, 0, 5)
        graph = stream.end_capture()
        assert a.get().tolist() == [0, 0, 0, 0]
        graph.launch(stream)
        assert a.get().tolist() == [5, 0, 0, 0]


REFUSED = {
    "a wait for the stream": (lambda cupy, stream, a, store: stream.synchronize(), "cudaErrorStreamCaptureUnsupported"),
    "a wait for the device": (
        lambda cupy, stream, a, store: cupy.cuda.Device().synchronize(),
        "cudaErrorStreamCaptureUnsupported",
    ),
    "a copy to the host": (lambda cupy, stream, a, store: a.get(), "the current stream is capturing"),
    "the default stream's work": (lambda cupy, stream, a, store: on(cupy.cuda.Stream.null, store, a), None),
    "an event from outside": (
        lambda cupy, stream, a, store: stream.wait_event(cupy.cuda.Stream().record()),
        "cudaErrorStreamCaptureIsolation",
    ),
    "a module": (
        lambda cupy, stream, a, store: cupy.RawKernel(STORE + "//new", "store").compile(),
        "cudaErrorStreamCaptureUnsupported",
    ),
}


def on(stream, work, a):
    with stream:
        work(a, 0, 1)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_during_capture(cupy, emulator, store, name):
    action, error = REFUSED[name]
    stream, a = cupy.cuda.Stream(non_blocking=True), cupy.zeros(4, np.float32)
    store(a, 0, 1)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        if error is None:  # a non-blocking stream is independent of the default one
            action(cupy, stream, a, store)
            stream.end_capture()
            return
        with pytest.raises((RuntimeError, cupy.cuda.driver.CUDADriverError), match=error):
            action(cupy, stream, a, store)
        if name not in ("a module", "a copy to the host"):  # which CuPy does not even try
            with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
                stream.end_capture()
    emulator.reset()


def test_work_on_the_default_stream_invalidates_a_blocking_streams_capture(cupy, emulator, store):
    stream, a = cupy.cuda.Stream(), cupy.zeros(4, np.float32)
    store(a, 0, 1)
    with stream:
        stream.begin_capture()
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="cudaErrorStreamCaptureImplicit"):
        store(a, 0, 1)
    emulator.reset()


def test_another_thread_can_invalidate_a_capture(cupy, emulator, store):
    stream, a = cupy.cuda.Stream(non_blocking=True), cupy.zeros(4, np.float32)
    store(a, 0, 1)
    failed = []

    def wait():
        try:
            cupy.cuda.Device().synchronize()
        except cupy.cuda.runtime.CUDARuntimeError as e:
            failed.append(str(e))

    with stream:
        stream.begin_capture()
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
            stream.end_capture()
    assert failed == ["cudaErrorStreamCaptureUnsupported: cudaDeviceSynchronize during capture"]


# --- devices -------------------------------------------------------------------------------------------------------------


def test_devices_have_their_own_memory(cupy, emulator, store):
    with cupy.cuda.Device(1):
        there = cupy.zeros(4, np.float32)
    cupy.cuda.Device(1).synchronize()
    address, runtime = np.uintp(there.data.ptr), cupy.cuda.runtime
    try:  # CuPy enables peer access as soon as arrays of two devices are combined
        runtime.deviceDisablePeerAccess(1)
    except runtime.CUDARuntimeError as e:
        assert "cudaErrorPeerAccessNotEnabled" in str(e)
    wrong = "store: argument 0 is memory of device 1, without access from device 0"
    assert error_of(emulator, lambda: store(address, 0, 1)) == wrong
    np.testing.assert_array_equal(cupy.asarray(there).get(), [0, 0, 0, 0])  # a copy between devices
    assert cupy.asarray(there).device.id == 0
    runtime.deviceEnablePeerAccess(1)
    assert error_of(emulator, lambda: store(address, 0, 1)) is None
    assert there.get().tolist() == [1, 0, 0, 0]


def test_streams_and_events_belong_to_a_device(cupy, store):
    with cupy.cuda.Device(1):
        event = cupy.cuda.Event()
    with pytest.raises(
        cupy.cuda.runtime.CUDARuntimeError, match="an event of device 1 is recorded on a stream of device 0"
    ):
        event.record(cupy.cuda.Stream.null)


def test_the_host_can_be_measured_alone(cupy, emulator, store):
    """Without kernels memory keeps its values; CPU time in CUDA functions is counted."""
    x = cupy.zeros(4, np.float32)
    cupy.cuda.Device().synchronize()
    with emulator.configured(compute=0), emulator.counting() as done:
        store(x, 0, 1)
        cupy.cuda.Device().synchronize()
    assert x.get().tolist() == [0, 0, 0, 0] and done["launches"] == 1 and done["nanoseconds"] > 0
    store(x, 0, 1)
    assert x.get().tolist() == [1, 0, 0, 0]
