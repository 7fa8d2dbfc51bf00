"""The types of arrays and of the backends that compute with them, for annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

# numpy.ndarray, or cupy.ndarray, which has the same attributes and methods. np.ndarray in a signature means NumPy alone.
Array: TypeAlias = NDArray[Any]
Arrays: TypeAlias = dict[str, Array]  # name -> array: a layer's weights, or their gradients
KernelArgument: TypeAlias = Array | int | float | np.number[Any] | None


class LaunchKernel(Protocol):
    """Runs kernel "FILE.NAME" of `kernels/FILE.cu` on at least `threads` CUDA threads.

    block: threads of a block. shared: bytes of a block's dynamic shared memory.
    """

    def __call__(self, kernel: str, threads: int, *args: KernelArgument, block: int = 256, shared: int = 0) -> None: ...


class ArrayBackend(Protocol):
    """What ops and layers know of a `backend.Backend`, where these are documented."""

    @property
    def xp(self) -> ModuleType: ...

    @property
    def launch(self) -> LaunchKernel | None: ...

    @property
    def cublas(self) -> Callable[[int, tuple[int, int]], Any] | None: ...

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike = ...) -> Array: ...

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike = ...) -> Array: ...

    def asarray(self, a: Any, dtype: DTypeLike | None = None) -> Array: ...

    def to_numpy(self, a: Array) -> np.ndarray: ...

    def strided(self, a: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array: ...

    def run_parallel(self, tasks: Sequence[Callable[[], object]]) -> None: ...

    def current_device(self) -> int | None: ...


class KernelBackend(ArrayBackend, Protocol):
    """An `ArrayBackend` that launches kernels: the only kind that the CUDA version of an op gets."""

    def __hash__(self) -> int: ...

    @property
    def launch(self) -> LaunchKernel: ...
