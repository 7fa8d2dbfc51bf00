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

Value = bool | int | float | str | None


class UsageError(DarknetError):
    """The command line is wrong."""


class Arguments(SimpleNamespace):
    """A command's positional arguments, each of its flags as an attribute of the flag's type, and notes for the user.

    given: the names of the flags on the command line.
    """

    positionals: list[str]
    given: set[str]
    notes: list[str]


FRACTION = (0, 1)
NOT_NEGATIVE = (0, math.inf)


@dataclass(frozen=True)
class Flag:
    """A flag: its name in Darknet's spelling, its type (bool: takes no value), its default and its help text.

    limits: of its value, both possible. group: the heading under which the help lists it, after those without.
    """

    name: str
    kind: type[bool] | type[int] | type[float] | type[str]
    default: Value
    help: str
    limits: tuple[float, float] = (-math.inf, math.inf)
    group: str = ""


@dataclass(frozen=True)
class Command:
    """A command: its name ("detector test"), positional arguments, help text and the function that runs it.

    positionals: in order; "[source ...]" is optional, and repeatable with dots. help: one short line; more: further text
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


# Darknet accepts each of these for each of its commands (run_detector, run_classifier). The help says why it has no effect
# on a command that does not list it.
DARKNET_COMMANDS = ("detector", "classifier", "detect", "classify")
DARKNET_FLAGS = (
    Flag("avgframes", int, None, ""),
    Flag("benchmark", bool, None, "`detector demo` prints frames per second"),
    Flag("benchmark_layers", bool, None, "`gpudarknet bench` measures times"),
    Flag("c", str, None, ""),
    Flag("chart", str, None, ""),
    Flag("clear", bool, None, ""),
    Flag("cuda_debug_sync", bool, None, ""),
    Flag("dont_show", bool, None, "a window opens only with -show"),
    Flag("dontdraw_bbox", bool, None, ""),
    Flag("dontuse_opencv", bool, None, ""),
    Flag("ext_output", bool, None, ""),
    Flag("gpus", str, None, "-i chooses the GPU"),
    Flag("hier", float, None, "as in Darknet"),
    Flag("http_post_host", str, None, ""),
    Flag("i", int, None, ""),
    Flag("iou_thresh", float, None, ""),
    Flag("json_file_output", str, None, "`detector demo` has -jsonl"),
    Flag("json_port", int, None, "there is no server"),
    Flag("letter_box", bool, None, "letter_box in [net] decides, as in Darknet"),
    Flag("map", bool, None, ""),
    Flag("mAP_epochs", int, None, ""),
    Flag("mjpeg_port", int, None, "there is no server"),
    Flag("num_of_clusters", int, None, ""),
    Flag("out", str, None, ""),
    Flag("out_filename", str, None, ""),
    Flag("points", int, None, ""),
    Flag("prefix", str, None, "`detector demo` has -out_filename"),
    Flag("s", int, None, ""),
    Flag("save_labels", bool, None, ""),
    Flag("show", bool, None, ""),
    Flag("show_imgs", bool, None, ""),
    Flag("t", int, None, ""),
    Flag("thresh", float, None, ""),
    Flag("time_limit_sec", int, None, ""),
    Flag("topk", bool, None, ""),
    Flag("width", int, None, ""),
    Flag("height", int, None, ""),
)
SILENT = "dont_show"  # has no effect, and gets what it asks for


def normalize(flag: str) -> str:
    """Return a flag's name in lower case, without leading dashes and without dashes and underscores inside."""
    return flag.lstrip("-").replace("-", "").replace("_", "").lower()


def parse(command: Command, argv: Sequence[str]) -> Arguments:
    """Parse a command's arguments into positionals, flags, and `notes` on what is ignored. Raises UsageError.

    "--" ends the flags. A flag that takes no value may be followed by 0, which switches it off, or 1; as in Darknet, another
    number there is ignored, so are its flags that have no effect on this command, and the line end of a Windows script.
    """
    known = {normalize(flag.name): flag for flag in command.flags}
    ignored = {normalize(flag.name): flag for flag in ignored_flags(command)}
    values: dict[str, Value] = {flag.name: flag.default for flag in command.flags}
    positionals: list[str] = []
    given: set[str] = set()
    notes: list[str] = []
    rest = [stripped for argument in argv if (stripped := argument.strip("\t\r\n")) or not argument]
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            positionals += rest
            break
        if not argument.startswith("-") or argument == "-":
            positionals.append(argument)
            continue
        name, equals, value = argument.partition("=")
        flag = known.get(normalize(name)) or ignored.get(normalize(name))
        if flag is None:
            names = [f"-{flag.name}" for flag in command.flags]
            hint = did_you_mean("-" + name.lstrip("-"), names, 0.6) or f"; it has {', '.join(names) or 'none'}"
            raise UsageError(f"{command.name}: no flag '{name}'{hint}")
        if flag.kind is bool:
            if not equals:
                value = rest.pop(0) if rest and is_number(rest[0]) else "1"
            if not is_number(value):
                raise UsageError(f"{command.name}: -{flag.name} is 0 or 1, got '{value}'")
            converted: Value = float(value) != 0
            if float(value) not in (0, 1):
                notes.append(f"{command.name}: -{flag.name} takes no value; {value} is ignored")
        else:
            if not equals and (
                not rest or (flag.kind is str and normalize(rest[0]) in known and rest[0].startswith("-"))
            ):
                raise UsageError(f"{command.name}: -{flag.name} needs a value")
            converted = convert(command, flag, value if equals else rest.pop(0))
        if flag.name in values:
            values[flag.name] = converted
            given.add(flag.name)
        elif flag.name != SILENT:
            notes.append(f"{command.name}: -{flag.name} has no effect{'; ' if flag.help else ''}{flag.help}")
    check_positionals(command, positionals)
    return Arguments(positionals=positionals, given=given, notes=notes, **values)


def ignored_flags(command: Command) -> list[Flag]:
    """Return Darknet's flags that a command accepts without effect."""
    own = {flag.name for flag in command.flags}
    return [flag for flag in DARKNET_FLAGS if command.name.split()[0] in DARKNET_COMMANDS and flag.name not in own]


def is_number(word: str) -> bool:
    """Return whether an argument is a number."""
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def convert(command: Command, flag: Flag, value: str) -> int | float | str:
    """Convert a flag's value to its type."""
    if flag.kind is str:
        if not value:  # an unset variable of a script
            raise UsageError(f"{command.name}: -{flag.name} needs a value, got an empty one")
        return value
    try:
        number: float = int(value) if flag.kind is int else float(value)
        if math.isfinite(number) and flag.limits[0] <= number <= flag.limits[1]:
            return number
    except (ValueError, OverflowError):
        pass
    kind = "an integer" if flag.kind is int else "a number"
    if flag.limits == NOT_NEGATIVE:
        kind += " that is not negative"
    elif flag.limits[1] < math.inf:
        kind += f" from {flag.limits[0]} to {flag.limits[1]}"
    elif flag.limits[0] > -math.inf:
        kind += f" of at least {flag.limits[0]}"
    raise UsageError(f"{command.name}: -{flag.name} needs {kind}, got '{value[:40]}'")


def check_positionals(command: Command, positionals: Sequence[str]) -> None:
    """Raise UsageError if there are too few or too many positional arguments."""
    required = [name for name in command.positionals if not name.startswith("[")]
    given = [*positionals, *[""] * len(required)]
    if missing := next((name for name, word in zip(required, given, strict=False) if not word), None):
        raise UsageError(f"{command.name}: {missing} is missing; usage: {command.usage}")
    if len(positionals) > len(command.positionals) and not any("..." in name for name in command.positionals):
        extra = positionals[len(command.positionals)]
        raise UsageError(f"{command.name}: unexpected argument '{extra}'; usage: {command.usage}")
