"""The input of a plan on a GPU: the first convolution reads the caller's array, if it can; else a map is filled."""

from __future__ import annotations

from collections.abc import Callable

from ...array import Array
from ..steps import Convolve, Step
from .convolution import SmallChannelConv, small_channel_conv
from .emitter import Emitter
from .time_model import Cost
from .upload import ImageBatch


class InputStage:
    """The launches on the caller's input, outside the CUDA graph. step: the first convolution, if it reads the input directly."""

    def __init__(self, emitter: Emitter):
        self.emitter = emitter
        self.from_nchw: Callable[[Array], None] | None = None
        self.input, self.step = emitter.view(emitter.plan.input), first_convolution(emitter)
        self.conv: SmallChannelConv | None = None if self.step is None else small_channel_conv(emitter, self.step)

    @property
    def launch_count(self) -> int:
        """How many of the plan's launches it makes."""
        return 0 if self.conv is None else 1 + len(self.conv.epilogue)

    @property
    def kernels(self) -> set[str]:
        """The kernels that it may launch."""
        return {*(self.conv.kernels.values() if self.conv else ()), *(kernel for kernel, _ in self.costs)}

    @property
    def costs(self) -> list[tuple[str, Cost | None]]:
        """The kernels that it launches on float32 (N, C, H, W), with their costs."""
        y, conv = self.input, self.conv
        if conv is None:
            return [("nhwc.from_nchw", Cost(y.nchw_bytes, y.nbytes))]
        epilogue = [(launch.kernel, launch.cost) for launch in conv.epilogue]
        return [(conv.kernels["float32"], conv.cost(y.nchw_bytes)), *epilogue]

    def feed(self, x: Array | ImageBatch) -> None:
        """Launch all that reads x, an ImageBatch or float32 (N, C, H, W) on the device, on the current stream."""
        y, conv = self.input, self.conv
        (C, P), (_, H, W) = y.sizes, y.shape
        if conv is None:
            if isinstance(x, ImageBatch):
                x.write(y)
            else:
                if self.from_nchw is None:
                    self.from_nchw = self.emitter.prepare("nhwc.from_nchw", x.size, x, y.a, x.size, C, P, y.ld)
                self.from_nchw(x)
            return
        if not isinstance(x, ImageBatch):
            conv.convolve("float32", x, (C * P, P, 1))
        elif (images := x.unscaled(W, H)) is not None:
            with x.reading():
                conv.convolve("uint8", images, (P * C, 1, C))
        else:
            x.write(y)
            conv.convolve("map", y.a, (P * y.ld, 1, y.ld))
        for launch in conv.epilogue:
            launch.run()


def first_convolution(emitter: Emitter) -> Convolve | None:
    """Return the first step if it is a convolution of few channels and the only reader of the input."""
    start, steps = emitter.plan.input, emitter.schedule.steps
    readers: list[Step] = [s for s in steps if start in [m.storage for m in s.reads]]
    first = steps[0] if steps else None
    if not isinstance(first, Convolve) or first.xs != (start,) or readers != [first] or start in emitter.plan.outputs:
        return None
    return first if emitter.schedule.algorithms[first] in ("direct", "image_gemm") else None
