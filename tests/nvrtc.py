"""Compile kernels for real GPUs without one: NVRTC of the wheel nvidia-cuda-nvrtc-cu12, through ctypes.

python tests/nvrtc.py       # registers and local memory of every kernel on every architecture
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gpudarknet.backend import cuda

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)  # Turing, A100, RTX 30, RTX 40, H100, B200, RTX 50
OPTIONS = (*cuda.OPTIONS, "-ftz=true")  # CuPy adds -ftz=true to every compilation
REGCOUNT, FRAME_SIZE = 0x2F, 0x11  # NVIDIA's names, without the prefix EIATTR_


class Usage(NamedTuple):
    """What one kernel needs on a GPU: registers per thread, and bytes of local memory (spilled registers, mostly)."""

    registers: int
    local: int


@cache
def library() -> ctypes.CDLL | None:
    """Return NVRTC from its wheel, or None."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(folder, "cuda_nvrtc", "lib").glob("libnvrtc.so.*")):
            nvrtc = ctypes.CDLL(str(path))
            nvrtc.nvrtcCreateProgram.argtypes = [POINTER(c_void_p), c_char_p, c_char_p, c_int, c_void_p, c_void_p]
            nvrtc.nvrtcCompileProgram.argtypes = [c_void_p, c_int, POINTER(c_char_p)]
            nvrtc.nvrtcDestroyProgram.argtypes = [POINTER(c_void_p)]
            for what in ("ProgramLog", "CUBIN", "PTX"):
                getattr(nvrtc, f"nvrtcGet{what}Size").argtypes = [c_void_p, POINTER(c_size_t)]
                getattr(nvrtc, f"nvrtcGet{what}").argtypes = [c_void_p, c_char_p]
            return nvrtc
    return None


def compile(text: str, architecture: int, what: str = "CUBIN") -> tuple[bytes, str]:
    """Compile CUDA text for an architecture; return the cubin or the PTX (empty if it does not compile) and the messages."""
    nvrtc, program = library(), c_void_p()
    assert nvrtc is not None
    kind = "sm" if what == "CUBIN" else "compute"
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={kind}_{architecture}")]
    assert nvrtc.nvrtcCreateProgram(byref(program), text.encode(), b"kernel.cu", 0, None, None) == 0
    failed = nvrtc.nvrtcCompileProgram(program, len(options), (c_char_p * len(options))(*options))

    def get(what: str) -> bytes:
        size = c_size_t()
        assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, byref(size)) == 0
        buffer = ctypes.create_string_buffer(size.value)
        assert getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) == 0
        return buffer.raw

    log = get("ProgramLog").rstrip(b"\0").decode().strip()
    made = b"" if failed else get(what)
    nvrtc.nvrtcDestroyProgram(byref(program))
    return made, log


def usage(cubin: bytes) -> dict[str, Usage]:
    """Read registers and local memory of each kernel from a cubin, which is an ELF file.

    Its section .nv.info lists attributes: format, name, size, then (in format 4) size bytes. Of each kernel it has
    REGCOUNT and FRAME_SIZE, both as a pair: index in the table of symbols, value.
    """
    header = struct.unpack_from("<16sHHIQQQIHHHHHH", cubin)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, header[6] + 64 * i) for i in range(header[12])]

    def text(strings: int, offset: int) -> str:
        at = sections[strings][4] + offset
        return cubin[at : cubin.index(b"\0", at)].decode()

    named = {text(header[13], section[0]): section for section in sections}
    symbols, info = named[".symtab"], named[".nv.info"]
    values: dict[tuple[int, str], int] = {}
    at, end = info[4], info[4] + info[5]
    while at < end:
        kind, attribute, size = struct.unpack_from("<BBH", cubin, at)
        at += 4
        if kind == 4:
            if attribute in (REGCOUNT, FRAME_SIZE):
                symbol, value = struct.unpack_from("<II", cubin, at)
                offset = struct.unpack_from("<I", cubin, symbols[4] + 24 * symbol)[0]
                values[attribute, text(symbols[6], offset)] = value
            at += size
    kernels = [name for attribute, name in values if attribute == REGCOUNT]
    return {name: Usage(values[REGCOUNT, name], values[FRAME_SIZE, name]) for name in kernels}


def main() -> None:
    for file in cuda.files():
        for T in cuda.STORAGE.values():
            print(f"{file}.cu, T = {T}: registers (and bytes of local memory)")
            print(" " * 32, *(f"{f'sm_{a}':>8}" for a in ARCHITECTURES))
            tables = [usage(compile(cuda.source(file, T), a)[0]) for a in ARCHITECTURES]
            for name in cuda.parameters(file):
                cells = (f"{u.registers}{f'+{u.local}' if u.local else ''}" for u in (t[name] for t in tables))
                print(f"{name:>32}", *(f"{c:>8}" for c in cells))


if __name__ == "__main__":
    main()
