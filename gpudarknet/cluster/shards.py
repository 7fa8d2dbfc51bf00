"""Shards: the units of a job. One is computed by one call on one worker, and its rows are one file.

A source is cut while it is listed: one shard is in memory at a time, however many images there are.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..image import Image, as_image, decode, is_url
from ..image_sources import sources
from ..io.text import valid_utf8


class Item(str):
    """An image of a shard: its name, as rows have it.

    content: what is read, as for `image.as_image`. position: in its shard, from 0.
    """

    content: Any
    position: int

    @classmethod
    def of(cls, name: str, content: Any, position: int) -> Item:
        """Return an item. Bytes in a name that are not UTF-8 become ?, as rows are text."""
        item = cls(valid_utf8(name))
        item.content, item.position = content, position
        return item

    def read(self, channels: int) -> Image:
        """Return the pixels, uint8 (H, W, channels). Raises ImageError."""
        if isinstance(self.content, bytes):
            return decode(self.content, channels, str(self))
        return as_image(self.content, channels)


class Shard(ABC):
    """Images that are processed together. It can be pickled, and holds what a worker needs to read them, not their content."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells this shard from others before it is read: its images' names, or the address of an archive."""

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Yield the images. Raises DataError if an archive cannot be read, after those before the damage."""

    def key(self, names: Sequence[str]) -> str:
        """Return what each of its rows has: the hashes of the shard and of its images' names, 8 hexadecimal digits each."""
        return short_hash([self.identity]) + short_hash(names)


def short_hash(texts: Sequence[str]) -> str:
    """Return 8 hexadecimal digits of a hash of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class FileShard(Shard):
    """Image files and URLs. folder: on which relative paths are based."""

    names: tuple[str, ...]
    folder: str

    @property
    def identity(self) -> str:
        """The images' names."""
        return "\0".join(map(valid_utf8, self.names))

    def items(self) -> Iterator[Item]:
        """Yield the images."""
        for position, name in enumerate(self.names):
            yield Item.of(name, name if is_url(name) else os.path.join(self.folder, name), position)


def split(source: Any, size: int, *, recursive: bool = False) -> Iterator[Shard]:
    """Cut a source into shards of `size` images, while it is listed.

    source: as in `gpudarknet.sources`, except images themselves. Raises DataError.
    """
    names = map(os.fspath, sources(source, recursive=recursive))
    folder = str(Path.cwd())
    while chunk := tuple(islice(names, size)):
        yield FileShard(chunk, folder)
