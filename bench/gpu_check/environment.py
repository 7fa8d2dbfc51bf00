"""Say what the machine is: versions, the device, its clock and temperature, the commit. Whatever is missing is said, too.

python -m bench.gpu_check.environment       # whether there is a GPU, as JSON; in a process of its own, which may hang
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import site
import subprocess
import sysconfig
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from gpudarknet import backend as backends

from .case import EMULATOR, Case, Context, Row, Skipped

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("gpudarknet", "numpy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-cublas-cu12", "nvidia-cublas", "torch", "triton",
            "opencv-python", "opencv-python-headless")  # fmt: skip
SMI = {  # field of ours -> what nvidia-smi calls it; the last had another name before driver 535
    "sm_clock": ("clocks.sm",),
    "memory_clock": ("clocks.mem",),
    "temperature": ("temperature.gpu",),
    "power": ("power.draw",),
    "throttle_reasons": ("clocks_event_reasons.active", "clocks_throttle_reasons.active"),
}


def program(name: str) -> str:
    """Return the path of one of NVIDIA's tools: on the PATH, in CUDA's folder, or in a Python package. Raises Skipped."""
    packages = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")]
    inside = [str(path) for package in packages for path in Path(package).glob("nvidia/*/bin")]
    for path in (None, "/usr/local/cuda/bin", *inside):
        found = shutil.which(name, path=path)
        if found:
            return found
    raise Skipped(f"{name} is not installed")


def said(*command: str, seconds: float = 10) -> str:
    """Return what a program prints. Raises Skipped where it does not run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Skipped(f"{command[0]}: {e}") from None
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Skipped(f"{command[0]}: {last[-1]}")
    return done.stdout.strip()


def commit() -> tuple[str, bool | None]:
    """Return the commit and whether something has changed since: by git, else as .git/HEAD says, else "unknown"."""
    if shutil.which("git"):
        try:
            return said("git", "rev-parse", "HEAD"), bool(said("git", "status", "--porcelain", "--untracked-files=no"))
        except Skipped:
            pass
    return head(ROOT / ".git"), None


def head(git: Path) -> str:
    """Return the commit that a repository's files name; "unknown" where they do not."""
    try:
        if git.is_file():  # a worktree: the folder is somewhere else
            git = (git.parent / git.read_text().partition(":")[2].strip()).resolve()
        word = (git / "HEAD").read_text().strip()
        name = word.removeprefix("ref: ")
        if name == word:
            return word
        common = git / "commondir"
        folders = [git, git / common.read_text().strip()] if common.is_file() else [git]
        for folder in folders:
            if (folder / name).is_file():
                return (folder / name).read_text().strip()
            packed = folder / "packed-refs"
            found = re.search(rf"^(\w{{40,}}) {re.escape(name)}$", packed.read_text() if packed.is_file() else "", re.M)
            if found:
                return found[1]
    except OSError:
        pass
    return "unknown"


def device() -> Row:
    """Return what CUDA says of the device. CuPy must work here."""
    import cupy

    runtime = cupy.cuda.runtime
    found = runtime.getDeviceProperties(cupy.cuda.Device().id)
    free, total = runtime.memGetInfo()
    return {
        "device": found["name"].decode(),
        "architecture": f"sm_{found['major']}{found['minor']}",
        "multiprocessors": found["multiProcessorCount"],
        "memory_bytes": total,
        "free_bytes": free,
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
    }


def probe(backend: str = "cupy") -> Row:
    """Say why no GPU can be used ("why"), else what the device is, and its driver."""
    if backend != "cupy":
        return {"why": None, "device": platform.processor() or platform.machine(), "driver": "none", "emulated": False}
    why = backends.why_no_cupy()
    if why is not None:
        return {"why": why}
    found = device()
    try:
        driver = smi("driver_version")
    except Skipped:
        driver = f"CUDA {found['driver_cuda'] // 1000}.{found['driver_cuda'] % 1000 // 10}"
    return {"why": None, **found, "driver": driver, "emulated": found["device"].startswith(EMULATOR)}


def smi(*fields: str) -> str:
    """Return what nvidia-smi says of the first device, the first of some names of a field that it knows. Raises Skipped."""
    path = program("nvidia-smi")
    for field in fields[:-1]:
        try:
            return said(path, "-i", "0", f"--query-gpu={field}", "--format=csv,noheader")
        except Skipped:
            continue
    return said(path, "-i", "0", f"--query-gpu={fields[-1]}", "--format=csv,noheader")


def clocks() -> Row:
    """Return clock, temperature, power and why it is throttled (a mask; 0x0 and 0x1, idle, are good)."""
    return {name: smi(*fields) for name, fields in SMI.items()}


def versions(context: Context) -> Iterable[Case]:
    """List what there is on this machine, a row for each thing that may be missing."""
    yield Case("python", partial(python_packages, context))
    yield Case("device", partial(device_row, context))
    yield Case("cublas", partial(cublas, context))
    yield Case("git", git)
    yield Case("nvidia-smi", lambda: {"driver": smi("driver_version"), "limits": smi("clocks.max.sm,power.limit")})
    yield Case("torch", torch_row)
    yield Case("opencv", opencv)
    for tool in ("compute-sanitizer", "ncu"):
        yield Case(tool, partial(tool_version, tool))


def tool_version(name: str) -> Row:
    """Return the version of one of NVIDIA's tools. Raises Skipped where it is not installed."""
    return {"version": said(program(name), "--version").splitlines()[-1]}


def python_packages(context: Context) -> Row:
    """Return the versions of Python, the system and the packages that are installed."""
    found: Row = {"python": platform.python_version(), "system": platform.platform(), "backend": context.backend}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_row(context: Context) -> Row:
    """Return what CUDA says of the device."""
    if context.backend != "cupy":
        raise Skipped(f"backend {context.backend} has no device")
    return device()


def cublas(context: Context) -> Row:
    """Return the version of cuBLAS that plans use, and CuPy's."""
    from gpudarknet.plan.cuda.stream import stream_context

    if context.backend != "cupy":
        raise Skipped(f"backend {context.backend} has no cuBLAS")
    import cupy

    own = stream_context(context.be).handle
    cupys = cupy.cuda.cublas.getVersion(cupy.cuda.device.get_cublas_handle())
    return {"version": own.version(), "library": getattr(own.library, "_name", ""), "cupys": cupys}


def git() -> Row:
    """Return the commit. Raises Skipped where it cannot be known."""
    name, changed = commit()
    if name == "unknown":
        raise Skipped("the commit is unknown: there is neither git nor a .git folder")
    return {"commit": name, "changed": changed}


def torch_row() -> Row:
    """Return what PyTorch has been built for, without importing it, which takes seconds."""
    try:
        return {"version": importlib.metadata.version("torch")}
    except importlib.metadata.PackageNotFoundError:
        raise Skipped("torch is not installed") from None


def opencv() -> Row:
    """Return OpenCV's version: images are read with it."""
    try:
        return {"version": importlib.import_module("cv2").__version__}
    except ImportError as e:
        raise Skipped(f"OpenCV does not load: {e}") from None
