"""[Gaussian_yolo]: boxes with an uncertainty per coordinate (src/gaussian_yolo_layer.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..ops import yolo
from .anchors import AnchorHead
from .base import Backward, ForwardContext


@dataclass(frozen=True, kw_only=True)
class GaussianYolo(AnchorHead, section="Gaussian_yolo"):
    """Activate raw outputs: boxes with uncertainties.   (A*(9 + classes), H, W) -> same   (Choi et al. 2019, arXiv 1904.04620)"""

    box_channels = 9
    uc_normalizer: float = 1.0
    yolo_point: Literal["center", "left_top", "right_bottom"] = "center"

    @property
    def corner(self) -> float:
        """The offset from the predicted point to the box center, as a fraction of the box's size."""
        return {"center": 0.0, "left_top": 0.5, "right_bottom": -0.5}[self.yolo_point]

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        y = yolo.gaussian_activate(be, xs[0], len(self.anchor_ids), self.scale_x_y)
        return y, lambda dy, grad: (dy,)

    def decode(self, be: ArrayBackend, y: Array, net_w: int, net_h: int, thresh: float) -> np.ndarray:
        """As for [yolo]; a class probability is also multiplied by 1 - the mean uncertainty of the four coordinates."""
        xp, A = be.xp, len(self.anchor_ids)
        N, C, H, W = y.shape
        v = y.reshape(N, A, C // A, H, W)
        plain = xp.concatenate(
            [v[:, :, 0:8:2], v[:, :, 8:]], axis=2
        )  # the layout of [yolo]: x, y, w, h, objectness, classes
        plain[:, :, 5:] *= 1 - v[:, :, 1:8:2].mean(axis=2, keepdims=True)
        anchors = be.asarray(self.anchor_sizes()[list(self.anchor_ids)])
        rows = yolo.yolo_decode(be, plain.reshape(N, -1, H, W), anchors, net_w, net_h, thresh, 0)
        rows[:, 2:4] += self.corner * rows[:, 4:6]
        return be.to_numpy(rows)

    def uncertainty(self, be: ArrayBackend, y: Array, thresh: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the uncertainties (K, 4) of center x, y, width, height of the boxes of `decode`, and their images (K,)."""
        N, C, H, W = y.shape
        A = len(self.anchor_ids)
        v = be.to_numpy(y).reshape(N, A, C // A, H, W).transpose(0, 3, 4, 1, 2)
        above = v[..., 8] > thresh
        return v[above][:, 1:8:2], np.nonzero(above)[0]

    @property
    def section_settings(self) -> dict[str, Any]:
        return dict(gaussian=True, corner=self.corner, uc_normalizer=self.uc_normalizer)
