"""Rows: what a job writes about each image, and the files that hold them.

A row is a dict: `image`, the name as listed; `width` and `height` in pixels; `objects`, as `Detections.summary` returns them;
`error`, why the image could not be read, else None; and `shard`, the hashes of the shard and of the names in its file (see
`Shard.key`), which show whether the file is whole and belongs to the images as they are listed now. In the form "labels" it has
`label` too: the name of the image's label file, None with an error.
"""

from __future__ import annotations

import io
import json
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..detector import Detector, check_fractions, check_max_det
from ..errors import DataError, ImageError
from ..image import Image
from ..io.text import valid_utf8
from ..network import PRECISIONS
from ..tiles import run_images
from .shards import Item
from .tables import require_pyarrow

Row = dict[str, Any]
LABELS = "labels"  # folder of label files


class LabelFile(NamedTuple):
    """What a row has as `label` until it is written: the name of the image's label file, and what is in it."""

    name: str
    text: str


class Options(NamedTuple):
    """What decides which objects are found in an image."""

    thresh: float = 0.25
    nms: float = 0.45
    max_det: int | None = 300
    tiles: bool = False
    letterbox: bool = False
    precision: Any = "fp32"

    def check(self) -> Options:
        """Return this with Python's own numbers, which JSON can hold. Raises DataError if a value is out of range."""
        check_fractions(self.thresh, self.nms)
        check_max_det(self.max_det)
        if self.precision not in PRECISIONS:
            raise DataError(f"precision {self.precision!r}: choose one of {', '.join(PRECISIONS)}")
        max_det = None if self.max_det is None else operator.index(self.max_det)
        return Options(
            float(self.thresh), float(self.nms), max_det, bool(self.tiles), bool(self.letterbox), self.precision
        )


def detect_rows(
    detector: Detector, items: Iterable[Item], options: Options, batch: int, *, source: str = "", strict: bool = False
) -> list[Row]:
    """Detect the objects in images, `batch` at a time; return each image's row, without `shard`, in order.

    An unreadable image has a row with its error, and an archive that cannot be read further has one under its name, `source`.
    strict: raise ImageError, DataError instead.
    """
    rows: dict[int, Row] = {}
    damage: list[Row] = []

    def readable() -> Iterator[Item]:
        try:
            yield from items
        except DataError as e:
            if strict:
                raise
            damage.append(error_row(source, str(e)))

    def fail(item: Item, error: ImageError) -> None:
        if strict:
            raise error
        rows[item.position] = error_row(item, str(error))

    def read(item: Item) -> Image:
        return item.read(detector.network.channels)

    if options.tiles:
        results = run_images(detector, readable(), options.thresh, options.nms, on_error=fail, read=read)
    else:
        results = detector.run_images(readable(), options.thresh, options.nms, batch, on_error=fail, read=read)
    for item, img, scored in results:
        height, width = img.shape[:2]
        found = detector.to_detections(scored, options.max_det)
        rows[item.position] = {
            "image": str(item), "width": width, "height": height, "objects": found.summary(), "error": None
        }  # fmt: skip
        if item.label is not None:
            rows[item.position]["label"] = LabelFile(f"{LABELS}/{item.label}.txt", found.label_text())
    return [rows[position] for position in sorted(rows)] + damage


def error_row(name: str, error: str) -> Row:
    """Return the row of an image that has no result. Bytes that are not UTF-8 become ?, as in `Item`."""
    return {"image": valid_utf8(name), "width": None, "height": None, "objects": [], "error": valid_utf8(error)}


class Form(ABC):
    """A format of files of rows."""

    suffix: str

    def check(self) -> None:  # noqa: B027
        """Raise DataError if what it needs is not installed."""

    @abstractmethod
    def encode(self, rows: Sequence[Row]) -> bytes:
        """Return a file's content."""

    @abstractmethod
    def decode(self, data: bytes) -> list[Row]:
        """Return a file's rows. Raises ValueError if it is damaged."""


class JsonLines(Form):
    """A JSON object per line, in UTF-8."""

    suffix = ".jsonl"

    def encode(self, rows: Sequence[Row]) -> bytes:
        """Return a file's content."""
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()

    def decode(self, data: bytes) -> list[Row]:
        """Return a file's rows. Raises ValueError if it is damaged."""
        try:
            return [json.loads(line) for line in data.decode().removesuffix("\n").split("\n")]
        except RecursionError:
            raise ValueError("too many brackets") from None


class Parquet(Form):
    """A Parquet file with the columns of `schema`."""

    suffix = ".parquet"

    def check(self) -> None:
        """Raise DataError if pyarrow is not installed."""
        require_pyarrow("form 'parquet'")

    def encode(self, rows: Sequence[Row]) -> bytes:
        """Return a file's content."""
        import pyarrow
        from pyarrow import parquet

        file = io.BytesIO()
        parquet.write_table(
            pyarrow.Table.from_pylist(rows, schema()), file, compression="zstd", write_page_checksum=True
        )
        return file.getvalue()

    def decode(self, data: bytes) -> list[Row]:
        """Return a file's rows. Raises ValueError if it is damaged."""
        import pyarrow
        from pyarrow import parquet

        try:
            file = parquet.ParquetFile(pyarrow.BufferReader(data), page_checksum_verification=True)
            if file.schema_arrow != schema():
                raise ValueError("has other columns")
            rows: list[Row] = file.read(use_threads=False).to_pylist()  # threads may abort the process at damage
        except (pyarrow.ArrowException, OSError) as e:
            raise ValueError(str(e)) from None
        return rows


def schema() -> Any:
    """Return the pyarrow schema of rows. Raises DataError if pyarrow is not installed."""
    pyarrow = require_pyarrow("Parquet")
    box = pyarrow.struct([(name, pyarrow.float64()) for name in ("x1", "y1", "x2", "y2")])
    found = pyarrow.struct(
        [("name", pyarrow.string()), ("class", pyarrow.int32()), ("confidence", pyarrow.float64()), ("box", box)]
    )
    return pyarrow.schema(
        [
            ("image", pyarrow.string()), ("width", pyarrow.int32()), ("height", pyarrow.int32()),
            ("objects", pyarrow.list_(found)), ("error", pyarrow.string()), ("shard", pyarrow.string()),
        ]
    )  # fmt: skip


FORMS: dict[str, Form] = {"jsonl": JsonLines(), "parquet": Parquet(), "labels": JsonLines()}
