"""Help pages, formatted with rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .arguments import Command, Flag, ignored_flags

INTRO = "Run and train Darknet (YOLO) networks."
HINT = "A cfg, .data or weights argument is a path, or the name of a bundled file or pretrained network, such as yolov4-tiny."


def overview(commands: Sequence[Command]) -> None:
    """Print all commands with their short help."""
    table = columns()
    for command in commands:
        table.add_row(f"[bold]{command.name}[/]", command.help)
    table.add_row("[bold]version[/]", "Print the version")
    screen = Console(highlight=False)
    screen.print(f"{INTRO}\n\n[bold]gpudarknet[/] COMMAND ...\n")
    screen.print(table)
    screen.print(f"\n{HINT}\n[bold]gpudarknet COMMAND --help[/] shows a command's flags.")


def page(command: Command) -> None:
    """Print a command's usage, help text and flags with their defaults."""
    screen = Console(highlight=False)
    screen.print(f"[bold]{escape(command.usage)}[/]\n\n{escape(f'{command.help}. {command.more}'.rstrip('. '))}.")
    if not command.flags:
        return
    screen.print("\nFlags may appear anywhere, with one dash or two.")
    for heading, flags in groupby(command.flags, lambda flag: flag.group):
        if heading:
            screen.print(f"\n{escape(heading)}")
        screen.print(flag_table(flags))
    ignored = (f"-{flag.name}" + (f" ({flag.help})" if flag.help else "") for flag in ignored_flags(command))
    if text := ", ".join(ignored):
        screen.print(f"\nOther flags of Darknet's are accepted without effect: {escape(text)}.")


def flag_table(flags: Iterable[Flag]) -> Table:
    """Return a table of flags with their defaults."""
    table = columns()
    for flag in flags:
        value = "" if flag.kind is bool else {int: "N", float: "X", str: "TEXT"}[flag.kind]
        default = f" [dim](default {flag.default})[/]" if flag.default not in (None, False, "") else ""
        table.add_row(f"[bold]-{flag.name}[/] {value}", escape(flag.help) + default)
    return table


def columns() -> Table:
    """Return a table without borders, whose first column does not wrap."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
    table.add_column(no_wrap=True)
    return table
