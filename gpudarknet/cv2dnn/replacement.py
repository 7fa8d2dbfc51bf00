"""OpenCV's own functions and classes, which stay in use for all other formats once `install` has replaced them."""

from __future__ import annotations

from typing import Any

import cv2

CLASSES = "Net", "Layer", "Model", "DetectionModel", "ClassificationModel"
FUNCTIONS = "readNet", "readNetFromDarknet", "getAvailableTargets"
OPENCV: dict[str, Any] = {name: getattr(cv2.dnn, name) for name in CLASSES + FUNCTIONS if hasattr(cv2.dnn, name)}


class ReplacementMeta(type):
    """The type of classes that replace one of OpenCV's with the same name: instances of either are instances of ours."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return super().__instancecheck__(instance) or isinstance(instance, OPENCV.get(cls.__name__, ()))
