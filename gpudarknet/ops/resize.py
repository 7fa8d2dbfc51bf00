"""Pictures to network input on the device: bytes go up, floats never cross the bus (resize_image, letterbox_image)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..image.resize import GREY, resize, spacing
from .base import op


@op
def network_input(be: Any, picture: Any, net_w: int, net_h: int, new_w: int, new_h: int) -> Any:
    """Resize a picture uint8 (h, w, C) to new_w x new_h, centred on grey -> float32 (C, net_h, net_w) in 0..1.

    Bilinear with aligned corners, as `gpudarknet/image/resize.py`, which does it on the host. new = net stretches the picture.
    """
    C = picture.shape[2]
    left, top = (net_w - new_w) // 2, (net_h - new_h) // 2
    y = np.full((C, net_h, net_w), GREY)
    y[:, top : top + new_h, left : left + new_w] = resize(be.to_numpy(picture), new_w, new_h).transpose(2, 0, 1)
    return be.asarray(y)


@network_input.kernel
def network_input_cuda(be: Any, picture: Any, net_w: int, net_h: int, new_w: int, new_h: int) -> Any:
    C = picture.shape[2]
    y = be.empty((C, net_h, net_w))
    write(be, picture[None], y, (net_w, net_h), (new_w, new_h), (y.size, net_h * net_w, 1))
    return y


def write(
    be: Any, pictures: Any, y: Any, net: tuple[int, int], new: tuple[int, int], apart: tuple[int, int, int]
) -> None:
    """Write pictures uint8 (N, h, w, C) as network input into y, on the device. Sizes are (width, height).

    apart: how many numbers of y lie between images, between channels and between pixels.
    """
    (N, h, w, C), (W, H), (new_w, new_h) = pictures.shape, net, new
    sizes = (N * H * W * C, C, h, w, H, W, new_h, new_w, spacing(h, new_h), spacing(w, new_w))
    be.launch("resize.network_input", sizes[0], pictures, y, *sizes, *apart)
