from __future__ import annotations

import numpy as np

from gpudarknet.ops import optimizers

from . import check, normal


def make_sgd(rng, *shape):
    return normal(rng, *shape), normal(rng, *shape), 0.1, 0.9, 0.01


@check(optimizers.sgd, make_sgd)
def sgd(w, buf, rate, momentum, decay):
    step = buf - decay * w
    return w + rate * step, step * momentum


def make_adam(rng, N, C, H, W, t):
    w, g, m, v = normal(rng, 4, N, C, H, W)
    return w, g, m, v**2, 0.1, 0.9, 0.999, 1e-6, 0.01, t


@check(optimizers.adam, make_adam, (1,), (1000,), rtol=1e-4)  # 1 - beta2^t loses three digits at t = 1
def adam(w, g, m, v, rate, beta1, beta2, eps, decay, t):
    step = g - decay * w
    m = beta1 * m + (1 - beta1) * step
    v = beta2 * v + (1 - beta2) * step**2
    return w + rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps), 0 * g, m, v
