"""The rows of OpenCV's Region layer, the output of [yolo] and [region]: every box, with small probabilities set to 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import boxes
from ..array import Array
from ..layers import DetectionHead
from ..layers.region import Region
from ..layers.yolo import Yolo
from ..network import Network

REGION_THRESH = 0.001  # probabilities of a [region] up to this are 0 if the cfg has no `thresh`
REGION_NMS = 0.4  # the threshold of the NMS of [region]; [yolo] has one only if its `nms_threshold` is above 0


def rows(net: Network, index: int, y: Array, suppress: bool = True) -> np.ndarray:
    """Return all boxes of the head at `index`, whose output is y: (H*W*A, 5 + classes), or (N, ...) if N > 1.

    suppress: apply the layer's own NMS, which DetectionModel turns off.
    """
    be, N, layer = net.backend, y.shape[0], net.nodes[index].layer
    assert isinstance(layer, DetectionHead)
    if isinstance(layer, Region):
        layer = replace(layer, map=None)  # OpenCV reads no maps
    y = be.xp.nan_to_num(y.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):  # boxes of cells without an object can have any size
        decoded = layer.decode(be, y, net.width, net.height, -np.inf)  # every cell and anchor, in order
    out = np.concatenate((decoded[:, 2:6], decoded[:, 1:2], decoded[:, 6:]), axis=1)
    if isinstance(layer, Region):
        out[:, 4] = be.to_numpy(y).reshape(len(out), -1)[:, layer.coords]
    probs, (thresh, nms) = out[:, 5:], thresholds(net, index)
    probs[probs <= thresh] = 0
    if nms > 0 and suppress:
        for image in np.split(out, N):
            image[:, 5:] = boxes.nms(image[:, :4], image[:, 5:], nms)
    return out if N == 1 else out.reshape(N, -1, out.shape[1])


def thresholds(net: Network, index: int) -> tuple[float, float]:
    """Return the thresholds of a head for its probabilities and for its NMS; 0: no NMS."""
    layer, given = net.nodes[index].layer, net.config.key_lines[index]
    if isinstance(layer, Region):
        return layer.thresh if "thresh" in given else REGION_THRESH, REGION_NMS
    if isinstance(layer, Yolo):
        return layer.thresh, layer.nms_threshold
    return Yolo.thresh, 0.0
