"""NumPy's BLAS: found among the loaded libraries, limited to one thread in every worker, restored afterwards."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import threadpoolctl

from gpudarknet.backend import blas, machine
from gpudarknet.backend.threads import ThreadPool

HOME = Path(np.__file__).resolve().parent
OWN = f"{HOME.parent}/numpy.libs/libscipy_openblas64_-32a4b2a6.so"
OPENCV = f"{HOME.parent}/opencv_python.libs/libopenblas-r0.so"


def library(path, api="openblas", count=2, **values):
    values = {"internal_api": api, "user_api": "blas", "version": "1.2", "threading_layer": "pthreads"} | values
    counts = [count]
    return SimpleNamespace(
        filepath=path, get_num_threads=lambda: counts[0], set_num_threads=lambda n: counts.__setitem__(0, n), **values
    )


@pytest.fixture
def loaded(monkeypatch):
    """Return a function that sets the libraries which threadpoolctl finds, and the name in NumPy's configuration."""

    def load(*libraries, name="blas"):
        found = SimpleNamespace(select=lambda user_api: SimpleNamespace(lib_controllers=list(libraries)))
        monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda: found)
        monkeypatch.setattr(machine, "numpy_blas", lambda: (name, "3.1"))
        blas.libraries.cache_clear()
        blas._controls.cache_clear()

    yield load
    blas.libraries.cache_clear()
    blas._controls.cache_clear()


@pytest.mark.parametrize(
    ("paths", "want"),
    [
        ([OPENCV, OWN], [OWN]),  # a wheel of NumPy brings its own
        ([f"{HOME}/.dylibs/libopenblas.dylib", OPENCV], [f"{HOME}/.dylibs/libopenblas.dylib"]),  # on macOS
        ([OPENCV, "/usr/lib/libopenblas.so"], ["/usr/lib/libopenblas.so"]),  # a distribution's does not
        (["/conda/libflexiblas.so", "/conda/libopenblas.so"], ["/conda/libflexiblas.so", "/conda/libopenblas.so"]),
        ([OPENCV], []),
    ],
)  # fmt: skip
def test_numpys_libraries_are_told_from_those_of_other_packages(paths, want, loaded):
    loaded(*map(library, paths))
    assert [lib.filepath for lib in blas.libraries()] == want


def test_the_library_that_numpy_uses_is_found():
    if machine.numpy_blas()[0] != "scipy-openblas":
        pytest.skip("this NumPy is not from PyPI")
    (lib,) = blas.libraries()
    assert Path(lib.filepath).parent == HOME.parent / "numpy.libs"
    previous = lib.get_num_threads()
    try:
        lib.set_num_threads(3)
        saved = blas.limit_threads()
        assert (saved, lib.get_num_threads()) == ([3], 1)
        blas.restore_threads(saved)
        assert lib.get_num_threads() == 3
    finally:
        lib.set_num_threads(previous)
        blas._controls()[0][2]()


@pytest.mark.parametrize(
    ("libraries", "name", "suits", "variables", "text"),
    [
        ([("openblas", "libopenblas.so")], "openblas", True, ["OPENBLAS_NUM_THREADS"], "openblas 1.2, pthreads, libopenblas.so"),
        ([("mkl", "libmkl_rt.so.2")], "blas", True, ["MKL_NUM_THREADS"], "mkl 1.2, pthreads, libmkl_rt.so.2"),
        ([("blis", "libblis.so.4")], "blas", True, ["BLIS_NUM_THREADS"], "blis 1.2, pthreads, libblis.so.4"),
        (
            [("flexiblas", "libflexiblas.so.3"), ("mkl", "libmkl_rt.so.2")], "flexiblas", True, ["MKL_NUM_THREADS"],
            "flexiblas 1.2, pthreads, libflexiblas.so.3; mkl 1.2, pthreads, libmkl_rt.so.2",
        ),
        ([], "blas", True, [], "blas 3.1, single-threaded"),
        ([], "none", True, [], "none 3.1, single-threaded"),
        ([], "accelerate", True, ["VECLIB_MAXIMUM_THREADS"],
         "accelerate 3.1, whose threads only the environment can limit, before Python starts"),
        ([], "armpl", False, [], "armpl 3.1, whose threads only the environment can limit, before Python starts"),
    ],
)  # fmt: skip
def test_what_is_known_of_each_blas(libraries, name, suits, variables, text, loaded):
    loaded(*(library(f"/usr/lib/{file}", api) for api, file in libraries), name=name)
    assert (blas.suits_workers(), blas.variables(), blas.describe()) == (suits, variables, text)


def test_a_library_with_a_count_per_thread_is_limited_in_every_worker(loaded):
    """MKL's count, and OpenMP's, belong to the calling thread."""
    counts, seen, barrier = threading.local(), {}, threading.Barrier(3)

    def get():
        return getattr(counts, "count", 4)

    def note():
        barrier.wait(10)  # so that each worker takes one
        seen[threading.current_thread().name] = get()

    lib = library("/usr/lib/libmkl_rt.so.2", "mkl")
    lib.get_num_threads, lib.set_num_threads = get, lambda n: setattr(counts, "count", n)
    loaded(lib)
    ThreadPool(3).run_all([note] * 3)
    assert sorted(seen.values()) == [1, 1, 1] and len(seen) == 3
    assert get() == 4


def test_a_shared_count_is_restored_and_starting_workers_does_not_change_it(loaded):
    lib = library("/usr/lib/libopenblas.so", count=4)
    loaded(lib)
    pool, seen = ThreadPool(3), []
    for _ in range(2):
        with pool, pool:
            seen.append(lib.get_num_threads())
        assert lib.get_num_threads() == 4
    pool.resize(5)
    pool.run_all([lambda: seen.append(lib.get_num_threads())] * 9)
    assert set(seen) == {1} and lib.get_num_threads() == 4


def test_every_thread_may_limit_blas_in_turn():
    """threadpoolctl lets one thread at a time set OpenBLAS's count, and ignores others until that one releases it."""
    if not blas.libraries():
        pytest.skip("this BLAS cannot be controlled")
    (get, set_threads, release), pool, seen = blas._controls()[0], ThreadPool(2), []

    def note():
        with pool:
            seen.append(get())
        seen.append(get())

    previous = get()
    try:
        set_threads(3)
        release()
        note()
        thread = threading.Thread(target=note)
        thread.start()
        thread.join()
        note()
        if blas.libraries()[0].threading_layer == "pthreads":  # shared by all threads
            assert seen == [1, 3] * 3
    finally:
        set_threads(previous)
        release()
