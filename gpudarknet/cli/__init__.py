"""The command line, the only part of the package that prints.

Each module in GROUPS defines a group of commands as COMMANDS; to add a group, write such a module and list it there.
`arguments.py` parses, `help.py` prints help; `inputs.py`, `outputs.py`, `formats.py` and `results.py` are shared.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from ..errors import DarknetError, did_you_mean
from ..train.signals import handled, stop
from .arguments import Command, UsageError, parse

GROUPS = (
    "detector",
    "cluster",
    "train",
    "evaluate",
    "demo",
    "digits",
    "classifier",
    "table",
    "cfg",
    "plan",
    "weights",
    "info",
    "export",
    "bench",
)
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 after an error (one line on stderr), 130 after Ctrl-C.

    143 and 129 after SIGTERM and SIGHUP, which end a command as Ctrl-C does.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as under pythonw or by >&-
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the rest of the process
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)  # undecodable file or class names must not cause a traceback
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # our own errors report broken images
    with warnings.catch_warnings(), log_to_stderr(), handled(("SIGTERM", "SIGHUP"), stop):
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)  # once each: training reads an image many times
        warnings.showwarning = show_warning
        try:
            code = run(argv)
            sys.stdout.flush()
            return code
        except DarknetError as e:
            return fail(str(e))
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except SystemExit as e:
            return int(e.code or 0)
        except BrokenPipeError:  # stdout is a broken pipe: discard what would be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_ERROR
        except OSError as e:
            where = "standard output" if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO) else ""
            return fail(f"{e.filename or where}: {e.strerror}" if e.filename or where else str(e))
        except MemoryError:
            return fail("out of memory; make width, height or batch smaller")


def run(argv: list[str]) -> int:
    """Find the command at the start of the arguments and run it."""
    if not argv or is_help(argv[0]) or argv[0] == "help":
        from .help import overview, page

        names = [word for word in argv[1:] if not is_help(word)]
        page(find(names)[0]) if names else overview(commands())
        return 0
    if argv[0] in ("version", "-version", "--version"):
        from .. import __version__

        print(f"gpudarknet {__version__}")
        return 0
    command, rest = find(argv)
    if any(is_help(word) for word in rest):
        from .help import page

        page(command)
        return 0
    args = parse(command, rest)
    for note in args.notes:
        eprint("note", note)
    return command.run(args) or 0


def is_help(word: str) -> bool:
    """Return whether an argument requests help."""
    return word in ("-h", "-help", "--help")


def commands() -> list[Command]:
    """Return all commands, group by group."""
    return [command for group in GROUPS for command in importlib.import_module(f".{group}", __name__).COMMANDS]


def find(words: Sequence[str]) -> tuple[Command, list[str]]:
    """Return the command at the start of `words`, and the remaining words. Raises UsageError."""
    known = {command.name: command for command in commands()}
    for count in (2, 1):
        command = known.get(" ".join(words[:count]))
        if command and len(words) >= count:
            return command, list(words[count:])
    verbs = [name.split()[1] for name in known if name.split()[0] == words[0] and " " in name]
    if verbs:
        problem = f"no subcommand '{words[1]}'" if len(words) > 1 else "needs a subcommand"
        raise UsageError(f"{words[0]}: {problem}; it has {', '.join(verbs)}")
    meant = [f"detector {verb}" for verb in words[1:2]] if words[0] in ("yolo", "coco") else []  # with built-in paths
    same = [f"`gpudarknet {name}`" for name in known if name in meant or name.partition(" ")[2] == words[0]]
    hint = f"; use {' or '.join(same)}" if same else did_you_mean(" ".join(words[:2]), known, 0.6)
    hint = hint or did_you_mean(words[0], known, 0.6)
    raise UsageError(f"no command '{words[0]}'{hint or '; `gpudarknet help` lists all'}")


def fail(message: str) -> int:
    """Print an error as one line on stderr; return its exit code."""
    eprint("error", message)
    return EXIT_ERROR


def eprint(kind: str, message: str) -> None:
    """Print one line to stderr, with control characters replaced: file contents cannot inject terminal codes or lines."""
    clean = "".join(c if c.isprintable() else " " for c in message)
    print(f"{kind}: {clean}", file=sys.stderr, flush=True)


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line."""
    eprint("warning", str(message))


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print the package's log messages, such as 'compiling CUDA kernels', while the block runs."""
    logger, handler = logging.getLogger("gpudarknet"), logging.Handler()
    handler.emit = lambda record: eprint(record.levelname.lower(), record.getMessage())  # type: ignore[method-assign]
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
