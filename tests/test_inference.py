"""The inference pipeline exists once: a fault planted in any of its stages changes what every interface returns."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import opencv4
import PIL.Image
import pytest

import gpudarknet as gd
import gpudarknet.darknet as darknet
from gpudarknet import boxes, cli, evaluate, image, tiles
from gpudarknet.data import read_list
from gpudarknet.data.datafile import DataFile
from gpudarknet.errors import DataError
from gpudarknet.evaluate import validation_score
from gpudarknet.image.video import VideoWriter
from gpudarknet.inference import InferencePipeline, classify

THRESH, NMS = 0.7, 0.3
NAMES = ["ball", "cup", "dog", "egg"]
COMMAND = ["x.data", "tiny.cfg", "tiny.weights"]
FLAGS = ["-backend", "numpy", "-thresh", str(THRESH)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector and a classifier with an image, as a data set of which the detector is right, and as a video."""
    folder = tmp_path_factory.mktemp("inference")
    opencv4.write(folder)
    photo = opencv4.scene()
    for name in ("cup.png", "cup2.png"):
        cv2.imwrite(str(folder / name), photo)
    with VideoWriter(folder / "film.avi", 20) as film:
        film.write(np.ascontiguousarray(photo[..., ::-1]))
    (folder / "x.names").write_text("\n".join(NAMES) + "\n")
    (folder / "x.data").write_text("classes=4\nnames=x.names\nvalid=valid.txt\nresults=.\n")
    (folder / "valid.txt").write_text("cup.png\n")
    detector = gd.Detector(folder / "tiny.cfg", folder / "tiny.weights", NAMES, "numpy")
    objects = detector.detect(folder / "cup.png", THRESH, NMS)
    assert 3 <= len(objects) < len(detector.detect(folder / "cup.png", THRESH, 0)), "there must be boxes to suppress"
    truth = [f"{d.class_id} " + " ".join(map(str, d.relative)) + "\n" for d in objects]
    (folder / "cup.txt").write_text("".join(truth[1:]))  # the first is wrong, so that mAP is below 1
    return folder


@pytest.fixture
def project(files, tmp_path, monkeypatch):
    """Make a copy of the files the current folder."""
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "project"))


def detector():
    return gd.Detector("tiny.cfg", "tiny.weights", NAMES, "numpy")


def command(*words, writes=None):
    """Return a function that runs a command and returns what it prints, without times, or the file that it writes."""

    def run(capsys):
        assert cli.main(list(words)) == 0
        printed = re.sub(r'[\d.]+ milli-seconds|"time": [\d.]+', "", capsys.readouterr().out)
        return Path(writes).read_text() if writes else printed

    return run


def darknet_image(capsys):
    network, names, _ = darknet.load_network("tiny.cfg", "x.data", "tiny.weights")
    return darknet.detect_image(network, names, darknet.load_image("cup.png"), THRESH, nms=NMS)


def darknet_batch(capsys):
    network, names, colors = darknet.load_network("tiny.cfg", "x.data", "tiny.weights")
    return darknet.batch_detection(network, [image.read("cup.png")], names, colors, THRESH, nms=NMS)[1]


INTERFACES = {
    "Detector.detect": lambda capsys: detector().detect("cup.png", THRESH, NMS),
    "Detector.detect_batch": lambda capsys: detector().detect_batch(["cup.png"], THRESH, NMS),
    "Detector.detect_stream": lambda capsys: list(detector().detect_stream(["cup.png"], THRESH, NMS)),
    "tiles": lambda capsys: tiles.detect_boxes(detector(), image.read("cup.png"), 0.75, NMS).boxes.tolist(),
    "detector test": command("detector", "test", *COMMAND, "cup.png", *FLAGS, "-ext_output"),
    "detector test -tiles": command(
        "detector", "test", *COMMAND, "cup.png", *FLAGS, "-thresh", "0.75", "-ext_output", "-tiles"
    ),
    "detector demo": command("detector", "demo", *COMMAND, "film.avi", *FLAGS, "-jsonl", "-"),
    "detector map": command("detector", "map", *COMMAND, *FLAGS),
    "detector valid": command("detector", "valid", *COMMAND, *FLAGS, writes="comp4_det_test_dog.txt"),
    "detector recall": command("detector", "recall", *COMMAND, "-backend", "numpy"),
    "evaluate": lambda capsys: [
        (img.scored.boxes.tolist(), img.scored.probs.tolist())
        for img in evaluate.evaluate_images(detector(), read_list("valid.txt"))
    ],
    "training's mAP": lambda capsys: validation_score(DataFile.read("x.data"), detector().network)(detector().network),
    "darknet.detect_image": darknet_image,
    "darknet.batch_detection": darknet_batch,
}


def flip(array, axis):
    return np.ascontiguousarray(np.flip(array, axis))


def shift(rows):
    rows[:, 1] += 0.2
    return rows


FAULTS = {  # stage: the attribute that is replaced, its fault
    "read": (image, "read", lambda read: lambda *args: flip(read(*args), 1)),
    "resize": (InferencePipeline, "preprocess", lambda preprocess: lambda *args: flip(preprocess(*args), 3)),
    "run": (gd.Network, "predict", lambda predict: lambda *args, **how: [0.8 * y for y in predict(*args, **how)]),
    "decode": (InferencePipeline, "by_image", lambda by_image: lambda *args: list(map(shift, by_image(*args)))),
    "suppress": (boxes, "nms", lambda nms: lambda xywh, probs, *args: probs),
}
ELSEWHERE = {
    ("detector demo", "read"),  # frames are read by image/video.py
    ("darknet.batch_detection", "resize"),  # with OpenCV, as in Darknet's script
}


@pytest.mark.parametrize("name", INTERFACES)
def test_a_fault_in_any_stage_shows_in_every_interface(name, project, capsys):
    right = INTERFACES[name](capsys)
    assert INTERFACES[name](capsys) == right
    for stage, (owner, attribute, fault) in FAULTS.items():
        if (name, stage) not in ELSEWHERE:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, attribute, fault(getattr(owner, attribute)))
                assert INTERFACES[name](capsys) != right, stage


def test_the_inference_time_is_the_networks_per_image(project, monkeypatch):
    """Reading and resizing are not counted; in a batch, each image counts its share."""
    clock = iter([10.0, 10.3])
    monkeypatch.setattr("gpudarknet.inference.time.perf_counter", lambda: next(clock))
    assert [scored.seconds for scored in detector().detect_boxes(["cup.png", "cup2.png"])] == pytest.approx([0.15] * 2)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_no_images_is_an_error(batch, project):
    for detect in (detector().detect_stream, detector().detect_batch):
        with pytest.raises(DataError) as e:
            list(detect(["cup.png"], batch=batch))
        assert str(e.value) == f"batch {batch}: must be at least 1"


@pytest.mark.parametrize(
    "one",
    ["cup.png", Path("cup.png"), b"GIF89a", np.zeros((8, 8, 3)), np.zeros((8, 8)), PIL.Image.new("L", (8, 8))],
)  # fmt: skip
def test_one_image_is_not_taken_for_several(one, project):
    for detect in (detector().detect_stream, detector().detect_batch):
        with pytest.raises(
            DataError, match=r"^images: is one image or path, not several; pass \[image\], or gpudarknet"
        ):
            list(detect(one))
    assert len(detector().detect_batch(np.zeros((2, 8, 8, 3), np.uint8))) == 2


def test_every_classification_uses_one_function(project, monkeypatch, capsys):
    network = gd.load_network("classes.cfg", "classes.weights", "numpy")
    best = int(classify(network, "cup.png").probs.argmax())
    Path("labels.txt").write_text("".join("cup\n" if k == best else f"label{k}\n" for k in range(10)))
    Path("x.data").write_text("classes=10\nlabels=labels.txt\nnames=labels.txt\nvalid=valid.txt\n")
    words = ("x.data", "classes.cfg", "classes.weights")
    interfaces = [
        command("classifier", "predict", *words, "cup.png"),
        command("classifier", "valid", *words),
        lambda capsys: validation_score(DataFile.read("x.data"), network)(network),
    ]
    right = [run(capsys) for run in interfaces]
    assert right[2] == 1
    red = np.zeros((3, 64, 64), np.float32)
    red[0] = 1  # which is of another class
    monkeypatch.setattr("gpudarknet.image.classifier_input", lambda img, W, H: red)
    assert [run(capsys) == before for run, before in zip(interfaces, right, strict=True)] == [False] * 3
