"""An op is a reference implementation in array code and, where that pays, an equivalent CUDA kernel.

    @op
    def upsample(be: ArrayBackend, x: Array, s: int) -> Array: ...  # on NumPy and on CuPy: the specification, and the CPU path

    @upsample.kernel
    def upsample_cuda(be: KernelBackend, x: Array, s: int) -> Array: ...  # launches kernels/upsample.cu; same parameters

`upsample(be, x, 2)` runs the kernel if the backend can launch kernels, else the reference. `Op.__call__` is the only place
that dispatches.

Arithmetic is float32 in both; float16 is a storage type only. A reference therefore never sees float16: it gets float32
copies, and its results are rounded back, except sums (`@op(sums=(1,))` names the results that stay float32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import numpy as np
from numpy.typing import DTypeLike

from ..array import ArrayBackend, KernelBackend

P = ParamSpec("P")  # the parameters after `be`
R = TypeVar("R")
Reference = Callable[Concatenate[ArrayBackend, P], R]
Kernel = Callable[Concatenate[KernelBackend, P], R]

OPS: dict[str, Op[..., Any]] = {}


class Op(Generic[P, R]):
    """A named operation.

    reference: the array implementation. cuda: the function that launches the kernel, if there is one. sums: the indices of
    the results that stay float32.
    """

    def __init__(self, reference: Reference[P, R], sums: tuple[int, ...] = ()):
        self.reference: Callable[..., R] = reference
        self.cuda: Callable[..., R] | None = None
        self.sums = sums
        self.name = f"{reference.__module__.rpartition('.')[2]}.{reference.__name__}"
        self.__doc__, self.__wrapped__ = reference.__doc__, reference
        if self.name in OPS:
            raise ValueError(f"op {self.name} is defined twice")
        OPS[self.name] = self

    def __call__(self, be: ArrayBackend, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the op on a backend, with its kernels if it has them."""
        if self.cuda is not None and be.launch is not None:
            return self.cuda(be, *args, **kwargs)
        if not any(map(is_half, args)) and not (kwargs and any(map(is_half, kwargs.values()))):
            return self.reference(be, *args, **kwargs)
        keywords = {name: cast(a, np.float16, np.float32) for name, a in kwargs.items()}
        result: Any = self.reference(be, *cast(args, np.float16, np.float32), **keywords)
        if not self.sums:
            return cast(result, np.float32, np.float16)
        rounded: Any = tuple(r if k in self.sums else cast(r, np.float32, np.float16) for k, r in enumerate(result))
        return rounded

    def kernel(self, cuda: Kernel[P, R]) -> Kernel[P, R]:
        """Register the CUDA implementation of this op (a decorator), which has the reference's parameters."""
        self.cuda = cuda
        return cuda

    def __repr__(self) -> str:
        return f"<op {self.name}{'' if self.cuda is None else ' + kernel'}>"


def is_half(value: Any) -> bool:
    """Return whether a value is a float16 array, or a list or tuple that holds one."""
    if isinstance(value, (list, tuple)):
        return any(map(is_half, value))
    return getattr(value, "dtype", None) == np.float16


def cast(value: Any, source: DTypeLike, target: DTypeLike) -> Any:
    """Convert arrays of dtype `source` to `target`, inside lists and tuples too; leave everything else unchanged."""
    if isinstance(value, (list, tuple)):
        return type(value)(cast(v, source, target) for v in value)
    return value.astype(target) if getattr(value, "dtype", None) == source else value


@overload
def op(reference: Reference[P, R]) -> Op[P, R]: ...
@overload
def op(*, sums: tuple[int, ...]) -> Callable[[Reference[P, R]], Op[P, R]]: ...
def op(reference: Reference[P, R] | None = None, *, sums: tuple[int, ...] = ()) -> Any:
    """Make a function an op (a decorator). sums: indices of the results that stay float32 if the arrays are float16."""
    return Op(reference) if reference is not None else lambda given: Op(given, sums)
