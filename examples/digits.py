"""Compose a data set, train a network on it and measure it: handwritten digits on photographs, without any download.

    pip install "gpudarknet[study]"
    python examples/digits.py                # everything, into build/digits; docs/digits.md has the results
    gpudarknet demo                          # see what the network does

The digits are scikit-learn's (8 x 8 pixels, 13 writers), the photographs scikit-image's and scikit-learn's. Held-out images use
digits and photographs that no training image uses. All randomness derives from the seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import sklearn.datasets

import gpudarknet as gd
from gpudarknet import evaluate, image
from gpudarknet.data import datafile, read_list
from gpudarknet.io import resources
from gpudarknet.train import Progress

TRAIN, VALID = 3000, 400  # images
SPLIT = 1400  # of the 1797 digits; the others are held out
UNIT = (128, 96)  # width, height; images are 2, 3 or 4 times as large
HEIGHTS = (16, 44)  # pixels, of a digit in an image of 1 unit
DIGITS = (3, 7)  # per image, if there is space
CONTRAST = 80  # minimum difference in brightness between a digit and its background, of 255


def photographs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the photographs for training and the held-out ones, uint8 (H, W, 3)."""
    flower, china = sklearn.datasets.load_sample_image("flower.jpg"), sklearn.datasets.load_sample_image("china.jpg")
    d = skimage.data
    train = [d.astronaut(), d.chelsea(), d.rocket(), d.stereo_motorcycle()[0], d.immunohistochemistry(), d.retina(), flower,
             d.brick(), d.gravel(), d.moon(), d.cell(), d.page(), d.text(), d.clock(), d.hubble_deep_field()]  # fmt: skip
    held_out = [d.coffee(), china, d.camera(), d.grass(), d.coins()]
    return [to_rgb(p) for p in train], [to_rgb(p) for p in held_out]


def to_rgb(photo: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) -> uint8 (H, W, 3)."""
    return np.ascontiguousarray(np.broadcast_to(photo[..., None] if photo.ndim == 2 else photo, (*photo.shape[:2], 3)))


def random_background(photos: list[np.ndarray], rng: np.random.Generator, W: int, H: int) -> np.ndarray:
    """Crop a random photograph at random and resize the crop -> uint8 (H, W, 3)."""
    photo = photos[int(rng.integers(len(photos)))]
    h, w = photo.shape[:2]
    scale = min(w / W, h / H) * rng.uniform(0.3, 1)
    cw, ch = int(scale * W), int(scale * H)
    x, y = int(rng.integers(0, w - cw + 1)), int(rng.integers(0, h - ch + 1))
    crop = photo[y : y + ch, x : x + cw]
    crop = crop[:, ::-1] if rng.random() < 0.5 else crop
    return cv2.resize(np.ascontiguousarray(crop), (W, H), interpolation=cv2.INTER_AREA if cw > W else cv2.INTER_CUBIC)


def mixed_background(photos: list[np.ndarray], rng: np.random.Generator, W: int, H: int) -> np.ndarray:
    """Augment a background: paste ellipses of others, permute the color channels, invert -> uint8 (H, W, 3)."""
    img = random_background(photos, rng, W, H)
    for _ in range(int(rng.integers(0, 5))):
        other, mask = random_background(photos, rng, W, H), np.zeros((H, W), np.uint8)
        center = (int(rng.integers(W)), int(rng.integers(H)))
        radii = tuple(int(r) for r in rng.uniform(0.04, 0.25, 2) * W)
        cv2.ellipse(mask, center, radii, float(rng.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
        img = np.where(mask[..., None], other, img)
    img = img[..., rng.permutation(3)]
    return 255 - img if rng.random() < 0.3 else img


def render_digit(digit: np.ndarray, rng: np.random.Generator, height: float) -> np.ndarray:
    """Render a digit (8, 8), values 0..1, `height` pixels high, slightly rotated -> opacity (h, w), 0..1, cropped."""
    padded = cv2.copyMakeBorder(digit.astype(np.float32), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=0)
    scale = height / 8 * np.array([rng.uniform(0.9, 1.3), 1])
    angle = np.radians(rng.uniform(-12, 12))
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale[:, None]
    side = int(2 * height)
    offset = np.array([side / 2, side / 2]) - matrix @ np.array([5.5, 5.5])
    large = cv2.warpAffine(padded, np.column_stack([matrix, offset]), (side, side), flags=cv2.INTER_CUBIC)
    sharp = np.clip((large - 0.4) / 0.25, 0, 1)
    ys, xs = np.nonzero(sharp > 0.5)
    return sharp[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def random_ink(rng: np.random.Generator, brightness: float) -> np.ndarray:
    """Choose a color (3,), 0..255, that contrasts with the brightness of the background."""
    while True:
        color = rng.uniform(0, 255, 3) if rng.random() < 0.7 else np.full(3, rng.uniform(0, 255))
        if abs(color @ (0.299, 0.587, 0.114) - brightness) > CONTRAST:
            return color


def compose(
    photos: list[np.ndarray], digits: np.ndarray, classes: np.ndarray, rng: np.random.Generator, scale: int,
    augment: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Paint random digits of (K, 8, 8) on a photograph: uint8 (H, W, 3), boxes (K, 5) as x, y, w, h, class."""
    W, H = (scale * side for side in UNIT)
    img = (mixed_background if augment else random_background)(photos, rng, W, H).astype(np.float32)
    occupied = np.zeros((H, W), bool)
    boxes = []
    for _ in range(int(rng.integers(DIGITS[0], DIGITS[1] + 1))):
        k = int(rng.integers(len(digits)))
        low, high = np.log(HEIGHTS)
        opacity = render_digit(digits[k], rng, scale * float(np.exp(rng.uniform(low, high))))
        h, w = opacity.shape
        for _ in range(20):  # positions, until one is free
            x, y = int(rng.integers(0, W - w + 1)), int(rng.integers(0, H - h + 1))
            if occupied[y : y + h, x : x + w].any():
                continue
            occupied[y : y + h, x : x + w] = True
            region = img[y : y + h, x : x + w]
            brightness = float((region @ np.array([0.299, 0.587, 0.114], np.float32)).mean())
            region += (opacity * rng.uniform(0.85, 1))[..., None] * (random_ink(rng, brightness) - region)
            boxes.append(((x + w / 2) / W, (y + h / 2) / H, w / W, h / H, classes[k]))
            break
    return np.clip(np.rint(img), 0, 255).astype(np.uint8), np.array(boxes)


def make_images(held_out: bool, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Compose `count` images with their boxes, for training or held out; the same for the same seed."""
    digits, classes = sklearn.datasets.load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8) / 16
    part = slice(SPLIT, None) if held_out else slice(SPLIT)
    photos = photographs()[held_out]
    for number in range(count):
        rng = np.random.default_rng([seed, int(held_out), number])
        yield compose(photos, digits[part], classes[part], rng, 2 + number % 3, augment=not held_out)


def write_data(data: datafile.DataFile, train: int, valid: int, seed: int) -> None:
    """Write the image lists that a .data file names, the images, and a label file next to each, in Darknet's format."""
    for name, count, held_out in ((data.train, train, False), (data.valid, valid, True)):
        folder = Path(str(name)).with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{number:05d}.jpg" for number in range(count)]
        for path, (img, boxes) in zip(paths, make_images(held_out, count, seed), strict=True):
            image.write(path, img)
            rows = (f"{int(k)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h, k in boxes)
            path.with_suffix(".txt").write_text("".join(rows))
        folder.with_suffix(".txt").write_text("".join(f"{folder.name}/{path.name}\n" for path in paths))


def train(data: datafile.DataFile, seed: int, iterations: int | None = None) -> gd.Network:
    """Train the network from random weights, for its cfg's max_batches or for `iterations`, and print the progress."""
    net = gd.load_network(resources.bundled_cfg("digits"), backend="auto", seed=seed)
    trainer = gd.Trainer(net, seed)

    def print_progress(p: Progress) -> None:
        if p.iteration % 50 == 0:
            print(
                f"{p.iteration:5d} of {p.iterations}: loss {p.average:6.2f}, {p.left / 60:.1f} minutes left", flush=True
            )

    trainer.fit(data, data.backup, "digits", report=print_progress, iterations=iterations)
    return net


def measure(net: gd.Network, data: datafile.DataFile) -> evaluate.Report:
    """Compute average precision at IoU 0.5 on the held-out images."""
    images = evaluate.evaluate_images(gd.Detector(net, names=data.read_names()), read_list(str(data.valid)))
    return evaluate.mean_average_precision(images, data.classes)


def main() -> None:
    """Compose the images, train, measure."""
    parser = argparse.ArgumentParser(description="Train cfg/digits.cfg; everything is written to build/digits")
    parser.add_argument("--seed", type=int, default=1, help="of the images, the initial weights and the training")
    parser.add_argument("--iterations", type=int, help="stop before the cfg's max_batches")
    parser.add_argument("--measure", metavar="WEIGHTS", help="measure these weights instead of training")
    args = parser.parse_args()
    data = datafile.DataFile.read(resources.find("digits", ".data"))

    begin = time.perf_counter()
    write_data(data, 0 if args.measure else TRAIN, VALID, args.seed)
    print(
        f"{VALID} held-out images, {0 if args.measure else TRAIN} others: {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    if args.measure:
        net = gd.load_network(resources.bundled_cfg("digits"), args.measure)
    else:
        begin = time.perf_counter()
        net = train(data, args.seed, args.iterations)
        print(f"{data.backup}/digits_last.weights: {(time.perf_counter() - begin) / 60:.1f} minutes of training")
    report = measure(net, data)
    for name, ap in zip(data.read_names(), report.ap, strict=True):
        print(f"{name:>6}: AP {ap:.1%}")
    print(
        f"mAP@0.5 {report.mean:.1%} on {VALID} held-out images with {report.truths.sum()} digits;"
        f" at confidence 0.25 precision {report.precision:.1%}, recall {report.recall:.1%}"
    )


if __name__ == "__main__":
    main()
