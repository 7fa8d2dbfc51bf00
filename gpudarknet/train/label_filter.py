"""Filters on the deltas of [yolo], late in a training: wrong labels make large ones (the end of forward_yolo_layer).

From three quarters of the training on, num_sigmas_reject_badlabels and badlabels_rejection_percentage set the largest deltas to
0; from iteration equidistant_point on, the smallest. What is large is told from running averages, which a checkpoint holds.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

STEP = 0.01  # by which the limit of badlabels_rejection_percentage moves


@dataclass
class Rejection:
    """Running averages over iterations and heads, of the deltas that are not 0: maximum, mean, spread; and the limit."""

    highest: float = 0.0
    mean: float = 0.0
    spread: float = 0.0
    limit: float = 0.0

    def numbers(self) -> np.ndarray:
        """Return its state (4,)."""
        return np.array(astuple(self))

    def take(self, numbers: np.ndarray) -> None:
        """Go on from the state of another."""
        self.highest, self.mean, self.spread, self.limit = numbers.tolist()

    def filter(
        self, d: np.ndarray, entries: int, iteration: int, end: int, sigmas: float, percent: float, point: int
    ) -> None:
        """Set deltas d of a head to 0, in place. entries: numbers of an anchor; end: max_batches; then the three keys."""
        start = end * 3 // 4
        late = 0 < start < iteration
        sigmas, percent = (sigmas, percent) if late else (0.0, 0.0)
        sizes = np.abs(d)
        some = sizes[sizes > 0]
        if not (sigmas or percent or 0 < point < iteration) or not some.size:
            return
        progress = (iteration - point) / max(end - point, 1)
        low = self.mean * progress * 1.4
        self.highest = follow(self.highest or float(some.max()), float(some.max()))
        self.mean = follow(self.mean, float(some.mean()))
        if sigmas:
            bound = self.mean + sigmas * self.spread
            high = max(bound, self.highest - (iteration - start) / start * abs(self.highest - bound))
            self.spread = follow(self.spread, float(np.sqrt(((d[sizes > 0] - self.mean) ** 2).mean())))
            d[sizes > high] = 0
            low = min(bound, self.mean) * progress
        if percent:
            self.reject_share(d, entries, percent)
        if 0 < point < iteration:
            d[np.abs(d) < low] = 0

    def reject_share(self, d: np.ndarray, entries: int, percent: float) -> None:
        """Set deltas above the limit to 0, and move the limit towards the one that takes so many percent of the anchors."""
        self.limit = self.limit or self.highest
        count, above = np.count_nonzero(d), np.abs(d) > self.limit
        d[above] = 0
        if 100 * np.count_nonzero(above) * entries > percent * count:
            self.limit += STEP
        elif self.limit > STEP:
            self.limit -= STEP


def follow(average: float, value: float) -> float:
    """Return the running average after one more value."""
    return 0.99 * average + 0.01 * value
