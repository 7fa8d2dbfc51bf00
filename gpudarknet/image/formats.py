"""Formats of image files: which are read, and what a header says before anything is decoded.

A decoder allocates what the header claims, and a file of 700 bytes can claim gigabytes. So a file's format is decided by its
first bytes, from the table FORMATS, and its size is read from its header and limited (`check`). A new format is a line there.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..errors import ImageError

MAX_PIXELS = 2**28  # 0.8 GB as RGB, twice that while it is decoded; the variable of OpenCV's own limit replaces it
LIMIT_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
HEAD = 64  # bytes that decide a file's format
MAX_PIXEL_BYTES = 16  # of a file, for each pixel that it may have: four float32

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Format:
    """A format that is read: its name, the usual suffixes and the start of its files, and how to read a size from them.

    A file of n bytes may claim `free` + `per_byte` x n pixels.
    """

    name: str
    suffixes: str
    magic: re.Pattern[bytes]
    size: Callable[[bytes], Size]  # raises struct.error, IndexError, ValueError or OverflowError
    free: int = 2**26  # one color compresses to almost nothing
    per_byte: int = 1024


AGAIN = "download or save the file again"


def identify(head: bytes, name: str) -> Format:
    """Return the format of a file that starts with these HEAD bytes; `name` is used in messages. Raises ImageError."""
    for each in FORMATS:
        if each.magic.match(head):
            return each
    for magic, answer in OTHERS:
        if magic.match(head):
            raise ImageError(f"{name}: {answer}")
    names = list(dict.fromkeys(each.name for each in FORMATS))
    raise ImageError(f"{name}: is not an image that OpenCV can read; use {', '.join(names[:-1])} or {names[-1]}")


def max_pixels() -> int:
    """Return how many pixels an image may have: MAX_PIXELS, or what the user has set for OpenCV."""
    given = os.environ.get(LIMIT_VARIABLE, "")
    return int(given) if given.isdecimal() else MAX_PIXELS


def check_pixels(name: str, W: int, H: int, plausible: float = float("inf"), length: int = 0) -> None:
    """Raise ImageError if a size is 0, above `max_pixels`, or above what a file of `length` bytes can mean."""
    if W < 1 or H < 1:
        raise ImageError(f"{name}: claims to have {W} x {H} pixels; use an image that has some")
    if W * H > max_pixels():
        why, remedy = f"more than {max_pixels()}", "scale it down"
    elif W * H > plausible and not os.environ.get(LIMIT_VARIABLE):
        why, remedy = f"too many for a file of {length} bytes", "download or save it again"
    else:
        return
    raise ImageError(f"{name}: claims to have {W} x {H} pixels, {why}; {remedy}, or set {LIMIT_VARIABLE}")


def check(data: bytes, name: str) -> Format:
    """Return the format of a file.

    Raises ImageError if it is empty, of no format of the table, has no size or one that is too large, or is a damaged PNG file.
    """
    if not data:
        raise ImageError(f"{name}: is empty; use a JPEG, PNG or BMP file")
    form = identify(data[:HEAD], name)
    if form.name == "PNG":
        _check_chunks(data, name)
    try:
        W, H = form.size(data)
    except (struct.error, IndexError, ValueError, OverflowError):
        raise ImageError(f"{name}: this {form.name} file has no size (truncated or damaged); {AGAIN}") from None
    check_pixels(name, W, H, form.free + form.per_byte * len(data), len(data))
    return form


# JPEG

JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # not a stuffed byte, fill byte or restart
SIZED = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
JPEG_PIXELS_PER_BYTE = 512  # at most: a block of 8 x 8 takes a bit


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, start of its content), up to the end of the image; skip what is between segments, as libjpeg does."""
    at = 2
    while match := JPEG_MARKER.search(data, at):
        marker, at = match[1][0], match.end()
        if marker in (0x01, 0xD8):  # without content
            continue
        yield marker, at + 2
        if marker == END_OF_IMAGE:
            return
        at += int.from_bytes(data[at : at + 2], "big")


def _jpeg_size(data: bytes) -> Size:
    sizes: list[Size] = []
    for marker, at in _jpeg_segments(data):
        if marker == START_OF_SCAN:
            return _largest(sizes)
        if marker in SIZED:
            H, W = struct.unpack_from(">HH", data, at + 1)
            sizes.append((W, H))
    raise ValueError  # no pixels


def is_truncated_jpeg(data: bytes) -> bool:
    """Return whether a JPEG file lacks its end, or more than can be between its begin and its end."""
    W, H = _jpeg_size(data)
    if W * H > JPEG_PIXELS_PER_BYTE * len(data):
        return True
    return not data.endswith(b"\xff\xd9") and all(marker != END_OF_IMAGE for marker, _ in _jpeg_segments(data))


# PNG


def _png_size(data: bytes) -> Size:
    if data[12:16] != b"IHDR":
        raise ValueError
    W, H = struct.unpack_from(">II", data, 16)
    return W, H


def _check_chunks(data: bytes, name: str) -> None:
    """Raise ImageError if a PNG file is truncated or damaged: libpng refuses it too, but prints, or reads it partly."""
    at, kind = 8, b""
    while kind != b"IEND":  # a chunk: content length, type, content, CRC of type and content
        kind, end = data[at + 4 : at + 8], at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            raise ImageError(f"{name}: is truncated; {AGAIN}")
        critical = not kind[0] & 0x20 and kind != b"IEND"  # decoders may ignore ancillary chunks
        if critical and zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ImageError(f"{name}: is damaged at byte {at}; {AGAIN}")
        at = end + 4


# ISO boxes: JPEG 2000, AVIF

BOX_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0}  # -> length of what precedes their boxes


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield (type, start of content) of the boxes of a file, and of those in containers."""
    spans = [(0, len(data))]
    while spans:
        at, stop = spans.pop()
        while at + 8 <= stop:
            length, kind = struct.unpack_from(">I4s", data, at)
            start = at + 8
            if length == 1:
                (length,) = struct.unpack_from(">Q", data, start)
                start += 8
            end = min(at + length, stop) if length else stop
            if end < start:
                break
            yield kind, start
            if kind in BOX_CONTAINERS:
                spans.append((start + BOX_CONTAINERS[kind], end))
            at = end


def _jpeg2000_size(data: bytes) -> Size:
    start = 0 if data.startswith(b"\xff\x4f") else next((at for kind, at in _boxes(data) if kind == b"jp2c"), len(data))
    if data[start : start + 4] != b"\xff\x4f\xff\x51":  # start of codestream, SIZ
        raise ValueError
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    (components,) = struct.unpack_from(">H", data, start + 40)
    if components > 4:  # OpenCV would decode them all, and then refuse
        raise ValueError
    return right - left, bottom - top


def _avif_size(data: bytes) -> Size:
    sizes = []
    for kind, at in _boxes(data):
        if kind == b"ispe":
            W, H = struct.unpack_from(">II", data, at + 4)
            sizes.append((W, H))
        elif kind == b"tkhd":  # a sequence's, in 1/65536
            W, H = struct.unpack_from(">II", data, at + (88 if data[at] else 76))
            sizes.append((W >> 16, H >> 16))
    return _largest(sizes)


# Others


def _bmp_size(data: bytes) -> Size:
    header, W, H = struct.unpack_from("<Iii", data, 14)
    if header == 12:  # OS/2
        W, H = struct.unpack_from("<HH", data, 18)
    return W, abs(H)  # negative: from the top


def _webp_size(data: bytes) -> Size:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind != b"VP8 ":
        raise ValueError
    W, H = struct.unpack_from("<HH", data, 26)
    return W & 0x3FFF, H & 0x3FFF


def _gif_size(data: bytes) -> Size:
    W, H = struct.unpack_from("<HH", data, 6)
    return W, H


TIFF_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}
TIFF_SIZES = {256: "W", 257: "H", 322: "tile W", 323: "tile H"}


def _tiff_size(data: bytes) -> Size:
    """Return the size of the first page, or of its tiles if they are larger."""
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4].strip(b"\0") == b"+":  # BigTIFF
        (at,) = struct.unpack_from(order + "Q", data, 8)
        (count,) = struct.unpack_from(order + "Q", data, at)
        first, entry = at + 8, order + "HHQ"
    else:
        (at,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, at)
        first, entry = at + 2, order + "HHI"
    head = struct.calcsize(entry)
    step = 20 if head == 12 else 12
    values: dict[str, int] = {}
    for at in range(first, min(first + step * count, len(data)), step):
        tag, kind, _ = struct.unpack_from(entry, data, at)
        if tag in TIFF_SIZES and kind in TIFF_INTEGERS:
            (value,) = struct.unpack_from(order + TIFF_INTEGERS[kind], data, at + head)
            values[TIFF_SIZES[tag]] = max(value, values.get(TIFF_SIZES[tag], 0))
    if "W" not in values or "H" not in values:
        raise ValueError
    return _largest([(values["W"], values["H"]), (values.get("tile W", 0), values.get("tile H", 0))])


MAX_TEXT_HEADER = 1 << 16  # bytes
GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"  # white space and comments
PNM_HEADER = re.compile(rb"P[1-6]" + GAP + rb"(\d{1,10})" + GAP + rb"(\d{1,10})\s")
PAM_LINE = re.compile(rb"^\s*(WIDTH|HEIGHT)\s+(\d{1,10})\s", re.MULTILINE)
PFM_HEADER = re.compile(rb"P[Ff]\s+(\d{1,10})\s+(\d{1,10})\s")
HDR_HEADER = re.compile(rb"\nFORMAT=32-bit_rle_rgbe\n\n-Y\s+(\d{1,10})\s+\+X\s+(\d{1,10})\s")


def _matched_size(pattern: re.Pattern[bytes], rows_first: bool = False) -> Callable[[bytes], Size]:
    def size(data: bytes) -> Size:
        match = pattern.search(data[:MAX_TEXT_HEADER])
        if match is None:
            raise ValueError
        a, b = int(match[1]), int(match[2])
        return (b, a) if rows_first else (a, b)

    return size


def _pam_size(data: bytes) -> Size:
    header = data[: data.index(b"ENDHDR", 0, MAX_TEXT_HEADER)]
    numbers = {key: int(number) for key, number in PAM_LINE.findall(header)}
    if len(numbers) < 2 or len(PAM_LINE.findall(header)) > 2:
        raise ValueError
    return numbers[b"WIDTH"], numbers[b"HEIGHT"]


def _sun_size(data: bytes) -> Size:
    W, H = struct.unpack_from(">II", data, 4)
    return W, H


def _exr_size(data: bytes) -> Size:
    sizes, at = [], 8
    while data[at]:  # an attribute: its name, its type, the length of its value, the value
        end_of_name = data.index(b"\0", at)
        end_of_type = data.index(b"\0", end_of_name + 1)
        (length,) = struct.unpack_from("<I", data, end_of_type + 1)
        if data[at:end_of_name] in (b"dataWindow", b"displayWindow"):
            left, top, right, bottom = struct.unpack_from("<iiii", data, end_of_type + 5)
            sizes.append((right - left + 1, bottom - top + 1))
        at = end_of_type + 5 + length
    return _largest(sizes)


def _largest(sizes: list[Size]) -> Size:
    """Return the size of most pixels. Raises ValueError if there is none."""
    return max(sizes, key=lambda size: size[0] * size[1])


def _starts(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)


COSTLY = {"free": 2**24, "per_byte": 256}  # 16 bytes per pixel while they are decoded

FORMATS = (
    Format(
        "JPEG",
        ".jpg .jpeg .jpe .jfif .mpo",
        _starts(rb"\xff\xd8\xff"),
        _jpeg_size,
        free=2**24,
        per_byte=JPEG_PIXELS_PER_BYTE,
    ),
    Format("PNG", ".png", _starts(rb"\x89PNG\r\n\x1a\n"), _png_size),
    Format("BMP", ".bmp .dib", _starts(rb"BM"), _bmp_size),
    Format("WebP", ".webp", _starts(rb"RIFF....WEBP"), _webp_size),
    Format("TIFF", ".tif .tiff", _starts(rb"II[*+]\0|MM\0[*+]"), _tiff_size),
    Format("GIF", ".gif", _starts(rb"GIF8[79]a"), _gif_size),
    Format("AVIF", ".avif", _starts(rb"....ftypavi[fs]|....ftyp.{4,44}avi[fs]"), _avif_size, **COSTLY),
    Format("JPEG 2000", ".jp2 .j2k", _starts(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"), _jpeg2000_size, **COSTLY),
    Format("PNM", ".pbm .pgm .ppm .pnm .pxm", _starts(rb"P[1-6]\s"), _matched_size(PNM_HEADER)),
    Format("PAM", ".pam", _starts(rb"P7\s"), _pam_size),
    Format("PFM", ".pfm", _starts(rb"P[Ff]\s"), _matched_size(PFM_HEADER)),
    Format("HDR", ".hdr .pic", _starts(rb"#\?(RADIANCE|RGBE)"), _matched_size(HDR_HEADER, rows_first=True)),
    Format("Sun raster", ".sr .ras", _starts(rb"\x59\xa6\x6a\x95"), _sun_size),
    Format("OpenEXR", ".exr", _starts(rb"\x76\x2f\x31\x01"), _exr_size),
)
SUFFIXES = frozenset(" ".join(each.suffixes for each in FORMATS).split())

OTHERS = (  # what is often found under the name of an image
    (
        _starts(rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|!--)"),
        "is an HTML page, probably the answer to a failed download; download the image again",
    ),
    (_starts(rb"version https://git-lfs"), "is a Git LFS pointer, not the image; run `git lfs pull`"),
    (_starts(rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|svg)"), "is XML or SVG, not pixels; convert it to PNG"),
    (_starts(rb"....ftyp(hei|hev|mif|msf)"), "is HEIC, which OpenCV cannot read; convert it to JPEG"),
    (_starts(rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI "), "is a video; run `gpudarknet detector demo` on it"),
    (_starts(rb"%PDF"), "is a PDF document; convert it to PNG"),
    (_starts(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf"), "is an archive; unpack it"),
)
