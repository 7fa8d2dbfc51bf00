"""The command line, the only place that prints. Each file of this folder beside the first few holds a group of commands.

A new group is a file with COMMANDS, and its name in GROUPS. What a command needs it imports when it runs, so that help and
errors come at once.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import DarknetError
from .arguments import Command, UsageError, parse

GROUPS = (
    "detector",
    "train",
    "evaluate",
    "demo",
    "digits",
    "classifier",
    "table",
    "plan",
    "weights",
    "info",
    "export",
    "bench",
)
BROKEN, INTERRUPTED = 2, 130  # exit codes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 after an error (one line on stderr), 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)  # no name of a file or a class may end in a traceback
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what it has to say of a broken picture is in our own error
    with warnings.catch_warnings(), log_to_stderr():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show_warning
        try:
            code = run(words)
            sys.stdout.flush()
            return code
        except DarknetError as e:
            return fail(str(e))
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:  # whoever read the output has gone; nothing may be written at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN
        except OSError as e:
            return fail(f"{e.filename}: {e.strerror}" if e.filename else str(e))
        except MemoryError:
            return fail("out of memory; make width, height or batch smaller")


def run(words: list[str]) -> int:
    """Find the command that the words begin with and run it."""
    if not words or plain_help(words[0]) or words[0] == "help":
        from .help import overview, page

        asked = [word for word in words[1:] if not plain_help(word)]
        page(find(asked)[0]) if asked else overview(commands())
        return 0
    if words[0] in ("version", "-version", "--version"):
        from .. import __version__

        print(f"gpudarknet {__version__}")
        return 0
    command, rest = find(words)
    if any(plain_help(word) for word in rest):
        from .help import page

        page(command)
        return 0
    return command.run(parse(command, rest)) or 0


def plain_help(word: str) -> bool:
    """Say whether a word asks for help."""
    return word in ("-h", "-help", "--help")


def commands() -> list[Command]:
    """Return all commands, group by group."""
    found: list[Command] = []
    for group in GROUPS:
        found += importlib.import_module(f".{group}", __name__).COMMANDS
    return found


def find(words: Sequence[str]) -> tuple[Command, list[str]]:
    """Return the command that the words begin with, and the words after it. Raises UsageError."""
    known = {command.name: command for command in commands()}
    for count in (2, 1):
        command = known.get(" ".join(words[:count]))
        if command and len(words) >= count:
            return command, list(words[count:])
    verbs = [name.split()[1] for name in known if name.split()[0] == words[0] and " " in name]
    if verbs:
        said = f"no '{words[1]}'" if len(words) > 1 else "a word is missing after it"
        raise UsageError(f"{words[0]}: {said}; it has {', '.join(verbs)}")
    close = difflib.get_close_matches(" ".join(words[:2]), known, 1, 0.6) or difflib.get_close_matches(
        words[0], known, 1
    )
    hint = f"did you mean '{close[0]}'?" if close else "`gpudarknet help` lists all"
    raise UsageError(f"no command '{words[0]}'; {hint}")


def fail(message: str) -> int:
    """Say what went wrong, on one line of stderr; return the exit code for it."""
    tell("error", message)
    return BROKEN


def tell(kind: str, message: str) -> None:
    """Print a line to stderr. What a file smuggled into a message cannot steer the terminal or add lines."""
    clean = "".join(c if c.isprintable() else " " for c in message)
    print(f"{kind}: {clean}", file=sys.stderr, flush=True)


def show_warning(
    message: Warning | str, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Print a warning as one line."""
    tell("warning", str(message))


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print what the package logs, such as what it waits for, while the block runs."""
    logger, handler = logging.getLogger("gpudarknet"), logging.Handler()
    handler.emit = lambda record: tell(record.levelname.lower(), record.getMessage())  # type: ignore[method-assign]
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
