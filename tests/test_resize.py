"""Resizing against a plain transcription of Darknet's loops, bit for bit; letterbox and crop geometry."""

from __future__ import annotations

import numpy as np
import pytest

from gpudarknet import boxes, image
from gpudarknet.errors import ImageError
from gpudarknet.image.resize import with_channels

f32 = np.float32


def plain_resize(img, w, h, last_row_fixed=True):
    """Darknet's resize_image, one float32 at a time. img (H, W, C) -> (h, w, C)."""
    H, W, C = img.shape
    part = np.zeros((H, w, C), np.float32)
    out = np.zeros((h, w, C), np.float32)
    ws = f32(W - 1) / f32(w - 1) if w > 1 else f32(0)
    hs = f32(H - 1) / f32(h - 1) if h > 1 else f32(0)
    for k in range(C):
        for r in range(H):
            for c in range(w):
                if c == w - 1 or W == 1:
                    part[r, c, k] = img[r, W - 1, k]
                else:
                    sx = f32(c) * ws
                    ix = int(sx)
                    dx = sx - f32(ix)
                    part[r, c, k] = (f32(1) - dx) * img[r, ix, k] + dx * img[r, ix + 1, k]
        for r in range(h):
            if r == h - 1 and last_row_fixed:
                out[r, :, k] = part[H - 1, :, k]
                continue
            sy = f32(r) * hs
            iy = int(sy)
            dy = sy - f32(iy)
            for c in range(w):
                out[r, c, k] = (f32(1) - dy) * part[iy, c, k]
                if r != h - 1 and H != 1:
                    out[r, c, k] += dy * part[iy + 1, c, k]
    return out


def noise(seed, H, W, C=3):
    return np.random.default_rng(seed).integers(0, 256, (H, W, C), dtype=np.uint8)


def as_floats(img):
    return img.astype(np.float32) / f32(255)


SIZES = [  # H, W -> h, w
    ((7, 11), (5, 4)),  # down
    ((5, 4), (13, 9)),  # up
    ((6, 9), (11, 5)),  # up and down
    ((8, 30), (8, 7)),  # one axis only
    ((1, 6), (4, 9)),
    ((6, 1), (9, 4)),
    ((1, 1), (3, 5)),
    ((6, 9), (1, 4)),
    ((6, 9), (4, 1)),
    ((6, 9), (1, 1)),
    ((2, 3), (2, 3)),
]


@pytest.mark.parametrize("size, wanted", SIZES)
@pytest.mark.parametrize("C", [1, 3])
def test_resize_equals_darknets_bit_for_bit(size, wanted, C):
    img = noise(0, *size, C)
    expected = plain_resize(as_floats(img), wanted[1], wanted[0])
    for source in (img, as_floats(img)):
        out = image.resize(source, wanted[1], wanted[0])
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, expected)


def test_resize_of_a_known_row():
    row = np.array([0, 10, 20, 30], np.float32).reshape(1, 4, 1)
    assert image.resize(row, 3, 1).ravel().tolist() == [0, 15, 30]


def test_bytes_become_darknets_floats():
    byte = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    in_double = (np.arange(256) / 255.0).astype(np.float32)  # Darknet divides in double where it loads without OpenCV
    np.testing.assert_array_equal(image.resize(byte, 16, 16).ravel(), in_double)


def sizes_with_dark_last_row(h, most=200):
    return [H for H in range(2, most) if f32(h - 1) * (f32(H - 1) / f32(h - 1)) < H - 1]


@pytest.mark.parametrize("h", [14, 39, 55])
def test_last_row_is_the_images(h):
    sizes = sizes_with_dark_last_row(h)
    assert sizes, "no such size: choose another h"
    for H in sizes[:2]:
        white = np.ones((H, 2, 1), np.float32)
        assert plain_resize(white, 2, h, last_row_fixed=False)[-1].max() < 0.01  # Darknet's bug
        img = noise(1, H, 2)
        out = image.resize(img, 3, h)
        np.testing.assert_array_equal(out, plain_resize(as_floats(img), 3, h))
        np.testing.assert_array_equal(out[-1, 0], as_floats(img)[-1, 0])


def test_resize_accepts_flipped_views():
    img = noise(2, 9, 6)
    np.testing.assert_array_equal(
        image.resize(img[::-1, ::-1, ::-1], 4, 5), image.resize(img[::-1, ::-1, ::-1].copy(), 4, 5)
    )


# Letterbox


def test_letterbox_of_the_known_size():
    img = noise(3, 576, 768)
    out = image.letterbox(img, 416, 416)
    assert out.shape == (416, 416, 3) and out.dtype == np.float32
    np.testing.assert_array_equal(out[52 : 52 + 312], image.resize(img, 416, 312))
    assert (out[:52] == 0.5).all() and (out[52 + 312 :] == 0.5).all()


@pytest.mark.parametrize("H, W, inner", [(7, 10, (15, 11, 0, 0)), (10, 7, (7, 11, 4, 0)), (5, 9, (16, 8, 0, 1))])
def test_letterbox_truncates_sizes_and_offsets(H, W, inner):
    new_w, new_h, left, top = inner
    out = image.letterbox(noise(4, H, W), 16, 11)
    np.testing.assert_array_equal(
        out[top : top + new_h, left : left + new_w], image.resize(noise(4, H, W), new_w, new_h)
    )
    border = np.ones(out.shape, bool)
    border[top : top + new_h, left : left + new_w] = False
    assert (out[border] == 0.5).all()


@pytest.mark.parametrize("H, W", [(427, 640), (640, 427), (333, 500), (480, 640), (90, 31)])
@pytest.mark.parametrize("net_w, net_h", [(416, 320), (96, 160)])
def test_to_image_inverts_the_letterbox(H, W, net_w, net_h):
    # what is white in the input is, by to_image, where it was white in the image: within a pixel of the image (its
    # corners are aligned) and two and a half of the input (one blurred at each edge, half a one at the odd border)
    left, top, right, bottom = (np.array([0.1, 0.35, 0.5, 0.85]) * (W, H, W, H)).round().astype(int)
    truth = boxes.from_corners(np.array([left, top, right, bottom]) / (W, H, W, H))
    img = np.zeros((H, W, 1), np.uint8)
    img[top:bottom, left:right] = 255
    new_w, new_h = boxes.letterbox_size(W, H, net_w, net_h)
    x0, y0 = (net_w - new_w) // 2, (net_h - new_h) // 2
    seen = image.network_input(img, net_w, net_h, letterbox=True)[0]
    seen = seen[y0 : y0 + new_h, x0 : x0 + new_w] > 0.5
    rows, cols = np.flatnonzero(seen.any(1)) + y0, np.flatnonzero(seen.any(0)) + x0
    edges = np.array([cols[0] / net_w, rows[0] / net_h, (cols[-1] + 1) / net_w, (rows[-1] + 1) / net_h])
    back = boxes.to_image(boxes.from_corners(edges), net_w, net_h, W, H, letterbox=True)
    pixels = 2.5 / np.array([new_w, new_h, new_w, new_h]) + 1 / np.array([W, H, W, H])
    np.testing.assert_array_less(np.abs(back - truth), pixels)


# Network input


def test_network_input_is_planes():
    img = noise(5, 9, 14)
    out = image.network_input(img, 6, 8)
    assert out.shape == (3, 8, 6) and out.flags.c_contiguous and out.dtype == np.float32
    np.testing.assert_array_equal(out, image.resize(img, 6, 8).transpose(2, 0, 1))
    assert 0 <= out.min() and out.max() <= 1


def test_network_input_of_net_size_is_the_image():
    img = noise(6, 8, 6)
    for letterbox in (False, True):
        out = image.network_input(img, 6, 8, letterbox)
        np.testing.assert_array_equal(out, as_floats(img).transpose(2, 0, 1))


def test_channels_are_converted():
    gray = noise(7, 5, 7, 1)
    np.testing.assert_array_equal(with_channels(gray, 3), np.repeat(gray, 3, axis=2))
    red = np.zeros((5, 7, 3), np.uint8)
    red[..., 0] = 255
    np.testing.assert_array_equal(with_channels(red, 1), np.full((5, 7, 1), 76))
    assert with_channels(red, 3) is red


def test_channels_that_cannot_be_converted():
    with pytest.raises(ImageError) as error:
        with_channels(noise(8, 5, 7), 6)
    assert str(error.value) == "image: cannot convert 3 channels to 6; pass the network an array of its own input shape"


# Classifier input


def plain_classifier_input(img, net_w, net_h):
    H, W, C = img.shape
    w, h = (net_w, H * net_w // W) if W < H else (W * net_w // H, net_w)
    whole = plain_resize(img, w, h)
    dx, dy = int((w - net_w) / 2), int((h - net_h) / 2)
    out = np.zeros((C, net_h, net_w), np.float32)
    for k in range(C):
        for j in range(net_h):
            for i in range(net_w):
                out[k, j, i] = whole[min(max(j + dy, 0), h - 1), min(max(i + dx, 0), w - 1), k]
    return out


@pytest.mark.parametrize("H, W", [(9, 20), (20, 9), (7, 7), (5, 6), (1, 30)])
@pytest.mark.parametrize("net_w, net_h", [(8, 8), (8, 5), (6, 11)])  # 6, 11: taller than the image, edges repeated
def test_classifier_input_equals_darknets(H, W, net_w, net_h):
    img = noise(9, H, W)
    np.testing.assert_array_equal(
        image.classifier_input(img, net_w, net_h), plain_classifier_input(as_floats(img), net_w, net_h)
    )


def test_classifier_input_of_a_very_long_strip_needs_no_memory():
    strip = np.zeros((1, 1_000_000, 3), np.uint8)  # 224 x 224,000,000 before the crop
    assert image.classifier_input(strip, 224, 224).shape == (3, 224, 224)
