"""Resize and letterbox images to network input, with exactly Darknet's sampling.

Images are (H, W, C), uint8 or float32; network input is float32 (C, H, W) in 0..1. Sampling is bilinear with aligned
corners: the first sample is the first pixel, the last sample the last pixel, and downscaling applies no filter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..boxes import letterbox_size
from ..errors import ImageError

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

GREY = np.float32(0.5)  # padding of a letterboxed image


class Taps(NamedTuple):
    """For every sample along one axis: the pixels before and after it, and the weight (0..1) of the second."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: Floats


def resize(image: Image | Floats, W: int, H: int) -> Floats:
    """Resize bilinearly with aligned corners. (h, w, C) -> float32 (H, W, C). uint8 values are divided by 255.

    Source: Darknet's `resize_image`, in float32. Its last row, which rounding can leave almost black, is always the
    image's last row here; a single output row is the last one, as a single column is in Darknet.
    """
    h, w = image.shape[:2]
    return _floats(image) if (w, h) == (W, H) else _sample(image, taps(h, H), taps(w, W))


def letterbox(image: Image | Floats, W: int, H: int) -> Floats:
    """Resize with the image's aspect ratio and center on gray. (h, w, C) -> float32 (H, W, C).

    Source: Darknet's `letterbox_image`; sizes and offset are truncated. `boxes.to_image` inverts it for boxes.
    """
    h, w = image.shape[:2]
    return center(resize(image, *letterbox_size(w, h, W, H)), W, H)


def center(image: Floats, W: int, H: int) -> Floats:
    """Pad with gray on all sides; the left and top padding is rounded down. (h, w, C) -> float32 (H, W, C)."""
    h, w, C = image.shape
    if (w, h) == (W, H):
        return image
    left, top = (W - w) // 2, (H - h) // 2
    canvas = np.full((H, W, C), GREY)
    canvas[top : top + h, left : left + w] = image
    return canvas


def network_input(image: Image | Floats, net_w: int, net_h: int, letterbox: bool = False) -> Floats:
    """Make a detector's input: stretched or letterboxed. (H, W, C) -> float32 (C, net_h, net_w) in 0..1."""
    scale = _letterbox if letterbox else resize
    return _to_chw(scale(image, net_w, net_h))


def classifier_input(image: Image | Floats, net_w: int, net_h: int) -> Floats:
    """Make a classifier's input: short side = net_w, center crop, edges repeated. (H, W, C) -> float32 (C, net_h, net_w).

    Source: Darknet's `classifier predict` (`resize_min`, then `crop_image`). Only cropped pixels are computed.
    """
    h, w = image.shape[:2]
    new_w, new_h = (net_w, h * net_w // w) if w < h else (w * net_w // h, net_w)
    rows = taps(h, new_h, _crop(new_h, net_h))
    cols = taps(w, new_w, _crop(new_w, net_w))
    return _to_chw(_sample(image, rows, cols))


_letterbox = letterbox  # network_input has an argument of the same name


def _crop(size: int, count: int) -> NDArray[np.intp]:
    """Return the positions of the middle `count` pixels of `size`; positions outside repeat the edge."""
    return np.clip(np.arange(count) + int((size - count) / 2), 0, size - 1)


def spacing(size: int, count: int) -> np.float32:
    """Return the distance in pixels between `count` samples on `size` pixels with aligned corners."""
    return np.float32(size - 1) / np.float32(max(count - 1, 1))


def taps(size: int, count: int, at: NDArray[np.intp] | None = None) -> Taps:
    """Place `count` samples on `size` pixels with aligned corners; with `at`, return only those samples."""
    if at is None:
        at = np.arange(count)
    position = at.astype(np.float32) * spacing(size, count)
    last = at == count - 1
    low = np.where(last, size - 1, np.minimum(position.astype(np.intp), size - 1))
    weight = np.where(last, np.float32(0), position - low.astype(np.float32))
    return Taps(low, np.minimum(low + 1, size - 1), weight)


def _sample(image: Image | Floats, rows: Taps, cols: Taps) -> Floats:
    """Sample bilinearly, along rows first. (h, w, C) -> float32 (len(rows), len(cols), C).

    Reads only the rows and columns that the samples need, and converts bytes to floats after gathering.
    """
    h, w, C = image.shape
    used, index = np.unique(np.concatenate((rows.low, rows.high)), return_inverse=True)
    strip = image[used].reshape(used.size, w * C)
    channel = np.arange(C)

    def pixels(columns: NDArray[np.intp]) -> Floats:
        return _floats(strip.take((columns[:, None] * C + channel).ravel(), axis=1))

    horizontal = _lerp(pixels(cols.low), pixels(cols.high), np.repeat(cols.weight, C))
    low, high = index.reshape(2, -1)
    both = _lerp(horizontal[low], horizontal[high], rows.weight[:, None])
    return both.reshape(rows.weight.size, cols.weight.size, C)


def _floats(values: NDArray[Any]) -> Floats:
    """Return a copy in float32; uint8 values are divided by 255."""
    floats = values.astype(np.float32)
    return np.divide(floats, np.float32(255), out=floats) if values.dtype == np.uint8 else floats


def _lerp(low: Floats, high: Floats, weight: Floats) -> Floats:
    """Return (1 - weight) * low + weight * high, in this order and in float32, as Darknet. Overwrites both arrays."""
    low *= 1 - weight
    high *= weight
    low += high
    return low


def _to_chw(image: Floats) -> Floats:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def with_channels(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """Convert gray to RGB, or RGB to gray as OpenCV does. (H, W, 1 or 3) -> (H, W, channels)."""
    has = image.shape[2]
    if has == channels:
        return image
    if has == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    if has == 3 and channels == 1:
        import cv2

        gray = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        return np.asarray(gray, image.dtype)[:, :, None]
    raise ImageError(
        f"image: cannot convert {has} channels to {channels}; pass the network an array of its own input shape"
    )
