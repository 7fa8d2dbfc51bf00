"""Read and write weights as .safetensors: a header in JSON that names every array, then their bytes.

Arrays are called LAYER.NAME, for example 7.kernel. The format is that of the safetensors library, which is not needed.
"""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..array import Arrays
from ..errors import WeightsError, WeightsWarning
from ..graph import Node
from ..io.atomic import atomic_write

SUFFIX = ".safetensors"
LARGEST = 100 << 20  # bytes of a header, the limit of the format
KINDS: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


def write(path: str | Path, nodes: Sequence[Node], arrays: Sequence[Arrays], seen: int) -> None:
    """Write the weights of these layers as float32. The file is written atomically. Raises WeightsError."""
    header: dict[str, Any] = {"__metadata__": {"format": "np", "seen": str(seen)}}
    body, begin = [], 0
    for node in nodes:
        for name, shape, _ in node.layer.weights(*node.inputs):
            body.append(np.ascontiguousarray(arrays[node.index][name], "<f4"))
            end = begin + body[-1].nbytes
            header[f"{node.index}.{name}"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
            begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned to 8 bytes
    with atomic_write(path, WeightsError) as tmp, open(tmp, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in body:
            file.write(array.tobytes())


def read(
    path: str | Path, nodes: Sequence[Node], rng: np.random.Generator, upto: int | None = None
) -> tuple[list[Arrays], int]:
    """Read a file for these layers: (arrays, images seen). Missing arrays keep initial values, with a WeightsWarning.

    upto: read only the first `upto` layers. Raises WeightsError if the file cannot be of this network.
    """
    header, data = content(path)
    arrays, missing = [], []
    for node in nodes:
        own = {}
        wanted = not node.layer.dontload and (upto is None or node.index < upto)
        for name, shape, init in node.layer.weights(*node.inputs):
            key = f"{node.index}.{name}"
            if wanted and key in header:
                own[name] = array(path, key, header[key], data, shape)
                continue
            own[name] = init(rng, shape)
            missing += [key] if wanted else []
        arrays.append(own)
    if missing:
        warnings.warn(
            f"{path}: has no {missing[0]} and {len(missing) - 1} other arrays of this cfg; they keep their initial values",
            WeightsWarning, stacklevel=2,
        )  # fmt: skip
    seen = header.get("__metadata__", {}).get("seen", "0")
    return arrays, int(seen) if seen.isdecimal() else 0


def content(path: str | Path) -> tuple[dict[str, Any], memoryview]:
    """Return a file's header and its data. Raises WeightsError."""
    try:
        whole = memoryview(Path(path).read_bytes())
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror}); check the path") from None
    length = int.from_bytes(whole[:8], "little")
    try:
        if not 2 <= length <= min(LARGEST, len(whole) - 8):
            raise ValueError
        header = json.loads(bytes(whole[8 : 8 + length]))
        if not isinstance(header, dict):
            raise ValueError
    except ValueError:
        raise WeightsError(f"{path}: is not a .safetensors file, or is truncated; download or write it again") from None
    return header, whole[8 + length :]


def array(path: str | Path, key: str, info: Any, data: memoryview, shape: tuple[int, ...]) -> np.ndarray:
    """Return one array as float32. Raises WeightsError if it does not have the shape that the layer needs."""
    try:
        kind, (begin, end) = KINDS[info["dtype"]], info["data_offsets"]
        stored_arrays = tuple(info["shape"])
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"{path}: {key} is not described as one of {', '.join(KINDS)}; write it again") from None
    if stored_arrays != shape:
        raise WeightsError(
            f"{path}: {key} has shape {stored_arrays}, the cfg needs {shape}; the file belongs to another cfg"
        )
    if not 0 <= begin <= end <= len(data) or end - begin != int(np.prod(shape)) * kind.itemsize:
        raise WeightsError(f"{path}: ends inside {key}; the file is truncated, download or write it again")
    return np.frombuffer(data[begin:end], kind).astype(np.float32).reshape(shape)
