"""The tuning file: the fastest algorithm measured for each convolution, by device. `gpudarknet plan x.cfg -tune` writes it.

It is kept in the cache folder and applies to every network with a convolution of the same shape.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..io.atomic import atomic_write
from ..io.download import cache_dir

FILE = "convolutions.json"


def load_tuning(device: str) -> dict[str, str]:
    """Return the algorithms measured on a device: a convolution's key -> the algorithm's name. Empty if there are none."""
    try:
        algorithms = json.loads((cache_dir() / FILE).read_text(encoding="utf-8"))[device]
        return {str(key): str(name) for key, name in algorithms.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save_tuning(device: str, algorithms: dict[str, str]) -> Path:
    """Add algorithms to those stored for a device; return the file."""
    path = cache_dir() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = {}
    stored = stored if isinstance(stored, dict) else {}
    stored[device] = load_tuning(device) | algorithms
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(stored, indent=1, sort_keys=True), encoding="utf-8")
    return path
