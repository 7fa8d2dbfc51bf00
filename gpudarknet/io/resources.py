"""The files bundled with the package (cfg/*.cfg, *.names, *.data, ...), found by name, and the cache directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "GPUDARKNET_CACHE"


def folder() -> Path:
    """Return the folder of the bundled files: next to the package in a checkout, inside it in an installed wheel."""
    installed = Path(__file__).parent.parent / "cfg"
    return installed if installed.is_dir() else installed.parent.parent / "cfg"


def names(suffix: str = ".cfg") -> list[str]:
    """Return the names of the bundled files that end in `suffix`, without it."""
    return sorted(path.stem for path in folder().glob(f"*{suffix}"))


def find(name: str | Path, suffix: str) -> Path:
    """Return the path that a user means: an existing one, else the bundled file of that name, `suffix` optional.

    If neither exists, return `name` unchanged: the code that reads it reports what is missing.
    """
    path = Path(name)
    if path.is_file() or path.name != str(name):
        return path
    bundled = folder() / (path.name if path.suffix == suffix else path.name + suffix)
    return bundled if bundled.is_file() else path


def bundled_cfg(name: str | Path) -> Path:
    """Return the path of a cfg: `name` is a path or the name of a bundled network such as "yolov4-tiny"."""
    return find(name, ".cfg")


def cache_dir() -> Path:
    """Return the folder of downloads and tuning: GPUDARKNET_CACHE, else `gpudarknet` in the user's cache directory."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "gpudarknet" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gpudarknet"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpudarknet"
