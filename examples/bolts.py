"""Draw a data set of two classes, nuts and bolts on textured surfaces, to try a training on it: docs/fine-tuning.md.

    python examples/bolts.py                 # writes the folder bolts: images, labels, lists, bolts.names, bolts.data

Everything is drawn; nothing is downloaded. Objects vary in size, rotation, tilt, color and light, cover each other and reach
over the edge; washers and rods look like parts of them and have no label. All randomness derives from the seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("nut", "bolt")
SIDES = (256, 416)  # pixels of an image
LENGTHS = (0.2, 0.55)  # of an object, as a fraction of the image's shorter side
OBJECTS = (1, 5)
VISIBLE = 0.5  # an object has a label if more than this part of it can be seen
PATCH = 256  # pixels of a drawing before it is scaled into an image
METALS = ((190, 190, 195), (120, 125, 130), (60, 62, 66), (205, 170, 90), (170, 105, 70), (110, 125, 160))  # RGB


def surface(rng: np.random.Generator, H: int, W: int) -> np.ndarray:
    """Draw a background (H, W, 3), 0 to 255: noise of several scales in three colors, stretched like grain, and clutter."""
    stretch = float(np.exp(rng.uniform(0, 2.5)))
    noise = np.zeros((H, W), np.float32)
    for octave in range(1, 7):
        cells = 2**octave, max(2, int(2**octave / stretch))
        grid = rng.uniform(-1, 1, cells if rng.random() < 0.9 else cells[::-1]).astype(np.float32)
        noise += cv2.resize(grid, (W, H), interpolation=cv2.INTER_CUBIC) * rng.uniform(0.4, 0.9) ** octave
    noise = (noise - noise.min()) / np.ptp(noise) * 255
    gray = rng.uniform(30, 225)
    colors = gray + rng.uniform(-35, 35, 3) + rng.uniform(-30, 30, (3, 1)) + rng.uniform(-15, 15, (3, 3))
    table = [np.interp(np.arange(256), (0, 128, 255), colors[:, k]) for k in range(3)]
    image = np.stack(table, axis=1).astype(np.float32)[noise.astype(np.uint8)]
    for _ in range(int(rng.integers(0, 12))):
        color = tuple(float(v) for v in colors.mean(axis=0) + rng.uniform(-50, 50) + rng.uniform(-20, 20, 3))
        a, b = (tuple(int(v) for v in rng.integers(0, (W, H))) for _ in range(2))
        if rng.random() < 0.6:
            cv2.line(image, a, b, color, int(rng.integers(1, 5)), cv2.LINE_AA)
        else:
            axes = tuple(int(v) for v in rng.integers(3, W // 6, 2))
            cv2.ellipse(image, a, axes, float(rng.uniform(0, 180)), 0, 360, color, cv2.FILLED, cv2.LINE_AA)
    return image + rng.normal(0, rng.uniform(1, 8), (H, W, 1)).astype(np.float32)


def ring(rng: np.random.Generator, corners: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a nut (6 corners) or a washer (many) from above: brightness and opacity (PATCH, PATCH), 0 to 1."""
    light, opacity = np.zeros((PATCH, PATCH), np.float32), np.zeros((PATCH, PATCH), np.float32)
    center, radius, start = PATCH / 2, 0.46 * PATCH, rng.uniform(0, 2 * np.pi)
    angles = 2 * np.pi * np.arange(corners + 1) / corners
    points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for a, b in pairwise(points):  # a facet of its own brightness between neighbors
        middle = (a + b) / 2 - center
        value = 0.62 + 0.25 * float(np.cos(np.arctan2(middle[1], middle[0]) - start))
        cv2.fillPoly(light, [np.rint([a, b, (center, center)]).astype(np.int32)], value)
    cv2.fillPoly(opacity, [np.rint(points).astype(np.int32)], 1.0)
    hole = rng.uniform(0.48, 0.62) * radius
    at = (PATCH // 2, PATCH // 2)
    if corners == 6:
        cv2.circle(light, at, int(0.83 * radius), 0.85, cv2.FILLED)
        cv2.circle(light, at, int(hole + 0.07 * radius), 0.5, cv2.FILLED)
    cv2.circle(opacity, at, int(hole), 0.0, cv2.FILLED)
    return light, opacity


def shaft(rng: np.random.Generator, head: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bolt, or a rod without head and thread, from the side: brightness and opacity (PATCH, PATCH), 0 to 1."""
    light, opacity = np.zeros((PATCH, PATCH), np.float32), np.zeros((PATCH, PATCH), np.float32)
    y = np.arange(PATCH, dtype=np.float32)[:, None] - PATCH / 2
    half, wide = int(rng.uniform(0.07, 0.13) * PATCH), int(rng.uniform(0.17, 0.24) * PATCH)
    left, right, neck = int(0.02 * PATCH), int(0.98 * PATCH), int(rng.uniform(0.16, 0.26) * PATCH)
    middle = PATCH // 2
    round_ = np.sqrt(np.clip(1 - (y / (half + 1)) ** 2, 0, 1))
    thread = 1 - 0.35 * (np.arange(PATCH)[None] // max(2, int(rng.uniform(0.015, 0.03) * PATCH)) % 2) * head
    light[:, neck if head else left : right] = (0.25 + 0.6 * round_ * thread)[:, neck if head else left : right]
    opacity[middle - half : middle + half, neck if head else left : right] = 1
    if head:  # three facets of a hexagon, seen from the side
        for k, value in enumerate((0.5, 0.9, 0.65)):
            top = middle - wide + (0, wide // 2, 3 * wide // 2)[k]
            light[top : top + (wide // 2, wide, wide // 2)[k], left:neck] = value
        opacity[middle - wide : middle + wide, left:neck] = 1
    return light, opacity


DRAWINGS: dict[str, Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]] = {
    "nut": lambda rng: ring(rng, 6),
    "washer": lambda rng: ring(rng, 48),
    "bolt": lambda rng: shaft(rng, True),
    "rod": lambda rng: shaft(rng, False),
}
DISTRACTORS = ("washer", "rod")  # they have no label


def draw(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw an object and its shadow at random into an image; return its opacity (H, W) and its area, beyond the edge too."""
    H, W = image.shape[:2]
    light, opacity = DRAWINGS[kind](rng)
    low, high = np.log(LENGTHS)
    length = float(np.exp(rng.uniform(low, high))) * min(H, W) * (0.7 if kind in ("nut", "washer") else 1)
    angle, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.diag([1, tilt]) @ turn * length / PATCH
    affine = np.column_stack([matrix, rng.uniform(0, 1, 2) * (W, H) - matrix @ (PATCH / 2, PATCH / 2)])
    patch = cv2.GaussianBlur(np.stack([light, opacity], axis=2), (0, 0), 0.4 * PATCH / length)
    light, alpha = np.moveaxis(cv2.warpAffine(patch, affine, (W, H)), 2, 0)
    affine[:, 2] += rng.uniform(0.02, 0.06, 2) * length
    shadow = cv2.warpAffine(cv2.GaussianBlur(opacity, (0, 0), 0.04 * PATCH), affine, (W, H))
    color = np.array(METALS[int(rng.integers(len(METALS)))]) * rng.uniform(0.8, 1.3) + rng.uniform(-15, 15, 3)
    image *= (1 - rng.uniform(0.2, 0.6) * shadow)[..., None].astype(np.float32)
    image += alpha[..., None] * (light[..., None] * color.astype(np.float32) - image)
    return alpha, float(opacity.sum() * abs(np.linalg.det(matrix)))


def compose(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, float, float, float, float]]]:
    """Draw an image: uint8 (H, W, 3), and its labels: class, center x, y, width, height as fractions of the image."""
    H, W = (int(v) for v in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    image = surface(rng, H, W)
    kinds = [
        *rng.choice(CLASSES, rng.integers(OBJECTS[0], OBJECTS[1] + 1)),
        *rng.choice(DISTRACTORS, rng.integers(0, 3)),
    ]
    visible = np.full((H, W), -1)  # which object a pixel shows
    drawn = []
    for number, kind in enumerate(rng.permutation(kinds)):
        alpha, area = draw(image, str(kind), rng)
        visible[alpha > 0.5] = number
        drawn.append((str(kind), alpha > 0.5, area))
    labels = []
    for number, (kind, mask, area) in enumerate(drawn):
        if kind in CLASSES and (visible == number).sum() > VISIBLE * area:
            columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            left, right, top, bottom = columns[0] / W, (columns[-1] + 1) / W, rows[0] / H, (rows[-1] + 1) / H
            labels.append((CLASSES.index(kind), (left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
    return np.clip(np.rint(image * rng.uniform(0.75, 1.1)), 0, 255).astype(np.uint8), labels


def write(folder: Path, train: int, valid: int, seed: int) -> None:
    """Write the data set into a folder."""
    for number, (part, count) in enumerate((("train", train), ("valid", valid))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        paths = [folder / part / f"{k:04d}.jpg" for k in range(count)]
        for k, path in enumerate(paths):
            image, labels = compose(np.random.default_rng([seed, number, k]))
            cv2.imwrite(str(path), image[..., ::-1])
            rows = (f"{kind} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for kind, x, y, w, h in labels)
            path.with_suffix(".txt").write_text("".join(rows))
        (folder / f"{part}.txt").write_text("".join(f"{path.as_posix()}\n" for path in paths))
    (folder / "bolts.names").write_text("".join(f"{name}\n" for name in CLASSES))
    files = "".join(f"{part} = {(folder / part).as_posix()}.txt\n" for part in ("train", "valid"))
    names = f"names = {(folder / 'bolts.names').as_posix()}\n"
    (folder / "bolts.data").write_text(f"classes = 2\n{files}{names}backup = {(folder / 'backup').as_posix()}\n")


def main() -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description="Draw images of nuts and bolts with labels, to try a training on them")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("bolts"))
    parser.add_argument("--train", type=int, default=240, help="number of images to train on")
    parser.add_argument("--valid", type=int, default=60, help="number of held-out images")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write(args.folder, args.train, args.valid, args.seed)
    print(f"{args.folder / 'bolts.data'}: {args.train} images to train on, {args.valid} held out")


if __name__ == "__main__":
    main()
