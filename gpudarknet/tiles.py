"""Detection on large images, tile by tile: small objects are seen at full resolution, objects cut by a seam are merged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from . import boxes
from .detector import Detector
from .errors import DataError, ImageError
from .image import Image
from .image.batches import BatchReader
from .inference import ImageResult, ImageSource, ScoredBoxes

CONTAINED = 0.6  # merge two boxes if this fraction of the smaller is inside the other
SEAM_IOU = 0.5  # or if a seam cuts both and their extents along it have this IoU
Tile = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def detect_boxes(
    detector: Detector,
    image: np.ndarray,
    thresh: float = 0.25,
    nms: float = 0.45,
    size: tuple[int, int] | None = None,
    overlap: float = 0.25,
    whole: bool = True,
) -> ScoredBoxes:
    """Detect objects in an image, uint8 (H, W, C), tile by tile and, for objects larger than a tile, in the whole image.

    size: (width, height) of a tile in pixels, by default the network's input. overlap: the fraction that neighbors
    share, at least 0 and below 1. whole=False skips the whole image. Tiles run in batches of the network's batch size.
    """
    H, W = image.shape[:2]
    tiles = split(W, H, *(size or (detector.network.width, detector.network.height)), overlap)
    if whole and len(tiles) > 1:
        tiles.append((0, 0, W, H))
    if len(tiles) == 1:
        return detector.detect_boxes([image], thresh, nms)[0]
    scored = []
    for begin in range(0, len(tiles), max(detector.network.batch, 1)):
        batch = tiles[begin : begin + max(detector.network.batch, 1)]
        scored += detector.detect_boxes(
            [image[top:bottom, left:right] for left, top, right, bottom in batch], thresh, nms
        )
    corners = [to_image_pixels(s, tile) for s, tile in zip(scored, tiles, strict=True)]
    tile_ids = np.repeat(np.arange(len(tiles)), [len(c) for c in corners])
    merged, probs = merge(np.concatenate(corners), np.concatenate([s.probs for s in scored]), tile_ids, tiles, (W, H))
    return ScoredBoxes(boxes.from_corners(merged) / [W, H, W, H], probs, W, H, sum(s.seconds for s in scored))


def run_images(
    detector: Detector,
    images: Iterable[ImageSource],
    thresh: float,
    nms: float,
    *,
    on_error: Callable[[ImageSource, ImageError], None] | None = None,
    read: Callable[[Any], Image] | None = None,
) -> Iterator[ImageResult]:
    """Detect objects in a stream of images, tile by tile, one image at a time, as `InferencePipeline.run_images` does."""
    with BatchReader(read or detector.read, images, 1, on_error=on_error) as reader:
        while batch := reader.get():
            reader.read_ahead()
            for source, img in batch:
                yield ImageResult(source, img, detect_boxes(detector, img, thresh, nms))


def split(W: int, H: int, width: int, height: int, overlap: float) -> list[Tile]:
    """Cover W x H pixels with the fewest evenly spaced tiles of width x height that overlap by at least `overlap`."""
    if min(width, height) < 1 or not 0 <= overlap < 1:
        raise DataError(f"tiles of {width} x {height} with overlap {overlap:g}: need sizes above 0, overlap in 0 to 1")
    columns, rows = list(spans(W, width, overlap)), list(spans(H, height, overlap))
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def spans(length: int, size: int, overlap: float) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of the tiles along one axis."""
    if length <= size:
        yield 0, length
        return
    count = int(np.ceil((length - size) / (size * (1 - overlap)))) + 1
    for begin in np.linspace(0, length - size, count).round().astype(int).tolist():
        yield begin, begin + size


def to_image_pixels(scored: ScoredBoxes, tile: Tile) -> np.ndarray:
    """Return a tile's boxes as corners (K, 4) in pixels of the image."""
    left, top, right, bottom = tile
    return boxes.to_corners(scored.boxes) * ([right - left, bottom - top] * 2) + [left, top, left, top]


def merge(
    corners: np.ndarray, probs: np.ndarray, tile_ids: np.ndarray, tiles: list[Tile], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Merge each object's boxes from several tiles: corners (K, 4), probs (K, classes), the tile of each box (K,).

    Starting from the highest-scoring box, merge boxes of its best class, at most one from each other tile, into the
    enclosing box. Each class keeps its highest probability.
    """
    cut_vertically, cut_horizontally = seams(corners, tile_ids, tiles, size)
    best, remaining = probs.argmax(axis=1), list(np.argsort(-probs.max(axis=1), kind="stable"))
    merged, merged_probs = [], []
    while remaining:
        group = [remaining.pop(0)]
        box = corners[group[0]]
        grown = True
        while grown:
            grown = False
            for k in remaining:
                if best[k] != best[group[0]] or tile_ids[k] in tile_ids[group]:
                    continue
                vertical = cut_vertically[k] and cut_vertically[group].any()
                horizontal = cut_horizontally[k] and cut_horizontally[group].any()
                if same_object(box, corners[k], bool(vertical), bool(horizontal)):
                    box = np.concatenate((np.minimum(box[:2], corners[k][:2]), np.maximum(box[2:], corners[k][2:])))
                    group.append(k)
                    remaining.remove(k)
                    grown = True
                    break
        merged.append(box)
        merged_probs.append(probs[group].max(axis=0))
    return np.array(merged).reshape(-1, 4), np.array(merged_probs).reshape(-1, probs.shape[1])


def seams(
    corners: np.ndarray, tile_ids: np.ndarray, tiles: list[Tile], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return two masks (K,): boxes cut by a vertical, and by a horizontal edge of their tile inside the image."""
    tile = np.array(tiles, float)[tile_ids].reshape(-1, 4)
    margin = np.maximum(2, 0.02 * (tile[:, 2:] - tile[:, :2]))
    low = (corners[:, :2] - tile[:, :2] < margin) & (tile[:, :2] > 0)
    high = (tile[:, 2:] - corners[:, 2:] < margin) & (tile[:, 2:] < size)
    cut = low | high
    return cut[:, 0], cut[:, 1]


def same_object(a: np.ndarray, b: np.ndarray, vertical: bool, horizontal: bool) -> bool:
    """Return whether two boxes (left, top, right, bottom) show one object; vertical, horizontal: such a seam cuts both."""
    shared = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (shared <= 0).any():
        return False
    a_size, b_size = a[2:] - a[:2], b[2:] - b[:2]
    if shared.prod() > CONTAINED * min(a_size.prod(), b_size.prod()):
        return True
    iou = shared / (a_size + b_size - shared)  # of the extents in x, in y
    return bool((vertical and iou[1] > SEAM_IOU) or (horizontal and iou[0] > SEAM_IOU))
