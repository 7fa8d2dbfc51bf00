"""Parquet files as sources: a column of paths is a list of images, a column of images' contents is cut by rows.

Contents are a column `bytes` of binary values, or a column `image` as Hugging Face's datasets have it, a struct of `bytes` and
`path`. pyarrow is imported when a Parquet file is met: pip install 'gpudarknet[cluster]'.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from ..errors import DataError

SUFFIX = ".parquet"
PATH, BYTES, IMAGE = "path", "bytes", "image"  # columns, or fields of the struct
READ_BUFFER = 1 << 20  # bytes of a column that are read at once
BATCH = 4096  # paths that are read at once
Record = tuple[str | None, bytes | None]  # the path, the content


def require_pyarrow(name: str) -> Any:
    """Import and return pyarrow. Raises DataError if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(f"{name}: pyarrow is not installed; pip install 'gpudarknet[cluster]'") from None
    return pyarrow


class Table:
    """A Parquet file.

    Raises DataError if it is damaged or has none of the columns; its methods do, if it is damaged further on.
    """

    def __init__(self, file: BinaryIO, address: str):
        self.address = address
        require_pyarrow(address)
        from pyarrow import parquet, types

        with self.damage():
            self.file = parquet.ParquetFile(file, buffer_size=READ_BUFFER, pre_buffer=False)
            schema = self.file.schema_arrow

        def has(column: str, *kinds: Any) -> bool:
            if schema.get_field_index(column) < 0:
                return False
            dtype = schema.field(column).type
            dtype = dtype.value_type if types.is_dictionary(dtype) else dtype  # as pandas' categories
            return any(kind(dtype) for kind in kinds)

        binary = types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view
        strings = types.is_string, types.is_large_string, types.is_string_view
        self.has_paths = has(PATH, *strings)
        self.content: str | None = None  # the column of contents
        if has(BYTES, *binary):
            self.content = BYTES
        elif has(IMAGE, types.is_struct) and schema.field(IMAGE).type.get_field_index(BYTES) >= 0:
            self.content = IMAGE
        elif not self.has_paths:
            raise DataError(
                f"{address}: has neither a column {PATH} of texts, nor {BYTES} of binary values, nor {IMAGE} with"
                f" {BYTES} in it (its columns: {', '.join(schema.names[:10])}); rename the one that has the images"
            )

    @contextmanager
    def damage(self) -> Iterator[None]:
        """Translate errors of pyarrow into DataError."""
        import pyarrow

        try:
            yield
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as e:
            reason = " ".join(str(e).split())[:200]
            raise DataError(
                f"{self.address}: is not a Parquet file, or a damaged one ({reason}); write it again"
            ) from None

    @property
    def count(self) -> int:
        """The number of rows."""
        return int(self.file.metadata.num_rows)

    @property
    def largest_group(self) -> int:
        """The rows of the largest row group."""
        metadata = self.file.metadata
        return max((metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)), default=0)

    def paths(self) -> Iterator[str | None]:
        """Yield the column of paths, some rows at a time."""
        for batch in self.batches([PATH], range(self.file.metadata.num_row_groups), BATCH):
            with self.damage():
                paths = batch.column(PATH).to_pylist()
            yield from paths

    def records(self, start: int, stop: int, step: int = 8) -> Iterator[Record]:
        """Yield the path and the content of rows start to stop - 1, `step` rows at a time. Raises DataError."""
        if not self.content:
            raise DataError(f"{self.address}: has no images' contents, only paths")
        metadata, groups, first, begin = self.file.metadata, list[int](), 0, 0
        for group in range(metadata.num_row_groups):
            end = begin + metadata.row_group(group).num_rows
            if begin < stop and end > start:
                first = first if groups else begin
                groups.append(group)
            begin = end
        columns = [self.content, *[PATH] * (self.has_paths and self.content == BYTES)]
        for batch in self.batches(columns, groups, step):
            batch, first = batch.slice(max(0, start - first), max(0, stop - max(start, first))), first + batch.num_rows
            values = batch.column(self.content).to_pylist()
            if self.content == IMAGE:
                yield from ((value.get(PATH), value[BYTES]) if value else (None, None) for value in values)
            else:
                paths = batch.column(PATH).to_pylist() if self.has_paths else [None] * len(values)
                yield from zip(paths, values, strict=True)
            if first >= stop:
                return

    def batches(self, columns: list[str], groups: Any, size: int) -> Iterator[Any]:
        """Yield the columns of row groups in batches of rows."""
        with self.damage():
            yield from self.file.iter_batches(size, row_groups=list(groups), columns=columns, use_threads=False)
