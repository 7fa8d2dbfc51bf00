"""The resident memory of this process in bytes, and its peak, from Linux's /proc; 0 on other systems."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from .machine import read_text

PROCESS = Path("/proc/self")


def field(name: str) -> int:
    """Return a field of /proc/self/status, such as VmRSS."""
    match = re.search(rf"^{name}:\s+(\d+) kB", read_text(PROCESS / "status"), re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


def resident() -> int:
    """Return the resident memory."""
    return field("VmRSS")


def peak() -> int:
    """Return the most that was resident since `reset_peak`."""
    return field("VmHWM")


def reset_peak() -> None:
    """Start a new peak; without the permission, it stays that of the whole process."""
    with contextlib.suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")
