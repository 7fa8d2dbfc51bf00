from __future__ import annotations

import logging
import re
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpudarknet import backend
from gpudarknet.backend import cuda
from gpudarknet.backend.cuda import Parameter
from gpudarknet.errors import BackendError


def test_kernels_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    assert cuda.folder() == cuda.Path(cuda.__file__).parents[2] / "kernels"
    wheel = tmp_path / "site-packages" / "gpudarknet"
    (wheel / "kernels").mkdir(parents=True)
    monkeypatch.setattr(cuda, "__file__", str(wheel / "backend" / "cuda.py"))
    assert cuda.folder() == wheel / "kernels"


def test_headers_are_written_out_where_they_are_included(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "folder", lambda: tmp_path)
    for name, text in (("common.cuh", "a\n"), ("more.cuh", "b\n"), ("probe.cu", '// c\n#include "more.cuh"\nd\n')):
        (tmp_path / name).write_text(text)
    cuda.source.cache_clear()
    assert cuda.source("probe") == (
        '#line 1 "common.cuh"\na\n\nusing T = float;\n#line 1 "probe.cu"\n// c\n#line 1 "more.cuh"\nb\n\n#line 3 "probe.cu"\nd\n'
    )
    cuda.source.cache_clear()


def test_source_is_header_then_type_then_file():
    text = cuda.source("reorg", "half_t")
    header, file = ((cuda.folder() / name).read_text() for name in ("common.cuh", "reorg.cu"))
    assert text == f'#line 1 "common.cuh"\n{header}\nusing T = half_t;\n#line 1 "reorg.cu"\n{file}'


def test_parameters():
    assert cuda.parameters("upsample")["upsample"] == (
        Parameter("x", "T", pointer=True, const=True),
        Parameter("y", "T", pointer=True, const=False),
        *(Parameter(name, "int", pointer=False, const=False) for name in ("n", "H", "W", "s")),
        Parameter("scale", "float", pointer=False, const=False),
    )


@pytest.fixture
def probe(tmp_path, monkeypatch):
    """Kernels of this test's own: write("...") makes the file probe.cu."""
    monkeypatch.setattr(cuda, "folder", lambda: tmp_path)
    yield (tmp_path / "probe.cu").write_text
    cuda.parameters.cache_clear()


def test_parameters_of_any_spelling(probe):
    probe(
        "// __global__ in a comment\n"
        'extern "C" __global__ void __launch_bounds__(128) a(const float *__restrict__ x /* (N, C) */,\n'
        "    const unsigned char* image, int *n) {}\n"
    )
    assert cuda.parameters("probe") == {
        "a": (
            Parameter("x", "float", True, True),
            Parameter("image", "unsigned char", True, True),
            Parameter("n", "int", True, False),
        )
    }


def test_a_kernel_that_launch_could_not_find_is_refused(probe):
    probe('extern "C" __global__ void a(int n) {}\n__global__ void b(int n) {}\n')
    with pytest.raises(
        ValueError, match=r'^probe\.cu: every kernel must begin with: extern "C" __global__ void NAME\($'
    ):
        cuda.parameters("probe")


F32, F16, I32 = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float16), np.zeros(6, np.int32)


@pytest.mark.parametrize(("x", "T"), [(F32, "float"), (F16, "half_t")])
def test_bind_casts_by_the_kernels_parameters(x, T):
    bound, (a, b, n, *sizes, scale) = cuda.bind("upsample.upsample", (x, x, 6, True, np.int64(3), 2, 1), np.ndarray)
    assert bound == T
    assert a is x and b is x
    assert n == 6 and {type(size) for size in (n, *sizes)} == {np.int32}
    assert scale == 1 and type(scale) is np.float32


def test_bind_passes_none_as_a_null_pointer():
    T, values = cuda.bind("shortcut.add", (F16, None, None, F32, F16, 6, 6, 6, 3, 1), np.ndarray)
    assert T == "half_t"
    assert [type(v) for v in values[:5]] == [np.ndarray, np.uintp, np.uintp, np.ndarray, np.ndarray]
    assert values[1] == 0


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((F32, F32, 6, 1, 3, 2), TypeError, "{} takes 7 arguments (x, y, n, H, W, s, scale), not 6"),
        ((F32, F16, 6, 1, 3, 2, 1.0), TypeError, "{}: y is T * (T = float), not float16"),
        ((I32, F32, 6, 1, 3, 2, 1.0), TypeError, "{}: x is T * (T = unknown), not int32"),
        ((F32, F32, 6.0, 1, 3, 2, 1.0), TypeError, "{}: n is int, not float"),
        ((F32, F32, 6, 1, 3, 2, "1"), TypeError, "{}: scale is float, not str"),
        ((F32, F32, 6, F32, 3, 2, 1.0), TypeError, "{}: H is int, not ndarray"),
        ((6, F32, F32, 1, 3, 2, 1.0), TypeError, "{}: x is T *, not int"),
        ((F32.T, F32, 6, 1, 3, 2, 1.0), ValueError, "{}: x is not C-contiguous"),
    ],
)
def test_a_wrong_call_names_kernel_and_parameter(args, error, message):
    with pytest.raises(error, match=f"^{re.escape(message.format('upsample.upsample'))}$"):
        cuda.bind("upsample.upsample", args, np.ndarray)


def test_an_array_of_another_type_is_refused():
    message = "norm.batch_norm: mean is float * (T = half_t), not float16"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        cuda.bind("norm.batch_norm", (F16, F16, F32, F32, F32, F16, 6, 3, 1), np.ndarray)


def test_what_an_int_cannot_count_is_refused():
    with pytest.raises(OverflowError):
        cuda.bind("upsample.upsample", (F32, F32, 2**31, 1, 3, 2, 1.0), np.ndarray)
    huge = types.SimpleNamespace(dtype=np.dtype("float32"), size=2**31, flags=F32.flags)
    message = "upsample.upsample: y has 2,147,483,648 elements, 2^31 or more; use a smaller batch"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        cuda.bind("upsample.upsample", (None, huge, 6, 1, 3, 2, 1.0), types.SimpleNamespace)
    message = "norm.softmax: needs 2,147,483,393 threads, 2^31 or more; use a smaller batch"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        cuda.grid("norm.softmax", 2**31 - 255, 256)
    assert cuda.grid("norm.softmax", 2**31 - 256, 256) == 2**23 - 1


class FakeCupy(types.SimpleNamespace):
    """CuPy as far as a launcher needs it. `compiling(code)` runs for each compilation; calls: what was compiled and launched."""

    def __init__(self, compiling=lambda code: None):
        self.calls, self.device, outer = [], threading.local(), self

        class RawModule:
            def __init__(self, code, options):
                self.code, self.options = code, options

            def compile(self):
                compiling(self.code)
                outer.calls.append(("compile", self.code, self.options, outer.device.id))

            def get_function(self, name):
                return Function(name)

        class Function:
            max_dynamic_shared_size_bytes = 48 << 10

            def __init__(self, name):
                self.name = name

            def __call__(self, grid, block, args, shared_mem):
                assert shared_mem <= self.max_dynamic_shared_size_bytes
                outer.calls.append((self.name, grid, block, [type(a) for a in args]))

        runtime = types.SimpleNamespace(getDevice=lambda: getattr(self.device, "id", 0))
        self.cuda = types.SimpleNamespace(
            runtime=runtime, Device=lambda i: types.SimpleNamespace(use=lambda: self.use(i))
        )
        self.RawModule, self.ndarray = RawModule, np.ndarray

    def use(self, device):
        self.device.id = device

    def compiled(self):
        """The texts that were compiled, in any order."""
        return sorted(call[1] for call in self.calls if call[0] == "compile")


@pytest.fixture
def fake(monkeypatch):
    """Return (cupy, launch) for FakeCupy's arguments; two threads compile."""

    def make(*args):
        cupy = FakeCupy(*args)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(cuda, "get_num_threads", lambda: 2)
        return cupy, cuda.launcher()

    return make


def test_launcher_compiles_each_file_once_per_type_and_casts(fake):
    cupy, launch = fake()
    for x in (F32, F16, F32):
        launch("upsample.upsample", 257, x, x, 6, 1, 3, 2, 1.0)
    launch("upsample.downsample", 256, F32, F32, 6, 1, 3, 2, 1.0, block=128, shared=100 << 10)
    launch("upsample.downsample", 0, F32, F32, 0, 1, 3, 2, 1.0)
    types_ = [np.ndarray, np.ndarray, np.int32, np.int32, np.int32, np.int32, np.float32]
    up, down = ("upsample", (2,), (256,), types_), ("downsample", (2,), (128,), types_)
    compiled = [("compile", cuda.source("upsample", T), ("--std=c++17",), 0) for T in ("float", "half_t")]
    assert cupy.calls == [compiled[0], up, compiled[1], up, up, down]


def test_files_are_compiled_side_by_side_and_once(fake):
    together = threading.Barrier(2)  # nobody passes before two are there
    cupy, launch = fake(lambda code: together.wait(timeout=30))
    launch.compile(["nhwc", "epilogue", "winograd", "direct"], "half_t")
    texts = sorted(cuda.source(file, "half_t") for file in ("nhwc", "epilogue", "winograd", "direct"))
    assert cupy.compiled() == texts
    launch.compile(["winograd", "nhwc"], "half_t")
    launch("nhwc.pack_rows", 6, F16, F32, 6, 3, 3)
    assert cupy.compiled() == texts
    assert cupy.calls[-1][0] == "pack_rows"


def test_every_device_has_modules_of_its_own(fake):
    cupy, launch = fake()
    for device in (1, 0, 1):
        cupy.use(device)
        launch.compile(["reorg"], "float")
    assert [call[3] for call in cupy.calls] == [1, 0]


def test_two_threads_that_want_the_same_file_compile_it_once(fake):
    begun, asked = threading.Event(), threading.Event()

    def compiling(code):
        begun.set()
        assert asked.wait(timeout=30)

    cupy, launch = fake(compiling)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(launch.compile, ["reorg"], "float")
        assert begun.wait(timeout=30)
        second = threads.submit(launch.compile, ["reorg", "route"], "float")
        asked.set()
        assert first.result(timeout=30)[0] is second.result(timeout=30)[0]
    assert cupy.compiled() == sorted(cuda.source(file) for file in ("reorg", "route"))


def test_what_does_not_compile_is_tried_again(fake):
    errors = [RuntimeError("out of disk")]

    def compiling(code):
        if code == cuda.source("reorg") and errors:
            raise errors.pop()

    cupy, launch = fake(compiling)
    with pytest.raises(RuntimeError, match=r"^out of disk$"):
        launch.compile(["reorg", "route"], "float")
    launch.compile(["reorg", "route"], "float")
    assert cupy.compiled() == sorted(cuda.source(file) for file in ("reorg", "route"))


def test_a_long_compilation_is_announced(fake, caplog, monkeypatch):
    monkeypatch.setattr(cuda, "NOTICE_AFTER", 0.01)
    announced = threading.Event()
    caplog.handler.addFilter(lambda record: announced.set() or True)
    caplog.set_level(logging.INFO, "gpudarknet")
    _, launch = fake(lambda code: announced.wait(timeout=30))
    launch.compile(["epilogue", "winograd"], "half_t")
    message = "compiling CUDA kernels epilogue, winograd for float16 (once per machine, some seconds)"
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [("gpudarknet", "INFO", message)]


def test_what_is_there_at_once_is_not_announced(fake, caplog, monkeypatch):
    monkeypatch.setattr(cuda, "NOTICE_AFTER", 30)
    caplog.set_level(logging.INFO, "gpudarknet")
    _, launch = fake()
    launch.compile(["epilogue", "winograd"], "half_t")
    assert caplog.records == []


def test_a_prepared_launch_takes_the_arrays_that_vary(kernels):
    n, H, W, s = 2 * 3 * 4, 3, 4, 2
    xs = [kernels.asarray(np.random.default_rng(i).random((2, H, W), dtype=np.float32)) for i in range(3)]
    ys = [kernels.empty((2, s * H, s * W)) for _ in xs]
    sizes = (4 * n, H, W, s, 0.5)
    run = cuda.prepare(kernels.launch, "upsample.upsample", 4 * n, xs[0], ys[0], *sizes, varying=(0, 1))
    for x, y in zip(xs, ys, strict=True):
        run(x, y)
    for x, y in zip(xs, ys, strict=True):
        want = 0.5 * kernels.to_numpy(x).repeat(s, axis=1).repeat(s, axis=2)
        np.testing.assert_array_equal(kernels.to_numpy(y), want)


@pytest.mark.parametrize("change", [lambda x: x[:1], lambda x: x.astype(np.float16), lambda x: x.transpose(0, 2, 1)])
def test_a_prepared_launch_refuses_other_arrays(emulator, change):
    be = backend.get("cupy")
    x, y = be.zeros((2, 3, 4)), be.empty((2, 6, 8))
    run = cuda.prepare(be.launch, "upsample.upsample", 96, x, y, 96, 3, 4, 2, 1.0, varying=(0,))
    message = "upsample.upsample: x must be a C-contiguous float32 array of 24 elements"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        run(change(x))
