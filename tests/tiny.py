"""A detector small enough to compute its results by hand, and its files.

4 x 2 cells of 16 pixels, one anchor of 20 x 10 pixels, two classes. A cell sees only its first pixel: objectness is
sigmoid(8 R - 4), cat sigmoid(2 - 4 G), dog sigmoid(4 G - 2), with R and G from 0 to 1; its box is centered and has the
anchor's size.
"""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np

CFG = """[net]
width=64
height=32
channels=3

[convolutional]
filters=7
size=1
stride=16
activation=linear

[yolo]
mask=0
anchors=20,10
classes=2
num=1
"""
# One cell, at column 1 and row 0, sees a pixel that is half cat, half dog; one, at column 3 and row 1, sees a cat.
#   objectness sigmoid(8 * 200 / 255 - 4) = 0.906741, cat 0.498039, dog 0.501961 -> 0.451594, 0.455148
#   objectness sigmoid(4)                 = 0.982014, cat 0.880797, dog 0.119203 -> 0.864955, 0.117059
FIRST, SECOND = (0, 16, (200, 128, 0)), (16, 48, (255, 0, 0))  # (row, column, RGB)


def image() -> np.ndarray:
    """Return an image (32, 64, 3) that contains both."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    for row, column, color in (FIRST, SECOND):
        pixels[row, column] = color
    return pixels


def files(folder: Path) -> None:
    """Write tiny.cfg, tiny.weights, tiny.names, tiny.data and tiny.png into a folder."""
    (folder / "tiny.cfg").write_text(CFG)
    (folder / "tiny.names").write_text("cat\ndog\n")
    (folder / "tiny.data").write_text("classes = 2\nnames = tiny.names\n")
    bias = np.array([0, 0, 0, 0, -4, 2, -2], "<f4")
    kernel = np.zeros((7, 3), "<f4")
    kernel[4, 0], kernel[5, 1], kernel[6, 1] = 8, -4, 4
    (folder / "tiny.weights").write_bytes(struct.pack("<iiiQ", 0, 2, 5, 0) + bias.tobytes() + kernel.tobytes())
    cv2.imwrite(str(folder / "tiny.png"), image()[..., ::-1])
