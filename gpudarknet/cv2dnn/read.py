"""Read a `Net` from a cfg and weights, given as paths or as buffers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import cfg
from ..network import load_network
from .net import Net

ORIGINAL: dict[str, Any] = {}  # OpenCV's readNet, once `install` has replaced it


def set_opencv_reader(reader: Any) -> None:
    """Store OpenCV's readNet, which reads all formats but Darknet's."""
    ORIGINAL["readNet"] = reader


def readNetFromDarknet(cfgFile: Any, darknetModel: Any = None) -> Net:
    """Read a network from a cfg and weights, as paths or as buffers. It runs on the CPU until a target is set.

    Raises CfgError, WeightsError.
    """
    config = cfg.read(cfgFile) if is_path(cfgFile) else cfg.parse(text(cfgFile), "cfg")
    if darknetModel is None or is_path(darknetModel):
        return Net(load_network(config, darknetModel or None, backend="numpy"))
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        weights.write_bytes(np.asarray(memoryview(darknetModel)).tobytes())
        return Net(load_network(config, weights, backend="numpy"))


def readNet(model: Any, config: Any = "", framework: str = "") -> Any:
    """Read a network like cv2.dnn.readNet: .cfg and .weights in either order; OpenCV reads all other formats."""
    for cfg_file, weights in ((config, model), (model, config)):
        if framework.lower() == "darknet" or (is_path(cfg_file) and Path(cfg_file).suffix == ".cfg"):
            return readNetFromDarknet(cfg_file, weights or None)
    import cv2

    return (ORIGINAL.get("readNet") or cv2.dnn.readNet)(model, config, framework)


def is_path(source: Any) -> bool:
    """Return whether a source is a path rather than a buffer."""
    return isinstance(source, (str, os.PathLike))


def text(buffer: Any) -> str:
    """Decode a buffer."""
    return np.asarray(memoryview(buffer)).tobytes().decode("utf-8-sig", errors="replace")
