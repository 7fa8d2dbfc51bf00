"""One meaning, written twice: an array-language definition and, where it pays, a CUDA twin.

    @op
    def upsample(be, x, s): ...          # runs on NumPy and on CuPy: the specification, and the CPU path

    @upsample.kernel
    def upsample_cuda(be, x, s): ...     # launches kernels/resample.cu; same parameters, same result

`upsample(be, x, 2)` runs the twin where the backend can launch kernels and the definition elsewhere. That choice is
made in `Op.__call__` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPS: dict[str, Op] = {}


class Op:
    """A named operation: `definition` says what it means, `twin` (optional) is its CUDA form."""

    def __init__(self, definition: Callable[..., Any]):
        self.definition = definition
        self.twin: Callable[..., Any] | None = None
        self.name = f"{definition.__module__.rpartition('.')[2]}.{definition.__name__}"
        self.__doc__, self.__wrapped__ = definition.__doc__, definition
        if self.name in OPS:
            raise ValueError(f"op {self.name} is defined twice")
        OPS[self.name] = self

    def __call__(self, be: Any, *args: Any) -> Any:
        run = self.twin if self.twin is not None and be.launch is not None else self.definition
        return run(be, *args)

    def kernel(self, twin: Callable[..., Any]) -> Callable[..., Any]:
        """Register the CUDA form of this op (a decorator)."""
        self.twin = twin
        return twin

    def __repr__(self) -> str:
        return f"<op {self.name}{'' if self.twin is None else ' + kernel'}>"


def op(definition: Callable[..., Any]) -> Op:
    """Make a definition an op (a decorator)."""
    return Op(definition)
