"""Detect objects in a folder of photographs with the command line, and with OpenCV in a plain loop, alternating.

    python -m bench.folder --peer /path/to/python [--images 500] [--rounds 3] [--batch 8]
        [--backend openvino] [--precision bf16] [--out_dir]

--peer: a Python interpreter with opencv-python<5, by default this one if it has it. Times are those of whole processes,
with imports and loading. --out_dir: both draw the boxes and write the images; without it the command writes one CSV file and
the loop nothing. Photographs are crops of scikit-image's, in 640 x 480 to 740 x 500 pixels.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from gpudarknet.io import download, resources

from .timing import cpu_time, quantiles

PHOTOS = ("motorcycle_left.png", "motorcycle_right.png", "astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
NETWORK = "yolov4-tiny"


def write_photos(folder: Path, count: int, seed: int = 0) -> None:
    """Write JPEG files: random crops of photographs, scaled and half of them mirrored."""
    import skimage

    photos = [cv2.imread(os.path.join(skimage.data_dir, name)) for name in PHOTOS]
    rng = np.random.default_rng(seed)
    for number in range(count):
        photo = photos[number % len(photos)]
        H, W = photo.shape[:2]
        scale = rng.uniform(0.7, 1.0)
        h, w = int(H * scale), int(W * scale)
        y, x = rng.integers(H - h + 1), rng.integers(W - w + 1)
        size = (int(rng.integers(640, 741)), int(rng.integers(480, 501)))
        crop = cv2.resize(photo[y : y + h, x : x + w], size, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:06}.jpg"), crop[:, ::-1] if rng.integers(2) else crop)


def timed(command: Sequence[str]) -> tuple[float, float, subprocess.CompletedProcess[str]]:
    """Run a command; return its seconds, its CPU seconds and what it printed."""
    begin, cpu = time.perf_counter(), cpu_time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return time.perf_counter() - begin, cpu_time() - cpu, done


def main(argv: Sequence[str] | None = None) -> None:
    """Run both in alternation; print images per second of each round, the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--out_dir", action="store_true")
    args = parser.parse_args(argv)
    weights, cfg = download.weights(NETWORK), resources.bundled_cfg(NETWORK)
    with tempfile.TemporaryDirectory() as name:
        photos, ours, theirs = (Path(name, part) for part in ("photos", "ours", "theirs"))
        for folder in (photos, ours, theirs):
            folder.mkdir()
        write_photos(photos, args.images)
        command = [sys.executable, "-m", "gpudarknet", "detector", "test", "coco", str(cfg), str(weights), str(photos)]
        command += ["-batch", str(args.batch), "-backend", args.backend, "-precision", args.precision]
        command += ["-out_dir", str(ours)] if args.out_dir else ["-csv", str(ours / "all.csv")]
        loop = [args.peer, str(Path(__file__).with_name("folder_peer.py")), str(photos), str(cfg), str(weights)]
        loop += [str(theirs)] * args.out_dir
        rates: dict[str, list[float]] = {"gpudarknet": [], "opencv": []}
        for _ in range(args.rounds):
            printed = []
            for engine, words in (("gpudarknet", command), ("opencv", loop)):
                seconds, cpu, done = timed(words)
                rates[engine].append(args.images / seconds)
                objects = re.findall(r": \d+%$", done.stdout, re.MULTILINE) or [""] * int(done.stdout)
                printed.append(f"{engine} {rates[engine][-1]:.2f} images/s, {1000 * cpu / args.images:.0f} ms of CPU time"
                               f" per image, {len(objects)} objects")  # fmt: skip
            print("; ".join(printed), flush=True)
        ours_median, theirs_median = (quantiles(values).median for values in rates.values())
        print(f"medians: {ours_median:.2f} and {theirs_median:.2f} images/s, ratio {ours_median / theirs_median:.2f}")


if __name__ == "__main__":
    main()
