"""`weights`: list and fetch published weights."""

from __future__ import annotations

import sys
from typing import Any

from ..io import download
from .arguments import Command
from .inputs import fetched


def weights(args: Any) -> None:
    """Fetch the named weights and print their paths, or list all."""
    if not args.words:
        show()
    for name in args.words:
        path = fetched(name)
        print(path, flush=True)
        if download.PRETRAINED[path.stem].sha256 is None:
            print(
                f"{path.name}: its size is right; nobody published a sha256 to check it by. It has {download.sha256(path)}",
                file=sys.stderr,
            )


def show() -> None:
    """Print the published weights: size, source, what they are checked by, and whether they are in the cache."""
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "MB", "checked by", "cached", "published as", box=None, header_style="bold")
    for name, published in download.PRETRAINED.items():
        there = "yes" if download.cached_path(name).is_file() else ""
        source = published.source.removeprefix("https://").split("/releases/")[0].split("/media/")[0]
        table.add_row(
            name, f"{4 * published.elements / 1e6:.0f}", "sha256" if published.sha256 else "size", there, source
        )
    screen = Console(highlight=False)
    screen.print(table)
    screen.print(f"\nThe cache is {download.cache_dir()}; {download.CACHE_VARIABLE} names another.")


MORE = "Prints the path of each file; without a name, lists what is published, and what is in the cache"
COMMANDS = (Command("weights", ("[name ...]",), "Fetch published weights", weights, more=MORE),)
