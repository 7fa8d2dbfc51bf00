"""The list of an image's objects: its operations, pictures, files, tables, and what a notebook shows."""

from __future__ import annotations

import base64
import copy
import csv
import functools
import http.server
import io
import json
import os
import pickle
import sys
import threading
import webbrowser
from pathlib import Path

import cv2
import nbclient
import nbformat
import numpy as np
import pandas
import pytest
import tiny

import gpudarknet as gd
from gpudarknet import Detection, Detections, image
from gpudarknet.data import read_labels
from gpudarknet.errors import DataError, ImageError

NAMES = ("cat", "traffic light", "dog")
H, W = 40, 80


def detection(class_id: int, confidence: float, box: tuple[float, float, float, float]) -> Detection:
    left, top, width, height = box
    relative = ((left + width / 2) / W, (top + height / 2) / H, width / W, height / H)
    return Detection(NAMES[class_id], class_id, confidence, box, relative)


ITEMS = [
    detection(2, 0.9, (4.0, 2.0, 20.0, 10.0)),
    detection(0, 0.75, (-10.0, 20.0, 30.0, 40.0)),  # over the left and the lower edge
    detection(1, 0.3, (50.0, 5.0, 16.0, 30.0)),
]


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


@pytest.fixture
def found(pixels) -> Detections:
    return Detections(ITEMS, names=NAMES, shape=(H, W), source=pixels)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def detector(tmp_path):
    tiny.files(tmp_path)
    return gd.Detector(tmp_path / "tiny.cfg", tmp_path / "tiny.weights", ("cat", "dog"), "numpy")


# A list


def test_it_is_a_list(found):
    assert found == ITEMS and isinstance(found, list) and found[-1] is ITEMS[-1] and found[np.int64(1)] is ITEMS[1]
    assert sorted(found, key=lambda d: d.label)[0].label == "cat" and ITEMS[1] in found
    found.sort(key=lambda d: d.label)
    assert [d.label for d in found] == ["cat", "dog", "traffic light"] and found.names == NAMES


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (lambda d: d.confidence > 0.5, [0, 1]),
        (lambda d: [one.label == "dog" for one in d], [0]),
        (lambda d: d.class_id == 7, []),
        (lambda d: np.argsort(d.class_id), [1, 2, 0]),
        (lambda d: np.nonzero(d.class_id), [0, 2]),
        (lambda d: np.argwhere(d.class_id), [0, 2]),
        ([2, -3], [2, 0]),
        ([], []),
    ],
)
def test_parts_are_detections_of_the_same_image(found, pixels, index, kept):
    part = found[index(found) if callable(index) else index]
    assert type(part) is Detections and part == [ITEMS[i] for i in kept]
    assert (part.names, part.shape, part.path) == (NAMES, (H, W), None) and part.image.base is pixels


def test_a_mask_of_another_length_is_an_index_error(found):
    for index in ([True, False], [3], "cat"):
        with pytest.raises(IndexError):
            found[index]


def test_no_detections():
    none = Detections()
    assert none[none.confidence > 0.5] == [] and none.summary() == [] and json.loads(none.to_json()) == []
    for boxes in (none.xyxy, none.xywh, none.xyxyn, none.xywhn):
        assert boxes.shape == (0, 4)
    assert none.to_csv() == "name,class,confidence,x1,y1,x2,y2\n" and none.path is none.shape is None
    assert repr(none) == "Detections([])" and "no objects" in none._repr_html_() and none._repr_png_() is None


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, Detections.copy, lambda d: pickle.loads(pickle.dumps(d))]
)
def test_copies_keep_the_attributes(found, duplicate):
    other = duplicate(found)
    assert type(other) is Detections and other is not found and other == found
    assert (other.names, other.shape) == (NAMES, (H, W)) and (other.image == found.image).all()
    other.pop()
    assert len(found) == 3


def test_sums(found, pixels):
    both = found[:1] + found[2:]
    assert type(both) is Detections and both == [ITEMS[0], ITEMS[2]] and both.image.base is pixels
    assert type(found + ITEMS[:1]) is Detections and (found + ITEMS[:1]).image.base is pixels
    other = Detections(ITEMS[:1], names=NAMES, shape=(H, W), source=pixels.copy())
    mixed = found + other
    assert mixed.confidence.tolist() == pytest.approx([0.9, 0.75, 0.3, 0.9]) and mixed.names == NAMES
    assert mixed.shape is None
    with pytest.raises(DataError):
        _ = mixed.image  # of which of the two?


def test_repr(found, tmp_path):
    start = "Detections([dog 0.90 (4, 2, 20, 10), cat 0.75 (-10, 20, 30, 40), traffic light 0.30 (50, 5, 16, 30)"
    assert repr(found) == f"{start}], 80 x 40)"
    many = Detections([*ITEMS, *ITEMS, *ITEMS], shape=(H, W), source="a/photo.jpg")
    assert repr(many).startswith(start) and repr(many).endswith(", 4 more], a/photo.jpg, 80 x 40)")


def test_boxes_as_arrays(found):
    assert found.xyxy.tolist() == [[4, 2, 24, 12], [-10, 20, 20, 60], [50, 5, 66, 35]]
    assert found.xywh.tolist() == [[14, 7, 20, 10], [5, 40, 30, 40], [58, 20, 16, 30]]
    np.testing.assert_allclose(found.xyxyn * [W, H, W, H], found.xyxy, atol=1e-5)
    np.testing.assert_allclose(found.xywhn * [W, H, W, H], found.xywh, atol=1e-5)
    for values in (found.xyxy, found.xywh, found.xyxyn, found.xywhn, found.confidence):
        assert values.dtype == np.float32


# Where the pixels come from


def test_a_detector_refers_to_arrays_and_reads_files_again(detector, tmp_path):
    shown, path = tiny.image(), tmp_path / "tiny.png"
    for result in (detector.detect(shown), detector.detect_batch(iter([shown]))[0]):
        assert (
            result.image.base is shown
            and result.path is None
            and result.shape == (32, 64)
            and result.names == ("cat", "dog")
        )
    for source in (path, str(path)):
        result = detector.detect(source)
        assert result.path == str(path) and (result.image == shown).all() and result.image is not result.image
    (file, array) = detector.detect_stream([path, shown])
    assert (file.image == shown).all() and file == array
    with pytest.raises(DataError) as e:
        array.plot()
    assert str(e.value) == "image: its pixels were not kept; pass keep=True to detect_stream"
    assert next(detector.detect_stream([shown], keep=True)).image.base is shown


def test_pictures_of_other_types(detector):
    PIL = pytest.importorskip("PIL.Image")
    shown = tiny.image()
    assert (detector.detect(PIL.fromarray(shown)).image == shown).all()
    file = cv2.imencode(".png", shown[..., ::-1])[1].tobytes()
    for source in (file, io.BytesIO(file)):  # the second can be read only once
        result = detector.detect(source)
        assert (result.image == shown).all() and (result.plot().shape, result.path) == (shown.shape, None)
    gray = detector.detect(shown[:, :, 0])
    assert gray.image.shape == (32, 64, 3) and gray.plot().shape == (32, 64, 3)


def test_contents_of_files(detector, tmp_path):
    content, shown = (tmp_path / "tiny.png").read_bytes(), tiny.image()
    for source in (content, io.BytesIO(content)):
        result = detector.detect(source)
        assert (result.image == shown).all() and (result.plot() == result.plot()).all()
        assert (pickle.loads(pickle.dumps(result)).image == shown).all()


def test_a_one_channel_detector_keeps_the_colors(tmp_path):
    tiny.files(tmp_path)
    (tmp_path / "gray.cfg").write_text(tiny.CFG.replace("channels=3", "channels=1"))
    detector = gd.Detector(tmp_path / "gray.cfg", backend="numpy")
    assert detector.detect(tiny.image()).image.tolist() == tiny.image().tolist()


def test_pixels_of_a_url_are_kept(pixels):
    result = Detections(ITEMS, names=NAMES, shape=(H, W), source="http://host/folder/a.png?size=3", pixels=pixels)
    assert result.image.base is pixels and result.path == "http://host/folder/a.png?size=3"
    assert result._file_name == "a.png" and repr(Detections(source="https://me:secret@host/a.png")).count("secret") == 0
    assert repr(Detections(source="/me@home/a.png")) == "Detections([], /me@home/a.png)"
    with pytest.raises(DataError) as e:
        _ = Detections(source="http://host/a.png").image
    assert str(e.value) == "http://host/a.png: its pixels were not kept; pass keep=True to detect_stream"


def test_a_url_is_downloaded_once(detector, tmp_path, monkeypatch):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    asked: list[str] = []
    monkeypatch.setenv("GPUDARKNET_ALLOW_PRIVATE_URLS", "1")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            result = detector.detect(f"http://127.0.0.1:{server.server_port}/tiny.png")
        finally:
            server.shutdown()
    assert asked == ["/tiny.png"] and (result.image == tiny.image()).all()
    assert result.save(tmp_path / "x.png") and result.path.endswith("/tiny.png")


def test_a_file_that_changed_or_vanished(detector, tmp_path):
    path = tmp_path / "tiny.png"
    result = detector.detect(path)
    os.utime(path, (1, 1))
    with pytest.raises(ImageError) as e:
        result.plot()
    assert str(e.value) == f"{path}: has changed since it was read; detect its objects again"
    assert result._repr_png_() is None and "<img" not in result._repr_html_() and "<table>" in result._repr_html_()
    path.unlink()
    with pytest.raises(ImageError) as e:
        result.save(tmp_path / "x.png")
    assert str(e.value) == f"{path}: no such file; check the path"
    assert result.summary()[0]["name"] == "cat" and not (tmp_path / "x.png").exists()


# Pictures


def test_plot(found, pixels):
    before = pixels.copy()
    plotted = found.plot()
    assert (pixels == before).all() and plotted.shape == (H, W, 3) and plotted.dtype == np.uint8
    assert (plotted == image.draw(pixels, ITEMS, NAMES)).all()
    thick = found.plot(line_width=5, labels=False)
    dog = image.color(2, len(NAMES))
    assert {tuple(p) for p in thick[4:10, 4 - 1 : 4 + 2].reshape(-1, 3).tolist()} == {dog}  # red, green, blue
    thin = found.plot(line_width=1, labels=False)
    assert (thin[3, 6:20] == pixels[3, 6:20]).all() and tuple(thin[2, 10].tolist()) == dog
    assert (found.plot(conf=False) != plotted).any() and (thin != found.plot(line_width=1)).any()


@pytest.mark.parametrize("width", [0, -1, 40000, float("nan")])
def test_line_widths_that_cannot_be(found, width):
    with pytest.raises(ImageError) as e:
        found.plot(line_width=width)
    assert str(e.value) == f"line_width {width}: must be 1 to 32767 pixels, or None"


def test_classes_of_one_box_share_a_label(pixels, monkeypatch):
    texts = []
    monkeypatch.setattr(cv2, "putText", lambda canvas, text, *more: texts.append(text))
    box = (10.0, 10.0, 30.0, 20.0)
    two = Detections([detection(0, 0.4, box), detection(2, 0.8, box)], names=NAMES, source=pixels)
    drawn = two.plot()
    assert tuple(drawn[20, 10].tolist()) == image.color(2, len(NAMES))
    two.plot(conf=False)
    assert texts == ["dog 80%, cat 40%", "dog, cat"]


def test_save(found, here):
    assert found.save("new/folder/x.png") == "new/folder/x.png"
    assert (image.read("new/folder/x.png") == found.plot()).all()
    found.save(Path("new/folder/x.png"), labels=False)  # a name that is given is replaced
    assert (image.read("new/folder/x.png") == found.plot(labels=False)).all()
    assert [found.save(), found.save()] == ["results_image.jpg", "results_image2.jpg"]
    with pytest.raises(ImageError):
        found.save("x.doc")
    Path("file").write_text("")
    with pytest.raises(DataError) as e:
        found.save("file/x.png")
    assert str(e.value) == "file: cannot create this folder (File exists); choose another path"


def test_the_default_name_is_that_of_the_image(pixels, here):
    image.write("photo.png", pixels)
    assert Detections(ITEMS, names=NAMES, source="photo.png").save() == "results_photo.png"
    url = Detections(ITEMS, names=NAMES, source="http://host/get?id=3", pixels=pixels)
    assert url.save() == "results_get.jpg"
    if sys.platform == "linux":  # names of files are UTF-8 or UTF-16 elsewhere; OpenCV crashes on others
        name = os.fsdecode(b"caf\xe9.png")
        image.write(name, pixels)
        assert Detections(ITEMS, names=NAMES, source=name).save() == "results_caf.png"


def test_save_crop(found, pixels, here):
    (here / "crops/dog").mkdir(parents=True)
    (here / "crops/dog/image.jpg").write_text("mine")
    outside = detection(0, 0.1, (W + 5.0, 0.0, 10.0, 10.0))
    found.append(outside)
    paths = found.save_crop("crops")
    assert [Path(path).as_posix() for path in paths] == [
        "crops/dog/image2.jpg",
        "crops/cat/image.jpg",
        "crops/traffic light/image.jpg",
    ]
    assert (here / "crops/dog/image.jpg").read_text() == "mine"
    assert image.read(paths[1]).shape == (20, 20, 3)  # clipped to the image
    assert image.read(paths[2]).shape == (30, 16, 3)
    assert abs(image.read(paths[2]).mean() - pixels[5:35, 50:66].mean()) < 3
    assert found[:1].save_crop(here / "crops", file_name="street.png") == [str(here / "crops/dog/street.jpg")]


def test_crops_of_equal_names_are_numbered(found, here):
    names = [Path(path).name for _ in range(9) for path in found[:1].save_crop("crops")]
    assert names == ["image.jpg", *(f"image{n}.jpg" for n in range(2, 10))]
    Path("crops/dog/image5.jpg").unlink()
    before = set(os.listdir("crops/dog"))
    (path,) = found[:1].save_crop("crops")
    assert Path(path).name not in before


def test_labels_that_are_no_file_names(pixels, here):
    labels = ("../up", "a/b", "con:", "..", "")
    items = [Detection(label, i, 0.5, ITEMS[0].box, ITEMS[0].relative) for i, label in enumerate(labels)]
    paths = Detections(items, names=labels, source=pixels).save_crop("crops")
    assert [Path(path).parent.as_posix() for path in paths] == [
        "crops/-up", "crops/a-b", "crops/con-", "crops/class 3", "crops/class 4",
    ]  # fmt: skip


def test_a_failed_write_leaves_no_empty_file(found, here, monkeypatch):
    def full(*_args):
        raise ImageError("x: cannot be written (No space left on device); choose another path")

    monkeypatch.setattr(gd.detections, "write", full)
    for save in (found.save, lambda: found.save_crop("crops")):
        with pytest.raises(ImageError):
            save()
    assert [path for path in here.rglob("*") if path.is_file()] == []


def test_show_opens_the_viewer(found, monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(gd.detections.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", lambda uri: opened.append(uri) or True)
    found.show(labels=False)
    (path,) = tmp_path.glob("*/image.png")
    assert opened == [path.as_uri()] and (image.read(path) == found.plot(labels=False)).all()


def test_show_without_a_display(found, monkeypatch, tmp_path):
    monkeypatch.setattr(gd.detections.tempfile, "tempdir", str(tmp_path))
    for name in gd.detections.DISPLAYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(webbrowser, "open", lambda uri: False)
    monkeypatch.setattr(sys, "platform", "linux")
    for _ in range(2):
        with pytest.raises(ImageError) as e:
            found.show()
        assert str(e.value) == "show: there is no display or no viewer; use save('annotated.jpg')"
        monkeypatch.setenv("DISPLAY", ":0")
    assert list(tmp_path.iterdir()) == []


# Text and tables


@pytest.mark.parametrize("save_conf", [False, True])
def test_save_txt(found, here, save_conf):
    for _ in range(2):  # replaces, so that no object is written twice
        assert found.save_txt("labels/photo.txt", save_conf) == "labels/photo.txt"
    rows = [line.split() for line in Path("labels/photo.txt").read_text().splitlines()]
    assert [int(row[0]) for row in rows] == [2, 0, 1]
    wanted = [[*d.relative, *([d.confidence] if save_conf else [])] for d in ITEMS]
    np.testing.assert_allclose(np.array(rows, float)[:, 1:], wanted, atol=1e-6)
    Detections().save_txt("labels/photo.txt")
    assert Path("labels/photo.txt").read_text() == ""


def test_label_files_are_read_as_truth(found, pixels, here):
    image.write("photo.png", pixels)
    found[[0, 2]].save_txt("photo.txt")
    truth, errors = read_labels("photo.txt", len(NAMES))
    np.testing.assert_allclose(truth, [[*ITEMS[0].relative, 2], [*ITEMS[2].relative, 1]], atol=1e-6)
    assert errors == []


def test_summary(found):
    assert found.summary()[0] == {
        "name": "dog", "class": 2, "confidence": 0.9, "box": {"x1": 4.0, "y1": 2.0, "x2": 24.0, "y2": 12.0},
    }  # fmt: skip
    box = found.summary(normalize=True, decimals=2)[1]["box"]
    assert box == {"x1": -0.12, "y1": 0.5, "x2": 0.25, "y2": 1.5}
    assert json.loads(found.to_json()) == found.summary()
    assert json.loads(found.to_json(True, 2)) == found.summary(True, 2)


def test_to_csv(found):
    rows = list(csv.DictReader(io.StringIO(found.to_csv(decimals=1))))
    assert rows[2] == {
        "name": "traffic light", "class": "1", "confidence": "0.3", "x1": "50.0", "y1": "5.0", "x2": "66.0", "y2": "35.0",
    }  # fmt: skip
    quoted = Detections([Detection('a, "b"', 0, 0.5, (0, 0, 1, 1), (0, 0, 1, 1))])
    assert next(csv.DictReader(io.StringIO(quoted.to_csv())))["name"] == 'a, "b"'


def test_a_data_frame_of_pandas(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    frame = found.to_df()
    assert isinstance(frame, pandas.DataFrame) and frame.to_dict("records") == found.summary()
    assert list(Detections().to_df().columns) == list(frame.columns) == ["name", "class", "confidence", "box"]
    assert frame[frame["class"] == 2]["box"].iloc[0]["x2"] == 24


def test_a_data_frame_of_polars(found):
    polars = pytest.importorskip("polars")
    frame = found.to_df(normalize=True)
    assert frame.to_dicts() == found.summary(normalize=True)
    assert Detections().to_df().schema == frame.schema and frame.unnest("box").columns[-4:] == ["x1", "y1", "x2", "y2"]
    assert isinstance(frame, polars.DataFrame)


def test_without_a_library_for_data_frames(found, monkeypatch):
    for name in ("polars", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError) as e:
        found.to_df()
    assert str(e.value) == "to_df: neither polars nor pandas is installed; pip install polars"


# Notebooks


def test_html_is_escaped(pixels):
    name = "<script>alert('cat')</script>"
    item = Detection(name, 0, 0.5, ITEMS[0].box, ITEMS[0].relative)
    shown = Detections([item] * 30, names=[name], shape=(H, W), source=pixels)._repr_html_()
    assert "<script" not in shown and shown.count("&lt;script&gt;") >= 20 and "and 10 more" in shown


@pytest.mark.parametrize(("size", "shown"), [((64, 64), (320, 320)), ((600, 400), (600, 400)), ((4000, 3), (1024, 1))])
def test_a_notebook_shows_pictures_of_a_useful_size(size, shown):
    big = np.zeros((size[1], size[0], 3), np.uint8)
    decoded = cv2.imdecode(np.frombuffer(Detections(names=NAMES, source=big)._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (shown[1], shown[0], 3)


def decode(data: str) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def test_a_notebook_cell_shows_the_boxes(tmp_path, monkeypatch, detector):
    monkeypatch.setenv("PYTHONPATH", str(Path(gd.__file__).parent.parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    cells = [
        "import gpudarknet as gd\n"
        "det = gd.Detector('tiny.cfg', 'tiny.weights', ('cat', 'dog'), 'numpy')\n"
        "det.detect('tiny.png')",
        "det.detect('tiny.png').show()",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    (result,), (shown,) = (cell.outputs for cell in notebook.cells)
    assert result.data["text/plain"].startswith("Detections([cat 0.86 (46, 19, 20, 10)")
    found = detector.detect(tmp_path / "tiny.png")
    for output in (result, shown):
        assert (decode(output.data["image/png"]) == found._preview()).all()
    html = result.data["text/html"]
    inside = decode(html.split("base64,")[1].split('"')[0])
    assert inside.shape == found._preview().shape and "<td>cat</td>" in html
    assert shown.output_type == "display_data"
