"""What a check is made of: a stage runs in a process of its own, its cases one after the other, a row for each."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpudarknet import backend as backends
from gpudarknet.backend import Backend

Row = dict[str, Any]

EMULATOR = "CUDA emulator"  # how the name of an emulated device begins
# CUDA's errors after which nothing works in the process any more: launch timeout, illegal address, misaligned address, illegal
# instruction and the like, from driver_types.h.
STICKY = frozenset({214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 720, 721})


class Skipped(Exception):
    """What a case needs is not on this machine; the message says what."""


@dataclass(frozen=True)
class Context:
    """What cases are run with: the backend by name, and whether everything is to be small."""

    backend: str = "cupy"
    small: bool = False

    @property
    def time_scale(self) -> float:
        """What limits are multiplied by: a small run is for emulated devices, which take long."""
        return 5.0 if self.small else 1.0

    @property
    def be(self) -> Backend:
        """The backend."""
        return backends.get(self.backend)

    def wait(self) -> None:
        """Wait until the device has done what it was asked. Raises what went wrong there."""
        wait(self.be)

    def release(self) -> None:
        """Give memory that nobody uses any more back to the device, PyTorch's too."""
        gc.collect()
        if self.backend == "cupy":
            self.be.xp.get_default_memory_pool().free_all_blocks()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def unusable(self, error: BaseException | None) -> str:
        """Say why nothing works in this process any more after an error; "" if something does."""
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
    """Wait until the device of a backend has done what it was asked."""
    if be.name == "cupy":
        be.xp.cuda.Device().synchronize()


@dataclass(frozen=True)
class Case:
    """A row of the result: run() returns its fields; "failed": [...] among them says what is wrong.

    name: stable, so that the row can be run again. limit: seconds; None: half the stage's.
    """

    name: str
    run: Callable[[], Row]
    limit: float | None = None


@dataclass(frozen=True)
class Stage:
    """A part of the check. cases(context) lists what it does, always in the same order.

    limit: seconds for all of it, starting Python included. checks: it says what is right, so every case must run; of a stage
    that measures, no case is begun when most of its time is over. env: variables it runs under.
    """

    name: str
    cases: Callable[[Context], Iterable[Case]]
    limit: float
    checks: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def chosen(self, context: Context, only: str = "") -> list[Case]:
        """Return its cases, or those that a name means: the stage's, a case's, or the beginning of one up to a slash."""
        return [case for case in self.cases(context) if matches(f"{self.name}/{case.name}", only)]


def matches(name: str, only: str) -> bool:
    """Say whether a row is meant: by its whole name, by a part of it up to a slash, or by nothing, which means all."""
    return not only or f"{name}/".startswith(only.rstrip("/") + "/")
