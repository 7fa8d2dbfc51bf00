"""`detector train`, `map`, `valid`, `recall`, `calc_anchors` and `classifier train`, on four small images."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from spots import project

import gpudarknet as gd
from gpudarknet import image
from gpudarknet.cli import main
from gpudarknet.cli.training_display import Display
from gpudarknet.data import Loader
from gpudarknet.train import Progress, Trainer
from gpudarknet.train.loop import Throughput


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Run in a folder with a data set and a cfg, on NumPy."""
    project(tmp_path, end=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    return tmp_path


def test_train_then_measure(folder, capsys):
    assert main(["detector", "train", "x.data", "x.cfg", "-map"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and lines[0] == "x: 4 images, batch 8, iterations 1 to 3"
    assert (
        lines[1].startswith(" 1: ") and " avg loss, 0.000063 rate, " in lines[1] and " seconds, 8 images, " in lines[1]
    )
    assert lines[3].startswith(" detections_count = ") and lines[4].startswith("class_id = 0, name = red, ap = ")
    assert lines[10].startswith(" mean average precision (mAP@0.50) = ")
    assert lines[12].startswith(" 3: mean average precision (mAP@0.50) = ") and len(lines) == 15
    assert re.fullmatch(r" 1: .* hours left \([0-9.e+]+ images/s\)", lines[1]) and lines[-1].endswith(
        "/x_final.weights"
    )
    assert re.fullmatch(
        r"24 images in \S+ seconds: \S+ images/s, \S+ seconds \(\S+%\) of it waiting for data", lines[13]
    )
    assert (folder / "backup" / "x_final.weights").is_file()
    weights = ["x.data", "x.cfg", "backup/x_final.weights"]

    assert main(["detector", "map", *weights, "-points", "11", "-letter_box", "-dont_show"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(" detections_count = ") and out[0].endswith(", unique_truth_count = 12")
    assert out[1].startswith("class_id = 0, name = red, ap = ") and "(TP = " in out[1]
    assert out[4].startswith(" for conf_thresh = 0.25, precision = ")
    assert " IoU threshold = 50 %, used 11 Recall-points" in out
    assert any(line.startswith(" mean average precision (mAP@0.50) = 0.") for line in out)

    assert main(["detector", "valid", *weights]) == 0
    assert capsys.readouterr().out.splitlines() == [f"results/comp4_det_test_{c}.txt" for c in ("red", "green", "blue")]
    (folder / "x.data").write_text((folder / "x.data").read_text() + "eval=coco\n")
    assert main(["detector", "valid", *weights, "-thresh", "0.01"]) == 0
    results = json.loads((folder / "results" / "coco_results.json").read_text())
    assert results and set(results[0]) == {"image_id", "category_id", "score", "bbox"}

    assert main(["detector", "recall", *weights]) == 0
    assert "images: 4, proposals per image: " in capsys.readouterr().out


def test_train_a_classifier_and_measure_it(folder, capsys):
    (folder / "c.cfg").write_text(
        "[net]\nwidth=24\nheight=24\nchannels=3\nbatch=2\nmax_batches=2\n[convolutional]\nfilters=3\nsize=3\nstride=4\n"
        "activation=linear\n[avgpool]\n[softmax]\n"
    )
    for number, name in enumerate(("red", "green", "blue", "cow")):
        (folder / f"{number}.png").rename(folder / f"{name}_.png")
    (folder / "list.txt").write_text("red_.png\ngreen_.png\nblue_.png\ncow_.png\nred_none.png\n")
    assert main(["classifier", "train", "x.data", "c.cfg", "-topk"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[3].startswith(" 2: top-1 accuracy = ") and (folder / "backup" / "c_best.weights").is_file()
    assert main(["classifier", "valid", "x.data", "c.cfg", "backup/c_final.weights", "-t", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("4 images, top 1: ") and out.endswith(
        ", top 3: 0.750000\n1 of them have no label in their path and count as wrong\n"
    )
    image_error = f"{folder}/red_none.png: no such file; check the path; listed with reasons in {folder}/bad.list"
    label_error = "cow_.png: 0 labels occur in its path; it should be one; listed with reasons in "
    assert err.splitlines() == [  # at once and at the end
        f"warning: x.data: `valid`: 1 of 5 images cannot be read and are skipped, first {image_error}",
        f"warning: x.data: `valid`: 1 label is wrong or missing, of 5 images, first {label_error}{folder}/bad_label.list",
        f"warning: 1 image cannot be read, first {image_error}",
        f"warning: 1 label is wrong or missing, first {label_error}{folder}/bad_label.list",
    ]
    assert (folder / "bad.list").read_text().splitlines() == [f"{folder}/red_none.png: no such file; check the path"]
    (folder / "list.txt").write_text("cow_.png\n")
    assert main(["classifier", "valid", "x.data", "c.cfg", "backup/c_final.weights"]) == 2
    assert capsys.readouterr().err == (
        "error: x.data: `valid`: none of its 1 images has a usable label, first cow_.png: 0 labels occur in its path; it"
        f" should be one; listed with reasons in {folder}/bad_label.list\n"
    )


def test_flags_of_training(folder, capsys):
    """The command of Darknet's README, other mAP settings, the images of a batch; files land in the backup folder."""
    before = {path.name for path in folder.iterdir()}
    words = (
        "-dont_show -mjpeg_port 8090 -gpus 0 -map 1 -iou_thresh 0.3 -points 11 -thresh 0.4 -mAP_epochs 2 -letter_box"
    )
    assert main(["detector", "train", "x.data", "x.cfg", *words.split()]) == 0
    out, err = capsys.readouterr()
    assert " 3: mean average precision (mAP@0.30) = " in out and " for conf_thresh = 0.40, precision = " in out
    assert " IoU threshold = 30 %, used 11 Recall-points" in out
    assert err.splitlines() == [
        "note: detector train: -mjpeg_port has no effect; there is no server",
        "note: detector train: -letter_box has no effect; letter_box in [net] decides, as in Darknet",
        "note: -gpus 0 has no effect; the CPU is used, `gpudarknet info` says why",
    ]
    assert main(["detector", "train", "x.data", "x.cfg", "-show_imgs", "-clear", "1", "-gpus", "-1"]) == 0
    aug = folder / "backup" / "aug_0.jpg"
    assert f"{aug} to aug_7.jpg: the batch of the next iteration\n" in capsys.readouterr().out
    assert image.read(aug.with_name("aug_1.jpg")).shape == (32, 64, 3)
    assert {path.name for path in folder.iterdir()} == before | {"backup"}


def test_a_chart_elsewhere(folder, capsys):
    """Its history is continued from the CSV file next to it."""
    assert main(["detector", "train", "x.data", "x.cfg", "-chart", "f.png"]) == 0
    (folder / "x.cfg").write_text((folder / "x.cfg").read_text().replace("max_batches=3", "max_batches=5"))
    assert main(["detector", "train", "x.data", "x.cfg", "backup/x_last.weights", "-chart", "f.png"]) == 0
    rows = (folder / "f.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["iteration", "1", "2", "3", "4", "5"]
    assert not list((folder / "backup").glob("chart*"))
    capsys.readouterr()
    assert main(["detector", "train", "x.data", "x.cfg", "-clear", "-chart", "none/f.png"]) == 2
    assert capsys.readouterr().err == (
        "error: none/f.png: cannot be written (No such file or directory); use a file in an existing folder\n"
    )


def test_when_map_is_measured(folder, capsys, monkeypatch):
    """As in train_detector (src/detector.c): -mAP_epochs epochs, at least 100 iterations, after the last one; after burn_in."""

    def step(self, x, truth):
        self.iteration += 1
        return 1.0

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(Loader, "get", lambda self, iteration: (np.zeros(8), np.zeros(8)))
    text = (folder / "x.cfg").read_text().replace("max_batches=3", "max_batches=251")
    for burn_in, epochs, expected in ((2, 4, [100, 200, 251]), (150, 4, [150, 250, 251]), (2, 220, [110, 220, 251])):
        (folder / "x.cfg").write_text(text.replace("burn_in=2", f"burn_in={burn_in}"))
        assert main(f"detector train x.data x.cfg -clear -map -mAP_epochs {epochs}".split()) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [int(line.split(":")[0]) for line in lines if "(mAP@0.50)" in line and " best = " in line] == expected


def test_several_gpus(folder, capsys):
    for gpus in ("0,1", "1,0,2", "0, 1"):
        assert main(["detector", "train", "x.data", "x.cfg", "-gpus", gpus]) == 2
        assert capsys.readouterr().err == (
            f"error: -gpus {gpus}: training uses one GPU; choose it with -gpus {gpus.split(',')[0]}\n"
        )
    assert main(["detector", "train", "x.data", "x.cfg", "-gpus", "all"]) == 2
    assert capsys.readouterr().err == "error: -gpus needs the index of a GPU, got 'all'\n"


def test_options_of_map_are_checked_at_once(folder, capsys):
    for words, message in (
        ("-iou_thresh 75", "detector train: -iou_thresh needs a number from 0 to 1, got '75'"),
        ("-points 5", "points=5: average precision is computed over 0 (the area), 11 or 101 points"),
    ):
        assert main(["detector", "train", "x.data", "x.cfg", "-map", *words.split()]) == 2
        out, err = capsys.readouterr()
        assert err == f"error: {message}\n" and out == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_a_shells_exit_code(folder, capsys, monkeypatch, number):
    step = Trainer.step

    def disturbed(self, x, truth):
        os.kill(os.getpid(), number)
        return step(self, x, truth)

    monkeypatch.setattr(Trainer, "step", disturbed)
    assert main(["detector", "train", "x.data", "x.cfg"]) == 128 + number
    last = folder / "backup" / "x_last.weights"
    assert capsys.readouterr().out.splitlines()[-1] == f"stopped after iteration 1 of 3; resume from {last}"


def test_a_closed_pipe_ends_the_training_with_a_checkpoint(folder, capsys, monkeypatch):
    """As by `| head`."""

    class Pipe(io.StringIO):
        def write(self, text):
            if text.startswith(" 2: "):
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Pipe())
    assert main(["detector", "train", "x.data", "x.cfg"]) == 2
    last = folder / "backup" / "x_last.weights"
    assert capsys.readouterr().err == (
        f"note: standard output was closed; stopped after iteration 2 of 3; resume from {last}\n"
    )
    trainer = Trainer(gd.load_network("x.cfg"))
    trainer.resume(last)
    assert trainer.iteration == 2


def test_output_on_a_full_disk(folder, capsys, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["detector", "train", "x.data", "x.cfg"]) == 2
    assert capsys.readouterr().err == "error: standard output: No space left on device\n"


def test_without_standard_output(folder, monkeypatch):
    """As under pythonw, cron or by >&-."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["detector", "train", "x.data", "x.cfg", "-map"]) == 0
    sys.stdout.close()
    sys.stderr.close()
    assert (folder / "backup" / "x_final.weights").is_file()


def test_sigterm_before_the_first_iteration(folder, capsys, monkeypatch):
    """The folder is unlocked, and removed because nothing was written; what is wrong with the data is said."""
    monkeypatch.setattr("gpudarknet.cli.train.show", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    (folder / "0.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    before = signal.getsignal(signal.SIGTERM)
    assert main(["detector", "train", "x.data", "x.cfg", "-show_imgs"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in (folder / "backup").iterdir()] == ["bad_label.list"]
    assert len(capsys.readouterr().err.splitlines()) == 2  # at once and at the end


def test_an_empty_argument_is_none(folder, capsys):
    """As of a shell's unset variable; Darknet, too, trains without weights then."""
    assert main(["detector", "train", "x.data", "x.cfg", ""]) == 0
    assert "iterations 1 to 3" in capsys.readouterr().out
    assert main(["detector", "map", "x.data", "x.cfg", ""]) == 2
    assert capsys.readouterr().err.startswith("error: detector map: x.weights is missing; usage: ")


def test_without_matplotlib_the_missing_chart_is_said(folder, capsys, monkeypatch):
    monkeypatch.setattr("gpudarknet.train.history.find_spec", lambda name: None)
    assert main(["detector", "train", "x.data", "x.cfg"]) == 0
    assert capsys.readouterr().err == (
        f"warning: {folder}/backup/chart_x.png: is not drawn, because matplotlib is not installed; chart_x.csv has the curve; pip"
        ' install "gpudarknet[train]" adds the chart\n'
    )
    assert not (folder / "backup" / "chart_x.png").exists() and (folder / "backup" / "chart_x.csv").is_file()


def test_a_long_validation_reports_quarters(monkeypatch):
    printed, clock = [], iter(range(0, 10_000, 4))
    monkeypatch.setattr("gpudarknet.cli.training_display.time.monotonic", lambda: next(clock))
    shown = Display("mAP", (), printed.append)
    for _ in range(2):
        for count in range(1, 41):
            shown.validating(count, 40)
    expected = [f" {n} of 40 images validated, {m} minutes left" for n, m in ((10, 1.8), (20, 1.3), (30, 0.6))]
    assert printed == 2 * expected


def test_slow_data_is_said():
    """In Darknet's words and in a line that scripts which look for "images" or "avg" skip; not for the first batch."""
    printed = []
    shown = Display("mAP", (), printed.append)
    one = Progress(1, 9, 2.5, 2.5, 0.1, 1.0, 0.4, 8, 8, 64, 32, left=3600.0, run=Throughput(8, 1.0, 0.4))
    shown.summary()
    shown.iteration(one)
    shown.iteration(replace(one, iteration=2, images=16, run=one.run.add(8, 1.0, 0.4)))
    shown.iteration(replace(one, iteration=3, waited=0.09, seconds=0.1))
    shown.iteration(replace(one, iteration=4, waited=0.2, seconds=2.0, images=32, run=Throughput(32, 4.1, 1.09)))
    shown.summary()
    assert printed == [
        " 1: 2.500000, 2.500000 avg loss, 0.100000 rate, 1.000000 seconds, 8 images, 1.000000 hours left (8 images/s)",
        " Loaded: 0.400000 seconds, 40% of the iteration",
        " 2: 2.500000, 2.500000 avg loss, 0.100000 rate, 1.000000 seconds, 16 images, 1.000000 hours left (8 images/s)",
        " 3: 2.500000, 2.500000 avg loss, 0.100000 rate, 0.100000 seconds, 8 images, 1.000000 hours left (80 images/s)",
        " 4: 2.500000, 2.500000 avg loss, 0.100000 rate, 2.000000 seconds, 32 images, 1.000000 hours left (4 images/s)",
        "32 images in 4.1 seconds: 7.805 images/s, 1.09 seconds (26.6%) of it waiting for data",
    ]


class Terminal(io.StringIO):
    """A terminal 100 columns wide."""

    def isatty(self):
        return True


def test_a_live_display(folder, monkeypatch):
    """On a terminal: bars for iterations and for the images of a validation, and its result."""
    pytest.importorskip("rich")
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    assert main(["detector", "train", "x.data", "x.cfg", "-map"]) == 0
    text = out.getvalue() + err.getvalue()
    assert (
        "waiting for data" in text
        and "3/3" in text
        and "validation" in text
        and "class_id = 0, name = red, ap = " in text
    )
    assert " 3: mean average precision (mAP@0.50) = " in text and " avg loss, " not in text


def test_ctrl_c_prints_how_to_resume(folder, capsys, monkeypatch):
    step = Trainer.step

    def disturbed(self, x, truth):
        if self.iteration == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, x, truth)

    monkeypatch.setattr(Trainer, "step", disturbed)
    assert main(["detector", "train", "x.data", "x.cfg"]) == 130
    out, err = capsys.readouterr()
    last = folder / "backup" / "x_last.weights"
    assert out.splitlines()[-1] == f"stopped after iteration 2 of 3; resume from {last}" and err == ""
    assert out.splitlines()[-2].startswith("16 images in ")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert main(["detector", "train", "x.data", "x.cfg", str(last), "-backend", "numpy"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(" 3: ")


def test_an_overwritten_checkpoint_is_warned_about(folder, capsys):
    main(["detector", "train", "x.data", "x.cfg"])
    assert capsys.readouterr().err == ""
    main(["detector", "train", "x.data", "x.cfg"])
    message = f"warning: {folder}/backup/x_last.weights: will be overwritten; to resume from it, add it after the cfg\n"
    assert capsys.readouterr().err == message


def test_class_names_that_file_names_cannot_be(folder, capsys):
    """Each class gets a file, also if two names become equal."""
    gd.load_network("x.cfg").save_weights("x.weights")
    (folder / "x.names").write_text("a/b\na_b\n../x\n")
    assert main(["detector", "valid", "x.data", "x.cfg", "x.weights"]) == 0
    files = ["results/comp4_det_test_a_b_0.txt", "results/comp4_det_test_a_b.txt", "results/comp4_det_test_.._x.txt"]
    assert capsys.readouterr().out.splitlines() == files and all(Path(file).is_file() for file in files)
    (folder / "x.names").write_text("same\nsame\n" + 300 * "é" + "\n")
    assert main(["detector", "valid", "x.data", "x.cfg", "x.weights"]) == 0
    assert len(set(capsys.readouterr().out.splitlines())) == 3


def test_results_that_cannot_be_written(folder, capsys, monkeypatch):
    """Said before the images are evaluated."""
    gd.load_network("x.cfg").save_weights("x.weights")
    (folder / "results").write_text("a file")
    monkeypatch.setattr(gd.Detector, "run", None)
    assert main(["detector", "valid", "x.data", "x.cfg", "x.weights"]) == 2
    message = "error: results: cannot create this folder (File exists); choose another path\n"
    assert capsys.readouterr().err == message


def test_image_ids_of_coco(folder, capsys):
    gd.load_network("x.cfg").save_weights("x.weights")
    (folder / "x.data").write_text((folder / "x.data").read_text() + "eval=coco\n")
    (folder / "3.png").rename(folder / "a.png")
    (folder / "list.txt").write_text("0.png\n1.png\na.png\n")
    assert main(["detector", "valid", "x.data", "x.cfg", "x.weights"]) == 0
    assert capsys.readouterr().err == (
        "warning: x.data: eval=coco: 1 of 3 image names do not end in a number and get image_id 0, first a.png\n"
    )


def test_nothing_left_to_train(folder, capsys):
    main(["detector", "train", "x.data", "x.cfg"])
    capsys.readouterr()
    assert main(["detector", "train", "x.data", "x.cfg", "backup/x_last.weights"]) == 0
    assert capsys.readouterr().err == (
        "warning: backup/x_last.weights: is at iteration 3 of 3, training is complete; -clear restarts at 0\n"
    )


def test_resuming_from_a_checkpoint(folder, capsys):
    main(["detector", "train", "x.data", "x.cfg"])
    text = (folder / "x.cfg").read_text()
    (folder / "x.cfg").write_text(text.replace("max_batches=3", "max_batches=5"))
    capsys.readouterr()
    assert main(["detector", "train", "x.data", "x.cfg", "backup/x_last.weights"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("iterations 4 to 5") and out[1].startswith(" 4: ") and len(out) == 5
    assert main(["detector", "train", "x.data", "x.cfg", "backup/x_last.weights", "-clear"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("iterations 1 to 5")


def test_bad_samples_are_reported(folder, capsys):
    (folder / "0.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    assert main(["detector", "train", "x.data", "x.cfg"]) == 0
    error = f"{folder}/0.txt:1: class 7 is not one of 0 to 2; listed with reasons in "
    at_once, at_the_end = capsys.readouterr().err.splitlines()
    assert at_once.startswith(f"warning: x.data: `train`: 1 label is wrong or missing, of 4 images, first {error}")
    assert at_the_end.startswith(f"warning: 1 label is wrong or missing, first {error}")
    assert Path(at_the_end.rpartition(" in ")[2]).read_text() == f"{error.partition('; listed')[0]}\n"


def test_anchors(folder, capsys):
    assert (
        main(["detector", "calc_anchors", "x.data", "-num_of_clusters", "1", "-width", "100", "-height", "60", "-show"])
        == 0
    )
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(" 12 boxes, average IoU = ") and out[1:3] == [
        "anchors =  16, 12",
        "counters_per_class = 4, 4, 4",
    ]
    assert (folder / "anchors.txt").read_text() == " 16, 12\n"
    assert (folder / "counters_per_class.txt").read_text() == "counters_per_class = 4, 4, 4\n"
    assert (folder / "anchors.png").is_file()


@pytest.mark.parametrize("width", [64, 32])  # in pixels; in cells
def test_anchors_and_counters_can_be_pasted_into_a_cfg(folder, capsys, width):
    """Also if a class has no object, and some boxes are smaller than a pixel."""
    for path in folder.glob("[0-9].txt"):
        (_, x, y, w, h), other, _ = (row.split() for row in path.read_text().splitlines())
        path.write_text(f"0 {x} {y} {float(w) / 100} {h}\n{' '.join(other)}\n")
    words = ["-num_of_clusters", "2", "-width", str(width), "-height", "32"]
    assert main(["detector", "calc_anchors", "x.data", *words]) == 0
    anchors, counters = capsys.readouterr().out.splitlines()[1:3]
    assert counters == "counters_per_class = 4, 4, 0" == (folder / "counters_per_class.txt").read_text().strip()
    assert anchors == "anchors = " + (folder / "anchors.txt").read_text().rstrip("\n")
    assert min(float(word) for word in anchors.partition("=")[2].split(",")) > 0
    text = (folder / "x.cfg").read_text().replace("width=64", f"width={width}")
    (folder / "x.cfg").write_text(text.replace("anchors=12,10,22,20", f"{anchors}\n{counters}"))
    assert main(["detector", "train", "x.data", "x.cfg"]) == 0
    out = capsys.readouterr().out
    assert " 3: " in out and "nan" not in out


def test_a_wrong_number_of_names(folder, capsys):
    """Before the training, not at its first mAP; and a mean over classes that do not exist would be wrong."""
    main(["detector", "train", "x.data", "x.cfg"])
    (folder / "x.names").write_text("red\ngreen\nblue\ncow\n")
    capsys.readouterr()
    message = f"error: {folder}/x.names: has 4 names, x.cfg has 3 classes; the numbers must be equal\n"
    for words in (["train", "x.data", "x.cfg"], ["map", "x.data", "x.cfg", "backup/x_final.weights"]):
        assert main(["detector", *words]) == 2
        assert capsys.readouterr().err == message
    (folder / "x.names").write_text("red\n\ngreen\nblue\n")
    assert main(["detector", "train", "x.data", "x.cfg"]) == 2
    assert "x.names: has 4 names (line 2 is empty), x.cfg has 3 classes;" in capsys.readouterr().err
    (folder / "x.data").write_text((folder / "x.data").read_text().replace("names=", "map="))
    assert main(["detector", "train", "x.data", "x.cfg", "-map"]) == 2
    assert capsys.readouterr().err == "error: x.data: has no key 'names'; add a line names=FILE\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["detector", "calc_anchors", "x.data"],
         "detector calc_anchors: set -width and -height to the cfg's input size, such as -width 416 -height 416"),
        (["classifier", "train", "x.data", "x.cfg"], "x.cfg: is a detector; use `gpudarknet detector train`"),
        (["detector", "map", "x.data", "x.cfg", "none"], "none: cannot be read (No such file or directory); check the path"),
        (["detector", "train", "x.data", "x.cfg", "x.weights"],
         "x.weights: cannot be read (No such file or directory); check the path"),
    ],
)  # fmt: skip
def test_refusals(folder, capsys, words, message):
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
