"""The files that ship with the package: cfg/*.cfg, *.names, *.data, known by name."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Return where the shipped files are: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parent.parent / "cfg"
    return inside if inside.is_dir() else inside.parent.parent / "cfg"


def names(suffix: str = ".cfg") -> list[str]:
    """Return the names of the shipped files that end with `suffix`, without it."""
    return sorted(path.stem for path in folder().glob(f"*{suffix}"))


def find(word: str | Path, suffix: str) -> Path:
    """Return the file that a user means: `word` as a path, else a shipped file of that name, with or without `suffix`.

    What is neither comes back as it is, so that whoever reads it says what is missing.
    """
    path = Path(word)
    if path.is_file() or path.name != str(word):
        return path
    shipped = folder() / (path.name if path.suffix == suffix else path.name + suffix)
    return shipped if shipped.is_file() else path


def shipped_cfg(word: str | Path) -> Path:
    """Return the cfg that a user means: a path, or the name of a shipped network such as "yolov4-tiny"."""
    return find(word, ".cfg")
