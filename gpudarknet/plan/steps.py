"""A plan is feature maps in one arena and steps that write them. Data only; `cpu` and `cuda` interpret it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

from ..array import Arrays
from ..layers import Layer, Shape


@dataclass(eq=False)
class FeatureMap:
    """A feature map (C, H, W) of every image: a buffer, or the channels of `base` from `base_offset` on."""

    shape: Shape
    base: FeatureMap | None = None
    base_offset: int = 0

    @property
    def storage(self) -> FeatureMap:
        """The map that owns the memory."""
        return self if self.base is None else self.base.storage

    @property
    def channel_offset(self) -> int:
        """The first channel of this map in its storage."""
        return 0 if self.base is None else self.base_offset + self.base.channel_offset

    def bases(self) -> Iterator[FeatureMap]:
        """Yield this map and every map it is part of."""
        m: FeatureMap | None = self
        while m is not None:
            yield m
            m = m.base


@dataclass(frozen=True)
class Activate:
    """y = f(y)."""

    kind: str
    name: ClassVar[str] = "activate"

    def __str__(self) -> str:
        return self.kind


@dataclass(frozen=True)
class Add:
    """y = y + other, elementwise."""

    other: FeatureMap

    def __str__(self) -> str:
        return "add"


@dataclass(frozen=True)
class SortShortcut:
    """y = y + other + sqrt(max(R(y) R(other), 0) + eps), R(x) = x where x > 0, else slope * x."""

    other: FeatureMap
    eps: float
    slope: float

    def __str__(self) -> str:
        return "sort"


@dataclass(frozen=True)
class Multiply:
    """y = y * other; other is (C, H, W), (C, 1, 1) or (1, H, W)."""

    other: FeatureMap

    def __str__(self) -> str:
        return "multiply"


EpilogueOp = Activate | Add | SortShortcut | Multiply  # operations applied to a result while it is in cache


@dataclass(eq=False, kw_only=True)
class Step:
    """Write the map y from the maps xs, then apply the epilogue to it. layers: the layers of the cfg it computes."""

    layers: tuple[int, ...]
    xs: tuple[FeatureMap, ...]
    y: FeatureMap
    epilogue: list[EpilogueOp] = field(default_factory=list)
    name: ClassVar[str]

    @property
    def reads(self) -> tuple[FeatureMap, ...]:
        """Every map it reads."""
        return *self.xs, *(op.other for op in self.epilogue if not isinstance(op, Activate))

    def note(self) -> str:
        """Return its parameters as short text for the plan's table."""
        return ""


@dataclass(eq=False, kw_only=True)
class Convolve(Step):
    """Convolve with w, the layer's arrays: batch norm is folded into kernel and bias when the plan is loaded.

    pad: zeros before the first row and column. strides: (vertical, horizontal). part: which of a layer's convolutions it is, if
    there are several. binary: replace the kernel by its signs times each filter's mean magnitude. pooled: keep only the maximum
    of each 2 x 2 block; the epilogue then runs on the pooled map: the same result for monotonic functions, a quarter of the work.
    head: the [yolo] layer whose activations end it, in plans for a GPU.
    """

    name = "convolve"
    w: Arrays = field(repr=False)
    size: int
    strides: tuple[int, int]
    dilation: int
    pad: int
    groups: int
    part: str = ""
    binary: bool = False
    pooled: bool = False
    head: YoloHead | None = None

    @property
    def depthwise(self) -> bool:
        """Whether every channel has its own kernel."""
        return self.groups > 1 and self.groups == self.xs[0].shape[0] == self.y.shape[0]

    @property
    def conv_output_size(self) -> tuple[int, int]:
        """(OH, OW) of the convolution, before pooling."""
        _, H, W = self.y.shape
        return (2 * H, 2 * W) if self.pooled else (H, W)

    def note(self) -> str:
        sy, sx = self.strides
        stride = f"{sx}" if sx == sy else f"{sx}x{sy}"
        more = (f" dilation {self.dilation}" if self.dilation > 1 else "") + (
            f" groups {self.groups}" if self.groups > 1 else ""
        )
        more += " max 2" * self.pooled + " yolo" * (self.head is not None)
        return f"{self.size} x {self.size} / {stride}{more}"

    def key(self, batch: int) -> str:
        """Return a key of everything its speed depends on."""
        (C, H, W), F = self.xs[0].shape, self.y.shape[0]
        sizes = (batch, C, H, W, F, self.size, *self.strides, self.dilation, self.pad, self.groups, int(self.pooled))
        return "x".join(map(str, sizes))


@dataclass(eq=False, kw_only=True)
class MaxPool(Step):
    """Max-pool; padding is the total over both sides, half of it before the image."""

    name = "maxpool"
    size: int
    strides: tuple[int, int]
    padding: int

    def note(self) -> str:
        sy, sx = self.strides
        return f"{self.size} x {self.size} / " + (f"{sx}" if sx == sy else f"{sx}x{sy}")


@dataclass(eq=False, kw_only=True)
class Upsample(Step):
    """Repeat every pixel s x s times, multiplied by scale."""

    name = "upsample"
    s: int
    scale: float

    def note(self) -> str:
        return f"{self.s}x"


@dataclass(eq=False, kw_only=True)
class Copy(Step):
    """Copy a map."""

    name = "copy"


@dataclass(eq=False, kw_only=True)
class YoloHead(Step):
    """Apply the activations of a [yolo] layer with A anchors: sigmoid of x, y, objectness and classes, then scale_x_y."""

    name = "yolo"
    A: int
    scale_x_y: float
    new_coords: int


@dataclass(eq=False, kw_only=True)
class LayerCall(Step):
    """Call the layer's `forward`: for layers that no other step covers, or that keep state between calls."""

    name = "fallback"
    layer: Layer
    w: Arrays = field(repr=False)

    def note(self) -> str:
        return f"[{self.layer.section}]"


ALIGNMENT = 64  # elements: 256 bytes


@dataclass(eq=False)
class PlacedMaps:
    """The maps of a plan for inputs (batch, C, H, W), and the offset of each in one arena.

    offsets: storage -> its first float32 in the arena. arena_size: its size in float32. peak_live: a lower bound on it, the
    largest total live at one step. flops: operations of a forward pass per image, as in the layer table.
    """

    batch: int
    input: FeatureMap
    offsets: dict[FeatureMap, int]
    arena_size: int
    peak_live: int
    flops: float

    def address(self, m: FeatureMap) -> tuple[int, int]:
        """Return the offset of image 0 of a map and the stride of its pixels, in float32."""
        return self.offsets[m.storage] + m.channel_offset, m.storage.shape[0]


@dataclass(eq=False, kw_only=True)
class Plan(PlacedMaps):
    """A network compiled for inference: steps in order.

    states: maps that, like the input, are written before the first step. heads: the layers of the outputs.
    """

    outputs: tuple[FeatureMap, ...]
    steps: list[Step]
    states: tuple[FeatureMap, ...] = ()
    heads: tuple[Layer, ...] = ()

    @property
    def copies(self) -> list[Step]:
        """The steps that only copy, because a map is needed in two places."""
        return _copies(self.steps)

    def describe(self, algorithms: Mapping[Any, str] | None = None) -> str:
        """Return the plan as text: a line per step, then totals. algorithms: that of each convolution."""
        outputs = sum(prod(s.y.shape) for s in self.steps) * self.batch
        fallbacks = {s.layer.section for s in self.steps if isinstance(s, LayerCall)}
        return "\n".join(
            [
                *step_table(
                    self.steps, algorithms or {}, OFFSET_HEADER, lambda step: f"{4 * self.address(step.y)[0]:>12}"
                ),
                totals(self.steps, fallbacks),
                f"arena {4 * self.arena_size / 2**20:.1f} MiB for batch {self.batch} (at least {4 * self.peak_live / 2**20:.1f} "
                f"needed; all outputs {4 * outputs / 2**20:.1f}); {self.flops / 1e9:.3f} GFLOP per image",
            ]
        )


OFFSET_HEADER = f"{'offset':>12}"  # of a map in the arena, in bytes


def step_table(
    steps: Sequence[Step], algorithms: Mapping[Any, str], header: str, cells: Callable[[Step], str]
) -> list[str]:
    """Return a header and a line per step. header, cells: further columns and what a step has in them, of equal width."""
    lines = [f"{'layers':>11}  {'step':<10}{'':<18}{'epilogue':<22}{'C x H x W':>16}{header}  algorithm"]
    for s in steps:
        layers = ",".join(map(str, s.layers))
        epilogue, shape = " ".join(map(str, s.epilogue)), "x".join(map(str, s.y.shape))
        notes = "; ".join(filter(None, [algorithms.get(s, ""), "in place" if s.y.base is not None else ""]))
        line = f"{layers:>11}  {s.name:<10}{s.note():<18}{epilogue:<22}{shape:>16}{cells(s)}"
        lines.append(f"{line}  {notes}".rstrip())
    return lines


def totals(steps: Sequence[Step], fallbacks: Collection[str]) -> str:
    """Return a summary of steps. fallbacks: sections that fall back to their layer's `forward`."""
    fused, copied = sum(len(s.layers) - 1 for s in steps), len(_copies(steps))
    other = ", ".join(sorted(set(fallbacks))) or "none"
    return f"{len(steps)} steps; {fused} layers fused into the step before; {copied} copies; fallback layers: {other}"


def _copies(steps: Sequence[Step]) -> list[Step]:
    return [s for s in steps if isinstance(s, Copy) and not s.epilogue]
