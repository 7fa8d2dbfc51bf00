"""What a worker does: it turns a shard into a file of rows, unless that file is there."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple, Protocol

from .. import __version__
from ..backend.threads import set_num_threads
from ..detector import Detector
from .parts import Counts, Parts
from .rows import Options, Row, detect_rows
from .shards import Shard


class AnyModel(Protocol):
    """What makes a detector: `job.Model`, or another in tests."""

    @property
    def options(self) -> Options:
        """What decides which objects are found."""

    def detector(self) -> Detector:
        """Return the detector."""


class Settings(NamedTuple):
    """How a worker computes. threads: of it; batch: images per forward pass; strict: raise errors of images."""

    threads: int = 1
    batch: int = 8
    strict: bool = False


class ShardWorker:
    """Runs in a process of its own, as an actor of Ray."""

    def __init__(self, model: AnyModel, parts: Parts, settings: Settings):
        set_num_threads(settings.threads)
        self.options, self.parts, self.settings = model.options, parts, settings
        self.detector = model.detector()

    def ready(self) -> str:
        """Return the version of this package, once the detector is loaded."""
        return __version__

    def engine(self) -> str:
        """Return what computed the last batch, as `Network.engine`."""
        return self.detector.network.engine

    def run(self, number: int, shard: Shard) -> Counts:
        """Make a shard's file, unless it is there. Raises DataError; ImageError if settings.strict."""
        if rows := self.parts.read(number, shard):
            return Counts.of(rows, resumed=True)
        rows = self.rows(shard)
        self.parts.write(number, shard, rows)
        return Counts.of(rows)

    def rows(self, shard: Shard, start: int = 0, stop: int | None = None) -> list[Row]:
        """Detect the objects in images start to stop - 1 of a shard."""
        batch, strict = self.settings.batch, self.settings.strict
        return detect_rows(
            self.detector, islice(shard.items(), start, stop), self.options, batch, source=str(shard), strict=strict
        )
