"""Pair a list of difficult boxes with the images that are measured."""

from __future__ import annotations

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import DataError, DataWarning
from . import read_list
from .datafile import DataFile, label_name, label_path


def difficult_labels(data: DataFile, images: Sequence[str]) -> Callable[[str], Path | None] | None:
    """Return a function image -> label file with its difficult boxes, or None; None if the .data file has no `difficult`.

    An entry of the list belongs to the image of the same name, or of its name without a prefix and a suffix that all entries
    share, as in difficult_000001.jpg (Darknet's scripts/voc_label_difficult.py); of several, to the one with most equal
    folders. If names do not decide and both lists have one length, they are paired by position, as in Darknet. Warns
    (DataWarning) of entries that match no image and of label files that do not exist. Raises DataError if entries cannot be
    paired.
    """
    if not data.difficult:
        return None
    entries, source = read_list(data.find("difficult")), f"{data.path}: `difficult`"
    pairs, ambiguous = pair_by_name(images, entries)
    if (ambiguous or not pairs) and len(images) == len(entries):
        warnings.warn(
            f"{source}: is paired with the images by position, as names do not decide, first {(ambiguous or entries)[0]}",
            DataWarning, stacklevel=2,
        )  # fmt: skip
        pairs, ambiguous = dict(zip(images, entries, strict=True)), []
    if ambiguous:
        raise DataError(
            f"{source}: names and folders do not say which image an entry belongs to, for {len(ambiguous)} of {len(entries)},"
            f" first {ambiguous[0]}; write more of the images' folders, or one entry for each image, in their order"
        )
    if not pairs:
        raise DataError(
            f"{source}: none of its {len(entries)} entries matches an image, first {entries[0]}; use the images' names, with"
            " or without a prefix or a suffix such as difficult_"
        )
    unknown = sorted(set(entries) - set(pairs.values()))
    if unknown:
        warnings.warn(
            f"{source}: {len(unknown)} of {len(entries)} entries match no image and are not used, first {unknown[0]}",
            DataWarning, stacklevel=2,
        )  # fmt: skip
    files = {image: label_path(entry) for image, entry in pairs.items()}
    existing = {image: path for image, path in files.items() if path.is_file()}
    if len(existing) < len(files):
        lost = next(path for image, path in files.items() if image not in existing)
        message = f"{source}: {len(files) - len(existing)} of {len(files)} label files do not exist, first {lost}"
        if not existing:
            raise DataError(f"{message}; check the list")
        warnings.warn(f"{message}; their images have no difficult boxes", DataWarning, stacklevel=2)
    return existing.get


def pair_by_name(images: Sequence[str], entries: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return pairs image -> entry by their names, and the entries for which names and folders do not decide."""
    named: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)  # name -> images and their folders
    for path in dict.fromkeys(images):
        *folders, name = label_name(path).split("/")
        named[name].append((path, folders))
    claims: dict[str, list[tuple[int, str]]] = defaultdict(list)  # image -> equal folders, entry
    ambiguous = []
    unique = dict.fromkeys(entries)
    affixes = Counter(affix for entry in unique for affix, name in parts(entry) if name in named)
    shared = min(
        affixes, key=lambda affix: (-affixes[affix], sum(map(len, affix))), default=None
    )  # the most, then the shortest
    for entry in unique:
        folders = label_name(entry).split("/")[:-1]
        candidates = next((named[name] for affix, name in parts(entry) if affix == shared and name in named), [])
        scores = [equal_folders(folders, other) for _, other in candidates]
        best = [path for (path, _), score in zip(candidates, scores, strict=True) if score == max(scores)]
        if len(best) > 1:
            ambiguous.append(entry)
        elif best:
            claims[best[0]].append((max(scores), entry))
    pairs = {}
    for path, claimed in claims.items():
        closest = [entry for score, entry in claimed if score == max(claimed)[0]]
        pairs[path] = closest[0]
        ambiguous += closest if len(closest) > 1 else []
    return pairs, ambiguous


def parts(entry: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield each ((prefix, suffix), name) of which an entry's name may consist; the prefix and the suffix have no digits."""
    name = label_name(entry).rpartition("/")[2].removesuffix(".txt")
    separators = list(re.finditer(r"[-_. ]", name))
    begins = [0, *(match.end() for match in separators if not re.search(r"\d", name[: match.end()]))]
    ends = [len(name), *(match.start() for match in separators if not re.search(r"\d", name[match.start() :]))]
    for begin in begins:
        for end in ends:
            if begin < end:
                yield (name[:begin], name[end:]), f"{name[begin:end]}.txt"


def equal_folders(a: Sequence[str], b: Sequence[str]) -> int:
    """Return how many of the last folders of two paths are equal."""
    count = 0
    while count < min(len(a), len(b)) and a[-1 - count] == b[-1 - count]:
        count += 1
    return count
