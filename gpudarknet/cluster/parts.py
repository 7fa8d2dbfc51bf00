"""The files of a job's shards: part-00000042.jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ..errors import DataError
from .rows import FORMS, Row
from .shards import Shard, short_hash
from .store import Store

WRITERS = 16  # of label files: each waits for a disk or an object store


class Counts(NamedTuple):
    """Images, objects and errors in a shard's file; resumed: whether it was there before."""

    images: int
    objects: int
    errors: int
    resumed: bool = False

    @classmethod
    def of(cls, rows: Sequence[Row], resumed: bool = False) -> Counts:
        """Count what is in rows."""
        objects, errors = sum(len(row["objects"]) for row in rows), sum(row["error"] is not None for row in rows)
        return cls(len(rows), objects, errors, resumed)


class Parts(NamedTuple):
    """The files of a job. form: a key of `rows.FORMS`."""

    store: Store
    form: str

    def name(self, number: int) -> str:
        """Return the name of a shard's file."""
        return f"part-{number:08d}{FORMS[self.form].suffix}"

    def load(self, number: int) -> list[Row] | None:
        """Return the rows of a shard's file; None if there is none, or if it is damaged: also if a row is missing."""
        data = self.store.read(self.name(number))
        if data is None:
            return None
        try:
            rows = FORMS[self.form].decode(data)
            (key,) = {row["shard"] for row in rows}
            Counts.of(rows)  # raises if something is missing
            return rows if key[8:] == short_hash([row["image"] for row in rows]) else None
        except (ValueError, KeyError, TypeError):
            return None

    def read(self, number: int, shard: Shard) -> list[Row] | None:
        """Return the rows of a shard's file, as `load`. Raises DataError if it is another shard's."""
        rows = self.load(number)
        if rows and rows[0]["shard"] != shard.key([row["image"] for row in rows]):
            raise DataError(
                f"{self.store.name}/{self.name(number)}: its images are not those of the source now: images were added or"
                " removed, or the file was renamed; choose another folder, or remove this file"
            )
        return rows

    def write(self, number: int, shard: Shard, rows: Sequence[Row]) -> None:
        """Write a shard's file; before it, label files if the form has them. Raises DataError."""
        key = shard.key([row["image"] for row in rows])
        rows = [{**row, "shard": key} for row in rows]
        if self.form == "labels":
            files = [row["label"] for row in rows if row.setdefault("label", None)]
            with ThreadPoolExecutor(WRITERS, "label writer") as pool:
                list(pool.map(lambda file: self.store.write(file.name, file.text.encode()), files))
            rows = [{**row, "label": row["label"] and row["label"].name} for row in rows]
        self.store.write(self.name(number), FORMS[self.form].encode(rows))
