"""One meaning, written twice: an array-language definition and, where it pays, a CUDA twin.

    @op
    def upsample(be, x, s): ...          # runs on NumPy and on CuPy: the specification, and the CPU path

    @upsample.kernel
    def upsample_cuda(be, x, s): ...     # launches kernels/upsample.cu; same parameters, same result

`upsample(be, x, 2)` runs the twin where the backend can launch kernels and the definition elsewhere. That choice is
made in `Op.__call__` and nowhere else.

Arithmetic is float32, in kernels and in definitions: float16 is only how maps are stored. A definition therefore never sees
it: it gets float32 copies, and what it returns is rounded, except sums (`@op(sums=(1,))` names results that stay float32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np

OPS: dict[str, Op] = {}


class Op:
    """A named operation: `definition` says what it means, `twin` (optional) is its CUDA form, `sums` the float32 results."""

    def __init__(self, definition: Callable[..., Any], sums: tuple[int, ...] = ()):
        self.definition, self.sums = definition, sums
        self.twin: Callable[..., Any] | None = None
        self.name = f"{definition.__module__.rpartition('.')[2]}.{definition.__name__}"
        self.__doc__, self.__wrapped__ = definition.__doc__, definition
        if self.name in OPS:
            raise ValueError(f"op {self.name} is defined twice")
        OPS[self.name] = self

    def __call__(self, be: Any, *args: Any) -> Any:
        if self.twin is not None and be.launch is not None:
            return self.twin(be, *args)
        if not any(map(is_half, args)):
            return self.definition(be, *args)
        found = self.definition(be, *(stored(a, np.float16, np.float32) for a in args))
        if not self.sums:
            return stored(found, np.float32, np.float16)
        return tuple(r if k in self.sums else stored(r, np.float32, np.float16) for k, r in enumerate(found))

    def kernel(self, twin: Callable[..., Any]) -> Callable[..., Any]:
        """Register the CUDA form of this op (a decorator)."""
        self.twin = twin
        return twin

    def __repr__(self) -> str:
        return f"<op {self.name}{'' if self.twin is None else ' + kernel'}>"


def is_half(value: Any) -> bool:
    """Say whether a value is a float16 array, or a list or tuple that holds one."""
    if isinstance(value, (list, tuple)):
        return any(map(is_half, value))
    return getattr(value, "dtype", None) == np.float16


def stored(value: Any, before: Any, after: Any) -> Any:
    """Convert arrays of one type to another, inside lists and tuples too; leave the rest as it is."""
    if isinstance(value, (list, tuple)):
        return type(value)(stored(v, before, after) for v in value)
    return value.astype(after) if getattr(value, "dtype", None) == before else value


@overload
def op(definition: Callable[..., Any]) -> Op: ...
@overload
def op(*, sums: tuple[int, ...]) -> Callable[[Callable[..., Any]], Op]: ...
def op(definition: Callable[..., Any] | None = None, *, sums: tuple[int, ...] = ()) -> Any:
    """Make a definition an op (a decorator). sums: its results, counted from 0, that stay float32 beside float16 maps."""
    return Op(definition) if definition is not None else lambda given: Op(given, sums)
