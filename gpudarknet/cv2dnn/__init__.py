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

from typing import Any

from . import net as _net
from .model import ClassificationModel, DetectionModel, Model
from .net import Layer, Net
from .read import opencv_reads, readNet, readNetFromDarknet

_CONSTANTS = {name: value for name, value in vars(_net).items() if name.startswith("DNN_")}
globals().update(_CONSTANTS)

__all__ = [
    "ClassificationModel", "DetectionModel", "Layer", "Model", "Net", "install", "readNet", "readNetFromDarknet",
    *_CONSTANTS,
]  # fmt: skip


def install() -> None:
    """Put readNetFromDarknet, readNet and the models into cv2.dnn, so that a script written for OpenCV 4 runs unchanged.

    Do this before the script asks for them. cv2.dnn.readNet still reads everything that it read before.
    """
    import cv2

    if cv2.dnn.readNet is readNet:
        return
    opencv_reads(cv2.dnn.readNet)
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
