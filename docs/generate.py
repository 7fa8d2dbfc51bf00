"""A hook of mkdocs that generates parts of pages from the code, so that they cannot become outdated.

A line `<!-- made: NAME ARGUMENT ... -->` in a page is replaced by the Markdown that the function NAME returns.
"""

from __future__ import annotations

import configparser
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from gpudarknet import cli
from gpudarknet.cfg import Net
from gpudarknet.cli.arguments import DARKNET_FLAGS, Command, Flag
from gpudarknet.layers import SECTIONS, Layer

HERE = Path(__file__).parent
MARK = re.compile(r"^<!-- made: (.+?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Replace the marks in a page; mkdocs calls this for each page."""
    return MARK.sub(lambda mark: generate(*mark[1].split()), markdown)


def generate(name: str, *arguments: str) -> str:
    """Return the Markdown for a mark."""
    generators: dict[str, Callable[..., str]] = {
        "page": page, "net": net, "sections": sections, "activations": activations, "commands": commands,
        "ignored_flags": ignored_flags,
    }  # fmt: skip
    return generators[name](*arguments)


def page(name: str) -> str:
    """Return a page from the repository's root, with its links relative to this folder."""
    text = (HERE.parent / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", "](", text)


# Sections and keys

Meanings = dict[str, dict[str, str]]


def meanings() -> Meanings:
    """Read keys.ini: name of a section or a class -> key -> meaning."""
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(HERE / "keys.ini", encoding="utf-8")
    return {name: dict(parser[name]) for name in parser.sections()}


def group(kind: type) -> str:
    """Return the heading in keys.ini for the fields that a class declares."""
    return vars(kind).get("section") or kind.__name__


def own_keys(kind: type) -> list[str]:
    """Return the keys that a class itself declares."""
    declared = {f.name for f in fields(kind)} & set(vars(kind).get("__annotations__", ()))
    return [f.name.rstrip("_") for f in fields(kind) if f.name in declared]


def records() -> list[type]:
    """Return every class that declares keys: [net], the sections, and their base classes."""
    kinds: list[type] = [Net]
    for kind in dict.fromkeys(SECTIONS.values()):
        kinds += [base for base in reversed(kind.__mro__) if issubclass(base, Layer) and base not in kinds]
    return [kind for kind in kinds if own_keys(kind)]


def net() -> str:
    """Return the table of [net]."""
    return "\n".join([*table(Net), "", *without_effect(Net)])


def sections() -> str:
    """Return the keys common to all sections, then every section in alphabetical order."""
    kinds = dict.fromkeys(SECTIONS.values())
    lines = ["## Keys of every section", "", *table(Layer)]
    for kind in sorted(kinds, key=lambda kind: kind.section.lower()):
        lines += ["", f"## [{kind.section}] {{ #{kind.section.lower()} }}", ""]
        lines += [description(kind), ""]
        spellings = [f"`[{name}]`" for name, other in SECTIONS.items() if other is kind and name != kind.section]
        if spellings:
            lines += [f"Also written {' or '.join(spellings)}.", ""]
        lines += [*table(kind), "", *without_effect(kind)]
        lines.append(f"Source: `{Path(inspect.getfile(kind)).relative_to(HERE.parent).as_posix()}`{origin(kind)}.")
    return "\n".join(lines)


def activations() -> str:
    """Return the table of activations."""
    rows = (f"| `{name}` | {plain(words)} |" for name, words in meanings()["activations"].items())
    return "\n".join(("| activation | y |", "|---|---|", *rows))


def description(kind: type) -> str:
    """Return a class's docstring: purpose, shapes, the rest."""
    first, *rest = (inspect.getdoc(kind) or "").split("\n")
    does, *shapes = re.split(r"\s{3,}", first)
    return "\n".join([does, *(f"\n`{shape}`" for shape in shapes), *map(plain, rest)])


def origin(kind: type) -> str:
    """Return a section's source: the parentheses in its module's first line, a file of Darknet's or a paper."""
    words = (inspect.getdoc(inspect.getmodule(kind)) or "").split("\n")[0]
    sources = re.findall(r"\(([^()]*)\)", words)
    if not sources:
        return ""
    return plain(f"; Darknet's {sources[-1]}" if "src/" in sources[-1] else f"; {sources[-1]}")


def table(kind: type) -> Iterator[str]:
    """Yield the lines of a table of keys, without those common to all sections unless kind is Layer."""
    meaning_of = meanings()
    bases = [base for base in kind.__mro__ if base is Net or issubclass(base, Layer)]
    where = {key: group(base) for base in reversed(bases) for key in own_keys(base)}
    shown = [f for f in fields(kind) if kind is Layer or where[f.name.rstrip("_")] != "Layer"]
    if not shown:
        yield "No keys."
        return
    hints = typing.get_type_hints(kind)
    yield from ("| key | default | meaning |", "|---|---|---|")
    for f in shown:
        key = f.name.rstrip("_")
        meaning = plain(meaning_of[where[key]][key]) + choices(hints[f.name])
        yield f"| `{key}` | {default(f.default)} | {meaning} |"


def default(value: Any) -> str:
    """Return a default as written in a cfg."""
    if value is MISSING:
        return "*required*"
    if value is None or value == float("inf"):
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def choices(hint: Any) -> str:
    """Return the values that a key may have."""
    if typing.get_origin(hint) is not typing.Literal:
        return ""
    values = typing.get_args(hint)
    if len(values) > 20:
        return " [Any activation](#activations)."
    return f" One of {', '.join(f'`{value}`' for value in values)}."


def without_effect(kind: Any) -> Iterator[str]:
    """Yield the keys of Darknet that have no effect here."""
    for keys, effect in ((kind.ignored, "Ignored"), (kind.unsupported, "Refused unless 0")):
        if keys:
            yield f"{effect}: {', '.join(f'`{key}`' for key in sorted(keys))}.\n"


# The command line


def commands() -> str:
    """Return the documentation of every command."""
    return "\n\n".join("\n".join(command(one)) for one in cli.commands())


def ignored_flags() -> str:
    """Return Darknet's flags that have no effect on commands that do not list them, with the reason if there is one."""
    reasons = (f" ({plain(flag.help)})" if flag.help else "" for flag in DARKNET_FLAGS)
    return ", ".join(f"`-{flag.name}`{reason}" for flag, reason in zip(DARKNET_FLAGS, reasons, strict=True)) + "."


def command(one: Command) -> Iterator[str]:
    """Yield a command's documentation."""
    text = f"{plain(one.help)}. {plain(one.more)}".rstrip(". ") + "."
    yield from (f"## {one.name}", "", "```text", one.usage, "```", "", text)
    for heading, flags in groupby(one.flags, lambda flag: flag.group):
        yield from ("", f"{plain(heading)}:", "") if heading else ("",)
        yield from ("| flag | default | meaning |", "|---|---|---|", *map(flag, flags))


def flag(one: Flag) -> str:
    """Return a flag's row."""
    value = {bool: "", int: " N", float: " X", str: " TEXT"}[one.kind]
    shown = "" if one.kind is bool or one.default in (None, "") else f"`{one.default}`"
    return f"| `-{one.name}{value}` | {shown} | {plain(one.help)} |"


def plain(text: str) -> str:
    """Escape Markdown and HTML outside of `code`."""
    parts = text.split("`")
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"([*_\[\]<>|])", r"\\\1", parts[k]).replace("\\<", "&lt;").replace("\\>", "&gt;")
    return "`".join(parts)
