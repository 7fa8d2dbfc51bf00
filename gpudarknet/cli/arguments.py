"""Arguments in Darknet's habit: flags anywhere, one dash or two, dashes and underscores inside a flag's name as you like."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ..errors import DarknetError


class UsageError(DarknetError):
    """The command line itself is wrong."""


@dataclass(frozen=True)
class Flag:
    """A flag: its name as Darknet spells it, its kind (bool: it stands alone), its default, and what it does."""

    name: str
    kind: type[bool] | type[int] | type[float] | type[str]
    default: bool | int | float | str | None
    help: str


@dataclass(frozen=True)
class Command:
    """A command: its words ("detector test"), what follows them, what it does, and the function that does it.

    help: one short line; more: the rest, for its own page. words: what must follow, in order; "[image ...]" may follow, with
    dots any number of times. run(args) gets the words as `args.words` and each flag under its name; it returns an exit code,
    None for 0.
    """

    name: str
    words: tuple[str, ...]
    help: str
    run: Callable[[Any], int | None]
    flags: tuple[Flag, ...] = ()
    more: str = ""

    @property
    def usage(self) -> str:
        """The command as it is typed."""
        return " ".join(["gpudarknet", self.name, *self.words, *(["[flags]"] if self.flags else [])])


def plain(word: str) -> str:
    """Return a flag's name without what may differ: leading dashes, dashes and underscores inside."""
    return word.lstrip("-").replace("-", "").replace("_", "")


def parse(command: Command, argv: Sequence[str]) -> SimpleNamespace:
    """Sort what follows a command into words and flags. "--" ends the flags. Raises UsageError."""
    known = {plain(flag.name): flag for flag in command.flags}
    values: dict[str, Any] = {flag.name: flag.default for flag in command.flags}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        name, equals, value = word.partition("=")
        flag = known.get(plain(name))
        if flag is None:
            raise UsageError(f"{command.name}: no flag '{name}'{nearest(name, known)}")
        if flag.kind is bool:
            if equals:
                raise UsageError(f"{command.name}: -{flag.name} takes no value, found '{value}'")
            values[flag.name] = True
            continue
        if not equals:
            if not rest:
                raise UsageError(f"{command.name}: -{flag.name} needs a value after it")
            value = rest.pop(0)
        values[flag.name] = convert(command, flag, value)
    check_words(command, words)
    return SimpleNamespace(words=words, **values)


def convert(command: Command, flag: Flag, value: str) -> Any:
    """Turn a flag's value into its kind."""
    if flag.kind is str:
        return value
    try:
        number: float = int(value) if flag.kind is int else float(value)
        if math.isfinite(number):
            return number
    except (ValueError, OverflowError):
        pass
    kind = "an integer" if flag.kind is int else "a number"
    raise UsageError(f"{command.name}: -{flag.name} needs {kind}, found '{value[:40]}'")


def check_words(command: Command, words: Sequence[str]) -> None:
    """Raise UsageError where words are missing or too many."""
    needed = [word for word in command.words if not word.startswith("[")]
    if len(words) < len(needed):
        missing = needed[len(words)]
        raise UsageError(f"{command.name}: {missing} is missing; usage: {command.usage}")
    if len(words) > len(command.words) and not any("..." in word for word in command.words):
        raise UsageError(f"{command.name}: '{words[len(command.words)]}' is too much; usage: {command.usage}")


def nearest(word: str, known: dict[str, Flag]) -> str:
    """Return what to say after an unknown flag."""
    close = difflib.get_close_matches(plain(word), list(known), 1, 0.6)
    if close:
        return f"; did you mean '-{known[close[0]].name}'?"
    return f"; it has {', '.join('-' + flag.name for flag in known.values()) or 'none'}"
