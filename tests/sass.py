"""Disassemble kernels: what the main loop of a matrix product consists of, and how many blocks fit a multiprocessor.

python tests/sass.py implicit_gemm      # a table for sm_80, sm_90 and sm_120

Needs NVRTC (tests/nvrtc.py), and nvdisasm and cuobjdump from the wheels nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nvrtc

from gpudarknet.backend import cuda
from gpudarknet.plan.cuda.tiles import IMAGE_TILE, TILES, Tile

ARCHITECTURES = (80, 90, 120)
RESERVED = 1 << 10  # bytes of shared memory that CUDA takes for each block, from sm_80 on
REGISTERS = 1 << 16  # of a multiprocessor


class Multiprocessor(NamedTuple):
    """Limits of a multiprocessor: bytes of shared memory, threads, blocks.

    Source: the CUDA C++ programming guide, "Compute capabilities".
    """

    shared: int
    threads: int
    blocks: int


LIMITS = {
    75: Multiprocessor(64 << 10, 1024, 16), 80: Multiprocessor(164 << 10, 2048, 32),
    86: Multiprocessor(100 << 10, 1536, 16), 89: Multiprocessor(100 << 10, 1536, 24),
    90: Multiprocessor(228 << 10, 2048, 32), 100: Multiprocessor(228 << 10, 2048, 32),
    120: Multiprocessor(100 << 10, 1536, 24),
}  # fmt: skip


class Kernel(NamedTuple):
    """A kernel's machine code. loop: how often its main loop has each instruction; empty if no loop has HMMA.

    registers: per thread. local: bytes of stack, spilled registers mostly. shared: bytes of static shared memory.
    """

    loop: Counter[str]
    registers: int
    local: int
    shared: int

    def blocks(self, architecture: int, threads: int, dynamic_shared: int) -> int:
        """Return how many blocks a multiprocessor runs at a time."""
        limits, warps = LIMITS[architecture], -(-threads // 32)
        allocated = -(-self.registers * 32 // 256) * 256  # registers of a warp
        shared = self.shared + dynamic_shared + (RESERVED if architecture >= 80 else 0)
        by_registers = REGISTERS // allocated // 4 * 4 // warps  # a quarter of the multiprocessor each
        by_shared = limits.shared // shared if shared else limits.blocks
        return min(limits.blocks, limits.threads // (32 * warps), by_registers, by_shared)


@cache
def tool(name: str) -> Path | None:
    """Return nvdisasm or cuobjdump from its wheel, or None."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder).glob(f"*/bin/{name}")):
            return path
    return None


def why_not() -> str | None:
    """Return what is missing to disassemble kernels; None if nothing is."""
    packages = [] if nvrtc.library() else ["nvidia-cuda-nvrtc-cu12"]
    packages += [f"nvidia-cuda-{name}" for name in ("nvdisasm", "cuobjdump") if tool(name) is None]
    return f"pip install {' '.join(packages)}" if packages else None


def kernels(file: str, T: str, architecture: int) -> dict[str, Kernel]:
    """Compile and disassemble kernels/FILE.cu: name -> kernel."""
    cubin, log = nvrtc.compile(cuda.source(file, T), architecture)
    assert cubin, log
    with tempfile.NamedTemporaryFile(suffix=".cubin") as image:
        image.write(cubin)
        image.flush()
        text, usage = run("nvdisasm", "-c", image.name), run("cuobjdump", "-res-usage", image.name)
    numbers = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    codes = dict(re.findall(r"^\.text\.(\w+):\n(.*?)(?=^\.text\.|\Z)", text, re.MULTILINE | re.DOTALL))
    reserved = RESERVED if architecture >= 90 else 0  # which cuobjdump counts
    return {
        name: Kernel(main_loop(codes[name]), int(registers), int(stack), int(shared) - reserved)
        for name, registers, stack, shared in numbers
    }


def run(name: str, *arguments: str) -> str:
    """Run a tool; return what it prints."""
    return subprocess.run([str(tool(name)), *arguments], text=True, capture_output=True, check=True).stdout


INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([\w.]+)([^;]*);")
LABEL = re.compile(r"(\.L\w+):")


def main_loop(code: str) -> Counter[str]:
    """Count the instructions of the shortest loop that contains HMMA, which is a label with a branch back to it."""
    names: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for line in code.splitlines():
        if match := LABEL.match(line):
            labels[match[1]] = len(names)
        elif match := INSTRUCTION.match(line):
            names.append(match[1].partition(".")[0])
            target = re.search(r"`\((\.L\w+)\)", match[2])
            if names[-1] == "BRA" and target and target[1] in labels:
                loops.append(names[labels[target[1]] :])
    return Counter(min((loop for loop in loops if "HMMA" in loop), key=len, default=[]))


def tile_of(kernel: str) -> Tile | None:
    """Return the tile of a kernel of implicit_gemm.cu."""
    return IMAGE_TILE if kernel.startswith("image_gemm") else TILES.get(kernel.rpartition("_")[2])


COLUMNS = ("HMMA", "LDSM", "LDGSTS", "BAR", "LDL", "STL")  # in the main loop; the last two access local memory


def table(file: str, T: str, architecture: int) -> Iterator[str]:
    """Yield the lines of a table of a file's kernels that use tensor cores."""
    heads = (*COLUMNS, "other", "registers", "local", "shared", "threads", "blocks")
    yield f"{file}.cu, T = {T}, sm_{architecture}"
    yield " " * 24 + "".join(f"{head:>10}" for head in heads)
    for name, kernel in kernels(file, T, architecture).items():
        tile = tile_of(name)
        if tile is None or not kernel.loop:
            continue
        counts = [kernel.loop[column] for column in COLUMNS]
        blocks = kernel.blocks(architecture, tile.threads, tile.shared_bytes)
        rest = (kernel.loop.total() - sum(counts), kernel.registers, kernel.local, kernel.shared + tile.shared_bytes)
        yield f"{name:24}" + "".join(f"{number:10}" for number in (*counts, *rest, tile.threads, blocks))


def main() -> None:
    if missing := why_not():
        sys.exit(missing)
    for file in sys.argv[1:]:
        for T in cuda.STORAGE.values():
            for architecture in ARCHITECTURES:
                print(*table(file, T, architecture), "", sep="\n")


if __name__ == "__main__":
    main()
