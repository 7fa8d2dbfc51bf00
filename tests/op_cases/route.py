from __future__ import annotations

import numpy as np

from gpudarknet.ops import route

from . import check, normal

# variants: channels of each source as multiples of C, groups, group_id
VARIANTS = [((1,), 1, 0), ((2, 1), 1, 0), ((1, 3, 2), 1, 0), ((2,), 2, 1), ((2, 4), 2, 0), ((3, 6), 3, 2)]


def make_concat(rng, N, C, H, W, multiples, groups, group_id):
    return [normal(rng, N, C * k, H, W) for k in multiples], groups, group_id


@check(route.concat, make_concat, *VARIANTS, exact=True, half="xs")
def concat(xs, groups, group_id):
    channels = []
    for x in xs:
        size = x.shape[1] // groups
        channels += [x[:, c] for c in range(group_id * size, (group_id + 1) * size)]
    return np.stack(channels, axis=1)


def make_split(rng, N, C, H, W, multiples, groups, group_id):
    channels = tuple(C * k for k in multiples)
    return normal(rng, N, sum(channels) // groups, H, W), channels, groups, group_id


@check(route.split, make_split, *VARIANTS, exact=True, half="dy")
def split(dy, channels, groups, group_id):
    N, _, H, W = dy.shape
    planes, dxs = iter(range(dy.shape[1])), []
    for C in channels:
        dx = np.zeros((N, C, H, W))
        for c in range(group_id * C // groups, (group_id + 1) * C // groups):
            dx[:, c] = dy[:, next(planes)]
        dxs.append(dx)
    return tuple(dxs)
