"""Augment training images at random, with their boxes or labels (load_data_detection, load_data_augment in src/data.c).

An image is uint8 (H, W, C). Boxes are rows (K, 5) of x, y, w, h relative to the image, and class; a sixth column, the track,
is carried along. All randomness comes from the generator passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..cfg import Net
from ..layers import DetectionHead
from ..layers.class_tree import Tree
from ..ops.losses import IGNORE_LABEL

Image = np.ndarray
Boxes = np.ndarray
Region = tuple[slice, slice]  # rows, columns
Draw = Callable[[np.random.Generator], tuple[Image, Boxes]]  # draws an image of the data set with its boxes
BLUR_SIZE = 17  # pixels, the kernel of blur=1


def to_input(image: Image, out: np.ndarray | None = None) -> np.ndarray:
    """(H, W, C), 0..255 -> float32 (C, H, W), 0..1, in `out` if given."""
    import cv2

    H, W, C = image.shape
    planes = np.empty((C, H, W), image.dtype)
    cv2.split(image, list(planes))  # twice as fast as a strided multiplication
    return np.multiply(planes, np.float32(1 / 255), out=out, dtype=np.float32)


def rand_scale(rng: np.random.Generator, s: float) -> float:
    """Draw uniformly between 1 and s; return the value or, with probability 0.5, its reciprocal."""
    scale = float(rng.uniform(1, s)) if s > 1 else float(rng.uniform(s, 1)) if s > 0 else 1.0
    return scale if rng.random() < 0.5 else 1 / scale


@dataclass(frozen=True, kw_only=True)
class Colors:
    """Ranges of the color jitter: dhue in +-hue, saturation and exposure multiplied or divided by up to their value."""

    hue: float = 0.0
    saturation: float = 1.0
    exposure: float = 1.0

    def jitter(self, image: Image, rng: np.random.Generator) -> Image:
        """Jitter the colors of a uint8 image (H, W, C), in OpenCV's 8-bit HSV as Darknet does."""
        import cv2

        dhue = float(rng.uniform(-self.hue, self.hue))
        dsat, dexp = rand_scale(rng, self.saturation), rand_scale(rng, self.exposure)
        if (dhue, dsat, dexp) == (0, 1, 1):
            return image
        values = np.arange(256, dtype=np.float32).reshape(256, 1)  # for lookup tables
        if image.shape[2] != 3:
            return np.clip(values[:, 0] * dexp + 0.5, 0, 255).astype(np.uint8)[image]
        tables = values * np.array([1, dsat, dexp], np.float32) + np.array([179 * dhue, 0, 0], np.float32)
        tables = np.clip(np.rint(tables), 0, 255).astype(np.uint8)
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), tables[None])
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


@dataclass(frozen=True)
class Margins:
    """Pixels cropped from each side of an image; negative values add a border."""

    left: int
    right: int
    top: int
    bottom: int

    def mirrored(self) -> Margins:
        """Swap left and right."""
        return Margins(self.right, self.left, self.top, self.bottom)


@dataclass(frozen=True, kw_only=True)
class DetectionAugment:
    """The augmentation of a detector: [net]'s keys and those of its last head."""

    classes: int
    truth: Callable[[Boxes], np.ndarray]  # of a head: boxes (K, 5) -> the truth of its loss
    jitter: float = 0.2
    resize: float = 1.0
    flip: bool = True
    colors: Colors = Colors()
    letter_box: bool = False
    mosaic: bool = False
    mosaic_bound: bool = False
    mixup: bool = False
    blur: int = 0
    gaussian_noise: int = 0

    @classmethod
    def of(cls, net: Net, head: DetectionHead) -> DetectionAugment:
        """Read the keys of [net] and of the last head. Detectors are trained without cutmix, as in Darknet."""
        return cls(
            classes=head.num_truth_classes, truth=head.truth, jitter=abs(head.jitter), resize=head.resize, flip=bool(net.flip),
            colors=Colors(hue=abs(net.hue), saturation=net.saturation, exposure=net.exposure), letter_box=bool(net.letter_box),
            mosaic="mosaic" in net.mixing, mosaic_bound=bool(net.mosaic_bound), mixup=net.mixing == "mixup", blur=net.blur,
            gaussian_noise=net.gaussian_noise,
        )  # fmt: skip

    def sample(
        self, draw: Draw, rng: np.random.Generator, W: int, H: int, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make one training sample for a W x H input: x (C, H, W) float32, in `out` if given, and the head's truth.

        With mosaic or mixup, half of the samples combine several images.
        """
        combine = (self.mosaic or self.mixup) and rng.random() < 0.5
        if combine and self.mosaic:
            image, boxes = self.make_mosaic(draw, rng, W, H)
        else:
            image, boxes, _ = self.augment_image(*draw(rng), rng, W, H)
            if combine:
                image2, boxes2, _ = self.augment_image(*draw(rng), rng, W, H)
                image = ((image.astype(np.uint16) + image2 + 1) // 2).astype(np.uint8)
                boxes = np.concatenate([boxes, boxes2])
        return to_input(image, out), self.truth(boxes)

    def augment_image(
        self, image: Image, boxes: Boxes, rng: np.random.Generator, W: int, H: int, corner: int | None = None,
        region: Callable[[Margins], Region] = lambda margins: (slice(None), slice(None)),
    ) -> tuple[Image, Boxes, Region]:  # fmt: skip
        """Crop, resize to W x H, flip, recolor, blur and add noise to one image; return a region of it, all boxes, the region.

        corner (0 to 3): the tile of a mosaic; with probability 0.5 the crop is then shifted towards the tile's edge.
        region(margins after the flip): the part of the image that is needed.
        """
        import cv2

        oh, ow = image.shape[:2]
        flip = self.flip and rng.random() < 0.5
        margins = self.random_margins(rng, ow, oh, W / H)
        if corner is not None and rng.random() < 0.5:
            margins = shift_margins(margins, corner, flip)
        crop_w, crop_h = ow - margins.left - margins.right, oh - margins.top - margins.bottom
        if crop_w < 1 or crop_h < 1:
            margins = Margins(0, 0, 0, 0)
        out = cv2.resize(crop(image, margins), (W, H), interpolation=cv2.INTER_LINEAR)
        out = out.reshape(H, W, -1)
        out = cv2.flip(out, 1).reshape(H, W, -1) if flip else out
        part = region(margins.mirrored() if flip else margins)
        whole = self.blur > 0 or self.gaussian_noise > 0  # they need all pixels
        out = self.colors.jitter(out if whole else out[part], rng)
        boxes = crop_boxes(boxes, margins, ow, oh, flip, rng)
        keep = (boxes[:, 2] >= 1 / W) & (boxes[:, 3] >= 1 / H) & (boxes[:, 4] >= 0) & (boxes[:, 4] < self.classes)
        boxes = boxes[keep & (boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, 0] <= 1) & (boxes[:, 1] <= 1)]
        if self.blur:
            out = random_blur(out, boxes, self.blur, rng)
        if self.gaussian_noise and rng.random() < 0.5:
            noise = rng.normal(0, min(self.gaussian_noise, 127), out.shape)
            out = np.clip(np.rint(out + noise), 0, 255).astype(np.uint8)
        return out[part] if whole else out, boxes, part

    def random_margins(self, rng: np.random.Generator, ow: int, oh: int, ratio: float) -> Margins:
        """Draw the margins to crop from an image of ow x oh pixels; `ratio` is the input's width over its height."""
        dw, dh = int(ow * self.jitter), int(oh * self.jitter)
        left, right = (int(v) for v in rng.uniform(-dw, dw, 2))
        top, bottom = (int(v) for v in rng.uniform(-dh, dh, 2))
        if self.resize not in (0, 1):
            down, up = min(self.resize, 1 / self.resize), max(self.resize, 1 / self.resize)
            low, high = (1 - 1 / down) / 2, (1 - 1 / up) / 2 if self.resize > 1 else 0.0
            first, second = rng.uniform(low, high, 2)
            left, top = left + int(ow * first), top + int(oh * first)
            right, bottom = right + int(ow * second), bottom + int(oh * second)
        if self.letter_box and ow / oh > ratio:
            padding = int((ow / ratio - oh) / 2)
            top, bottom = top - padding, bottom - padding
        elif self.letter_box:
            padding = int((oh * ratio - ow) / 2)
            left, right = left - padding, right - padding
        return Margins(left, right, top, bottom)

    def make_mosaic(self, draw: Draw, rng: np.random.Generator, W: int, H: int) -> tuple[Image, Boxes]:
        """Tile four images around a random center (Bochkovskiy et al. 2020, arXiv 2004.10934)."""
        cx, cy = int(rng.uniform(0.2, 0.8) * W), int(rng.uniform(0.2, 0.8) * H)
        mosaic: Image | None = None
        all_boxes = []
        for corner in range(4):
            source, boxes = draw(rng)
            oh, ow = source.shape[:2]
            region = partial(tile_region, corner=corner, center=(cx, cy), image=(ow, oh), size=(W, H))
            tile, boxes, (rows, columns) = self.augment_image(source, boxes, rng, W, H, corner, region)
            h, w = tile.shape[:2]
            x1, y1 = (0 if corner % 2 == 0 else cx), (0 if corner < 2 else cy)
            if mosaic is None:
                mosaic = np.zeros((H, W, tile.shape[2]), np.uint8)
            mosaic[y1 : y1 + h, x1 : x1 + w] = tile
            bounds = (x1, y1, x1 + w, y1 + h) if self.mosaic_bound else (0, 0, W, H)
            all_boxes.append(shift_boxes(boxes, x1 - columns.start, y1 - rows.start, bounds, W, H))
        assert mosaic is not None
        return mosaic, np.concatenate(all_boxes)


def tile_region(
    margins: Margins, corner: int, center: tuple[int, int], image: tuple[int, int], size: tuple[int, int]
) -> Region:
    """Return the part of an augmented image that fills a corner of a mosaic; it leaves out the borders that margins add.

    center: where the tiles meet; image: width and height before the augmentation; size: after it, and of the mosaic.
    """
    (cx, cy), (ow, oh), (W, H) = center, image, size
    border_l, border_r = (max(0, -side * W // ow) for side in (margins.left, margins.right))
    border_t, border_b = (max(0, -side * H // oh) for side in (margins.top, margins.bottom))
    on_left, on_top = corner % 2 == 0, corner < 2
    x = W - cx - min(W - cx, border_r) if on_left else min(cx, border_l)
    y = H - cy - min(H - cy, border_b) if on_top else min(cy, border_t)
    return slice(y, y + (cy if on_top else H - cy)), slice(x, x + (cx if on_left else W - cx))


def shift_margins(margins: Margins, corner: int, flip: bool) -> Margins:
    """Shift a crop so that one side of the image meets the tile's edge: both margins of an axis go to the other side."""
    both_x, both_y = margins.left + margins.right, margins.top + margins.bottom
    to_right = (corner % 2 == 0) != flip
    left, right = (0, both_x) if to_right else (both_x, 0)
    top, bottom = (0, both_y) if corner < 2 else (both_y, 0)
    return Margins(left, right, top, bottom)


def crop(image: Image, margins: Margins) -> Image:
    """Crop an image by its margins; borders are filled with its mean color."""
    import cv2

    oh, ow = image.shape[:2]
    if min(margins.left, margins.right, margins.top, margins.bottom) >= 0:
        return image[margins.top : oh - margins.bottom, margins.left : ow - margins.right]
    w, h = ow - margins.left - margins.right, oh - margins.top - margins.bottom
    mean = np.rint(cv2.mean(image)[: image.shape[2]])  # a hundred times as fast as NumPy
    x, y = max(0, -margins.left), max(0, -margins.top)
    rows = slice(max(0, margins.top), max(0, oh - max(0, margins.bottom)))
    columns = slice(max(0, margins.left), max(0, ow - max(0, margins.right)))
    inside = image[rows, columns]
    if not inside.size:
        return np.full((h, w, image.shape[2]), mean, np.uint8)
    border = y, h - y - inside.shape[0], x, w - x - inside.shape[1]
    out = cv2.copyMakeBorder(inside, *border, cv2.BORDER_CONSTANT, value=mean.tolist())
    return np.asarray(out).reshape(h, w, -1)


def crop_boxes(boxes: Boxes, margins: Margins, ow: int, oh: int, flip: bool, rng: np.random.Generator) -> Boxes:
    """Shuffle boxes, transform them with the crop and the flip, and clip them; boxes outside get size or center 0.

    As in Darknet (correct_boxes), a box is clipped to the crop and not to the image before: where a border was added, a box that
    reaches over the image's edge reaches into it. Boxes outside the image are dropped, also if they are inside a border, and
    boxes whose center is 0, 0.
    """
    boxes = boxes[rng.permutation(len(boxes))]
    x, y, w, h = boxes[:, :4].astype(np.float64).T
    overlaps = (x + w / 2 > 0) & (x - w / 2 < 1) & (y + h / 2 > 0) & (y - h / 2 < 1)
    boxes = boxes[overlaps & ((x != 0) | (y != 0))]
    x, y, w, h = boxes[:, :4].astype(np.float64).T
    sx, sy = (ow - margins.left - margins.right) / ow, (oh - margins.top - margins.bottom) / oh
    left, right = (x - w / 2) / sx - margins.left / ow / sx, (x + w / 2) / sx - margins.left / ow / sx
    top, bottom = (y - h / 2) / sy - margins.top / oh / sy, (y + h / 2) / sy - margins.top / oh / sy
    if flip:
        left, right = 1 - right, 1 - left
    left, right, top, bottom = (np.clip(v, 0, 1) for v in (left, right, top, bottom))
    xywh = np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=1)
    return np.concatenate([xywh, boxes[:, 4:]], axis=1).astype(np.float32)


def shift_boxes(boxes: Boxes, dx: int, dy: int, bounds: tuple[int, int, int, int], W: int, H: int) -> Boxes:
    """Shift boxes by (dx, dy) pixels of a W x H image and clip them to bounds (left, top, right, bottom)."""
    x, y, w, h = boxes[:, :4].astype(np.float64).T
    left, right = (np.clip((x + s * w / 2) * W + dx, bounds[0], bounds[2]) for s in (-1, 1))
    top, bottom = (np.clip((y + s * h / 2) * H + dy, bounds[1], bounds[3]) for s in (-1, 1))
    xywh = np.stack([(left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H], axis=1)
    out = np.concatenate([xywh, boxes[:, 4:]], axis=1)
    kept = (right - left > 1) & (bottom - top > 1) & (right - left < W) & (bottom - top < H)
    return out[kept].astype(np.float32)


def random_blur(image: Image, boxes: Boxes, blur: int, rng: np.random.Generator) -> Image:
    """Blur half of the images: the background only, or, if `blur` is above 1, everything with a kernel of `blur` pixels."""
    import cv2

    H, W = image.shape[:2]
    choice = int(rng.integers(0, 3)) if rng.random() < 0.5 else 0
    if choice == 0:
        return image
    if choice == 1 or blur == 1:
        out = cv2.GaussianBlur(image, (BLUR_SIZE, BLUR_SIZE), 0).reshape(image.shape)
        for x, y, w, h in boxes[:, :4]:
            rows = slice(int((y - h / 2) * H), int((y + h / 2) * H))
            columns = slice(int((x - w / 2) * W), int((x + w / 2) * W))
            out[rows, columns] = image[rows, columns]
        return out
    smallest = min((min(w * W, h * H) for w, h in boxes[:, 2:4]), default=math.inf)
    size = int(min(blur, smallest / 8)) // 2 * 2 + 1
    return np.asarray(cv2.GaussianBlur(image, (size, size), 0)).reshape(image.shape)


@dataclass(frozen=True, kw_only=True)
class ClassifierAugment:
    """The augmentation of a classifier: [net]'s keys, and how truths are made."""

    classes: int
    min_crop: int
    max_crop: int
    angle: float = 0.0
    aspect: float = 1.0
    flip: bool = True
    colors: Colors = Colors()
    label_smooth_eps: float = 0.0
    mixing: str = ""  # how half of the images are combined, one of cfg.MIXING
    tree: Tree | None = None

    @classmethod
    def of(cls, net: Net, classes: int, tree: Tree | None = None) -> ClassifierAugment:
        """Read the keys of [net]."""
        return cls(
            classes=classes, min_crop=net.min_crop or net.width, max_crop=net.max_crop or 2 * net.width, angle=abs(net.angle),
            aspect=net.aspect, flip=bool(net.flip), label_smooth_eps=net.label_smooth_eps, mixing=net.mixing, tree=tree,
            colors=Colors(hue=abs(net.hue), saturation=net.saturation, exposure=net.exposure),
        )  # fmt: skip

    def sample(
        self, draw: Draw, rng: np.random.Generator, W: int, H: int, out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Make one training sample for a W x H input: x (C, H, W) float32, in `out` if given, truth (classes,)."""
        image, truth = self.augment_image(draw, rng, W, H)
        mixing = self.mixing if rng.random() < 0.5 else ""
        mixing = ("cutmix", "mosaic")[int(rng.integers(2))] if mixing == "cutmix or mosaic" else mixing
        if mixing == "mixup":
            image2, truth2 = self.augment_image(draw, rng, W, H)
            image, truth = (image + image2) / 2, (truth + truth2) / 2
        elif mixing == "cutmix":
            image2, truth2 = self.augment_image(draw, rng, W, H)
            w, h = (int(side * rng.uniform(0.3, 0.8)) for side in (W, H))
            x, y = int(rng.integers(0, W - w + 1)), int(rng.integers(0, H - h + 1))
            image[y : y + h, x : x + w] = image2[y : y + h, x : x + w]
            area = w * h / (W * H)
            truth = truth * (1 - area) + truth2 * area
        elif mixing == "mosaic":
            cx, cy = int(rng.uniform(0.2, 0.8) * W), int(rng.uniform(0.2, 0.8) * H)
            tiles = [(slice(0, cy), slice(0, cx)), (slice(0, cy), slice(cx, W)), (slice(cy, H), slice(0, cx)),
                     (slice(cy, H), slice(cx, W))]  # fmt: skip
            total = truth * (cx * cy / (W * H))
            for tile in tiles[1:]:
                image2, truth2 = self.augment_image(draw, rng, W, H)
                image[tile] = image2[tile]
                total += truth2 * (image[tile].shape[0] * image[tile].shape[1] / (W * H))
            truth = total
        return to_input(image, out), truth.astype(np.float32)

    def augment_image(self, draw: Draw, rng: np.random.Generator, W: int, H: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw an image; return a random crop of it, rotated and scaled, as float32 (H, W, C), 0..255, and its truth."""
        import cv2

        image, boxes = draw(rng)
        oh, ow = image.shape[:2]
        a = rand_scale(rng, self.aspect)
        r = int(rng.integers(self.min_crop, max(self.max_crop, self.min_crop) + 1))
        scale = r / max(1, int(min(oh, ow * a)))
        angle = math.radians(float(rng.uniform(-self.angle, self.angle)))
        S = max(W, H)
        dx, dy = max(0.0, (ow * scale / a - S) / 2), max(0.0, (oh * scale - S) / 2)
        dx, dy = float(rng.uniform(-dx, dx)), float(rng.uniform(-dy, dy))
        # the source of pixel (x, y) of the crop: rotate((x - S/2 + dx) * a, y - S/2 + dy) / scale, about the center
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        ox, oy = (dx - S / 2) * a, dy - S / 2
        to_source = np.array(
            [[cos * a, -sin, cos * ox - sin * oy + ow / 2], [sin * a, cos, sin * ox + cos * oy + oh / 2]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out = cv2.warpAffine(image, to_source, (S, S), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        out = out.reshape(S, S, -1)
        if self.flip and rng.random() < 0.5:
            out = np.ascontiguousarray(out[:, ::-1])
        out = self.colors.jitter(out, rng)
        if (W, H) != (S, S):
            out = cv2.resize(out, (W, H), interpolation=cv2.INTER_LINEAR).reshape(H, W, -1)
        return out.astype(np.float32), self.truth(boxes[:, 4].astype(int))

    def truth(self, classes: np.ndarray) -> np.ndarray:
        """Return the target probabilities (classes,) of an image with these classes."""
        eps, K = self.label_smooth_eps, self.classes
        truth = np.full(K, eps / max(K - 1, 1))
        truth[classes] = 1 - eps
        if self.tree is None:
            return truth
        for k in classes:
            truth[list(self.tree.ancestors(k))] = 1
        for a, b in zip(self.tree.starts, (*self.tree.starts[1:], K), strict=True):
            if not (truth[a:b] == 1 - eps).any() and not (truth[a:b] == 1).any():
                truth[a:b] = IGNORE_LABEL
        return truth
