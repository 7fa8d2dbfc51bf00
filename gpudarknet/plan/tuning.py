"""The fastest algorithm measured for each convolution, and engine for each network, by device.

`gpudarknet plan x.cfg -tune` writes them to the tuning file in the cache folder. An algorithm applies to every network with a
convolution of the same shape. Files of the same format in cfg/tuning/ ship with the package:

    {"NVIDIA L4, cuBLAS 12.9.1, fp16, kernels 0a1b2c3d": {"default": "implicit_gemm", "8x64x52x52x...": "im2col_gemm"}}

They apply whatever the version of cuBLAS. "default" names the algorithm for convolutions that were not measured. Measurements of
other kernels than the present ones apply nowhere.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..io import resources
from ..io.atomic import atomic_write

FILE = "tuning.json"
SHIPPED = "tuning"  # the folder
DEFAULT = "default"
CUBLAS = re.compile(r", cuBLAS [\d.]+")
KERNELS = re.compile(r", kernels \w+")


def load_tuning(device: str) -> dict[str, str]:
    """Return what is fastest on a device: key -> the name of the algorithm or engine. Empty if nothing was measured.

    What was measured here replaces what ships.
    """
    names: dict[str, str] = {}
    for path in sorted((resources.folder() / SHIPPED).glob("*.json")):
        shipped = _read(path)
        for other in sorted(shipped, key=lambda other: other == device):  # this version of cuBLAS last: it counts
            if CUBLAS.sub("", other) == CUBLAS.sub("", device):
                names |= shipped[other]
    return names | _read(_path()).get(device, {})


def save_tuning(device: str, names: dict[str, str]) -> Path:
    """Add names to those stored for a device, and remove those measured with other kernels; return the file."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = _read(path)
    names = stored.get(device, {}) | names
    kept = {other: stored[other] for other in stored if KERNELS.sub("", other) != KERNELS.sub("", device)}
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps({**kept, device: names}, indent=1, sort_keys=True), encoding="utf-8")
    return path


def _path() -> Path:
    return resources.cache_dir() / FILE


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Read a file: device -> key -> name. What is not of this form is ignored."""
    try:
        devices = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(device): {str(key): str(name) for key, name in names.items()}
            for device, names in devices.items()
            if isinstance(names, dict)
        }
    except (OSError, ValueError, AttributeError):
        return {}
