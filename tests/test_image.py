"""Reading images from files and arrays, and writing them: every error as a whole message, nothing else on stderr."""

from __future__ import annotations

import os
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest

from gpudarknet import image
from gpudarknet.errors import ImageError


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def chunk(kind, content, crc=None):
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def error_of(call, *args, **named):
    with pytest.raises(ImageError) as error:
        call(*args, **named)
    return str(error.value)


@pytest.fixture
def silent(capfd):
    """Fail if the decoders printed anything."""
    yield
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


# Files


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
@pytest.mark.parametrize("C", [1, 3])
def test_written_images_are_read_back(tmp_path, silent, suffix, C):
    img = noise(7, 11, C)
    image.write(tmp_path / f"a{suffix}", img)
    again = image.read(tmp_path / f"a{suffix}", channels=C)
    assert again.dtype == np.uint8 and again.flags.c_contiguous
    np.testing.assert_array_equal(again, img)
    assert os.listdir(tmp_path) == [f"a{suffix}"]


def test_files_are_rgb(tmp_path):
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    image.write(tmp_path / "red.png", red)
    assert cv2.imread(str(tmp_path / "red.png"))[0, 0].tolist() == [0, 0, 255]  # OpenCV's order is BGR
    assert image.read(str(tmp_path / "red.png"))[0, 0].tolist() == [255, 0, 0]


def test_jpeg_is_close(tmp_path):
    img = np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[:, None, None], 30, axis=1).repeat(3, axis=2)
    image.write(tmp_path / "a.jpg", img)
    again = image.read(tmp_path / "a.jpg")
    assert again.shape == (48, 30, 3) and np.abs(again.astype(int) - img).max() <= 3  # JPEG's own loss


def test_write_accepts_views(tmp_path):
    img = noise(6, 5, 3)
    image.write(tmp_path / "a.png", img[::-1, :, ::-1])
    np.testing.assert_array_equal(image.read(tmp_path / "a.png"), img[::-1, :, ::-1])
    image.write(tmp_path / "a.png", img[..., 0])  # overwrites
    np.testing.assert_array_equal(image.read(tmp_path / "a.png", channels=1)[..., 0], img[..., 0])


def test_read_applies_exif_orientation(tmp_path):
    img = np.zeros((16, 32, 3), np.uint8)
    img[:, :16] = 255  # white on the left
    jpeg = cv2.imencode(".jpg", img)[1].tobytes()
    tiff = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 6, 0)  # orientation 6: turn clockwise
    exif = b"Exif\0\0" + tiff
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    turned = image.read(tmp_path / "a.jpg")
    assert turned.shape == (32, 16, 3) and turned[:12].min() > 200 and turned[20:].max() < 50


def test_read_drops_alpha_and_the_low_byte(tmp_path):
    cv2.imwrite(str(tmp_path / "alpha.png"), noise(5, 6, 4))
    cv2.imwrite(str(tmp_path / "deep.png"), noise(5, 6, 3).astype(np.uint16) * 257)
    assert image.read(tmp_path / "alpha.png").shape == (5, 6, 3)
    np.testing.assert_array_equal(image.read(tmp_path / "deep.png"), noise(5, 6, 3)[..., ::-1])


JPEG = cv2.imencode(".jpg", noise(40, 60, 3))[1].tobytes()
PNG = cv2.imencode(".png", noise(40, 60, 3))[1].tobytes()
BMP = cv2.imencode(".bmp", noise(40, 60, 3))[1].tobytes()
AGAIN = "download or save the file again"
UNKNOWN = (
    "is not an image that OpenCV can read; use JPEG, PNG, BMP, WebP, TIFF, GIF, AVIF, JPEG 2000, PNM, PAM, PFM, HDR, Sun"
    " raster or OpenEXR"
)
RARE = "(truncated, damaged, or a rare kind); save it again as JPEG or PNG"


@pytest.mark.parametrize(
    "content, message",
    [
        pytest.param(b"", "is empty; use a JPEG, PNG or BMP file", id="empty"),
        pytest.param(b"a line of text\n" * 9, UNKNOWN, id="text"),
        pytest.param(bytes(range(256)) * 30, UNKNOWN, id="binary"),
        pytest.param(JPEG[:3], f"this JPEG file has no size (truncated or damaged); {AGAIN}", id="start of a JPEG"),
        pytest.param(PNG[: len(PNG) // 2], f"is truncated; {AGAIN}", id="half a PNG"),
        pytest.param(PNG[:-1], f"is truncated; {AGAIN}", id="PNG less one byte"),
        pytest.param(PNG[:8], f"is truncated; {AGAIN}", id="start of a PNG"),
        pytest.param(PNG[:20] + b"\7" + PNG[21:], f"is damaged at byte 8; {AGAIN}", id="bad head"),
        pytest.param(
            PNG[:500] + bytes([PNG[500] ^ 1]) + PNG[501:],
            f"is damaged at byte {PNG.index(b'IDAT') - 4}; {AGAIN}",
            id="one bit changed",
        ),
        pytest.param(BMP[:-1], f"OpenCV {cv2.__version__} cannot read this BMP file {RARE}", id="BMP less one byte"),
        pytest.param(
            b"\n<!DOCTYPE html><html>",
            "is an HTML page, probably the answer to a failed download; download the image again",
            id="page",
        ),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git LFS pointer, not the image; run `git lfs pull`",
            id="pointer",
        ),
        pytest.param(b"<svg>", "is XML or SVG, not pixels; convert it to PNG", id="SVG"),
        pytest.param(
            b"\0\0\0\x18ftypheic" + bytes(40), "is HEIC, which OpenCV cannot read; convert it to JPEG", id="HEIC"
        ),
        pytest.param(b"\0\0\0\x18ftypisom" + bytes(40), "is a video; run `gpudarknet detector demo` on it", id="video"),
        pytest.param(b"%PDF-1.7", "is a PDF document; convert it to PNG", id="PDF"),
        pytest.param(b"PK\3\4" + bytes(40), "is an archive; unpack it", id="ZIP"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_broken_files_raise_and_print_nothing(tmp_path, silent, content, message, channels):
    path = tmp_path / "dog.jpg"
    path.write_bytes(content)
    assert error_of(image.read, path, channels) == f"{path}: {message}"


def test_png_with_a_damaged_comment_is_read(tmp_path):
    at = PNG.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(PNG[:at] + chunk(b"tEXt", b"Comment\0hello", crc=1) + PNG[at:])
    assert image.read(tmp_path / "a.png").shape == (40, 60, 3)


def test_opencv_errors_are_passed_on(tmp_path, monkeypatch):
    def refuse(*_):
        error = cv2.error("many\nlines")
        error.err = "pixels <= CV_IO_MAX_IMAGE_PIXELS"
        raise error

    monkeypatch.setattr(cv2, "imdecode", refuse)
    (tmp_path / "a.bmp").write_bytes(BMP)
    assert error_of(image.read, tmp_path / "a.bmp") == (
        f"{tmp_path}/a.bmp: OpenCV rejects this image (pixels <= CV_IO_MAX_IMAGE_PIXELS); use a smaller one"
    )


def test_missing_and_special_files_raise(tmp_path, silent):
    assert error_of(image.read, tmp_path / "no.jpg") == f"{tmp_path}/no.jpg: no such file; check the path"
    assert error_of(image.read, tmp_path) == f"{tmp_path}: is a folder; use the path of an image"
    assert error_of(image.read, "/dev/zero") == "/dev/zero: is not a regular file; save the image to one"
    assert (
        error_of(image.read, "a\0b") == "a\0b: cannot be read (embedded null byte); check the path and its permissions"
    )
    (tmp_path / "a.jpg").write_bytes(JPEG)
    assert error_of(image.read, tmp_path / "a.jpg", channels=4) == (
        f"{tmp_path}/a.jpg: cannot be read with 4 channels; use 3 (RGB) or 1 (gray)"
    )


def test_write_rejects_unsupported_formats_and_paths(tmp_path, silent):
    img = noise(4, 5, 3)
    assert error_of(image.write, tmp_path / "a.what", img) == (
        f"{tmp_path}/a.what: OpenCV cannot write '.what' images; use .jpg or .png"
    )
    assert error_of(image.write, tmp_path / "no" / "a.png", img) == (
        f"{tmp_path}/no/a.png: cannot be written (No such file or directory); choose another path"
    )
    assert error_of(image.write, tmp_path / "a.jpg", np.zeros((0, 5, 3), np.uint8)) == (
        f"{tmp_path}/a.jpg: OpenCV cannot write shape (0, 5, 3) as .jpg; use .png"
    )
    assert os.listdir(tmp_path) == []


# Arrays


def test_as_image_does_not_copy_an_image():
    img = noise(4, 5, 3)
    assert np.shares_memory(image.as_image(img), img)
    np.testing.assert_array_equal(image.as_image(img), img)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_as_image_adapts_channels(shape, channels):
    out = image.as_image(noise(*shape), channels)
    assert out.shape == (4, 5, channels) and out.dtype == np.uint8
    if shape == (4, 5) or shape[-1] == 1:
        np.testing.assert_array_equal(out[..., -1], noise(4, 5))
    elif channels == 3:
        np.testing.assert_array_equal(out, noise(*shape)[..., :3])


def test_as_image_reads_paths(tmp_path):
    image.write(tmp_path / "a.png", noise(4, 5, 3))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(image.as_image(path), noise(4, 5, 3))
        assert image.as_image(path, channels=1).shape == (4, 5, 1)


class Wrapper:
    """An object that exposes `array` through the given attributes."""

    def __init__(self, array, **attributes):
        self.array = array
        self.__dict__.update(attributes)


class DLPackWrapper(Wrapper):
    def __dlpack__(self, **named):
        return self.array.__dlpack__(**named)

    def __dlpack_device__(self):
        return getattr(self, "device", (1, 0))


@pytest.mark.parametrize(
    "wrap", [DLPackWrapper, lambda a: Wrapper(a, __array_interface__=a.__array_interface__)], ids=["dlpack", "array"]
)
def test_as_image_accepts_arrays_of_other_libraries(wrap):
    np.testing.assert_array_equal(image.as_image(wrap(noise(4, 5, 3))), noise(4, 5, 3))


ON_DEVICE = [
    pytest.param(lambda a: Wrapper(a, __cuda_array_interface__={}), "asarray", id="cuda_array_interface"),
    pytest.param(lambda a: DLPackWrapper(a, device=(2, 0)), "from_dlpack", id="dlpack"),
]


@pytest.mark.parametrize("wrap, function", ON_DEVICE)
def test_as_image_accepts_device_arrays_through_cupy(monkeypatch, wrap, function):
    class CuPy:
        """Stub of the module: its function returns an object with `get`."""

    class OnDevice:
        def __init__(self, wrapper):
            self.get = lambda: wrapper.array

    setattr(CuPy, function, OnDevice)
    monkeypatch.setitem(sys.modules, "cupy", CuPy)
    np.testing.assert_array_equal(image.as_image(wrap(noise(4, 5, 3))), noise(4, 5, 3))


@pytest.mark.parametrize("wrap, function", ON_DEVICE)
def test_as_image_without_cupy_says_so(monkeypatch, wrap, function):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert error_of(image.as_image, wrap(noise(4, 5, 3))) == (
        f"image: cannot use a {type(wrap(None)).__name__} as an array: it is in GPU memory, and CuPy is not installed;"
        " copy it to the host first"
    )


def test_as_image_rejects_other_types_and_shapes():
    assert error_of(image.as_image, noise(4, 5, 3).astype(np.float32)) == (
        "image: has dtype float32, not uint8; if its values are 0..1, pass (image * 255).astype('uint8')"
    )
    shape = "is not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); pass one image, channels last"
    for wrong in [(3, 4, 5), (2, 4, 5, 3), (7,), (0, 5, 3)]:
        assert error_of(image.as_image, np.zeros(wrong, np.uint8)) == f"image: shape {wrong} {shape}"
    assert error_of(image.as_image, [[1, 2], [3, 4]]) == (
        "image: a list is not an image; pass a path, a PIL image or a uint8 array"
    )
    assert error_of(image.as_image, None) == (
        "image: a NoneType is not an image; pass a path, a PIL image or a uint8 array"
    )


def test_as_image_says_why_a_conversion_failed():
    class Refusing(DLPackWrapper):
        def __dlpack__(self, **named):
            raise BufferError("it is busy\nand more")

    assert error_of(image.as_image, Refusing(None)) == (
        "image: cannot use a Refusing as an array: it is busy; detach it, and convert bfloat16 to float32"
    )


def test_missing_opencv_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "photo.png").write_bytes(PNG)
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it raises, as a missing libGL does
    remedy = "pip install opencv-python-headless, or on Debian apt install libgl1 libglib2.0-0"
    message = f"OpenCV does not load (import of cv2 halted; None in sys.modules); {remedy}"
    assert error_of(image.read, tmp_path / "photo.png") == message
    assert error_of(image.write, tmp_path / "out.png", noise(4, 5, 3)) == message
