"""Steps that only plans for a GPU have, number by number: what recurrent and XNOR layers are made of beside products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..steps import Step
from .launches import kernel
from .stream import Work

if TYPE_CHECKING:
    from .program import Program


@dataclass(eq=False, kw_only=True)
class Blend(Step):
    """Multiply and add maps of one shape: y = a b + c d, or of three maps a b + (1 - a) c."""

    name = "blend"


@dataclass(eq=False, kw_only=True)
class Clip(Step):
    """Keep numbers within +-limit."""

    name = "clip"
    limit: float


@dataclass(eq=False, kw_only=True)
class Sign(Step):
    """Take 1 of what is 0 or above, -1 of all else."""

    name = "sign"


def _blend(program: Program, step: Blend) -> list[Work]:
    y, (a, b, c, *rest) = program.view(step.y), [program.view(m) for m in step.xs]
    d, ldd = (rest[0].a, rest[0].ld) if rest else (None, 0)
    n = y.pixels * y.shape[0]
    sizes = (n, y.shape[0], a.ld, b.ld, c.ld, ldd, y.ld)
    return [kernel(program, "plan_layers.blend", n, a.a, b.a, c.a, d, y.a, *sizes)]


def _clip(program: Program, step: Clip) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    n = y.pixels * y.shape[0]
    return [kernel(program, "plan_layers.clip", n, x.a, y.a, n, y.shape[0], step.limit, x.ld, y.ld)]


def _sign(program: Program, step: Sign) -> list[Work]:
    x, y = program.view(step.xs[0]), program.view(step.y)
    n = y.pixels * y.shape[0]
    return [kernel(program, "plan_layers.sign", n, x.a, y.a, n, y.shape[0], x.ld, y.ld)]


BIND: dict[type[Step], Callable[[Program, Any], list[Work]]] = {Blend: _blend, Clip: _clip, Sign: _sign}
