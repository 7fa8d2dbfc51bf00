"""Files of object stores and file servers, which fsspec reads: s3://bucket/photos/a.jpg.

    from gpudarknet.io import remote
    data = remote.read_bytes("s3://bucket/photos/a.jpg", 64 << 20)

Credentials and endpoints are those of fsspec and of the package for the scheme: environment variables, configuration files. Only
addresses of `SCHEMES` are read: others that fsspec knows lead to files of this machine or to URLs, which `http.py` checks.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, TypeGuard
from urllib.parse import urlsplit

from ..errors import DataError

SCHEMES = {
    "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "gcs": "gcsfs", "gs": "gcsfs", "hdfs": "pyarrow",
    "hf": "huggingface_hub", "memory": "", "oci": "ocifs", "oss": "ossfs", "s3": "s3fs", "s3a": "s3fs", "sftp": "paramiko",
    "smb": "smbprotocol", "ssh": "paramiko", "webhdfs": "requests",
}  # fmt: skip  # the packages that fsspec needs for them
# Addresses of these name a host. On others a file appears whole when it is written, and folders need not be created.
SERVERS = ("hdfs", "sftp", "smb", "ssh", "webhdfs")
BUFFER = 1 << 20  # bytes of an open file


class NotFoundError(DataError):
    """There is no such file, folder or bucket."""


def is_remote(address: Any) -> TypeGuard[str]:
    """Return whether a str is an address of an object store or file server; http and https URLs are not."""
    scheme, separator, _ = address.partition("://") if isinstance(address, str) else ("", "", "")
    return bool(separator) and scheme.lower() in SCHEMES


class Address(str):
    """An address that is used as a Path is."""

    __slots__ = ()

    def __new__(cls, address: str) -> Address:
        """Return an address without slashes at its end, but those of scheme://."""
        scheme, separator, rest = address.partition("://")
        return super().__new__(cls, scheme + separator + rest.rstrip("/"))

    @property
    def anchor(self) -> str:
        """The part that names a bucket or server: s3://bucket."""
        scheme, separator, rest = self.partition("://")
        return scheme + separator + rest.partition("/")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of folders and file after the anchor."""
        return tuple(part for part in self[len(self.anchor) :].split("/") if part)

    @property
    def name(self) -> str:
        """The last part."""
        return self.parts[-1] if self.parts else ""

    @property
    def suffix(self) -> str:
        """The end of the name that begins with a dot."""
        return os.path.splitext(self.name)[1]

    @property
    def parent(self) -> Address:
        """The folder."""
        return Address(self[: len(self) - len(self.name)])

    def __truediv__(self, name: str) -> Address:
        """Return the address of a file or folder in this one."""
        return Address(f"{self}{'' if self.endswith('/') else '/'}{name}")

    def is_dir(self) -> bool:
        """Return whether it is a folder or bucket. Raises DataError."""
        return kind(self) == "directory"

    def is_file(self) -> bool:
        """Return whether it is a file. Raises DataError."""
        return kind(self) == "file"

    def exists(self) -> bool:
        """Return whether it is a file, folder or bucket. Raises DataError."""
        return kind(self) is not None


def shown(address: str) -> str:
    """Return an address for a message, without its user and password."""
    from .http import printable

    return printable(address)


def read_bytes(address: str, max_bytes: int | None = None) -> bytes:
    """Return the content of a file. Raises DataError if it cannot be read or has more than `max_bytes`; NotFoundError."""
    with translated_errors(address):
        fs, path = filesystem(address)
        try:  # with a range, as s3fs then sends one request
            data: bytes = fs.cat_file(path, start=0, end=None if max_bytes is None else max_bytes + 1)
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:  # an empty file has no such range
            if fs.info(path)["size"]:
                raise
            data = b""
    if max_bytes is not None and len(data) > max_bytes:
        raise DataError(f"{shown(address)}: has more than {max_bytes} bytes; download it and give the file")
    return data


def open_file(address: str) -> BinaryIO:
    """Open a file for reading in binary mode; it can be sought. Raises DataError, as do reading and seeking."""
    with translated_errors(address):
        fs, path = filesystem(address)
        return io.BufferedReader(RemoteFile(address, fs.open(path, "rb")), BUFFER)


def kind(address: str) -> str | None:
    """Return "file" or "directory"; None if there is no such file, folder or bucket. Raises DataError."""
    try:
        with translated_errors(address):
            fs, path = filesystem(address)
            return str(fs.info(path)["type"])
    except NotFoundError:
        return None


def listing(address: str) -> tuple[list[str], list[str]]:
    """Return the names of a folder's files and of its subfolders, sorted. Raises DataError."""
    names: dict[str, set[str]] = {"file": set(), "directory": set()}
    with translated_errors(address):
        fs, path = filesystem(address)
        for entry in fs.ls(path, detail=True):
            entry_path = entry["name"].rstrip("/")
            if entry_path.strip("/") != path.strip("/") and not (
                entry["type"] == "file" and entry["name"].endswith("/")
            ):
                names.setdefault(entry["type"], set()).add(entry_path.rpartition("/")[2])
    return sorted(names["file"]), sorted(names["directory"])


def write_bytes(address: str, data: bytes) -> None:
    """Write or replace a file. Raises DataError."""
    with translated_errors(address):
        fs, path = filesystem(address)
        fs.pipe_file(path, data)


def create(address: str, data: bytes) -> bool:
    """Write a file unless it exists; return whether it did not. Raises DataError.

    Two processes that do so at once may both create it if fsspec has no exclusive writing for this store.
    """
    with translated_errors(address):
        fs, path = filesystem(address)
        try:
            fs.pipe_file(path, data, mode="create")
        except OSError:
            if not fs.exists(path):
                raise
            return False
    return True


def move(address: str, target: str) -> None:
    """Rename a file; one of the new name is replaced. Raises DataError."""
    with translated_errors(target):
        fs, path = filesystem(address)
        _, target_path = filesystem(target)
        with suppress(FileNotFoundError):
            fs.rm_file(target_path)  # most servers do not rename onto a file
        fs.mv(path, target_path)


def remove(address: str, *, recursive: bool = False) -> None:
    """Remove a file, or a folder with all that is in it, if it exists. Raises DataError."""
    with suppress(NotFoundError), translated_errors(address):
        fs, path = filesystem(address)
        fs.rm(path, recursive=recursive)


def make_folder(address: str) -> None:
    """Create a folder on a server, and those above it, unless they exist; an object store has none. Raises DataError."""
    if is_server(address):
        with translated_errors(address):
            fs, path = filesystem(address)
            fs.makedirs(path, exist_ok=True)


def is_server(address: str) -> bool:
    """Return whether an address is that of a server, where a file may be seen before it is complete."""
    return address.partition("://")[0].lower() in SERVERS


def filesystem(address: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it. Raises DataError, and errors of the file system."""
    scheme, rest = address.split("://", 1)
    scheme = scheme.lower()
    packages = " ".join(["pip install 'gpudarknet[cluster]'", SCHEMES[scheme]]).strip()
    if is_server(address):
        check_host(address)
    try:
        import fsspec

        cls = fsspec.get_filesystem_class(scheme)
    except ImportError as e:
        missing = getattr(e.__cause__ or e, "name", None) or f"a package for {scheme}"
        raise DataError(f"{shown(address)}: {missing} is not installed; {packages}") from None
    address = f"{scheme}://{rest}"  # not through fsspec.open, in which :: leads to another file system
    options = cls._get_kwargs_from_urls(address)
    return fsspec.filesystem(scheme, use_listings_cache=False, **options), cls._strip_protocol(address)


def check_host(address: str) -> None:
    """Raise DataError if the host of an address is not public, as for URLs: the address may be of a list."""
    from .http import ALLOW_PRIVATE_URLS, TransferError, resolve

    try:
        host, port = urlsplit(address).hostname, urlsplit(address).port
        if host:
            resolve(host, port or 0, os.environ.get(ALLOW_PRIVATE_URLS) == "1")
    except TransferError as e:
        raise DataError(f"{shown(address)}: {e}; {e.remedy}") from None
    except (OSError, ValueError):  # reported when it is connected to; the name of an HDFS cluster is no host's
        pass


@contextmanager
def translated_errors(address: str) -> Iterator[None]:
    """Raise a DataError of one line for any error of a file system: each has its own exceptions."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise NotFoundError(f"{shown(address)}: no such file, folder or bucket; check the address") from None
    except Exception as e:
        text = " ".join(str(e).split()) or type(e).__name__
        text = re.sub(r"(\w://)[^/\s]*@", r"\1", re.sub(r"(\w://[^\s?\"']*)\?[^\s\"']*", r"\1", text))[:200]
        remedy = (
            "credentials, and what they permit"
            if isinstance(e, PermissionError)
            else "address, the credentials, the connection"
        )
        raise DataError(f"{shown(address)}: cannot be accessed ({text}); check the {remedy}") from None


class RemoteFile(io.RawIOBase):
    """An open file of a file system, with errors as DataError."""

    def __init__(self, address: str, file: Any):
        self.name, self._file = shown(address), file

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes."""
        with translated_errors(self.name):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; return it."""
        with translated_errors(self.name):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Return the position."""
        return int(self._file.tell())

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return whether `seek` works."""
        return bool(self._file.seekable())

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()
