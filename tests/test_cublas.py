"""Our cuBLAS handle against a library that computes with NumPy by cuBLAS's rules (fake_cublas.py)."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import types

import host_cuda
import numpy as np
import pytest
from fake_cublas import FakeCublas

from gpudarknet import cublas
from gpudarknet.errors import BackendError

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
    beside = np.delete(y, np.s_[offset : offset + N], axis=1)
    assert (beside == 7).all()
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
def test_gemms_multiply_groups_of_columns(handle, dtype):
    """A grouped convolution: group g of the patches' columns makes group g of the result's."""
    G, M, N, K, ldw = 3, 5, 2, 7, 8
    rng = np.random.default_rng(4)
    a = rng.normal(0, 1, (M, G * K + 1)).astype(dtype)
    w = rng.normal(0, 1, (G, N, ldw)).astype(dtype)
    y = np.full((M, G * N + 4), 7, dtype)
    apart = (N, K, N * ldw)
    precision = "fp16" if dtype == np.float16 else "fp32"
    handle.gemms(precision, G, address(y[:, 1:]), address(a), address(w), M, N, K, y.shape[1], a.shape[1], ldw, *apart)
    for g in range(G):
        want = a[:, g * K : (g + 1) * K].astype(float) @ w[g, :, :K].T.astype(float)
        np.testing.assert_allclose(y[:, 1 + g * N : 1 + (g + 1) * N], want, rtol=2e-3, atol=5e-3)
    assert (y[:, 0] == 7).all() and (y[:, 1 + G * N :] == 7).all()


def test_a_leading_dimension_that_is_too_small_is_refused(handle):
    a = np.zeros((5, 7), np.float32)
    message = "cublasGemmEx: cuBLAS says INVALID_VALUE (7); predict(engine='reference') goes without it"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        handle.gemm("fp32", address(a), address(a), address(a), 5, 3, 7, 3, 6, 7)


@pytest.mark.parametrize("name", list(cublas.ARGUMENTS))
def test_a_status_names_the_call(library, name):
    library.fails[name] = 3
    message = f"{name}: cuBLAS says ALLOC_FAILED (3); predict(engine='reference') goes without it"
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        handle = cublas.Handle(STREAM, WORKSPACE, library)
        a = np.zeros((2, 2), np.float32)
        handle.gemm("fp32", address(a), address(a), address(a), 2, 2, 2, 2, 2, 2)
        handle.gemms("fp32", 1, address(a), address(a), address(a), 2, 2, 2, 2, 2, 2, 0, 0, 0)
        handle.version()


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
    monkeypatch.setattr(cublas, "linked", list)
    cublas.load.cache_clear()
    yield there, asked
    cublas.load.cache_clear()


def test_the_library_that_is_loaded_comes_first(libraries, monkeypatch):
    there, asked = libraries
    monkeypatch.setattr(cublas, "loaded", lambda: ["/a/libcublas.so.12"])
    monkeypatch.setattr(cublas, "found", lambda: ["/b/libcublas.so.13"])
    there.update({"/a/libcublas.so.12", "/b/libcublas.so.13", "libcublas.so.12"})
    assert cublas.load().name == "/a/libcublas.so.12"
    assert asked == ["/a/libcublas.so.12"]


def test_without_a_loaded_library_it_is_found_or_named(libraries, monkeypatch):
    there, asked = libraries
    monkeypatch.setattr(cublas, "loaded", list)
    monkeypatch.setattr(cublas, "found", lambda: ["/b/libcublas.so.13"])
    there.add("libcublas.so.12")
    assert cublas.load().name == "libcublas.so.12"
    assert asked == ["/b/libcublas.so.13", "libcublas.so.13", "libcublas.so.12"]


def test_no_library_is_an_error_that_says_what_was_tried(libraries, monkeypatch):
    monkeypatch.setattr(cublas, "loaded", list)
    monkeypatch.setattr(cublas, "found", list)
    names = ("libcublas.so.13", "libcublas.so.12", "cublas64_13.dll", "cublas64_12.dll")
    tried = "; ".join(f"{name}: cannot open shared object file" for name in names)
    message = f'cuBLAS: cannot be loaded ({tried}); pip install "gpudarknet[cuda12]" brings it'
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
    monkeypatch.setattr(cublas, "loaded", lambda: [str(tmp_path / "libcublas.so.12")])
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
    assert cublas.linked() == []


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
    assert cublas.loaded(tmp_path / "maps") == newest_first
    assert cublas.loaded(tmp_path / "nothing") == []


def test_pathfinder_is_asked_where_it_is_installed(monkeypatch):
    found = types.SimpleNamespace(abs_path="/p/libcublas.so.12")
    pathfinder = types.SimpleNamespace(load_nvidia_dynamic_lib=lambda name: {"cublas": found}[name])
    monkeypatch.setitem(sys.modules, "cuda", types.SimpleNamespace(pathfinder=pathfinder))
    assert cublas.found() == ["/p/libcublas.so.12"]

    def missing(name):
        raise RuntimeError(f"{name} is nowhere")  # the base of its DynamicLibNotFoundError

    pathfinder.load_nvidia_dynamic_lib = missing
    assert cublas.found() == []
    monkeypatch.setitem(sys.modules, "cuda", None)
    assert cublas.found() == []
