"""Tiles of the implicit GEMM (kernels/implicit_gemm.cu), and the rule that chooses one for a convolution.

A kernel's grid has one block per tile of the product and per split of K. Few large tiles reuse more of what they load; many small
tiles, or splits, occupy more multiprocessors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .time_model import Gemm

SPLITS = (1, 2, 3, 4, 6, 8)  # parts of K, each computed by blocks of its own
MAX_SPLIT_TILES = 1 << 13  # tiles of a product whose K is split: each has a counter on the device
MIN_STEPS = 4  # buffers that a split multiplies, at least
MIN_COLUMNS = 0.5  # of a tile's columns, that the filters must exceed
ROW_BYTES = 64  # of a buffer's row


class DeviceProperties(NamedTuple):
    """A GPU: name, compute capability (90 is 9.0), multiprocessors, bytes of shared memory that a block can have."""

    name: str
    compute_capability: int
    multiprocessors: int
    shared_memory: int


H100 = DeviceProperties("NVIDIA H100 80GB HBM3", 90, 132, 227 << 10)


@dataclass(frozen=True)
class Tile:
    """A tile of M x N of the product: warps compute parts of it, from `stages` buffers in shared memory.

    ragged: there is a kernel for channels that are no multiple of 8.
    """

    M: int
    N: int
    warp_M: int
    warp_N: int
    stages: int
    ragged: bool = False

    @property
    def name(self) -> str:
        """The kernel's suffix."""
        return f"{self.M}x{self.N}"

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * (self.M // self.warp_M) * (self.N // self.warp_N)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: its buffers, where the epilogue later arranges 16 rows of each warp as float32."""
        return max(self.stages * (self.M + self.N) * ROW_BYTES, self.threads // 32 * 16 * (self.warp_N + 8) * 4)

    def count(self, M: int, N: int) -> int:
        """Return how many tiles cover a product of M x N."""
        return -(-M // self.M) * -(-N // self.N)


TILES = {
    tile.name: tile
    for tile in (
        Tile(256, 128, 64, 64, 3),
        Tile(128, 128, 64, 64, 3),
        Tile(128, 64, 64, 32, 4),
        Tile(128, 32, 32, 32, 4),
        Tile(64, 64, 32, 32, 5, ragged=True),
    )
}
IMAGE_TILE = Tile(128, 64, 32, 64, 1)  # of the kernels for inputs of few channels


class Product(NamedTuple):
    """The product of a convolution, or of each of its groups: M pixels, N filters, K channels of all taps.

    itemsize: of an element. ragged: the channels of a tap are no multiple of 8.
    """

    M: int
    N: int
    K: int
    groups: int
    itemsize: int
    ragged: bool

    @property
    def steps(self) -> int:
        """Buffers along K."""
        return -(-self.K * self.itemsize // ROW_BYTES)

    def tiles(self, tile: Tile) -> int:
        """Return how many tiles it has, in all groups."""
        return tile.count(self.M, self.N) * self.groups

    def suits(self, tile: Tile, splits: int, device: DeviceProperties) -> bool:
        """Return whether a tile fits the device and is filled by at least half, and whether splitting K can help."""
        filled = self.ragged or tile.N <= 32 or self.N > MIN_COLUMNS * tile.N  # a ragged one has no choice of tiles
        if tile.shared_bytes > device.shared_memory or self.ragged > tile.ragged or not filled:
            return False
        tiles = self.tiles(tile)
        few = tiles <= min(MAX_SPLIT_TILES, 2 * device.multiprocessors) and self.steps >= MIN_STEPS * splits
        return splits == 1 or few

    def gemm(self, tile: Tile, splits: int) -> Gemm:
        """Return it as the time model describes it."""
        return Gemm(self.M, self.N, self.K, self.groups, (tile.M, tile.N), splits)

    def partial_sums(self, tile: Tile, splits: int) -> int:
        """Return the number of float32 that the splits store."""
        return splits * self.tiles(tile) * tile.M * tile.N if splits > 1 else 0

    def candidates(self, device: DeviceProperties) -> Iterator[tuple[Tile, int]]:
        """Yield the tiles and splits that suit it."""
        for tile in TILES.values():
            for splits in SPLITS:
                if self.suits(tile, splits, device):
                    yield tile, splits
