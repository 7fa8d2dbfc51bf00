"""Images to network input on the device, so that only bytes are uploaded (resize_image, letterbox_image)."""

from __future__ import annotations

from ..array import Array, ArrayBackend, KernelBackend, LaunchKernel
from ..image.resize import center, resize, spacing
from .base import op


@op
def network_input(be: ArrayBackend, image: Array, net_w: int, net_h: int, new_w: int, new_h: int) -> Array:
    """Resize an image uint8 (h, w, C) to new_w x new_h, centered on gray -> float32 (C, net_h, net_w) in 0..1.

    Bilinear with aligned corners, like gpudarknet/image/resize.py on the CPU. new = net stretches the image.
    """
    y = center(resize(be.to_numpy(image), new_w, new_h), net_w, net_h)
    return be.asarray(y.transpose(2, 0, 1))


@network_input.kernel
def network_input_cuda(be: KernelBackend, image: Array, net_w: int, net_h: int, new_w: int, new_h: int) -> Array:
    C = image.shape[2]
    y = be.empty((C, net_h, net_w))
    write(be.launch, image[None], y, (net_w, net_h), (new_w, new_h), (y.size, net_h * net_w, 1))
    return y


def write(
    launch: LaunchKernel,
    images: Array,
    y: Array,
    net: tuple[int, int],
    new: tuple[int, int],
    strides: tuple[int, int, int],
) -> None:
    """Write images uint8 (N, h, w, C) as network input into y, on the device. Sizes are (width, height).

    strides: of y, in elements, between images, between channels and between pixels.
    """
    (N, h, w, C), (W, H), (new_w, new_h) = images.shape, net, new
    sizes = (N * H * W * C, C, h, w, H, W, new_h, new_w, spacing(h, new_h), spacing(w, new_w))
    launch("resize.network_input", sizes[0], images, y, *sizes, *strides)
