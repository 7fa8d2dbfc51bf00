"""Build the emulator's shared libraries with g++, once for each CuPy version and each state of their source.

lib/libcuda.so.1 (runtime and driver), lib/libnvrtc.so.N, lib/libcublas.so.N and an empty lib/libcublasLt.so.N, for CUDA N.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCE = HERE / "src"
SHIM = HERE.parent / "host_cuda"
COMPILER = os.environ.get("CXX") or shutil.which("g++")
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fno-gnu-unique", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w"]


class Missing(Exception):
    """A requirement of the emulator is missing on this machine; the message says which."""


class CuPy(NamedTuple):
    """An installed wheel of CuPy. cuda: 12 or 13."""

    site: Path
    version: str
    cuda: int

    def module(self, name: str) -> Path:
        """Return the shared library of one of its modules, such as "cuda/api/runtime"."""
        return next((self.site / "cupy_backends" / name).parent.glob(Path(name).name + ".*.so"))


def cupy() -> CuPy:
    """Find the installed wheel without importing it. Raises Missing."""
    import importlib.metadata

    for cuda in (12, 13):
        try:
            version = importlib.metadata.version(f"cupy-cuda{cuda}x")
        except importlib.metadata.PackageNotFoundError:
            continue
        spec = importlib.util.find_spec("cupy_backends")
        if spec is not None and spec.submodule_search_locations:
            return CuPy(Path(spec.submodule_search_locations[0]).parent, version, cuda)
    raise Missing("neither cupy-cuda12x nor cupy-cuda13x is installed")


def headers(wheel: CuPy) -> Path:
    """Return the folder of CUDA's headers, from pip's CUDA runtime package. Raises Missing."""
    names = ("cuda_runtime",) if wheel.cuda == 12 else ("cu13", "cuda_runtime")
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for name in names:
            path = Path(folder, name, "include")
            if (path / "cuda_runtime_api.h").exists() and version(path) // 1000 == wheel.cuda:
                return path
    package = "nvidia-cuda-runtime-cu12" if wheel.cuda == 12 else "nvidia-cuda-runtime"
    raise Missing(f"CUDA's headers are missing; pip install {package}")


def version(include: Path) -> int:
    """Return CUDART_VERSION: 12090 is CUDA 12.9."""
    match = re.search(r"#define CUDART_VERSION +(\d+)", (include / "cuda_runtime_api.h").read_text(encoding="utf-8"))
    return int(match[1]) if match else 0


def check_machine() -> None:
    """Raise Missing if the emulator cannot run on this machine."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise Missing("it needs Linux on x86-64")
    if COMPILER is None:
        raise Missing("it needs g++ (or set CXX to a C++17 compiler)")


class Build(NamedTuple):
    """A build. folder: everything the emulator writes; lib: the libraries; environment: for nvrtc.cpp."""

    folder: Path
    lib: Path
    environment: dict[str, str]


def build(wheel: CuPy) -> Build:
    """Build the libraries unless they exist. Raises Missing, and RuntimeError with the compiler's messages."""
    check_machine()
    include = headers(wheel)
    files = [
        *sorted(path for path in SOURCE.rglob("*") if path.is_file()),
        SHIM / "shim.h",
        SHIM / "mma.h",
        Path(__file__),
    ]
    digest = hashlib.sha256("\0".join([str(COMPILER), wheel.version, str(wheel.cuda), str(include)]).encode())
    for path in files:
        digest.update(path.read_bytes())
    key = digest.hexdigest()[:16]
    root = Path(os.environ.get("CUDA_EMULATOR_CACHE") or HERE / "build")
    folder = root / f"cuda{wheel.cuda}-{wheel.version}-{key}"
    kernel_flags = [*FLAGS, "-shared", "-fpermissive", f"-I{folder / 'include'}", f"-I{SOURCE / 'include'}", f"-I{SHIM}",
                    f"-I{wheel.site / 'cupy' / '_core' / 'include'}"]  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "build.lock", "w") as lock:  # one of several processes builds
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "lib").exists():
            make(wheel, include, folder, kernel_flags)
    environment = {
        "CUDA_EMULATOR_BUILD": str(folder), "CUDA_EMULATOR_KEY": key, "CUDA_EMULATOR_CXX": str(COMPILER),
        "CUDA_EMULATOR_FLAGS": " ".join(kernel_flags), "CUDA_EMULATOR_VERSION": str(version(include)),
        "CUPY_CACHE_DIR": str(folder / "kernels"),  # cubins of emulated devices are kept separate from real ones
        "CUPY_ACCELERATORS": "",  # no CUB, which is linked into the wheel as machine code of GPUs
    }  # fmt: skip
    return Build(folder, folder / "lib", environment)


def make(wheel: CuPy, include: Path, folder: Path, kernel_flags: list[str]) -> None:
    """Compile the libraries and the precompiled header into a folder."""
    work = Path(f"{folder}.{os.getpid()}")
    (work / "lib").mkdir(parents=True)
    (work / "include").mkdir()
    try:
        libraries(wheel, include, work)
        for name in ("prelude.h", "entry.h"):
            shutil.copy(SOURCE / name, work / "include")
        header = str(work / "include" / "prelude.h")
        flags = [f"-I{work / 'include'}" if f == f"-I{folder / 'include'}" else f for f in kernel_flags]
        compile([*flags, "-x", "c++-header", header, "-o", header + ".gch"])
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("include", "lib"):  # lib last: its existence marks a complete build
            shutil.rmtree(folder / name, ignore_errors=True)
            os.rename(work / name, folder / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def libraries(wheel: CuPy, include: Path, work: Path) -> None:
    """Compile the libraries into work/lib."""
    lib, n = work / "lib", wheel.cuda
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-shared", "-Wall", "-Werror", f"-I{SOURCE / 'host'}", f"-I{include}"]
    script, missing = work / "cublas.map", work / "missing.cpp"
    script.write_text(
        f"libcublas.so.{n} {{ global: cublas*; emulator*; local: *; }};\n"
    )  # the versions that CuPy asks for
    missing.write_text(stubs(wheel))

    def library(name: str, *arguments: str) -> None:
        compile([*flags, *arguments, "-o", str(lib / name), f"-Wl,-soname,{name}"])

    def source(name: str) -> str:
        return str(SOURCE / f"{name}.cpp")

    def compiled(name: str) -> str:
        compile([*flags, "-c", source(name), "-o", str(work / f"{name}.o")])
        return str(work / f"{name}.o")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        nvrtc = pool.submit(library, f"libnvrtc.so.{n}", source("nvrtc"))
        empty = pool.submit(library, f"libcublasLt.so.{n}", "-x", "c++", os.devnull)
        library("libcuda.so.1", *pool.map(compiled, ("devices", "memory", "streams", "modules")), "-ldl")
        library(
            f"libcublas.so.{n}",
            source("cublas"),
            str(missing),
            f"-Wl,--version-script={script}",
            f"-L{lib}",
            "-l:libcuda.so.1",
        )
        nvrtc.result(), empty.result()


def stubs(wheel: CuPy) -> str:
    """Return stubs for the cuBLAS functions that CuPy's module needs to load but cublas.cpp lacks."""
    symbols = subprocess.run(["nm", "-D", "--undefined-only", str(wheel.module("cuda/libs/cublas"))],
                             text=True, capture_output=True, check=True).stdout  # fmt: skip
    ours = set(re.findall(r"EXPORT int (cublas\w+)\(", (SOURCE / "cublas.cpp").read_text(encoding="utf-8")))
    names = sorted(set(re.findall(r"\b(cublas\w+)", symbols)) - ours)
    lines = [f'EXPORT int {name}() {{ fprintf(stderr, "[CUDA emulator] {name} is not emulated\\n"); return 15; }}'
             for name in names]  # fmt: skip
    return '#include <cstdio>\n#define EXPORT extern "C" __attribute__((visibility("default")))\n' + "\n".join(lines)


def compile(arguments: list[str]) -> None:
    """Run the compiler. Raises RuntimeError with its messages."""
    done = subprocess.run([str(COMPILER), *arguments], text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{COMPILER} {' '.join(arguments)}\n{done.stderr}")
