"""Read a `Net` from a cfg and weights, given as paths or as buffers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import cfg
from ..network import load_network
from .arguments import REQUIRED, resolve, text
from .errors import ArgumentError, NetError, opencv_errors
from .net import Net
from .replacement import OPENCV

# What readNet looks for before it looks for Darknet, in OpenCV's order.
EARLIER_FRAMEWORKS = {"caffe", "tensorflow", "tflite", "torch"}
EARLIER_SUFFIXES = {"caffemodel", "prototxt", "pb", "pbtxt", "tflite", "t7", "net"}


def buffer(value: Any) -> bytes:
    """Convert a buffer: a NumPy array, a bytearray, bytes or a list of integers."""
    try:
        return bytes(value) if isinstance(value, (bytes, list, tuple)) else np.asarray(memoryview(value)).tobytes()
    except (TypeError, ValueError):
        raise ArgumentError(f"must be a path or a buffer, not {type(value).__name__}") from None


def path(value: Any) -> str:
    """Convert a path; as in OpenCV bytes are one too, unless they have a newline or a NUL, as the content of files does."""
    if isinstance(value, bytes) and (b"\n" in value or b"\0" in value):
        raise ArgumentError("must be a path, not the content of a file")
    return text(value)


FORMS = (
    {"cfgFile": (path, REQUIRED), "darknetModel": (path, "")},
    {"bufferCfg": (buffer, REQUIRED), "bufferModel": (buffer, b"")},
)
NET_FORMS = (
    {"model": (path, REQUIRED), "config": (path, ""), "framework": (text, "")},
    {"framework": (text, REQUIRED), "bufferModel": (buffer, REQUIRED), "bufferConfig": (buffer, b"")},
)


@opencv_errors
def readNetFromDarknet(*args: Any, **kwargs: Any) -> Net:
    """Read a network from a cfg and weights. Without weights they are random.

    readNetFromDarknet(cfgFile, darknetModel=None), readNetFromDarknet(bufferCfg, bufferModel=None)

    It runs on the CPU until a target is set. Raises CfgError, WeightsError.
    """
    form, values = resolve("readNetFromDarknet", args, kwargs, *FORMS)
    source, weights = values.values()
    if form:
        return from_buffers(source, weights)
    return Net(load_network(cfg.read(source), weights or None, backend="numpy"))


def from_buffers(source: bytes, weights: bytes) -> Net:
    """Read a network from the content of its files."""
    config = cfg.parse(source.decode("utf-8-sig", errors="replace"), "cfg")
    if not weights:
        return Net(load_network(config, backend="numpy"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights"
        file.write_bytes(weights)
        return Net(load_network(config, file, backend="numpy"))


@opencv_errors
def readNet(*args: Any, **kwargs: Any) -> Any:
    """Read a network of any format.

    readNet(model, config="", framework=""), readNet(framework, bufferModel, bufferConfig=None)

    Files named *.cfg and *.weights, in either order, and the framework "darknet" are read here; OpenCV reads all others.
    """
    form, values = resolve("readNet", args, kwargs, *NET_FORMS)
    if form:
        if values["framework"].lower() == "darknet":
            return from_buffers(values["bufferConfig"], values["bufferModel"])
        return OPENCV["readNet"](*args, **kwargs)
    model, config, framework = values.values()
    name, suffixes = framework.lower(), (suffix(model), suffix(config))
    earlier = name in EARLIER_FRAMEWORKS or not EARLIER_SUFFIXES.isdisjoint(suffixes)
    if earlier or not (name == "darknet" or {"cfg", "weights"}.intersection(suffixes)):
        return OPENCV["readNet"](model, config, framework)
    if suffixes[0] == "cfg" or suffixes[1] == "weights":
        model, config = config, model
    if not config:
        raise NetError(f"readNet: {model or 'a Darknet network'} needs a cfg too: readNet(weights, cfg)")
    return readNetFromDarknet(config, model)


def suffix(name: str) -> str:
    """Return what follows the last dot of a path."""
    return name.rpartition(".")[2]
