"""Command-line parsing with Darknet's conventions.

Why not argparse: a flag may be written with one dash or two, and dashes and underscores inside it are interchangeable
(-dont_show, --dont-show); errors are one line and suggest the nearest flag; and `Command` is plain data that the help and
the documentation are generated from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from ..errors import DarknetError, did_you_mean


class UsageError(DarknetError):
    """The command line is wrong."""


class Arguments(SimpleNamespace):
    """A command's positional arguments, and each of its flags as an attribute of the flag's type."""

    positionals: list[str]


@dataclass(frozen=True)
class Flag:
    """A flag: its name in Darknet's spelling, its type (bool: takes no value), its default and its help text."""

    name: str
    kind: type[bool] | type[int] | type[float] | type[str]
    default: bool | int | float | str | None
    help: str


@dataclass(frozen=True)
class Command:
    """A command: its name ("detector test"), positional arguments, help text and the function that runs it.

    positionals: in order; "[image ...]" is optional, and repeatable with dots. help: one short line; more: further text
    for the command's own help page. run(args) gets `args.positionals` and each flag as an attribute; it returns an exit
    code, or None for 0.
    """

    name: str
    positionals: tuple[str, ...]
    help: str
    run: Callable[[Arguments], int | None]
    flags: tuple[Flag, ...] = ()
    more: str = ""

    @property
    def usage(self) -> str:
        """The usage line."""
        return " ".join(["gpudarknet", self.name, *self.positionals, *(["[flags]"] if self.flags else [])])


def normalize(flag: str) -> str:
    """Return a flag's name without leading dashes and without dashes and underscores inside."""
    return flag.lstrip("-").replace("-", "").replace("_", "")


def parse(command: Command, argv: Sequence[str]) -> Arguments:
    """Parse a command's arguments into positionals and flags. "--" ends the flags. Raises UsageError."""
    known = {normalize(flag.name): flag for flag in command.flags}
    values: dict[str, bool | int | float | str | None] = {flag.name: flag.default for flag in command.flags}
    positionals: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            positionals += rest
            break
        if not argument.startswith("-") or argument == "-":
            positionals.append(argument)
            continue
        name, equals, value = argument.partition("=")
        flag = known.get(normalize(name))
        if flag is None:
            names = [f"-{flag.name}" for flag in command.flags]
            hint = did_you_mean("-" + name.lstrip("-"), names, 0.6) or f"; it has {', '.join(names) or 'none'}"
            raise UsageError(f"{command.name}: no flag '{name}'{hint}")
        if flag.kind is bool:
            if equals:
                raise UsageError(f"{command.name}: -{flag.name} takes no value, got '{value}'")
            values[flag.name] = True
            continue
        if not equals:
            if not rest:
                raise UsageError(f"{command.name}: -{flag.name} needs a value")
            value = rest.pop(0)
        values[flag.name] = convert(command, flag, value)
    check_positionals(command, positionals)
    return Arguments(positionals=positionals, **values)


def convert(command: Command, flag: Flag, value: str) -> int | float | str:
    """Convert a flag's value to its type."""
    if flag.kind is str:
        return value
    try:
        number: float = int(value) if flag.kind is int else float(value)
        if math.isfinite(number):
            return number
    except (ValueError, OverflowError):
        pass
    kind = "an integer" if flag.kind is int else "a number"
    raise UsageError(f"{command.name}: -{flag.name} needs {kind}, got '{value[:40]}'")


def check_positionals(command: Command, positionals: Sequence[str]) -> None:
    """Raise UsageError if there are too few or too many positional arguments."""
    required = [name for name in command.positionals if not name.startswith("[")]
    if len(positionals) < len(required):
        missing = required[len(positionals)]
        raise UsageError(f"{command.name}: {missing} is missing; usage: {command.usage}")
    if len(positionals) > len(command.positionals) and not any("..." in name for name in command.positionals):
        extra = positionals[len(command.positionals)]
        raise UsageError(f"{command.name}: unexpected argument '{extra}'; usage: {command.usage}")
