"""Downloading a URL into a file that may take several attempts: what has arrived is kept and continued."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from .atomic import atomic_write
from .http import TIMEOUT, Deadline, Response, TransferError, open_url, printable

Progress = Callable[[int, int], None]  # (bytes so far, total bytes or 0)

RETRY_DELAYS = (1.0, 2.0, 4.0)  # seconds before further attempts after a connection broke
MIN_RATE = 1024  # bytes per second, on average over the timeout; what is slower has stalled
WEB_PAGE = re.compile(rb"\s*<(!doctype\s+html|html|head|\?xml)", re.IGNORECASE)


class PartialFile:
    """A file that is being downloaded; next to it, a note of where its bytes come from and which version they are."""

    def __init__(self, path: Path):
        self.path = path
        self.note = path.with_name(f"{path.name}.json")

    @property
    def size(self) -> int:
        """The number of bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def clear(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def origin(self) -> tuple[str, str]:
        """Return the URL of the bytes and the validator of their version (an ETag or a date), "" for what is not known."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = json.loads(self.note.read_text(encoding="utf-8"))
            return str(note["url"]), str(note["validator"])
        return "", ""

    def start(self, url: str, validator: str) -> None:
        """Empty the file, and note where its bytes will come from."""
        self.clear()
        self.path.touch()
        with atomic_write(self.note) as tmp:
            tmp.write_text(json.dumps({"url": printable(url), "validator": validator}), encoding="utf-8")


def transfer(
    url: str,
    part: PartialFile,
    sizes: Collection[int],
    progress: Progress | None = None,
    *,
    mix: bool = False,
    allow_private: bool = False,
    timeout: float = TIMEOUT,
) -> None:
    """Download a URL into a partial file, until it has one of the possible `sizes`; continue what is there.

    A server continues the version that the file begins with, or sends all of it again. mix: the bytes may also be
    continued from another URL or of an unknown version, because the result is verified by a hash. If the connection breaks,
    further attempts are made as long as they bring more bytes, and a few without. timeout: seconds without 1 kB per second.
    Raises TransferError; what has arrived is kept.
    """
    attempts, best = 0, part.size
    while True:
        try:
            attempt(url, part, sizes, progress, mix=mix, allow_private=allow_private, timeout=timeout)
            return
        except TransferError as e:
            if part.size > best:
                attempts, best = 0, part.size
            if not e.temporary or attempts == len(RETRY_DELAYS):
                raise
        time.sleep(RETRY_DELAYS[attempts])
        attempts += 1


def attempt(
    url: str,
    part: PartialFile,
    sizes: Collection[int],
    progress: Progress | None,
    *,
    mix: bool,
    allow_private: bool,
    timeout: float,
) -> None:
    """Make one attempt of `transfer`."""
    origin, validator = part.origin()
    same = origin == printable(url) and bool(validator)
    if part.size >= max(sizes) or (part.size and not (same or mix)):
        part.clear()
    headers = {"Range": f"bytes={part.size}-"} if part.size else {}
    if headers and same:
        headers["If-Range"] = validator
    deadline = Deadline(timeout)
    try:
        with open_url(url, deadline, allow_private=allow_private, headers=headers) as response:
            receive(url, response, deadline, part, sizes, progress)
    except TransferError as e:
        if e.status == 416:  # the server's file is not longer than the part
            part.clear()
            e.temporary = True
        raise


def receive(
    url: str,
    response: Response,
    deadline: Deadline,
    part: PartialFile,
    sizes: Collection[int],
    progress: Progress | None,
) -> None:
    """Write a server's answer to a partial file. Raises TransferError, before anything is written if the size is wrong."""
    page = TransferError("answers with a web page")
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise page
    done = content_range(response) if response.status == 206 else 0
    if done not in (0, part.size):
        raise TransferError("answers with bytes that were not asked for")
    total = done + response.length if response.length is not None else 0
    if total and total not in sizes:
        raise TransferError(f"has {total} bytes, not {' or '.join(map(str, sizes))}")
    data = response.read()
    if not done:
        if WEB_PAGE.match(data):
            raise page
        part.start(url, validator_of(response))
    mark = done
    with open(part.path, "ab") as file:
        while data:
            done += len(data)
            if done > max(sizes):
                break
            file.write(data)
            if progress:
                progress(done, total)
            if done - mark >= MIN_RATE * deadline.seconds:
                mark = done
                deadline.renew()
            data = response.read()
    if done > max(sizes):
        part.clear()
        raise TransferError(f"has more than {max(sizes)} bytes")
    if done not in sizes:
        raise TransferError(f"ended after {done} bytes", temporary=True)


def content_range(response: Response) -> int:
    """Return where the bytes of a partial answer begin, -1 if the server does not say."""
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def validator_of(response: Response) -> str:
    """Return what identifies the version of a server's file: a strong ETag, else its date, else ""."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
