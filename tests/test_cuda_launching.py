"""How plans are launched: streams, events, captures, devices and memory, on the emulated CUDA, which finds what is missing.

`run_everything` uses a network in the ways that users do: several threads and streams, images and arrays, several batches under
way at once, programs that are dropped while others work. It must give what NumPy gives, whatever the order in which the
emulator runs work; and with each of BUGS planted, it must not.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import numpy as np
import pytest
import seeded
from planted import plant

from gpudarknet import Detector, backend, cfg, load_network
from gpudarknet.backend import cublas
from gpudarknet.backend import cuda as kernels
from gpudarknet.backend.cuda import launcher
from gpudarknet.plan import cuda
from gpudarknet.plan.compile import compile
from gpudarknet.plan.cuda import convolution, emitter, stream, upload
from gpudarknet.plan.cuda import program as program_module

CFG = """[net]
width=32
height=24
channels=3
[convolutional]
filters=16
size=3
pad=1
activation=leaky
[convolutional]
filters=24
size=3
pad=1
stride=2
batch_normalize=1
activation=leaky
[convolutional]
filters=16
size=1
activation=mish
[route]
layers=-2
[convolutional]
filters=16
size=1
activation=leaky
[shortcut]
from=-3
activation=leaky
[convolutional]
filters=21
size=1
activation=linear
[yolo]
mask=0,1,2
anchors=4,6, 8,8, 12,16
classes=2
num=3
"""
SCHEDULES = (0, 1, 2, 3, 4, 5)  # as late as possible; some streams at once, others late


@pytest.fixture
def clean_emulator(emulator, monkeypatch):
    """Forget streams, handles and image buffers of other tests, and keep those of this one from others."""
    monkeypatch.setattr(stream, "_contexts", {})
    monkeypatch.setattr(upload, "_uploaders", {})
    monkeypatch.setattr(cublas, "_idle", {})
    return emulator


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a parsed cfg and the path of its weights."""
    config = cfg.parse(CFG, "launching.cfg")
    path = tmp_path_factory.mktemp("launching") / "seeded.weights"
    seeded.write_weights(load_network(config, backend="numpy"), path, 5)
    return config, path


def images(seed, count=2):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(count)]


def floats(batch):
    """A batch of images as a network's input."""
    return np.stack(batch).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)


def wanted(net, batch):
    """What NumPy computes for a batch of images."""
    return net.predict(floats(batch), engine="reference")[0]


class Wrong(Exception):
    """A result differs from NumPy's."""


def compare(got, want, what):
    if not np.abs(got - want).max() < 1e-4:
        raise Wrong(what)


def run_everything(files, schedule):
    """Use a network on the emulated device; raise Wrong, or what CUDA says."""
    import cuda_emulator
    import cupy

    config, weights = files
    be = replace(backend.get("cupy"), launch=launcher())  # of kernels that nobody has launched
    numpy = load_network(config, weights, backend="numpy")
    upload._uploaders.clear()
    stream._contexts.clear()
    gc.collect()
    cuda_emulator.configure(schedule=schedule)  # of the streams that are made from now on
    try:
        with cuda_emulator.counting() as done:
            _streams_and_arrays(be, cupy, files, numpy)
        if done["captured gemms without a workspace"]:
            raise Wrong("cuBLAS allocates what it needs in a graph")
        _batches_in_flight(be, cupy, files, numpy)
        _threads(be, cupy, files, numpy)
        _dropped_programs(be, cupy, files, numpy)
        _guarded(be, cuda_emulator, files, numpy)
    finally:
        cuda_emulator.configure(schedule=0)


def _streams_and_arrays(be, cupy, files, numpy):
    """Arrays that are made on a stream of the caller's just before, and used there just after; then from another stream."""
    net = load_network(*files, backend=be)
    x = np.random.default_rng(0).random((2, 3, 24, 32), dtype=np.float32)
    want = numpy.predict(x, engine="reference")[0]
    one, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    for current, scale in ((one, 1), (one, 2), (other, 4)):
        with current:
            there = be.asarray(x * np.float32(scale)) / np.float32(scale)
            (y,) = net.predict(there)
            del there
            noise = cupy.full((2, 3, 24, 32), 7, np.float32)  # takes the memory of `there`
            doubled = (y + y).get(stream=current)
        compare(doubled / 2, want, "an array on the caller's stream")
        del noise
        with current:
            there = be.asarray(x * np.float32(scale)) / np.float32(scale)
            (y,) = net.predict(there, engine="reference")
            compare((y + y).get(stream=current) / 2, want, "the reference engine on the caller's stream")
    (program,) = net.program_cache.programs.values()
    if program.eager_reason is not None:
        raise Wrong(f"not a graph: {program.eager_reason}")


def _batches_in_flight(be, cupy, files, numpy):
    """Batches of images, of which several are sent before a result is read, in buffers that grow and are used again."""
    detector = Detector(load_network(*files, backend=be))
    for counts in ((1, 1, 2, 2, 4, 4), (2, 2, 2, 2, 2, 2)):
        batches = [images(10 * i + n, n) for i, n in enumerate(counts)]
        outputs = [detector.network.predict(detector.upload(batch)) for batch in batches]
        for batch, (y,) in zip(batches, outputs, strict=True):
            compare(y.get(), wanted(numpy, batch), "images in flight")


def _threads(be, cupy, files, numpy):
    """Threads with streams of their own, on one network on the second device."""
    with cupy.cuda.Device(1):
        detector = Detector(load_network(*files, backend=be))
    failed = []

    def work(seed):
        try:
            batch = images(seed)
            for _ in range(2):
                (y,) = detector.network.predict(detector.upload(batch))
                compare(y.get(), wanted(numpy, batch), "a thread's result")
                if y.device.id != 1:
                    raise Wrong("a network has left its device")
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    (program,) = detector.network.program_cache.programs.values()
    with cupy.cuda.Device(1):
        x = be.asarray(np.ones((2, 3, 24, 32), np.float32))
        be.synchronize()
    results = program.run(x), program.run(x)
    with cupy.cuda.Device(1):
        compare(results[0][0].get(), results[1][0].get(), "a program, from a thread with another device")


def _dropped_programs(be, cupy, files, numpy):
    """Programs that are dropped with work in flight, while others start."""
    net = load_network(*files, backend=be)
    batch = images(3)
    x = floats(batch)
    plan = compile(net.nodes, net.weights, net.heads, net.net.input, 2)
    one, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    results = []
    for i, graph in enumerate((False, True, False, True)):
        with one:
            program = cuda.Program(plan, be, graph=graph, packed_weights={})
        with other if i % 2 else one:
            there = be.asarray(x)
            results.append(program.run(there)[0])
            results.append(program.run(there)[0])
        del program, there
        gc.collect()
        with one:
            noise = [cupy.full((1 << 12,), 7, np.float32) for _ in range(8)]  # takes memory that was freed
        del noise
    other.synchronize()
    one.synchronize()
    for y in results:
        compare(y.get(), wanted(numpy, batch), "a program that was dropped")


def _guarded(be, cuda_emulator, files, numpy):
    """Every array in pages of its own."""
    with cuda_emulator.guarded_allocations():
        net = load_network(*files, backend=be)
        stream._contexts.clear()
        batch = images(4)
        x = floats(batch)
        for graph in (False, True):
            plan = compile(net.nodes, net.weights, net.heads, net.net.input, 2)
            program = cuda.Program(plan, be, graph=graph)
            for _ in range(2):
                compare(program.run(be.asarray(x))[0].get(), wanted(numpy, batch), "guarded memory")
            del program
        del net
        gc.collect()
    stream._contexts.clear()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_results_are_numpys_in_any_order(clean_emulator, files, schedule):
    run_everything(files, schedule)
    assert clean_emulator.reset() is None


# --- one by one, what real GPUs would have shown -------------------------------------------------------------------------


def test_a_network_stays_on_its_device(clean_emulator, files):
    """Whatever the thread's current device is: a new thread begins at device 0."""
    import cupy

    be, numpy, batch = backend.get("cupy"), load_network(*files, backend="numpy"), images(1)
    with be.use_device(1):
        detector = Detector(load_network(*files, backend=be))
    detected = []
    thread = threading.Thread(target=lambda: detected.extend(detector.network.predict(detector.upload(batch))))
    thread.start()
    thread.join()
    (y,) = detected
    assert y.device.id == 1 and cupy.cuda.Device().id == 0
    np.testing.assert_allclose(y.get(), wanted(numpy, batch), atol=1e-5)
    assert all(a.device.id == 1 for own in detector.network.weights for a in own.values())
    detector.network.predict(np.zeros((1, 3, 24, 32), np.float32), engine="reference")
    detector.detect_batch(batch)


def test_a_program_that_is_dropped_spoils_no_capture(clean_emulator, files, monkeypatch):
    be, numpy, batch = backend.get("cupy"), load_network(*files, backend="numpy"), images(1)
    one, other = (load_network(*files, backend=be) for _ in range(2))
    x = floats(batch)
    one.predict(x)
    eagerly, runs = cuda.Program._eager, []

    def drop(self):
        runs.append(self)
        if len(runs) == 3:  # after two warm-ups: while capturing
            one.program_cache.clear()
            gc.collect()
        eagerly(self)

    monkeypatch.setattr(cuda.Program, "_eager", drop)
    (y,) = other.predict(x)
    (program,) = other.program_cache.programs.values()
    assert len(runs) == 3 and program.eager_reason is None
    np.testing.assert_allclose(y.get(), wanted(numpy, batch), atol=1e-5)


def test_graphs_of_dropped_programs_are_destroyed_when_they_are_done(clean_emulator, files):
    be = backend.get("cupy")
    x = be.asarray(np.zeros((1, 3, 24, 32), np.float32))
    one, other = (load_network(*files, backend=be) for _ in range(2))
    one.predict(x)
    other.predict(x)
    with clean_emulator.counting() as done:
        one.predict(x)
        one.program_cache.clear()
        gc.collect()
        (y,) = other.predict(x)
    assert not (done["cudaGraphExecDestroy"] or done["waits"])  # it may still be at work
    y.get()
    with clean_emulator.counting() as done:
        other.predict(x)
    assert done["cudaGraphExecDestroy"] == 1


def test_a_program_keeps_its_weights(clean_emulator, files):
    """Another thread may say that they have changed while a program is at work."""
    be, numpy, batch = backend.get("cupy"), load_network(*files, backend="numpy"), images(1)
    net = load_network(*files, backend=be)
    x = net.input(floats(batch))
    net.predict(x)
    (program,) = net.program_cache.programs.values()
    net.program_cache.clear()
    np.testing.assert_allclose(program.run(x)[0].get(), wanted(numpy, batch), atol=1e-5)


def test_an_eager_program_may_be_dropped_at_work(clean_emulator, files):
    """Its memory goes only to what comes later on the stream that it runs on."""
    import cupy

    be, numpy, batch = backend.get("cupy"), load_network(*files, backend="numpy"), images(1)
    net = load_network(*files, backend=be)
    plan = compile(net.nodes, net.weights, net.heads, net.net.input, 2)
    one, other = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with one:
        program = cuda.Program(plan, be, graph=False)
    with other:
        (y,) = program.run(be.asarray(floats(batch)))
    size = program.arena.size
    del program
    with one:
        noise = cupy.full((size,), 7, np.float32)
        one.synchronize()
    with other:
        np.testing.assert_allclose(y.get(), wanted(numpy, batch), atol=1e-5)
    del noise


# --- planted bugs --------------------------------------------------------------------------------------------------------

EAGERLY = "for launch in self.launches:\n            launch()"
LAUNCH = "lambda: launch(kernel, threads, *arrays, block=block, shared=shared)"
GEMM = "address(y.a), y.ld, address(x.a), x.ld, y.pixels, images)"
HANDLE = "self.handle = be.cublas(self.stream.ptr if self.stream else 0, (address(self.workspace), WORKSPACE))"
SENT = "return ImageBatch(self.be, runs, buffer, self.free.append)"
NOBODYS = "self.cuda.Stream(non_blocking=True))"
BUGS = {
    # the waits
    "computing does not wait until images are there": (upload, "stream.wait_event(self.buffer.upload_done)", "pass"),
    "images are overwritten before they are read": (upload, "self.stream.wait_event(buffer.last_read)", "pass"),
    "reading images is not recorded": (upload, "stream.record(self.buffer.last_read)", "pass"),
    "pinned memory is written before it is sent": (upload, "buffer.upload_done.synchronize()", "pass"),
    "a plan does not wait for the caller's stream": (stream, "self.stream.wait_event(self.ready)", "pass"),
    "the caller's stream does not wait for a plan": (stream, "caller.wait_event(self.done)", "pass"),
    # wrong streams
    "a graph is launched on another stream": (
        program_module,
        "self.graph.launch(self.stream_context.stream)",
        "self.graph.launch(self.stream_context." + NOBODYS.removeprefix("self."),
    ),
    "images go up on a stream that nobody waits for": (
        upload,
        "runtime.memcpyHostToDevice, self.stream.ptr)",
        "runtime.memcpyHostToDevice, " + NOBODYS.removesuffix(")") + ".ptr)",
    ),
    "cuBLAS is on the default stream": (cublas, 'self._call("cublasSetStream_v2", self._handle, stream)', "pass"),
    "products of the reference engine stay on a stream": (cublas, "self.handle.use(*at)", "pass"),
    "eager steps run on the caller's stream": (stream, "with self.stream:", "with caller:"),
    # memory
    "a buffer is free as soon as it is sent": (upload, SENT, "self.free.append(buffer); " + SENT),
    "device memory of a buffer is dropped while it is read": (upload, "buffer.last_read.synchronize()", "pass"),
    "a graph is destroyed at work": (program_module, "self.stream_context.retire(resource)", "self.graph = None"),
    "cuBLAS has no workspace of ours": (
        cublas,
        'self._call("cublasSetWorkspace_v2", self._handle, *workspace)',
        "pass",
    ),
    "the workspace of cuBLAS is freed": (stream, HANDLE, HANDLE + "; self.workspace = None"),
    "the arena is too small": (
        program_module,
        "self.arena = be.empty((self.schedule.arena.size,), self.dtype)",
        "self.arena = be.empty((self.schedule.arena.size // 2,), self.dtype)",
    ),
    "the arena is another stream's": (
        program_module,
        "with self.stream_context.use():\n            self._emit(graph)",
        "self._emit(graph)",
    ),
    "cuBLAS gets an address of the host": (convolution, GEMM, GEMM.replace("address(x.a)", "x.a.get().ctypes.data")),
    "a captured step allocates": (
        program_module,
        EAGERLY,
        EAGERLY + "\n        copied = self.arena.copy()\n        self.arena[...] = copied",
    ),
    "a kernel reads what was freed": (emitter, LAUNCH, LAUNCH.replace("*arrays", "arrays[0].copy(), *arrays[1:]")),
    "a prepared launch keeps its first array": (kernels, "self.cells[i] = a.data.ptr", "pass"),
    "a wrong leading dimension": (convolution, GEMM, GEMM.replace("x.ld", "x.ld + 8")),
    # captures and devices
    "kernels are first launched while capturing": (
        stream,
        "        run()\n        run()\n        try:",
        "        try:",
    ),
    "a stream is waited for while it is captured": (
        program_module,
        EAGERLY,
        EAGERLY + "\n        self.stream_context.stream.synchronize()",
    ),
    "work goes to the thread's device": (stream, "self.be.use_device(self.device)", "self.be.use_device(None)"),
    "a network goes to the thread's device": (
        backend,
        "return nullcontext() if device in (None, self.current_device()) else self.xp.cuda.Device(device)",
        "return nullcontext()",
    ),
}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # after an error what is freed says so too
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_detected(clean_emulator, files, monkeypatch, name):
    detected = None
    with monkeypatch.context() as planted:
        plant(planted, *BUGS[name])
        for schedule in range(20):
            try:
                run_everything(files, schedule)
            except Exception as e:
                detected = f"{type(e).__name__}: {e}"
            detected = clean_emulator.reset() or detected
            if detected:
                break
    gc.collect()
    clean_emulator.reset()
    assert detected is not None
    print(f"{name}: {detected}")
    run_everything(files, 0)  # it was the bug, not something left behind
    assert clean_emulator.reset() is None
