"""The length of a training, and the learning rate of an iteration (get_current_rate in src/network.c)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..cfg import Config, Net
from ..errors import TrainError


def length(config: Config) -> int:
    """Return max_batches. Raises TrainError if it is below 1."""
    if config.net.max_batches < 1:
        raise TrainError(f"{config.net_key('max_batches')}; set it to the number of iterations to train")
    return config.net.max_batches


def doubts(config: Config) -> Iterator[str]:
    """Yield messages about rates that a training does not reach in max_batches, or that train nothing."""
    net = config.net
    if net.learning_rate == 0 and not (net.policy == "sgdr" and net.learning_rate_min):
        yield f"{config.net_key('learning_rate')}: the weights do not change"
    if net.burn_in > net.max_batches:
        yield f"{config.net_key('burn_in')}: the training ends, at max_batches={net.max_batches}, before the full learning rate"
    late = [str(step) for step in net.steps or () if step > net.max_batches] if net.policy == "steps" else []
    if late:
        steps = f"{','.join(late)} of its steps are" if len(late) > 1 else f"step {late[0]} is"
        yield f"{config.path}:{config.net_lines['steps']}: [net] {steps} not reached: max_batches={net.max_batches}"


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
