"""OpenCV-compatible API: the Darknet part of OpenCV 4's `cv2.dnn`, which OpenCV 5 removed.

Change one line:

    from gpudarknet import cv2dnn                       # then cv2dnn.readNetFromDarknet instead of cv2.dnn...
    net = cv2dnn.readNetFromDarknet("yolov4.cfg", "yolov4.weights")

or, to leave a script unchanged:

    import gpudarknet.cv2dnn; gpudarknet.cv2dnn.install()     # puts the names below into cv2.dnn

Everything else, such as blobFromImage and NMSBoxes, is OpenCV's own. DNN_TARGET_CUDA selects the GPU; without a working
one, a RuntimeWarning is issued and the CPU is used. Every error is a DarknetError and a cv2.error. Two bugs of OpenCV 4 are
not reproduced: [shortcut] adds all its sources and applies its weights, and layers that OpenCV could not read (reorg3d,
local, Gaussian_yolo, ...) work; docs/opencv.md lists all differences.
"""

from __future__ import annotations

from typing import Any

import cv2

from . import constants
from .constants import getAvailableTargets
from .layer import Layer
from .model import ClassificationModel, DetectionModel, Model
from .net import Net
from .read import readNet, readNetFromDarknet
from .replacement import CLASSES, FUNCTIONS

_CONSTANTS = constants.NAMES
globals().update(_CONSTANTS)

__all__ = [
    "ClassificationModel", "DetectionModel", "Layer", "Model", "Net", "getAvailableTargets", "install", "readNet",
    "readNetFromDarknet", *_CONSTANTS,
]  # fmt: skip
__all__ += sorted(name for name in dir(cv2.dnn) if not name.startswith("_") and name not in __all__)


def install() -> None:
    """Put the names of this module into cv2.dnn, so that a script written for OpenCV 4 runs unchanged.

    Call it before the script uses them. cv2.dnn.readNet still reads all other formats, and the models and isinstance still
    accept their networks.
    """
    for name in (*FUNCTIONS, *CLASSES):
        setattr(cv2.dnn, name, globals()[name])
    for name in CLASSES:  # the aliases cv2.dnn_Net, cv2.dnn_DetectionModel, ...
        setattr(cv2, f"dnn_{name}", globals()[name])
    for name, value in _CONSTANTS.items():
        if not hasattr(cv2.dnn, name):
            setattr(cv2.dnn, name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Forward all other names to cv2.dnn: blobFromImage, NMSBoxes, ..."""
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(cv2.dnn, name)
