"""An op is a reference implementation in array code and, where that pays, an equivalent CUDA kernel.

    @op
    def upsample(be, x, s): ...          # runs on NumPy and on CuPy: the specification, and the CPU path

    @upsample.kernel
    def upsample_cuda(be, x, s): ...     # launches kernels/upsample.cu; same parameters, same result

`upsample(be, x, 2)` runs the kernel if the backend can launch kernels, else the reference. `Op.__call__` is the only place
that dispatches.

Arithmetic is float32 in both; float16 is a storage type only. A reference therefore never sees float16: it gets float32
copies, and its results are rounded back, except sums (`@op(sums=(1,))` names the results that stay float32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np

OPS: dict[str, Op] = {}


class Op:
    """A named operation.

    reference: the array implementation. cuda: the function that launches the kernel, if there is one. sums: the indices of
    the results that stay float32.
    """

    def __init__(self, reference: Callable[..., Any], sums: tuple[int, ...] = ()):
        self.reference, self.sums = reference, sums
        self.cuda: Callable[..., Any] | None = None
        self.name = f"{reference.__module__.rpartition('.')[2]}.{reference.__name__}"
        self.__doc__, self.__wrapped__ = reference.__doc__, reference
        if self.name in OPS:
            raise ValueError(f"op {self.name} is defined twice")
        OPS[self.name] = self

    def __call__(self, be: Any, *args: Any) -> Any:
        if self.cuda is not None and be.launch is not None:
            return self.cuda(be, *args)
        if not any(map(is_half, args)):
            return self.reference(be, *args)
        result = self.reference(be, *(cast(a, np.float16, np.float32) for a in args))
        if not self.sums:
            return cast(result, np.float32, np.float16)
        return tuple(r if k in self.sums else cast(r, np.float32, np.float16) for k, r in enumerate(result))

    def kernel(self, cuda: Callable[..., Any]) -> Callable[..., Any]:
        """Register the CUDA implementation of this op (a decorator)."""
        self.cuda = cuda
        return cuda

    def __repr__(self) -> str:
        return f"<op {self.name}{'' if self.cuda is None else ' + kernel'}>"


def is_half(value: Any) -> bool:
    """Return whether a value is a float16 array, or a list or tuple that holds one."""
    if isinstance(value, (list, tuple)):
        return any(map(is_half, value))
    return getattr(value, "dtype", None) == np.float16


def cast(value: Any, source: Any, target: Any) -> Any:
    """Convert arrays of dtype `source` to `target`, inside lists and tuples too; leave everything else unchanged."""
    if isinstance(value, (list, tuple)):
        return type(value)(cast(v, source, target) for v in value)
    return value.astype(target) if getattr(value, "dtype", None) == source else value


@overload
def op(reference: Callable[..., Any]) -> Op: ...
@overload
def op(*, sums: tuple[int, ...]) -> Callable[[Callable[..., Any]], Op]: ...
def op(reference: Callable[..., Any] | None = None, *, sums: tuple[int, ...] = ()) -> Any:
    """Make a function an op (a decorator). sums: indices of the results that stay float32 if the arrays are float16."""
    return Op(reference) if reference is not None else lambda given: Op(given, sums)
