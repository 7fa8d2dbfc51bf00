"""Filters on the deltas of [yolo] late in training, where wrong labels cause large deltas (the end of forward_yolo_layer).

In the last quarter of training, num_sigmas_reject_badlabels and badlabels_rejection_percentage zero the largest deltas; from
iteration equidistant_point on, the smallest are zeroed. The thresholds derive from running averages, which checkpoints store.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

LIMIT_STEP = 0.01  # by which badlabels_rejection_percentage adjusts its limit


@dataclass
class LabelFilter:
    """Running averages, over iterations and heads, of nonzero deltas: maximum, mean, standard deviation; and the limit."""

    maximum: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    limit: float = 0.0

    def state(self) -> np.ndarray:
        """Return the state as an array (4,)."""
        return np.array(astuple(self))

    def load_state(self, state: np.ndarray) -> None:
        """Restore what `state` returned."""
        self.maximum, self.mean, self.std, self.limit = state.tolist()

    def apply(
        self, delta: np.ndarray, anchor_size: int, iteration: int, end: int, sigmas: float, percent: float, point: int
    ) -> None:
        """Zero deltas of a head in place. anchor_size: values per anchor; end: max_batches; then the values of the three keys."""
        start = end * 3 // 4
        late = 0 < start < iteration
        sigmas, percent = (sigmas, percent) if late else (0.0, 0.0)
        if not (sigmas or percent or 0 < point < iteration):
            return
        sizes = np.abs(delta)
        nonzero = sizes[sizes > 0]
        if not nonzero.size:
            return
        progress = (iteration - point) / max(end - point, 1)
        low = self.mean * progress * 1.4
        self.maximum = running_average(self.maximum or float(nonzero.max()), float(nonzero.max()))
        self.mean = running_average(self.mean, float(nonzero.mean()))
        if sigmas:
            bound = self.mean + sigmas * self.std
            high = max(bound, self.maximum - (iteration - start) / start * abs(self.maximum - bound))
            self.std = running_average(self.std, float(np.sqrt(((delta[sizes > 0] - self.mean) ** 2).mean())))
            delta[sizes > high] = 0
            low = min(bound, self.mean) * progress
        if percent:
            self.reject_percentage(delta, anchor_size, percent)
        if 0 < point < iteration:
            delta[np.abs(delta) < low] = 0

    def reject_percentage(self, delta: np.ndarray, anchor_size: int, percent: float) -> None:
        """Zero deltas above the limit, and move the limit towards the one that rejects this percentage of the anchors."""
        self.limit = self.limit or self.maximum
        count, above = np.count_nonzero(delta), np.abs(delta) > self.limit
        delta[above] = 0
        if 100 * np.count_nonzero(above) * anchor_size > percent * count:
            self.limit += LIMIT_STEP
        elif self.limit > LIMIT_STEP:
            self.limit -= LIMIT_STEP


def running_average(average: float, value: float) -> float:
    """Return the running average updated with one more value."""
    return 0.99 * average + 0.01 * value
