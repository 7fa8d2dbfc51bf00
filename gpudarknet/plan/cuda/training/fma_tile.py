"""Tiles of matrix multiplications without tensor cores (kernels/fma_gemm.cuh)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FmaTile:
    """A tile of M x N, of which each thread of a block computes side x side."""

    M: int
    N: int
    side: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.M * self.N // self.side**2

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a block: none."""
        return 0

    def count(self, M: int, N: int) -> int:
        """Return how many tiles cover a product of M x N."""
        return -(-M // self.M) * -(-N // self.N)
