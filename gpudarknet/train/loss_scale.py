"""Loss scaling: deltas are multiplied by a factor in the backward pass, so that small ones do not underflow in float16.

Weight gradients are divided by it before they are used. (Micikevicius et al. 2017, arXiv 1710.03740; loss_scale in Darknet's
[net].)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INIT_SCALE = 4096.0  # for a delta of 1, float16 can hold sums sixteen times as large
GROWTH_INTERVAL = 1000  # successful iterations before the scale is doubled
MIN_SCALE = 1.0


@dataclass
class LossScale:
    """value: the factor; dynamic: adjust it; growth_tracker: successful iterations since the last change."""

    value: float = 1.0
    dynamic: bool = False
    growth_tracker: int = 0

    @classmethod
    def of(cls, loss_scale: float, half: bool) -> LossScale:
        """Return the scale for the key loss_scale of [net]; with float16 maps and the default 1 it is dynamic."""
        return cls(INIT_SCALE, dynamic=True) if half and loss_scale == 1 else cls(loss_scale)

    def on_success(self) -> None:
        """Count an iteration whose gradients were finite; double the scale after GROWTH_INTERVAL of them."""
        self.growth_tracker += self.dynamic
        if self.growth_tracker == GROWTH_INTERVAL:
            self.value, self.growth_tracker = self.value * 2, 0

    def backoff(self) -> bool:
        """Halve the scale after an overflow; return False if it cannot be lowered."""
        if not self.dynamic or self.value <= MIN_SCALE:
            return False
        self.value, self.growth_tracker = self.value / 2, 0
        return True

    def state(self) -> np.ndarray:
        """Return the state as an array (3,)."""
        return np.array([self.value, self.growth_tracker, self.dynamic])

    def load_state(self, state: np.ndarray) -> None:
        """Restore what `state` returned; if one of the two scales is fixed, keep this one."""
        if self.dynamic and (len(state) < 3 or state[2]):  # older checkpoints lack the third value
            self.value, self.growth_tracker = float(state[0]), int(state[1])
