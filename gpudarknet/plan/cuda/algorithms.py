"""Which way to convolve on a GPU, and what each way needs: memory while it works, and weights in a form of its own.

    kernel             one kernel for maps of few channels, such as images
    depthwise          one kernel, every channel by itself
    gemm               the map is its own matrix of patches
    patches            im2col and a gemm, in parts where the matrix is larger than COLUMNS
    patches of N MiB   the same in parts of at most that many bytes, which may stay in cache
    ... by image       as many gemms in one call as there are images, instead of one tall one
    winograd           F(2 x 2, 3 x 3): 16 gemms in one call, with 4/9 of the products (Lavin and Gray 2015, arXiv 1509.09308)

A measured choice comes first (race.py). Without one: Winograd in fp32, where multiplying takes the time, if there are enough
channels (WORTH); patches in tf32 and fp16, where moving numbers does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..steps import Convolve

ROUND = 8  # channels: 16 bytes of float16
FEW = 4  # channels
COLUMNS = 256 << 20  # bytes that a convolution has for its work, if one image needs no more
MIB = 1 << 20
WORTH = 64  # channels and filters from which transforms cost little beside products


def rounded(channels: int) -> int:
    """Return the channels rounded up to what 16-byte accesses need."""
    return -(-channels // ROUND) * ROUND


def few(step: Convolve) -> bool:
    """Say whether its input has so few channels, as an image has, that one kernel does best without patches."""
    return step.groups == 1 and step.xs[0].shape[0] <= FEW


def direct(step: Convolve) -> bool:
    """Say whether a convolution's input is its matrix of patches."""
    return (step.size, step.strides, step.pad) == (1, (1, 1), 0) and not step.depthwise and not few(step)


def share(count: int, room: int) -> int:
    """Return how many of `count` are done at a time where there is room for so many, in parts as equal as can be."""
    parts = -(-count // max(1, room))
    return -(-count // max(1, parts))


@dataclass(frozen=True)
class Case:
    """A convolution of a batch, its numbers of `itemsize` bytes."""

    step: Convolve
    batch: int
    itemsize: int

    @property
    def ldcol(self) -> int:
        """Numbers from one patch to the next."""
        return rounded(self.step.xs[0].shape[0] * self.step.size**2)

    @property
    def patches(self) -> int:
        """Bytes of all patches."""
        return self.batch * prod(self.step.conv_output_size) * self.ldcol * self.itemsize

    @property
    def tiles(self) -> tuple[int, int]:
        """Tiles of 2 x 2 pixels in a map: down, across."""
        OH, OW = self.step.conv_output_size
        return -(-OH // 2), -(-OW // 2)

    def images(self, bytes_each: int) -> int:
        """Return for how many images at a time there is room."""
        return share(self.batch, COLUMNS // bytes_each)

    @property
    def pooled_images(self) -> int:
        """Images done at a time where blocks are to be pooled, because their map before that takes memory too."""
        return self.images(prod(self.step.conv_output_size) * rounded(self.step.y.shape[0]) * self.itemsize)

    @property
    def winograd_images(self) -> int:
        """Images whose tiles are done at a time."""
        return self.images(self.itemsize * sum(self.tile_numbers(1)))

    def tile_numbers(self, images: int) -> tuple[int, int]:
        """Return how many numbers the tiles of so many images have, before and after they are multiplied."""
        C, F = self.step.xs[0].shape[0], self.step.y.shape[0]
        positions = 16 * images * prod(self.tiles)
        return positions * rounded(C), positions * rounded(F)

    def rows(self, way: str) -> int:
        """Return how many patches a way lays out at a time."""
        budget = min(BUDGETS.get(way, COLUMNS), COLUMNS)
        return share(self.batch * prod(self.step.conv_output_size), budget // (self.ldcol * self.itemsize))

    @property
    def whole(self) -> bool:
        """Say whether there is room for all patches and, if blocks are pooled, for the whole map before that."""
        return self.patches <= COLUMNS and (not self.step.pooled or self.pooled_images == self.batch)


@dataclass(frozen=True)
class Way:
    """A way to convolve. fits: which cases it can do. needs: numbers of memory while it works, by name. form: of weights."""

    fits: Callable[[Case], bool]
    needs: Callable[[Case], dict[str, int]] = lambda case: {}
    form: str = "rows"


def _patches(way: str = "") -> Callable[[Case], dict[str, int]]:
    def needs(case: Case) -> dict[str, int]:
        found = {"patches": case.rows(way) * case.ldcol}
        if case.step.pooled:
            found["blocks"] = case.pooled_images * prod(case.step.conv_output_size) * rounded(case.step.y.shape[0])
        return found

    return needs


def _larger_than_budget(way: str) -> Callable[[Case], bool]:
    return lambda case: _lays_out(case) and case.patches > BUDGETS[way]


def _lays_out(case: Case) -> bool:
    return not direct(case.step) and not case.step.depthwise


def _is_winograd(case: Case) -> bool:
    s = case.step
    return (s.size, s.strides, s.dilation, s.pad, s.groups) == (3, (1, 1), 1, 1, 1)


def _tiles(case: Case) -> dict[str, int]:
    return dict(zip(("tiles", "products"), case.tile_numbers(case.winograd_images), strict=True))


BUDGETS = {f"patches of {n} MiB": n * MIB for n in (64, 16)}
WAYS: dict[str, Way] = {
    "kernel": Way(lambda case: few(case.step), form="few"),
    "depthwise": Way(lambda case: case.step.depthwise, form="depthwise"),
    "gemm": Way(lambda case: direct(case.step)),
    "gemm by image": Way(lambda case: direct(case.step) and case.step.groups == 1 and case.batch > 1),
    "patches": Way(_lays_out, _patches()),
    **{way: Way(_larger_than_budget(way), _patches(way)) for way in BUDGETS},
    "patches by image": Way(
        lambda case: _lays_out(case) and case.step.groups == 1 and case.batch > 1 and case.whole, _patches()
    ),
    "winograd": Way(_is_winograd, _tiles, "winograd"),
}


def possible(case: Case) -> list[str]:
    """Return the names of the ways that can do it."""
    return [name for name, way in WAYS.items() if way.fits(case)]


def choose(case: Case, precision: str, choices: Mapping[str, str]) -> str:
    """Return the name of the way for a convolution: the measured one if there is one, else by rule."""
    step = case.step
    found = choices.get(step.key(case.batch), "")
    if found in WAYS and WAYS[found].fits(case):
        return found
    if few(step):
        return "kernel"
    if step.depthwise:
        return "depthwise"
    if direct(step):
        return "gemm"
    if precision == "fp32" and _is_winograd(case) and min(step.xs[0].shape[0], step.y.shape[0]) >= WORTH:
        return "winograd"
    return "patches"


# --- weights -----------------------------------------------------------------------------------------------------------

FORTH = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])  # of a kernel's rows and columns


def weight_shape(step: Convolve, form: str) -> tuple[int, ...]:
    """Return the shape of a kernel in a form."""
    F, C, taps, g = step.y.shape[0], step.xs[0].shape[0] // step.groups, step.size**2, step.groups
    rows = rounded(F) if g == 1 else F
    return {
        "few": (taps * C, F),
        "depthwise": (taps, F),
        "rows": (rows, rounded(C * taps)),
        "winograd": (16, rows, rounded(C)),
    }[form]


def weight_bytes(step: Convolve, form: str, itemsize: int) -> int:
    """Return the bytes of a convolution's arrays on the device."""
    return prod(weight_shape(step, form)) * (4 if form == "few" else itemsize) + 4 * step.y.shape[0]


def weights(step: Convolve, form: str, kernel: np.ndarray, dtype: Any) -> np.ndarray:
    """Bring a kernel (F, C/groups, size, size) into a form: what is beyond F and C is 0.

    few: (size*size*C, F) in float32; depthwise: (size*size, C); rows: (F, size*size*C/groups); winograd: (16, F, C).
    """
    shape, F = weight_shape(step, form), len(kernel)
    with np.errstate(over="ignore"):  # what float16 cannot hold is inf there
        if form == "winograd":
            packed = np.zeros(shape, dtype)
            positions = np.matmul(np.kron(FORTH, FORTH), kernel.reshape(-1, 9).T.astype(np.float64))
            packed[:, :F, : kernel.shape[1]] = positions.reshape(16, *kernel.shape[:2])
            return packed
        rows = kernel.transpose(0, 2, 3, 1).reshape(F, -1)  # taps, then channels
        if form != "rows":
            return np.ascontiguousarray(rows.T, np.float32 if form == "few" else dtype)
        packed = np.zeros(shape, dtype)
        packed[:F, : rows.shape[1]] = rows
        return packed
