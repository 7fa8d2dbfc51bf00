"""Make a `Net` of a cfg and weights, as files or as buffers."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import cfg
from ..network import load_network
from .net import Net

OPENCV: dict[str, Any] = {}  # cv2.dnn.readNet, once `install` has replaced it


def opencv_reads(reader: Any) -> None:
    """Remember OpenCV's own readNet, for what is not Darknet's."""
    OPENCV["readNet"] = reader


def readNetFromDarknet(cfgFile: Any, darknetModel: Any = None) -> Net:
    """Read a network: cfg and weights as paths, or as buffers of their bytes. It runs on the CPU until a target is set.

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
    """Read a network as cv2.dnn.readNet does: .cfg and .weights in either order are read here, all else by OpenCV."""
    for cfg_file, weights in ((config, model), (model, config)):
        if framework.lower() == "darknet" or (is_path(cfg_file) and Path(cfg_file).suffix == ".cfg"):
            return readNetFromDarknet(cfg_file, weights or None)
    import cv2

    return (OPENCV.get("readNet") or cv2.dnn.readNet)(model, config, framework)


def is_path(source: Any) -> bool:
    """Say whether a source is a path; else it is a buffer."""
    return isinstance(source, (str, os.PathLike))


def text(buffer: Any) -> str:
    """Return a buffer's text."""
    return np.asarray(memoryview(buffer)).tobytes().decode("utf-8", errors="replace")
