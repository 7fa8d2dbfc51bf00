"""Describe the machine: versions, the device, its clocks and temperature, the commit. Missing items are reported too."""

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
SMI = {  # our field -> nvidia-smi's names for it; the last was renamed in driver 535
    "sm_clock": ("clocks.sm",),
    "memory_clock": ("clocks.mem",),
    "temperature": ("temperature.gpu",),
    "power": ("power.draw",),
    "throttle_reasons": ("clocks_event_reasons.active", "clocks_throttle_reasons.active"),
}


def find_tool(name: str) -> str:
    """Return the path of an NVIDIA tool: on the PATH, in CUDA's folder, or in a Python package. Raises Skipped."""
    packages = [*site.getsitepackages(), site.getusersitepackages(), sysconfig.get_path("purelib")]
    bins = [str(path) for package in packages for path in Path(package).glob("nvidia/*/bin")]
    for path in (None, "/usr/local/cuda/bin", *bins):
        executable = shutil.which(name, path=path)
        if executable:
            return executable
    raise Skipped(f"{name} is not installed")


def output_of(*command: str, seconds: float = 10) -> str:
    """Return a program's output. Raises Skipped if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Skipped(f"{command[0]}: {e}") from None
    if done.returncode:
        last = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Skipped(f"{command[0]}: {last[-1]}")
    return done.stdout.strip()


def commit() -> tuple[str, bool | None]:
    """Return the commit and whether the checkout is dirty: from git, else from .git/HEAD, else "unknown"."""
    if shutil.which("git"):
        try:
            return output_of("git", "rev-parse", "HEAD"), bool(
                output_of("git", "status", "--porcelain", "--untracked-files=no")
            )
        except Skipped:
            pass
    return git_head(ROOT / ".git"), None


def git_head(git: Path) -> str:
    """Return the commit of HEAD from a repository's files, or "unknown"."""
    try:
        if git.is_file():  # a worktree: the folder is elsewhere
            git = (git.parent / git.read_text().partition(":")[2].strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head
        common = git / "commondir"
        folders = [git, git / common.read_text().strip()] if common.is_file() else [git]
        for folder in folders:
            if (folder / name).is_file():
                return (folder / name).read_text().strip()
            packed = folder / "packed-refs"
            match = re.search(rf"^(\w{{40,}}) {re.escape(name)}$", packed.read_text() if packed.is_file() else "", re.M)
            if match:
                return match[1]
    except OSError:
        pass
    return "unknown"


def device() -> Row:
    """Return CUDA's description of the device. Needs a working CuPy."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    free, total = runtime.memGetInfo()
    return {
        "device": properties["name"].decode(),
        "architecture": f"sm_{properties['major']}{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": total,
        "free_bytes": free,
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
    }


def probe(backend: str = "cupy") -> Row:
    """Return why no GPU is usable ("why"), or else the device and its driver."""
    if backend != "cupy":
        return {"why": None, "device": platform.processor() or platform.machine(), "driver": "none", "emulated": False}
    why = backends.why_no_cupy()
    if why is not None:
        return {"why": why}
    properties = device()
    try:
        driver = smi("driver_version")
    except Skipped:
        driver = f"CUDA {properties['driver_cuda'] // 1000}.{properties['driver_cuda'] % 1000 // 10}"
    return {"why": None, **properties, "driver": driver, "emulated": properties["device"].startswith(EMULATOR)}


def smi(*fields: str) -> str:
    """Query nvidia-smi for a field of the first device, by the first of its names that is known. Raises Skipped."""
    path = find_tool("nvidia-smi")
    for field in fields[:-1]:
        try:
            return output_of(path, "-i", "0", f"--query-gpu={field}", "--format=csv,noheader")
        except Skipped:
            continue
    return output_of(path, "-i", "0", f"--query-gpu={fields[-1]}", "--format=csv,noheader")


def clocks() -> Row:
    """Return clocks, temperature, power and throttle reasons (a mask; 0x0 and 0x1, idle, are fine)."""
    return {name: smi(*fields) for name, fields in SMI.items()}


def versions(context: Context) -> Iterable[Case]:
    """List this machine's software and tools, one case for each that may be missing."""
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
    """Return the version of an NVIDIA tool. Raises Skipped if it is not installed."""
    return {"version": output_of(find_tool(name), "--version").splitlines()[-1]}


def python_packages(context: Context) -> Row:
    """Return the versions of Python, the system and the installed packages."""
    versions: Row = {"python": platform.python_version(), "system": platform.platform(), "backend": context.backend}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def device_row(context: Context) -> Row:
    """Return CUDA's description of the device."""
    if context.backend != "cupy":
        raise Skipped(f"backend {context.backend} has no device")
    return device()


def cublas(context: Context) -> Row:
    """Return the versions of the cuBLAS that plans use and of CuPy's."""
    from gpudarknet.plan.cuda.stream import stream_context

    if context.backend != "cupy":
        raise Skipped(f"backend {context.backend} has no cuBLAS")
    import cupy

    own = stream_context(context.be).handle
    cupys = cupy.cuda.cublas.getVersion(cupy.cuda.device.get_cublas_handle())
    return {"version": own.version(), "library": getattr(own.library, "_name", ""), "cupy_version": cupys}


def git() -> Row:
    """Return the commit. Raises Skipped if it is unknown."""
    name, dirty = commit()
    if name == "unknown":
        raise Skipped("the commit is unknown: neither git nor a .git folder is available")
    return {"commit": name, "dirty": dirty}


def torch_row() -> Row:
    """Return PyTorch's version without importing it, which takes seconds."""
    try:
        return {"version": importlib.metadata.version("torch")}
    except importlib.metadata.PackageNotFoundError:
        raise Skipped("torch is not installed") from None


def opencv() -> Row:
    """Return OpenCV's version, which reads images."""
    try:
        return {"version": importlib.import_module("cv2").__version__}
    except ImportError as e:
        raise Skipped(f"OpenCV does not import: {e}") from None
