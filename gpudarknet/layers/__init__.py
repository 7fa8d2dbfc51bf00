"""The layers, one module per [section]. Importing this package imports them all, which fills `SECTIONS`."""

from importlib import import_module
from pkgutil import iter_modules

from .base import SECTIONS, DetectionHead, ForwardContext, Layer, LossContext, Shape, ShapeError

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["SECTIONS", "DetectionHead", "ForwardContext", "Layer", "LossContext", "Shape", "ShapeError"]
