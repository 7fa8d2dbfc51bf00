"""Our cuBLAS handle against a library that computes with NumPy by cuBLAS's rules (fake_cublas.py)."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import threading
import types

import host_cuda
import numpy as np
import op_cases
import pytest
from backends import backend_for
from fake_cublas import FakeCublas

from gpudarknet.backend import Backend, cublas
from gpudarknet.errors import BackendError, OutOfMemoryError

STREAM, WORKSPACE = 0x51, (0x3000, 1 << 20)


@pytest.fixture
def library():
    return FakeCublas()


@pytest.fixture
def handle(library):
    return cublas.Handle(STREAM, WORKSPACE, library)


def test_a_handle_gets_its_stream_before_its_workspace(library, handle):
    names, arguments = zip(*library.calls, strict=True)
    assert names == ("cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasSetMathMode")
    assert arguments[1] == {"handle": 0xB1A5, "stream": STREAM}
    assert arguments[2] == {"handle": 0xB1A5, "workspace": 0x3000, "bytes": 1 << 20}
    assert arguments[3] == {"handle": 0xB1A5, "mode": 16}  # DEFAULT_MATH with DISALLOW_REDUCED_PRECISION_REDUCTION
    assert library.workspace == 1 << 20


def address(a):
    return a.ctypes.data


def product(handle, precision, M, N, K, offset=0, gap=0):
    """Multiply seeded matrices, y a part of a wider one; return what is written, and the right result in float64."""
    rng, dtype = np.random.default_rng(M * N * K), np.float16 if precision == "fp16" else np.float32
    a = rng.normal(0, 1, (M, K + gap)).astype(dtype)
    w = rng.normal(0, 1, (N, K + 2 * gap)).astype(dtype)
    y = np.full((M, offset + N + gap), 7, dtype)
    ld = y.shape[1], a.shape[1], w.shape[1]
    handle.gemm(precision, address(y[:, offset:]), address(a), address(w), M, N, K, *ld)
    around = np.delete(y, np.s_[offset : offset + N], axis=1)
    assert (around == 7).all()
    return y[:, offset : offset + N], a[:, :K].astype(np.float64) @ w[:, :K].T.astype(np.float64)


# One product's rounding errors of float32 sums; TF32 and float16 keep 11 bits of each factor or of the result.
@pytest.mark.parametrize(
    ("precision", "least", "most"), [("fp32", 0, 1e-6), ("tf32", 1e-5, 1e-3), ("fp16", 1e-5, 1e-3)]
)
@pytest.mark.parametrize("sizes", [(5, 3, 7), (1, 255, 33), (169, 8, 1), (6, 1, 2)])
def test_gemm_writes_into_a_part_of_a_wider_matrix(handle, precision, least, most, sizes):
    for offset, gap in ((0, 0), (3, 2), (0, 5)):
        got, want = product(handle, precision, *sizes, offset, gap)
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error < most
        assert error > least or sizes[2] < 3


def test_gemm_says_what_cublas_wants(library, handle):
    a, w, y = (np.zeros(shape, np.float16) for shape in ((5, 9), (3, 8), (5, 4)))
    handle.gemm("fp16", address(y), address(a), address(w), 5, 3, 7, 4, 9, 8)
    name, given = library.calls[-1]
    alpha, beta = given.pop("alpha"), given.pop("beta")
    assert (name, alpha != beta) == ("cublasGemmEx", True)
    assert given == {
        "handle": 0xB1A5, "transa": 1, "transb": 0, "m": 3, "n": 5, "k": 7,  # OP_T, OP_N
        "A": address(w), "Atype": 2, "lda": 8, "B": address(a), "Btype": 2, "ldb": 9, "C": address(y), "Ctype": 2, "ldc": 4,
        "compute": 68, "algo": -1,
    }  # fmt: skip


@pytest.mark.parametrize(("precision", "kind", "compute"), [("fp32", 0, 68), ("tf32", 0, 77), ("fp16", 2, 68)])
def test_fp32_is_not_tf32(library, handle, precision, kind, compute):
    product(handle, precision, 2, 3, 4)
    given = library.calls[-1][1]
    assert [given[name] for name in ("Atype", "Btype", "Ctype", "compute")] == [kind, kind, kind, compute]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_batched_gemms_multiply_groups_of_columns(handle, dtype):
    """A grouped convolution: group g of the patches' columns makes group g of the result's."""
    G, M, N, K, ldw = 3, 5, 2, 7, 8
    rng = np.random.default_rng(4)
    a = rng.normal(0, 1, (M, G * K + 1)).astype(dtype)
    w = rng.normal(0, 1, (G, N, ldw)).astype(dtype)
    y = np.full((M, G * N + 4), 7, dtype)
    strides = (N, K, N * ldw)
    precision = "fp16" if dtype == np.float16 else "fp32"
    handle.gemm_batched(
        precision, G, address(y[:, 1:]), address(a), address(w), M, N, K, y.shape[1], a.shape[1], ldw, *strides
    )
    for g in range(G):
        want = a[:, g * K : (g + 1) * K].astype(float) @ w[g, :, :K].T.astype(float)
        np.testing.assert_allclose(y[:, 1 + g * N : 1 + (g + 1) * N], want, rtol=2e-3, atol=5e-3)
    assert (y[:, 0] == 7).all() and (y[:, 1 + G * N :] == 7).all()


def test_a_leading_dimension_that_is_too_small_is_refused(handle):
    a = np.zeros((5, 7), np.float32)
    message = "cublasGemmEx: CUBLAS_STATUS_INVALID_VALUE (7); backend='numpy' works without cuBLAS"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        handle.gemm("fp32", address(a), address(a), address(a), 5, 3, 7, 3, 6, 7)


STATUS = {
    13: (BackendError, "EXECUTION_FAILED (13); backend='numpy' works without cuBLAS"),
    3: (OutOfMemoryError, "ALLOC_FAILED (3): device memory is full; close other programs that use it"),
}


@pytest.mark.parametrize("status", STATUS)
@pytest.mark.parametrize("name", list(cublas.ARGUMENTS))
def test_a_status_names_the_call(library, name, status):
    library.fails[name] = status
    kind, text = STATUS[status]
    with pytest.raises(BackendError) as e:
        handle = cublas.Handle(STREAM, WORKSPACE, library)
        a = np.zeros((2, 2), np.float32)
        handle.gemm("fp32", address(a), address(a), address(a), 2, 2, 2, 2, 2, 2)
        handle.gemm_batched("fp32", 1, address(a), address(a), address(a), 2, 2, 2, 2, 2, 2, 0, 0, 0)
        handle.version()
    assert (type(e.value), str(e.value)) == (kind, f"{name}: CUBLAS_STATUS_{text}")


# matmul: arrays


def stack(shape, order=None, dtype=np.float32):
    """Return a seeded array of this shape, with its axes in this order in memory."""
    order = range(len(shape)) if order is None else order
    a = np.random.default_rng(shape).standard_normal([shape[axis] for axis in order]).astype(dtype)
    return a.transpose(np.argsort(list(order)))


def backend(library, xp=np):
    return Backend("fake", xp, lambda *args, **kw: None, library.open)


def gemms(library):
    """Return the arguments of the gemms so far except addresses, types and sizes."""
    names = ("transa", "transb", "lda", "ldb", "strideA", "strideB", "strideC", "batchCount")
    return [[given.get(name, "") for name in names] for name, given in library.calls if "Gemm" in name]


# a, b -> the calls: transa, transb, lda, ldb, strideA, strideB, strideC, batchCount, where cuBLAS's A is b and its B is a
PRODUCTS = {
    "plain": (stack((3, 5)), stack((5, 7)), [[0, 0, 7, 5, "", "", "", ""]]),
    "transposed": (stack((3, 5), (1, 0)), stack((5, 7), (1, 0)), [[1, 1, 5, 3, "", "", "", ""]]),
    "one by one": (stack((1, 1)), stack((1, 1)), [[0, 0, 1, 1, "", "", "", ""]]),
    "one row": (stack((1, 5)), stack((5, 7), (1, 0)), [[1, 0, 5, 5, "", "", "", ""]]),
    "one column": (stack((3, 5)), stack((5, 1)), [[0, 0, 1, 5, "", "", "", ""]]),
    "one term": (stack((3, 1)), stack((1, 7)), [[0, 0, 7, 1, "", "", "", ""]]),
    "parts of rows": (stack((3, 9))[:, 2:7], stack((8, 9))[1:6, 1:8], [[0, 0, 9, 9, "", "", "", ""]]),
    "every second row": (stack((6, 5))[::2], stack((10, 7))[::2], [[0, 0, 14, 10, "", "", "", ""]]),
    "a row with gaps": (stack((1, 10))[:, ::2], stack((5, 7)), [[0, 1, 7, 2, "", "", "", ""]]),
    "neither rows nor columns": (stack((3, 10))[:, ::2], stack((5, 7)), [[0, 0, 7, 5, "", "", "", ""]]),
    "backwards": (stack((3, 5))[::-1], stack((5, 7)), [[0, 0, 7, 5, "", "", "", ""]]),
    "one row for all": (np.broadcast_to(stack((1, 5)), (3, 5)), stack((5, 7)), [[0, 0, 7, 5, "", "", "", ""]]),
    "a kernel for all images": (stack((1, 3, 5)), stack((4, 5, 7)), [[0, 0, 7, 5, 35, 0, 21, 4]]),
    "without an axis of images": (stack((3, 5)), stack((4, 5, 7)), [[0, 0, 7, 5, 35, 0, 21, 4]]),
    "images and groups": (stack((4, 2, 3, 5)), stack((4, 2, 5, 7)), [[0, 0, 7, 5, 35, 15, 21, 8]]),
    "a kernel of groups": (stack((2, 3, 5)), stack((4, 2, 5, 7)), 2 * [[0, 0, 7, 5, 70, 0, 42, 4]]),
    "patches, turned": (stack((4, 3, 5)), stack((4, 5, 7), (0, 2, 1)), [[1, 0, 5, 5, 35, 15, 21, 4]]),
    "a matrix for each place": (stack((7, 3, 5)), stack((7, 5, 4), (2, 1, 0)), [[0, 0, 4, 5, 20, 15, 12, 7]]),
    "a backwards stack": (stack((4, 3, 5))[::-1], stack((4, 5, 7)), [[0, 0, 7, 5, 35, 15, 21, 4]]),
    "a vector": (stack((5,)), stack((2, 4, 5, 7)), [[0, 0, 7, 5, 35, 0, 7, 8]]),
    "times a vector": (stack((2, 3, 5)), stack((5,)), [[0, 0, 1, 5, 0, 15, 3, 2]]),
    "no rows": (stack((0, 5)), stack((5, 7)), []),
    "no images": (stack((0, 3, 5)), stack((1, 5, 7)), []),
    "no terms": (stack((2, 3, 0)), stack((0, 7)), []),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", PRODUCTS)
def test_matmul_reads_arrays_in_place(library, name, dtype):
    a, b, calls = PRODUCTS[name]
    if dtype == np.float16:  # astype keeps the order of the axes, not the gaps
        a, b, calls = a.astype(dtype), b.astype(dtype), None
    got = cublas.matmul(backend(library), a, b)
    want = np.matmul(a.astype(np.float64), b.astype(np.float64))
    assert got.dtype == dtype and got.shape == want.shape
    np.testing.assert_allclose(
        got, want, rtol=0, atol=4e-6 if dtype == np.float32 else 4e-3
    )  # roundings of sums below 8
    assert calls is None or gemms(library) == calls
    kinds = {(given["Atype"], given["Ctype"], given["compute"]) for name, given in library.calls if "Gemm" in name}
    assert kinds <= {(0, 0, 68) if dtype == np.float32 else (2, 2, 68)}


def test_matmul_copies_only_what_has_no_leading_dimension(library):
    """All but five of the cases pass cuBLAS the addresses of their arrays."""
    copied = {
        "neither rows nor columns",
        "backwards",
        "one row for all",
        "a matrix for each place",
        "a backwards stack",
    }
    for name, (a, b, calls) in PRODUCTS.items():
        cublas.matmul(backend(library), a, b)
        if calls:
            _, given = library.calls[-len(calls)]
            assert ((given["B"], given["A"]) == (address(a), address(b))) is (name not in copied), name


def test_tf32_is_for_those_who_ask_cupy_for_it(library, monkeypatch):
    be = backend(library)
    for value, compute in ((None, 68), ("0", 68), ("1", 77)):
        monkeypatch.setenv("CUPY_TF32", value) if value else monkeypatch.delenv("CUPY_TF32", raising=False)
        cublas.matmul(be, stack((3, 5)), stack((5, 7)))
        assert library.calls[-1][1]["compute"] == compute
    cublas.matmul(be, stack((3, 5), dtype=np.float16), stack((5, 7), dtype=np.float16))
    assert library.calls[-1][1]["compute"] == 68


def test_long_stacks_are_split(library, monkeypatch):
    monkeypatch.setattr(cublas, "LARGEST_BATCH", 4)
    a, b = stack((9, 1, 2)), stack((9, 2, 3))
    np.testing.assert_allclose(cublas.matmul(backend(library), a, b), a @ b, rtol=1e-6)
    assert [call[-1] for call in gemms(library)] == [4, 4, 1]


def test_matrices_that_do_not_fit_are_refused(library):
    with pytest.raises(ValueError, match=r"^matmul: \(3, 5\) and \(4, 7\) do not fit$"):
        cublas.matmul(backend(library), stack((3, 5)), stack((4, 7)))


class Streams:
    """NumPy with the part of cupy.cuda that says where work goes; each thread has a stream and a device of its own."""

    def __init__(self):
        self.here = threading.local()
        self.cuda = types.SimpleNamespace(
            Device=lambda: types.SimpleNamespace(id=getattr(self.here, "device", 0)),
            get_current_stream=lambda: getattr(self.here, "stream", None),
        )

    def __getattr__(self, name):
        return getattr(np, name)


def test_gemms_run_on_the_callers_stream_and_device(library):
    """One handle for each device; its stream and, after it, a workspace are set only when the stream is another one."""
    xp, set_up = Streams(), []
    be, streams = backend(library, xp), [types.SimpleNamespace(ptr=ptr) for ptr in (0x10, 0x20)]
    for device, stream in ((0, 0), (0, 0), (0, 1), (1, 1), (1, 1), (0, 1)):
        xp.here.device, xp.here.stream = device, streams[stream]
        cublas.matmul(be, stack((3, 5)), stack((5, 7)))
    for name, given in library.calls:
        if name == "cublasSetWorkspace_v2":
            assert given["bytes"] == cublas.WORKSPACE
        set_up.append(f"stream {given['stream']:#x}" if "stream" in given else name)
    first = [
        "cublasCreate_v2",
        "stream 0x10",
        "cublasSetWorkspace_v2",
        "cublasSetMathMode",
        "cublasGemmEx",
        "cublasGemmEx",
    ]
    then = ["stream 0x20", "cublasSetWorkspace_v2", "cublasGemmEx"]
    second = ["cublasCreate_v2", "stream 0x20", "cublasSetWorkspace_v2", "cublasSetMathMode", *3 * ["cublasGemmEx"]]
    assert set_up == first + then + second


def test_threads_that_multiply_at_once_have_handles_of_their_own(library):
    xp = Streams()
    be = backend(library, xp)
    with cublas.borrow_handle(be) as mine:
        xp.here.stream = types.SimpleNamespace(ptr=0x30)
        with cublas.borrow_handle(be) as other:  # as another thread would, meanwhile
            assert other is not mine
    assert [name for name, _ in library.calls].count("cublasCreate_v2") == 2
    used = []

    def run():
        with cublas.borrow_handle(be) as handle:
            used.append(handle)

    for _ in range(3):  # threads that come and go leave nothing behind
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert {id(handle) for handle in used} <= {id(mine), id(other)}
    assert [name for name, _ in library.calls].count("cublasCreate_v2") == 2


def test_a_stream_that_could_not_be_set_is_set_the_next_time(library):
    be = backend(library, Streams())
    library.fails["cublasSetWorkspace_v2"] = 7
    with pytest.raises(BackendError):
        cublas.matmul(be, stack((3, 5)), stack((5, 7)))
    del library.fails["cublasSetWorkspace_v2"]
    np.testing.assert_allclose(
        cublas.matmul(be, stack((3, 5)), stack((5, 7))), stack((3, 5)) @ stack((5, 7)), rtol=1e-5
    )
    assert library.workspace == cublas.WORKSPACE


OURS = ("matmul.matmul", "convolution.convolve", "convolution.convolve_backward")
CASES = [case for case in op_cases.CASES if case.op.name in OURS]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ops_multiply_with_our_handle(library, monkeypatch, case, half):
    """What a GPU runs, without the array module's matmul: kernels on the CPU, products by cuBLAS's rules."""

    def refuse(*args, **kw):
        raise AssertionError("xp.matmul")

    be = Backend("fake", np, backend_for("host-cuda").launch, library.open)
    monkeypatch.setattr(np, "matmul", refuse)
    args = op_cases.each(case.args, lambda a: a.astype(np.float16) if half else a)
    got, want = op_cases.arrays(case.op(be, *args)), case.want(args)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(
            g, w, rtol=1e-3 if half else case.rtol, atol=max(8e-3, case.atol) if half else case.atol
        )
    assert gemms(library)


@pytest.fixture
def libraries(monkeypatch):
    """Which libraries there are, and which were asked for."""
    there, asked = set(), []

    def open_library(name):
        asked.append(name)
        if name not in there:
            raise OSError(f"{name}: cannot open shared object file\nand more")
        return types.SimpleNamespace(name=name, cublasGemmEx=None)

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    monkeypatch.setattr(cublas, "linked_library", list)
    cublas.load.cache_clear()
    yield there, asked
    cublas.load.cache_clear()


def test_the_library_that_is_loaded_comes_first(libraries, monkeypatch):
    there, asked = libraries
    monkeypatch.setattr(cublas, "loaded_libraries", lambda: ["/a/libcublas.so.12"])
    monkeypatch.setattr(cublas, "pathfinder_library", lambda: ["/b/libcublas.so.13"])
    there.update({"/a/libcublas.so.12", "/b/libcublas.so.13", "libcublas.so.12"})
    assert cublas.load().name == "/a/libcublas.so.12"
    assert asked == ["/a/libcublas.so.12"]


def test_without_a_loaded_library_it_is_searched_or_named(libraries, monkeypatch):
    there, asked = libraries
    monkeypatch.setattr(cublas, "loaded_libraries", list)
    monkeypatch.setattr(cublas, "pathfinder_library", lambda: ["/b/libcublas.so.13"])
    there.add("libcublas.so.12")
    assert cublas.load().name == "libcublas.so.12"
    assert asked == ["/b/libcublas.so.13", "libcublas.so.13", "libcublas.so.12"]


def test_no_library_is_an_error_that_says_what_was_tried(libraries, monkeypatch):
    monkeypatch.setattr(cublas, "loaded_libraries", list)
    monkeypatch.setattr(cublas, "pathfinder_library", list)
    names = ("libcublas.so.13", "libcublas.so.12", "cublas64_13.dll", "cublas64_12.dll")
    tried = "; ".join(f"{name}: cannot open shared object file" for name in names)
    message = f'cuBLAS: cannot be loaded ({tried}); pip install "gpudarknet[cuda12]" installs it'
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        cublas.load()


@pytest.mark.skipif(host_cuda.COMPILER is None or sys.platform != "linux", reason="needs g++, and Linux's linker")
def test_cupys_own_library_beats_another_that_was_loaded_before(monkeypatch, tmp_path):
    """PyTorch brings cuBLAS 12, CuPy is linked to 13: its module finds the functions of 13."""

    def build(name, source, *flags):
        (tmp_path / "source.c").write_text(source)
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
        subprocess.run(
            [host_cuda.COMPILER, "-x", "c", "source.c", "-x", "none", *options, *flags, "-o", name],
            cwd=tmp_path, check=True,
        )  # fmt: skip
        return str(tmp_path / name)

    for major in (12, 13):
        ctypes.CDLL(build(f"libcublas.so.{major}", f"int cublasGemmEx(void) {{ return {major}; }}"))
    module = types.ModuleType("cupy_backends.cuda.libs.cublas")
    module.__file__ = build("cublas.cpython.so", "int module;", "libcublas.so.13")
    for name in ("cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.libs"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["cupy_backends.cuda.libs"], "cublas", module, raising=False)
    monkeypatch.setattr(cublas, "loaded_libraries", lambda: [str(tmp_path / "libcublas.so.12")])
    cublas.load.cache_clear()
    try:
        assert cublas.load().cublasGemmEx() == 13
        module.__file__ = build(
            "unlinked.so", "int module;"
        )  # as Windows sees the module: without what it is linked to
        cublas.load.cache_clear()
        assert cublas.load().cublasGemmEx() == 12
    finally:
        cublas.load.cache_clear()


def test_without_cupys_module_nothing_is_linked(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy_backends.cuda.libs", None)
    assert cublas.linked_library() == []


MAPS = """7f0a0000-7f0b0000 r--p 00000000 00:2a 42    /opt/my venv/nvidia/cublas/lib/libcublas.so.12
7f0b0000-7f0c0000 r-xp 00010000 00:2a 42    /opt/my venv/nvidia/cublas/lib/libcublas.so.12
7f0b8000-7f0bc000 r-xp 00010000 00:2a 45    /opt/cuda/lib64/libcublas.so.9
7f0b8000-7f0bc000 r-xp 00010000 00:2a 45    /usr/lib/libcublas.so.13
7f0c0000-7f0d0000 r-xp 00010000 00:2a 43    /opt/my venv/nvidia/cublas/lib/libcublasLt.so.12
7f0d0000-7f0e0000 rw-p 00000000 00:00 0
7f0e0000-7f0f0000 r-xp 00010000 00:2a 44    /opt/cupy_backends/cuda/libs/cublas.cpython-311-x86_64-linux-gnu.so
"""


def test_the_loaded_library_is_read_off_the_process(tmp_path):
    (tmp_path / "maps").write_text(MAPS)
    newest_first = [
        "/usr/lib/libcublas.so.13",
        "/opt/my venv/nvidia/cublas/lib/libcublas.so.12",
        "/opt/cuda/lib64/libcublas.so.9",
    ]
    assert cublas.loaded_libraries(tmp_path / "maps") == newest_first
    assert cublas.loaded_libraries(tmp_path / "nothing") == []


def test_pathfinder_is_asked_where_it_is_installed(monkeypatch):
    found = types.SimpleNamespace(abs_path="/p/libcublas.so.12")
    pathfinder = types.SimpleNamespace(load_nvidia_dynamic_lib=lambda name: {"cublas": found}[name])
    monkeypatch.setitem(sys.modules, "cuda", types.SimpleNamespace(pathfinder=pathfinder))
    assert cublas.pathfinder_library() == ["/p/libcublas.so.12"]

    def missing(name):
        raise RuntimeError(f"{name} is nowhere")  # the base of its DynamicLibNotFoundError

    pathfinder.load_nvidia_dynamic_lib = missing
    assert cublas.pathfinder_library() == []
    monkeypatch.setitem(sys.modules, "cuda", None)
    assert cublas.pathfinder_library() == []
