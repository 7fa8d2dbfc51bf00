"""The structure of the check: a stage runs in a separate process, its cases in sequence, with one row per case."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpudarknet import backend as backends
from gpudarknet.backend import Backend

Row = dict[str, Any]

EMULATOR = "CUDA emulator"  # prefix of an emulated device's name
# Sticky CUDA errors, after which every call in the process fails: launch timeout, illegal address, misaligned address, illegal
# instruction and the like, from driver_types.h.
STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 720, 721})


class Skipped(Exception):
    """A case's requirement is missing on this machine; the message says which."""


@dataclass(frozen=True)
class Context:
    """What cases run with: the backend's name, and whether to run everything small."""

    backend: str = "cupy"
    small: bool = False

    @property
    def time_scale(self) -> float:
        """The factor for time limits: small runs are for emulated devices, which are slow."""
        return 5.0 if self.small else 1.0

    @property
    def be(self) -> Backend:
        """The backend."""
        return backends.get(self.backend)

    def wait(self) -> None:
        """Wait for the device to finish. Raises its asynchronous errors."""
        wait(self.be)

    def release(self) -> None:
        """Return unused pool memory to the device, PyTorch's too."""
        gc.collect()
        if self.backend == "cupy":
            self.be.xp.get_default_memory_pool().free_all_blocks()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def unusable(self, error: BaseException | None) -> str:
        """Return why the device is unusable in this process after an error; "" if it is usable."""
        if getattr(error, "status", None) in STICKY:
            return str(error)
        try:
            self.wait()
            if self.backend == "cupy":
                self.be.xp.zeros(1).get()
        except Exception as e:
            return str(e) or type(e).__name__
        return ""


def wait(be: Backend) -> None:
    """Wait for a backend's device to finish."""
    if be.name == "cupy":
        be.xp.cuda.Device().synchronize()


@dataclass(frozen=True)
class Case:
    """A case: run() returns the fields of its row; "failed": [...] lists what is wrong.

    name: stable, so that the case can be rerun. limit: seconds; None: half the stage's.
    """

    name: str
    run: Callable[[], Row]
    limit: float | None = None


@dataclass(frozen=True)
class Stage:
    """A stage of the check. cases(context) lists its cases, always in the same order.

    limit: seconds for the whole stage, including Python's start. checks: the stage checks correctness, so every case must run;
    a stage that measures starts no new case when most of its time is used. env: environment variables.
    """

    name: str
    cases: Callable[[Context], Iterable[Case]]
    limit: float
    checks: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def selected(self, context: Context, only: str = "") -> list[Case]:
        """Return its cases, or those that `only` selects: a stage's name, a case's, or a prefix up to a slash."""
        return [case for case in self.cases(context) if matches(f"{self.name}/{case.name}", only)]


def matches(name: str, only: str) -> bool:
    """Return whether `only` selects a case: its whole name, a prefix up to a slash, or "" for all."""
    return not only or f"{name}/".startswith(only.rstrip("/") + "/")
