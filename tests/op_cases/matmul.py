from __future__ import annotations

import numpy as np

from gpudarknet.ops import matmul as ops

from . import check, normal


def make(rng, N, C, H, W, alike):
    """One matrix for all images, or one for each."""
    return normal(rng, N if alike else 1, W, C), normal(rng, N, C, H)


@check(ops.matmul, make, (False,), (True,), half="a b", atol=1e-4)  # sums of up to 33 products
def matmul(a, b):
    return np.stack([
        [[sum(x * y for x, y in zip(row, column, strict=True)) for column in right.T] for row in a[n % len(a)]]
        for n, right in enumerate(b)
    ])  # fmt: skip
