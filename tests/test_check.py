"""What is wrong with images and labels is said before the work starts, with its likely cause."""

from __future__ import annotations

import warnings

import cv2
import numpy as np
import pytest
from spots import project

import gpudarknet as gd
from gpudarknet import data, evaluate
from gpudarknet.cli import main
from gpudarknet.data import check
from gpudarknet.data.datafile import DataFile
from gpudarknet.errors import DataError, DataWarning, ImageError
from gpudarknet.train import Trainer, datasets


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Run in a folder with four images of three objects each, of classes 0, 1 and 2, on NumPy."""
    project(tmp_path, end=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    return tmp_path


def rewrite(folder, line):
    """Rewrite each line of each label file by line(class, x, y, w, h)."""
    for path in folder.glob("[0-9].txt"):
        rows = [[float(word) for word in row.split()] for row in path.read_text().splitlines()]
        path.write_text("\n".join(line(int(row[0]), *row[1:]) for row in rows) + "\n")


def polygon(k, x, y, w, h):
    return f"{k} {x - w / 2} {y - h / 2} {x + w / 2} {y - h / 2} {x + w / 2} {y + h / 2} {x - w / 2} {y + h / 2}"


def text(k, *values):
    return " ".join([str(k), *(f"{value:.6f}" for value in values)])


FIX = "a line must be 'class x y width height', center and size as fractions of the image"
W, H = 90, 60  # of the images
USELESS = {  # what people write -> what they are told
    "pixels": (lambda k, x, y, w, h: text(k, x * W, y * H, w * W, h * H), f"the boxes are in pixels; {FIX}"),
    "percent": (lambda k, x, y, w, h: text(k, x * 100, y * 100, w * 100, h * 100), f"the boxes are in percent; {FIX}"),
    "corners in pixels": (
        lambda k, x, y, w, h: f"{k} {int((x - w / 2) * W)} {int((y - h / 2) * H)} {int((x + w / 2) * W)} {int((y + h / 2) * H)}",
        f"the boxes look like corners in pixels, left top right bottom; {FIX}",
    ),
    "decimal commas": (lambda *box: text(*box).replace(".", ","), "the numbers have decimal commas; write points"),
    "csv": (lambda *box: text(*box).replace(" ", ","), "the numbers are separated by commas or semicolons; write spaces"),
    "commas and spaces": (
        lambda *box: text(*box).replace(" ", ", "), "the numbers are separated by commas or semicolons; write spaces"
    ),
    "semicolons": (lambda *box: text(*box).replace(" ", ";"), "the numbers are separated by commas or semicolons; write spaces"),
    "polygons": (polygon, f"these are polygons (segmentation labels) or rotated boxes; {FIX}"),
    "class last": (lambda k, *box: f"{text(*box)} {k}", f"the class comes last; {FIX}"),
    "no class": (lambda k, *box: text(*box), f"the lines have no class; {FIX}"),
    "names": (
        lambda k, *box: text("red green blue".split()[k], *box),
        "the lines begin with names; write class numbers, counted from 0 in the order of the names file",
    ),
    "json": (lambda *box: '{"class": 1}', f"the files are XML or JSON; {FIX}"),
    "divided twice": (lambda k, x, y, w, h: text(k, x / W, y / H, w / W, h / H), ""),
    "classes of another data set": (lambda k, *box: text(k + 7, *box), ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", USELESS)
def test_labels_that_are_all_wrong(folder, kind):
    line, cause = USELESS[kind]
    rewrite(folder, line)
    bad_samples, net = data.BadSamples(folder), gd.load_network("x.cfg")
    with pytest.raises(DataError) as e:
        datasets.training_set(DataFile.read("x.data"), net, bad_samples)
    message = str(e.value)
    assert message.startswith(f"x.data: `train`: none of its 4 images has a usable label, first {folder}/0.txt:1: ")
    assert message.endswith(f"{cause}; listed with reasons in {folder}/bad_label.list")
    assert len(message.splitlines()) == 1
    assert (folder / "bad_label.list").read_text().splitlines() == bad_samples.labels != []
    if kind != "divided twice":  # whose boxes are too small for training only
        with pytest.raises(DataError, match="`valid`: none of its 4 images has a usable label"):
            evaluate.validation_score(DataFile.read("x.data"), net)


def test_classes_from_one(folder):
    """Two thirds of the labels are of a class that exists, but all are wrong."""
    rewrite(folder, lambda k, *box: text(k + 1, *box))
    with pytest.warns(DataWarning) as warned:
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    assert [str(w.message) for w in warned] == [
        f"x.data: `train`: 4 labels are wrong or missing, of 4 images, first {folder}/0.txt:3: class 3 is not one of 0 to 2; the"
        " class numbers seem to start at 1; they must be 0 to 2"
    ]
    (folder / "0.txt").write_text("0 .5 .5 .1 .1\n")  # with a 0 they do not
    with pytest.warns(DataWarning) as warned:
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    assert "start at 1" not in str(warned[0].message)


ANOTHER_ORDER = {  # of numbers that can be read as boxes: function of class and box -> line, and what the warning says
    "corners": (
        lambda k, x, y, w, h: text(k, x - w / 2, y - h / 2, x + w / 2, y + h / 2),
        "the labels look like corners, 'class left top right bottom'",
    ),
    "corner and size": (
        lambda k, x, y, w, h: text(k, (x - w / 2) / 20, y - h / 2, w, h),
        "the labels look like 'class left top width height'",
    ),
    "confidence": (lambda k, x, y, w, h: text(k, 0.95, x, y, w), "check the order of the numbers"),
}


@pytest.mark.parametrize("kind", ANOTHER_ORDER)
def test_numbers_in_another_order(folder, kind):
    """What gives them away is how many boxes would leave the image."""
    line, cause = ANOTHER_ORDER[kind]
    rewrite(folder, line)
    with pytest.warns(DataWarning) as warned:
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    (message,) = {str(w.message) for w in warned}
    count = message.removeprefix("x.data: `train`: ").split()[0]
    assert message == (
        f"x.data: `train`: {count} of 12 boxes reach over the edge of their image, first in {folder}/0.txt; {cause}; Darknet"
        " reads 'class x y width height', center and size"
    )


def test_no_object_of_class_0(folder):
    """Class numbers from 1, of which the last occurs nowhere."""
    rewrite(folder, lambda k, *box: text(1 + k % 2, *box))
    with pytest.warns(
        DataWarning, match="no object is of class 0, but of class 1; if the class numbers start at 1, subtract"
    ):
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    rewrite(folder, lambda k, *box: text(2, *box))  # some of the classes of a larger list
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))


def test_correct_labels_cause_no_warning(folder):
    """Nor does an image without objects, a track, a class column of floats, Windows line ends or a byte order mark."""
    rewrite(folder, lambda k, *box: text(f"{k:.6f}", *box) + " 7\r")
    (folder / "0.txt").write_text("")
    (folder / "1.txt").write_bytes(b"\xef\xbb\xbf" + (folder / "1.txt").read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = gd.load_network("x.cfg")
        assert len(datasets.training_set(DataFile.read("x.data"), net).paths) == 4
        evaluate.validation_score(DataFile.read("x.data"), net)


def test_missing_labels(folder):
    (folder / "2.txt").unlink()
    with pytest.warns(
        DataWarning, match="`train`: 1 label is wrong or missing, of 4 images, first .*/2.txt: cannot be read"
    ):
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    (folder / "labels").mkdir()
    for path in folder.glob("[0-9].txt"):
        path.rename(folder / "labels" / path.name)
    with pytest.raises(
        DataError, match=f"; {folder}/labels/0.txt exists, but labels are read from {folder}; move them$"
    ):
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    (folder / "images" / "part").mkdir(parents=True)  # a data set of YOLOv5
    (folder / "labels").rename(folder / "part")
    (folder / "labels").mkdir()
    (folder / "part").rename(folder / "labels" / "part")
    for path in folder.glob("[0-9].png"):
        path.rename(folder / "images" / "part" / path.name)
    for images in ("images/part", f"{folder}/images/part"):
        (folder / "list.txt").write_text("".join(f"{images}/{n}.png\n" for n in range(4)))
        labels = images.removesuffix("images/part") + "labels/part"
        with pytest.raises(DataError, match=f"; {labels}/0.txt exists, but labels are read from {images}; move them$"):
            datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    for n in range(4):
        (folder / "images" / "part" / f"{n}.txt").write_text("")
    with pytest.raises(DataError) as e:
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    assert str(e.value) == "x.data: `train`: the label files of all 4 images are empty; check how they were written"


def test_images_that_cannot_be_read(folder):
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes(b"")
    with pytest.warns(DataWarning) as warned:
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"), data.BadSamples(folder))
    assert str(warned[0].message) == (
        f"x.data: `train`: 2 of 4 images cannot be read and are skipped, first {folder}/1.png: no such file; check the path;"
        f" listed with reasons in {folder}/bad.list"
    )
    assert len((folder / "bad.list").read_text().splitlines()) == 2
    whole = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(whole[:-20])
    with pytest.warns(DataWarning, match=r"`train`: 3 of 4 images cannot be read and are skipped, first .*/1.png"):
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    (folder / "3.png").write_bytes(whole)
    (folder / "0.png").write_text("version https://git-lfs.github.com/spec/v1\n")  # the images after it are tried
    with pytest.warns(
        DataWarning, match=r"`train`: 3 of 4 images cannot be read and are skipped, first .*/0.png: is a Git LFS"
    ):
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    for n in range(4):
        (folder / f"{n}.png").write_text("version https://git-lfs.github.com/spec/v1\n")  # exists, but is no image
    with pytest.raises(DataError, match=r"`train`: none of its 4 images can be read, first .*/0.png: is a Git"):
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))


def test_a_long_list_is_checked_at_even_distances(folder, monkeypatch):
    assert check.evenly_spaced([str(k) for k in range(10)], 4) == ["0", "2", "5", "7"]
    for limit in ("MAX_IMAGES", "MAX_LABELS"):
        monkeypatch.setattr(check, limit, 2)  # 0 and 2
    (folder / "2.txt").unlink()
    (folder / "2.png").unlink()
    with pytest.warns(DataWarning) as warned:
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))
    assert [str(w.message).partition(", first")[0] for w in warned] == [
        "x.data: `train`: 1 of 2 checked (of 4) images cannot be read and are skipped",
        "x.data: `train`: 1 label is wrong or missing, of 2 checked (of 4) images",
    ]
    (folder / "0.txt").write_text("")
    with (
        pytest.warns(DataWarning),
        pytest.raises(DataError, match=r"none of its 2 checked \(of 4\) images has a usable label"),
    ):
        datasets.training_set(DataFile.read("x.data"), gd.load_network("x.cfg"))


def classifier(folder, names):
    """Write a classifier of red, green and blue, and images of these names."""
    (folder / "c.cfg").write_text(
        "[net]\nwidth=24\nheight=24\nchannels=3\nbatch=2\nmax_batches=2\n[convolutional]\nfilters=3\nsize=3\nstride=4\n"
        "activation=linear\n[avgpool]\n[softmax]\n"
    )
    for name in names:
        cv2.imwrite(str(folder / name), np.full((24, 24, 3), 99, np.uint8))
    (folder / "list.txt").write_text("\n".join(names))
    return gd.load_network(folder / "c.cfg"), DataFile.read(folder / "x.data")


@pytest.mark.parametrize("make", [datasets.training_set, evaluate.validation_score])
def test_paths_with_no_label_or_two(folder, make):
    net, source = classifier(folder, ["red1.png", "cow.png", "redgreen.png"])
    with pytest.warns(DataWarning) as warned:
        make(source, net)
    assert str(warned[0].message).endswith(
        "2 labels are wrong or missing, of 3 images, first cow.png: 0 labels occur in its path; it should be one"
    )
    net, source = classifier(folder, ["redgreen.png", "bluegreen.png"])
    with pytest.raises(
        DataError, match=r"first redgreen.png: 2 labels occur in its path: 'red' 'green'; it should be one$"
    ):
        make(source, net)


def test_an_image_without_a_label_counts_as_wrong(folder):
    """As in Darknet, where the first of two labels is the class."""
    _, source = classifier(folder, ["red1.png", "cow.png", "greenred.png", "blue.png"])
    for bias, expected in ([1, 0, 0], 0.5), ([0, 1, 0], 0), ([0, 0, 1], 0.25):
        net = gd.load_network(folder / "c.cfg")
        for name, value in net.weights[0].items():
            value[...] = bias if name == "bias" else 0
        seen = []
        with pytest.warns(DataWarning):
            score = evaluate.validation_score(source, net, report=seen.append)
        assert score(net) == seen[0].top1 == expected
        assert (seen[0].images, seen[0].unlabeled) == (4, 1)


@pytest.mark.parametrize("command", ["map", "recall"])
def test_evaluation_says_it_at_once_and_at_the_end(folder, capsys, monkeypatch, command):
    """And after an error or Ctrl-C; once, whatever happens."""
    gd.load_network("x.cfg").save_weights("x.weights")
    words = ["detector", command, "x.data", "x.cfg", "x.weights"]
    (folder / "1.png").unlink()
    (folder / "0.txt").write_text("7 .5 .5 .1 .1\n")
    image = f"{folder}/1.png: no such file; check the path; listed with reasons in {folder}/bad.list"
    label = f"{folder}/0.txt:1: class 7 is not one of 0 to 2; listed with reasons in {folder}/bad_label.list"
    said = [
        f"warning: x.data: `valid`: 1 of 4 images cannot be read and are skipped, first {image}",
        f"warning: x.data: `valid`: 1 label is wrong or missing, of 4 images, first {label}",
        f"warning: 1 image cannot be read, first {image}",
        f"warning: 1 label is wrong or missing, first {label}",
    ]
    assert main(words) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "faster-coco-eval" not in line] == said
    run = gd.Detector.run

    def stop(self, images, *args, **options):
        if "3.png" in images[0]:
            raise KeyboardInterrupt
        return run(self, images, *args, **options)

    monkeypatch.setattr(gd.Detector, "run", stop)
    assert main(words) == 130
    assert capsys.readouterr().err.splitlines() == said


def test_images_that_are_lost_while_they_are_evaluated(folder, capsys, monkeypatch):
    """The summary at the end, and an error, not a mean of 0."""
    gd.load_network("x.cfg").save_weights("x.weights")

    def lost(self, images, *args, **options):
        raise ImageError(f"{images[0]}: no such file; check the path")

    monkeypatch.setattr(gd.Detector, "run", lost)
    for command in ("map", "recall"):
        assert main(["detector", command, "x.data", "x.cfg", "x.weights"]) == 2
        assert capsys.readouterr().err.splitlines() == [
            f"warning: 4 images cannot be read, first {folder}/0.png: no such file; check the path; listed with reasons in"
            f" {folder}/bad.list",
            "error: x.data: `valid`: nothing is measured: no image could be read; check the list of images",
        ]


def test_an_error_about_bad_samples_is_said_once(folder, capsys):
    gd.load_network("x.cfg").save_weights("x.weights")
    rewrite(folder, polygon)
    for words in (["map", "x.data", "x.cfg", "x.weights"], ["train", "x.data", "x.cfg"]):
        assert main(["detector", *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_result_files_need_no_labels(folder, capsys):
    gd.load_network("x.cfg").save_weights("x.weights")
    rewrite(folder, polygon)
    assert main(["detector", "valid", "x.data", "x.cfg", "x.weights"]) == 0
    assert capsys.readouterr().err == "" and not (folder / "bad_label.list").exists()


def test_a_measurement_of_nothing_is_no_score(folder):
    """The images are lost after the check: no score, and no best weights."""
    source, net = DataFile.read("x.data"), gd.load_network("x.cfg")
    score = evaluate.validation_score(source, net)
    training = datasets.training_set(source, net)
    (folder / "away").mkdir()
    trainer = Trainer(net)

    def measure(net):
        for path in folder.glob("*.png"):
            path.rename(folder / "away" / path.name)
        with pytest.warns(
            DataWarning, match="x.data: `valid`: nothing is measured: no image could be read; check the list of images"
        ):
            return score(net)

    assert trainer.fit(training, "backup", measure=measure).map is None
    assert (folder / "backup" / "x_final.weights").is_file() and not (folder / "backup" / "x_best.weights").exists()


def test_a_classifier_measured_on_nothing(folder):
    net, source = classifier(folder, ["red1.png"])
    score = evaluate.validation_score(source, net)
    (folder / "red1.png").unlink()
    with pytest.warns(DataWarning) as warned:
        assert score(net) is None
    assert str(warned[-1].message) == (
        f"{folder}/x.data: `valid`: nothing is measured: none of 1 images can be read and has a label in its path; check the"
        " list and the labels"
    )


def test_without_valid(folder, capsys):
    text = (folder / "x.data").read_text()
    (folder / "x.data").write_text("\n".join(line for line in text.splitlines() if not line.startswith("valid")))
    said = "warning: x.data: has no key 'valid'; the images of `train` are used, on which results are better than on others"
    assert main(["detector", "train", "x.data", "x.cfg", "-map"]) == 0
    assert capsys.readouterr().err.splitlines() == [said]
    for command in ("map", "recall", "valid"):
        assert main(["detector", command, "x.data", "x.cfg", "backup/x_final.weights"]) == 0
        assert capsys.readouterr().err.splitlines()[0] == said


def test_classes_without_an_object(folder, capsys):
    gd.load_network("x.cfg").save_weights("x.weights")
    rewrite(folder, lambda k, *box: text(0, *box))
    assert main(["detector", "map", "x.data", "x.cfg", "x.weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if "no object" in line)
    assert line.startswith(
        " 2 of 3 classes have no object and count as 0 in the mean: green, blue; mAP of the others = "
    )
