"""`weights`: list and download pretrained weights."""

from __future__ import annotations

from urllib.parse import urlsplit

from ..io import download, resources
from .arguments import Arguments, Command, Flag, UsageError
from .inputs import download_weights


def weights(args: Arguments) -> None:
    """Download the named weights and print their paths, or list all."""
    source = getattr(args, "from")
    if source is not None and len(args.positionals) != 1:
        raise UsageError("weights: -from needs one name: gpudarknet weights yolov4-tiny -from FILE|URL")
    if not args.positionals:
        show()
    for name in args.positionals:
        print(download_weights(name, source), flush=True)


def show() -> None:
    """Print the pretrained weights: size, whether they are cached, how they are checked, and their addresses."""
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "MB", "cached", "checked by", "addresses", "from", box=None, header_style="bold")
    for name, pretrained in download.PRETRAINED.items():
        cached = "yes" if download.cached_path(name).is_file() else ""
        hosts = ", ".join(dict.fromkeys(host(source) for source in pretrained.sources))
        size = f"{pretrained.sizes[0] / 1e6:.0f}"
        table.add_row(name, size, cached, pretrained.checked_by, str(len(pretrained.sources)), hosts)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\nCache: {resources.cache_dir()}; set {resources.CACHE_VARIABLE} to change it.")


def host(source: str | download.Wheel) -> str:
    """Return the short name of a source: PyPI, an account of GitHub, or a domain."""
    if isinstance(source, download.Wheel):
        return "PyPI"
    url = urlsplit(source)
    return url.path.split("/")[1] if url.netloc == "github.com" else url.netloc.removeprefix("data.")


FROM = Flag("from", str, None, "Take the weights from this file or http(s) URL, and verify them")
MORE = (
    "Prints the path of each file; without a name, lists all pretrained weights and whether they are cached. The addresses"
    " are tried in order, and a download that broke is continued. Weights of which no sha256 is published are checked by"
    " their size"
)
COMMANDS = (Command("weights", ("[name ...]",), "Download pretrained weights", weights, (FROM,), MORE),)
