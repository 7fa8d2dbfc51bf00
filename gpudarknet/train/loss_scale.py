"""The loss scale: deltas are multiplied by it on the way back, so that float16 does not round the small ones to 0.

Gradients of weights are divided by it before they are used. (Micikevicius et al. 2017, arXiv 1710.03740; loss_scale in
Darknet's [net].)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

START = 4096.0  # a delta of 1 leaves float16 room for sums sixteen times as large
PATIENCE = 1000  # good iterations after which a larger scale is tried
LEAST = 1.0


@dataclass
class LossScale:
    """value: the factor; adapts: it falls when a gradient overflows and rises in time; steady: good iterations since."""

    value: float = 1.0
    adapts: bool = False
    steady: int = 0

    @classmethod
    def of(cls, given: float, half: bool) -> LossScale:
        """Take what [net] gives; where it gives 1 and maps are float16, one that adapts."""
        return cls(START, adapts=True) if half and given == 1 else cls(given)

    def good(self) -> None:
        """Note an iteration whose gradients were finite."""
        self.steady += self.adapts
        if self.steady == PATIENCE:
            self.value, self.steady = self.value * 2, 0

    def fall(self) -> bool:
        """Halve it after an overflow; say whether that could be done."""
        if not self.adapts or self.value <= LEAST:
            return False
        self.value, self.steady = self.value / 2, 0
        return True

    def numbers(self) -> np.ndarray:
        """Return its state (2,)."""
        return np.array([self.value, self.steady])

    def take(self, numbers: np.ndarray) -> None:
        """Go on from the state of another; a scale that [net] gives stays."""
        if self.adapts:
            self.value, self.steady = float(numbers[0]), int(numbers[1])
