"""NumPy's BLAS: which library it is, and how many threads it may use.

threadpoolctl finds the library and sets its number of threads: OpenBLAS, MKL, BLIS (AOCL) and FlexiBLAS. Others are of two kinds.
Some cannot interfere with our workers: the reference BLAS and NumPy's own loops have no threads, and Accelerate's are those of
Grand Central Dispatch, which starts no more than there are cores, however many threads call it. The rest would start its threads
in each of our workers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import machine

VARIABLES = {
    "openblas": "OPENBLAS_NUM_THREADS",
    "mkl": "MKL_NUM_THREADS",
    "blis": "BLIS_NUM_THREADS",
    "accelerate": "VECLIB_MAXIMUM_THREADS",
}
SINGLE_THREADED = {"none", "blas", "cblas", "netlib"}  # names of NumPy's configuration: no BLAS, and the reference BLAS
Control = tuple[Callable[[], int | None], Callable[[int], object], Callable[[], object]]  # get, set, release


@cache
def libraries() -> list[Any]:
    """Return threadpoolctl's controllers of the BLAS libraries that NumPy may use; none if it controls no such library.

    Libraries bundled with other packages, such as OpenCV's, are left alone.
    """
    import threadpoolctl  # here, because it takes milliseconds

    found = threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers
    home = Path(np.__file__).resolve().parent
    bundled = [lib for lib in found if Path(lib.filepath).parent in (home.parent / "numpy.libs", home / ".dylibs")]
    return bundled or [lib for lib in found if not Path(lib.filepath).parent.name.endswith((".libs", ".dylibs"))]


def name() -> str:
    """Return the name of NumPy's BLAS by which `VARIABLES` lists it, or else the one in NumPy's configuration."""
    return libraries()[0].internal_api if libraries() else machine.numpy_blas()[0].lower()


def variables() -> list[str]:
    """Return the environment variables that limit the threads of NumPy's BLAS."""
    names = [lib.internal_api for lib in libraries()] or [name()]
    return [VARIABLES[name] for name in names if name in VARIABLES]


def suits_workers() -> bool:
    """Return whether several threads may call BLAS at once without each of them occupying all cores."""
    return bool(libraries()) or name() in SINGLE_THREADED or name() == "accelerate"


def describe() -> str:
    """Return NumPy's BLAS as text: name, version, threading layer and file, or what is known of its threads."""
    if libraries():
        return "; ".join(
            f"{lib.internal_api} {lib.version or ''}, {getattr(lib, 'threading_layer', 'unknown threads')}, "
            f"{Path(lib.filepath).name}" for lib in libraries()
        )  # fmt: skip
    text = " ".join(filter(None, machine.numpy_blas()))
    if name() in SINGLE_THREADED:
        return f"{text}, single-threaded"
    return f"{text}, whose threads only the environment can limit, before Python starts"


@cache
def _controls() -> list[Control]:
    """Return the functions of each library. release: allows another thread to set OpenBLAS's number, which threads share."""
    return [
        (lib.get_num_threads, lib.set_num_threads, getattr(lib, "clear_controlling_thread", lambda: None))
        for lib in libraries()
    ]


def limit_threads() -> list[int]:
    """Set BLAS to one thread; return the previous numbers for `restore_threads`.

    OpenBLAS shares the number between threads; MKL and every library on OpenMP have one per calling thread.
    """
    previous = []
    for get, set, _ in _controls():
        previous.append(get() or 1)
        if previous[-1] != 1:
            set(1)
    return previous


def restore_threads(previous: list[int]) -> None:
    """Set BLAS to the numbers that `limit_threads` returned."""
    for (_, set, release), count in zip(_controls(), previous, strict=True):
        if count != 1:
            set(count)
            release()
