"""Shards: the units of a job. One is computed by one call on one worker, and its rows are one file.

A source is cut while it is listed: one shard is in memory at a time, however many images there are. Images are files and URLs,
members of tar archives (`archives.py`) and values in Parquet files (`tables.py`).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError, DataWarning, ImageError
from ..image import Image, as_image, decode, formats, is_url
from ..image_sources import (
    base_folder,
    existing_path,
    expand,
    image_path,
    is_download,
    is_folder,
    is_image,
    is_pattern,
    is_single,
    list_folder,
    listed,
    listing,
    output_name,
)  # fmt: skip
from ..io import remote
from ..io.text import MAX_NAME, UniqueNames, cut_name, valid_utf8
from . import archives, tables

CONTAINERS = (*archives.SUFFIXES, tables.SUFFIX)
AHEAD = 8  # images of an archive or table that are read before they are asked for
WASTEFUL = 8  # shards in a row group, which is read from its start for each


class Item(str):
    """An image of a shard: its name, as rows have it.

    content: what is read, as for `image.as_image`, or an ImageError, why there is none. position: in its shard, from 0.
    label: the name of its label file, without suffix; None if none is wanted.
    """

    content: Any
    position: int
    label: str | None

    @classmethod
    def of(cls, name: str, content: Any, position: int, label: str | None = None) -> Item:
        """Return an item. Bytes in a name that are not UTF-8 become ?, as rows are text."""
        item = cls(valid_utf8(name))
        item.content, item.position, item.label = content, position, label
        return item

    def read(self, channels: int) -> Image:
        """Return the pixels, uint8 (H, W, channels). Raises ImageError."""
        if isinstance(self.content, ImageError):
            raise self.content
        if isinstance(self.content, bytes):
            return decode(self.content, channels, str(self))
        return as_image(self.content, channels)


@dataclass(frozen=True)
class Shard(ABC):
    """Images that are processed together. It can be pickled, and holds what a worker needs to read them, not their content.

    folder: on which relative paths are based. labels: the names of the images' label files, or the folder of these, in which they
    are named by the images' file names; None if none are wanted.
    """

    folder: str
    labels: tuple[str, ...] | str | None

    @property
    @abstractmethod
    def identity(self) -> str:
        """What tells this shard from others before it is read: its images' names, or the address of an archive."""

    @abstractmethod
    def images(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and the content of each image, as in `Item`. Raises DataError, as does `items`."""

    def items(self) -> Iterator[Item]:
        """Yield the images. Raises DataError if an archive cannot be read, after those before the damage."""
        unique = UniqueNames()
        for position, (name, content) in enumerate(self.images()):
            label = None
            if isinstance(self.labels, str):
                label = f"{self.labels}/{unique(label_name(name))}"
            elif self.labels is not None:
                label = self.labels[position]
            yield Item.of(name, content, position, label)

    def key(self, names: Sequence[str]) -> str:
        """Return what each of its rows has: the hashes of the shard and of its images' names, 8 hexadecimal digits each."""
        return short_hash([self.identity]) + short_hash(names)


def short_hash(texts: Sequence[str]) -> str:
    """Return 8 hexadecimal digits of a hash of texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]


def label_name(name: str, base: Any = None) -> str:
    """Return the name of an image's label file, as `output_name` does, in characters and lengths that file systems allow."""
    label = output_name(name, base)
    if label.isascii() and len(label) <= MAX_NAME:
        return label
    return "/".join(map(cut_name, valid_utf8(label).split("/")))


# Kinds


@dataclass(frozen=True)
class FileShard(Shard):
    """Image files and URLs."""

    names: tuple[str, ...]

    @property
    def identity(self) -> str:
        """The images' names."""
        return valid_utf8("\0".join(self.names))

    def images(self) -> Iterator[tuple[str, Any]]:
        """Yield the paths and URLs."""
        for name in self.names:
            yield name, name if is_url(name) else os.path.join(self.folder, name)


@dataclass(frozen=True)
class Container(Shard):
    """Images in a file at an address, a path or one of an object store."""

    address: str

    @property
    def identity(self) -> str:
        """The address."""
        return valid_utf8(self.address)

    def items(self) -> Iterator[Item]:
        """Yield the images, as `Shard.items`; the next ones are read meanwhile."""
        return read_ahead(super().items(), AHEAD)

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True)
class ArchiveShard(Container):
    """All images of a tar archive; their names follow its address: photos-000.tar/dog.jpg."""

    def images(self) -> Iterator[tuple[str, Any]]:
        """Yield the members that are images."""
        with open_file(self.address, self.folder) as file:
            for name, content in archives.images(file, self.address):
                yield f"{self.address}/{name}", content


@dataclass(frozen=True)
class TableShard(Container):
    """Rows start to stop - 1 of a Parquet file that has images' contents.

    An image's name is the file's address, the row and, if the table has it, the image's path: photos.parquet/17/dog.jpg. A row
    with a path and without a content is the image at this path.
    """

    start: int
    stop: int

    @property
    def identity(self) -> str:
        """The address and the rows."""
        return f"{valid_utf8(self.address)}/{self.start}-{self.stop}"

    def images(self) -> Iterator[tuple[str, Any]]:
        """Yield the contents. Raises DataError also if there are no such rows."""
        row, parent = self.start, list_folder(existing_path(self.located))
        with open_file(self.address, self.folder) as file:
            for path, data in tables.Table(file, self.address).records(self.start, self.stop):
                name = f"{self.address}/{row}" + (f"/{path}" if path else "")
                content: Any = data
                if data is None:
                    content = listed(path, parent) if path else ImageError(f"{name}: has neither bytes nor a path")
                yield name, content
                row += 1
        if not self.stop:
            raise DataError(f"{self.address}: has no image; it has no rows")
        if row < self.stop:
            raise DataError(f"{self.address}: has {row} rows, and had {self.stop} before; start another job")

    @property
    def located(self) -> str:
        """The address, from anywhere on this machine."""
        return self.address if is_url(self.address) else os.path.join(self.folder, self.address)


def read_ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yield items; a thread reads up to `count` of the next ones."""
    with ThreadPoolExecutor(1, "shard reader") as thread:
        following = deque(thread.submit(next, items, None) for _ in range(count))
        while following and (item := following.popleft().result()) is not None:
            following.append(thread.submit(next, items, None))
            yield item


def open_file(address: str, folder: str) -> BinaryIO:
    """Open an archive or table, whose path is relative to a folder. Raises DataError."""
    if remote.is_remote(address):
        return remote.open_file(address)
    path = Path(folder, address)
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise DataError(f"{address}: is not a regular file; give one, or a pattern")
        return open(path, "rb")
    except (OSError, ValueError) as e:  # ValueError: a null character in the path
        raise DataError(f"{address}: cannot be read ({getattr(e, 'strerror', None) or e}); check the path") from None


# Cutting a source


def split(source: Any, size: int, *, recursive: bool = False, labels: bool = False) -> Iterator[Shard]:
    """Cut a source into shards of `size` images, while it is listed.

    source: as in `gpudarknet.sources`, except images themselves; also a tar archive (.tar, .tar.gz, .tgz, .tar.bz2, .tar.xz),
    which is one shard, or a Parquet file with a column of paths, or one of images' contents (see `tables`); a pattern of these,
    such as `shards/*.tar` or `train-{000..099}.tar`; or an iterable of all these. labels: label files are wanted. In one folder
    or pattern, they have the paths of the images below it, and the second dog of a folder, which may be dog.png after dog.jpg,
    is dog_2. Those of other sources are in folders with the shards' numbers. Raises DataError if there is no image.
    """
    shards = numbered(cut(source, size, recursive, labels), labels)
    first = next(shards, None)
    if first is None:
        raise DataError("source: has no image; it is an empty list or table, or an iterable that has been used up")
    return chain([first], shards)


def numbered(shards: Iterator[Shard], labels: bool) -> Iterator[Shard]:
    """Name the folders of label files by the shards' numbers, where they have no names."""
    for number, shard in enumerate(shards):
        yield replace(shard, labels=f"{number:08d}") if labels and shard.labels is None else shard


def cut(source: Any, size: int, recursive: bool, labels: bool) -> Iterator[Shard]:
    """Yield the shards of a source."""
    folder = str(Path.cwd())
    base = None
    if labels and isinstance(source, str | os.PathLike) and not is_container(os.fspath(source)):
        base = base_folder(os.fspath(source))
    found = images_and_shards(source, size, folder, recursive)
    for is_name, group in groupby(found, lambda one: isinstance(one, str)):
        if not is_name:
            yield from group
        elif base is None:
            while names := tuple(islice(group, size)):
                yield FileShard(folder, None, names)
        else:
            pairs = labeled(group, base)
            while chunk := tuple(islice(pairs, size)):
                yield FileShard(folder, tuple(label for _, label in chunk), tuple(name for name, _ in chunk))


def labeled(names: Iterable[str], base: Any) -> Iterator[tuple[str, str]]:
    """Yield images found below a folder, and the names of their label files, in which no two of a folder are equal."""
    folder, unique = None, UniqueNames()
    for name in names:
        label = label_name(name, base)
        if (here := os.path.dirname(label)) != folder:
            folder, unique = here, UniqueNames()
        yield name, unique(label)


def images_and_shards(source: Any, size: int, folder: str, recursive: bool, top: bool = True) -> Iterator[Any]:
    """Yield the paths and URLs of images, and the shards of archives and tables. top: the source is not part of another."""
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if top and is_missing(name):
            raise DataError(f"{name}: no such file or folder; check the path")
        if is_container(name):
            for address in addresses(name):
                yield from container(address, size, folder, strict=top and address == name)
            return
        for image in searched(name, recursive):
            if is_container(image):  # of a list
                yield from container(image, size, folder)
            else:
                yield image
    elif is_image(source):
        raise DataError(
            f"source: {type(source).__name__} is an image, not the path of one, and workers read the images;"
            " save it, or use Detector.detect_stream"
        )
    elif isinstance(source, Iterable):
        for one in source:
            if (path := image_path(one)) is not None:
                yield path
            else:
                yield from images_and_shards(one, size, folder, recursive, top=False)
    else:
        raise DataError(f"source: {type(source).__name__} is not a path; give one, or a list of them")


def is_missing(name: str) -> bool:
    """Return whether a name is a path, neither an address nor a pattern, and does not exist."""
    plain = is_single(name) and not is_url(name) and not archives.BRACES.search(name)
    return plain and not os.path.lexists(existing_path(name))


def searched(name: str, recursive: bool) -> Iterator[str]:
    """Yield the images that a name stands for. Raises DataError; of a folder of archives, it says how these are given."""
    try:
        yield from expand(name, recursive)
    except DataError as e:
        path = existing_path(name)
        files = listing(path)[0] if is_folder(path) else []
        suffix = next((end for end in CONTAINERS if any(file.lower().endswith(end) for file in files)), None)
        if suffix is None or any(Path(file).suffix.lower() in formats.SUFFIXES for file in files):
            raise
        raise DataError(f"{e}; archives and tables are given by a pattern: '{path / f'*{suffix}'}'") from None


def is_container(name: str) -> bool:
    """Return whether a name is that of an archive or table, or a pattern of some. Raises DataError for a URL of one."""
    if not name.lower().endswith(CONTAINERS):
        return False
    if is_download(name):
        raise DataError(
            f"{name}: is an archive or a table behind a URL; download it, or use s3:// or another object store"
        )
    return is_url(name) or not os.path.isdir(existing_path(name))


def addresses(name: str) -> Iterator[str]:
    """Yield the archives and tables that a path, an address or a pattern stands for. Raises DataError if nothing matches."""
    if not is_url(name) and os.path.lexists(name):
        yield name
        return
    for one in archives.expand_braces(name):
        path = existing_path(one)
        yield from expand(one, suffixes=CONTAINERS) if is_pattern(path) else [str(path)]


def container(address: str, size: int, folder: str, strict: bool = False) -> Iterator[Any]:
    """Yield the shards of an archive or table, or the images that a table lists; of a table, only metadata are read.

    A table that cannot be opened is left to the worker, which reports it in its row. strict: raise DataError instead.
    """
    if archives.is_archive(address):
        yield ArchiveShard(folder, None, address)
        return
    tables.require_pyarrow(address)
    with ExitStack() as stack:
        try:
            table = tables.Table(stack.enter_context(open_file(address, folder)), address)
        except DataError:
            if strict:
                raise
            yield TableShard(folder, None, address, 0, 0)
            return
        if table.content is None:
            parent = list_folder(existing_path(address))
            for row, path in enumerate(table.paths()):
                yield listed(path, parent) if path else f"{address}/{row}"
            return
        count, largest = table.count, table.largest_group
    if largest > WASTEFUL * size:
        warnings.warn(
            f"{address}: has row groups of up to {largest} rows, which are read from their start for each shard of {size};"
            f" write it with row_group_size={size}",
            DataWarning,
            stacklevel=2,
        )
    for start in range(0, max(count, 1), size):
        yield TableShard(folder, None, address, start, min(start + size, count))
