"""The layers, one file per [section]; importing this package fills `base.SECTIONS`."""

from . import (
    activation,
    avgpool,
    batchnorm,
    connected,
    conv_lstm,
    convolutional,
    crop,
    detection,
    dropout,
    empty,
    gaussian_yolo,
    implicit,
    local,
    local_avgpool,
    maxpool,
    normalization,
    recurrent,
    region,
    reorg,
    route,
    sam,
    scale_channels,
    shortcut,
    softmax,
    sort_shortcut,
    upsample,
    yolo,
)
from .base import SECTIONS, DetectionHead, ForwardContext, Layer, LossContext, Shape, ShapeError

__all__ = [
    "SECTIONS", "DetectionHead", "ForwardContext", "Layer", "LossContext", "Shape", "ShapeError",
    "activation", "avgpool", "batchnorm", "connected", "conv_lstm", "convolutional", "crop", "detection", "dropout",
    "empty", "gaussian_yolo", "implicit", "local", "local_avgpool", "maxpool", "normalization", "recurrent", "region",
    "reorg", "route", "sam", "scale_channels", "shortcut", "softmax", "sort_shortcut", "upsample", "yolo",
]  # fmt: skip
