"""The learning rate of an iteration (get_current_rate in src/network.c)."""

from __future__ import annotations

import math

from ..cfg import Net


def rate(net: Net, n: int, u: float = 1.0) -> float:
    """Return the learning rate at iteration n (the first update is 1). `u`, uniform in 0..1, is for policy=random."""
    base = net.learning_rate
    if n < net.burn_in:
        return base * (n / net.burn_in) ** net.power
    if net.policy == "step":
        return base * net.scale ** (n // net.step)
    if net.policy == "steps":
        for step, scale in zip(net.steps or (), net.scales or (), strict=False):
            if step > n:
                break
            base *= scale
        return base
    if net.policy == "exp":
        return base * net.gamma**n
    if net.policy == "poly":
        return base * max(0.0, 1 - n / net.max_batches) ** net.power
    if net.policy == "random":
        return base * u**net.power
    if net.policy == "sigmoid":
        return base / (1 + math.exp(min(net.gamma * (n - net.step), 700.0)))
    if net.policy == "sgdr":
        start, length = 0, net.sgdr_cycle or net.max_batches
        while n > start + length:  # the last iteration of a cycle has the lowest rate
            start += length
            length *= net.sgdr_mult
        low = net.learning_rate_min
        return low + 0.5 * (base - low) * (1 + math.cos((n - start) * math.pi / length))
    return base
