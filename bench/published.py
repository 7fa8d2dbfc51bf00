"""Published FPS with the peak of the device: the data behind the rule of thumb.

The plot marks them as published; they are never mixed with measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from .rule_of_thumb import DISCUSSION, RULE_GFLOP


@dataclass(frozen=True)
class Point:
    """A published speed: peak in GFLOPS (fp32), GFLOP per image, FPS, and the source."""

    device: str
    engine: str
    peak: float
    gflop: float
    fps: float
    source: str


POINTS = (
    Point("Titan X", "Darknet", 6604, 34.90, 67, "YOLOv2's page: YOLOv2-VOC 416"),
    Point("GTX 970", "Darknet", 3494, 65.86, 20, "AlexeyAB/darknet#929: YOLOv3 416"),
    Point("GTX 1080 Ti", "Darknet", 11000, 65.86, 59, "AlexeyAB/darknet#1026: YOLOv3 416"),
    Point("GTX 1080 Ti", "TensorRT", 11000, 65.86, 103, "lewes6369/TensorRT-Yolov3#1: YOLOv3 416, fp32"),
    Point("RTX 2080 Ti", "Darknet", 13450, 60.11, 82, "AlexeyAB/darknet README: YOLOv4 416"),
    Point("i7-7700HQ", "OpenCV", 435, 6.91, 42, "AlexeyAB/darknet README: YOLOv4-tiny 416"),
    Point("i7-7700HQ", "Darknet", 435, 6.91, 3.4, "AlexeyAB/darknet README: YOLOv4-tiny 416"),
    Point(
        "i7-7700K",
        "Darknet",
        DISCUSSION.peak,
        RULE_GFLOP,
        1 / DISCUSSION.seen,
        "AlexeyAB/darknet#487: yolo-voc 416, 9.2 s",
    ),
)
