"""Class trees and class maps: text files that sections refer to (src/tree.c, read_map in src/utils.c)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..io.text import read_text


class ClassMap(tuple[int, ...]):
    """A list of class indices, one per line of the file."""

    @classmethod
    def read(cls, path: Path) -> ClassMap:
        """Read a map file. Raises DataError with path and line."""
        indices = []
        for number, line in enumerate(lines(path), 1):
            try:
                indices.append(int(line))
            except ValueError:
                raise DataError(f"{path}:{number}: expected one class number, found '{line[:40]}'") from None
        return cls(indices)


@dataclass(frozen=True)
class Tree:
    """A hierarchy of classes (WordTree, Redmon and Farhadi 2016, arXiv 1612.08242).

    parents[i] is the parent of class i, -1 for a root; group g of siblings starts at starts[g].
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    starts: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> Tree:
        """Read a tree file: a line `name parent` for each class; lines with one parent are a group of siblings."""
        names: list[str] = []
        parents: list[int] = []
        starts: list[int] = []
        for number, line in enumerate(lines(path), 1):
            words = line.split()
            try:
                name, parent = words[0], int(words[1])
            except (IndexError, ValueError):
                raise DataError(f"{path}:{number}: expected 'name parent', found '{line[:40]}'") from None
            if not -1 <= parent < len(names):
                raise DataError(f"{path}:{number}: parent {parent} of '{name}' must be on an earlier line")
            if not parents or parent != parents[-1]:
                starts.append(len(names))
            names.append(name)
            parents.append(parent)
        return cls(tuple(names), tuple(parents), tuple(starts))

    @property
    def groups(self) -> list[tuple[int, int]]:
        """The range [first, last) of classes of each group of siblings."""
        return list(pairwise((*self.starts, len(self.names))))

    def leaves(self, names: Sequence[str] | None = None) -> np.ndarray:
        """Return which classes are leaves, bool (classes,): those without children or, if `names` are given, those named.

        Source: read_tree, change_leaves.
        """
        if names is not None:
            return np.isin(self.names, list(names))
        return ~np.isin(np.arange(len(self.names)), self.parents)

    def ancestors(self, index: int) -> Iterator[int]:
        """Yield the classes above class `index`, its parent first."""
        while (index := self.parents[index]) >= 0:
            yield index

    def hierarchy(self, p: np.ndarray) -> np.ndarray:
        """Multiply each class's probability by its ancestors': p (..., classes) -> the same shape."""
        p = p.copy()
        for i, parent in enumerate(self.parents):  # parents come before their children
            if parent >= 0:
                p[..., i] *= p[..., parent]
        return p


def lines(path: Path) -> list[str]:
    """Return the nonempty lines of a text file. Raises DataError if there are none."""
    result = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not result:
        raise DataError(f"{path}: is empty; it needs a line per class")
    return result
