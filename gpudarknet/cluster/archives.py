"""Tar archives as sources, as WebDataset writes them: their members are read one after the other, and never written to files."""

from __future__ import annotations

import lzma
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from ..errors import DataError, ImageError
from ..image import formats

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")  # {000..099} or {train,val}
CHUNK = 1 << 20  # bytes that are read at once


class Header(tarfile.TarInfo):
    """A member's header. Unlike its base class, it does not take a damaged one, or none at all, for the archive's end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Header:
        """Read the next header. Raises tarfile.ReadError if it is damaged."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the block that marks the end
            raise
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(str(e)) from None


def images(file: BinaryIO, address: str) -> Iterator[tuple[str, bytes | ImageError]]:
    """Yield the name and the content of each image in an archive, compressed or not, in order.

    Images are members with the suffix of one; hidden ones are left out. A link has no content, but an error. Raises DataError if
    there is no image, or at the damage of a damaged archive.
    """
    others, found = Counter[str](), False
    try:
        with tarfile.open(fileobj=file, mode="r|*", tarinfo=Header) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # a list of all, which would grow
                name, path = member.name, PurePosixPath(member.name)
                if member.isdir() or path.name.startswith("."):
                    continue
                if path.suffix.lower() not in formats.SUFFIXES:
                    others[path.suffix] += 1
                    continue
                found = True
                if member.isreg():
                    yield name, content(tar, member)
                else:
                    yield (
                        name,
                        ImageError(f"{address}/{name}: is a link or a device in the archive; store the file itself"),
                    )
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as e:
        reason = " ".join(str(e).split())[:200]
        raise DataError(
            f"{address}: is not a tar archive, or a damaged one ({reason}); images after the damage are missing"
        ) from None
    if not found:
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in others.most_common(3))
        raise DataError(f"{address}: has no image; found {kinds or 'nothing'}")


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return a member's content, as far as an image may be long. Raises tarfile.ReadError if the archive ends in it."""
    file, size = tar.extractfile(member), member.size
    assert file
    limit = min(size, formats.MAX_PIXEL_BYTES * formats.max_pixels())
    chunks = list[bytes]()  # a size may be a lie, and is not allocated before it is read
    while limit > 0 and (data := file.read(min(CHUNK, limit))):
        chunks.append(data)
        limit -= len(data)
    if limit > 0:
        raise tarfile.ReadError(f"it ends in {member.name}")
    return b"".join(chunks)


def is_archive(name: str) -> bool:
    """Return whether a name is that of an archive, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for, as in a shell: a-{00..11}.tar, {train,val}.tar."""
    match = BRACES.search(pattern)
    if not match:
        yield pattern
        return
    first, last, words = match.groups()
    if words is not None:
        choices: Iterator[str] = iter(words.split(","))
    else:
        step = 1 if int(first) <= int(last) else -1
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        choices = (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))
    for choice in choices:
        for rest in expand_braces(pattern[match.end() :]):
            yield pattern[: match.start()] + choice + rest
