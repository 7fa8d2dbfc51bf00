"""Read and write weights files; the suffix selects the format, each in a module of its own except Darknet's.

.weights: a header, then float32 arrays, layer by layer (load_weights, save_weights in src/parser.c).
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..array import Arrays
from ..errors import WeightsError, WeightsWarning
from ..graph import Node
from ..io.atomic import atomic_write
from ..layers import Layer
from ..layers.base import Init
from . import safetensors

STATISTICS = ("scale", "mean", "variance")


class Reader:
    """A .weights file, read sequentially."""

    def __init__(self, path: str | Path, file: BinaryIO):
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        head = self.file.read(12)
        if len(head) < 12:
            raise WeightsError(f"{path}: has {self.size} bytes, too short for a header; download it again")
        major, minor, _ = struct.unpack("<iii", head)
        if not (0 <= major <= 2000 and 0 <= minor <= 2000):
            raise WeightsError(f"{path}: is not a .weights file (it would be version {major}.{minor}); check the path")
        wide = major * 10 + minor >= 2  # since version 0.2 `seen` has 64 bits
        seen = self.file.read(8 if wide else 4)
        if len(seen) < (8 if wide else 4):
            raise WeightsError(f"{path}: ends inside its header; download it again")
        self.seen = int.from_bytes(seen, "little")
        self.transposed = major > 1000 or minor > 1000

    @property
    def remaining(self) -> int:
        """The number of float32 values that remain."""
        return (self.size - self.file.tell()) // 4

    def read(self, count: int) -> np.ndarray:
        """Read the next values."""
        return np.fromfile(self.file, "<f4", count).astype(np.float32, copy=False)


def stored_arrays(node: Node, reading: bool) -> Iterator[tuple[str, tuple[int, ...], Init, bool]]:
    """Yield (name, shape, init, whether the file has it) of a layer's arrays, in file order."""
    layer = node.layer
    for name, shape, init in layer.weights(*node.inputs):
        skipped = layer.dontload or (layer.dontloadscales and name in STATISTICS)
        yield name, shape, init, not (reading and skipped)


def init_weights(nodes: Sequence[Node], rng: np.random.Generator) -> list[Arrays]:
    """Return the weights with which Darknet starts training."""
    return [{name: init(rng, shape) for name, shape, init, _ in stored_arrays(node, True)} for node in nodes]


def read(
    path: str | Path, nodes: Sequence[Node], rng: np.random.Generator, upto: int | None = None
) -> tuple[list[Arrays], int]:
    """Read a file for these layers: (arrays, images seen). Layers beyond its end keep initial values.

    `upto`: read only the first `upto` layers. A file that ends between two layers is a partial one (`.conv.N`) and causes a
    WeightsWarning, as does data left over. .safetensors files are recognized by their suffix. Raises WeightsError if the
    file cannot be of this network.
    """
    if Path(path).suffix == safetensors.SUFFIX:
        return safetensors.read(path, nodes, rng, upto)
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by the next `with`; opening alone is what may fail here
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror}); check the path") from None
    with file:
        reader = Reader(path, file)
        arrays, ended = [], None
        for node in nodes:
            own: Arrays = {}
            wanted = [(name, shape) for name, shape, _, inside in stored_arrays(node, True) if inside]
            if wanted and ended is None and reader.remaining == 0:
                ended = node.index
            open_ = ended is None and (upto is None or node.index < upto)
            for name, shape, init, inside in stored_arrays(node, True):
                count = int(np.prod(shape))
                if not (inside and open_):
                    own[name] = init(rng, shape)
                    continue
                if count > reader.remaining:
                    raise WeightsError(
                        f"{path}: ends inside layer {node.index}: {name} {shape} needs {count} values, {reader.remaining} remain;"
                        " the file is truncated or belongs to another cfg"
                    )
                own[name] = unpack(reader.read(count), name, shape, node.layer, reader.transposed)
            arrays.append(own)
        if ended is not None and (upto is None or ended < upto):
            warnings.warn(
                f"{path}: ends before layer {ended}; layers {ended} to {nodes[-1].index} keep their initial values",
                WeightsWarning, stacklevel=2,
            )  # fmt: skip
        if reader.remaining and upto is None:
            warnings.warn(
                f"{path}: {reader.remaining} values remain after the last layer; is it the file of another cfg?",
                WeightsWarning, stacklevel=2,
            )  # fmt: skip
        return arrays, reader.seen


def unpack(flat: np.ndarray, name: str, shape: tuple[int, ...], layer: Layer, transposed: bool) -> np.ndarray:
    """Reshape an array; undo the two layouts in which old files store a kernel transposed."""
    if transposed and len(shape) == 2 and name.endswith("kernel"):  # a connected matrix, [inputs][outputs]
        return np.ascontiguousarray(flat.reshape(shape[::-1]).T)
    return layer.unpack(name, flat, shape)


def write(
    path: str | Path, nodes: Sequence[Node], arrays: Sequence[Arrays], seen: int, upto: int | None = None
) -> None:
    """Write the first `upto` layers (default all) with header 0.2.5, or as .safetensors. The file is written atomically."""
    if Path(path).suffix == safetensors.SUFFIX:
        return safetensors.write(path, nodes[:upto], arrays, seen)
    with atomic_write(path, WeightsError) as tmp, open(tmp, "wb") as file:
        for part in content(nodes[:upto], arrays, seen):
            file.write(part)


def content(nodes: Sequence[Node], arrays: Sequence[Arrays], seen: int) -> Iterator[bytes]:
    """Yield the content of a .weights file in parts."""
    yield struct.pack("<iiiQ", 0, 2, 5, seen)
    for node in nodes:
        for name, _, _, _ in stored_arrays(node, False):
            yield np.ascontiguousarray(arrays[node.index][name], "<f4").tobytes()
