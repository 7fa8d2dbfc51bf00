"""A small data set for training: three spots on gray noise, whose colors are their classes; and a project that trains on it."""

from __future__ import annotations

import cv2
import numpy as np

CFG = """[net]
width=64
height=32
channels=3
batch=8
subdivisions=1
learning_rate=0.001
burn_in=2
max_batches={end}
resize_step=32
mosaic=1
{net}
[convolutional]
batch_normalize=1
filters=6
size=3
stride=2
pad=1
activation=mish
[maxpool]
size=2
stride=2
[dropout]
probability=0.1
[convolutional]
filters=16
size=1
activation=linear
[yolo]
classes=3
num=2
anchors=12,10,22,20
random={random}
iou_loss=ciou
max=5
"""


def spots(W=90, H=60, seed=0):
    """Draw gray noise with three rectangles whose colors are their classes; return the image and boxes (3, 5)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 110, (H, W, 3)).astype(np.uint8)
    boxes = []
    for k, (x, y) in enumerate(((0.2, 0.3), (0.5, 0.7), (0.8, 0.25))):
        w, h = 0.16, 0.2
        left, top = round((x - w / 2) * W), round((y - h / 2) * H)
        wide, high = round(w * W), round(h * H)
        image[top : top + high, left : left + wide] = 0
        image[top : top + high, left : left + wide, k] = 255
        boxes.append(((left + wide / 2) / W, (top + high / 2) / H, wide / W, high / H, k))
    return image, np.array(boxes, np.float32)


def files(folder, count=4):
    """Write images with labels; return their paths."""
    paths = []
    for n in range(count):
        image, boxes = spots(seed=n)
        paths.append(str(folder / f"{n}.png"))
        cv2.imwrite(paths[-1], image[:, :, ::-1])
        lines = [f"{int(k)} {x} {y} {w} {h}" for x, y, w, h, k in boxes]
        (folder / f"{n}.txt").write_text("\n".join(lines))
    return paths


def project(folder, end=6, net="", random=0, count=4):
    """Write a data set, its .data file and a cfg; return the paths of the last two."""
    paths = files(folder, count)
    (folder / "list.txt").write_text("\n".join(paths))
    (folder / "x.names").write_text("red\ngreen\nblue\n")
    (folder / "x.data").write_text(
        f"classes=3\ntrain={folder}/list.txt\nvalid={folder}/list.txt\nnames={folder}/x.names\nbackup={folder}/backup\n"
    )
    (folder / "x.cfg").write_text(CFG.format(end=end, net=net, random=random))
    return folder / "x.data", folder / "x.cfg"
