"""Images named by files, folders, patterns, lists and URLs, here or in an object store, one after the other.

    for found in detector.detect_stream(gd.sources("photos/**/*.jpg")): ...

Nothing is read ahead: of a list one line is in memory, of folders the names of those between the first and the current one.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .data import MAX_PATH
from .data.datafile import listed_path
from .errors import DataError, DataWarning
from .image import formats, is_url
from .image.arrays import is_array
from .io import remote
from .io.remote import Address
from .io.text import iter_lines, portable_name

LIST_SUFFIX = ".txt"
MAGIC = re.compile(r"[*?[]")  # characters of patterns
Place = Path | Address  # of a file or folder
LABEL = re.compile(r"\d+(\s+-?[\d.]+(e-?\d+)?){4,5}", re.IGNORECASE)  # a line of a label file


def sources(source: Any, *, recursive: bool = False) -> Iterator[Any]:
    """Yield the images that `source` names, each a Path, a URL or address as str, or an object as given.

    source: the path of an image; a folder, whose images come in the order of their names, with `recursive` followed by those
    of its subfolders; a pattern such as `photos/*.jpg`, where `**` stands for any folders; a text file (.txt) with a path or
    URL on each line, relative to the current folder or to the list's; an http or https URL; an array or another object that
    `image.as_image` accepts; or an iterable of all these. Images, folders, patterns and lists may also be in an object store:
    s3://bucket/photos/*.jpg (see `io.remote`). A path that exists is not a pattern; one with the suffix of an image is, in an
    iterable, not a folder. In folders and patterns, hidden files and those that are not images by their names are left out. A
    missing file and a URL of another scheme are yielded, and reported by whoever reads them. Raises DataError if a folder,
    pattern or list has no images, or if an object store cannot be listed.
    """
    if isinstance(source, str | os.PathLike):
        for image in expand(os.fspath(source), recursive):
            yield image if is_url(image) else Path(image)
    elif is_image(source):
        yield source
    elif isinstance(source, Iterable):
        for one in source:
            if (path := image_path(one)) is not None:
                yield path if is_url(path) else Path(path)
            else:
                yield from sources(one, recursive=recursive)
    else:
        raise DataError(f"sources: {type(source).__name__} is neither a path nor an image; pass one, or a list of them")


def is_image(source: Any) -> bool:
    """Return whether a source is an image itself: an array of any library, a PIL image, a file's content, an open file."""
    return isinstance(source, bytes | bytearray | memoryview) or hasattr(source, "read") or is_array(source)


def image_path(source: Any) -> str | None:
    """Return a path or URL that is that of an image by its characters: it has the suffix of one, no ~ and no pattern; else None.

    The disk is not asked whether it is a folder, which would take longer than all else does with many paths.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    name = os.fspath(source)
    if name[name.rfind(".") :].lower() not in formats.SUFFIXES or name[0] == "~" or MAGIC.search(name):
        return None
    return normal(name)


def normal(path: str) -> str:
    """Return a path as `Path` writes it, faster; URLs and addresses as they are."""
    if "//" in path or "./" in path or path.endswith(("/", ".")) or os.altsep:
        return path if is_url(path) else str(Path(path))
    return path


def expand(name: str, recursive: bool = False, suffixes: Collection[str] = formats.SUFFIXES) -> Iterator[str]:
    """Yield the images that a path, a pattern or a URL names. suffixes: of files in folders and those that match a pattern."""
    if is_download(name):
        yield name
        return
    if not name:
        raise DataError("sources: a path is empty; give that of an image or a folder")
    path = existing_path(name)
    if is_folder(path):
        search = Search(path, "has", suffixes)
        yield from require_one(walk(path, recursive, search), search)
    elif is_pattern(path):
        base, parts = split_pattern(path)
        search = Search(path, "matches", suffixes)
        yield from require_one(glob(base, parts, search) if is_folder(base) else iter(()), search)
    elif is_list(path):
        yield from read_list(path)
    else:
        yield str(path)


def is_single(name: str) -> bool:
    """Return whether a path or URL names one image, whether it exists or not."""
    return is_download(name) or (base_folder(name) is None and not is_list(existing_path(name)))


def base_folder(name: str) -> Place | None:
    """Return the folder that is searched for a folder's or a pattern's images; None for others."""
    if is_download(name):
        return None
    path = existing_path(name)
    return path if is_folder(path) else split_pattern(path)[0] if is_pattern(path) else None


def is_download(name: str) -> bool:
    """Return whether a name is a URL, of which there are no folders and patterns."""
    return is_url(name) and not remote.is_remote(name)


def output_name(path: str, base: Place | None) -> str:
    """Return the name of an image's results: its path in the folder that was searched, else its file name; without suffix."""
    if isinstance(base, Address):
        name = "/".join(portable_name(part) or "-" for part in Address(path).parts[len(base.parts) :])
    elif is_url(path):
        name = portable_name(unquote(urlsplit(path).path.rpartition("/")[2])) or "image"
    else:
        start = os.path.join(base or "", "")
        if base is None:
            name = os.path.basename(path)
        elif path.startswith(start) and "./" not in path:  # faster
            name = path[len(start) :]
        else:
            name = os.path.relpath(path, base)
        name = os.path.basename(path) if name.startswith("..") else name
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in formats.SUFFIXES else name


def existing_path(name: str) -> Place:
    """Return a path or address; `~` is the home folder, unless it is a file's name."""
    if remote.is_remote(name):
        return Address(name)
    return Path(name if os.path.lexists(name) else os.path.expanduser(name))


def is_folder(path: Place) -> bool:
    """Return whether a path is that of a folder. An address with the suffix of an image is not: to ask costs a request."""
    if isinstance(path, Address):
        return path.suffix.lower() not in formats.SUFFIXES and path.is_dir()
    return os.path.isdir(path)


def is_pattern(path: Place) -> bool:
    """Return whether a path is a pattern: it has *, ? or [, and no such file exists."""
    if not MAGIC.search(str(path)):
        return False
    return not (path.exists() if isinstance(path, Address) else os.path.lexists(path))


def is_list(path: Place) -> bool:
    """Return whether a path is that of a list of images."""
    if path.suffix.lower() != LIST_SUFFIX:
        return False
    return path.is_file() if isinstance(path, Address) else os.path.isfile(path)


class Search:
    """The state of a search for images: what it has met besides them, for the message that there is none."""

    def __init__(self, source: Place, verb: str, suffixes: Collection[str]):
        self.source, self.verb, self.suffixes = source, verb, tuple(suffixes)
        self.others, self.subfolders = Counter[str](), False  # suffixes of other files; whether some were not searched
        self._visited = set[tuple[object, ...]]()
        self._listed: tuple[Place | None, list[str], list[str]] = None, [], []  # the last folder

    def visited(self, folder: Place, *state: int) -> bool:
        """Return whether a folder has been visited under any path, in this state, and note that it is now."""
        key: tuple[object, ...] = (folder, *state)
        if isinstance(folder, Path):
            try:
                status = folder.stat()
            except OSError:  # `listing` tells
                return False
            key = (status.st_dev, status.st_ino, *state)
        known = key in self._visited
        self._visited.add(key)
        return known

    def listing(self, folder: Place, hidden: bool = False) -> tuple[list[str], list[str]]:
        """Return a folder's files and its subfolders, sorted by name."""
        if folder != self._listed[0]:
            self._listed = folder, *listing(folder, top=folder is self.source)
        files, folders = ([n for n in names if hidden or not n.startswith(".")] for names in self._listed[1:])
        return files, folders

    def images(self, folder: Place, names: Iterable[str]) -> Iterator[str]:
        """Yield the files that are images by their names, and count the others."""
        start = str(folder / "_")[:-1]
        for name in names:
            if name.lower().endswith(self.suffixes):
                yield start + name
            else:
                self.others[os.path.splitext(name)[1]] += 1

    def error(self) -> DataError:
        """Return the error that there is no image."""
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in self.others.most_common(3))
        found = [f"{sum(self.others.values())} other files ({kinds})"] * bool(kinds)
        found += ["subfolders, which are searched with recursive"] * self.subfolders
        return DataError(f"{self.source}: {self.verb} no image; found {' and '.join(found) or 'nothing'}")


def require_one(images: Iterator[str], search: Search) -> Iterator[str]:
    """Yield the images. Raises DataError if there are none."""
    first = next(images, None)
    if first is None:
        raise search.error()
    yield from chain([first], images)


# Folders


def walk(folder: Place, recursive: bool, search: Search) -> Iterator[str]:
    """Yield a folder's images by name, then those of its subfolders. A folder that links lead to again is visited once."""
    if search.visited(folder):
        return
    files, folders = search.listing(folder)
    yield from search.images(folder, files)
    if not recursive:
        search.subfolders = bool(folders)
        return
    for name in folders:
        yield from walk(folder / name, recursive, search)


def listing(folder: Place, top: bool = False) -> tuple[list[str], list[str]]:
    """Return a folder's files and its subfolders, sorted by name.

    Raises DataError; warns if it is a folder on this machine, below the top.
    """
    if isinstance(folder, Address):
        return remote.listing(folder)
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_dir = os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
                (folders if is_dir else files).append(entry.name)
    except OSError as e:
        message = f"{folder}: cannot be listed ({e.strerror})"
        if top:
            raise DataError(f"{message}; check its permissions") from None
        warnings.warn(f"{message}; its images are left out", DataWarning, stacklevel=2)
    return sorted(files), sorted(folders)


# Patterns


def split_pattern(path: Place) -> tuple[Place, list[str]]:
    """Return the folder before a pattern's first part with *, ? or [, and the other parts; a last `**` is `**/*`."""
    base: Place
    if isinstance(path, Address):
        base, parts = Address(path.anchor), list(path.parts)
    else:
        base, parts = Path(path.anchor), list(path.parts[bool(path.anchor) :])
    while parts and not is_pattern(base / parts[0]):
        base /= parts.pop(0)
    return base, parts if parts[-1:] != ["**"] else [*parts, "*"]


def glob(base: Place, parts: list[str], search: Search) -> Iterator[str]:
    """Yield the images below a folder whose path matches a pattern's parts, folder by folder, each by name."""
    if search.visited(base, len(parts)):
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        folders = search.listing(base)[1]
        yield from glob(base, rest, search)
        for name in folders:
            yield from glob(base / name, parts, search)
    elif rest and is_folder(base / part):
        yield from glob(base / part, rest, search)
    else:
        files, folders = search.listing(base, hidden=part.startswith("."))
        if not rest:
            yield from search.images(base, fnmatch.filter(files, part))
            return
        for name in fnmatch.filter(folders, part):
            yield from glob(base / name, rest, search)


# Lists


def read_list(path: Place) -> Iterator[str]:
    """Yield the path or URL on each line of a text file, as `data.read_list` reads it. Raises DataError."""
    folder, empty = list_folder(path), True
    for number, line in enumerate(iter_lines(path, MAX_PATH), 1):
        text = line.strip()
        if "\0" in text or len(text) > MAX_PATH:
            raise DataError(f"{path}:{number}: is not a path; a list has the path of an image on each line")
        if LABEL.fullmatch(text):
            raise DataError(
                f"{path}:{number}: is a label, not a path; give the folder or the pattern of the images, quoted"
            )
        if text:
            empty = False
            yield listed(text, folder)
    if empty:
        raise DataError(f"{path}: is empty; it must have the path of an image on each line")


def list_folder(path: Place) -> str:
    """Return the folder of a list, for `listed`; "" is the current one."""
    return path.parent if isinstance(path, Address) else os.path.dirname(path)


def listed(line: str, folder: str) -> str:
    """Return the image that a line of a list in `folder` names: / in an object store is its bucket."""
    if is_url(line):
        return line
    if isinstance(folder, Address):
        return str(Address(folder.anchor + posixpath.normpath(posixpath.join("/", *folder.parts, line))))
    return normal(listed_path(line, folder))
