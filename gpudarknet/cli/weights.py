"""`weights`: list and download pretrained weights."""

from __future__ import annotations

import sys

from ..io import download
from .arguments import Arguments, Command
from .inputs import download_weights


def weights(args: Arguments) -> None:
    """Download the named weights and print their paths, or list all."""
    if not args.positionals:
        show()
    for name in args.positionals:
        path = download_weights(name)
        print(path, flush=True)
        if download.PRETRAINED[path.stem].sha256 is None:
            print(
                f"{path.name}: only its size was verified, no sha256 is published; its sha256 is {download.sha256(path)}",
                file=sys.stderr,
            )


def show() -> None:
    """Print the pretrained weights: size, source, how they are verified, and whether they are cached."""
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "MB", "verified by", "cached", "source", box=None, header_style="bold")
    for name, pretrained in download.PRETRAINED.items():
        cached = "yes" if download.cached_path(name).is_file() else ""
        source = pretrained.source.removeprefix("https://").split("/releases/")[0].split("/media/")[0]
        table.add_row(
            name, f"{4 * pretrained.elements / 1e6:.0f}", "sha256" if pretrained.sha256 else "size", cached, source
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\nCache: {download.cache_dir()}; set {download.CACHE_VARIABLE} to change it.")


MORE = "Prints the path of each file; without a name, lists all pretrained weights and whether they are cached"
COMMANDS = (Command("weights", ("[name ...]",), "Download pretrained weights", weights, more=MORE),)
