"""Reading and writing videos, and `detector demo`: all frames of a file, current frames of a camera, errors in any thread."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import opencv4
import pytest

from gpudarknet import cli, image
from gpudarknet.cli.demo import FpsMeter
from gpudarknet.errors import ImageError
from gpudarknet.image import video

FRAMES = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network's files, and film.avi, whose frame i is approximately gray 10 * i, with a box."""
    folder = tmp_path_factory.mktemp("video")
    opencv4.write(folder)
    (folder / "tiny.names").write_text("ball\ncup\ndog\negg\n")
    (folder / "tiny.data").write_text(f"names={folder / 'tiny.names'}\n")
    with video.VideoWriter(folder / "film.avi", 20) as film:
        for i in range(FRAMES):
            img = np.full((48, 64, 3), 10 * i, np.uint8)
            img[10:30, 20:40] = (200, 40, 40)
            film.write(img)
    return folder


def count(path):
    with video.Reader(path) as frames:
        return sum(1 for _ in frames)


def test_a_file_yields_every_frame_in_order_as_rgb(folder):
    reader = video.Reader(folder / "film.avi")
    assert not reader.live and reader.fps == 20
    with reader as frames:
        received = []
        for frame in frames:
            received.append(frame)
            time.sleep(0.003)  # slower than the reader: it has to wait
    assert [frame.number for frame in received] == list(range(1, FRAMES + 1)) and reader.dropped == 0
    grays = [int(frame.image[40, 50].mean()) for frame in received]
    assert np.abs(np.subtract(grays, np.arange(FRAMES) * 10)).max() < 4
    red, _, blue = received[5].image[20, 30].astype(int)
    assert red - blue > 100


def test_skip(folder):
    with video.Reader(folder / "film.avi", skip=2) as frames:
        assert [frame.number for frame in frames] == [1, 4, 7, 10, 13]


def test_stopping_early_does_not_hang(folder):
    for _ in range(3):
        with video.Reader(folder / "film.avi") as frames:
            assert next(iter(frames)).number == 1
    assert not [t for t in threading.enumerate() if t.name == "video reader"]


class Camera:
    """Stub of cv2.VideoCapture: frames filled with their number, one every two milliseconds."""

    def __init__(self, source):
        self.number = 0

    def isOpened(self):
        return True

    def get(self, key):
        return 0.0

    def read(self):
        time.sleep(0.002)
        self.number += 1
        return self.number <= 60, np.full((4, 6, 3), self.number, np.uint8)

    def release(self):
        pass


def test_a_camera_drops_late_frames_and_stays_current(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    reader = video.Reader("0")
    assert reader.live and reader.fps == video.DEFAULT_FPS
    with reader as frames:
        seen = []
        for frame in frames:
            seen.append(frame.number)
            assert reader._capture.number - frame.number <= 3  # the one that waits, and one that is being handed over
            time.sleep(0.01)
    assert seen == sorted(set(seen)) and len(seen) + reader.dropped == 60 and reader.dropped > 20


def test_an_error_in_the_reader_is_raised(monkeypatch):
    def fail(self):
        raise OSError("the cable")

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "read", fail)
    with video.Reader("0") as frames, pytest.raises(OSError, match="the cable"):
        list(frames)


def test_the_writer_works_in_order_and_raises_errors():
    done = []
    with video.BackgroundWriter(done.append) as writer:
        for i in range(20):
            writer.put(i)
    assert done == list(range(20))

    def fail(i):
        raise ImageError(f"frame {i}")

    with pytest.raises(ImageError, match="frame 0"), video.BackgroundWriter(fail) as writer:
        for i in range(50):
            writer.put(i)


def test_a_recording_appears_whole_or_not_at_all(tmp_path):
    img = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(RuntimeError), video.VideoWriter(tmp_path / "a.mp4", 25) as film:
        film.write(img)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with video.VideoWriter(tmp_path / "a.mp4", 25) as film:
        for _ in range(7):
            film.write(img)
    assert count(tmp_path / "a.mp4") == 7


def test_errors(tmp_path):
    def message(make):
        with pytest.raises(ImageError) as e:
            make()
        return str(e.value)

    path = tmp_path / "x.avi"
    assert message(lambda: video.Reader(path)) == (f"{path}: no such file; use a video file, a camera index or a URL")
    path.write_bytes(b"not a video")
    assert message(lambda: video.Reader(path)) == f"{path}: is not a video that OpenCV can read; check the source"
    assert message(lambda: video.VideoWriter(tmp_path / "x.gif", 25)) == (
        f"{tmp_path / 'x.gif'}: unknown video format; use .avi, .mp4, .mkv, .mov"
    )
    assert message(lambda: video.VideoWriter(tmp_path / "no" / "x.avi", 25)) == (
        f"{tmp_path / 'no' / 'x.avi'}: cannot be written; use a file in an existing folder"
    )


@pytest.mark.parametrize("pattern, first", [("frame_%03d.png", 0), ("frame %d.png", 4), ("bild-%04d_ü.bmp", 1)])
def test_a_sequence_of_images(tmp_path, pattern, first):
    for k in range(7):
        image.write(tmp_path / (pattern % (first + k)), np.full((16, 24, 3), (30 * k, 0, 200), np.uint8))
    reader = video.Reader(str(tmp_path / pattern))
    assert not reader.live
    with reader as frames:
        assert [frame.image[8, 8].tolist() for frame in frames] == [[30 * k, 0, 200] for k in range(7)]


def test_errors_of_sequences_folders_and_patterns(tmp_path):
    def message(source):
        with pytest.raises(ImageError) as e:
            video.Reader(source)
        return str(e.value)

    (tmp_path / "frame_007.png").write_bytes(b"")
    (tmp_path / "frame_x.png").write_bytes(b"")
    path = tmp_path / "frame_%03d.png"
    assert message(path) == (
        f"{path}: the sequence starts with frame_007.png, but OpenCV finds only one that starts at 0 to 4; rename its files"
    )
    for path in (tmp_path / "%03d.png", tmp_path / "none" / "%03d.png"):
        assert message(path) == f"{path}: no file of this sequence exists, such as 001.png; check the path"
    assert message(tmp_path) == (
        f"{tmp_path}: is a folder; name a video, or the images in it as a sequence such as {tmp_path}/frame_%03d.jpg"
    )
    for name in ("%s.jpg", "%d%d.jpg", "%n.avi", "100%.avi", "%3"):
        path = tmp_path / name
        assert message(path) == f"{path}: no such file; use a video file, a camera index or a URL"
    assert message(str(tmp_path / "*.png")) == (
        f"{tmp_path}/*.png: no such file; patterns of images are for `gpudarknet detector test`; name a sequence as"
        " frame_%03d.jpg"
    )


@pytest.mark.parametrize("name", ["100%.avi", "%03d film.avi", "ein Film ü.avi", "a#b?.avi"])
@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_names_of_files(folder, tmp_path, name, kind):
    shutil.copy(folder / "film.avi", tmp_path / name)
    assert count(kind(tmp_path / name)) == FRAMES


def demo(folder, *words):
    files = [str(folder / f"tiny.{kind}") for kind in ("data", "cfg", "weights")]
    return cli.main(["detector", "demo", *files, *map(str, words), "-backend", "numpy", "-thresh", "0.6", "-dont_show"])


def test_demo(folder, tmp_path, capsys):
    out, lines = tmp_path / "out.avi", tmp_path / "out.jsonl"
    assert demo(folder, folder / "film.avi", "-out_filename", out, "-jsonl", lines, "-ext_output") == 0
    assert count(out) == FRAMES
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [frame["frame_id"] for frame in records] == list(range(1, FRAMES + 1))
    first = records[0]["objects"][0]
    assert set(first) == {"class_id", "name", "relative_coordinates", "confidence"} and first["confidence"] > 0.6
    captured = capsys.readouterr()
    assert captured.out.startswith(f"frame 1:\n{first['name']}: {first['confidence'] * 100:.0f}%\t(left_x: ")
    assert f"film.avi: {FRAMES} frames, " in captured.err and captured.err.endswith(" FPS\n")


def test_demo_writes_json_to_standard_output(folder, capsys):
    assert demo(folder, folder / "film.avi", "-jsonl", "-", "-s", "5") == 0
    assert [json.loads(line)["frame_id"] for line in capsys.readouterr().out.splitlines()] == [1, 7, 13]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 or UTF-16 elsewhere")
def test_names_that_are_not_utf8(folder, tmp_path):
    """OpenCV crashes on them."""
    path = os.fsencode(tmp_path / "caf") + b"\xe9.avi"
    shutil.copy(folder / "film.avi", path)
    for opened in (lambda: video.Reader(path), lambda: video.VideoWriter(os.fsdecode(path), 25)):
        with pytest.raises(ImageError, match=r"its name is not UTF-8, so OpenCV cannot open it; rename it$"):
            opened()


@pytest.mark.parametrize("flag", ["-out_filename", "-jsonl"])
def test_demo_does_not_replace_its_video(folder, flag, capsys):
    film = folder / "film.avi"
    before = film.read_bytes()
    assert demo(folder, film, flag, film) == 2
    assert (
        capsys.readouterr().err == f"error: {film}: is a file that the command reads; write the result to another one\n"
    )
    assert film.read_bytes() == before


def test_demo_without_a_video(folder, capsys):
    assert demo(folder, folder / "none.avi") == 2
    expected = f"error: {folder / 'none.avi'}: no such file; use a video file, a camera index or a URL\n"
    assert capsys.readouterr().err == expected


def test_the_fps_meter(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("gpudarknet.cli.demo.time.perf_counter", lambda: now[0])
    meter, lines = FpsMeter(), []
    for _ in range(30):
        now[0] += 0.1
        lines += meter.tick()
    assert lines[0] == "FPS:10.0 \t AVG_FPS:10.0" and 2 <= len(lines) <= 3
