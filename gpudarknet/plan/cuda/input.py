"""How a plan on a GPU takes its input: the first convolution reads what the caller gave, if it can, else a map is filled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..steps import Convolve, Step
from .convolution import Few, few
from .stream import Work
from .upload import ImageBatch

if TYPE_CHECKING:
    from .program import Program


class Entry:
    """The way into a program. step: the first convolution, where it reads the input as it comes; it is no part of the graph."""

    def __init__(self, program: Program):
        self.be, self.input, self.step = program.be, program.view(program.plan.input), opening(program)
        found: tuple[Few | None, list[Work]] = (None, []) if self.step is None else few(program, self.step)
        self.convolve, self.epilogue = found
        self.launches = 0 if self.step is None else 1 + len(self.epilogue)

    def take(self, x: Any) -> None:
        """Take x, Pictures or float32 (N, C, H, W) on the device: launch all that reads it, on the current stream."""
        y, launch = self.input, self.be.launch
        (C, P), (_, H, W) = y.sizes, y.shape
        assert launch is not None
        if self.convolve is None:
            if isinstance(x, ImageBatch):
                x.write(y)
            else:
                launch("plan.from_nchw", x.size, x, y.a, x.size, C, P, y.ld)
        elif not isinstance(x, ImageBatch):
            self.convolve("direct.convolve_floats", x, (C * P, P, 1))
        elif (whole := x.whole(W, H)) is not None:
            with x.reading():
                self.convolve("direct.convolve_bytes", whole, (P * C, 1, C))
        else:
            x.write(y)
            self.convolve("direct.convolve_few", y.a, (P * y.ld, 1, y.ld))
        for work in self.epilogue:
            work()


def opening(program: Program) -> Convolve | None:
    """Return the first step if it is a convolution in one kernel and the only reader of the input."""
    start, steps = program.plan.input, program.steps
    readers: list[Step] = [s for s in steps if start in [m.storage for m in s.reads]]
    first = steps[0] if steps else None
    if not isinstance(first, Convolve) or first.xs != (start,) or readers != [first] or start in program.plan.outputs:
        return None
    return first if program.scheme.algorithms[first] == "kernel" else None
