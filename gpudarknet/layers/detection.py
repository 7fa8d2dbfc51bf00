"""[detection]: boxes of the first YOLO (src/detection_layer.c)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..array import Array, ArrayBackend, Arrays
from ..ops import norm
from ..ops.losses import detection_loss
from .base import Backward, DetectionHead, ForwardContext, LossContext, Shape, ShapeError
from .limits import COUNT, NOT_NEGATIVE, Diagnostic, Limit


@dataclass(frozen=True, kw_only=True)
class Detection(DetectionHead, section="detection"):
    """Detect boxes in side x side cells.   inputs -> same

    An image is [S*S*classes][S*S*num][S*S*num*coords]: class probabilities, confidences, boxes; each by cell.
    Redmon et al. 2015, arXiv 1506.02640.
    """

    ignored = frozenset({"reorg"})
    limits = COUNT.of("side", "num") | Limit("must be 4", lambda v: v == 4).of("coords")
    training_limits = NOT_NEGATIVE.of("coord_scale", "object_scale", "noobject_scale", "class_scale")

    coords: int = 1
    classes: int = 1
    num: int = 1
    side: int = 7
    rescore: int = 0
    softmax: int = 0
    sqrt: int = 0
    forced: int = 0
    random: float = 0.0
    coord_scale: float = 1.0
    object_scale: float = 1.0
    noobject_scale: float = 1.0
    class_scale: float = 1.0

    @property
    def input_channels(self) -> int:
        return self.side**2 * (self.num * (1 + self.coords) + self.classes)

    def diagnostics(self) -> Iterator[Diagnostic]:
        yield from super().diagnostics()
        if self.forced and self.num < 2:
            yield Diagnostic(
                "forced", f"forced=1 needs num=2: small objects take the second box, num={self.num}", "training"
            )

    def shape(self, *inputs: Shape) -> Shape:
        C, H, W = inputs[0]
        wanted = self.input_channels
        if wanted != C * H * W:
            raise ShapeError(f"side, num and classes need {wanted} inputs, there are {C * H * W}")
        return inputs[0]

    def forward(self, be: ArrayBackend, w: Arrays, *xs: Array, ctx: ForwardContext) -> tuple[Array, Backward]:
        y = xs[0].copy()
        if self.softmax:
            classes = y.reshape(y.shape[0], -1)[:, : self.side**2 * self.classes]
            p = norm.softmax(be, classes.reshape(-1, self.classes), (0,), 1.0)
            classes[...] = p.reshape(classes.shape)
        return y, lambda dy, grad: (dy,)

    def decode(self, be: ArrayBackend, y: Array, net_w: int, net_h: int, thresh: float) -> np.ndarray:
        y = be.to_numpy(y).reshape(y.shape[0], -1)
        S, B, K, N = self.side, self.num, self.classes, y.shape[0]
        classes = y[:, : S * S * K].reshape(N, S, S, 1, K)
        conf = y[:, S * S * K : S * S * (K + B)].reshape(N, S, S, B)
        box = y[:, S * S * (K + B) :].reshape(N, S, S, B, 4)
        p = conf[..., None] * classes
        p = np.where(p > thresh, p, 0)
        n, i, j, b = np.nonzero(p.any(axis=-1))
        rows = np.empty((len(n), 6 + K), np.float32)
        rows[:, 0], rows[:, 1], rows[:, 6:] = n, conf[n, i, j, b], p[n, i, j, b]
        e = box[n, i, j, b]
        rows[:, 2] = (e[:, 0] + j) / S
        rows[:, 3] = (e[:, 1] + i) / S
        rows[:, 4:6] = e[:, 2:] ** 2 if self.sqrt else e[:, 2:]
        return rows

    def truth(self, boxes: np.ndarray) -> np.ndarray:
        """Return the truth of `loss`, from boxes (K, 5) relative to the image. Of several in a cell the first is taken."""
        S, K = self.side, self.classes
        cells = np.zeros((S, S, 1 + K + 4), np.float32)
        for x, y, w, h, k in boxes[:, :5].tolist():
            j, i = min(int(x * S), S - 1), min(int(y * S), S - 1)
            if not cells[i, j, 0]:
                cells[i, j, [0, 1 + int(k)]] = 1
                cells[i, j, 1 + K :] = x * S - j, y * S - i, w, h
        return cells.reshape(-1)

    def truth_boxes(self, truth: np.ndarray) -> np.ndarray:
        S, K = self.side, self.classes
        cells = truth.reshape(S, S, 1 + K + 4)
        i, j = np.nonzero(cells[..., 0])
        found = cells[i, j]
        xy = (found[:, 1 + K : 3 + K] + np.stack([j, i], axis=1)) / S
        classes = found[:, 1 : 1 + K].argmax(axis=1)
        return np.column_stack([xy, found[:, 3 + K :], classes]).astype(np.float32)

    def loss(self, be: ArrayBackend, x: Array, y: Array, truth: Array, ctx: LossContext) -> tuple[Array, Array]:
        """truth (N, S*S*(1 + classes + 4)): for each cell 1 if it holds an object, its class one-hot, x and y in it, w, h."""
        S, draws = self.side, None
        if self.random and ctx.seen < 64000:
            objects = be.to_numpy(truth).reshape(len(y), S * S, -1)[..., 0] != 0
            drawn = np.zeros(objects.shape, np.int32)
            drawn[objects] = ctx.rng.integers(self.num, size=np.count_nonzero(objects))
            draws = be.asarray(drawn)
        return detection_loss(
            be, y, truth, draws, ctx.loss_scale(be), S, self.num, self.classes, self.sqrt, self.rescore, self.forced,
            self.coord_scale, self.object_scale, self.noobject_scale, self.class_scale,
        )  # fmt: skip
