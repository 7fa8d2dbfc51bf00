"""The effect of bf16 on a detector's boxes and mAP: the same images in fp32 and in bf16.

    python -m gpudarknet.bench.bf16 x.data x.cfg x.weights              # the images of `valid`, with mAP
    python -m gpudarknet.bench.bf16 x.data x.cfg x.weights a.jpg b.jpg  # these images

OpenVINO computes in bf16 if the CPU does. Elsewhere bf16 is emulated: weights and the output of each layer are rounded to 8-bit
mantissas, sums are in fp32, as in hardware. That shows the results, not the speed.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpudarknet import Detection, Detector, boxes, evaluate
from gpudarknet.array import Array
from gpudarknet.backend import machine
from gpudarknet.data import datafile, read_list
from gpudarknet.export import fastest
from gpudarknet.io import resources
from gpudarknet.layers import ForwardContext
from gpudarknet.layers.base import Backward
from gpudarknet.network import DecodedLater

SAME = 0.5  # IoU above which two boxes of one class show the same object


def rounded(a: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, to nearest, ties to even; return float32."""
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) & np.uint32(0xFFFF0000)).view(np.float32)


class EmulatedBf16(Detector):
    """A detector that rounds its kernels, its input and the output of each layer to bf16."""

    def __init__(self, detector: Detector):
        network = copy.deepcopy(detector.network)
        for own in network.weights:
            own |= {name: rounded(a) for name, a in own.items() if name.endswith("kernel")}
        super().__init__(network, names=detector.names, letterbox=detector.letterbox)

    def infer(self, x: Any, thresh: float) -> DecodedLater:
        """Run the network by `predict`."""
        return DecodedLater(self.network, self.predict(x), thresh)

    def predict(self, x: Any) -> list[Any]:
        """Run the network layer by layer."""
        outputs: dict[int, Array] = {}

        def keep(index: int, y: Array, backward: Backward) -> None:
            y[...] = rounded(y)
            if index in self.network.heads:
                outputs[index] = y

        self.network.forward(rounded(x), ForwardContext(), keep)
        return [outputs[index] for index in self.network.heads]


@dataclass
class Difference:
    """What becomes of the boxes of some images. ious, confidences: of the boxes in both, IoU and change of confidence."""

    before: int
    after: int
    ious: list[float]
    confidences: list[float]

    def __str__(self) -> str:
        both = len(self.ious)
        change = np.abs(self.confidences) if both else np.zeros(1)
        return (
            f"{self.before} boxes in fp32, {self.after} in bf16, {both} in both; of those mean IoU"
            f" {np.mean(self.ious or [0]):.4f}, confidence changed by {change.mean():.4f} on average, {change.max():.4f} at most"
        )


def compare(before: Sequence[Sequence[Detection]], after: Sequence[Sequence[Detection]]) -> Difference:
    """Pair the boxes of each image: equal classes, the largest IoU first."""
    result = Difference(sum(map(len, before)), sum(map(len, after)), [], [])
    for old, new in zip(before, after, strict=True):
        if not old or not new:
            continue
        a, b = (np.array([d.relative for d in objects]) for objects in (old, new))
        iou = boxes.iou(a[:, None], b[None]) * [[p.class_id == q.class_id for q in new] for p in old]
        while iou.max() > SAME:
            i, j = np.unravel_index(int(iou.argmax()), iou.shape)
            result.ious.append(float(iou[i, j]))
            result.confidences.append(new[j].confidence - old[i].confidence)
            iou[i], iou[:, j] = 0, 0
    return result


def main() -> None:
    """Print what changes."""
    parser = argparse.ArgumentParser(description="Show the effect of bf16 on boxes and mAP")
    for name in ("data", "cfg", "weights"):
        parser.add_argument(name)
    parser.add_argument("images", nargs="*")
    args = parser.parse_args()
    data = datafile.DataFile.read(resources.find(args.data, ".data"))
    files = resources.bundled_cfg(args.cfg), resources.find(args.weights, ".weights"), data.read_names()
    paths = args.images or read_list(str(data.valid))
    plain, why = Detector(*files, backend="numpy"), fastest.why_no_bf16()
    half = EmulatedBf16(plain) if why else Detector(*files, backend="openvino", precision="bf16")
    print(f"{machine.processor()}: {f'bf16 is emulated: {why}' if why else half.network.program(1, 'bf16').engine}")
    print(f"{args.cfg}, {len(paths)} images: ", end="")
    print(compare(*([d.detect(path, max_det=None) for path in paths] for d in (plain, half))))
    if not args.images:
        for name, detector in (("fp32", plain), ("bf16", half)):
            images = evaluate.evaluate_images(detector, paths)
            print(f"mAP@0.50 in {name}: {evaluate.mean_average_precision(images, data.classes).mean:.4f}")


if __name__ == "__main__":
    main()
