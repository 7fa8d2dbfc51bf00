"""The objects of an image, and the list of them that a detector returns: it shows, saves and converts itself.

Methods, arguments and keys of `Detections` have the names of ultralytics' Results.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import shutil
import sys
import tempfile
import webbrowser
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, SupportsIndex, overload
from urllib.parse import urlsplit

import numpy as np

from . import boxes
from .errors import DarknetError, DataError, ImageError
from .image import Image, as_image, draw, is_url, opencv, write
from .io.atomic import atomic_write, create_folder, unused_path
from .io.text import portable_name

PREVIEW = (320, 1024)  # pixels: limits of the longer side of the picture in a notebook
PREVIEW_ROWS = 20  # of the table in a notebook
REPR_ITEMS = 5
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # environment variables of Linux, one of which a viewer needs
NAME = "image.jpg"  # of an image that is not a file


@dataclass(frozen=True)
class Detection:
    """One object of one class in one image. confidence is 0 to 1.

    box: (left, top, width, height) in pixels, not clipped to the image. relative: (center x, center y, width, height) as
    fractions of the image's width and height, as in Darknet's label and JSON files.
    """

    label: str
    class_id: int
    confidence: float
    box: tuple[float, float, float, float]
    relative: tuple[float, float, float, float]


class Detections(list[Detection]):
    """The objects of one image, sorted by descending confidence: a list that also knows its image.

    `d[2:5]`, `d[d.confidence > 0.5]` and `d[[0, 3]]` are Detections of the same image; `d + e` is too, if e is of that image.

    names: the detector's labels, by class index. shape: (H, W) of the image in pixels. source: the image: an array or PIL image,
    which is referred to, not copied, or a path or URL, then also the attribute `path`. A file is read again when its pixels are
    needed. pixels: those of a URL or stream, uint8 (H, W, C) in RGB.
    """

    def __init__(
        self,
        items: Iterable[Detection] = (),
        *,
        names: Sequence[str] = (),
        shape: tuple[int, int] | None = None,
        source: Any = None,
        pixels: np.ndarray | None = None,
    ):
        super().__init__(items)
        self.names, self.shape = tuple(names), shape
        self.path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        self._file = None if is_url(source) else self.path
        self._version = _version(self._file)
        once = is_url(source) or hasattr(source, "read")  # what is read only once
        self._pixels = None if self._file else pixels if once else source

    # A list of one image's objects

    @overload
    def __getitem__(self, index: SupportsIndex) -> Detection: ...  # type: ignore[overload-overlap]  # of an array too
    @overload
    def __getitem__(self, index: slice | list[int] | list[bool] | np.ndarray | tuple[np.ndarray]) -> Detections: ...
    def __getitem__(self, index: Any) -> Detection | Detections:
        """Return one object, or the Detections of a slice, of a boolean mask or of indices."""
        if hasattr(index, "__index__") and np.ndim(index) == 0:
            return super().__getitem__(index)
        if isinstance(index, slice):
            return self._with(super().__getitem__(index))
        array: Any = index if isinstance(index, tuple) else np.asarray(index, None if len(index) else int)
        return self._with(list.__getitem__(self, i) for i in np.arange(len(self))[array].ravel().tolist())

    def __add__(self, other: list[Any]) -> Detections:  # type: ignore[override]
        """Return the objects of both, without an image if `other` belongs to another one."""
        joined = self._with(super().__add__(other))
        if isinstance(other, Detections) and (
            (self.path, self.shape) != (other.path, other.shape) or self._pixels is not other._pixels
        ):
            return Detections(joined, names=self.names if self.names == other.names else ())
        return joined

    def copy(self) -> Detections:
        """Return a shallow copy."""
        return self._with(self)

    def _with(self, items: Iterable[Detection]) -> Detections:
        other = Detections(items)
        other.__dict__.update(self.__dict__)
        return other

    def __repr__(self) -> str:
        shown = [f"{d.label} {d.confidence:.2f} ({', '.join(f'{v:.0f}' for v in d.box)})" for d in self[:REPR_ITEMS]]
        more = [f"{len(self) - REPR_ITEMS} more"] if len(self) > REPR_ITEMS else []
        size = [f"{self.shape[1]} x {self.shape[0]}"] if self.shape else []
        path = [self._shown_path] if self.path else []
        return ", ".join([f"Detections([{', '.join(shown + more)}]", *path, *size]) + ")"

    # Arrays

    @property
    def xyxy(self) -> np.ndarray:
        """Return the boxes as (K, 4) left, top, right, bottom in pixels, not clipped to the image."""
        ltwh = np.array([d.box for d in self], np.float64).reshape(-1, 4)
        ltrb = np.concatenate([ltwh[:, :2], ltwh[:, :2] + ltwh[:, 2:]], axis=1)
        return np.clip(ltrb, np.finfo(np.float32).min, np.finfo(np.float32).max).astype(
            np.float32
        )  # JSON has no infinity

    @property
    def xywh(self) -> np.ndarray:
        """Return the boxes as (K, 4) center x, y, width, height in pixels."""
        ltwh = np.array([d.box for d in self], np.float64).reshape(-1, 4)
        return np.concatenate([ltwh[:, :2] + ltwh[:, 2:] / 2, ltwh[:, 2:]], axis=1).astype(np.float32)

    @property
    def xyxyn(self) -> np.ndarray:
        """Return the boxes as (K, 4) left, top, right, bottom, as fractions of the image."""
        return boxes.to_corners(self.xywhn)

    @property
    def xywhn(self) -> np.ndarray:
        """Return the boxes as (K, 4) center x, y, width, height, as fractions of the image: `relative` of each object."""
        return np.array([d.relative for d in self], np.float32).reshape(-1, 4)

    @property
    def confidence(self) -> np.ndarray:
        """Return the confidences (K,)."""
        return np.array([d.confidence for d in self], np.float32)

    @property
    def class_id(self) -> np.ndarray:
        """Return the class indices (K,)."""
        return np.array([d.class_id for d in self], int)

    # Pictures

    @property
    def image(self) -> Image:
        """The image, uint8 (H, W, 3) in RGB: the array that was given, or the file, read again.

        Raises ImageError if the file cannot be read or has changed, DataError if the pixels were not kept.
        """
        if self._file:
            if _version(self._file) not in (self._version, None):
                raise ImageError(f"{self._file}: has changed since it was read; detect its objects again")
            return as_image(self._file)
        if self._pixels is None:
            raise DataError(f"{self._shown_path or 'image'}: its pixels were not kept; pass keep=True to detect_stream")
        return as_image(self._pixels)

    def plot(self, conf: bool = True, line_width: int | None = None, labels: bool = True) -> Image:
        """Draw boxes and labels on a copy of the image -> uint8 (H, W, 3) in RGB; ultralytics returns BGR.

        conf, line_width, labels: as in `image.draw`. Raises the errors of `image`, and ImageError.
        """
        return draw(self.image, self, self.names, conf=conf, line_width=line_width, labels=labels)

    def show(self, conf: bool = True, line_width: int | None = None, labels: bool = True) -> None:
        """Show the result of `plot`: in a notebook below the cell, else as a temporary PNG file in the system's viewer.

        Does not wait for the viewer, which needs the file, so it stays in the folder for temporary files. Raises ImageError
        if there is no display.
        """
        ipython: Any = sys.modules.get("IPython")
        if ipython and hasattr(ipython.get_ipython(), "kernel"):
            png = _encode(self._preview(conf, line_width, labels), ".png")
            ipython.display.display({"image/png": png}, raw=True)
            return
        problem = ImageError("show: there is no display or no viewer; use save('annotated.jpg')")
        if sys.platform == "linux" and not any(os.environ.get(name) for name in DISPLAYS):
            raise problem
        path = Path(tempfile.mkdtemp(prefix="gpudarknet-")) / f"{Path(self._file_name).stem}.png"
        write(path, self.plot(conf, line_width, labels))
        if not webbrowser.open(path.as_uri()):
            shutil.rmtree(path.parent)
            raise problem

    def save(
        self,
        filename: str | os.PathLike[str] | None = None,
        conf: bool = True,
        line_width: int | None = None,
        labels: bool = True,
    ) -> str:
        """Write the result of `plot` to an image file and return its path.

        filename: replaced if it exists; its folder is created. None: results_NAME of the image in the working folder, with
        a number if that exists (results_dog.jpg, results_dog2.jpg). Raises ImageError, or DataError for the folder.
        """
        plotted = self.plot(conf, line_width, labels)
        if filename is not None:
            create_folder(Path(filename).parent, DataError)
            write(filename, plotted)
            return os.fspath(filename)
        name = f"results_{self._file_name}"
        path = Path(name if opencv().haveImageWriter(name) else Path(name).with_suffix(".jpg"))
        with unused_path(path, DataError) as unused:
            write(unused, plotted)
        return str(unused)

    def save_crop(self, save_dir: str | os.PathLike[str], file_name: str | os.PathLike[str] | None = None) -> list[str]:
        """Write each object's part of the image to save_dir/LABEL/NAME.jpg and return the paths.

        NAME is that of file_name, or of the image; if the file exists, a number is added (dog.jpg, dog2.jpg). Boxes outside
        the image are left out. Raises ImageError, or DataError for the folder.
        """
        stem, pixels = Path(file_name or self._file_name).stem, self.image
        paths = []
        for d in self:
            part = crop(pixels, d.box)
            if part.size:
                folder = Path(save_dir) / (portable_name(d.label) or f"class {d.class_id}")
                create_folder(folder, DataError)
                with unused_path(folder / f"{stem}.jpg", DataError) as path:
                    write(path, part)
                paths.append(str(path))
        return paths

    def _preview(self, conf: bool = True, line_width: int | None = None, labels: bool = True) -> Image:
        """Return `plot` at the size of a notebook, with lines and text in proportion to that."""
        cv2, img = opencv(), self.image
        H, W = img.shape[:2]
        scale = np.clip(max(H, W), *PREVIEW) / max(H, W)
        if scale != 1:
            size = max(1, round(W * scale)), max(1, round(H * scale))
            img = cv2.resize(img, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        scaled = [replace(d, box=tuple(scale * v for v in d.box)) for d in self]
        return draw(img, scaled, self.names, conf=conf, line_width=line_width, labels=labels)

    def _repr_png_(self) -> bytes | None:
        """Return the picture that a notebook shows, or None without an image."""
        try:
            return _encode(self._preview(), ".png")
        except DarknetError:
            return None

    def _repr_html_(self) -> str:
        """Return the picture, if there is an image, and a table: a notebook prefers HTML to a picture."""
        parts = []
        with suppress(DarknetError):
            data = base64.b64encode(_encode(self._preview(), ".jpg")).decode()
            parts.append(
                f'<img src="data:image/jpeg;base64,{data}" style="max-width: 100%" alt="{html.escape(repr(self))}">'
            )
        cells = (
            f"<td>{html.escape(d.label)}</td><td>{d.confidence:.2f}</td>" + "".join(f"<td>{v:.0f}</td>" for v in d.box)
            for d in self[:PREVIEW_ROWS]
        )
        head = "".join(f"<th>{name}</th>" for name in ("name", "confidence", "left", "top", "width", "height"))
        more = f"<p>and {len(self) - PREVIEW_ROWS} more</p>" if len(self) > PREVIEW_ROWS else ""
        rows = "".join(f"<tr>{row}</tr>" for row in cells)
        parts.append(f"<table><tr>{head}</tr>{rows}</table>{more}" if self else "<p>no objects</p>")
        return "\n".join(parts)

    @property
    def _shown_path(self) -> str:
        """The path, or the URL without passwords, for a message; "" without one."""
        if self._file or not self.path:
            return self.path or ""
        from .io.http import printable

        return printable(self.path)

    @property
    def _file_name(self) -> str:
        """The name of the image's file, without folders."""
        return portable_name(Path(self._file or urlsplit(self.path or "").path).name) or NAME

    # Text and tables

    def save_txt(self, txt_file: str | os.PathLike[str], save_conf: bool = False) -> str:
        """Write a label file, `class x y w h [confidence]` per object, as fractions of the image, and return its path.

        The file is replaced (ultralytics appends to it), its folder created; no objects give an empty file. Raises DataError.
        """
        create_folder(Path(txt_file).parent, DataError)
        with atomic_write(txt_file, DataError) as tmp:
            tmp.write_text(self.label_text(save_conf), encoding="utf-8")
        return os.fspath(txt_file)

    def label_text(self, save_conf: bool = False) -> str:
        """Return what `save_txt` writes."""
        lines = [
            " ".join([str(d.class_id), *(f"{v:.6f}" for v in (*d.relative, *([d.confidence] if save_conf else [])))])
            for d in self
        ]
        return "".join(f"{line}\n" for line in lines)

    def summary(self, normalize: bool = False, decimals: int = 5) -> list[dict[str, Any]]:
        """Return a dict per object: name, class, confidence, box with x1, y1, x2, y2 in pixels, not clipped to the image.

        normalize: boxes as fractions of the image. decimals: to which confidences and coordinates are rounded.
        """
        corners = (self.xyxyn if normalize else self.xyxy).astype(float).round(decimals).tolist()
        return [
            {
                "name": d.label,
                "class": d.class_id,
                "confidence": round(d.confidence, decimals),
                "box": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
            }
            for d, box in zip(self, corners, strict=True)
        ]

    def to_df(self, normalize: bool = False, decimals: int = 5) -> Any:
        """Return `summary` as a DataFrame of polars, or of pandas without polars, with the columns name, class, confidence, box.

        Raises DataError if neither is installed.
        """
        objects = self.summary(normalize, decimals)
        try:
            import polars
        except ImportError:
            try:
                import pandas
            except ImportError:
                raise DataError("to_df: neither polars nor pandas is installed; pip install polars") from None
            return pandas.DataFrame(objects, columns=["name", "class", "confidence", "box"])
        box = polars.Struct(dict.fromkeys(("x1", "y1", "x2", "y2"), polars.Float64))
        schema = {"name": polars.String, "class": polars.Int64, "confidence": polars.Float64, "box": box}
        return polars.DataFrame(objects, schema=schema)

    def to_csv(self, normalize: bool = False, decimals: int = 5) -> str:
        """Return `summary` as CSV: name, class, confidence, x1, y1, x2, y2."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["name", "class", "confidence", "x1", "y1", "x2", "y2"])
        for one in self.summary(normalize, decimals):
            table.writerow([one["name"], one["class"], one["confidence"], *one["box"].values()])
        return text.getvalue()

    def to_json(self, normalize: bool = False, decimals: int = 5) -> str:
        """Return `summary` as JSON."""
        return json.dumps(self.summary(normalize, decimals), indent=2, ensure_ascii=False)

    def to_supervision(self) -> Any:
        """Convert to supervision.Detections, with data["class_name"]. Raises DataError if supervision is not installed."""
        try:
            import supervision
        except ImportError:
            raise DataError(
                "to_supervision: the package supervision is not installed; pip install supervision"
            ) from None
        names = np.array([d.label for d in self], str)
        return supervision.Detections(
            xyxy=self.xyxy, confidence=self.confidence, class_id=self.class_id, data={"class_name": names}
        )


def crop(pixels: Image, box: Sequence[float]) -> Image:
    """Return the part of an image (H, W, C) in a box (left, top, width, height), clipped to the image, maybe empty."""
    H, W = pixels.shape[:2]
    left, top, width, height = box
    x0, x1 = (int(v) for v in np.clip((left, left + width), 0, W))
    y0, y1 = (int(v) for v in np.clip((top, top + height), 0, H))
    return pixels[y0:y1, x0:x1]


def _version(path: str | None) -> tuple[int, int] | None:
    """Return what changes when a file is written, or None if there is none."""
    if path is None:
        return None
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null character in the path
        return None
    return stat.st_size, stat.st_mtime_ns


def _encode(img: Image, suffix: str) -> bytes:
    return opencv().imencode(suffix, np.ascontiguousarray(img[:, :, ::-1]))[1].tobytes()
