"""OpenCV-compatible API: the Darknet part of OpenCV 4's `cv2.dnn`, which OpenCV 5 removed.

Change one line:

    from gpudarknet import cv2dnn                       # then cv2dnn.readNetFromDarknet instead of cv2.dnn...
    net = cv2dnn.readNetFromDarknet("yolov4.cfg", "yolov4.weights")

or, to leave a script unchanged:

    import gpudarknet.cv2dnn; gpudarknet.cv2dnn.install()     # adds the names below to cv2.dnn

Everything else, such as blobFromImage and NMSBoxes, is OpenCV's own. DNN_TARGET_CUDA selects the GPU; without a working
one, a RuntimeWarning is issued and the CPU is used. Two bugs of OpenCV 4 are not reproduced: [shortcut] adds all its
sources and applies its weights, and layers that OpenCV could not read (reorg3d, local, Gaussian_yolo, ...) work.
"""

from __future__ import annotations

from typing import Any

from . import net as _net
from .model import ClassificationModel, DetectionModel, Model
from .net import Layer, Net
from .read import readNet, readNetFromDarknet, set_opencv_reader

_CONSTANTS = {name: value for name, value in vars(_net).items() if name.startswith("DNN_")}
globals().update(_CONSTANTS)

__all__ = [
    "ClassificationModel", "DetectionModel", "Layer", "Model", "Net", "install", "readNet", "readNetFromDarknet",
    *_CONSTANTS,
]  # fmt: skip


def install() -> None:
    """Add readNetFromDarknet, readNet and the models to cv2.dnn, so that a script written for OpenCV 4 runs unchanged.

    Call it before the script uses them. cv2.dnn.readNet still reads all other formats.
    """
    import cv2

    if cv2.dnn.readNet is readNet:
        return
    set_opencv_reader(cv2.dnn.readNet)
    for name in ("readNetFromDarknet", "readNet", "DetectionModel", "ClassificationModel"):
        setattr(cv2.dnn, name, globals()[name])
        if hasattr(cv2, f"dnn_{name}"):  # the alias cv2.dnn_DetectionModel
            setattr(cv2, f"dnn_{name}", globals()[name])
    for name, value in _CONSTANTS.items():
        if not hasattr(cv2.dnn, name):
            setattr(cv2.dnn, name, value)


def __getattr__(name: str) -> Any:
    """Forward all other names to cv2.dnn: blobFromImage, NMSBoxes, ..."""
    if name.startswith("__"):
        raise AttributeError(name)
    import cv2

    return getattr(cv2.dnn, name)
