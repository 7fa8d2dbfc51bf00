"""Large pictures in tiles: small objects are seen at full size, and what a seam cuts is joined again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from . import boxes
from .detector import Detector, Found
from .errors import DataError

INSIDE = 0.6  # two boxes are one object if so much of the smaller lies in the other
ALONG = 0.5  # or if a seam cuts both, and along it their extents have this IoU
Tile = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def find(
    detector: Detector,
    picture: np.ndarray,
    thresh: float = 0.25,
    nms: float = 0.45,
    size: tuple[int, int] | None = None,
    overlap: float = 0.25,
    whole: bool = True,
) -> Found:
    """Find objects in a picture, uint8 (H, W, C), tile by tile, and in the picture as a whole for what no tile can hold.

    size: (width, height) of a tile in pixels, by default the network's input. overlap: the part that neighbours share,
    at least 0 and below 1. whole=False leaves the whole picture out. Tiles run in batches of the detector's network.
    """
    H, W = picture.shape[:2]
    tiles = cut(W, H, *(size or (detector.network.width, detector.network.height)), overlap)
    if whole and len(tiles) > 1:
        tiles.append((0, 0, W, H))
    if len(tiles) == 1:
        return detector.find([picture], thresh, nms)[0]
    found = []
    for begin in range(0, len(tiles), max(detector.network.batch, 1)):
        part = tiles[begin : begin + max(detector.network.batch, 1)]
        found += detector.find([picture[top:bottom, left:right] for left, top, right, bottom in part], thresh, nms)
    edges = [place(f, tile) for f, tile in zip(found, tiles, strict=True)]
    numbers = np.repeat(np.arange(len(tiles)), [len(e) for e in edges])
    joined, probs = join(np.concatenate(edges), np.concatenate([f.probs for f in found]), numbers, tiles, (W, H))
    return Found(boxes.from_corners(joined) / [W, H, W, H], probs, W, H)


def cut(W: int, H: int, width: int, height: int, overlap: float) -> list[Tile]:
    """Cover W x H pixels with the fewest tiles of width x height that share at least the part `overlap`, evenly spread."""
    if min(width, height) < 1 or not 0 <= overlap < 1:
        raise DataError(f"tiles of {width} x {height} with overlap {overlap:g}: need sizes above 0, overlap in 0 to 1")
    across, down = list(spans(W, width, overlap)), list(spans(H, height, overlap))
    return [(left, top, right, bottom) for top, bottom in down for left, right in across]


def spans(length: int, size: int, overlap: float) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of the tiles along one side."""
    if length <= size:
        yield 0, length
        return
    count = int(np.ceil((length - size) / (size * (1 - overlap)))) + 1
    for begin in np.linspace(0, length - size, count).round().astype(int).tolist():
        yield begin, begin + size


def place(found: Found, tile: Tile) -> np.ndarray:
    """Return a tile's boxes as edges (K, 4) in pixels of the picture."""
    left, top, right, bottom = tile
    return boxes.to_corners(found.boxes) * ([right - left, bottom - top] * 2) + [left, top, left, top]


def join(
    edges: np.ndarray, probs: np.ndarray, numbers: np.ndarray, tiles: list[Tile], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Make one box of an object's boxes in several tiles: edges (K, 4), probs (K, classes), the tile of each (K,).

    The most probable box begins; boxes of its best class join it, one from each other tile, and it grows to hold them. Each
    class keeps its greatest probability.
    """
    across, down = seams(edges, numbers, tiles, size)
    best, waiting = probs.argmax(axis=1), list(np.argsort(-probs.max(axis=1), kind="stable"))
    joined, kept = [], []
    while waiting:
        group = [waiting.pop(0)]
        box = edges[group[0]]
        grown = True
        while grown:
            grown = False
            for k in waiting:
                if best[k] != best[group[0]] or numbers[k] in numbers[group]:
                    continue
                cut_across, cut_down = across[k] and across[group].any(), down[k] and down[group].any()
                if same(box, edges[k], bool(cut_across), bool(cut_down)):
                    box = np.concatenate((np.minimum(box[:2], edges[k][:2]), np.maximum(box[2:], edges[k][2:])))
                    group.append(k)
                    waiting.remove(k)
                    grown = True
                    break
        joined.append(box)
        kept.append(probs[group].max(axis=0))
    return np.array(joined).reshape(-1, 4), np.array(kept).reshape(-1, probs.shape[1])


def seams(
    edges: np.ndarray, numbers: np.ndarray, tiles: list[Tile], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Say which boxes end at a vertical, and which at a horizontal edge of their tile that is not the picture's."""
    tile = np.array(tiles, float)[numbers].reshape(-1, 4)
    margin = np.maximum(2, 0.02 * (tile[:, 2:] - tile[:, :2]))
    first = (edges[:, :2] - tile[:, :2] < margin) & (tile[:, :2] > 0)
    last = (tile[:, 2:] - edges[:, 2:] < margin) & (tile[:, 2:] < size)
    ends = first | last
    return ends[:, 0], ends[:, 1]


def same(a: np.ndarray, b: np.ndarray, across: bool, down: bool) -> bool:
    """Say whether two boxes (left, top, right, bottom) are parts of one object; across, down: a seam of that kind cuts both."""
    shared = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (shared <= 0).any():
        return False
    a_size, b_size = a[2:] - a[:2], b[2:] - b[:2]
    if shared.prod() > INSIDE * min(a_size.prod(), b_size.prod()):
        return True
    along = shared / (a_size + b_size - shared)  # of x, of y
    return bool((across and along[1] > ALONG) or (down and along[0] > ALONG))
