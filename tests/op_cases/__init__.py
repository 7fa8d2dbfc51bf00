"""What every op must compute: plain loops in float64 for each, and the inputs on which they are compared.

    @check(upsample.upsample, make, (2, 1.0), (3, 0.5), exact=True, half="x")
    def upsample(x, s, scale): ...          # loops, no backend: written from the docstring, not from the reference

`make(rng, N, C, H, W, *variant)` returns the op's arguments for one of SHAPES and one variant.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np

from gpudarknet.ops.base import Op

# One pixel; few channels and odd sides; a warp of channels and one more; three images, and in most arrays several blocks, the
# last one partial.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 33, 2, 3), (3, 8, 13, 6)]
CASES: list[Case] = []


@dataclass
class Case:
    """One call of an op, and what it must return or, if it returns nothing, write to its arguments."""

    op: Op
    plain: Callable[..., Any]
    make: Callable[..., tuple[Any, ...]]
    shape: tuple[int, ...]
    variant: tuple[Any, ...]
    exact: bool  # bitwise: for ops that only move or select elements
    half: tuple[str, ...]  # the arguments that may be float16; none: an op on weights or images
    rtol: float
    atol: float

    def __str__(self) -> str:
        return f"{self.op.name}-{'x'.join(map(str, self.shape))}-{','.join(map(str, self.variant))}"

    @cached_property
    def args(self) -> tuple[Any, ...]:
        """The arguments, with float32 arrays."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        return each(self.make(rng, *self.shape, *self.variant), lambda a: a.astype(np.float32) if is_float(a) else a)

    def want(self, args: tuple[Any, ...]) -> tuple[np.ndarray, ...]:
        """The results of the loops for these arguments, in float64."""
        copies = each(args, lambda a: a.astype(np.float64) if is_float(a) else a.copy())
        return arrays(self.plain(*copies))


def is_float(a: np.ndarray) -> bool:
    return a.dtype.kind == "f"


def each(value: Any, change: Callable[[np.ndarray], Any]) -> Any:
    """Map every array in nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        return type(value)(each(v, change) for v in value)
    return change(value) if isinstance(value, np.ndarray) else value


def arrays(value: Any) -> tuple[Any, ...]:
    """Flatten nested tuples to the arrays in them."""
    if isinstance(value, (tuple, list)):
        return tuple(a for v in value for a in arrays(v))
    return () if value is None or np.isscalar(value) else (value,)


def check(
    op: Op,
    make: Callable[..., tuple[Any, ...]],
    *variants: tuple[Any, ...],
    exact: bool = False,
    half: str = "",
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register loops (a decorator). The default tolerance allows several rounding errors of float32."""

    def register(plain: Callable[..., Any]) -> Callable[..., Any]:
        for shape in SHAPES:
            for variant in variants or ((),):
                CASES.append(Case(op, plain, make, shape, variant, exact, tuple(half.split()), rtol, atol))
        return plain

    return register


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def call(be, case, args):
    """Call the op on copies in the backend; return its results, or its arguments where it works in place."""
    args = each(args, lambda a: be.asarray(a.copy()))
    result = case.op(be, *args)
    return args if result is None else result


def run(be, case, args):
    """Call the op; return all results as NumPy arrays."""
    return [be.to_numpy(a) for a in arrays(call(be, case, args))]


def compare(got, want, case, rtol, atol):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        if case.exact:
            np.testing.assert_array_equal(g, w)
        else:
            np.testing.assert_allclose(g, w, rtol=rtol, atol=atol)


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
