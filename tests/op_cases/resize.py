from __future__ import annotations

import numpy as np

from gpudarknet.ops import resize

from . import check


def make(rng, N, C, H, W, net, new):
    image = rng.integers(0, 256, (2 * H + 1, 3 * W, 1 if C == 1 else 3)).astype(np.uint8)
    return image, *net, *new


# Positions are float32: on 40 pixels they are right to 2e-6 of a pixel, which can be a whole step from 0 to 1.
@check(
    resize.network_input, make, ((13, 9), (13, 9)), ((13, 9), (12, 5)), ((7, 20), (7, 1)), ((1, 1), (1, 1)), atol=1e-5
)
def network_input(image, net_w, net_h, new_w, new_h):
    h, w, C = image.shape
    y = np.full((C, net_h, net_w), 0.5)

    def place(k, size, wanted):
        at = k * (size - 1) / (wanted - 1) if k < wanted - 1 else size - 1
        return int(at), min(int(at) + 1, size - 1), at - int(at)

    for i in range(new_h):
        for j in range(new_w):
            top, bottom, down = place(i, h, new_h)
            left, right, along = place(j, w, new_w)
            above = (1 - along) * image[top, left] + along * image[top, right]
            below = (1 - along) * image[bottom, left] + along * image[bottom, right]
            y[:, (net_h - new_h) // 2 + i, (net_w - new_w) // 2 + j] = ((1 - down) * above + down * below) / 255
    return y
