"""What a launch costs, and a roofline model of its time on a GPU, which need not be present.

card = find_card("H100")
seconds(Cost(bytes_read=1 << 20, bytes_written=1 << 20), card, "fp16")
gemm_seconds(card, "fp16", M=43264, N=256, K=1152, tile=(128, 128))

The model is optimistic: the longest of computing, moving bytes from and to memory, and loading tiles from L2, plus constants. It
ranks alternatives and shows what limits a plan; a figure to rely on has to be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from ...errors import DataError

ITEMSIZE = {"fp16": 2, "tf32": 4, "fp32": 4}  # bytes of an element of maps and weights

# Estimates, the same for every card
LAUNCH = 1.5e-6  # seconds from the end of a launch in a CUDA graph to the start of the next
RAMP = 0.5e-6  # seconds until the first loads of a kernel arrive, and the last stores leave
TILE_RAMP = 1.0e-6  # the same for the tiles that an SM computes at once: fill the pipeline, write the result
TILE_ELEMENTS = 128 * 256  # that an SM computes at once: their sums are half of its registers
DRAM_SHARE = 0.85  # of the peak bandwidth that kernels reach
L2_SHARE = 0.8  # of L2: maps up to this size are still there when the next launch reads them
FMA_SHARE = 0.3  # of the fp32 peak that kernels without tensor cores reach, which also compute addresses
HOPPER_MMA_SHARE = 0.62  # of Hopper's tensor cores: mma.sync compared with wgmma
CLUSTER = 2  # thread blocks that share the tiles they load, in Hopper's library gemms
TILE_SHARES = {(128, 256): 0.75, (128, 128): 0.70, (64, 128): 0.60, (64, 64): 0.50}  # of the peak, by tile (sorted)
OTHER_TILE_SHARE = 0.35
LIBRARY_TILES = ((128, 256), (128, 128), (128, 64), (64, 128), (64, 64))  # from which cuBLAS chooses
LIBRARY_SPLITS = (1, 2, 4, 8)
MIN_SPLIT_K = 256  # elements of K in each part


@dataclass(frozen=True)
class Card:
    """A GPU. flops: dense peak in FLOP/s by precision, with fp32 accumulation; bandwidths are in bytes/s.

    device: the name that the CUDA runtime reports. hopper: its libraries use wgmma and clusters.
    """

    name: str
    device: str
    sms: int
    dram_bandwidth: float
    l2_bytes: int
    l2_bandwidth: float
    flops: Mapping[str, float]
    hopper: bool = False


def _card(
    name: str, device: str, sms: int, gb_s: float, l2_mib: int, l2_gb_s: float, fp16: float, tf32: float, fp32: float,
    hopper: bool = False,
) -> Card:  # fmt: skip
    flops = {"fp16": 1e12 * fp16, "tf32": 1e12 * tf32, "fp32": 1e12 * fp32}
    return Card(name, device, sms, 1e9 * gb_s, l2_mib << 20, 1e9 * l2_gb_s, flops, hopper)


# From NVIDIA's data sheets and architecture white papers, except the bandwidths of L2, which are estimates: NVIDIA publishes
# few, and kernels reach less. TFLOP/s are dense, with fp32 accumulation. Turing has no TF32: its gemms are fp32.
CARDS = (
    #                                                 SMs  DRAM L2 MiB  L2   fp16   tf32   fp32
    _card("H100 SXM", "NVIDIA H100 80GB HBM3",        132, 3350, 50, 5500, 989.4, 494.7,  66.9, hopper=True),
    _card("H100 PCIe", "NVIDIA H100 PCIe",            114, 2039, 50, 4500, 756.0, 378.0,  51.2, hopper=True),
    _card("H200", "NVIDIA H200",                      132, 4800, 50, 5500, 989.4, 494.7,  66.9, hopper=True),
    _card("A100 80GB", "NVIDIA A100-SXM4-80GB",       108, 2039, 40, 4000, 312.0, 156.0,  19.5),
    _card("A100 40GB", "NVIDIA A100-SXM4-40GB",       108, 1555, 40, 4000, 312.0, 156.0,  19.5),
    _card("A10", "NVIDIA A10",                        72,  600,  6, 1800, 125.0,  62.5,  31.2),
    _card("L40S", "NVIDIA L40S",                      142,  864, 96, 4500, 362.0, 183.0,  91.6),
    _card("L4", "NVIDIA L4",                          58,  300, 48, 2000, 121.0,  60.5,  30.3),
    _card("T4", "Tesla T4",                           40,  320,  4, 1200,  65.0,   8.1,   8.1),
    _card("RTX 5090", "NVIDIA GeForce RTX 5090",      170, 1792, 96, 6000, 209.5, 104.8, 104.8),
    _card("RTX 4090", "NVIDIA GeForce RTX 4090",      128, 1008, 72, 5000, 165.2,  82.6,  82.6),
    _card("RTX 3090", "NVIDIA GeForce RTX 3090",      82,  936,  6, 2000,  71.0,  35.6,  35.6),
)  # fmt: skip


@dataclass(frozen=True)
class Gemm:
    """`count` gemms y (M, N) = a (M, K) @ w (N, K).T. tile: of a kernel of ours; None: cuBLAS chooses. split: parts of K."""

    M: int
    N: int
    K: int
    count: int = 1
    tile: tuple[int, int] | None = None
    split: int = 1

    def __str__(self) -> str:
        count = f"{self.count} x " if self.count > 1 else ""
        return f"{count}gemm {self.M} x {self.N} x {self.K}"

    @property
    def flops(self) -> float:
        """Its floating-point operations."""
        return 2.0 * self.count * self.M * self.N * self.K


class Cost(NamedTuple):
    """What a launch does: bytes of global memory, each element counted once; floating-point operations besides a gemm's."""

    bytes_read: int = 0
    bytes_written: int = 0
    kernel_flops: float = 0.0
    gemm: Gemm | None = None

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written."""
        return self.bytes_read + self.bytes_written

    @property
    def flops(self) -> float:
        """All floating-point operations."""
        return self.kernel_flops + (self.gemm.flops if self.gemm else 0.0)


def find_card(name: str) -> Card:
    """Return the card of this name, or the first whose name begins with it; case does not matter. Raises DataError."""
    wanted = " ".join(name.lower().split())
    cards = [card for card in CARDS if card.name.lower() == wanted]
    cards += [card for card in CARDS if wanted and card.name.lower().startswith(wanted)]
    cards += [card for card in CARDS if wanted and card.name.lower().removeprefix("rtx ") == wanted]
    if not cards:
        raise DataError(f"unknown card '{name}'; choose one of {', '.join(card.name for card in CARDS)}")
    return cards[0]


def card_of_device(device: str) -> Card | None:
    """Return the card that the CUDA runtime calls `device`, such as "NVIDIA H100 80GB HBM3"; None if it is not in the table."""
    return next((card for card in CARDS if card.device == device), None)


def seconds(cost: Cost, card: Card, precision: str) -> float:
    """Return the modelled time of a launch in a CUDA graph."""
    gemm = cost.gemm
    if gemm is None:
        compute = cost.kernel_flops / (card.flops["fp32"] * FMA_SHARE)
        return LAUNCH + RAMP + max(compute, memory_seconds(card, cost.bytes_moved))
    sizes = (card, precision, gemm.M, gemm.N, gemm.K)
    if gemm.tile is not None:
        return gemm_seconds(*sizes, gemm.tile, gemm.split, gemm.count, cost.bytes_moved, mma_sync=True)
    return min(
        gemm_seconds(*sizes, tile, split, gemm.count, cost.bytes_moved)
        for tile in LIBRARY_TILES
        for split in LIBRARY_SPLITS
        if split == 1 or gemm.K >= split * MIN_SPLIT_K
    )


def memory_seconds(card: Card, bytes_moved: float) -> float:
    """Return the time to move bytes: from and to L2 if they fit there, else DRAM."""
    in_l2 = bytes_moved <= L2_SHARE * card.l2_bytes
    return bytes_moved / (card.l2_bandwidth if in_l2 else DRAM_SHARE * card.dram_bandwidth)


def gemm_seconds(
    card: Card,
    precision: str,
    M: int,
    N: int,
    K: int,
    tile: tuple[int, int],
    split: int = 1,
    count: int = 1,
    bytes_moved: float | None = None,
    mma_sync: bool = False,
) -> float:
    """Return the modelled time of `count` gemms (M, N, K) in one launch, with a thread block per tile and part of K.

    split: parts of K, whose fp32 sums a second launch adds. bytes_moved: from and to global memory, each element once, without
    the partial sums; default: those of both operands and the result. An implicit GEMM moves fewer: it reads a map,
    not its im2col matrix. mma_sync: it runs on tensor cores through mma.sync, which is slower than the library's wgmma on Hopper.
    """
    itemsize, (rows, columns) = ITEMSIZE[precision], tile
    blocks = ceil(M / rows) * ceil(N / columns) * count * split
    own_on_hopper = mma_sync and card.hopper and precision != "fp32"
    peak = card.flops[precision] * (HOPPER_MMA_SHARE if own_on_hopper else 1)
    share = TILE_SHARES.get((min(tile), max(tile)), OTHER_TILE_SHARE)
    compute = ceil(blocks / card.sms) * 2 * rows * columns * K / split / (peak * share / card.sms)
    compute += ceil(blocks / (card.sms * max(1, TILE_ELEMENTS // (rows * columns)))) * TILE_RAMP
    loaded = blocks * (rows + columns) * (K / split) * itemsize / (CLUSTER if card.hopper and not mma_sync else 1)
    if bytes_moved is None:
        bytes_moved = itemsize * count * (M * K + N * K + M * N)
    time = LAUNCH + max(compute, loaded / card.l2_bandwidth, memory_seconds(card, bytes_moved))
    if split > 1:  # the sums are written and read: by another launch, or in ours by the last block
        time += (0 if mma_sync else LAUNCH) + RAMP + memory_seconds(card, 2 * 4 * M * N * count * split)
    return time
