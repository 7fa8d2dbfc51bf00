"""`read` and `merge`: the rows of a complete job, one after the other or in one file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ..errors import DataError
from ..evaluate import AddImage, coco_file, csv_file
from ..io.atomic import atomic_write, check_writable
from ..io.remote import is_remote
from .job import MANIFEST, SUCCESS, read_json
from .parts import Counts, Parts
from .rows import FORMS, Row, schema
from .shards import short_hash
from .store import LocalStore, Store, open_store

ROW_GROUP = 10_000  # rows of a Parquet file that are in memory
AddRows = Callable[[Sequence[Row]], object]


def read(found: str | os.PathLike[str]) -> Iterator[Row]:
    """Yield the rows of a complete job, in the order of its source; one shard is in memory at a time.

    found: the folder that `detect` wrote. Each row is a dict: `image`, its name; `width` and `height` in pixels; `objects`, as
    `Detections.summary` returns them; `error`, why there is no result, else None. Raises DataError if the job is not complete, or
    a file is missing or damaged.
    """
    for rows in Job.of(open_store(found)).shards():
        yield from rows


def merge(found: str | os.PathLike[str], out: str | os.PathLike[str]) -> Counts:
    """Write the rows of a complete job into one file, and return how many there are.

    found: the folder that `detect` wrote. out: a path, which appears when all is written; its suffix is the format: .jsonl and
    .parquet have the rows, see `read`; .csv has a line per object, as `detector test -csv`; .json is COCO's results, as `-coco`.
    The last two have only objects, thus nothing of images with an error. Warns if images have the same number in COCO's results.
    Raises DataError if the job is not complete, a file is missing or damaged, or `out` cannot be written.
    """
    if is_remote(out):
        raise DataError(f"{out}: is in an object store; write a local file, and copy it")
    if not isinstance(out, str | os.PathLike):
        raise DataError(f"{out!r}: is not a path; give that of a file")
    path = Path(out)
    file_of_rows = WRITERS.get(path.suffix.lower())
    if file_of_rows is None:
        raise DataError(f"{out}: its suffix is the format: {', '.join(WRITERS)} (COCO's results are .json)")
    store = open_store(found)
    job = Job.of(store)
    check_out(path, store)
    images = objects = errors = 0
    with atomic_write(path, DataError) as tmp, file_of_rows(tmp, job) as add:
        for rows in job.shards():
            add(rows)
            counts = Counts.of(rows)
            images, objects, errors = images + counts.images, objects + counts.objects, errors + counts.errors
    return Counts(images, objects, errors)


def check_out(path: Path, store: Store) -> None:
    """Raise DataError if a file cannot be written, or would replace one of the job's."""
    check_writable(path, DataError)
    target, names = Path(os.path.realpath(path)), (MANIFEST.lower(), SUCCESS.lower())
    own = target.name.lower() in names or target.name.lower().startswith("part-")
    if own and isinstance(store, LocalStore) and target.parent == Path(os.path.realpath(store.path)):
        raise DataError(f"{path}: would replace a file of the job; choose another name")


class Job(NamedTuple):
    """A complete job, as its manifest and `_SUCCESS.json` describe it."""

    parts: Parts
    classes: int
    size: int  # shards
    sha256: str  # of all shards as listed

    @classmethod
    def of(cls, store: Store) -> Job:
        """Return the job in a folder. Raises DataError if it is none, or not complete."""
        manifest, success = read_json(store, MANIFEST), read_json(store, SUCCESS)
        if manifest is None:
            raise DataError(f"{store.name}: has no job's results (there is no {MANIFEST}); give the folder of a job")
        if success is None:
            raise DataError(f"{store.name}: is not complete; run the job again, it resumes")
        try:
            parts = Parts(store, next(form for form in FORMS if form == manifest["form"]))
            return cls(parts, int(manifest["classes"]), int(success["shards"]), success["sha256"])
        except (KeyError, StopIteration, TypeError, ValueError):
            raise DataError(
                f"{store.name}: {MANIFEST} or {SUCCESS} was changed; run the job in another folder"
            ) from None

    def shards(self) -> Iterator[list[Row]]:
        """Yield the rows of each shard, without `shard`. Raises DataError if a file is missing, damaged or another job's."""
        digest, store = hashlib.sha256(), self.parts.store
        for number in range(self.size):
            rows = self.parts.load(number)
            if rows is None:
                raise DataError(
                    f"{store.name}/{self.parts.name(number)}: is missing or damaged; remove {SUCCESS}, and run the job again"
                )
            digest.update((rows[0]["shard"][:8] + short_hash(())).encode())
            yield [{name: value for name, value in row.items() if name != "shard"} for row in rows]
        if digest.hexdigest() != self.sha256:
            raise DataError(f"{store.name}: some file is not of this job; remove {SUCCESS}, and run the job again")


# Formats


def file_of_objects(open_file: Callable[[TextIO], AbstractContextManager[AddImage]]) -> Writer:
    """Return the writer of a text file of objects, which leaves out images with an error."""

    @contextmanager
    def writer(path: Path, job: Job) -> Iterator[AddRows]:
        with open(path, "w", encoding="utf-8", newline="") as text, open_file(text) as add:

            def add_rows(rows: Sequence[Row]) -> None:
                for row in rows:
                    if row["error"] is None:
                        add(row["image"], row["width"], row["height"], row["objects"], job.classes)

            yield add_rows

    return writer


@contextmanager
def json_lines(path: Path, job: Job) -> Iterator[AddRows]:
    """Write a row per line."""
    with open(path, "wb") as file:
        yield lambda rows: file.write(FORMS["jsonl"].encode(rows))


@contextmanager
def parquet(path: Path, job: Job) -> Iterator[AddRows]:
    """Write the columns of rows."""
    columns = schema()
    columns = columns.remove(columns.get_field_index("shard"))
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    with ParquetWriter(path, columns, compression="zstd") as file:
        tables: list[Any] = []

        def flush() -> None:
            if tables:
                file.write_table(pyarrow.concat_tables(tables))
                tables.clear()

        def add(rows: Sequence[Row]) -> None:
            tables.append(pyarrow.Table.from_pylist(rows, columns))
            if sum(table.num_rows for table in tables) >= ROW_GROUP:
                flush()

        yield add
        flush()


Writer = Callable[[Path, Job], AbstractContextManager[AddRows]]
WRITERS: dict[str, Writer] = {
    ".json": file_of_objects(coco_file),
    ".csv": file_of_objects(csv_file),
    ".jsonl": json_lines,
    ".parquet": parquet,
}
