"""What a worker does: it turns a shard into a file of rows, unless that file is there."""

from __future__ import annotations

import os
from itertools import islice
from typing import NamedTuple, Protocol

from .. import __version__
from ..detector import Detector
from ..errors import DataError
from ..io.http import ALLOW_PRIVATE_URLS
from .parts import Counts, Parts
from .rows import Options, Row, detect_rows
from .runtime import limit_threads
from .shards import Shard


class AnyModel(Protocol):
    """What makes a detector: `job.Model`, or another in tests."""

    @property
    def options(self) -> Options:
        """What decides which objects are found."""

    def detector(self) -> Detector:
        """Return the detector."""


class Settings(NamedTuple):
    """How a worker computes. threads: of it; batch: images per forward pass; strict: raise errors of images.

    private: read URLs of private addresses, if the driver may.
    """

    threads: int = 1
    batch: int = 8
    strict: bool = False
    private: bool = False


class ShardWorker:
    """Runs in a process of its own, as an actor of Ray. `load` is called first."""

    detector: Detector

    def __init__(self, model: AnyModel, parts: Parts, settings: Settings):
        self.model, self.parts, self.settings = model, parts, settings

    def load(self) -> str:
        """Load the detector; return the version of this package. Raises what `Model.detector` raises."""
        limit_threads(self.settings.threads)
        if self.settings.private:
            os.environ[ALLOW_PRIVATE_URLS] = "1"
        self.detector = self.model.detector()
        return __version__

    def run(self, number: int, shard: Shard) -> Counts:
        """Make a shard's file, unless it is there. Raises DataError; ImageError if settings.strict."""
        if rows := self.parts.read(number, shard):
            return Counts.of(rows, resumed=True)
        rows = self.rows(shard)
        self.parts.write(number, shard, rows)
        return Counts.of(rows)

    def names(self, shard: Shard) -> list[str]:
        """Return the names of a shard's images, and last that of the shard if it cannot be read to its end."""
        names = []
        try:
            for item in shard.items():
                names.append(str(item))
        except DataError:
            names.append(str(shard))
        return names

    def rows(self, shard: Shard, start: int = 0, stop: int | None = None) -> list[Row]:
        """Detect the objects in images start to stop - 1 of a shard."""
        batch, strict = self.settings.batch, self.settings.strict
        items = islice(shard.items(), start, stop)
        return detect_rows(self.detector, items, self.model.options, batch, source=str(shard), strict=strict)
