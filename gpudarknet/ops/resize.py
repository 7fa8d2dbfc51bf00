"""Pictures to network input on the device: bytes go up, floats never cross the bus (resize_image, letterbox_image)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..op import op
from ..resize import GREY, resize, taps


@op
def network_input(be: Any, picture: Any, net_w: int, net_h: int, new_w: int, new_h: int) -> Any:
    """Resize a picture uint8 (h, w, C) to new_w x new_h, centred on grey -> float32 (C, net_h, net_w) in 0..1.

    Bilinear with aligned corners, as `gpudarknet/resize.py`, which does it on the host. new = net stretches the picture.
    """
    C = picture.shape[2]
    left, top = (net_w - new_w) // 2, (net_h - new_h) // 2
    y = np.full((C, net_h, net_w), GREY)
    y[:, top : top + new_h, left : left + new_w] = resize(be.to_numpy(picture), new_w, new_h).transpose(2, 0, 1)
    return be.asarray(y)


@network_input.kernel
def network_input_cuda(be: Any, picture: Any, net_w: int, net_h: int, new_w: int, new_h: int) -> Any:
    h, w, C = picture.shape
    rows, cols = taps(h, new_h), taps(w, new_w)
    low = be.asarray(np.concatenate([rows.low, cols.low]), np.int32)
    part = be.asarray(np.concatenate([rows.part, cols.part]), np.float32)
    y = be.empty((C, net_h, net_w))
    be.launch("resize.network_input", y.size, picture, low, part, y, y.size, C, h, w, net_h, net_w, new_h, new_w)
    return y
