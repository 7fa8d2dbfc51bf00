"""The base class of layers: an immutable record of one [section], with its shapes, weights, cost and computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from .limits import COUNT, FRACTION, NOT_NEGATIVE, Diagnostic, Record, check

Activation = Literal[
    "linear", "logistic", "loggy", "relu", "relu6", "leaky", "revleaky", "relie", "ramp", "elu", "selu", "gelu", "tanh",
    "plse", "stair", "hardtan", "lhtan", "swish", "mish", "hard_mish",
    "normalize_channels", "normalize_channels_softmax", "normalize_channels_softmax_maxval",
]  # fmt: skip
Shape = tuple[int, int, int]  # (C, H, W) of one image
Weight = tuple[str, tuple[int, ...], "Init"]  # name, shape, initializer
Init = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Backward = Callable[[Array, Arrays], tuple[Array | None, ...]]  # backward(dy, grad) -> one dx per source

# What Darknet's CPU build does with a layer's delta (train/darknet_cpu_bugs.py): set it to 0 before each step; keep it, and never
# update the weights; overwrite the delta of the layer before; share the buffer of the layer before.
CpuDelta = Literal["zeroed", "kept", "overwrites_input", "shared"]

SECTIONS: dict[str, type[Layer]] = {}  # every spelling of a section's name -> its class


@dataclass
class ForwardContext:
    """The inputs of a forward pass other than arrays.

    train: keep what backward needs, use batch statistics, apply dropout. rng: the only source of randomness. steps: the
    time steps of [net]; recurrent layers read a batch as `[step][sequence]`. progress: fraction of the training done, 0 to 1.
    frozen: this many first layers run as at inference. skip_input_grad: nothing needs the gradient of the network input
    (nor of the frozen layers), so a layer that reads only those may return None for it.
    """

    train: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    steps: int = 1
    progress: float = 0.0
    frozen: int = 0
    skip_input_grad: bool = False


@dataclass
class LossContext:
    """The inputs of a loss other than output and truth: size of the network input in pixels, images seen so far, randomness.

    exact: return the gradient of an IoU loss where Darknet's delta differs from it. reject(delta, channels per anchor) zeroes
    deltas of [yolo] in place, in CPU memory. scale (1,), float32 on the backend: what deltas are multiplied by; None means 1.
    """

    width: int
    height: int
    seen: int = 0
    exact: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    reject: Callable[[np.ndarray, int], None] | None = None
    scale: Array | None = None

    def loss_scale(self, be: ArrayBackend) -> Array:
        """Return `scale` (1,) on the backend."""
        return be.asarray(np.ones(1, np.float32)) if self.scale is None else self.scale


class ShapeError(ValueError):
    """The shapes of a layer's inputs do not fit. The graph adds the file and the line, of `key` if given, else of the section."""

    def __init__(self, message: str, key: str = ""):
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, kw_only=True)
class Layer(Record):
    """One [section]: the fields are its cfg keys, with their types and defaults.

    A field whose key is a Python keyword has a trailing underscore: `from_` is the key `from`. `ignored` are keys that Darknet
    reads and that have no effect here; `unsupported` are keys that would change results and must be 0. `limits` and `diagnostics`
    say which values the keys can have.
    """

    training_limits = NOT_NEGATIVE.of("clip", "learning_rate")

    section: ClassVar[str]
    ignored: ClassVar[frozenset[str]] = frozenset()
    unsupported: ClassVar[frozenset[str]] = frozenset()
    fallback: ClassVar[dict[str, str]] = {"activation": "relu"}  # what Darknet uses for an unknown choice
    names_sources: ClassVar[bool] = False  # the layer table shows the indices of its sources, not their size
    head: ClassVar[bool] = False  # its output is always a result of the network
    has_output: ClassVar[bool] = True  # False: its output is never a result of the network
    stateful: ClassVar[bool] = False  # it keeps state from one batch to the next, for each image of a batch
    has_loss: ClassVar[bool] = False  # it has a `loss`
    loss_reads_input: ClassVar[bool] = False  # its `loss` uses x
    loss_missing: ClassVar[bool] = False  # it has a loss in Darknet that is not implemented here
    weight_decay_params: ClassVar[tuple[str, ...]] = ("kernel",)  # the weights that weight decay applies to
    grad_clip: ClassVar[float] = float("inf")  # training clips the gradient of each weight to +-grad_clip
    cpu_delta: ClassVar[CpuDelta] = "zeroed"
    uses_adam: ClassVar[bool] = False  # adam=1 in [net] applies to it; the other layers keep SGD

    # keys of every section
    clip: float = 0.0
    onlyforward: int = 0
    dont_update: int = 0
    burnin_update: int = 0
    stopbackward: int = 0
    train_only_bn: int = 0
    dontload: int = 0
    dontloadscales: int = 0
    learning_rate: float = 1.0

    def __init_subclass__(cls, section: str = "", aliases: Sequence[str] = ()) -> None:
        if section:
            cls.section = section
            for name in (section, *aliases):
                SECTIONS[name] = cls

    def sources(self, index: int) -> tuple[int, ...]:
        """Return the indices of the layers it reads; -1 is the network's input."""
        return (index - 1,)

    def shape(self, *inputs: Shape) -> Shape:
        """Return the output's (C, H, W) for inputs of (C, H, W). Raises ShapeError if they do not fit."""
        return inputs[0]

    def shape_warning(self, *inputs: Shape) -> str | None:
        """Return a warning if the shapes are valid but probably unintended, else None."""
        return None

    def weights(self, *inputs: Shape) -> list[Weight]:
        """Return its arrays in the order of the .weights file."""
        return []

    def weights_owner(self, index: int) -> int:
        """Return the layer whose weights it uses: itself, layer `index`, unless it shares those of an earlier layer."""
        return index

    def shared_weights(self, *inputs: Shape) -> list[Weight]:
        """Return the arrays that it needs from another `weights_owner`."""
        return []

    def unpack(self, name: str, flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return the array `name` of this shape from its values in a .weights file."""
        return flat.reshape(shape)

    def flops(self, *inputs: Shape) -> float:
        """Return the operations for one image, counted as Darknet counts them (its BFLOPS column times 1e9)."""
        return 0.0

    def table_row(self, *inputs: Shape) -> tuple[str, str, str]:
        """Return its type, filters and size/stride in the layer table."""
        return self.section, "", ""

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        """Return the output (N, C, H, W) for the sources' outputs xs, and the function of the backward pass.

        backward(dy, grad) adds the weights' gradients to grad[name] and returns dx for each source, None if no gradient
        flows there. It is linear in dy, so it accepts Darknet's deltas (negative gradients) as well as gradients.
        """
        raise NotImplementedError

    def loss(self, be: ArrayBackend, x: Array, y: Array, truth: Array, ctx: LossContext) -> tuple[Array, Array]:
        """Return (cost, delta) for output y (N, C, H, W) and truth (N, truths) in float32, all on the backend.

        cost (1,) is what Darknet reports, summed over the batch; delta is Darknet's negative gradient with respect to the
        dy of `backward`, times ctx.scale, with y's shape, type and memory layout (NCHW, or a view of NHWC). x is the layer's
        input. Only layers with `has_loss` have one.
        """
        raise NotImplementedError


def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Fill with zeros."""
    return np.zeros(shape, np.float32)


def ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Fill with ones."""
    return np.ones(shape, np.float32)


def uniform(fan_in: int) -> Init:
    """Fill with U(-1, 1) * sqrt(2 / fan_in), Darknet's choice for convolutions and connected layers."""

    def fill(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(np.sqrt(2 / max(fan_in, 1)))

    return fill


def accumulate(grad: Arrays, name: str, value: Array) -> None:
    """Add value to grad[name], creating it if necessary. Gradients of weights are float32 even if maps are float16."""
    value = value.astype(np.float32) if value.dtype == np.float16 else value
    grad[name] = value if name not in grad else grad[name] + value


def reduce_sum(a: Array, axis: int | tuple[int, ...]) -> Array:
    """Sum over axes; accumulate float16 in float32."""
    return a.sum(axis=axis, dtype=np.float32 if a.dtype == np.float16 else None)


def resolve_index(index: int, reference: int) -> int:
    """Return the layer index that a cfg key means: negative values count back from `index`."""
    return index + reference if reference < 0 else reference


def check_same_size(inputs: Sequence[Shape]) -> None:
    """Raise ShapeError unless all inputs have one height and width."""
    for k, (_, H, W) in enumerate(inputs[1:], 1):
        if (H, W) != inputs[0][1:]:
            raise ShapeError(
                f"its inputs differ in size: {inputs[0][2]} x {inputs[0][1]} and, from source {k + 1}, {W} x {H}"
                " (width x height)"
            )


def size_mismatch_warning(inputs: Sequence[Shape]) -> str | None:
    """Return a warning if the inputs differ in height or width: Darknet adds them in memory order."""
    try:
        check_same_size(inputs)
    except ShapeError as e:
        return f"{e}; as in Darknet their elements are added in memory order, regardless of their position in the image"
    return None


def conv_output_length(length: int, size: int, stride: int, padding: int) -> int:
    """Return the number of windows along one axis; `padding` is the total over both sides."""
    slack = length + padding - size
    count = slack // stride + 1 if slack >= 0 else 0
    if count < 1:
        raise ShapeError(f"a window of {size} (padding {padding}) does not fit into {length} pixels")
    return count


@dataclass(frozen=True, kw_only=True)
class DetectionHead(Layer):
    """A layer whose output contains boxes."""

    head = True
    has_loss = True
    limits = COUNT.of("classes")
    training_limits = COUNT.of("max") | NOT_NEGATIVE.of("resize")

    classes: int = 20
    max: int = 200  # maximum of ground-truth boxes per image
    jitter: float = 0.2
    resize: float = 1.0
    nms_kind: Literal["default", "greedynms", "diounms", "cornersnms"] = "default"
    beta_nms: float = 0.6

    def diagnostics(self) -> Iterator[Diagnostic]:
        yield from super().diagnostics()
        yield from check("jitter", self.jitter, FRACTION, "warning")

    @property
    def num_labels(self) -> int:
        """The number of class probabilities in a row of `decode`."""
        return self.classes

    @property
    def input_channels(self) -> int:
        """The number of channels that its input must have."""
        raise NotImplementedError

    @property
    def num_truth_classes(self) -> int:
        """The number of classes in label files and truths: that of the class map, if the head has one."""
        class_map = getattr(self, "map", None)
        return self.classes if class_map is None else len(class_map)

    @property
    def input_scale(self) -> float:
        """How much training varies the size of the network's input: the key `random` of heads where it means that, else 0."""
        return 0.0

    def truth(self, boxes: np.ndarray) -> np.ndarray:
        """Return the truth of an image in training, as `loss` reads it: (max*6,), one row x, y, w, h, class, track per box.

        boxes (K, 5 or 6): x, y, w, h relative to the image, class, track; each within the image and not empty.
        """
        truth = np.zeros((self.max, 6), np.float32)
        boxes = boxes[: self.max]
        truth[: len(boxes), : boxes.shape[1]] = boxes
        return truth.reshape(-1)

    def truth_boxes(self, truth: np.ndarray) -> np.ndarray:
        """Return the boxes (K, 5) of an image's truth, as rows x, y, w, h, class."""
        rows = truth.reshape(-1, 6)
        return rows[rows[:, 2] > 0, :5]

    def decode(self, be: ArrayBackend, y: Array, net_w: int, net_h: int, thresh: float) -> np.ndarray:
        """Decode its output y (N, C, H, W) -> rows (K, 6 + classes) in CPU memory, in Darknet's order.

        A row is: image index, objectness, box center x, y, width, height relative to the network input, and for each
        class its probability, 0 if it is not above thresh.
        """
        raise NotImplementedError
