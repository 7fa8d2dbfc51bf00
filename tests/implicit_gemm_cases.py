"""Single convolutions for kernels/implicit_gemm.cu: a program of one step, and what it should compute in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gpudarknet.ops import activation
from gpudarknet.plan import cuda
from gpudarknet.plan.cuda.epilogue import VECTOR_ACTIVATIONS
from gpudarknet.plan.cuda.weights import round_to_tf32
from gpudarknet.plan.steps import Activate, Add, Convolve, FeatureMap, Multiply, Plan, SortShortcut, YoloHead

GAP = 8  # channels of other maps around a part of one


@dataclass(frozen=True)
class Case:
    """A convolution of x (N, C, H, W) to F filters.

    binary: "add", "sort" or "multiply" with a map of y's shape, "scale" with one channel of it. part: x and y are parts of wider
    maps, from this channel on. anchors: of a YOLO head, which replaces the epilogue.
    """

    N: int = 1
    C: int = 8
    H: int = 5
    W: int = 7
    F: int = 8
    size: int = 3
    strides: tuple[int, int] = (1, 1)
    dilation: int = 1
    pad: int = 1
    groups: int = 1
    pooled: bool = False
    pre: str = "linear"
    binary: str = ""
    post: str = "linear"
    part: int = 0
    anchors: int = 0
    seed: int = field(default=0, repr=False)

    @property
    def conv_output_size(self) -> tuple[int, int]:
        reach = (self.size - 1) * self.dilation + 1
        sy, sx = self.strides
        return (self.H + 2 * self.pad - reach) // sy + 1, (self.W + 2 * self.pad - reach) // sx + 1


def arrays(case: Case, precision: str) -> tuple[np.ndarray, ...]:
    """Return x, the other map (same pixels as y), kernel and bias, whose numbers float16 and TF32 can hold."""
    rng = np.random.default_rng(case.seed)
    (OH, OW), C = case.conv_output_size, case.C // case.groups
    s = 2 if case.pooled else 1
    shapes = [(case.N, case.C, case.H, case.W), (case.N, case.F, OH // s, OW // s), (case.F, C, case.size, case.size)]
    scale = 1 / np.sqrt(C * case.size**2)
    drawn = [rng.normal(0, 1, shape) for shape in shapes]
    drawn[2] *= scale
    x, other, kernel = (round_to_tf32(a.astype(np.float16).astype(np.float32)) for a in drawn)
    return x, other, kernel, rng.normal(0, 1, case.F).astype(np.float32)


def run(case: Case, precision: str, algorithm: str, be, **options) -> np.ndarray:
    """Run the kernel as a program of one step does; check that it wrote its own channels only; return y (N, F, OH, OW)."""
    x, other, kernel, bias = arrays(case, precision)
    (OH, OW), gap, s = case.conv_output_size, GAP if case.part else 0, 2 if case.pooled else 1
    same = case.binary and other.shape[2:] == x.shape[2:]
    assert same or not case.binary, "the other map comes with the input"
    start = -(-(case.part + case.C) // 8) * 8
    base = FeatureMap((start + (case.F if same else 0) + gap, case.H, case.W))
    image = np.full((case.N, *base.shape), 1e4, np.float32)  # a channel that is read by mistake shows
    image[:, case.part : case.part + case.C] = x
    if same:
        image[:, start : start + case.F] = other
    source = base if base.shape == x.shape[1:] else FeatureMap(x.shape[1:], base, case.part)
    target = FeatureMap((case.part + case.F + gap, OH // s, OW // s))
    y = FeatureMap((case.F, OH // s, OW // s), target, case.part) if case.part else target
    binary = {
        "": [],
        "add": [Add(FeatureMap((case.F, case.H, case.W), base, start))],
        "sort": [SortShortcut(FeatureMap((case.F, case.H, case.W), base, start), 1e-3, 0.1)],
        "multiply": [Multiply(FeatureMap((case.F, case.H, case.W), base, start))],
        "scale": [Multiply(FeatureMap((1, case.H, case.W), base, start))],
    }[case.binary]
    activations = [Activate(kind) if kind != "linear" else None for kind in (case.pre, case.post)]
    head = None
    if case.anchors:
        head = YoloHead(layers=(1,), xs=(y,), y=y, A=case.anchors, scale_x_y=1.1, new_coords=0)
    step = Convolve(
        layers=(0,), xs=(source,), y=y, epilogue=[op for op in (activations[0], *binary, activations[1]) if op],
        w={"kernel": be.asarray(kernel), "bias": be.asarray(bias)}, size=case.size, strides=case.strides, dilation=case.dilation,
        pad=case.pad, groups=case.groups, pooled=case.pooled, head=head,
    )  # fmt: skip
    plan = Plan(case.N, base, {}, 0, 0, 0, outputs=(target,), steps=[step])
    program = cuda.Program(plan, be, precision, choices={step.key(case.N): algorithm}, poison=True, **options)
    (chosen,) = program.schedule.algorithms.values()
    assert chosen == algorithm
    result = be.to_numpy(program.run(be.asarray(image))[0])
    again = be.to_numpy(program.run(be.asarray(image))[0])
    assert np.array_equal(result, again, equal_nan=True), "two runs differ"
    own = result[:, case.part : case.part + case.F].copy()
    result[:, case.part : case.part + case.F] = np.nan
    assert np.isnan(result).all(), "it writes other channels"
    return own


def expected(case: Case, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Return y in float64, and the error that float32 sums of that size may have."""
    x, other, kernel, bias = (a.astype(np.float64) for a in arrays(case, precision))
    (OH, OW), (sy, sx), G = case.conv_output_size, case.strides, case.C // case.groups
    padded = np.pad(x, ((0, 0), (0, 0), *[(case.pad, case.pad + sy * OH + sx * OW)] * 2))
    z, size = np.zeros((case.N, case.F, OH, OW)), np.zeros((case.N, case.F, OH, OW))
    each = case.F // case.groups
    for g in range(case.groups):
        own = np.s_[g * each : (g + 1) * each]
        for p in range(case.size):
            for q in range(case.size):
                h, w = p * case.dilation, q * case.dilation
                window = padded[:, g * G : (g + 1) * G, h : h + sy * OH : sy, w : w + sx * OW : sx]
                z[:, own] += np.einsum("nchw,fc->nfhw", window, kernel[own, :, p, q])
                size[:, own] += np.einsum("nchw,fc->nfhw", abs(window), abs(kernel[own, :, p, q]))
    if case.pooled:
        z, size = (a.reshape(case.N, case.F, OH // 2, 2, OW // 2, 2).max((3, 5)) for a in (z, size))
    y = activation.FUNCTIONS[case.pre][0](np, z + bias[:, None, None])
    if case.binary in ("add", "sort"):
        y, total = y + other, y
        if case.binary == "sort":
            leaky = [np.where(a > 0, a, 0.1 * a) for a in (total, other)]
            y = y + np.sqrt(np.maximum(leaky[0] * leaky[1], 0) + 1e-3)
    elif case.binary:
        y = y * (other if case.binary == "multiply" else other[:, :1])
    y = activation.FUNCTIONS[case.post][0](np, y)
    if case.anchors:
        channels = y.reshape(case.N, case.anchors, -1, *y.shape[2:])
        for e in range(channels.shape[2]):
            if e not in (2, 3):
                channels[:, :, e] = 1 / (1 + np.exp(-channels[:, :, e]))
            if e < 2:
                channels[:, :, e] = channels[:, :, e] * 1.1 - 0.05
    return y, size


def check(case: Case, precision: str, algorithm: str, be, **options) -> None:
    """Compare with float64: float32 sums (2^-20 of the sum of magnitudes), and the rounding of what is stored."""
    got, (want, size) = run(case, precision, algorithm, be, **options), expected(case, precision)
    rounding = 2.0**-11 if precision == "fp16" else 2.0**-22
    allowed = 1.01 * rounding * abs(want) + 2.0**-18 * (size + 1) * (10 if case.binary == "sort" else 1)
    if (
        not {case.pre, case.post} <= VECTOR_ACTIVATIONS
    ):  # other kernels apply the epilogue, to what this one has rounded
        allowed += 2 * rounding * (size + 1)
    wrong = ~(abs(got - want) <= allowed)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ, the first at (n, c, h, w) = {np.argwhere(wrong)[0]}"
