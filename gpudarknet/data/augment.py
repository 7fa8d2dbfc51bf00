"""Change training images at random, with their boxes or labels (load_data_detection, load_data_augment in src/data.c).

An image is uint8 (H, W, C). Boxes are rows (K, 5) of x, y, w, h relative to the image, and class; a sixth number, the track,
goes with them. All chance comes from the generator that is handed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..cfg import Net
from ..layers import DetectionHead
from ..layers.class_tree import Tree

Picture = np.ndarray
Boxes = np.ndarray
Draw = Callable[[np.random.Generator], tuple[Picture, Boxes]]  # draws one image of the data set with its boxes
BLUR = 17  # pixels, the kernel of blur=1
DO_NOT_CARE = -1234.0


def rand_scale(rng: np.random.Generator, s: float) -> float:
    """Draw from 1 to s, or its reciprocal, with equal chance."""
    scale = float(rng.uniform(1, s)) if s > 1 else float(rng.uniform(s, 1)) if s > 0 else 1.0
    return scale if rng.random() < 0.5 else 1 / scale


@dataclass(frozen=True, kw_only=True)
class Colours:
    """How far hue, saturation and exposure may go: dhue in +-hue, the others multiplied or divided by up to s."""

    hue: float = 0.0
    saturation: float = 1.0
    exposure: float = 1.0

    def change(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Shift the colours of a uint8 image (H, W, C), in OpenCV's 8-bit HSV as Darknet does."""
        import cv2

        dhue = float(rng.uniform(-self.hue, self.hue))
        dsat, dexp = rand_scale(rng, self.saturation), rand_scale(rng, self.exposure)
        if (dhue, dsat, dexp) == (0, 1, 1):
            return picture
        values = np.arange(256, dtype=np.float32).reshape(256, 1)  # tables: what becomes of each value
        if picture.shape[2] != 3:
            return np.clip(values[:, 0] * dexp + 0.5, 0, 255).astype(np.uint8)[picture]
        tables = values * np.array([1, dsat, dexp], np.float32) + np.array([179 * dhue, 0, 0], np.float32)
        tables = np.clip(np.rint(tables), 0, 255).astype(np.uint8)
        hsv = cv2.LUT(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV), tables[None])
        return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


@dataclass(frozen=True)
class Margins:
    """What is cut off each side of an image, in its pixels; negative adds a border."""

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
    boxes: int  # the most that an image keeps
    jitter: float = 0.2
    resize: float = 1.0
    flip: bool = True
    colours: Colours = Colours()
    letter_box: bool = False
    mosaic: bool = False
    mosaic_bound: bool = False
    mixup: bool = False
    blur: int = 0
    gaussian_noise: int = 0

    @classmethod
    def of(cls, net: Net, head: DetectionHead) -> DetectionAugment:
        """Read the keys of [net] and of a head."""
        return cls(
            classes=head.classes, boxes=head.max, jitter=getattr(head, "jitter", 0.2), resize=getattr(head, "resize", 1.0),
            flip=bool(net.flip), colours=Colours(hue=net.hue, saturation=net.saturation, exposure=net.exposure),
            letter_box=bool(net.letter_box), mosaic=bool(net.mosaic), mosaic_bound=bool(net.mosaic_bound),
            mixup=net.mixup == 1, blur=net.blur, gaussian_noise=net.gaussian_noise,
        )  # fmt: skip

    def sample(self, draw: Draw, rng: np.random.Generator, W: int, H: int) -> tuple[np.ndarray, np.ndarray]:
        """Make one training sample for a W x H input: x (C, H, W) float32, truth (boxes*6,).

        With mosaic or mixup half of the samples are made of several images.
        """
        several = (self.mosaic or self.mixup) and rng.random() < 0.5
        if several and self.mosaic:
            picture, boxes = self.mosaic_of(draw, rng, W, H)
        else:
            picture, boxes, _ = self.one(*draw(rng), rng, W, H)
            if several:
                other, more, _ = self.one(*draw(rng), rng, W, H)
                picture = ((picture.astype(np.uint16) + other + 1) // 2).astype(np.uint8)
                boxes = np.concatenate([boxes, more])
        truth = np.zeros((self.boxes, 6), np.float32)
        boxes = boxes[: self.boxes]
        truth[: len(boxes), : boxes.shape[1]] = boxes
        x = np.empty((picture.shape[2], H, W), np.float32)
        np.multiply(picture.transpose(2, 0, 1), np.float32(1 / 255), out=x)
        return x, truth.reshape(-1)

    def one(
        self, picture: Picture, boxes: Boxes, rng: np.random.Generator, W: int, H: int, corner: int | None = None
    ) -> tuple[Picture, Boxes, Margins]:
        """Crop, resize to W x H, flip, recolour, blur and add noise to one image; give also its margins as flipped.

        corner (0 to 3): of a mosaic, the tile; half of the time the image is moved towards the cut.
        """
        import cv2

        oh, ow = picture.shape[:2]
        flip = self.flip and rng.random() < 0.5
        cut = self.margins(rng, ow, oh, W / H)
        if corner is not None and rng.random() < 0.5:
            cut = moved(cut, corner, flip)
        swidth, sheight = ow - cut.left - cut.right, oh - cut.top - cut.bottom
        if swidth < 1 or sheight < 1:
            cut, swidth, sheight = Margins(0, 0, 0, 0), ow, oh
        sized = cv2.resize(crop(picture, cut), (W, H), interpolation=cv2.INTER_LINEAR)
        sized = sized.reshape(H, W, -1)
        sized = cv2.flip(sized, 1).reshape(H, W, -1) if flip else sized
        sized = self.colours.change(sized, rng)
        boxes = fitted(boxes, cut, ow, oh, flip, rng)
        keep = (boxes[:, 2] >= 1 / W) & (boxes[:, 3] >= 1 / H) & (boxes[:, 4] >= 0) & (boxes[:, 4] < self.classes)
        boxes = boxes[keep & (boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, 0] <= 1) & (boxes[:, 1] <= 1)]
        if self.blur:
            sized = blurred(sized, boxes, self.blur, rng)
        if self.gaussian_noise and rng.random() < 0.5:
            noise = rng.normal(0, min(self.gaussian_noise, 127), sized.shape)
            sized = np.clip(np.rint(sized + noise), 0, 255).astype(np.uint8)
        return sized, boxes, cut.mirrored() if flip else cut

    def margins(self, rng: np.random.Generator, ow: int, oh: int, ratio: float) -> Margins:
        """Draw what to cut off an image of ow x oh pixels; `ratio` is the input's width over its height."""
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
            more = int((ow / ratio - oh) / 2)
            top, bottom = top - more, bottom - more
        elif self.letter_box:
            more = int((oh * ratio - ow) / 2)
            left, right = left - more, right - more
        return Margins(left, right, top, bottom)

    def mosaic_of(self, draw: Draw, rng: np.random.Generator, W: int, H: int) -> tuple[Picture, Boxes]:
        """Put four images around a random point, each into its corner (Bochkovskiy et al. 2020, arXiv 2004.10934)."""
        cx, cy = int(rng.uniform(0.2, 0.8) * W), int(rng.uniform(0.2, 0.8) * H)
        whole: Picture | None = None
        found = []
        for corner in range(4):
            source, boxes = draw(rng)
            oh, ow = source.shape[:2]
            tile, boxes, cut = self.one(source, boxes, rng, W, H, corner)
            border_l, border_r = (max(0, -side * W // ow) for side in (cut.left, cut.right))
            border_t, border_b = (max(0, -side * H // oh) for side in (cut.top, cut.bottom))
            on_left, on_top = corner % 2 == 0, corner < 2
            x0 = W - cx - min(W - cx, border_r) if on_left else min(cx, border_l)
            y0 = H - cy - min(H - cy, border_b) if on_top else min(cy, border_t)
            x1, y1 = (0 if on_left else cx), (0 if on_top else cy)
            w, h = (cx if on_left else W - cx), (cy if on_top else H - cy)
            if whole is None:
                whole = np.zeros_like(tile)
            whole[y1 : y1 + h, x1 : x1 + w] = tile[y0 : y0 + h, x0 : x0 + w]
            bounds = (x1, y1, x1 + w, y1 + h) if self.mosaic_bound else (0, 0, W, H)
            found.append(shifted(boxes, x1 - x0, y1 - y0, bounds, W, H))
        assert whole is not None
        return whole, np.concatenate(found)


def moved(cut: Margins, corner: int, flip: bool) -> Margins:
    """Shift a crop so that one side of the image meets the tile's edge: both margins of an axis go to the other side."""
    both_x, both_y = cut.left + cut.right, cut.top + cut.bottom
    to_right = (corner % 2 == 0) != flip
    left, right = (0, both_x) if to_right else (both_x, 0)
    top, bottom = (0, both_y) if corner < 2 else (both_y, 0)
    return Margins(left, right, top, bottom)


def crop(picture: Picture, cut: Margins) -> Picture:
    """Cut the margins off an image; a border is filled with its mean colour."""
    import cv2

    oh, ow = picture.shape[:2]
    if min(cut.left, cut.right, cut.top, cut.bottom) >= 0:
        return picture[cut.top : oh - cut.bottom, cut.left : ow - cut.right]
    w, h = ow - cut.left - cut.right, oh - cut.top - cut.bottom
    mean = np.rint(cv2.mean(picture)[: picture.shape[2]])  # NumPy takes a hundred times as long
    x, y = max(0, -cut.left), max(0, -cut.top)
    part = picture[max(0, cut.top) : oh - max(0, cut.bottom), max(0, cut.left) : ow - max(0, cut.right)]
    if not part.size:
        return np.full((h, w, picture.shape[2]), mean, np.uint8)
    border = y, h - y - part.shape[0], x, w - x - part.shape[1]
    out = cv2.copyMakeBorder(part, *border, cv2.BORDER_CONSTANT, value=mean.tolist())
    return np.asarray(out).reshape(h, w, -1)


def fitted(boxes: Boxes, cut: Margins, ow: int, oh: int, flip: bool, rng: np.random.Generator) -> Boxes:
    """Move boxes with the crop and the flip, clip them to it, shuffle them; those outside have no size or no centre left."""
    boxes = boxes[rng.permutation(len(boxes))]
    sx, sy = (ow - cut.left - cut.right) / ow, (oh - cut.top - cut.bottom) / oh
    x, y, w, h = boxes[:, :4].astype(np.float64).T
    left, right = (x - w / 2) / sx - cut.left / ow / sx, (x + w / 2) / sx - cut.left / ow / sx
    top, bottom = (y - h / 2) / sy - cut.top / oh / sy, (y + h / 2) / sy - cut.top / oh / sy
    if flip:
        left, right = 1 - right, 1 - left
    left, right, top, bottom = (np.clip(v, 0, 1) for v in (left, right, top, bottom))
    placed = np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=1)
    return np.concatenate([placed, boxes[:, 4:]], axis=1).astype(np.float32)


def shifted(boxes: Boxes, dx: int, dy: int, bounds: tuple[int, int, int, int], W: int, H: int) -> Boxes:
    """Move boxes by (dx, dy) pixels of a W x H image and clip them to bounds (left, top, right, bottom)."""
    x, y, w, h = boxes[:, :4].astype(np.float64).T
    left, right = (np.clip((x + s * w / 2) * W + dx, bounds[0], bounds[2]) for s in (-1, 1))
    top, bottom = (np.clip((y + s * h / 2) * H + dy, bounds[1], bounds[3]) for s in (-1, 1))
    placed = np.stack([(left + right) / 2 / W, (top + bottom) / 2 / H, (right - left) / W, (bottom - top) / H], axis=1)
    out = np.concatenate([placed, boxes[:, 4:]], axis=1)
    kept = (right - left > 1) & (bottom - top > 1) & (right - left < W) & (bottom - top < H)
    return out[kept].astype(np.float32)


def blurred(picture: Picture, boxes: Boxes, blur: int, rng: np.random.Generator) -> Picture:
    """Blur half of the images: their background only, or everything with a kernel of `blur` pixels if that is above 1."""
    import cv2

    H, W = picture.shape[:2]
    choice = int(rng.integers(0, 3)) if rng.random() < 0.5 else 0
    if choice == 0:
        return picture
    if choice == 1 or blur == 1:
        out = cv2.GaussianBlur(picture, (BLUR, BLUR), 0).reshape(picture.shape)
        for x, y, w, h in boxes[:, :4]:
            here = (
                slice(int((y - h / 2) * H), int((y + h / 2) * H)),
                slice(int((x - w / 2) * W), int((x + w / 2) * W)),
            )
            out[here] = picture[here]
        return out
    smallest = min((min(w * W, h * H) for w, h in boxes[:, 2:4]), default=math.inf)
    side = int(min(blur, smallest / 8)) // 2 * 2 + 1
    return np.asarray(cv2.GaussianBlur(picture, (side, side), 0)).reshape(picture.shape)


@dataclass(frozen=True, kw_only=True)
class ClassifierAugment:
    """The augmentation of a classifier, and its labels."""

    classes: int
    min_crop: int
    max_crop: int
    angle: float = 0.0
    aspect: float = 1.0
    flip: bool = True
    colours: Colours = Colours()
    label_smooth_eps: float = 0.0
    mixup: int = 0  # 1 mixup, 2 cutmix, 3 mosaic, 4 cutmix or mosaic
    tree: Tree | None = None

    @classmethod
    def of(cls, net: Net, classes: int, tree: Tree | None = None) -> ClassifierAugment:
        """Read the keys of [net]."""
        mode = 4 if net.mosaic and net.cutmix else 2 if net.cutmix else 3 if net.mosaic else net.mixup
        return cls(
            classes=classes, min_crop=net.min_crop or net.width, max_crop=net.max_crop or 2 * net.width, angle=net.angle,
            aspect=net.aspect, flip=bool(net.flip), label_smooth_eps=net.label_smooth_eps, mixup=mode, tree=tree,
            colours=Colours(hue=net.hue, saturation=net.saturation, exposure=net.exposure),
        )  # fmt: skip

    def sample(self, draw: Draw, rng: np.random.Generator, W: int, H: int) -> tuple[np.ndarray, np.ndarray]:
        """Make one training sample for a W x H input: x (C, H, W) float32, truth (classes,)."""
        picture, truth = self.one(draw, rng, W, H)
        mode = self.mixup if rng.random() < 0.5 else 0
        mode = int(rng.integers(2, 4)) if mode == 4 else mode
        if mode == 1:
            other, second = self.one(draw, rng, W, H)
            picture, truth = (picture + other) / 2, (truth + second) / 2
        elif mode == 2:
            other, second = self.one(draw, rng, W, H)
            w, h = (int(side * rng.uniform(0.3, 0.8)) for side in (W, H))
            x, y = int(rng.integers(0, W - w + 1)), int(rng.integers(0, H - h + 1))
            picture[y : y + h, x : x + w] = other[y : y + h, x : x + w]
            share = w * h / (W * H)
            truth = truth * (1 - share) + second * share
        elif mode == 3:
            cx, cy = int(rng.uniform(0.2, 0.8) * W), int(rng.uniform(0.2, 0.8) * H)
            parts = [(slice(0, cy), slice(0, cx)), (slice(0, cy), slice(cx, W)), (slice(cy, H), slice(0, cx)),
                     (slice(cy, H), slice(cx, W))]  # fmt: skip
            total = truth * (cx * cy / (W * H))
            for part in parts[1:]:
                other, second = self.one(draw, rng, W, H)
                picture[part] = other[part]
                total += second * (picture[part].shape[0] * picture[part].shape[1] / (W * H))
            truth = total
        planes = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32)
        return planes * np.float32(1 / 255), truth.astype(np.float32)

    def one(self, draw: Draw, rng: np.random.Generator, W: int, H: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw an image, cut a random square out of it, turned and stretched; float32 (H, W, C), 0..255, and its truth."""
        import cv2

        picture, boxes = draw(rng)
        oh, ow = picture.shape[:2]
        a = rand_scale(rng, self.aspect)
        r = int(rng.integers(self.min_crop, max(self.max_crop, self.min_crop) + 1))
        scale = r / max(1, int(min(oh, ow * a)))
        turn = math.radians(float(rng.uniform(-self.angle, self.angle)))
        S = max(W, H)
        dx, dy = max(0.0, (ow * scale / a - S) / 2), max(0.0, (oh * scale - S) / 2)
        dx, dy = float(rng.uniform(-dx, dx)), float(rng.uniform(-dy, dy))
        # where pixel (x, y) of the square comes from: turn((x - S/2 + dx) * a, y - S/2 + dy) / scale, about the middle
        cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
        ox, oy = (dx - S / 2) * a, dy - S / 2
        to_source = np.array(
            [[cos * a, -sin, cos * ox - sin * oy + ow / 2], [sin * a, cos, sin * ox + cos * oy + oh / 2]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        square = cv2.warpAffine(picture, to_source, (S, S), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        square = square.reshape(S, S, -1)
        if self.flip and rng.random() < 0.5:
            square = np.ascontiguousarray(square[:, ::-1])
        square = self.colours.change(square, rng)
        if (W, H) != (S, S):
            square = cv2.resize(square, (W, H), interpolation=cv2.INTER_LINEAR).reshape(H, W, -1)
        return square.astype(np.float32), self.truth(boxes[:, 4].astype(int))

    def truth(self, classes: np.ndarray) -> np.ndarray:
        """Return the probabilities (classes,) that an image of these classes shall get."""
        eps, K = self.label_smooth_eps, self.classes
        truth = np.full(K, eps / max(K - 1, 1))
        truth[classes] = 1 - eps
        if self.tree is None:
            return truth
        for k in classes:
            while (k := self.tree.parents[k]) >= 0:
                truth[k] = 1
        for a, b in zip(self.tree.starts, (*self.tree.starts[1:], K), strict=True):
            if not (truth[a:b] == 1 - eps).any() and not (truth[a:b] == 1).any():
                truth[a:b] = DO_NOT_CARE
        return truth
