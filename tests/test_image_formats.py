"""Files of every format: the pixels of OpenCV's imread, damage, claims of a size, and images that are not files."""

from __future__ import annotations

import http.server
import io
import os
import re
import struct
import threading
import warnings
import zlib
from contextlib import contextmanager

import cv2
import numpy as np
import opencv4
import pytest
from PIL import Image, ImageOps

from gpudarknet import cli, image
from gpudarknet.errors import ImageError, ImageWarning
from gpudarknet.image import formats


def smooth(H=40, W=60, C=3):
    small = np.random.default_rng(0).integers(0, 256, (5, 7, C), dtype=np.uint8)
    return cv2.resize(small, (W, H), interpolation=cv2.INTER_CUBIC)


def noise(length):
    return np.random.default_rng(length).bytes(length)


def encode(suffix, *parameters, img=None):
    return cv2.imencode(suffix, smooth() if img is None else img, list(parameters))[1].tobytes()


def pil(kind, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(smooth(C=4)).convert("RGB").convert(mode).save(file, kind, **options)
    return file.getvalue()


def error_of(call, *args):
    with pytest.raises(ImageError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


# Files made by hand


def orientation(value):
    """Return the TIFF structure of EXIF data with an orientation."""
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, value, 0)


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(*segments, jpeg=None):
    jpeg = encode(".jpg") if jpeg is None else jpeg
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(W, H, depth=8, kind=2, rows=b"", interlaced=0, extra=b"", end=True):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, depth, kind, 0, 0, interlaced))
    data = head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"") * end
    return b"\x89PNG\r\n\x1a\n" + data


def adam7():
    rows = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in smooth()[y::dy, x::dx])
    return png(60, 40, rows=rows, interlaced=1)


def bmp(bits, data, palette=b"", compression=0, header=40, from_top=False, W=13, H=5):
    offset = 14 + header + len(palette)
    if header == 12:
        head = struct.pack("<IHHHH", 12, W, H, 1, bits)
    else:
        head = struct.pack(
            "<IiiHHIIiiII", header, W, -H if from_top else H, 1, bits, compression, len(data), 0, 0, 0, 0
        )
    return (
        struct.pack("<2sIHHI", b"BM", offset + len(data), 0, 0, offset)
        + head
        + bytes(max(header - 40, 0))
        + palette
        + data
    )


def tiff(W, H, data, order="<", big=False, depth=8, samples=3, tile=None):
    """Return an uncompressed TIFF file of one strip or of tiles, each as large as `data`."""
    tiles = 1 if tile is None else -(-W // tile[0]) * -(-H // tile[1])
    position = "Q" if big else "I"
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8)
    placement = (273, 279) if tile is None else (324, 325)
    tags = {
        256: [W],
        257: [H],
        258: [depth] * samples,
        259: [1],
        262: [2 if samples == 3 else 1],
        277: [samples],
        284: [1],
    }
    tags |= {278: [H]} if tile is None else {322: [tile[0]], 323: [tile[1]]}
    tags |= {placement[0]: [0] * tiles, placement[1]: [len(data)] * tiles}
    start = len(head) + (8 + 20 * len(tags) + 8 if big else 2 + 12 * len(tags) + 4)
    values_at = start
    for _ in range(2):  # the second time with the addresses of the data
        values, entries = b"", b""
        for tag, numbers in sorted(tags.items()):
            own = struct.pack(f"{order}{len(numbers)}{position}", *numbers)
            at = struct.pack(order + position, values_at + len(values))
            entries += struct.pack(f"{order}HH{position}", tag, 16 if big else 4, len(numbers))
            entries += own if len(numbers) == 1 else at
            values += own if len(numbers) > 1 else b""
        tags[placement[0]] = [values_at + len(values) + k * len(data) for k in range(tiles)]
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    return head + count + entries + bytes(8 if big else 4) + values + data * tiles


def sun(W, H, bits, data, palette=b""):
    return struct.pack(">8I", 0x59A66A95, W, H, bits, len(data), 1, bool(palette), len(palette)) + palette + data


def pam(W, H, depth, kind, data):
    return b"P7\n# x\nWIDTH %d\nHEIGHT %d\nDEPTH %d\nMAXVAL 255\nTUPLTYPE %s\nENDHDR\n" % (W, H, depth, kind) + data


FLOATS = np.random.default_rng(0).random((40, 60, 3), dtype=np.float32)
JPEG = encode(".jpg")
PROGRESSIVE = encode(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
THUMBNAIL = segment(0xE1, b"Exif\0\0" + orientation(1) + encode(".jpg", img=smooth(12, 16)))
FILES = {
    "JPEG": JPEG,
    "progressive JPEG": PROGRESSIVE,
    "gray JPEG": encode(".jpg", img=smooth()[..., 0]),
    "CMYK JPEG": pil("JPEG", "CMYK"),
    "YCCK JPEG": pil("JPEG", "CMYK").replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"),
    "JPEG with restarts": encode(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    "JPEG with long segments": jpeg_with(segment(0xE5, bytes(65533)), segment(0xE6, b"\xff\xd9" * 32766)),
    "JPEG with fill bytes": jpeg_with(b"\xff" * 50),
    "JPEG with a thumbnail": jpeg_with(THUMBNAIL),
    "JPEG with more behind it": JPEG + b"\0more" * 99,
    **{f"JPEG of orientation {k}": jpeg_with(segment(0xE1, b"Exif\0\0" + orientation(k))) for k in range(10)},
    "PNG": encode(".png"),
    "16-bit PNG": encode(".png", img=smooth(C=4).astype(np.uint16) * 257 + 99),
    "PNG with alpha": encode(".png", img=smooth(C=4)),
    "PNG of gray and alpha": pil("PNG", "LA"),
    "PNG of 1 bit": encode(".png", cv2.IMWRITE_PNG_BILEVEL, 1, img=smooth()[..., 0] & 128),
    "interlaced PNG": adam7(),
    "PNG with a palette": png(8, 2, 4, 3, b"\0\1\2\3\4" * 2, extra=chunk(b"PLTE", noise(48))),
    "PNG with a transparent palette": png(
        8, 2, 4, 3, b"\0\1\2\3\4" * 2, extra=chunk(b"PLTE", noise(48)) + chunk(b"tRNS", b"\0\1\2")
    ),
    "PNG with a transparent color": png(
        2, 2, rows=b"\0abcdef\0abcabc", extra=chunk(b"tRNS", b"\0a\0b\0c")
    ),
    "PNG with more behind it": encode(".png") + b"more",
    "BMP": encode(".bmp"),
    **{
        f"BMP of {bits} bits{' from the top' * top}": bmp(bits, noise(row * 5), noise(palette), from_top=bool(top))
        for bits, row, palette in ((1, 4, 8), (4, 8, 64), (8, 16, 1024), (16, 28, 0), (24, 40, 0), (32, 52, 0))
        for top in (0, 1)
    },
    "BMP with masks": bmp(16, noise(140), struct.pack("<III", 0xF800, 0x7E0, 0x1F), 3),
    "BMP of OS/2": bmp(8, noise(80), noise(768), header=12),
    "BMP of version 5": bmp(32, noise(260), header=124),
    "RLE8 BMP": bmp(8, b"\x0d\7\0\0" * 5 + b"\0\1", noise(1024), 1),
    "RLE4 BMP": bmp(4, b"\x0d\x27\0\0" * 5 + b"\0\1", noise(64), 2),
    "WebP": encode(".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
    "lossless WebP": encode(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
    "WebP with alpha": encode(".webp", img=smooth(C=4)),
    "TIFF": encode(".tiff"),
    "TIFF without compression": tiff(60, 40, smooth().tobytes()),
    "big-endian TIFF": tiff(60, 40, smooth().tobytes(), ">"),
    "BigTIFF": tiff(60, 40, smooth().tobytes(), big=True),
    "big-endian BigTIFF": tiff(60, 40, smooth().tobytes(), ">", big=True),
    "16-bit TIFF": tiff(60, 40, smooth().astype("<u2").tobytes(), depth=16),
    "tiled TIFF": tiff(30, 20, noise(16 * 16 * 3), tile=(16, 16)),
    "JPEG 2000": encode(".jp2"),
    "PBM": b"P4\n13 5\n" + noise(10),
    "PGM": b"P5 # c\n13 5\n#c\n255\n" + noise(65),
    "16-bit PPM": b"P6\n13 5\n65535\n" + noise(390),
    "ASCII PBM": b"P1\n4 3\n1 0 1 0\n0 1 0 1\n0 0 1 1\n",
    "PAM": pam(13, 5, 3, b"RGB", noise(195)),
    "PAM with alpha": pam(13, 5, 4, b"RGB_ALPHA", noise(260)),
    "PFM": encode(".pfm", img=FLOATS * 255),
    "HDR": encode(".hdr", img=FLOATS),
    "Sun raster": encode(".ras"),
    "8-bit Sun raster": sun(13, 5, 8, noise(70), noise(768)),
    "Sun raster of 1 bit": sun(13, 5, 1, noise(10)),
}  # fmt: skip
for name, suffix in (("AVIF", ".avif"), ("GIF", ".gif")):  # not in every build
    if cv2.haveImageWriter("x" + suffix):
        FILES[name] = encode(suffix)


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_imread(tmp_path, name):
    path = tmp_path / "photo.dat"  # the name decides nothing
    path.write_bytes(FILES[name])
    expected = cv2.imread(str(path))
    assert expected is not None
    rgb = image.read(path)
    assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    np.testing.assert_array_equal(rgb, expected[..., ::-1])
    gray = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if gray is not None:  # imread fails for PFM
        np.testing.assert_array_equal(image.read(path, channels=1)[..., 0], gray)
    np.testing.assert_array_equal(image.as_image(FILES[name]), rgb)
    image.check(path)


def test_what_imread_should_read():
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth()).save(turned, "TIFF", exif=exif)
    np.testing.assert_array_equal(image.as_image(turned.getvalue()), np.rot90(smooth(), -1))  # imread fails


# Damage


CUTS = {
    "JPEG": JPEG,
    "progressive JPEG": PROGRESSIVE,
    "gray JPEG": FILES["gray JPEG"],
    "JPEG with restarts": FILES["JPEG with restarts"],
    "JPEG with a thumbnail": FILES["JPEG with a thumbnail"],
    "JPEG of orientation 6": FILES["JPEG of orientation 6"],
}


@pytest.mark.parametrize("name", CUTS)
def test_a_truncated_jpeg_is_read_as_by_imread_with_a_warning(tmp_path, capfd, name):
    data, path = CUTS[name], tmp_path / "cut.jpg"
    parts = 0
    for length in {len(data) - 1, len(data) - 2, *range(len(data) // 40, len(data) - 3, len(data) // 20)}:
        path.write_bytes(data[:length])
        expected = cv2.imread(str(path))
        capfd.readouterr()  # libjpeg's message
        if expected is None:
            assert " this JPEG file " in error_of(image.read, path)
            continue
        with pytest.warns(ImageWarning) as warned:
            np.testing.assert_array_equal(image.read(path), expected[..., ::-1])
        assert [str(each.message) for each in warned] == [
            f"{path}: is truncated, its missing part is gray or blurred; download or save the file again"
        ]
        image.check(path)
        assert capfd.readouterr() == ("", "")
        parts += 1
    assert parts > 5


def test_a_complete_jpeg_with_too_few_bytes_for_its_pixels_is_truncated(capfd):
    with pytest.warns(ImageWarning, match="is truncated"):
        assert image.as_image(jpeg_of(4000, 3000)).shape == (3000, 4000, 3)
    assert capfd.readouterr() == ("", "")


def test_other_messages_pass_while_those_of_libjpeg_are_removed(capfd, monkeypatch):
    decode = cv2.imdecode

    def talk(*args):
        os.write(2, b"from another thread\n")
        return decode(*args)

    monkeypatch.setattr(cv2, "imdecode", talk)
    with pytest.warns(ImageWarning, match="image of .* bytes: is truncated"):
        image.as_image(JPEG[: len(JPEG) // 2])
    assert capfd.readouterr() == ("", "from another thread\n")


def test_damage_that_loses_nothing_is_read(tmp_path):
    rows = b"".join(b"\0" + row.tobytes() for row in smooth())
    for data in (
        png(60, 40, rows=rows, extra=chunk(b"tEXt", b"a\0b")[:-1] + b"x"),  # wrong CRC
        png(60, 40, rows=rows)[:-1] + b"x",
    ):
        np.testing.assert_array_equal(image.as_image(data), smooth())
    (tmp_path / "x.jpg").write_bytes(jpeg_with(segment(0xEA, b""), b"garbage"))
    np.testing.assert_array_equal(image.read(tmp_path / "x.jpg"), cv2.imread(str(tmp_path / "x.jpg"))[..., ::-1])


@pytest.mark.parametrize("name", ["PNG", "BMP", "WebP", "TIFF", "JPEG 2000", "PGM", "Sun raster", "HDR", "AVIF", "GIF"])
def test_other_truncated_files_are_errors_as_for_imread(tmp_path, capfd, name):
    if name not in FILES:
        pytest.skip(f"OpenCV is built without {name}")
    path = tmp_path / "cut.jpg"
    path.write_bytes(FILES[name][: len(FILES[name]) * 2 // 3])
    assert cv2.imread(str(path)) is None
    capfd.readouterr()
    assert re.search(f": is truncated; | this {name.replace('PGM', 'PNM')} file ", error_of(image.read, path))
    assert capfd.readouterr() == ("", "")


def test_the_command_line_warns_once(tmp_path, monkeypatch, capfd):
    opencv4.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.names").write_text("a\nb\nc\nd\n")
    (tmp_path / "x.data").write_text("names=x.names\n")
    (tmp_path / "cut.jpg").write_bytes(JPEG[:-99])
    words = "detector test x.data tiny.cfg tiny.weights cut.jpg -dont_show -backend numpy"
    assert cli.main(words.split()) == 0
    assert capfd.readouterr().err.splitlines() == [
        "warning: cut.jpg: is truncated, its missing part is gray or blurred; download or save the file again"
    ]


# Claims


def jpeg_of(W, H):
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + struct.pack(">HH", H, W) + JPEG[at + 4 :]


def box(kind, *content):
    content = b"".join(content)
    return struct.pack(">I4s", len(content) + 8, kind) + content


def avif_of(*sizes):
    boxes = (box(b"ispe", bytes(4), struct.pack(">II", *size)) for size in sizes)
    return box(b"ftyp", b"mif1\0\0\0\0mif1avif") + box(b"meta", bytes(4), box(b"iprp", box(b"ipco", *boxes)))


def jpeg2000_of(W, H, components=3):
    size = struct.pack(">HHIIIIIIIIH", 38 + 3 * components, 0, W + 5, H + 7, 5, 7, W, H, 0, 0, components)
    return box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 ") + box(b"jp2c", b"\xff\x4f\xff\x51" + size)


def exr_of(W, H):
    window = struct.pack("<iiii", -1, -1, W - 2, H - 2)
    return b"\x76\x2f\x31\x01\2\0\0\0" + b"dataWindow\0box2i\0" + struct.pack("<I", 16) + window + b"\0"


def webp_of(kind, content):
    return b"RIFF" + struct.pack("<I", len(content) + 12) + b"WEBP" + kind + struct.pack("<I", len(content)) + content


CLAIMS = {
    "JPEG": jpeg_of,
    "JPEG with a small thumbnail": lambda W, H: jpeg_with(THUMBNAIL, jpeg=jpeg_of(W, H)),
    "JPEG with two frames": lambda W, H: jpeg_with(segment(0xC0, b"\x08\0\1\0\1\1\1\x11\0"), jpeg=jpeg_of(W, H)),
    "PNG": lambda W, H: png(W, H),
    "BMP": lambda W, H: bmp(24, b"", W=W, H=H),
    "BMP from the top": lambda W, H: bmp(24, b"", W=W, H=H, from_top=True),
    "BMP of OS/2": lambda W, H: bmp(24, b"", W=W, H=H, header=12) + bytes(9),
    "TIFF": lambda W, H: tiff(W, H, b"x"),
    "big-endian BigTIFF": lambda W, H: tiff(W, H, b"x", ">", big=True),
    "TIFF of large tiles": lambda W, H: tiff(60, 40, b"x", tile=(W, H)),
    "GIF": lambda W, H: b"GIF89a" + struct.pack("<HH", W, H) + bytes(9),
    "animated WebP": lambda W, H: webp_of(
        b"VP8X", b"\2\0\0\0" + (W - 1).to_bytes(3, "little") + (H - 1).to_bytes(3, "little")
    ),
    "AVIF": lambda W, H: avif_of((60, 40), (W, H), (30, 20)),
    "JPEG 2000": jpeg2000_of,
    "JPEG 2000 codestream": lambda W, H: jpeg2000_of(W, H)[jpeg2000_of(W, H).index(b"\xff\x4f") :],
    "PGM": lambda W, H: b"P5\n# 1 1 \n%d %d\n255\n" % (W, H),
    "PAM": lambda W, H: pam(W, H, 3, b"RGB", b""),
    "PFM": lambda W, H: b"PF\n%d %d\n-1\n" % (W, H),
    "HDR": lambda W, H: b"#?RADIANCE\n-Y 1 +X 1\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (H, W),
    "Sun raster": lambda W, H: sun(W, H, 24, b""),
    "OpenEXR": exr_of,
}


@pytest.fixture
def undecoded(monkeypatch):
    """Fail if a file is decoded."""
    monkeypatch.setattr(cv2, "imdecode", None)


@pytest.mark.parametrize("name", CLAIMS)
def test_huge_claims_are_refused_from_the_header(undecoded, monkeypatch, name):
    data = CLAIMS[name](20000, 16000)
    where, remedy = f"image of {len(data)} bytes", "or set OPENCV_IO_MAX_IMAGE_PIXELS"
    assert error_of(image.as_image, data) == (
        f"{where}: claims to have 20000 x 16000 pixels, more than 268435456; scale it down, {remedy}"
    )
    data = CLAIMS[name](10000, 9000)  # allowed, but not for a file as small as this
    assert error_of(image.as_image, data) == (
        f"image of {len(data)} bytes: claims to have 10000 x 9000 pixels, too many for a file of {len(data)} bytes;"
        f" download or save it again, {remedy}"
    )
    assert formats.check(CLAIMS[name](600, 400), "image").size(CLAIMS[name](600, 400)) == (600, 400)
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**29))
    assert formats.check(CLAIMS[name](20000, 16000), "image").size(CLAIMS[name](20000, 16000)) == (20000, 16000)
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "100")
    assert "claims to have 60 x 40 pixels, more than 100;" in error_of(image.as_image, JPEG)


@pytest.mark.parametrize(
    "kind, content", [(b"VP8L", b"\x2f\xff\xff\xff\x0f"), (b"VP8 ", b"\0\0\0\x9d\1\x2a\xff\x3f\xff\x3f")]
)
def test_the_largest_webp_of_a_few_bytes_is_refused(undecoded, kind, content):
    size = "16384 x 16384" if kind == b"VP8L" else "16383 x 16383"
    assert f"claims to have {size} pixels" in error_of(image.as_image, webp_of(kind, content))


@pytest.mark.parametrize(
    "data, name",
    [
        (JPEG[: JPEG.index(b"\xff\xda")], "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "PNG"),
        (b"BM", "BMP"),
        (webp_of(b"ALPH", bytes(20)), "WebP"),
        (b"II*\0" + struct.pack("<IH", 8, 1) + bytes(16), "TIFF"),
        (b"MM\0+\0\x08\0\0" + b"\xff" * 30, "TIFF"),
        (avif_of(), "AVIF"),
        (jpeg2000_of(9, 9)[:60], "JPEG 2000"),
        (jpeg2000_of(9, 9, components=16384), "JPEG 2000"),
        (b"P6\nhello", "PNM"),
        (b"P6 99999999999 1 255\n", "PNM"),
        (b"P7\nWIDTH 3\nENDHDR\n", "PAM"),
        (b"#?RADIANCE\n\n-Y 3 +X 3\n", "HDR"),
        (b"\x76\x2f\x31\x01\2\0\0\0x\0y", "OpenEXR"),
    ],
)
def test_files_without_a_size_are_refused(undecoded, data, name):
    assert error_of(image.as_image, data) == (
        f"image of {len(data)} bytes: this {name} file has no size (truncated or damaged); download or save the file again"
    )


def test_images_without_pixels_are_refused(undecoded):
    for data, size in ((png(0, 5), "0 x 5"), (jpeg_of(7, 0), "7 x 0")):
        assert f"claims to have {size} pixels; use an image that has some" in error_of(image.as_image, data)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_read_or_are_errors(name, capfd):
    rng, data = np.random.default_rng(zlib.crc32(name.encode())), FILES[name]
    for k in range(12):
        damaged = bytearray(data[: rng.integers(1, len(data))] if k % 3 == 0 else data)
        for at in rng.integers(0, min(len(damaged), 99) if k % 3 == 1 else len(damaged), 4):
            damaged[at] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            try:
                out = image.as_image(bytes(damaged))
            except ImageError as error:
                assert "\n" not in str(error)
            else:
                W, H = formats.check(bytes(damaged), "image").size(bytes(damaged))
                assert out.shape in ((H, W, 3), (W, H, 3))


# PIL images, bytes, streams and URLs


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("value", range(10))
def test_the_orientation_of_a_pil_image_is_applied_as_to_its_file(tmp_path, kind, value):
    exif = Image.Exif()
    exif[0x0112] = value
    path = tmp_path / "photo"
    Image.fromarray(smooth()).save(path, kind, exif=exif)
    expected = image.read(path)
    assert expected.shape == ((60, 40, 3) if 5 <= value <= 8 else (40, 60, 3))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(image.as_image(opened), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(image.as_image(ImageOps.exif_transpose(opened)), expected)


@pytest.mark.parametrize(
    "mode, options",
    [("L", {}), ("LA", {}), ("1", {}), ("P", {}), ("P", {"transparency": bytes(range(200))}), ("RGBA", {})],
)
def test_modes_of_pil_are_read_as_from_their_files(recwarn, mode, options):
    data = pil("PNG", mode, **options)
    np.testing.assert_array_equal(image.as_image(Image.open(io.BytesIO(data))), image.as_image(data))
    assert not recwarn


def test_other_modes_of_pil():
    deep = np.random.default_rng(0).integers(0, 2**16, (4, 5), dtype=np.uint16)
    np.testing.assert_array_equal(image.as_image(Image.fromarray(deep), channels=1)[..., 0], deep >> 8)
    data = pil("JPEG", "CMYK")
    np.testing.assert_allclose(image.as_image(Image.open(io.BytesIO(data))), image.as_image(data), atol=2)
    for mode in ("I", "F"):
        assert error_of(image.as_image, Image.new(mode, (4, 5))) == (
            f"image: PIL mode {mode} has no fixed range; scale it to 0..255 as mode L first"
        )


def test_pil_images_that_cannot_be_loaded(tmp_path, monkeypatch):
    path = tmp_path / "cut.jpg"
    path.write_bytes(JPEG[: len(JPEG) // 2])
    with Image.open(path) as opened:
        message = error_of(image.as_image, opened)
    assert message.startswith(f"{path}: PIL cannot load it (image file is truncated (")
    assert message.endswith("; download or save the file again")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(io.BytesIO(jpeg_of(20000, 16000))) as opened:
        assert "claims to have 20000 x 16000 pixels, more than 268435456" in error_of(image.as_image, opened)


def test_files_in_memory_and_open_files(tmp_path):
    (tmp_path / "x.png").write_bytes(FILES["PNG"])
    sources = [FILES["PNG"], bytearray(FILES["PNG"]), memoryview(FILES["PNG"]), io.BytesIO(FILES["PNG"])]
    for source in sources:
        np.testing.assert_array_equal(image.as_image(source), smooth()[..., ::-1])
    with open(tmp_path / "x.png", "rb") as file:
        np.testing.assert_array_equal(image.as_image(file), smooth()[..., ::-1])
        assert error_of(image.as_image, file) == f"{tmp_path}/x.png: is empty; use a JPEG, PNG or BMP file"
    assert error_of(image.as_image, file).startswith(f"{tmp_path}/x.png: cannot be read (read of closed file)")
    assert error_of(image.as_image, io.StringIO("x")) == "image: is open as text; open it as 'rb'"
    assert error_of(image.as_image, b"dog.jpg").startswith("image of 7 bytes: is not an image that OpenCV can read")
    assert error_of(image.as_image, b"") == "image of 0 bytes: is empty; use a JPEG, PNG or BMP file"


@contextmanager
def server(content):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def test_urls_are_read(monkeypatch):
    with server(FILES["PNG"]) as address:
        assert error_of(image.as_image, f"{address}/x.png").startswith(f"{address}/x.png: ")
        monkeypatch.setenv("GPUDARKNET_ALLOW_PRIVATE_URLS", "1")
        np.testing.assert_array_equal(image.as_image(f"{address}/x.png"), smooth()[..., ::-1])
        assert image.read(f"HTTP{address[4:]}/x.png", 1).shape == (40, 60, 1)
    with server(b"<html>") as address:
        assert error_of(image.read, f"{address}/x.png?key=secret") == (
            f"{address}/x.png?key=secret: is an HTML page, probably the answer to a failed download; download the image again"
        )
