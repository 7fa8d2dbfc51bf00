"""`info`: describe this machine, and why the GPU is or is not used."""

from __future__ import annotations

from .. import __version__, backend
from ..io import resources
from .arguments import Arguments, Command


def info(args: Arguments) -> None:
    """Print versions, backend, GPU, BLAS, threads and folders."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = [
        ("gpudarknet", __version__),
        *backend.diagnose(),
        ("cfg", str(resources.folder())),
        ("cache", str(resources.cache_dir())),
    ]
    for name, value in rows:
        table.add_row(f"[bold]{escape(name)}[/]", escape(value))
    Console(highlight=False).print(table)


COMMANDS = (Command("info", (), "Show backend, GPU, BLAS and versions, and why a GPU is not used", info),)
