"""A kernel with its arguments."""

from __future__ import annotations

from typing import NamedTuple

from ....array import KernelArgument, LaunchKernel
from ..emitter import Emitter, Launch
from ..time_model import Gemm
from ..view import View


class KernelCall(NamedTuple):
    """A kernel with its arguments, as `Emitter.launch` takes them."""

    kernel: str
    threads: int
    args: tuple[KernelArgument | View, ...]
    block: int = 256
    shared: int = 0
    flops: float = 0
    gemm: Gemm | None = None

    def run(self, launch: LaunchKernel) -> None:
        """Launch it."""
        arrays = [a.a if isinstance(a, View) else a for a in self.args]
        launch(self.kernel, self.threads, *arrays, block=self.block, shared=self.shared)

    def emit(self, emitter: Emitter) -> Launch:
        """Return it as a launch of a program."""
        return emitter.launch(
            self.kernel, self.threads, *self.args, block=self.block, shared=self.shared, flops=self.flops,
            gemm=self.gemm,
        )  # fmt: skip
