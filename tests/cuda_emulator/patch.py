"""Redirect CuPy's CUDA runtime to the emulator.

The wheels link the CUDA runtime statically into `cupy_backends/cuda/api/runtime`, so no other library can replace it. But that
module keeps its symbol table: the first bytes of every `cuda...` function in it are overwritten with a jump to the emulator's
function of that name, or with `return cudaErrorNotSupported` if there is none.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import NamedTuple

NOT_SUPPORTED = 801
READ_WRITE_EXECUTE = 7
PAGE = 4096


class Symbol(NamedTuple):
    """A function in a shared library. value: its offset from the library's base address."""

    name: str
    value: int
    size: int


def functions(data: bytes) -> list[Symbol]:
    """Read the functions in the symbol table of an x86-64 ELF file."""
    begin, entry_size, count = (
        struct.unpack_from(f, data, at)[0] for f, at in (("<Q", 0x28), ("<H", 0x3A), ("<H", 0x3C))
    )
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, begin + i * entry_size) for i in range(count)]
    table = next((s for s in sections if s[1] == 2), None)  # SHT_SYMTAB
    if table is None:
        raise RuntimeError("CuPy's runtime module has no symbol table, so the CUDA emulator cannot replace it")
    strings, symbols = sections[table[6]][4], []
    for at in range(table[4], table[4] + table[5], 24):
        name, info, _, _, value, size = struct.unpack_from("<IBBHQQ", data, at)
        if info & 15 == 2 and value:  # STT_FUNC
            start = strings + name
            symbols.append(Symbol(data[start : data.index(b"\0", start)].decode(), value, size))
    return symbols


def redirect(module: Path, emulator: ctypes.CDLL) -> dict[str, bool]:
    """Load a module's shared library and redirect its CUDA functions; return which of them the emulator implements."""
    library = ctypes.CDLL(str(module))
    base = ctypes.c_uint64.from_address(library._handle).value  # the first member of glibc's struct link_map
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    done: dict[str, bool] = {}
    for name, value, _ in functions(module.read_bytes()):
        if not (name.startswith("cuda") and name[4].isupper()):
            continue
        target = getattr(emulator, name, None)
        if target is None:
            code = b"\xb8" + struct.pack("<I", NOT_SUPPORTED) + b"\xc3"  # mov eax, 801; ret
        else:
            address = ctypes.cast(target, ctypes.c_void_p).value
            code = b"\x48\xb8" + struct.pack("<Q", address) + b"\xff\xe0"  # movabs rax, address; jmp rax
        page = (base + value) & ~(PAGE - 1)
        if libc.mprotect(page, 2 * PAGE, READ_WRITE_EXECUTE):
            raise OSError(ctypes.get_errno(), "mprotect")
        ctypes.memmove(base + value, code, len(code))
        done[name] = target is not None
    return done
