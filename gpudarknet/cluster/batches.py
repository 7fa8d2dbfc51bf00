"""`Detect`: detection as a step of a pipeline whose rows another library hands out in batches, such as Ray Data or Dask."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.threads import set_num_threads
from ..detector import Detector
from ..errors import DataError
from ..image import formats
from ..network import Network
from .detect import checked_count
from .rows import Options, detect_rows, schema
from .shards import Item
from .tables import BYTES, IMAGE, PATH, require_pyarrow

KEY = "__key__"  # the column of names in WebDataset
FOUND = ("width", "height", "objects", "error")  # the columns that are added
CAPACITY = 2  # detectors that a process keeps
_lock = threading.Lock()  # a detector uses all threads, or the GPU, so that batches take turns


class Detect:
    """Detects the objects in the images of a batch, for `ray.data.Dataset.map_batches` and other maps over batches.

        photos = ray.data.read_binary_files("photos", include_paths=True)
        model = {"cfg": "yolov4.cfg", "weights": "yolov4.weights", "names": "coco.names"}
        found = photos.map_batches(cluster.Detect, fn_constructor_kwargs=model, batch_size=64, num_gpus=1)

    A batch is a dict of arrays or lists, a pyarrow.Table or a pandas.DataFrame; the result is a pyarrow.Table of the same rows
    with `width` and `height` in pixels, `objects` as `Detections.summary` returns them, and `error`: why an image could not be
    read, else null. The other columns are handed on, but not the one with images, except paths.

    It can be pickled. A process loads the detector once, for the first batch, also if each batch comes with its own pickle.

    cfg, weights, names, thresh, nms, max_det, letterbox, precision, backend: as in `Detector`; files are read in the process
    that detects, while a loaded Network is sent there and moved to `backend`. tiles: see `tiles.detect_boxes`. batch: images
    per forward pass. threads: of the process, by default what Ray or the environment sets. column: of the images: paths,
    contents of files, or uint8 arrays (H, W), (H, W, 3) RGB or (H, W, 4); by default `image`, `bytes` or one that is named like
    a file's suffix (`jpg`), else `path`. keep: hand on the images too. Raises DataError if a number is out of range.
    """

    def __init__(
        self,
        cfg: str | Path | Network,
        weights: str | Path | None = None,
        names: str | Path | Sequence[str] | None = None,
        *,
        thresh: float = 0.25,
        nms: float = 0.45,
        max_det: int | None = 300,
        tiles: bool = False,
        letterbox: bool = False,
        precision: str = "fp32",
        backend: str = "auto",
        batch: int = 8,
        threads: int | None = None,
        column: str | None = None,
        keep: bool = False,
    ):
        self.model = cfg, weights, names, backend
        self.options = Options(thresh, nms, max_det, tiles, letterbox, precision).check()
        self.batch, self.threads = checked_count("batch", batch), threads
        self.column, self.keep = column, keep
        self.key = uuid.uuid4().hex  # of it and its pickles

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Detect) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __call__(self, batch: Any) -> Any:
        """Return a batch's rows with what was found, as a pyarrow.Table. Raises DataError, errors of `Detector`."""
        pyarrow = require_pyarrow("cluster.Detect")
        columns = columns_of(batch)
        column = image_column(list(columns), self.column)
        contents = values(columns[column]) if column else []
        items = [
            Item.of(name, content, k) for k, (name, content) in enumerate(zip(titles(columns), contents, strict=False))
        ]
        if column and not self.keep and not (contents and all(isinstance(content, str) for content in contents)):
            del columns[column]
        if taken := [name for name in FOUND if name in columns]:
            raise DataError(f"batch: has {', '.join(taken)} already, which Detect adds; rename or drop what it has")
        others = {name: to_arrow(name, value) for name, value in columns.items()}
        with _lock:
            rows = detect_rows(load(self), items, self.options, self.batch)
        found = pyarrow.Table.from_pylist(rows, schema())
        return pyarrow.table(others | {name: found[name] for name in FOUND})


@lru_cache(CAPACITY)
def load(detect: Detect) -> Detector:
    """Return the detector of a Detect, or of another pickle of it, in this process. Raises errors of `Detector`."""
    if detect.threads is not None:
        set_num_threads(detect.threads)
    cfg, weights, names, backend = detect.model
    if isinstance(cfg, Network):
        cfg = cfg.to(backend)
    letterbox, precision = detect.options.letterbox, detect.options.precision
    return Detector(cfg, weights, names, backend, letterbox=letterbox, precision=precision)


# Columns of a batch


def columns_of(batch: Any) -> dict[str, Any]:
    """Return the columns of a batch by name: arrays or lists. Raises DataError if it is no batch."""
    if isinstance(batch, Mapping):
        return dict(batch)
    if hasattr(batch, "column_names"):  # pyarrow
        return dict(zip(batch.column_names, batch.columns, strict=True))
    if hasattr(batch, "columns"):  # pandas
        return {str(name): batch[name] for name in batch.columns}
    raise DataError(
        f"batch: a {type(batch).__name__} is not a batch; pass a dict of arrays, a pyarrow.Table or a pandas.DataFrame"
    )


def image_column(names: Sequence[str], given: str | None) -> str | None:
    """Return which column has the images; None if there are no columns. Raises DataError if that is not clear."""
    if given in names or not names:
        return given if names else None
    found = [name for name in names if name in (IMAGE, BYTES) or f".{name.lower()}" in formats.SUFFIXES]
    found = found or [name for name in names if name == PATH]
    if given is None and len(found) == 1:
        return found[0]
    reason = (
        f"no column {given}" if given else f"{'several columns' if found else 'no column'} that may have the images"
    )
    raise DataError(f"batch: has {reason} (its columns: {', '.join(names)}); name one of them with column=")


def values(column: Any) -> list[Any]:
    """Return the images of a column, one per row."""
    if hasattr(column, "to_pylist"):  # pyarrow
        contents = [one.to_numpy() if hasattr(one, "to_numpy") else one.as_py() for one in column]
    else:
        contents = list(column)
    # what Hugging Face's data sets have
    return [(one.get(BYTES) or one.get(PATH)) if isinstance(one, Mapping) else one for one in contents]


def titles(columns: Mapping[str, Any]) -> Iterator[str]:
    """Yield what messages call each row: its path or key, if it has one."""
    for name in (PATH, KEY):
        if name in columns:
            yield from map(str, values(columns[name]))
            return
    yield from (f"row {k} of a batch" for k in count())


def to_arrow(name: str, column: Any) -> Any:
    """Return a column as pyarrow has it. Raises DataError if it cannot."""
    import pyarrow

    if isinstance(column, pyarrow.Array | pyarrow.ChunkedArray):
        return column
    try:
        if isinstance(column, np.ndarray) and column.ndim > 1:
            return pyarrow.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(column))
        return pyarrow.array(column, from_pandas=True)
    except (pyarrow.ArrowException, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise DataError(
            f"batch: column {name} is nothing that pyarrow can hold ({reason}); pass batch_format='pyarrow', or drop it"
        ) from None
