"""Make, train and measure a network of our own: handwritten digits on photographs, nothing downloaded.

    pip install "gpudarknet[study]"
    python examples/digits.py                # everything, into build/digits; docs/digits.md has the numbers
    gpudarknet demo                          # look at what came of it

Digits are scikit-learn's (8 x 8 pixels, of 13 writers), photographs scikit-image's and scikit-learn's. The held-out pictures
are made of digits and of photographs that no training picture has. Chance comes from the seed alone.
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
from gpudarknet.train import loop

TRAIN, VALID = 3000, 400  # pictures
SPLIT = 1400  # of the 1797 digits; the rest is held out
UNIT = (128, 96)  # pictures are 2, 3 or 4 times as large
HEIGHTS = (16, 44)  # of a digit, of a picture that is 1 unit large
DIGITS = (3, 7)  # in a picture, as far as there is room
CONTRAST = 80  # the least difference in brightness between a digit and what is behind it, of 255


def photographs() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the photographs for training and those held out, uint8 (H, W, 3)."""
    flower, china = sklearn.datasets.load_sample_image("flower.jpg"), sklearn.datasets.load_sample_image("china.jpg")
    d = skimage.data
    train = [d.astronaut(), d.chelsea(), d.rocket(), d.stereo_motorcycle()[0], d.immunohistochemistry(), d.retina(), flower,
             d.brick(), d.gravel(), d.moon(), d.cell(), d.page(), d.text(), d.clock(), d.hubble_deep_field()]  # fmt: skip
    held_out = [d.coffee(), china, d.camera(), d.grass(), d.coins()]
    return [coloured(p) for p in train], [coloured(p) for p in held_out]


def coloured(photo: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) -> uint8 (H, W, 3)."""
    return np.ascontiguousarray(np.broadcast_to(photo[..., None] if photo.ndim == 2 else photo, (*photo.shape[:2], 3)))


def background(photos: list[np.ndarray], rng: np.random.Generator, W: int, H: int) -> np.ndarray:
    """Cut a random part out of a random photograph -> uint8 (H, W, 3)."""
    photo = photos[int(rng.integers(len(photos)))]
    h, w = photo.shape[:2]
    part = min(w / W, h / H) * rng.uniform(0.3, 1)
    cw, ch = int(part * W), int(part * H)
    x, y = int(rng.integers(0, w - cw + 1)), int(rng.integers(0, h - ch + 1))
    cut = photo[y : y + ch, x : x + cw]
    cut = cut[:, ::-1] if rng.random() < 0.5 else cut
    return cv2.resize(np.ascontiguousarray(cut), (W, H), interpolation=cv2.INTER_AREA if cw > W else cv2.INTER_CUBIC)


def varied(photos: list[np.ndarray], rng: np.random.Generator, W: int, H: int) -> np.ndarray:
    """Make more of few photographs: exchange colours, invert, put round pieces of others in -> uint8 (H, W, 3)."""
    picture = background(photos, rng, W, H)
    for _ in range(int(rng.integers(0, 5))):
        other, hole = background(photos, rng, W, H), np.zeros((H, W), np.uint8)
        middle = (int(rng.integers(W)), int(rng.integers(H)))
        radii = tuple(int(r) for r in rng.uniform(0.04, 0.25, 2) * W)
        cv2.ellipse(hole, middle, radii, float(rng.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
        picture = np.where(hole[..., None], other, picture)
    picture = picture[..., rng.permutation(3)]
    return 255 - picture if rng.random() < 0.3 else picture


def glyph(digit: np.ndarray, rng: np.random.Generator, height: float) -> np.ndarray:
    """Draw a digit (8, 8), values 0..1, so many pixels high, a little turned -> opacity (h, w), 0..1, cut to its ink."""
    inked = cv2.copyMakeBorder(digit.astype(np.float32), 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=0)
    scale = height / 8 * np.array([rng.uniform(0.9, 1.3), 1])
    turn = np.radians(rng.uniform(-12, 12))
    rows = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * scale[:, None]
    side = int(2 * height)
    move = np.array([side / 2, side / 2]) - rows @ np.array([5.5, 5.5])
    large = cv2.warpAffine(inked, np.column_stack([rows, move]), (side, side), flags=cv2.INTER_CUBIC)
    sharp = np.clip((large - 0.4) / 0.25, 0, 1)
    ys, xs = np.nonzero(sharp > 0.5)
    return sharp[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def ink(rng: np.random.Generator, behind: float) -> np.ndarray:
    """Choose a colour (3,), 0..255, that differs in brightness from what is behind."""
    while True:
        shade = rng.uniform(0, 255, 3) if rng.random() < 0.7 else np.full(3, rng.uniform(0, 255))
        if abs(shade @ (0.299, 0.587, 0.114) - behind) > CONTRAST:
            return shade


def compose(
    photos: list[np.ndarray],
    digits: np.ndarray,
    classes: np.ndarray,
    rng: np.random.Generator,
    scale: int,
    vary: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Put some of the digits (K, 8, 8) on a photograph: uint8 (H, W, 3), boxes (K, 5) as x, y, w, h, class."""
    W, H = (scale * side for side in UNIT)
    picture = (varied if vary else background)(photos, rng, W, H).astype(np.float32)
    taken = np.zeros((H, W), bool)
    boxes = []
    for _ in range(int(rng.integers(DIGITS[0], DIGITS[1] + 1))):
        k = int(rng.integers(len(digits)))
        low, high = np.log(HEIGHTS)
        opacity = glyph(digits[k], rng, scale * float(np.exp(rng.uniform(low, high))))
        h, w = opacity.shape
        for _ in range(20):  # places, until one is free
            x, y = int(rng.integers(0, W - w + 1)), int(rng.integers(0, H - h + 1))
            if taken[y : y + h, x : x + w].any():
                continue
            taken[y : y + h, x : x + w] = True
            under = picture[y : y + h, x : x + w]
            behind = float((under @ np.array([0.299, 0.587, 0.114], np.float32)).mean())
            under += (opacity * rng.uniform(0.85, 1))[..., None] * (ink(rng, behind) - under)
            boxes.append(((x + w / 2) / W, (y + h / 2) / H, w / W, h / H, classes[k]))
            break
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), np.array(boxes)


def pictures(held_out: bool, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Make `count` pictures with their boxes, for training or held out; the same for the same seed."""
    digits, classes = sklearn.datasets.load_digits(return_X_y=True)
    digits = digits.reshape(-1, 8, 8) / 16
    part = slice(SPLIT, None) if held_out else slice(SPLIT)
    photos = photographs()[held_out]
    for number in range(count):
        rng = np.random.default_rng([seed, int(held_out), number])
        yield compose(photos, digits[part], classes[part], rng, 2 + number % 3, vary=not held_out)


def write_data(data: datafile.DataFile, train: int, valid: int, seed: int) -> None:
    """Write the lists that a .data file names, with so many pictures and their labels beside each, in Darknet's form."""
    for word, count, held_out in ((data.train, train, False), (data.valid, valid, True)):
        place = Path(str(word)).with_suffix("")
        place.mkdir(parents=True, exist_ok=True)
        paths = [place / f"{number:05d}.jpg" for number in range(count)]
        for path, (picture, boxes) in zip(paths, pictures(held_out, count, seed), strict=True):
            image.write(path, picture)
            rows = (f"{int(k)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h, k in boxes)
            path.with_suffix(".txt").write_text("".join(rows))
        place.with_suffix(".txt").write_text("".join(f"{place.name}/{path.name}\n" for path in paths))


def train(data: datafile.DataFile, seed: int, iterations: int | None = None) -> gd.Network:
    """Train the network from random weights, for its cfg's max_batches or for so many iterations; say how it goes."""
    net = gd.load_network(resources.bundled_cfg("digits"), backend="auto", seed=seed)
    trainer = gd.Trainer(net, seed, emulate_darknet_cpu_bugs=False)

    def report(p: loop.Progress) -> None:
        if p.iteration % 50 == 0:
            print(
                f"{p.iteration:5d} of {p.iterations}: loss {p.average:6.2f}, {p.left / 60:.1f} minutes left", flush=True
            )

    trainer.fit(data, data.backup, "digits", report=report, iterations=iterations)
    return net


def measure(net: gd.Network, data: datafile.DataFile) -> evaluate.Report:
    """Measure average precision at IoU 0.5 on the held-out pictures."""
    judged = evaluate.judge(gd.Detector(net, names=data.read_names()), read_list(str(data.valid)))
    return evaluate.mean_average_precision(judged, data.classes)


def main() -> None:
    """Compose the pictures, train, measure."""
    parser = argparse.ArgumentParser(description="Train cfg/digits.cfg; everything is written to build/digits")
    parser.add_argument("--seed", type=int, default=1, help="of the pictures, the first weights and the training")
    parser.add_argument("--iterations", type=int, help="end sooner than the cfg's max_batches")
    parser.add_argument("--measure", metavar="WEIGHTS", help="measure these weights and train nothing")
    args = parser.parse_args()
    data = datafile.DataFile.read(resources.find("digits", ".data"))

    begin = time.perf_counter()
    write_data(data, 0 if args.measure else TRAIN, VALID, args.seed)
    print(
        f"{VALID} held-out pictures, {0 if args.measure else TRAIN} others: {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    if args.measure:
        net = gd.load_network(resources.bundled_cfg("digits"), args.measure)
    else:
        begin = time.perf_counter()
        net = train(data, args.seed, args.iterations)
        print(f"{data.backup}/digits_last.weights: {(time.perf_counter() - begin) / 60:.1f} minutes of training")
    found = measure(net, data)
    for name, ap in zip(data.read_names(), found.ap, strict=True):
        print(f"{name:>6}: AP {ap:.1%}")
    print(
        f"mAP@0.5 {found.mean:.1%} on {VALID} held-out pictures with {found.truths.sum()} digits;"
        f" at confidence 0.25 precision {found.precision:.1%}, recall {found.recall:.1%}"
    )


if __name__ == "__main__":
    main()
