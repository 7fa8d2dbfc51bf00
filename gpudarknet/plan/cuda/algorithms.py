"""Convolution algorithms on a GPU: which one runs a convolution, and the workspace that it needs.

    direct                  one kernel, for inputs of few channels such as images
    depthwise               one kernel, each channel by itself
    gemm_1x1                the input is its own im2col matrix
    gemm_1x1_batched        the same as a strided batched gemm, one per image
    im2col_gemm             im2col and one tall gemm, in chunks if the im2col matrix exceeds MAX_WORKSPACE
    im2col_gemm_64mib       the same in chunks of at most 64 MiB (or 16), which may stay in L2
    im2col_batched_gemm     im2col and a strided batched gemm, one per image
    winograd_f2             F(2 x 2, 3 x 3): a strided batched gemm of 16, 4/9 of the multiplications (Lavin and Gray 2015,
                            arXiv 1509.09308)
    implicit_gemm_MxN       one kernel on tensor cores, with the epilogue and without im2col, in tiles of M x N (tiles.py);
                            _splitkS: blocks compute S parts of K, and the last adds them up in a fixed order
    image_gemm              the same for inputs of few channels such as images

A measured choice (autotune.py) has priority, then the default that ships for a GPU (plan/tuning.py). Otherwise Winograd runs in
fp32, which is bound by arithmetic, if there are at least WINOGRAD_MIN_CHANNELS; im2col runs in tf32 and fp16, which are bound by
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

from ..steps import Convolve
from ..tuning import DEFAULT
from .tiles import H100, SPLITS, TILES, DeviceProperties, Product, Tile
from .time_model import ITEMSIZE, card_of_device, find_card, gemm_seconds

CHANNEL_ALIGNMENT = 8  # channels: 16 bytes of float16
MAX_DIRECT_CHANNELS = 4
MAX_WORKSPACE = 256 << 20  # bytes of a convolution, unless one image needs more
MIB = 1 << 20
WINOGRAD_MIN_CHANNELS = 64  # input and output channels from which the transforms are cheap compared with the gemms


def align_channels(channels: int) -> int:
    """Round channels up for 16-byte accesses."""
    return -(-channels // CHANNEL_ALIGNMENT) * CHANNEL_ALIGNMENT


def is_small_channel(step: Convolve) -> bool:
    """Return whether its input has so few channels, like an image, that the direct kernel is best."""
    return step.groups == 1 and step.xs[0].shape[0] <= MAX_DIRECT_CHANNELS


def is_pointwise(step: Convolve) -> bool:
    """Return whether a convolution's input is its im2col matrix."""
    return (step.size, step.strides, step.pad) == (1, (1, 1), 0) and not step.depthwise and not is_small_channel(step)


def chunk_size(count: int, limit: int) -> int:
    """Return how many of `count` to process at once, at most `limit` (at least 1), in chunks as equal as possible."""
    chunks = -(-count // max(1, limit))
    return -(-count // max(1, chunks))


@dataclass(frozen=True)
class ConvProblem:
    """A convolution with its batch size, precision and device: all that an algorithm depends on."""

    step: Convolve
    batch: int
    precision: str
    device: DeviceProperties = H100

    @property
    def itemsize(self) -> int:
        """Bytes of an element of a map."""
        return ITEMSIZE[self.precision]

    @property
    def ldcol(self) -> int:
        """Elements from one row of the im2col matrix to the next."""
        return align_channels(self.step.xs[0].shape[0] * self.step.size**2)

    @property
    def im2col_bytes(self) -> int:
        """Bytes of the whole im2col matrix."""
        return self.batch * prod(self.step.conv_output_size) * self.ldcol * self.itemsize

    @property
    def tiles(self) -> tuple[int, int]:
        """Winograd tiles of 2 x 2 pixels in a map: down, across."""
        OH, OW = self.step.conv_output_size
        return -(-OH // 2), -(-OW // 2)

    def images_at_a_time(self, bytes_each: int) -> int:
        """Return how many images MAX_WORKSPACE holds."""
        return chunk_size(self.batch, MAX_WORKSPACE // bytes_each)

    @property
    def maxpool_images(self) -> int:
        """Images per chunk of a convolution with a fused max pool, whose unpooled output needs memory too."""
        return self.images_at_a_time(
            prod(self.step.conv_output_size) * align_channels(self.step.y.shape[0]) * self.itemsize
        )

    @property
    def winograd_images(self) -> int:
        """Images per chunk of a Winograd convolution."""
        return self.images_at_a_time(self.itemsize * sum(self.winograd_sizes(1)))

    def winograd_sizes(self, images: int) -> tuple[int, int]:
        """Return the elements of the transformed input and of the gemms' output."""
        C, F = self.step.xs[0].shape[0], self.step.y.shape[0]
        positions = 16 * images * prod(self.tiles)
        return positions * align_channels(C), positions * align_channels(F)

    def im2col_rows(self, algorithm: str) -> int:
        """Return how many rows of the im2col matrix an algorithm makes at once."""
        budget = min(IM2COL_BUDGETS.get(algorithm, MAX_WORKSPACE), MAX_WORKSPACE)
        return chunk_size(self.batch * prod(self.step.conv_output_size), budget // (self.ldcol * self.itemsize))

    @property
    def product(self) -> Product:
        """The product that an implicit GEMM computes. Its weights have aligned channels."""
        step, groups = self.step, self.step.groups
        C, F, pixels = (
            step.xs[0].shape[0] // groups,
            step.y.shape[0] // groups,
            self.batch * prod(step.conv_output_size),
        )
        K, ragged = align_channels(C) * step.size**2, C % CHANNEL_ALIGNMENT != 0
        return Product(pixels, F, K, groups, self.itemsize, ragged)

    @property
    def has_tensor_cores(self) -> bool:
        """Whether the device has instructions that compute in its precision."""
        minimum = {"fp16": 75, "tf32": 80}.get(self.precision)
        return minimum is not None and self.device.compute_capability >= minimum

    @property
    def fits_in_one_chunk(self) -> bool:
        """Whether the whole im2col matrix and, with a fused max pool, the whole unpooled output fit MAX_WORKSPACE."""
        return self.im2col_bytes <= MAX_WORKSPACE and (not self.step.pooled or self.maxpool_images == self.batch)


@dataclass(frozen=True)
class ConvAlgorithm:
    """supports: the problems it can solve. workspaces: their sizes in elements, by name. weight_layout: see weights.py."""

    supports: Callable[[ConvProblem], bool]
    workspaces: Callable[[ConvProblem], dict[str, int]] = lambda problem: {}
    weight_layout: str = "ohwi"


def _im2col_workspaces(algorithm: str = "") -> Callable[[ConvProblem], dict[str, int]]:
    def workspaces(problem: ConvProblem) -> dict[str, int]:
        step, sizes = problem.step, {"im2col": problem.im2col_rows(algorithm) * problem.ldcol}
        if step.pooled:
            pixels = problem.maxpool_images * prod(step.conv_output_size)
            sizes["conv_output"] = pixels * align_channels(step.y.shape[0])
        return sizes

    return workspaces


def _exceeds_budget(algorithm: str) -> Callable[[ConvProblem], bool]:
    return lambda problem: _needs_im2col(problem) and problem.im2col_bytes > IM2COL_BUDGETS[algorithm]


def _needs_im2col(problem: ConvProblem) -> bool:
    return not is_pointwise(problem.step) and not problem.step.depthwise


def _is_batched(problem: ConvProblem) -> bool:
    return problem.step.groups == 1 and problem.batch > 1


def _supports_winograd(problem: ConvProblem) -> bool:
    s = problem.step
    return (s.size, s.strides, s.dilation, s.pad, s.groups) == (3, (1, 1), 1, 1, 1)


def _winograd_workspaces(problem: ConvProblem) -> dict[str, int]:
    names = "winograd_input", "winograd_output"
    return dict(zip(names, problem.winograd_sizes(problem.winograd_images), strict=True))


def _supports_implicit_gemm(tile: Tile, splits: int, problem: ConvProblem) -> bool:
    step, vector, product = problem.step, 16 // problem.itemsize, problem.product
    groups_aligned = step.groups == 1 or (step.xs[0].shape[0] // step.groups) % vector == product.N % vector == 0
    aligned = groups_aligned and step.xs[0].channel_offset % vector == 0  # to 16 bytes
    suits = aligned and not is_small_channel(step) and product.suits(tile, splits, problem.device)
    return problem.has_tensor_cores and suits


def _partial_sums(tile: Tile, splits: int, problem: ConvProblem) -> dict[str, int]:
    sums = problem.product.partial_sums(tile, splits)
    return {"partial_sums": sums * 4 // problem.itemsize} if sums else {}


IMPLICIT_GEMMS = {
    f"implicit_gemm_{tile.name}" + (f"_splitk{splits}" if splits > 1 else ""): (tile, splits)
    for tile in TILES.values()
    for splits in SPLITS
}
IM2COL_BUDGETS = {f"im2col_gemm_{n}mib": n * MIB for n in (64, 16)}
ALGORITHMS: dict[str, ConvAlgorithm] = {
    "direct": ConvAlgorithm(lambda problem: is_small_channel(problem.step), weight_layout="hwio"),
    "depthwise": ConvAlgorithm(lambda problem: problem.step.depthwise, weight_layout="depthwise"),
    "gemm_1x1": ConvAlgorithm(lambda problem: is_pointwise(problem.step)),
    "gemm_1x1_batched": ConvAlgorithm(lambda problem: is_pointwise(problem.step) and _is_batched(problem)),
    "im2col_gemm": ConvAlgorithm(_needs_im2col, _im2col_workspaces()),
    **{name: ConvAlgorithm(_exceeds_budget(name), _im2col_workspaces(name)) for name in IM2COL_BUDGETS},
    "im2col_batched_gemm": ConvAlgorithm(
        lambda problem: _needs_im2col(problem) and _is_batched(problem) and problem.fits_in_one_chunk,
        _im2col_workspaces(),
    ),
    "winograd_f2": ConvAlgorithm(_supports_winograd, _winograd_workspaces, "winograd"),
    "image_gemm": ConvAlgorithm(
        lambda problem: is_small_channel(problem.step) and problem.has_tensor_cores, weight_layout="image_gemm"
    ),
    **{
        name: ConvAlgorithm(partial(_supports_implicit_gemm, *args), partial(_partial_sums, *args), "implicit_gemm")
        for name, args in IMPLICIT_GEMMS.items()
    },
}
# Those whose epilogue can write the im2col matrix of the next convolution
CAN_SCATTER = {"depthwise", "gemm_1x1", "gemm_1x1_batched", "im2col_gemm", "im2col_batched_gemm", *IM2COL_BUDGETS}


def supported(problem: ConvProblem) -> list[str]:
    """Return the names of the algorithms that can solve a problem."""
    return [name for name, algorithm in ALGORITHMS.items() if algorithm.supports(problem)]


def implicit_gemms(problem: ConvProblem) -> list[str]:
    """Return the names of the implicit GEMMs that support a problem, the fastest by the time model first."""
    if ALGORITHMS["image_gemm"].supports(problem):
        return ["image_gemm"]
    card = card_of_device(problem.device.name) or find_card("H100")
    product, step = problem.product, problem.step
    elements = problem.batch * (prod(step.xs[0].shape) + prod(step.y.shape)) + product.N * product.K * product.groups
    sizes = (card, problem.precision, product.M, product.N, product.K)

    def seconds(name: str) -> float:
        tile, splits = IMPLICIT_GEMMS[name]
        return gemm_seconds(
            *sizes, (tile.M, tile.N), splits, product.groups, elements * problem.itemsize, mma_sync=True
        )

    return sorted((name for name in IMPLICIT_GEMMS if ALGORITHMS[name].supports(problem)), key=seconds)


def select_algorithm(problem: ConvProblem, choices: Mapping[str, str]) -> str:
    """Return the name of the algorithm for a convolution: the measured one if available, else by rule.

    choices: measured names, by a convolution's key; DEFAULT: "implicit_gemm" prefers it where it was not measured.
    """
    step = problem.step
    measured = choices.get(step.key(problem.batch), "")
    if measured in ALGORITHMS and ALGORITHMS[measured].supports(problem):
        return measured
    if step.depthwise:
        return "depthwise"
    if choices.get(DEFAULT) == "implicit_gemm" and (names := implicit_gemms(problem)):
        return names[0]
    if is_small_channel(step):
        return "direct"
    if is_pointwise(step):
        return "gemm_1x1"
    channels = min(step.xs[0].shape[0], step.y.shape[0])
    if problem.precision == "fp32" and _supports_winograd(problem) and channels >= WINOGRAD_MIN_CHANNELS:
        return "winograd_f2"
    return "im2col_gemm"
