"""Make network input of pictures, with Darknet's geometry, sample for sample.

Pictures are (H, W, C), uint8 or float32; network input is float32 (C, H, W) in 0..1. Sampling is bilinear with aligned
corners: the first sample lies on the first pixel, the last on the last, and nothing is filtered when shrinking.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..boxes import fit
from ..errors import ImageError

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]

GREY = np.float32(0.5)  # fills the border of a letter box


class Taps(NamedTuple):
    """For every sample along one axis: the pixels before and after it, and how far it is from the first (0..1)."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    part: Floats


def resize(image: Picture | Floats, W: int, H: int) -> Floats:
    """Resize with aligned corners, bilinear. (h, w, C) -> float32 (H, W, C). Bytes count as value / 255.

    Source: Darknet's `resize_image`, in its float32. Its last row, which rounding can leave almost black, is here always
    the picture's last row; a single row is the last one, as a single column is in Darknet.
    """
    h, w = image.shape[:2]
    return _sample(image, taps(h, H), taps(w, W))


def letterbox(image: Picture | Floats, W: int, H: int) -> Floats:
    """Resize at the picture's proportions and centre on grey. (h, w, C) -> float32 (H, W, C).

    Source: Darknet's `letterbox_image`; sizes and offset are truncated. `boxes.to_image` undoes it for boxes.
    """
    h, w, C = image.shape
    new_w, new_h = fit(w, h, W, H)
    left, top = (W - new_w) // 2, (H - new_h) // 2
    canvas = np.full((H, W, C), GREY)
    canvas[top : top + new_h, left : left + new_w] = resize(image, new_w, new_h)
    return canvas


def network_input(
    image: Picture | Floats, net_w: int, net_h: int, letterbox: bool = False, channels: int | None = None
) -> Floats:
    """Make a detector's input of a picture: stretched, or letter-boxed. (H, W, C) -> float32 (C, net_h, net_w) in 0..1.

    `channels` is how many the network takes (1 or 3), the picture's own if None.
    """
    if channels is not None:
        image = with_channels(image, channels)
    fill = _letterbox if letterbox else resize
    return _planes(fill(image, net_w, net_h))


def classifier_input(image: Picture | Floats, net_w: int, net_h: int) -> Floats:
    """Make a classifier's input: short side = net_w, centre crop, edges repeated. (H, W, C) -> float32 (C, net_h, net_w).

    Source: Darknet's `classifier predict` (`resize_min`, then `crop_image`). Only what the crop shows is computed.
    """
    h, w = image.shape[:2]
    new_w, new_h = (net_w, h * net_w // w) if w < h else (w * net_w // h, net_w)
    rows = taps(h, new_h, _crop(new_h, net_h))
    cols = taps(w, new_w, _crop(new_w, net_w))
    return _planes(_sample(image, rows, cols))


_letterbox = letterbox  # network_input has an argument of that name


def _crop(size: int, wanted: int) -> NDArray[np.intp]:
    """Positions of the `wanted` middle pixels of `size`; those outside are the edge's."""
    return np.clip(np.arange(wanted) + int((size - wanted) / 2), 0, size - 1)


def step(size: int, wanted: int) -> np.float32:
    """Return how far `wanted` samples on `size` pixels lie apart: first on first, last on last."""
    return np.float32(size - 1) / np.float32(max(wanted - 1, 1))


def taps(size: int, wanted: int, at: NDArray[np.intp] | None = None) -> Taps:
    """Place `wanted` samples on `size` pixels, first on first and last on last; only those numbered `at`, if given."""
    if at is None:
        at = np.arange(wanted)
    position = at.astype(np.float32) * step(size, wanted)
    last = at == wanted - 1
    low = np.where(last, size - 1, np.minimum(position.astype(np.intp), size - 1))
    part = np.where(last, np.float32(0), position - low.astype(np.float32))
    return Taps(low, np.minimum(low + 1, size - 1), part)


def _sample(image: Picture | Floats, rows: Taps, cols: Taps) -> Floats:
    """Take bilinear samples, along rows first. (h, w, C) -> float32 (len(rows), len(cols), C).

    Touches only the rows and columns that samples need: the strip of rows is gathered as it is, bytes become floats after.
    """
    h, w, C = image.shape
    used, where = np.unique(np.concatenate((rows.low, rows.high)), return_inverse=True)
    strip = image[used].reshape(used.size, w * C)
    channel = np.arange(C)

    def pixels(columns: NDArray[np.intp]) -> Floats:
        taken = strip.take((columns[:, None] * C + channel).ravel(), axis=1)
        if taken.dtype != np.uint8:
            return taken.astype(np.float32, copy=False)
        floats = taken.astype(np.float32)
        return np.divide(floats, np.float32(255), out=floats)

    along = _between(pixels(cols.low), pixels(cols.high), np.repeat(cols.part, C))
    low, high = where.reshape(2, -1)
    down = _between(along[low], along[high], rows.part[:, None])
    return down.reshape(rows.part.size, cols.part.size, C)


def _between(first: Floats, second: Floats, part: Floats) -> Floats:
    """(1 - part) * first + part * second, in this order and in float32, as Darknet; overwrites both arrays."""
    first *= 1 - part
    second *= part
    first += second
    return first


def _planes(image: Floats) -> Floats:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def with_channels(image: NDArray[Any], channels: int) -> NDArray[Any]:
    """Repeat grey into RGB, or weigh RGB into grey as OpenCV does. (H, W, 1 or 3) -> (H, W, channels)."""
    has = image.shape[2]
    if has == channels:
        return image
    if has == 1 and channels == 3:
        return np.repeat(image, 3, axis=2)
    if has == 3 and channels == 1:
        import cv2

        grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        return np.asarray(grey, image.dtype)[:, :, None]
    raise ImageError(f"image: {has} channels cannot become {channels}; give the network an array of its own shape")
