"""Reading text files that users write: cfg, .data, names, trees, lists, labels; and text as the name of a file."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import DarknetError, DataError
from . import remote

MAX_BYTES = 16 << 20  # the largest published cfg has 50 kB, the 22,000 names of ImageNet 0.7 MB
MAX_NAME = 200  # bytes of a text in the name of a file, of the 255 that file systems allow


def read_text(path: str | Path, error: type[DarknetError] = DataError, max_bytes: int = MAX_BYTES) -> str:
    """Read a UTF-8 file, or UTF-16 with a byte order mark as PowerShell writes it; invalid bytes become U+FFFD.

    The byte order mark is not part of the text. Raises `error` if the file is missing, binary or larger than `max_bytes`.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as e:
        raise error(f"{path}: cannot be read ({e.strerror}); check the path") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    else:
        text = data.decode("utf-8-sig", errors="replace")
    if len(data) > max_bytes or "\0" in text:
        raise error(f"{path}: is not a text file (binary data); check the order of the files")
    return text


def iter_lines(path: str | Path, max_length: int) -> Iterator[str]:
    """Yield the lines of a file in the encodings of `read_text`, reading as it goes; longer ones in parts above `max_length`.

    path: also an address, as in `remote`. Invalid bytes become what `os.fsencode` converts back, so that paths keep them. Raises
    DataError if it cannot be read.
    """
    try:
        with remote.open_file(path) if remote.is_remote(path) else open(path, "rb") as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            file.seek(0)
            encoding, errors = ("utf-16", "replace") if wide else ("utf-8-sig", "surrogateescape")
            text = io.TextIOWrapper(file, encoding, errors)
            while line := text.readline(max_length + 2):
                yield line
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror}); check the path") from None


def portable_name(text: str) -> str:
    """Return text with "-" for what some system does not allow in the name of a file, at most MAX_NAME bytes, maybe empty."""
    return cut_name(re.sub(r'[\x00-\x1f<>:"/\\|?*]', "-", text)).strip(" .")


def cut_name(text: str) -> str:
    """Return the first MAX_NAME bytes of a text, without a partial character."""
    return text.encode(errors="surrogateescape")[:MAX_NAME].decode(errors="ignore")


def valid_utf8(text: str) -> str:
    """Return text with ? for what UTF-8 cannot encode, such as undecodable bytes of a file's name; OpenCV crashes on it."""
    return text.encode(errors="replace").decode()


class UniqueNames:
    """Gives each name once: the second "dog" becomes "dog_2". Names that differ in case only are equal, as in Windows."""

    def __init__(self) -> None:
        self._taken = set[int]()  # hashes, which are smaller
        self._counts = dict[int, int]()  # of names that were wanted again

    def __call__(self, name: str) -> str:
        """Return the name, with a number if it has been given."""
        unique, wanted = name, hash(name.casefold())
        while (key := hash(unique.casefold())) in self._taken:
            self._counts[wanted] = number = self._counts.get(wanted, 1) + 1
            unique = f"{name}_{number}"
        self._taken.add(key)
        return unique
