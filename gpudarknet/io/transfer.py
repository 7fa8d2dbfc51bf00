"""Downloading a URL into a file that may take several attempts: what has arrived is kept and continued."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from .http import TransferError, iter_content, open_url

Progress = Callable[[int, int], None]  # (bytes so far, total bytes or 0)

OVERLAP = 1 << 16  # bytes that a continued download repeats, to see that it is the same file
RETRY_DELAY = 2.0  # seconds before another attempt


def transfer(
    url: str, path: Path, sizes: Collection[int], progress: Progress | None = None, *, allow_private: bool = False
) -> None:
    """Download a URL into `path`, until it has one of the possible `sizes`; continue what is there.

    A continued download repeats the last 64 kB. If they differ, or if the server sends no parts of files, it begins again.
    After a broken connection, further attempts are made as long as they bring more bytes. Raises TransferError; what has
    arrived is kept.
    """
    while True:
        path.touch()
        before = path.stat().st_size
        try:
            return attempt(url, path, sizes, progress, allow_private)
        except TransferError:
            after = path.stat().st_size
            if not after:
                path.unlink()
            if after <= before and (after or not before):  # neither further, nor emptied
                raise
        time.sleep(RETRY_DELAY)


def attempt(url: str, path: Path, sizes: Collection[int], progress: Progress | None, allow_private: bool) -> None:
    """Make one attempt of `transfer`; it empties the file if it began otherwise."""
    size = path.stat().st_size
    start = max(0, size - OVERLAP) if size < min(sizes) else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    with open_url(url, headers, allow_private=allow_private) as response, open(path, "rb+") as file:
        if response.headers.get_content_type() == "text/html":
            raise TransferError("answers with a web page")
        if response.status != 206:
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise TransferError("answers with bytes that were not asked for")
        total = start + response.length if response.length is not None else 0
        if total and total not in sizes:
            raise TransferError(f"has {total} bytes, not {' or '.join(map(str, sizes))}")
        if not start:
            file.truncate()
        done = file.seek(start)
        for data in iter_content(response):
            if done + len(data) > max(sizes):
                file.truncate(0)
                raise TransferError(f"has more than {max(sizes)} bytes")
            if not data.startswith(file.read(len(data))):
                file.truncate(0)
                raise TransferError("continues with other bytes")
            file.seek(done)
            done += file.write(data)
            if progress:
                progress(done, total)
    if done not in sizes:
        raise TransferError(f"ended after {done} bytes")
