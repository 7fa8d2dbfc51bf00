"""The tuning file: the fastest algorithm measured for each convolution, and engine for each network, by device.

`gpudarknet plan x.cfg -tune` writes it to the cache folder. An algorithm applies to every network with a convolution of the same
shape.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..io.atomic import atomic_write
from ..io.resources import cache_dir

FILE = "tuning.json"


def load_tuning(device: str) -> dict[str, str]:
    """Return what is fastest on a device: key -> the name of the algorithm or engine. Empty if nothing was measured."""
    try:
        names = json.loads((cache_dir() / FILE).read_text(encoding="utf-8"))[device]
        return {str(key): str(name) for key, name in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save_tuning(device: str, names: dict[str, str]) -> Path:
    """Add names to those stored for a device; return the file."""
    path = cache_dir() / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = {}
    stored = stored if isinstance(stored, dict) else {}
    stored[device] = load_tuning(device) | names
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(stored, indent=1, sort_keys=True), encoding="utf-8")
    return path
