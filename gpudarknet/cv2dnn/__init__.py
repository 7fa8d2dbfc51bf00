"""The Darknet part of OpenCV 4's `cv2.dnn`, which OpenCV 5 no longer has. One line changes:

    from gpudarknet import cv2dnn                       # and cv2dnn.readNetFromDarknet instead of cv2.dnn...
    net = cv2dnn.readNetFromDarknet("yolov4.cfg", "yolov4.weights")

or, for a script that is not to be touched:

    import gpudarknet.cv2dnn; gpudarknet.cv2dnn.install()     # puts the names below into cv2.dnn

Everything else, such as blobFromImage and NMSBoxes, is OpenCV's own. DNN_TARGET_CUDA chooses the GPU; without a working
one there is a RuntimeWarning and the CPU goes on. Two things differ from OpenCV 4 because it was wrong: [shortcut] adds all
its sources and applies its weights, and layers that it could not read (reorg3d, local, Gaussian_yolo, ...) work.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import cfg
from ..network import load_network
from . import net as _net
from .model import ClassificationModel, DetectionModel, Model
from .net import Layer, Net

_CONSTANTS = {name: value for name, value in vars(_net).items() if name.startswith("DNN_")}
globals().update(_CONSTANTS)

__all__ = [
    "ClassificationModel", "DetectionModel", "Layer", "Model", "Net", "install", "readNet", "readNetFromDarknet",
    *_CONSTANTS,
]  # fmt: skip


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

    return (_original or cv2.dnn.readNet)(model, config, framework)


def is_path(source: Any) -> bool:
    """Say whether a source is a path; else it is a buffer."""
    return isinstance(source, (str, os.PathLike))


def text(buffer: Any) -> str:
    """Return a buffer's text."""
    return np.asarray(memoryview(buffer)).tobytes().decode("utf-8", errors="replace")


_original: Any = None  # cv2.dnn.readNet, once `install` has replaced it


def install() -> None:
    """Put readNetFromDarknet, readNet and the models into cv2.dnn, so that a script written for OpenCV 4 runs unchanged.

    Do this before the script asks for them. cv2.dnn.readNet still reads everything that it read before.
    """
    global _original
    import cv2

    if _original is not None:
        return
    _original = cv2.dnn.readNet
    for name in ("readNetFromDarknet", "readNet", "DetectionModel", "ClassificationModel"):
        setattr(cv2.dnn, name, globals()[name])
        if hasattr(cv2, f"dnn_{name}"):  # the older spelling, cv2.dnn_DetectionModel
            setattr(cv2, f"dnn_{name}", globals()[name])
    for name, value in _CONSTANTS.items():
        if not hasattr(cv2.dnn, name):
            setattr(cv2.dnn, name, value)


def __getattr__(name: str) -> Any:
    """Give OpenCV's own cv2.dnn names: blobFromImage, NMSBoxes, ..."""
    if name.startswith("__"):
        raise AttributeError(name)
    import cv2

    return getattr(cv2.dnn, name)
